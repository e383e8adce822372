"""dlib's ResNet, which embeds a face as 128 numbers that tell people apart.

Architecture and weights: dlib_face_recognition_resnet_model_v1 by Davis King (https://github.com/davisking/dlib-models,
CC0), as packed in @vladmandic/face-api 1.7.15 (https://github.com/vladmandic/face-api, MIT); rewritten in PyTorch.
Departure: the channel-wise scale after each convolution is folded into its weights; equal up to rounding.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.models.face import resize_and_normalize


@dataclass(frozen=True)
class FaceRecognitionConfig(BoundedConfig):
    """Sizes of the identity network."""

    resolution: int = number(150, 16, 1024)  # side of the network's input in pixels
    # of each stage; every stage but the first starts by halving the size
    channels: tuple[int, ...] = number((32, 64, 128, 256, 256), 1, 4096, count=(1, 8))
    num_blocks: tuple[int, ...] = number((3, 3, 2, 2, 0), 0, 100, count=(1, 8))  # without the halving ones
    embedding_dim: int = number(128, 1, 8192)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut. With `downsample` it halves the size."""

    def __init__(self, in_channels: int, out_channels: int, *, downsample: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 2 if downsample else 1, 0 if downsample else 1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Run the block."""
        out = self.conv2(F.relu(self.conv1(x)))
        if not self.downsample:
            return F.relu(out + x)
        shortcut = F.avg_pool2d(x, 2, 2)
        # Unpadded, the convolution of an even size ends one short of the pooled shortcut. Channels are filled up too.
        rows, columns = shortcut.shape[2] - out.shape[2], shortcut.shape[3] - out.shape[3]
        out = F.pad(out, (0, columns, 0, rows))
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, out.shape[1] - shortcut.shape[1]))
        return F.relu(out + shortcut)


class FaceRecognitionNet(nn.Module):
    """Embed a face so that photos of one person lie within about 0.6 of each other (Euclidean)."""

    def __init__(self, config: FaceRecognitionConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(3, config.channels[0], 7, 2)
        blocks: list[nn.Module] = []
        width = config.channels[0]
        for stage, (channels, num_blocks) in enumerate(zip(config.channels, config.num_blocks)):
            if stage > 0:
                blocks.append(ResidualBlock(width, channels, downsample=True))
            blocks += [ResidualBlock(channels, channels, downsample=False) for _ in range(num_blocks)]
            width = channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, config.embedding_dim, bias=False)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding_dim"]:
        """Embed aligned, square face crops, RGB, in [-1, 1]. The norm of an embedding is about 1.4."""
        return self.fc(torch.mean(self.features(x)[-1], dim=(2, 3)))

    def features(self, x: Float[Tensor, "batch 3 height width"], *, resolution: int | None = None) -> list[Tensor]:
        """Compute the output of each stage, >= 0, (B, C, h, w), each half as large as the one before.

        Args:
            x: Aligned, square face crops, RGB, in [-1, 1].
            resolution: Side that they are resized to. `None` means the network's own.
        """
        out = F.relu(self.conv_in(resize_and_normalize(x, resolution or self.config.resolution)))
        out = F.max_pool2d(out, 3, 2)
        stages: list[Tensor] = []
        for block in self.blocks:
            if cast(ResidualBlock, block).downsample:
                stages.append(out)
            out = block(out)
        return [*stages, out]
