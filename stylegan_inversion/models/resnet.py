"""ResNet: the trunk of ResNet-50 for MoCo's similarity, and ResNet-34 as ReStyle's encoders have it.

Paper: He et al. 2016, "Deep Residual Learning", arXiv:1512.03385; the stride is in the 3 x 3 convolution (v1.5).
The parts have the names of pytorch/vision (BSD-3), which MoCo's weights (facebookresearch/moco, MIT) and ReStyle's
(yuval-alaluf/restyle-encoder, MIT) follow. Own code.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.models.irse import Pyramid

_EXPANSION = 4


@dataclass(frozen=True)
class ResNetConfig(BoundedConfig):
    """Sizes of the trunk: the bottleneck's width and the number of units of each stage. The default is ResNet-50."""

    widths: tuple[int, ...] = number((64, 128, 256, 512), 1, 4096, count=4)
    units: tuple[int, ...] = number((3, 4, 6, 3), 1, 100, count=4)


class Bottleneck(nn.Module):
    """Residual unit: 1 x 1 convolution, 3 x 3 with the stride, 1 x 1 to four times the width."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """Add residual and shortcut."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


class ResNet(nn.Module):
    """Map images to pooled features of the last stage. There is no classifier."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.widths[0]
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = (width, *(w * _EXPANSION for w in config.widths))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(inputs[i], config.widths[i], config.units[i], stride=1 if i == 0 else 2) for i in range(4)
        )

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch num_features"]:
        """Compute features, >= 0, averaged over the pixels. The network was trained at 224 px; any side works."""
        h = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        return h.mean(dim=(2, 3))


class BasicBlock(nn.Module):
    """Residual unit of ResNet-34: two 3 x 3 convolutions, the first with the stride."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """Add residual and shortcut."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.downsample(x))


class ResNetBackbone(nn.Module):
    """The stages of ResNet-34 without the pooling before them, and with a PReLU there: ReStyle's `ResNetBackbone*`."""

    def __init__(self, in_channels: int, config: ResNetConfig) -> None:
        super().__init__()
        width = config.widths[0]
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        widths = (width, *config.widths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                BasicBlock(widths[i], widths[i + 1], 1 if i == 0 else 2),
                *(BasicBlock(widths[i + 1], widths[i + 1], 1) for _ in range(units - 1)),
            )
            for i, units in enumerate(config.units)
        )

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Pyramid:
        """Compute the features of images in [-1, 1], of the same sides as `IRSEBackbone`'s."""
        x = self.stages[0](self.prelu(self.bn1(self.conv1(x))))
        c1 = self.stages[1](x)
        c2 = self.stages[2](c1)
        return Pyramid(c1, c2, self.stages[3](c2))


def _stage(in_channels: int, width: int, units: int, *, stride: int) -> nn.Sequential:
    """Stack units of one width. The first one changes the size."""
    later = (Bottleneck(width * _EXPANSION, width, 1) for _ in range(units - 1))
    return nn.Sequential(Bottleneck(in_channels, width, stride), *later)
