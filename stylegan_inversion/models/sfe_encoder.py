"""StyleFeatureEditor: an encoder into W+ and into the generator's own features, and a network that edits those.

Paper: Bobkov et al. 2024, "The Devil is in the Details", arXiv:2406.10601 (figures 2 and 3). Original code:
ControlGenAI/StyleFeatureEditor (MIT). Own code, written from a description of the shapes and from recorded outputs.
Departure: the average w is the generator's, which the authors' file does not hold either, so `forward` takes the
generator.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import EncoderConfig
from stylegan_inversion.ops import average_pool

_STRIDES = (2, 2, 1, 2)  # of the four stages
_POOLED = 3  # side to which each stage's features are averaged for the codes


@dataclass(frozen=True)
class FeatureEditorConfig(BoundedConfig):
    """Sizes of the Fuser and of the Feature Editor."""

    channels: int = number(512, 1, 4096)  # of the generator's features
    depth: int = number(5, 1, 100)  # how many residual blocks


@dataclass(frozen=True)
class StyleFeatureConfig(EncoderConfig):
    """Sizes of StyleFeatureEditor. The defaults are the released model's, for FFHQ at 1024 px."""

    in_channels: int = number(3, 3, 3)
    reduction: int = number(1, 1, 1)  # the backbone has no squeeze-and-excitation
    channels: int = number(512, 1, 4096)  # of the generator's features at `feature_resolution`
    depth: int = number(5, 1, 100)  # residual blocks of the Fuser and of the Feature Editor
    style_channels: int | None = number(None, 1, 4096)  # of a layer that all codes share; None: none, as released

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_resolution >= self.output_resolution:
            raise ValueError(
                f"`input_resolution` must be below 4 output_resolution, got {self.input_resolution} with "
                f"output_resolution={self.output_resolution}: the features are a quarter of the input."
            )

    @property
    def feature_resolution(self) -> int:
        """Side of the features: 64 px of 256. They replace the generator's own after its block of that side."""
        return self.input_resolution // 4

    @property
    def editor(self) -> FeatureEditorConfig:
        """Sizes of the Fuser and of the Feature Editor."""
        return FeatureEditorConfig(self.channels, self.depth)


def _residual(in_channels: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.PReLU(channels),
        nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels),
    )


class BottleneckIR(nn.Module):
    """Improved residual unit of ArcFace (arXiv:1801.07698), without squeeze-and-excitation."""

    def __init__(self, in_channels: int, width: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if project:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.residual = _residual(in_channels, width, stride)

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """Add residual and shortcut."""
        return self.residual(x) + self.shortcut(x)


class StyleFeatureBackbone(nn.Module):
    """Images -> w_plus without the average w, and a prediction of the generator's features."""

    def __init__(self, config: StyleFeatureConfig) -> None:
        super().__init__()
        widths = (config.widths[0], *config.widths)
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.PReLU(widths[0]),
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                BottleneckIR(widths[i], widths[i + 1], _STRIDES[i], project=True),
                *(BottleneckIR(widths[i + 1], widths[i + 1], 1, project=False) for _ in range(units - 1)),
            )
            for i, units in enumerate(config.units)
        )
        self.content = _residual(widths[3], config.channels)
        pooled = sum(config.widths) * _POOLED**2
        self.shared: nn.Module = nn.Identity()
        if config.style_channels is not None:
            self.shared, pooled = nn.Linear(pooled, config.style_channels), config.style_channels
        self.styles = nn.ModuleList(nn.Linear(pooled, config.w_dim) for _ in range(config.num_ws))

    def forward(
        self, x: Float[Tensor, "batch channels side side"]
    ) -> tuple[Float[Tensor, "batch num_ws w_dim"], Float[Tensor, "batch features quarter quarter"]]:
        """Encode images, (B, 3, S, S), RGB, in [-1, 1]. The features have the side S / 4."""
        x, levels = self.stem(x), list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        pooled = self.shared(torch.cat([average_pool(level, _POOLED) for level in levels], dim=1).flatten(1))
        return torch.stack([style(pooled) for style in self.styles], dim=1), self.content(levels[2])


class FeatureEditor(nn.Module):
    """Combine two feature maps into one: the Fuser does so, and the Feature Editor with the change of an edit."""

    def __init__(self, config: FeatureEditorConfig) -> None:
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(2 * config.channels, config.channels, 1)
        self.blocks = nn.ModuleList(_residual(config.channels, config.channels) for _ in range(config.depth))

    def forward(
        self, features: Float[Tensor, "batch channels side side"], other: Float[Tensor, "batch channels side side"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Combine the features with others of the same shape."""
        x = self.conv(torch.cat([features, other], dim=1))
        for block in self.blocks:
            x = x + block(x)
        return x


class StyleFeatureEncoder(nn.Module):
    """Images -> w_plus and features. Its `editor` moves the features along with an edit of w_plus."""

    def __init__(self, config: StyleFeatureConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = StyleFeatureBackbone(config)
        self.fuser = FeatureEditor(config.editor)
        self.editor = FeatureEditor(config.editor)

    def shrink(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 side side"]:
        """Bring images to `input_resolution`, bilinearly and without antialiasing, as the network was trained."""
        return F.interpolate(x, size=self.config.input_resolution, mode="bilinear", align_corners=False)

    def forward(
        self, x: Float[Tensor, "batch 3 height width"], generator: Generator
    ) -> tuple[
        Float[Tensor, "batch num_ws w_dim"],
        Float[Tensor, "batch channels quarter quarter"],
        Float[Tensor, "batch 3 quarter quarter"],
    ]:
        """Invert images.

        Args:
            x: Images of any side, RGB, in [-1, 1]; `shrink` makes them smaller.
            generator: Gives its average w, and its own features of the codes.

        Returns:
            w_plus, with the average w; the features that replace the generator's, before any edit; and the picture that
            the generator has drawn so far, of their side.
        """
        codes, predicted = self.backbone(self.shrink(x))
        w_plus = codes + generator.w_avg
        own, coarse = generator.synthesis.features_at(self.config.feature_resolution, w_plus)
        return w_plus, self.fuser(predicted, own), coarse
