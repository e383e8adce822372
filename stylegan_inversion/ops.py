"""The operations of StyleGAN2 in native PyTorch: any device, any float type, differentiable twice.

Each fast form stands beside a readable reference that follows the paper to the letter; the tests compare the two.
The forms were chosen by measurement on a CPU (`recipes/benchmark.py`): a transposed convolution followed by one
depthwise 4 x 4 blur is faster than fused 6 x 6 kernels and two separable blurs, and as fast as sub-pixel convolutions.

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
    taps = torch.ones(4, device=device, dtype=dtype)  # no list of numbers: copying one to a GPU would wait for it
    taps[1:3] = 3
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


def styled_conv(
    x: Float[Tensor, "batch in_channels height width"],
    weight: Float[Tensor, "out_channels in_channels k k"],
    style: Float[Tensor, "batch in_channels"],
    bias: Float[Tensor, " out_channels"],
    noise: Float[Tensor, "#batch 1 new_height new_width"] | None = None,
    *,
    up: bool = False,
) -> Float[Tensor, "batch out_channels new_height new_width"]:
    """Compute a style layer, `styled_conv_reference`, in few passes over the features.

    The gain of the leaky ReLU, which is homogeneous, goes into the scale, the noise and the bias before it. Then there
    are two ways. One sample whose weight is smaller than its features (from 64 px on in the released networks) gets a
    weight of its own, scaled and normalised. Otherwise the style scales the input and demodulation the output, so that
    one weight serves the whole batch: conv(x, w s) = conv(x s, w), and the norm of w s is a matrix product of squared
    weights and squared styles. So it is too if a gradient goes to the style but not to the weight: through a weight of
    its own it would cost a convolution more.

    Scales are computed in float32 at least, and the input's is at most 1: in float16 a style of 256 squared overflows.

    Args:
        x: Features.
        weight: Its side k is odd.
        style: Scale of each input channel, one set for each sample, times the gain of the equalised learning rate.
        bias: Added to each channel.
        noise: Added to all channels. `None` adds nothing.
        up: Double the side: transposed convolution of stride 2, then the blur filter.
    """
    channels, k = len(weight), weight.shape[-1]
    wide = torch.promote_types(style.dtype, torch.float32)
    style, w, bias = style.to(wide), weight.to(wide), (bias * LRELU_GAIN).to(x.dtype)
    features = x[0].numel() + channels * x[0, 0].numel() * (4 if up else 1)
    own = len(x) == 1 and w.numel() <= features and (weight.requires_grad or not style.requires_grad)
    if own:
        w = w * style[0, :, None, None]
        w = w * ((w.square().sum(dim=(1, 2, 3), keepdim=True) + DEMODULATION_EPS).rsqrt() * LRELU_GAIN)
    else:
        largest = style.detach().abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(wide).tiny)  # it cancels
        style = style / largest
        norm = style.square() @ w.square().mean(dim=(2, 3)).t()  # (B, out_channels), near 1: autocast takes float16
        x = x * style[:, :, None, None].to(x.dtype)
        scale = ((norm + DEMODULATION_EPS / (k * largest).square()).rsqrt() * (LRELU_GAIN / k)).to(x.dtype)
    w = w.to(x.dtype)
    if up:
        blur = (blur_kernel(x.device, x.dtype) * 4).expand(channels, 1, 4, 4)
        out = F.conv_transpose2d(x, w.transpose(0, 1), stride=2)
        out = F.conv2d(out, blur, padding=1, groups=channels)  # a bias here would cost the blur's gradient in backward
    else:
        out = F.conv2d(x, w, bias if own else None, padding=k // 2)
    if not own:
        out = torch.addcmul(bias.to(out.dtype)[:, None, None], out, scale.to(out.dtype)[:, :, None, None])
    elif up:
        out = out.add_(bias.to(out.dtype)[:, None, None])
    if noise is not None:
        out = out.add_((noise * LRELU_GAIN).to(out.dtype))
    return F.leaky_relu_(out, LRELU_SLOPE)


def styled_conv_reference(
    x: Float[Tensor, "batch in_channels height width"],
    weight: Float[Tensor, "out_channels in_channels k k"],
    style: Float[Tensor, "batch in_channels"],
    bias: Float[Tensor, " out_channels"],
    noise: Float[Tensor, "#batch 1 new_height new_width"] | None = None,
    *,
    up: bool = False,
) -> Float[Tensor, "batch out_channels new_height new_width"]:
    """Compute `styled_conv` step by step."""
    out = modulated_conv2d_reference(x, weight, style, up=up)
    return bias_act(out if noise is None else out + noise, bias)


def to_rgb(
    x: Float[Tensor, "batch in_channels height width"],
    weight: Float[Tensor, "3 in_channels 1 1"],
    style: Float[Tensor, "batch in_channels"],
    bias: Float[Tensor, " 3"],
) -> Float[Tensor, "batch 3 height width"]:
    """Convolve with a modulated 1 x 1 weight, without demodulation, as a matrix product for each sample.

    With the pixels last in the product, as here, it is fast in both memory formats. At 1024 px on one core, the pixels
    first took 228 ms against 17 ms if the channels came first, and 685 ms against 14 ms for the gradient to the weight
    if they came last.
    """
    w = (weight[:, :, 0, 0] * style[:, None]).to(x.dtype)  # (B, 3, in_channels)
    return (w @ x.flatten(2) + bias[:, None]).unflatten(2, x.shape[2:])


def to_rgb_reference(
    x: Float[Tensor, "batch in_channels height width"],
    weight: Float[Tensor, "3 in_channels 1 1"],
    style: Float[Tensor, "batch in_channels"],
    bias: Float[Tensor, " 3"],
) -> Float[Tensor, "batch 3 height width"]:
    """Compute `to_rgb` by the equations."""
    return modulated_conv2d_reference(x, weight, style, demodulate=False) + bias[:, None, None]


def modulated_conv2d_reference(
    x: Float[Tensor, "batch in_channels height width"],
    weight: Float[Tensor, "out_channels in_channels k k"],
    style: Float[Tensor, "batch in_channels"],
    *,
    demodulate: bool = True,
    up: bool = False,
) -> Float[Tensor, "batch out_channels new_height new_width"]:
    """Convolve with a weight whose input channels are scaled by the style, then normalised (paper, equations 1-3).

    Each sample gets a weight of its own.

    Args:
        x: Features.
        weight: Already scaled by its equalised learning rate. Its side k is odd.
        style: Scale of each input channel, one set for each sample.
        demodulate: Normalise each output channel to unit expected variance.
        up: Double the side: transposed convolution of stride 2, then the blur filter.
    """
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


def average_pool(x: Float[Tensor, "batch channels height width"], side: int) -> Float[Tensor, "batch channels s s"]:
    """Average as `F.adaptive_avg_pool2d`, which MPS lacks for sides that `side` does not divide (pytorch#96056)."""
    if x.shape[2] % side == 0 == x.shape[3] % side:
        return F.adaptive_avg_pool2d(x, side)
    rows = torch.arange(side, device=x.device)[:, None]
    weights = []
    for length in x.shape[2:]:
        positions = torch.arange(length, device=x.device)
        inside = (positions >= rows * length // side) & (positions * side < (rows + 1) * length)
        weights.append(inside.to(x.dtype) / inside.sum(dim=1, keepdim=True).to(x.dtype))
    return weights[0] @ x @ weights[1].T
