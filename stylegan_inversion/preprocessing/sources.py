"""The input of an encoder: a photo, a label map or a sketch, read from a picture.

Paper: Richardson et al. 2021 (pSp), arXiv:2008.00951, section 4. Original code: eladrich/pixel2style2pixel (MIT). Own
code. As there, label maps and sketches stay in [0, 1]. Departures: a picture that is not square is cropped, where pSp
squeezes it; label maps are resized to the nearest label, where pSp blends neighbouring numbers into other labels.
"""

import colorsys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing.align import uncropped
from stylegan_inversion.preprocessing.image import MAX_PIXELS, MAX_SIDE, load_image, open_source, to_tensor

_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
_GOLDEN_RATIO = 0.618034


@dataclass(frozen=True)
class PhotoSource:
    """A photo: three channels in [-1, 1]."""

    kind: ClassVar[str] = "photo"
    in_channels: ClassVar[int] = 3

    def load(self, source: Any) -> Image.Image:
        """Read a photo; see `preprocessing.image.load_image`."""
        return load_image(source)

    def __call__(self, image: Image.Image, resolution: int) -> Float[Tensor, "channels {resolution} {resolution}"]:
        """Convert the central square of an RGB picture to (3, S, S), RGB, in [-1, 1]."""
        return to_tensor(uncropped(image, resolution).image)[0]

    def preview(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Show the encoder's input as a picture, RGB, in [-1, 1]."""
        return x


@dataclass(frozen=True)
class SketchSource:
    """A drawing: one channel in [0, 1], 1 is white."""

    kind: ClassVar[str] = "sketch"
    in_channels: ClassVar[int] = 1

    def load(self, source: Any) -> Image.Image:
        """Read a drawing and make it grey. Transparency becomes white. See `preprocessing.image.load_image`."""
        return load_image(source).convert("L")

    def __call__(self, image: Image.Image, resolution: int) -> Float[Tensor, "channels {resolution} {resolution}"]:
        """Convert the central square of a picture of any mode to (1, S, S), in [0, 1]."""
        grey = uncropped((image if image.mode == "L" else self.load(image)).convert("RGB"), resolution).image
        return torch.from_numpy(np.array(grey.getchannel(0)))[None].float() / 255

    def preview(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Show the encoder's input as a picture, RGB, in [-1, 1]."""
        return x.repeat(1, 3, 1, 1) * 2 - 1


@dataclass(frozen=True)
class LabelSource(BoundedConfig):
    """A label map, one whole number for each pixel: one channel for each label, 0 or 1. CelebAMask-HQ has 19 labels."""

    kind: ClassVar[str] = "labels"
    num_labels: int = number(19, 1, 256)

    @property
    def in_channels(self) -> int:
        """How many channels the encoder reads."""
        return self.num_labels

    def load(self, source: Any) -> Image.Image:
        """Read a label map. Its numbers, also those of a palette, stay as they are.

        Args:
            source: A path, the bytes of a file, a PIL image, or an array (H, W) of whole numbers.

        Raises:
            InvalidImageError: If it is not an image, damaged, too large, in colour, or a JPEG, which changes labels.
            OSError: If the file does not exist or may not be read.
            TypeError: If `source` is of another type.
        """
        if isinstance(source, np.ndarray):
            if source.ndim != 2 or source.dtype.kind not in "bui":
                raise InvalidImageError(
                    f"A label map as an array must be (H, W) of whole numbers, got {source.shape} of {source.dtype}."
                )
            return _check_labels(Image.fromarray(source.astype(np.int32)), "The array")
        if isinstance(source, Image.Image):
            return _check_labels(source, "The image")
        with open_source(source) as (image, name):
            _check_labels(image, name)
            try:
                return image.copy()
            except Exception as e:  # decoders of untrusted files raise nearly anything
                raise InvalidImageError(f"{name} is not an image, or damaged. Label maps are best saved as PNG.") from e

    def __call__(self, image: Image.Image, resolution: int) -> Float[Tensor, "channels {resolution} {resolution}"]:
        """Convert the central square of a label map to (num_labels, S, S), resized to the nearest label.

        Raises:
            InvalidImageError: If `image` is not a label map, or holds a number that is not a label.
        """
        labels = np.asarray(_check_labels(image, "The label map")).astype(np.int64)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_labels:
            raise InvalidImageError(
                f"The label map holds {high if high >= self.num_labels else low}, but labels must be in "
                f"[0, {self.num_labels - 1}]: `num_labels` is {self.num_labels}."
            )
        side = min(labels.shape)
        top, left = (labels.shape[0] - side) // 2, (labels.shape[1] - side) // 2
        nearest = ((np.arange(resolution) + 0.5) * side / resolution).astype(np.int64)
        chosen = torch.from_numpy(labels[np.ix_(top + nearest, left + nearest)])  # (S, S)
        return (chosen == torch.arange(self.num_labels, device="cpu")[:, None, None]).float()

    def preview(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Show the encoder's input as a picture with one colour for each label, RGB, in [-1, 1]."""
        # Label 0, the background, is black; steps of the golden ratio keep neighbouring hues far apart
        hues = [colorsys.hsv_to_rgb(k * _GOLDEN_RATIO % 1, 0.7, 0.95) for k in range(self.num_labels)]
        colours = torch.tensor([(0.0, 0.0, 0.0), *hues[1:]], device=x.device, dtype=torch.float32)
        return colours[x.argmax(dim=1)].permute(0, 3, 1, 2).to(x.dtype) * 2 - 1


Source = PhotoSource | SketchSource | LabelSource
"""What an encoder reads."""

SOURCES: dict[str, type[Source]] = {cls.kind: cls for cls in (PhotoSource, SketchSource, LabelSource)}


def to_config(source: Source) -> dict[str, Any]:
    """Convert a source to JSON, which `source_from_config` reads."""
    return {"kind": source.kind, **asdict(source)}


def source_from_config(config: Mapping[str, Any]) -> Source:
    """Build a source from what `to_config` gave.

    Raises:
        ValueError: If the kind or an option is unknown, or a value is out of range.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in SOURCES:
        raise ValueError(f"`kind` of a source must be one of {', '.join(SOURCES)}, got {kind!r}.")
    if unknown := options.keys() - {field.name for field in fields(SOURCES[kind])}:
        raise ValueError(f"A source of kind {kind!r} has no option {', '.join(map(repr, sorted(unknown)))}.")
    return SOURCES[kind](**options)


def _check_labels(image: Image.Image, name: str) -> Image.Image:
    """Refuse an image that cannot be a label map, and return any other."""
    if image.format in ("JPEG", "MPO"):
        raise InvalidImageError(f"{name} is a JPEG, whose compression changes labels; save label maps as PNG.")
    if image.mode not in _LABEL_MODES:
        raise InvalidImageError(
            f"{name} is of mode {image.mode}, but a label map has one whole number for each pixel: save it as a PNG "
            "that is grey or has a palette."
        )
    if min(image.size) < 1 or max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise InvalidImageError(
            f"{name} is {image.width} x {image.height} pixels; 1 to {MAX_SIDE} a side and at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels are read."
        )
    return image
