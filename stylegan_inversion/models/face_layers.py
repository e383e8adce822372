"""What the small face networks share: their input and TensorFlow's convolutions.

Source: @vladmandic/face-api 1.7.15 (https://github.com/vladmandic/face-api, MIT), written anew in PyTorch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_MEAN_RGB = (122.782, 117.001, 104.298)  # in [0, 255], of the training photos


def resize_and_normalize(x: Float[Tensor, "batch 3 height width"], size: int) -> Float[Tensor, "batch 3 {size} {size}"]:
    """Resize to `size` x `size` pixels and go from [-1, 1] to (value in [0, 255] - mean) / 255.

    Departure: the original resizes without antialiasing, which makes the networks noisy on large images. An image of
    `size` itself gives equal results.
    """
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    mean = torch.tensor(_MEAN_RGB, device=x.device, dtype=x.dtype)[:, None, None]
    return (x * 127.5 + 127.5 - mean) / 255


def pad_same(
    x: Float[Tensor, "batch channels height width"], kernel_size: int, stride: int, *, value: float = 0.0
) -> Float[Tensor, "batch channels padded_height padded_width"]:
    """Pad as TensorFlow's "same": output size ceil(input / stride), the odd pixel on the right and at the bottom."""
    padding: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value)


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, depthwise: bool = False
    ) -> None:
        groups = in_channels if depthwise else 1
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, bias=not depthwise)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Pad and convolve."""
        return super().forward(pad_same(x, self.kernel_size[0], self.stride[0]))


class SeparableConv(nn.Module):
    """A 3 x 3 convolution of each channel, then a 1 x 1 convolution over the channels."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = Conv2dSame(in_channels, in_channels, kernel_size=3, stride=stride, depthwise=True)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Run both convolutions."""
        return self.pointwise(self.depthwise(x))
