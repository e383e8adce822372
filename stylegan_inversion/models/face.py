"""Small face networks on a face crop: 68 landmarks, expression, age and gender, and scores for editing directions.

Architectures and weights: @vladmandic/face-api 1.7.15 (https://github.com/vladmandic/face-api), after face-api.js by
Vincent Mühler (https://github.com/justadudewhohacks/face-api.js), both MIT; rewritten in PyTorch. Age and gender use
a small Xception (Chollet 2017, arXiv:1610.02357), the others a small densely summed network of separable convolutions.

All take RGB in [-1, 1], are differentiable, and resize their input themselves.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.bounds import BoundedConfig, number

EXPRESSIONS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
NUM_LANDMARKS = 68
_MEAN_RGB = (122.782, 117.001, 104.298)  # in [0, 255], of the training photos


def resize_and_normalize(x: Float[Tensor, "batch 3 height width"], size: int) -> Float[Tensor, "batch 3 {size} {size}"]:
    """Resize to `size` x `size` pixels and convert from [-1, 1] to (value in [0, 255] - mean) / 255.

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


class DenseBlock(nn.Module):
    """Four convolutions, each on the rectified sum of all outputs before it. Halves the size."""

    def __init__(self, in_channels: int, out_channels: int, *, first: bool) -> None:
        super().__init__()
        self.conv0: nn.Module
        if first:
            self.conv0 = Conv2dSame(in_channels, out_channels, kernel_size=3, stride=2)
        else:
            self.conv0 = SeparableConv(in_channels, out_channels, stride=2)
        self.conv1 = SeparableConv(out_channels, out_channels)
        self.conv2 = SeparableConv(out_channels, out_channels)
        self.conv3 = SeparableConv(out_channels, out_channels)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Run the block."""
        total = F.relu(self.conv0(x))
        for conv in (self.conv1, self.conv2, self.conv3):
            total = total + conv(F.relu(total))
        return F.relu(total)


@dataclass(frozen=True)
class FaceFeaturesConfig(BoundedConfig):
    """Sizes of the trunk under the landmarks and the expression."""

    resolution: int = number(112, 16, 1024)  # side of the network's input in pixels
    channels: tuple[int, ...] = number((32, 64, 128, 256), 1, 4096, count=(1, 8))  # after each dense block


class FaceFeatures(nn.Module):
    """The trunk: dense blocks, then the mean over the whole map."""

    def __init__(self, config: FaceFeaturesConfig) -> None:
        super().__init__()
        self.resolution = config.resolution
        widths = (3, *config.channels)
        self.blocks = nn.Sequential(
            *(DenseBlock(width, out, first=i == 0) for i, (width, out) in enumerate(pairwise(widths)))
        )

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Compute the features of face crops in [-1, 1]."""
        return self.blocks(resize_and_normalize(x, self.resolution)).mean(dim=(2, 3))


