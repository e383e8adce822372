"""What the papers measure: one function a metric, and `Scorer`, which applies them all to photos and their edits.

Images are (B, 3, R, R), RGB, in [-1, 1]; values outside are clamped, as saving a picture does. Every metric gives one
number an image: nothing is rounded to 8 bits, and nothing is averaged over a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.losses.identity import IdentityEmbedding
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.preprocessing.domain import middle_rows

PSNR_PEAK = 2.0  # images span [-1, 1]
_PSNR_FLOOR = 1e-10  # lowest mean squared error, so that a perfect copy has 106 dB instead of infinity
_MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest scale first
_MS_SSIM_WINDOW = 11
_SCORED_SHARE = 0.74  # side of the square that the face scorer was trained on, relative to FFHQ's crop

FaceScores = Callable[[Tensor], Mapping[str, Tensor]]
"""Images (B, 3, R, R), RGB, in [-1, 1] -> scores (B,) by attribute, such as `models.face.FaceScorer`."""

Step = tuple[str, float] | None
"""One picture of a photo: the reconstruction (`None`), or an edit and its strength."""


def resize(images: Tensor, side: int) -> Tensor:
    """Resize images (B, 3, H, R) to a width: area averages downwards, as pSp and e4e do, bicubic upwards."""
    if images.shape[-1] == side:
        return images
    size = (round(side * images.shape[-2] / images.shape[-1]), side)
    if images.shape[-1] > side:
        return F.interpolate(images, size=size, mode="area")
    return F.interpolate(images, size=size, mode="bicubic", antialias=True)


def scored_part(images: Tensor, crop_scale: float) -> Tensor:
    """Cut out the middle that the face scorer was trained on, of crops `crop_scale` times as wide as FFHQ's."""
    side = images.shape[-1]
    margin = round(side * max(0.0, 1 - _SCORED_SHARE / crop_scale) / 2)
    return images[..., margin : side - margin, margin : side - margin]


def l2(images: Tensor, targets: Tensor) -> Tensor:
    """Mean of (x - y)^2 over channels and pixels, (B,), in [0, 4]: the "L2" or "MSE" of pSp, e4e and PTI."""
    return (images.clamp(-1, 1) - targets.clamp(-1, 1)).square().mean(dim=(1, 2, 3))


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio for the peak 2 of images in [-1, 1]: 10 log10(4 / mse), (B,), decibels, in [0, 106].

    The figures that GANInverter publishes are 10 log10(2 / mse), 3.01 dB less for the same pictures.
    """
    return 10 * torch.log10(PSNR_PEAK**2 / l2(images, targets).clamp_min(_PSNR_FLOOR))


def ms_ssim_scales(resolution: int) -> int:
    """Count the scales of MS-SSIM that fit, 1 to 5, as torchmetrics does: 64 px have 3, 256 px have 5.

    Raises:
        ValueError: If the images are smaller than the window of 11 px.
    """
    divisors = (max(2**scale, scale**2) for scale in range(len(_MS_SSIM_BETAS)))
    scales = sum(resolution // divisor >= _MS_SSIM_WINDOW for divisor in divisors)
    if scales == 0:
        raise ValueError(f"MS-SSIM needs images of at least {_MS_SSIM_WINDOW} px a side, got {resolution}.")
    return scales


def ms_ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003), (B,), in [0, 1], 1 for equal images.

    The product of contrast^beta over the scales, and of ssim^beta at the coarsest, with a Gaussian window of 11 px.
    Small images use the finest scales that fit, with betas divided by their sum: a different measure, to be reported
    with its number of scales. Borders are reflected, and contrast is averaged without them, as torchmetrics does.
    """
    betas = _MS_SSIM_BETAS[: ms_ssim_scales(min(images.shape[-2:]))]
    half = _MS_SSIM_WINDOW // 2
    taps = torch.exp(-torch.arange(-half, half + 1, device=images.device, dtype=images.dtype).square() / (2 * 1.5**2))
    window = (taps / taps.sum()).expand(3, 1, 1, -1)

    def blur(x: Tensor) -> Tensor:
        x = F.pad(x, (half,) * 4, "reflect")
        return F.conv2d(F.conv2d(x, window, groups=3), window.transpose(2, 3), groups=3)

    x, y = ((pictures.clamp(-1, 1) + 1) / 2 for pictures in (images, targets))  # ssim's luminance needs [0, 1]
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


def latent_edit_consistency(w_plus: Tensor, w_edited: Tensor, *, direction: Direction, strength: float) -> Tensor:
    """LEC of e4e (arXiv:2102.02766, section 5.2): ||E(x) - f^-1(E(G(f(E(x)))))||_2, f the edit; lower is better.

    `w_plus` is E(x), `w_edited` E of the pictures that the generator draws after the edit. Departures from the official
    `metrics/LEC.py`: no image is left out (it drops the batch means outside the 1 and 99 per cent), and the edit is the
    caller's (there: age, factor 3).
    """
    return (w_plus - direction.apply(w_edited, -strength)).square().sum(dim=(1, 2)).sqrt()


def mean_offset_norm(w_plus: Tensor) -> Tensor:
    """Distance of codes from W, (B,): the mean over layers i >= 1 of ||w_i - w_0||_2; 0 in W."""
    return (w_plus[:, 1:] - w_plus[:, :1]).norm(dim=2).mean(dim=1)


