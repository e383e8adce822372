"""Layers of StyleGAN2: parameters with an equalised learning rate. The maths is in `ops`.

Paper: Karras et al. 2020, arXiv:1912.04958. Parameters are stored as in the official code (unit variance) and scaled in
the forward pass, so that official checkpoints fit. Own code.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion import ops

NoiseMode = Literal["random", "const", "none"]
ONEDNN = torch.backends.mkldnn.is_available()  # asked once: `torch.compile` cannot ask


def channels_last_is_fast(parameter: Tensor) -> bool:
    """Tell whether a network with this parameter runs faster if its input has the channels last in memory.

    It does with oneDNN, and with cuDNN in half precision; elsewhere nobody measured it. On a CPU with AVX-512 a forward
    pass of the generator at 1024 px took 0.85 to 0.96 of the time, with AVX2 0.7 to 0.9, and with the gradient to w the
    same time. With the gradient to the weights it took 1.08 times as long, so there the channels stay first.
    """
    if parameter.requires_grad and torch.is_grad_enabled():
        return False
    return torch.finfo(parameter.dtype).bits <= {"cpu": 32 * ONEDNN, "cuda": 16}.get(parameter.device.type, 0)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: weight * lr_multiplier / sqrt(in_features), bias * lr_multiplier."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.activation = activation

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        """Map the last axis. With `activation`, a leaky ReLU of slope 0.2 and gain sqrt(2) follows."""
        weight, bias = self.weight * self.weight_gain, self.bias * self.bias_gain
        return ops.bias_act(F.linear(x, weight), bias) if self.activation else F.linear(x, weight, bias)


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate, for the discriminator."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, down: bool = False, activation: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if activation else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.down = down

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """Convolve. With `down`, blur first and halve the side. With `activation`, bias and leaky ReLU follow."""
        k = self.weight.shape[-1]
        weight = self.weight * self.weight_gain
        if self.down:
            x = ops.upfirdn2d(x, ops.blur_kernel(x.device, x.dtype), padding=((k + 2) // 2, (k + 1) // 2))
            x = F.conv2d(x, weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=k // 2)
        return x if self.bias is None else ops.bias_act(x, self.bias)


class StyledConv(nn.Module):
    """One style layer: modulated 3 x 3 convolution, noise, bias and leaky ReLU."""

    noise_const: Tensor

    def __init__(self, in_channels: int, out_channels: int, resolution: int, w_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.weight_gain = 1 / math.sqrt(in_channels * 9)
        self.up = up

    def forward(
        self,
        x: Float[Tensor, "batch in_channels height width"],
        w: Float[Tensor, "batch w_dim"],
        noise: Float[Tensor, "#batch 1 new_height new_width"] | None,
        offset: Float[Tensor, "#batch in_channels"] | None = None,
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """Draw one layer. `noise` times `noise_strength` is added, `offset` to the style; `None` adds nothing."""
        style = self.affine(w) if offset is None else self.affine(w) + offset
        style = style * self.weight_gain
        noise = None if noise is None else noise * self.noise_strength
        return ops.styled_conv(x, self.weight, style, self.bias, noise, up=self.up)


class ToRGB(nn.Module):
    """Modulated 1 x 1 convolution to RGB, without demodulation."""

    def __init__(self, in_channels: int, w_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"], w: Float[Tensor, "batch w_dim"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Compute what the layer adds to the image."""
        return ops.to_rgb(x, self.weight, self.affine(w) * self.weight_gain, self.bias)