class FaceLandmarks68(nn.Module):
    """68 landmarks in the order of iBUG 300-W: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67."""

    def __init__(self, config: FaceFeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self.features = FaceFeatures(config)
        self.fc = nn.Linear(config.channels[-1], 2 * NUM_LANDMARKS)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 68 2"]:
        """Find the landmarks of the one face that fills a square crop, RGB, in [-1, 1].

        Returns:
            (x, y) as shares of the crop: (0, 0) is its top left and (1, 1) its bottom right corner. May lie outside.
        """
        return self.fc(self.features(x)).view(-1, NUM_LANDMARKS, 2)


class ExpressionNet(nn.Module):
    """Logits of the seven `EXPRESSIONS`."""

    def __init__(self, config: FaceFeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self.features = FaceFeatures(config)
        self.fc = nn.Linear(config.channels[-1], len(EXPRESSIONS))

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 7"]:
        """Score face crops (RGB, in [-1, 1]). A softmax over the last axis gives probabilities."""
        return self.fc(self.features(x))


class ReductionBlock(nn.Module):
    """Two separable convolutions and a maximum pool beside a strided 1 x 1 convolution. Halves the size."""

    def __init__(self, in_channels: int, out_channels: int, *, rectify_input: bool) -> None:
        super().__init__()
        self.rectify_input = rectify_input
        self.conv0 = SeparableConv(in_channels, out_channels)
        self.conv1 = SeparableConv(out_channels, out_channels)
        self.shortcut = Conv2dSame(in_channels, out_channels, kernel_size=1, stride=2)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Run the block."""
        out = self.conv1(F.relu(self.conv0(F.relu(x) if self.rectify_input else x)))
        return F.max_pool2d(pad_same(out, 3, 2, value=-torch.inf), 3, 2) + self.shortcut(x)


class MiddleBlock(nn.Module):
    """Three separable convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([SeparableConv(channels, channels) for _ in range(3)])

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Run the block."""
        out = x
        for conv in self.convs:
            out = conv(F.relu(out))
        return out + x


@dataclass(frozen=True)
class AgeGenderConfig(BoundedConfig):
    """Sizes of the age and gender network."""

    resolution: int = number(112, 16, 1024)  # side of the network's input in pixels
    # channels of the first convolution, the reductions and the last convolution
    channels: tuple[int, ...] = number((32, 64, 128, 256, 512), 1, 4096, count=(4, 8))
    num_middle_blocks: int = number(2, 0, 100)  # between the last two reductions


class AgeGenderNet(nn.Module):
    """Apparent age, and the two-class gender of the training labels. Both are guesses from looks, no more."""

    def __init__(self, config: AgeGenderConfig) -> None:
        super().__init__()
        self.config = config
        first, *reductions, last = config.channels
        widths = (first, *reductions)
        self.conv_in = Conv2dSame(3, first, kernel_size=3, stride=2)
        self.reductions = nn.ModuleList(
            [ReductionBlock(i, o, rectify_input=n > 0) for n, (i, o) in enumerate(zip(widths, reductions))]
        )
        self.middle = nn.Sequential(*(MiddleBlock(reductions[-2]) for _ in range(config.num_middle_blocks)))
        self.conv_out = SeparableConv(reductions[-1], last)
        self.age = nn.Linear(last, 1)
        self.gender = nn.Linear(last, 2)

    def forward(
        self, x: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Guess the age in years and the log-odds of male against female, both unbounded, of crops in [-1, 1]."""
        out = F.relu(self.conv_in(resize_and_normalize(x, self.config.resolution)))
        for reduction in self.reductions[:-1]:
            out = reduction(out)
        out = F.relu(self.conv_out(self.reductions[-1](self.middle(out))))
        features = out.mean(dim=(2, 3))
        male, female = self.gender(features).unbind(1)
        return self.age(features).squeeze(1), male - female


class FaceScorer(nn.Module):
    """Continuous scores of aligned faces, to label latent codes with: nothing saturates, all is differentiable."""

    def __init__(self, landmarks: FaceLandmarks68, expression: ExpressionNet, age_gender: AgeGenderNet) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.expression = expression
        self.age_gender = age_gender

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> dict[str, Float[Tensor, " batch"]]:
        """Score aligned faces.

        Args:
            x: Faces that fill the image, RGB, in [-1, 1], any size: the FFHQ square times about 0.74.

        Returns:
            "smile": log-odds of happy against the other expressions. "age": years. "gender": log-odds of male against
            female. "yaw": how far the tip of the nose lies from the midpoint of the eyes along the line of the eyes, in
            units of their distance. 0 is frontal, positive when the nose points to the right side of the image.
        """
        log_p = self.expression(x).log_softmax(dim=1)
        happy = EXPRESSIONS.index("happy")
        others = [i for i in range(len(EXPRESSIONS)) if i != happy]
        age, gender = self.age_gender(x)
        return {
            "smile": log_p[:, happy] - log_p[:, others].logsumexp(dim=1),
            "age": age,
            "gender": gender,
            "yaw": landmark_yaw(self.landmarks(x)),
        }


def landmark_yaw(landmarks: Float[Tensor, "batch 68 2"]) -> Float[Tensor, " batch"]:
    """Measure the offset of the nose between the eyes, in units of the distance of the eyes; see `FaceScorer`."""
    left, right = landmarks[:, 36:42].mean(dim=1), landmarks[:, 42:48].mean(dim=1)
    between = right - left
    nose = landmarks[:, 30] - (left + right) / 2
    return (nose * between).sum(dim=1) / between.square().sum(dim=1).clamp_min(1e-12)
