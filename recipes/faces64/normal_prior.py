"""Write a normal distribution into the mapping network of a generator that was trained as an autoencoder.

Own design, no paper. The w of pictures are nearly normal along their principal axes, and the axes of W are free: turned
together with the encoder and the style layers, they give the same pictures. So W is turned to the principal axes, where
a mapping network that draws from the fitted distribution can be written down. Training one was slow and lost the small
components.
"""

import math

import torch
from image_encoder import ImageEncoder
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.layers import EqualLinear, StyledConv, ToRGB

SLOPE, GAIN = 0.2, math.sqrt(2)  # of the mapping network's leaky ReLU


@torch.no_grad()
def fit_prior(
    generator: Generator, encoder: ImageEncoder, w: Float[Tensor, "count w_dim"], *, components: int | None = None
) -> Float[Tensor, "count w_dim"]:
    """Give samples the mean and the principal components of encoded pictures, in place; reconstructions do not change.

    Afterwards the axes of W are the principal axes of `w`, the largest first, and axis k of z, which is scaled to unit
    mean square, moves w along axis k.

    Args:
        generator: Its mapping network and average w are written, its style layers turned.
        encoder: Its w are turned.
        w: The encoder's w of pictures.
        components: How many are drawn at most; the rest is left at the mean. `None` means w_dim / 2, the most there can
            be; with fewer, the hidden units that are not needed keep random weights from which training can go on.

    Returns:
        The same w along the new axes, in double precision on the CPU.

    Raises:
        ValueError: If there are fewer than 2 w, or the mapping network has only one layer.
    """
    layers = [layer for layer in generator.mapping.layers if isinstance(layer, EqualLinear)]
    if len(w) < 2:
        raise ValueError(f"A distribution needs at least 2 w, got {len(w)}.")
    if len(layers) < 2:
        raise ValueError(f"`mapping_layers` must be at least 2, got {len(layers)}.")
    mean, axes, deviation = _principal_axes(w)
    turned = w.double().cpu() @ axes
    _turn(generator, encoder, axes)
    mean = axes.T @ mean
    generator.w_avg.copy_(mean)
    most = generator.config.w_dim // 2
    count = min(most if components is None else components, most, generator.config.z_dim, len(w) - 1)
    # Two units of opposite sign carry a number through a leaky ReLU: their difference gives it back
    identity = torch.eye(count, dtype=mean.dtype)
    pair = torch.cat([identity, -identity])
    numbers, shift = identity, torch.zeros_like(mean[:count])
    for k, layer in enumerate(layers[:-1]):
        if k == len(layers) - 2:  # from z to w
            numbers, shift = deviation[:count, None] * numbers, mean[:count]
        _write(layer, pair @ numbers, pair @ shift)
        if components is not None:
            _free(layer, 2 * count, seed=k)
        numbers = torch.cat([identity, -identity], dim=1) / (GAIN * (1 + SLOPE))
    # Of each pair only the second unit is read: lrelu(-lrelu(-x)) = SLOPE * x, so the last leaky ReLU bends nothing
    second = torch.cat([torch.zeros_like(identity), -identity], dim=1) / (SLOPE * GAIN**2)
    constant = mean.where(mean > 0, mean / SLOPE) / GAIN
    constant[:count] = 0
    _write(layers[-1], second, constant)
    return turned


def _principal_axes(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, (D,); principal axes, columns of an orthogonal (D, D); deviations along them, (D,). Double, on the CPU."""
    w = w.double().cpu()
    mean = w.mean(dim=0)
    variance, axes = torch.linalg.eigh((w - mean).T @ (w - mean) / (len(w) - 1))
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()  # of their own they have no sign
    return mean, axes.flip(1), variance.flip(0).clamp(min=0).sqrt()


def _turn(generator: Generator, encoder: ImageEncoder, axes: Tensor) -> None:
    """New w = axes^T w."""
    for module in generator.synthesis.modules():
        if isinstance(module, StyledConv | ToRGB):
            weight = module.affine.weight
            weight.copy_(weight.double().cpu() @ axes)
    for layer in (encoder.head, encoder.linear):
        layer.weight.copy_(axes.T @ layer.weight.double().cpu())
    encoder.head.bias.copy_(axes.T @ encoder.head.bias.double().cpu())


def _free(layer: EqualLinear, first: int, *, seed: int) -> None:
    """Give the units from `first` on, which nothing reads yet, random weights."""
    spare = layer.weight[first:]
    spare.copy_(torch.randn(spare.shape, generator=torch.Generator().manual_seed(seed)) / layer.bias_gain)


def _write(layer: EqualLinear, weight: Tensor, bias: Tensor) -> None:
    """Set what the layer does; the weights and biases that are not given are 0."""
    rows, columns = weight.shape
    layer.weight.zero_()
    layer.weight[:rows, :columns] = (weight / layer.weight_gain).to(layer.weight)
    layer.bias.zero_()
    layer.bias[: len(bias)] = (bias / layer.bias_gain).to(layer.bias)
