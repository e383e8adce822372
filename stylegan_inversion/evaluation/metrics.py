"""What the papers measure, one function a metric: tensors in, one number an image out.

Images are (B, 3, R, R), RGB, in [-1, 1]; what lies outside is clamped, as it is when a picture is saved. Nothing is
rounded to 8 bits and nothing is averaged over a batch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.losses.lpips import PerceptualDistance

PSNR_PEAK = 2.0  # of images in [-1, 1]
_PSNR_FLOOR = 1e-10  # of the mean squared error, so that a perfect copy has 106 dB, not infinity
_MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest scale first
_MS_SSIM_WINDOW = 11


def l2(images: Float[Tensor, "batch 3 r r"], targets: Float[Tensor, "batch 3 r r"]) -> Float[Tensor, " batch"]:
    """Mean squared error, mean of (x - y)^2 over channels and pixels: the "L2" or "MSE" of pSp, e4e and PTI.

    Args:
        images: Reconstructions.
        targets: Originals.

    Returns:
        (B,), in [0, 4], lower is better.
    """
    return (images.clamp(-1, 1) - targets.clamp(-1, 1)).square().mean(dim=(1, 2, 3))


def psnr(images: Float[Tensor, "batch 3 r r"], targets: Float[Tensor, "batch 3 r r"]) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio with the peak 2 that images in [-1, 1] have: 10 log10(4 / mse).

    The figures that GANInverter publishes are 10 log10(2 / mse), which is 3.01 dB less for the same pictures.

    Args:
        images: Reconstructions.
        targets: Originals.

    Returns:
        (B,), decibels, in [0, 106], higher is better. The error is floored at 1e-10.
    """
    return 10 * torch.log10(PSNR_PEAK**2 / l2(images, targets).clamp_min(_PSNR_FLOOR))


def ms_ssim_scales(resolution: int) -> int:
    """How many of the five scales of MS-SSIM fit: the coarsest must hold the 11 px window. 64 px have 3, 256 px 5.

    Args:
        resolution: Side of the images in pixels.

    Returns:
        1 to 5, as torchmetrics counts them: it asks for more room than the window needs.

    Raises:
        ValueError: If not even one fits.
    """
    divisors = (max(2**scale, scale**2) for scale in range(len(_MS_SSIM_BETAS)))
    scales = sum(resolution // divisor >= _MS_SSIM_WINDOW for divisor in divisors)
    if scales == 0:
        raise ValueError(f"MS-SSIM needs images of at least {_MS_SSIM_WINDOW} px a side, got {resolution}.")
    return scales


def ms_ssim(images: Float[Tensor, "batch 3 r r"], targets: Float[Tensor, "batch 3 r r"]) -> Float[Tensor, " batch"]:
    """Multi-scale structural similarity (Wang et al. 2003): product of contrast^beta over the scales, and of ssim^beta.

    The standard is five scales with betas 0.0448, 0.2856, 0.3001, 0.2363 and 0.1333 and a Gaussian window of 11 px. On
    small images the finest scales are taken, as many as fit (`ms_ssim_scales`), their betas divided by their sum: a
    different measure, which must be reported with its number of scales. Borders are reflected; contrast is averaged
    without them, as torchmetrics does.

    Args:
        images: Reconstructions.
        targets: Originals.

    Returns:
        (B,), in [0, 1], 1 for equal images.

    Raises:
        ValueError: If the images are smaller than 11 px.
    """
    betas = _MS_SSIM_BETAS[: ms_ssim_scales(images.shape[-1])]
    half = _MS_SSIM_WINDOW // 2
    taps = torch.exp(-torch.arange(-half, half + 1, device=images.device, dtype=images.dtype).square() / (2 * 1.5**2))
    window = (taps / taps.sum()).expand(3, 1, 1, -1)

    def blur(x: Tensor) -> Tensor:
        x = F.pad(x, (half,) * 4, "reflect")
        return F.conv2d(F.conv2d(x, window, groups=3), window.transpose(2, 3), groups=3)

    x, y = ((pictures.clamp(-1, 1) + 1) / 2 for pictures in (images, targets))  # luminance is for intensities from 0 up
    total = torch.ones(len(images), device=images.device, dtype=images.dtype)
    for scale, beta in enumerate(betas):
        mean_x, mean_y = blur(x), blur(y)
        variances = blur(x * x) - mean_x * mean_x + blur(y * y) - mean_y * mean_y
        value = (2 * (blur(x * y) - mean_x * mean_y) + 0.03**2) / (variances + 0.03**2)
        if scale < len(betas) - 1:
            value = value[..., half:-half, half:-half]
        else:
            value = value * (2 * mean_x * mean_y + 0.01**2) / (mean_x * mean_x + mean_y * mean_y + 0.01**2)
        total = total * value.mean(dim=(1, 2, 3)).clamp_min(0) ** (beta / sum(betas))
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return total


def lpips(
    images: Float[Tensor, "batch 3 r r"], target_features: list[Tensor], *, network: PerceptualDistance
) -> Float[Tensor, " batch"]:
    """Perceptual distance (LPIPS, arXiv:1801.03924) by a network whose name must be reported: they are not comparable.

    Args:
        images: Reconstructions.
        target_features: `network.features` of the originals, which serve every method.
        network: See `losses.lpips.load_perceptual`.

    Returns:
        (B,), >= 0, lower is better.
    """
    return network.distance(network.features(images.clamp(-1, 1)), target_features)


def identity_similarity(
    embedding: Float[Tensor, "batch dim"], other: Float[Tensor, "batch dim"]
) -> Float[Tensor, " batch"]:
    """Cosine of two identity embeddings of unit norm: the "ID" of the papers, by the network that is named with it.

    Args:
        embedding: `embed` of an identity network.
        other: The same of other pictures.

    Returns:
        (B,), in [-1, 1], 1 for the same picture. The scale is the network's own.
    """
    return (embedding * other).sum(dim=1)


def latent_edit_consistency(
    w_plus: Float[Tensor, "batch num_ws w_dim"],
    w_edited: Float[Tensor, "batch num_ws w_dim"],
    *,
    direction: Direction,
    strength: float,
) -> Float[Tensor, " batch"]:
    """LEC of e4e (arXiv:2102.02766, section 5.2): ||E(x) - f^-1(E(G(f(E(x)))))||_2, f the edit.

    Departures from the official `metrics/LEC.py`: no image is left out (it drops the batch means outside the 1 and 99
    per cent, with an argument that NumPy 2 no longer knows), and the edit is the caller's (there: age, factor 3).

    Args:
        w_plus: E(x), in W+.
        w_edited: E of the pictures that the generator draws after the edit.
        direction: The edit's direction.
        strength: How far the edit went, in the direction's unit.

    Returns:
        (B,), >= 0, norm over layers and dimensions; lower is better, 0 for an encoder that inverts exactly.
    """
    return (w_plus - direction.apply(w_edited, -strength)).square().sum(dim=(1, 2)).sqrt()


def mean_offset_norm(w_plus: Float[Tensor, "batch num_ws w_dim"]) -> Float[Tensor, " batch"]:
    """How far codes lie from W: the mean over layers i >= 1 of ||w_i - w_0||_2, e4e's delta regularisation a layer.

    Args:
        w_plus: Codes in W+.

    Returns:
        (B,), >= 0, in the units of w; 0 in W.
    """
    return (w_plus[:, 1:] - w_plus[:, :1]).norm(dim=2).mean(dim=1)
