"""Small face networks on a face crop: 68 landmarks, expression, who it is with age and gender, and scores for editing.

Landmarks and expression: @vladmandic/face-api 1.7.15 (https://github.com/vladmandic/face-api), after face-api.js by
Vincent Mühler (https://github.com/justadudewhohacks/face-api.js), both MIT: a small densely summed network of separable
convolutions. Identity, age and gender: HSE-FaceRes by Savchenko 2019, "Efficient Facial Representations for Age, Gender
and Identity Recognition in Organizing Photo Albums using Multi-output CNN", arXiv:1807.07718, weights of
https://github.com/HSE-asavchenko/HSE_FaceRec_tf (Apache-2.0): a MobileNet v1 (Howard et al. 2017, arXiv:1704.04861), as
packed in @vladmandic/human 3.3.6 (https://github.com/vladmandic/human, MIT). All rewritten in PyTorch. Departures of
FaceRes: batch norms are folded into the convolutions, equal up to rounding; the age is the mean over the classes.

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
_MEAN_BGR = (103.939, 116.779, 123.68)  # in [0, 255], of the training photos of HSE-FaceRes
_MEAN_RGB = (122.782, 117.001, 104.298)  # in [0, 255], of the training photos of the others


def resize(x: Float[Tensor, "batch channels height width"], size: int) -> Float[Tensor, "batch channels {size} {size}"]:
    """Resize to `size` x `size` pixels, bilinear and antialiased; what has that size is given back as it is."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def resize_and_normalize(x: Float[Tensor, "batch 3 height width"], size: int) -> Float[Tensor, "batch 3 {size} {size}"]:
    """Resize to `size` x `size` pixels and convert from [-1, 1] to (value in [0, 255] - mean) / 255.

    Departure: the original resizes without antialiasing, which makes the networks noisy on large images. An image of
    `size` itself gives equal results.
    """
    mean = torch.tensor(_MEAN_RGB, device=x.device, dtype=x.dtype)[:, None, None]
    return (resize(x, size) * 127.5 + 127.5 - mean) / 255


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: output ceil(input / stride), the odd pixel right and below."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1, depthwise: bool = False
    ) -> None:
        groups = in_channels if depthwise else 1
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, bias=not depthwise)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Pad and convolve."""
        padding: list[int] = []
        for size, kernel_size, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride):  # both are square
            total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


class SeparableConv(nn.Module):
    """A 3 x 3 convolution of each channel, then a 1 x 1 convolution over the channels."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = Conv2dSame(in_channels, in_channels, kernel_size=3, stride=stride, depthwise=True)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Run both convolutions."""
        return self.pointwise(self.depthwise(x))


class DepthwiseSeparable(nn.Module):
    """MobileNet's block: a 3 x 3 convolution of each channel, then a 1 x 1 one, each followed by ReLU6."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.depthwise = Conv2dSame(in_channels, in_channels, kernel_size=3, stride=stride, depthwise=True)
        self.depthwise.bias = nn.Parameter(torch.zeros(in_channels))  # the folded batch norm's
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        """Run the block."""
        return F.relu6(self.pointwise(F.relu6(self.depthwise(x))))


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


@dataclass(frozen=True)
class FaceRecognitionConfig(BoundedConfig):
    """Sizes of the network."""

    resolution: int = number(224, 16, 1024)  # side of the network's input in pixels
    # of the first convolution, which halves the size, and of the blocks; those in `halving` halve it, too
    channels: tuple[int, ...] = number(
        (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024), 1, 4096, count=(2, 32)
    )
    halving: tuple[int, ...] = number((1, 3, 5, 11), 0, 31, count=(1, 8))
    num_features: int = number(256, 1, 8192)  # between the embedding and the guesses of age and gender
    num_ages: int = number(100, 1, 1000)  # classes: 0 years, 1 year, ...


class FaceRecognitionNet(nn.Module):
    """Embed a face, and guess its age and gender. The guesses are from looks, no more."""

    def __init__(self, config: FaceRecognitionConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = Conv2dSame(3, config.channels[0], kernel_size=3, stride=2)
        strides = [2 if index in config.halving else 1 for index in range(len(config.channels) - 1)]
        widths = pairwise(config.channels)
        self.blocks = nn.ModuleList([DepthwiseSeparable(i, o, stride=s) for (i, o), s in zip(widths, strides)])
        self.fc = nn.Linear(config.channels[-1], config.num_features)
        self.age = nn.Linear(config.num_features, config.num_ages)
        self.gender = nn.Linear(config.num_features, 1)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding_dim"]:
        """Embed aligned, square face crops, RGB, in [-1, 1]. The numbers are in [0, 6]; cosines compare them."""
        return self.features(x)[-1].mean(dim=(2, 3))

    def features(self, x: Float[Tensor, "batch 3 height width"], *, resolution: int | None = None) -> list[Tensor]:
        """Compute the last output of each size, in [0, 6], (B, C, h, w), each half as large as the one before.

        Args:
            x: Aligned, square face crops, RGB, in [-1, 1].
            resolution: Side that they are resized to. `None` means the network's own.
        """
        mean = torch.tensor(_MEAN_BGR, device=x.device, dtype=x.dtype)[:, None, None]
        x = resize(x, resolution or self.config.resolution).flip(1) * 127.5 + 127.5 - mean
        out, stages = F.relu6(self.conv_in(x)), list[Tensor]()
        for index, block in enumerate(self.blocks):
            if index in self.config.halving:
                stages.append(out)
            out = block(out)
        return [*stages, out]

    def age_and_gender(
        self, x: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Guess the age in years and the log-odds of male against female of crops as in `forward`."""
        features = F.relu(self.fc(self(x)))
        years = torch.arange(self.config.num_ages, device=x.device, dtype=x.dtype)
        return self.age(features).softmax(dim=1) @ years, self.gender(features).squeeze(1)


