"""Find faces in a photo: a single-shot detector (SSD) on MobileNet v1.

Papers: Liu et al. 2016 (SSD, arXiv:1512.02325), Howard et al. 2017 (MobileNets, arXiv:1704.04861). Architecture and
weights: ssd_mobilenetv1 of @vladmandic/face-api 1.7.15 (https://github.com/vladmandic/face-api, MIT), trained on
WIDER FACE by https://github.com/yeephycho/tensorflow-face-detection (Apache-2.0); rewritten in PyTorch.
Departures: batch norms are folded into the convolutions, the anchors come from SSD's rule instead of the file (they
agree to 1e-4 of the image), and a photo is shrunk with antialiasing.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.models.face import Conv2dSame, DepthwiseSeparable, resize

_MAX_CANDIDATES = 400


@dataclass(frozen=True)
class FaceDetectorConfig(BoundedConfig):
    """Sizes and thresholds of the detector."""

    resolution: int = number(512, 32, 1024)  # side of the network's input in pixels, a multiple of 32
    channels: tuple[int, ...] = number(  # of the first convolution and of the 13 separable ones
        (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024), 1, 4096, count=14
    )
    strides: tuple[int, ...] = number((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), 1, 2, count=13)
    tap: int = number(10, 0, 12)  # which separable convolution feeds the predictor of the smallest faces
    # (bottleneck, output) of the four convolutions beyond MobileNet
    extra_channels: tuple[int, ...] = number((256, 512, 128, 256, 128, 256, 64, 128), 1, 4096, count=8)
    min_scale: float = number(0.2, 0.0, 1.0)  # smallest anchor, as a share of the image side; halved in the first map
    max_scale: float = number(0.95, 0.0, 1.0)  # largest anchor
    score_threshold: float = number(0.5, 0.0, 1.0)  # detections must score above this
    iou_threshold: float = number(0.5, 0.0, 1.0)  # of two boxes that overlap more than this, the lower one is dropped


class ExtraBlock(nn.Module):
    """A 1 x 1 bottleneck and a 3 x 3 convolution that halves the size: one more scale of faces."""

    def __init__(self, in_channels: int, bottleneck: int, out_channels: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv2d(in_channels, bottleneck, 1)
        self.conv = Conv2dSame(bottleneck, out_channels, kernel_size=3, stride=2)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Run the block."""
        return F.relu6(self.conv(F.relu6(self.bottleneck(x))))


class BoxHead(nn.Module):
    """Predicts the box and the class of each anchor of one map."""

    def __init__(self, in_channels: int, num_anchors: int) -> None:
        super().__init__()
        self.box = nn.Conv2d(in_channels, 4 * num_anchors, 1)
        self.score = nn.Conv2d(in_channels, num_anchors, 1)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch anchors 4"], Float[Tensor, "batch anchors"]]:
        """Predict the box codes and the logits of one map, row by row."""
        boxes = self.box(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4)
        return boxes, self.score(x).permute(0, 2, 3, 1).flatten(1)


