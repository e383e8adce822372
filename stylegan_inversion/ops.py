"""The operations of StyleGAN2 in native PyTorch: any device, any float type, differentiable twice.

Each fast form stands beside a readable reference that follows the paper to the letter; the tests compare the two.
The forms were chosen by measurement on a CPU (`recipes/benchmark_synthesis.py`): a transposed convolution followed by
one depthwise 4 x 4 blur is faster than sub-pixel convolutions, fused 6 x 6 kernels and two separable blurs.

Paper: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", arXiv:1912.04958.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)
DEMODULATION_EPS = 1e-8


def blur_kernel(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Float[Tensor, "4 4"]:
    """Make the binomial filter [1, 3, 3, 1] x [1, 3, 3, 1] that StyleGAN2 resamples with. Its sum is 1."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device, dtype=dtype)
    return torch.outer(taps, taps) / 64


def upfirdn2d(
    x: Float[Tensor, "batch channels height width"],
    kernel: Float[Tensor, "kh kw"],
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Float[Tensor, "batch channels new_height new_width"]:
    """Upsample with zeros, pad, filter, and keep every `down`-th pixel, in both axes.

    Args:
        x: Images or features.
        kernel: FIR filter, applied as a true convolution (flipped), as in the paper's code.
        up: Factor of upsampling, >= 1.
        down: Factor of downsampling, >= 1.
        padding: Zeros before and after each axis, counted after upsampling. Negative numbers crop.
    """
    channels = x.shape[1]
    weight = kernel.to(x.dtype).expand(channels, 1, *kernel.shape)
    if up == 1:
        before, after = padding
        if before == after >= 0:
            return F.conv2d(x, weight.flip(2, 3), stride=down, padding=before, groups=channels)
        return F.conv2d(F.pad(x, (before, after) * 2), weight.flip(2, 3), stride=down, groups=channels)
    # A transposed convolution of stride `up` is "zeros between the pixels, then a true convolution" in one step. Its
    # full output spans side * up + kernel - up pixels and starts kernel - 1 zeros before the first pixel.
    full = F.conv_transpose2d(x, weight, stride=up, groups=channels)
    top, bottom = padding[0] - (kernel.shape[0] - 1), padding[1] - (kernel.shape[0] - 1) + (up - 1)
    left, right = padding[0] - (kernel.shape[1] - 1), padding[1] - (kernel.shape[1] - 1) + (up - 1)
    return F.pad(full, (left, right, top, bottom))[:, :, ::down, ::down]


def upfirdn2d_reference(
    x: Float[Tensor, "batch channels height width"],
    kernel: Float[Tensor, "kh kw"],
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Float[Tensor, "batch channels new_height new_width"]:
    """Compute `upfirdn2d` step by step."""
    batch, channels, height, width = x.shape
    # 1. Put up - 1 zeros after every pixel.
    zeros = x.new_zeros(batch, channels, height, up, width, up)
    zeros[:, :, :, 0, :, 0] = x
    x = zeros.reshape(batch, channels, height * up, width * up)
    # 2. Pad or crop.
    x = F.pad(x, (padding[0], padding[1], padding[0], padding[1]))
    # 3. Convolve each channel with the flipped filter.
    x = F.conv2d(x.reshape(-1, 1, *x.shape[2:]), kernel.flip(0, 1)[None, None].to(x.dtype))
    x = x.reshape(batch, channels, *x.shape[2:])
    # 4. Keep every `down`-th pixel.
    return x[:, :, ::down, ::down]


def upsample_2x(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height2 width2"]:
    """Double the side with the blur filter and keep the mean: the skip connection of the images (paper, figure 7b)."""
    return upfirdn2d(x, blur_kernel(x.device, x.dtype) * 4, up=2, padding=(2, 1))


def bias_act(
    x: Float[Tensor, "batch channels *spatial"], bias: Float[Tensor, " channels"]
) -> Float[Tensor, "batch channels *spatial"]:
    """Add a bias to each channel, then apply a leaky ReLU of slope 0.2 with gain sqrt(2)."""
    x = x + bias.view(-1, *[1] * (x.ndim - 2))
    return F.leaky_relu(x, LRELU_SLOPE) * LRELU_GAIN


def modulated_conv2d(
    x: Float[Tensor, "batch in_channels height width"],
    weight: Float[Tensor, "out_channels in_channels k k"],
    style: Float[Tensor, "batch in_channels"],
    *,
    demodulate: bool = True,
    up: bool = False,
) -> Float[Tensor, "batch out_channels new_height new_width"]:
    """Convolve with a weight whose input channels are scaled by the style, then normalised (paper, equations 1-3).

    The style scales the activations and demodulation scales the result, so that one weight serves the whole batch:
    conv(x, w s) = conv(x s, w), and the norm of w s is a matrix product of squared weights and squared styles.

    In float16, where the square of a style of 256 would overflow, the style is first divided by its largest value, as
    in NVIDIA's code, and the norm is taken in float32. Demodulation cancels the factor; without it, the result is
    multiplied by it.

    Args:
        x: Features.
        weight: Already scaled by its equalised learning rate. Its side k is odd.
        style: Scale of each input channel, one set for each sample.
        demodulate: Normalise each output channel to unit expected variance.
        up: Double the side: transposed convolution of stride 2, then the blur filter.
    """
    largest = None
    if style.dtype == torch.float16:
        largest = style.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float16).tiny)  # (B, 1)
        style = style / largest
    out = x * style[:, :, None, None]
    if up:
        out = F.conv_transpose2d(out, weight.transpose(0, 1), stride=2)
        out = upfirdn2d(out, blur_kernel(x.device, x.dtype) * 4, padding=(1, 1))
    else:
        out = F.conv2d(out, weight, padding=weight.shape[-1] // 2)
    if demodulate:
        eps: float | Tensor = DEMODULATION_EPS
        if largest is not None:
            style, weight, eps = style.float(), weight.float(), eps / largest.float().square()
        norm = style.square() @ weight.square().sum(dim=(2, 3)).t()  # (B, out_channels)
        out = out * (norm + eps).rsqrt()[:, :, None, None].to(out.dtype)
    elif largest is not None:
        out = out * largest[:, :, None, None]
    return out


def modulated_conv2d_reference(
    x: Float[Tensor, "batch in_channels height width"],
    weight: Float[Tensor, "out_channels in_channels k k"],
    style: Float[Tensor, "batch in_channels"],
    *,
    demodulate: bool = True,
    up: bool = False,
) -> Float[Tensor, "batch out_channels new_height new_width"]:
    """Compute `modulated_conv2d` by the equations: one modulated weight for each sample."""
    rows = []
    for x_i, style_i in zip(x, style):
        w = weight * style_i[None, :, None, None]  # equation 1
        if demodulate:
            w = w / (w.square().sum(dim=(1, 2, 3), keepdim=True) + DEMODULATION_EPS).sqrt()  # equation 3
        if up:
            padding = weight.shape[-1] - 1
            zeros = upfirdn2d_reference(
                x_i[None], torch.ones(1, 1, device=x.device, dtype=x.dtype), up=2, padding=(padding, padding - 1)
            )
            blur = blur_kernel(x.device, x.dtype) * 4
            rows.append(upfirdn2d_reference(F.conv2d(zeros, w.flip(2, 3)), blur, padding=(1, 1)))
        else:
            rows.append(F.conv2d(x_i[None], w, padding=weight.shape[-1] // 2))
    return torch.cat(rows)
