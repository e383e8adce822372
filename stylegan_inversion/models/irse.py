"""IR-SE: the improved ResNet with squeeze-and-excitation that the encoders and the identity loss share.

Papers: Deng et al. 2019, ArcFace, arXiv:1801.07698 (improved residual unit); Hu et al. 2018, arXiv:1709.01507 (SE).
Original code: TreB1eN/InsightFace_Pytorch (MIT), as used by eladrich/pixel2style2pixel (MIT). Own code.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.bounds import BoundedConfig, number


@dataclass(frozen=True)
class IRSEConfig(BoundedConfig):
    """Sizes of the backbone: the width and the number of units of each of its four stages."""

    in_channels: int = number(3, 1, 512)
    widths: tuple[int, ...] = number((64, 128, 256, 512), 1, 4096, count=4)
    units: tuple[int, ...] = number((3, 4, 14, 3), 1, 100, count=4)  # IR-SE50; (3, 13, 30, 3) is IR-SE100
    reduction: int = number(16, 0, 4096)  # squeeze of the SE module; 0: there is none, as in IR-101

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction > min(self.widths):
            raise ValueError(f"`reduction` must be in [0, smallest width], got {self.reduction} for {self.widths}.")


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from all channel means."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Gate the channels."""
        gate = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return x * gate.sigmoid()


class BottleneckIRSE(nn.Module):
    """Residual unit: BN, conv, PReLU, conv with stride, BN, SE; the shortcut subsamples or is a 1 x 1 convolution."""

    def __init__(self, in_channels: int, width: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.shortcut = (
            nn.MaxPool2d(1, stride)
            if in_channels == width
            else nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            *([SqueezeExcitation(width, reduction)] if reduction else []),
        )

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """Add residual and shortcut."""
        return self.residual(x) + self.shortcut(x)


class Pyramid(NamedTuple):
    """Features after stages 2, 3 and 4, at 1/4, 1/8 and 1/16 of the image's side."""

    c1: Tensor
    c2: Tensor
    c3: Tensor


class IRSEBackbone(nn.Module):
    """Stem and four stages, each of which halves the side."""

    def __init__(self, config: IRSEConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, config.widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(config.widths[0]),
            nn.PReLU(config.widths[0]),
        )
        widths = (config.widths[0], *config.widths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                BottleneckIRSE(widths[i], widths[i + 1], 2, config.reduction),
                *(BottleneckIRSE(widths[i + 1], widths[i + 1], 1, config.reduction) for _ in range(units - 1)),
            )
            for i, units in enumerate(config.units)
        )

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Pyramid:
        """Compute the features of images in [-1, 1]. Their side must be a multiple of 16."""
        x = self.stages[0](self.stem(x))
        c1 = self.stages[1](x)
        c2 = self.stages[2](c1)
        return Pyramid(c1, c2, self.stages[3](c2))


@dataclass(frozen=True)
class ArcFaceConfig(IRSEConfig):
    """Sizes of the identity network: those of its backbone, and its own."""

    resolution: int = number(112, 16, 1024)
    embedding_dim: int = number(512, 1, 8192)
    dropout: float = number(0.6, 0.0, 1.0)
    affine: bool = True  # whether the last normalisation scales and shifts; not in CurricularFace's IR-101


class ArcFace(nn.Module):
    """Map a face to its identity: IR-SE backbone and a linear layer, the embedding on the unit sphere."""

    def __init__(self, config: ArcFaceConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.widths[-1], config.resolution // 16
        self.backbone = IRSEBackbone(config)
        self.head = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(config.dropout),
            nn.Flatten(),
            nn.Linear(width * side * side, config.embedding_dim),
            nn.BatchNorm1d(config.embedding_dim, affine=config.affine),
        )

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding_dim"]:
        """Embed face crops, (B, 3, 112, 112), RGB, in [-1, 1]; `losses.identity.crop_face` makes them."""
        return F.normalize(self.head(self.backbone(x).c3), dim=1)
