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
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing.align import uncropped
from stylegan_inversion.preprocessing.image import MAX_PIXELS, MAX_SIDE, load_image, open_source, to_tensor

_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
_GOLDEN_RATIO = 0.618034
_CELEBAMASK_HQ = {  # the names of its labels (arXiv:1907.11922), in their order, and the colours of its own pictures
    "background": "#000000",
    "skin": "#cc0000",
    "nose": "#4c9900",
    "glasses": "#cccc00",
    "left eye": "#3333ff",
    "right eye": "#cc00cc",
    "left brow": "#00ffff",
    "right brow": "#ffcccc",
    "left ear": "#663300",
    "right ear": "#ff0000",
    "mouth": "#66cc00",
    "upper lip": "#ffff00",
    "lower lip": "#000099",
    "hair": "#0000cc",
    "hat": "#ff3399",
    "earring": "#00cccc",
    "necklace": "#003300",
    "neck": "#ff9933",
    "clothes": "#00cc00",
}


PHOTO_TASKS = ("inversion", "super_resolution", "frontalization", "toonify")


@dataclass(frozen=True)
class PhotoSource:
    """A photo: three channels in [-1, 1]. `task` is what becomes of it, one of `PHOTO_TASKS`."""

    kind: ClassVar[str] = "photo"
    in_channels: ClassVar[int] = 3
    task: str = "inversion"

    def __post_init__(self) -> None:
        if self.task not in PHOTO_TASKS:
            raise ValueError(f"`task` of a photo must be one of {', '.join(PHOTO_TASKS)}, got {self.task!r}.")

    @property
    def takes_faces(self) -> bool:
        """Whether a face is best found in the photo first; a small photo for super-resolution is a face already."""
        return self.task in ("frontalization", "toonify")

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
    """A label map, one whole number for each pixel: one channel for each label, 0 or 1.

    19 labels are CelebAMask-HQ's, which have names and colours.
    """

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
        labels = np.asarray(_check_labels(image, "The label map"))
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_labels:
            raise InvalidImageError(
                f"The label map holds {high if high >= self.num_labels else low}, but labels must be in "
                f"[0, {self.num_labels - 1}]: `num_labels` is {self.num_labels}."
            )
        side = min(labels.shape)
        top, left = (labels.shape[0] - side) // 2, (labels.shape[1] - side) // 2
        nearest = ((np.arange(resolution) + 0.5) * side / resolution).astype(np.int64)
        chosen = torch.from_numpy(labels[np.ix_(top + nearest, left + nearest)].astype(np.int64))  # (S, S)
        return (chosen == torch.arange(self.num_labels, device="cpu")[:, None, None]).float()

    def preview(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Show the encoder's input as a picture with one colour for each label, RGB, in [-1, 1]."""
        levels = [ImageColor.getrgb(colour) for colour in self.colours().values()]
        colours = torch.tensor(levels, device=x.device, dtype=torch.float32) / 255
        return colours[x.argmax(dim=1)].permute(0, 3, 1, 2).to(x.dtype) * 2 - 1

    def colours(self) -> dict[str, str]:
        """The colour of each label, by its name: the data set's, or else black for label 0, and far hues in turn."""
        if self.num_labels == len(_CELEBAMASK_HQ):
            return _CELEBAMASK_HQ
        hues = [colorsys.hsv_to_rgb(k * _GOLDEN_RATIO % 1, 0.7, 0.95) for k in range(self.num_labels)]
        levels = [(0, 0, 0), *([round(255 * part) for part in hue] for hue in hues[1:])]
        return {f"label {k}": f"#{bytes(level).hex()}" for k, level in enumerate(levels)}

    def with_legend(self, picture: Image.Image) -> Image.Image:
        """Put the names of the labels in a picture of `preview` beside it, each with its colour."""
        seen = {f"#{bytes(colour).hex()}" for colour in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)}
        legend = [(name, colour) for name, colour in self.colours().items() if colour in seen]
        side = max(picture.height, 256)
        line = min(24, side // max(len(legend), 1))
        sheet = Image.new("RGB", (side * picture.width // picture.height + 8 * line, side), "white")
        sheet.paste(picture.resize((sheet.width - 8 * line, side), Image.Resampling.NEAREST))
        pen, left = ImageDraw.Draw(sheet), sheet.width - 8 * line + line // 2
        for k, (name, colour) in enumerate(legend):
            pen.rectangle((left, k * line + line // 8, left + line * 3 // 4, k * line + line * 7 // 8), fill=colour)
            font = ImageFont.load_default(line * 3 / 5)
            pen.text((left + line, (k + 0.5) * line), name, fill="black", font=font, anchor="lm")
        return sheet


def reduced(image: Image.Image, factor: int | float) -> Image.Image:
    """Make a picture so many times smaller and enlarge it again: what pSp's super-resolution reads.

    The kernels are the original's: bicubic (a = -0.5), antialiased, down to 8 bits; bilinear up.
    """
    small = [max(1, round(side / factor)) for side in image.size]
    return image.resize((small[0], small[1]), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BILINEAR)


Source = PhotoSource | SketchSource | LabelSource
"""What an encoder reads."""

SOURCES: dict[str, type[Source]] = {cls.kind: cls for cls in (PhotoSource, SketchSource, LabelSource)}


def to_config(source: Source) -> dict[str, Any]:
    """Convert a source to JSON, which `source_from_config` reads. Photos that are inverted have but a kind."""
    return {"kind": source.kind, **({} if source == PhotoSource() else asdict(source))}


def photo_task(name: object) -> str:
    """Tell what becomes of photos by the official `dataset_type`, such as "ffhq_frontalize"; others are inverted."""
    marks = {"super_resolution": "super_resolution", "frontal": "frontalization", "toonify": "toonify"}
    return next((task for mark, task in marks.items() if mark in str(name)), "inversion")


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