class FaceScorer(nn.Module):
    """Continuous scores of aligned faces, to label latent codes with: nothing saturates, all is differentiable."""

    def __init__(self, landmarks: FaceLandmarks68, expression: ExpressionNet, recognition: FaceRecognitionNet) -> None:
        super().__init__()
        self.landmarks = landmarks
        self.expression = expression
        self.recognition = recognition

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> dict[str, Float[Tensor, " batch"]]:
        """Score aligned faces.

        Args:
            x: Faces that fill the image, RGB, in [-1, 1], any size: the FFHQ square times about 0.74.

        Returns:
            "smile": log-odds of happy against the other expressions. "age": years. "gender": log-odds of male against
            female. "yaw": how far the tip of the nose lies from the midpoint of the eyes along the line of the eyes, in
            units of their distance. 0 is frontal, positive when the nose points to the right side of the image. And
            those of `landmark_distances`.
        """
        log_p = self.expression(x).log_softmax(dim=1)
        happy = EXPRESSIONS.index("happy")
        others = [i for i in range(len(EXPRESSIONS)) if i != happy]
        age, gender = self.recognition.age_and_gender(x)
        points = self.landmarks(x)
        return {
            "smile": log_p[:, happy] - log_p[:, others].logsumexp(dim=1),
            "age": age,
            "gender": gender,
            "yaw": landmark_yaw(points),
            **landmark_distances(points),
        }


def landmark_yaw(landmarks: Float[Tensor, "batch 68 2"]) -> Float[Tensor, " batch"]:
    """Measure the offset of the nose between the eyes, in units of the distance of the eyes; see `FaceScorer`."""
    left, right = landmarks[:, 36:42].mean(dim=1), landmarks[:, 42:48].mean(dim=1)
    between = right - left
    nose = landmarks[:, 30] - (left + right) / 2
    return (nose * between).sum(dim=1) / between.square().sum(dim=1).clamp_min(1e-12)


def landmark_distances(landmarks: Float[Tensor, "batch 68 2"]) -> dict[str, Float[Tensor, " batch"]]:
    """Measure faces by distances of their points, in units of the distance of the eyes; see `FaceScorer`.

    Returns:
        "pitch": how far the tip of the nose lies above the middle between the eyes and the mouth: more when the head
        looks up. "mouth_open": the gap between the inner lips. "eyes_open": the gap between the lids.
    """
    left, right = landmarks[:, 36:42].mean(dim=1), landmarks[:, 42:48].mean(dim=1)
    between = right - left
    unit = between.square().sum(dim=1).clamp_min(1e-12)
    down = torch.stack([-between[:, 1], between[:, 0]], dim=1)
    middle = ((left + right) / 2 + landmarks[:, 48:68].mean(dim=1)) / 2

    def gap(upper: list[int], lower: list[int]) -> Tensor:
        return ((landmarks[:, lower] - landmarks[:, upper]).mean(dim=1) * down).sum(dim=1) / unit

    return {
        "pitch": ((middle - landmarks[:, 30]) * down).sum(dim=1) / unit,
        "mouth_open": gap([61, 62, 63], [67, 66, 65]),
        "eyes_open": gap([37, 38, 43, 44], [41, 40, 47, 46]),
    }
