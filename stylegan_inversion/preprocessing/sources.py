"""What an encoder reads: a photo, a label map or a sketch; a picture in, the encoder's input out.

Paper: Richardson et al. 2021 (pSp), arXiv:2008.00951, section 4; original code: eladrich/pixel2style2pixel (MIT). Own
code. As there, label maps and sketches stay in [0, 1]. Departures: a picture that is not square loses its sides, where
pSp squeezes it; and label maps are resized to the nearest label, where pSp blends neighbouring numbers into others.
"""

import colorsys
import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing.align import uncropped
from stylegan_inversion.preprocessing.image import MAX_PIXELS, MAX_SIDE, image_path, load_image, open_image, to_tensor

_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
_GOLDEN_RATIO = 0.618034


@dataclass(frozen=True)
class PhotoSource:
    """A photo: three channels in [-1, 1]."""

    kind: ClassVar[str] = "photo"

    @property
    def in_channels(self) -> int:
        """How many channels the encoder reads."""
        return 3

    def load(self, source: Any) -> Image.Image:
        """Read a photo; see `preprocessing.image.load_image`."""
        return load_image(source)

    def __call__(self, image: Image.Image, resolution: int) -> Float[Tensor, "channels {resolution} {resolution}"]:
        """Turn a picture into the encoder's input.

        Args:
            image: RGB, upright; of a picture that is not square the central square is taken.
            resolution: Side of the result in pixels.

        Returns:
            (3, S, S), RGB, in [-1, 1], float32, resized with antialiasing.

        Raises:
            ValueError: If `image` is not RGB, or `resolution` is not positive.
        """
        return to_tensor(uncropped(image, resolution).image)[0]

    def preview(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 height width"]:
        """The encoder's input as a picture for the eye: RGB, in [-1, 1]."""
        return x


@dataclass(frozen=True)
class SketchSource:
    """A drawing: one channel in [0, 1], 1 is white."""

    kind: ClassVar[str] = "sketch"

    @property
    def in_channels(self) -> int:
        """How many channels the encoder reads."""
        return 1

    def load(self, source: Any) -> Image.Image:
        """Read a drawing and turn it grey; transparency becomes white. See `preprocessing.image.load_image`."""
        return load_image(source).convert("L")

    def __call__(self, image: Image.Image, resolution: int) -> Float[Tensor, "channels {resolution} {resolution}"]:
        """Turn a picture into the encoder's input.

        Args:
            image: Of any mode; of a picture that is not square the central square is taken.
            resolution: Side of the result in pixels.

        Returns:
            (1, S, S), in [0, 1], float32, resized with antialiasing.

        Raises:
            ValueError: If `resolution` is not positive.
        """
        grey = uncropped((image if image.mode == "L" else self.load(image)).convert("RGB"), resolution).image
        return torch.from_numpy(np.array(grey.getchannel(0)))[None].float() / 255

    def preview(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 height width"]:
        """The encoder's input as a picture for the eye: RGB, in [-1, 1]."""
        return x.repeat(1, 3, 1, 1) * 2 - 1


@dataclass(frozen=True)
class LabelSource:
    """A label map, one number a pixel: one channel a label, 0 or 1. 19 labels are CelebAMask-HQ's.

    Raises:
        ValueError: If `num_labels` is not in [1, 256].
    """

    kind: ClassVar[str] = "labels"
    num_labels: int = 19

    def __post_init__(self) -> None:
        """Check the value."""
        if not isinstance(self.num_labels, int) or not 1 <= self.num_labels <= 256:
            raise ValueError(f"`num_labels` must be a whole number in [1, 256], got {self.num_labels!r}.")

    @property
    def in_channels(self) -> int:
        """How many channels the encoder reads."""
        return self.num_labels

    def load(self, source: Any) -> Image.Image:
        """Read a label map; its numbers stay as they are, also those of a palette.

        Args:
            source: A path, the bytes of a file, a PIL image, or an array (H, W) of whole numbers.

        Returns:
            An image of mode 1, L, P, I or I;16.

        Raises:
            InvalidImageError: If it is no image, damaged, too large, in colour, or a JPEG, which changes labels.
            OSError: If the file does not exist or may not be read.
            TypeError: If `source` is of another type.
        """
        return _load_labels(source)

    def __call__(self, image: Image.Image, resolution: int) -> Float[Tensor, "channels {resolution} {resolution}"]:
        """Turn a label map into the encoder's input.

        Args:
            image: Of mode 1, L, P, I or I;16; of a map that is not square the central square is taken.
            resolution: Side of the result in pixels.

        Returns:
            (num_labels, S, S), float32: 1 in the channel of the pixel's label, 0 elsewhere. Resized to the nearest.

        Raises:
            InvalidImageError: If `image` is of another mode, or holds a number that is no label.
            ValueError: If `resolution` is not positive.
        """
        if resolution < 1:
            raise ValueError(f"`resolution` must be at least 1, got {resolution}.")
        labels = np.asarray(_check_label_mode(image, "The label map")).astype(np.int64)
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
        """The encoder's input as a picture for the eye, one colour a label: RGB, in [-1, 1]."""
        # Label 0, the background, is black; steps of the golden ratio keep neighbouring hues far apart
        hues = [colorsys.hsv_to_rgb(k * _GOLDEN_RATIO % 1, 0.7, 0.95) for k in range(self.num_labels)]
        colours = torch.tensor([(0.0, 0.0, 0.0), *hues[1:]], device=x.device, dtype=torch.float32)
        return colours[x.argmax(dim=1)].permute(0, 3, 1, 2).to(x.dtype) * 2 - 1


Source = PhotoSource | SketchSource | LabelSource
"""What an encoder reads."""

SOURCES: dict[str, type[Source]] = {cls.kind: cls for cls in (PhotoSource, SketchSource, LabelSource)}


def to_config(source: Source) -> dict[str, Any]:
    """A source as JSON, which `source_from_config` reads."""
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
    known = [field.name for field in fields(SOURCES[kind])]
    for name in options:
        if name not in known:
            raise ValueError(f"A source of kind {kind!r} has no option {name!r}; it has {', '.join(known) or 'none'}.")
    return SOURCES[kind](**options)


def _load_labels(source: Any) -> Image.Image:
    if isinstance(source, np.ndarray):
        if source.ndim != 2 or source.dtype.kind not in "bui":
            raise InvalidImageError(
                f"A label map as an array must be (H, W) of whole numbers, got {source.shape} of {source.dtype}."
            )
        return _check_label_mode(Image.fromarray(source.astype(np.int32)), "The array")
    if isinstance(source, Image.Image):
        return _check_label_mode(source, "The image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_labels(io.BytesIO(source), "The file")
    if isinstance(source, (str, os.PathLike)):
        path = image_path(source)
        with path.open("rb") as file:
            return _read_labels(file, f"`{path.name}`")
    raise TypeError(
        f"`source` must be a path, bytes, a PIL image or a NumPy array (H, W), got {type(source).__name__}."
    )


def _read_labels(file: Any, name: str) -> Image.Image:
    try:
        with open_image(file, name) as image:
            _check_label_mode(image, name).load()
            return image.copy()
    except InvalidImageError:
        raise
    except Exception as e:  # decoders of untrusted files raise nearly anything
        raise InvalidImageError(f"{name} is not an image, or damaged. Label maps are best saved as PNG.") from e


def _check_label_mode(image: Image.Image, name: str) -> Image.Image:
    """The image itself, if it can be a label map."""
    if image.format in ("JPEG", "MPO"):
        raise InvalidImageError(f"{name} is a JPEG, whose compression changes labels; save label maps as PNG.")
    if image.mode not in _LABEL_MODES:
        raise InvalidImageError(
            f"{name} is of mode {image.mode}, but a label map has one whole number a pixel: save it as a PNG that is "
            "grey or has a palette."
        )
    if min(image.size) < 1 or max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise InvalidImageError(
            f"{name} is {image.width} x {image.height} pixels; 1 to {MAX_SIDE} a side and at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels are read."
        )
    return image
