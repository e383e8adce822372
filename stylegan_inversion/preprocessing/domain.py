"""What a model's pictures show: faces cut out as FFHQ's, or whole pictures, perhaps between black bars.

Facts of the official code: omertov/encoder4editing (MIT), `configs/transforms_config.py` (cars: 192 x 256 for the
encoder), `scripts/inference.py` (rows 64 to 448 of the 512 drawn are the car). Own code.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stylegan_inversion.bounds import BoundedConfig, number
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.preprocessing.align import Crop, align_face, crop_quad, uncropped
from stylegan_inversion.preprocessing.image import to_tensor


@dataclass(frozen=True)
class Domain(BoundedConfig):
    """What a model takes. It is part of the model: `config.json` has it under `domain`.

    Attributes:
        has_faces: A face is found and cut out. False takes the largest central part of the photo in the shape.
        crop_scale: Side of the face crop relative to FFHQ's, in [1e-6, 100].
        height: Height of the pictures relative to their width, in [0.125, 1], for faces 1. What is left of the
            generator's square is black, above and below.

    Raises:
        ValueError: If a number is out of range.
    """

    has_faces: bool = True
    crop_scale: float = number(1.0, 1e-6, 100.0)
    height: float = number(1.0, 0.125, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_faces and self.height != 1:
            raise ValueError(f"`height` must be 1 for a model of faces, whose crops are square, got {self.height}.")

    @classmethod
    def of_config(cls, config: Mapping[str, Any], where: Path) -> "Domain":
        """Read it from a `config.json`; that of an older model has only `crop_scale`.

        Raises:
            CheckpointError: If a value is out of range, or there is an unknown one.
        """
        try:
            return cls(**config.get("domain", {"crop_scale": config.get("crop_scale", 1.0)}))
        except (TypeError, ValueError) as e:
            raise CheckpointError(f"{where}: bad settings under `domain`: {e}") from e

    def changed(self, settings: Mapping[str, Any]) -> "Domain":
        """Replace the settings that are not `None`. Raises `ValueError` if they do not fit together."""
        return replace(self, **{name: value for name, value in settings.items() if value is not None})

    def describe(self) -> str:
        """Say in a sentence what the model takes."""
        if self.has_faces:
            return f"Face crops have {self.crop_scale:g} times the side of FFHQ's."
        shape = "square" if self.height == 1 else f"part that is {self.height:g} times as high as wide"
        return f"It takes photos of no faces as they are, and sees the largest central {shape}."

    def size(self, side: int) -> tuple[int, int]:
        """Width and height of the pictures of a network whose square has this side."""
        return side, max(1, round(side * self.height))

    def crop(
        self, photo: Image.Image, side: int, landmarks: Sequence[np.ndarray] | None = None, *, face: int = 0
    ) -> Crop:
        """Cut a picture out of a photo: face number `face` of those that were found, or else the largest whole part.

        Raises:
            FaceNotFoundError: If there is no face of this number, see `align_face`.
        """
        if landmarks is not None:
            return align_face(photo, landmarks, size=side, scale=self.crop_scale, face=face)
        # The official transforms shrink whole pictures with the bilinear filter
        resample = Image.Resampling.LANCZOS if self.has_faces else Image.Resampling.BILINEAR
        return uncropped(photo, side, height=self.size(side)[1], resample=resample)

    def recrop(self, crop: Crop, side: int) -> Image.Image:
        """Cut a crop out of its photo again, for a network of another side: sharper than to resize the crop."""
        if side in crop.cuts:
            return crop.cuts[side]
        if crop.quad is None or crop.is_central:
            return self.crop(crop.photo, side).image
        return crop_quad(crop.photo, crop.quad, side)

    def without_bars(self, images: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch 3 height side"]:
        """Take the picture out of what the generator draws."""
        return middle_rows(images, self.size(images.shape[-1])[1])

    def with_bars(self, image: Image.Image) -> Float[Tensor, "1 3 side side"]:
        """Turn a picture into what the generator would draw, RGB, in [-1, 1]: with black above and below."""
        square = Image.new("RGB", (image.width, image.width))
        square.paste(image, (0, (image.width - image.height) // 2))
        return to_tensor(square)


def middle_rows(images: Float[Tensor, "batch 3 side side"], rows: int) -> Float[Tensor, "batch 3 rows side"]:
    """Leave out as many rows above as below."""
    top = (images.shape[-2] - rows) // 2
    return images[..., top : top + rows, :]


FACES = Domain()  # FFHQ's
_WHOLE = re.compile(r"(church(es)?|horses?|cats?|afhq[a-z]*|brecahad)(?![a-z])")  # what they draw is no face


def domain_named(name: object) -> Domain:
    """Say what a model of a data set takes, such as "cars_encode" or "church-256"; those of other names take faces.

    The names are those of `dataset_type` in the official files, and of the catalogue.
    """
    if re.match(r"cars?(?![a-z])", str(name)):
        return Domain(has_faces=False, height=0.75)
    return Domain(has_faces=False) if _WHOLE.match(str(name)) else FACES