class FaceDetector(nn.Module):
    """Boxes of the faces in a photo, from about 1/20 of the photo's longer side to all of it."""

    anchors: Tensor

    def __init__(self, config: FaceDetectorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.conv_in = Conv2dSame(3, widths[0], kernel_size=3, stride=2)
        self.blocks = nn.ModuleList(
            [DepthwiseSeparable(i, o, stride=s) for i, o, s in zip(widths, widths[1:], config.strides)]
        )
        outputs = (widths[-1], *config.extra_channels[1::2])
        self.extras = nn.ModuleList(
            [ExtraBlock(i, b, o) for i, b, o in zip(outputs, config.extra_channels[::2], outputs[1:])]
        )
        maps = (widths[config.tap + 1], *outputs)
        self.heads = nn.ModuleList([BoxHead(c, 3 if n == 0 else 6) for n, c in enumerate(maps)])
        stride = 2 * math.prod(config.strides[: config.tap + 1])
        sizes = [-(-config.resolution // (stride * 2**n)) for n in range(len(maps))]
        self.register_buffer("anchors", _anchors(sizes, config.min_scale, config.max_scale), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch anchors 4"], Float[Tensor, "batch anchors"]]:
        """Predict a box and a score for every anchor.

        Args:
            x: Photos, RGB, in [-1, 1]. They are padded with black at the right or the bottom, then resized.

        Returns:
            Boxes (x0, y0, x1, y1) in pixels of `x`, not clipped to it, and the logits of their scores.
        """
        size = self.config.resolution
        side = max(x.shape[2:])
        out = F.pad(x, (0, side - x.shape[3], 0, side - x.shape[2]), value=-1.0)
        out = F.relu6(self.conv_in(resize(out, size)))
        maps = []
        for index, block in enumerate(self.blocks):
            out = block(out)
            if index == self.config.tap:
                maps.append(out)
        maps.append(out)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        predictions = [head(features) for head, features in zip(self.heads, maps)]
        offsets = torch.cat([boxes for boxes, _ in predictions], dim=1)
        logits = torch.cat([scores for _, scores in predictions], dim=1)
        # SSD's box code: centre relative to the anchor's size (variance 0.1), log of the size (variance 0.2).
        centre = self.anchors[:, :2] + offsets[..., [1, 0]] / 10 * self.anchors[:, 2:]
        half = self.anchors[:, 2:] * (offsets[..., [3, 2]] / 5).exp() / 2
        return torch.cat([centre - half, centre + half], dim=-1) * side, logits

    @torch.no_grad()
    def detect(self, x: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "faces 5"]:
        """Find the faces of one photo, RGB, in [-1, 1].

        Returns:
            (x0, y0, x1, y1) in pixels of `x`, not clipped to it, and the score in [0, 1], best first.
        """
        boxes, logits = self(x)
        scores = logits[0].sigmoid()
        order = scores.argsort(descending=True)[:_MAX_CANDIDATES]
        order = order[scores[order] > self.config.score_threshold]
        found = torch.cat([boxes[0, order], scores[order, None]], dim=1)
        return found[non_max_suppression(found, self.config.iou_threshold)]


def non_max_suppression(boxes: Float[Tensor, "faces 5"], iou_threshold: float) -> Int[Tensor, " kept"]:
    """Keep each box that overlaps no better one: of (x0, y0, x1, y1, score), best first, give the indices to keep."""
    upper_left = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    lower_right = torch.minimum(boxes[:, None, 2:4], boxes[None, :, 2:4])
    intersection = (lower_right - upper_left).clamp_min(0).prod(dim=-1)
    area = (boxes[:, 2:4] - boxes[:, :2]).clamp_min(0).prod(dim=-1)
    overlaps = intersection > iou_threshold * (area[:, None] + area[None] - intersection)
    kept: list[int] = []
    for index in range(len(boxes)):
        if not kept or not bool(overlaps[index, kept].any()):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _anchors(sizes: list[int], min_scale: float, max_scale: float) -> Float[Tensor, "anchors 4"]:
    """List anchors (centre x, centre y, width, height) as shares of the image, map by map, row by row."""
    scales = [min_scale + (max_scale - min_scale) * n / (len(sizes) - 1) for n in range(len(sizes))] + [1.0]
    anchors = []
    for n, size in enumerate(sizes):
        shapes = [(scales[n], ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 0.3333)]
        if n == 0:
            shapes = [(min_scale / 2, 1.0), *shapes[1:3]]
        else:
            shapes.insert(1, (math.sqrt(scales[n] * scales[n + 1]), 1.0))
        for row in range(size):
            for column in range(size):
                anchors += [
                    ((column + 0.5) / size, (row + 0.5) / size, scale * math.sqrt(ratio), scale / math.sqrt(ratio))
                    for scale, ratio in shapes
                ]
    return torch.tensor(anchors)