@dataclass(frozen=True, eq=False)
class Edit:
    """A direction, and the strengths to measure it at: in rising order, 0 among them, in units of the direction."""

    direction: Direction
    strengths: tuple[float, ...]

    @property
    def ends(self) -> list[float]:
        """The lowest and the highest strength, without 0."""
        return [s for s in (self.strengths[0], self.strengths[-1]) if s != 0]


@dataclass(frozen=True, eq=False)
class Scorer:
    """What every method is measured with."""

    perceptual: PerceptualDistance
    identity: IdentityEmbedding | None  # None leaves identity out
    attributes: FaceScores | None  # needed for edits only
    edits: Mapping[str, Edit]  # by the name of the attribute that each moves
    resolution: int  # side at which pictures are compared
    crop_scale: float  # side of the crops relative to FFHQ's

    @property
    def columns(self) -> dict[str, str]:
        """The name in tables of each figure of a row, with everything that it depends on."""
        identity = {} if self.identity is None else {"identity": f"ID ({self.identity.name})"}
        return {
            "l2": "L2",
            "psnr": f"PSNR (peak {PSNR_PEAK:g})",
            "ms_ssim": f"MS-SSIM ({ms_ssim_scales(self.resolution)} scales)",
            "lpips": f"LPIPS ({self.perceptual.name})",
            **identity,
            "offset_norm": "offset norm",
            **{f"lec_{n}": f"LEC ({n} {e.ends[-1]:+g})" for n, e in self.edits.items() if e.direction.space == "w"},
            "seconds": "s/image",
        }

    @torch.no_grad()
    def score(
        self, w_plus: Tensor, generator: Generator, originals: Tensor, encode: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[list[dict[str, Any]], dict[Step, Tensor]]:
        """Draw the reconstructions and edits of n photos from their codes, and measure them.

        Args:
            w_plus: (n, num_ws, w_dim), on the generator's device.
            generator: Draws all of them.
            originals: The photos' crops, (n, 3, R, R), or less high.
            encode: Images (B, 3, R, R) -> w_plus, for LEC; `None` for a method without an encoder.

        Returns:
            The figures of each photo; and the reconstructions and the edits at both ends, (n, 3, R, R) each.

        Raises:
            FloatingPointError: If a figure is NaN or infinite.
        """
        rows = originals.shape[-2]  # without black bars above and below
        originals = resize(originals, self.resolution).clamp(-1, 1)
        pictures: dict[Step, Tensor] = {}
        embeddings: dict[Step, Tensor] = {}
        scores: dict[Step, Mapping[str, Tensor]] = {}
        steps: list[Step] = [None, *((name, s) for name, edit in self.edits.items() for s in edit.strengths if s != 0)]
        for step in steps:
            codes, drawing = w_plus, generator
            if step is not None:
                direction = self.edits[step[0]].direction
                codes, drawing = direction.apply(w_plus, step[1]), direction.restyle(generator, step[1])
            full = drawing.synthesis(codes).clamp(-1, 1)
            full = middle_rows(full, rows)
            if step is None or step[1] in self.edits[step[0]].ends:
                pictures[step] = full
            images = resize(full, self.resolution).clamp(-1, 1)
            if self.identity is not None:
                embeddings[step] = self.identity.embed(images)
            if self.edits:
                scores[step] = self.attribute_scores(images)

        images = resize(pictures[None], self.resolution).clamp(-1, 1)
        figures = {
            "l2": l2(images, originals),
            "psnr": psnr(images, originals),
            "ms_ssim": ms_ssim(images, originals),
            "lpips": self.perceptual(images, originals),
            "offset_norm": mean_offset_norm(w_plus),
        }
        if self.identity is not None:
            photo = self.identity.embed(originals)
            figures["identity"] = (embeddings[None] * photo).sum(dim=1)  # cosines: the papers' "ID"
        curves: dict[str, dict[str, Tensor]] = {}  # each (strengths, n)
        for name, edit in self.edits.items():
            along: list[Step] = [(name, s) if s != 0 else None for s in edit.strengths]
            curves[name] = {"move": torch.stack([scores[step][name] - scores[None][name] for step in along])}
            if self.identity is not None:
                for key, other in (("identity", photo), ("identity_to_reconstruction", embeddings[None])):
                    curves[name][key] = torch.stack([(embeddings[step] * other).sum(dim=1) for step in along])
            if encode is not None and edit.direction.space == "w":  # an edit in S has no inverse in W
                far, direction = edit.ends[-1], edit.direction
                again = encode(pictures[name, far])
                figures[f"lec_{name}"] = latent_edit_consistency(w_plus, again, direction=direction, strength=far)
        numbers = [*figures.values(), *(values for edit in curves.values() for values in edit.values())]
        if not all(values.isfinite().all() for values in numbers):
            raise FloatingPointError("a figure is NaN or infinite; check the codes and the generator.")
        return [
            {key: values[i].item() for key, values in figures.items()}
            | {"edits": {name: {k: v[:, i].tolist() for k, v in edit.items()} for name, edit in curves.items()}}
            for i in range(len(w_plus))
        ], pictures

    def attribute_scores(self, images: Tensor) -> Mapping[str, Tensor]:
        """Score the part of the pictures that the face scorer was trained on, (B,) by attribute."""
        assert self.attributes is not None
        return self.attributes(scored_part(images, self.crop_scale))
