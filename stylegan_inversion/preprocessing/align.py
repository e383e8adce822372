"""The FFHQ crop from landmarks.

The crop is the alignment of FFHQ (Karras et al. 2019, arXiv:1812.04948; NVlabs/ffhq-dataset) in the version of PTI
(Roich et al. 2022, arXiv:2106.05744; danielroich/PTI, `utils/alignment.py`). Own code. Quads are in the pixels of the
photo, (x, y), with whole numbers at the centres of pixels; the corners are top left, bottom left, bottom right, top
right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter, ImageStat

from stylegan_inversion.errors import FaceNotFoundError
from stylegan_inversion.preprocessing.image import pixels_sha256

MIN_QUAD_SIDE = 16  # pixels of the photo
MAX_QUAD_SIDE = 4  # times the longer side of the photo
_OFFICIAL_SIZE = 256  # crops of at least this size equal the official ones


@dataclass(frozen=True, eq=False)
class Crop:
    """A part of a photo, square for faces, and all that is needed to put it back.

    `quad` holds the corners of what `image` shows. It equals the requested quad, except that the official procedure
    moves it by up to half a pixel of `image` when the face is at least 4 times as large as `image`.
    """

    image: Image.Image  # RGB
    quad: Float[np.ndarray, "4 2"] | None  # in pixels of `photo`; `None` if `image` is the whole photo
    photo: Image.Image  # RGB, upright
    face_count: int  # how many faces were found in the photo; 1 if there was no search
    face_index: int  # which of them this is, from 0
    cuts: Mapping[int, Image.Image] = field(default_factory=dict)  # what `Domain.recrop` gave for some sizes
    asked: Float[np.ndarray, "4 2"] | None = None  # the requested quad, if there was one

    @cached_property
    def photo_sha256(self) -> str:
        """The sha256 of the photo's pixels: RGB, upright, row by row."""
        return pixels_sha256(self.photo)

    @property
    def is_central(self) -> bool:
        """Whether `image` is the whole photo or its central part, as `uncropped` takes it: nothing was aligned."""
        return self.quad is None or np.array_equal(self.quad, _central_part(self.photo, *self.image.size))


def face_quad(landmarks: np.ndarray, scale: float = 1.0) -> Float[np.ndarray, "4 2"]:
    """Find FFHQ's square around a face, turned with it, from the eyes and the corners of the mouth.

    Args:
        landmarks: (68, 2), pixels, (x, y), in the order of 300-W.
        scale: Side of the square relative to FFHQ's, about the same centre. `faces64` uses 0.74.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (68, 2):
        raise ValueError(f"`landmarks` must be (68, 2), got {points.shape}.")
    if not 0 < scale < np.inf:
        raise ValueError(f"`scale` must be positive and finite, got {scale}.")
    if not np.isfinite(points).all():
        raise FaceNotFoundError("The landmarks hold NaN or infinity; the face was not found. Try another photo.")
    eye_left, eye_right = points[36:42].mean(0), points[42:48].mean(0)
    eyes, mouth = (eye_left + eye_right) / 2, (points[48] + points[54]) / 2
    across, down = eye_right - eye_left, mouth - eyes
    x = across + np.array([down[1], -down[0]])  # `down` turned by 90 degrees also points right
    length = np.hypot(*x)
    if length < 1e-6:
        raise FaceNotFoundError("Eyes and mouth lie on one point; the face was not found. Try another photo.")
    x *= max(np.hypot(*across) * 2.0, np.hypot(*down) * 1.8) / length * scale
    y = np.array([-x[1], x[0]])
    centre = eyes + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def crop_quad(photo: Image.Image, quad: np.ndarray, size: int) -> Image.Image:
    """Cut a square out of a photo. What lies outside the photo becomes its mirror image, blurred towards the median.

    Sizes from 256 on follow the official procedure to the letter, which takes bilinear samples from a photo up to 4
    times as large. Smaller sizes, for which the official way would alias, are sampled densely and then reduced with
    LANCZOS.

    Raises:
        ValueError: If `photo` is not RGB, `quad` is not a finite parallelogram, or `size` is not positive.
        FaceNotFoundError: If the quad lies outside the photo, is too small, or many times as large as the photo.
    """
    quad = np.asarray(quad, dtype=np.float64)
    if quad.shape != (4, 2) or not np.isfinite(quad).all():
        raise ValueError(f"`quad` must be (4, 2) and finite, got shape {quad.shape}: {quad.ravel().tolist()}.")
    if size < 1:
        raise ValueError(f"`size` must be >= 1, got {size}.")
    return _crop(photo, quad, size)[0]


def align_face(
    photo: Image.Image, faces_landmarks: Sequence[np.ndarray], *, size: int, scale: float = 1.0, face: int = 0
) -> Crop:
    """Cut face number `face` out of an RGB photo the way FFHQ does, at `size` pixels a side; see `face_quad`.

    Raises:
        FaceNotFoundError: If there is no face, no face of this number, or it lies outside the photo or is too small.
    """
    count = len(faces_landmarks)
    if count == 0:
        raise FaceNotFoundError(
            "No face was found in the photo. Use a photo in which the face is larger, lit and seen from the front. "
            "In Python: if it is an aligned crop already, pass `align=False` (`--no-align`)."
        )
    if not 0 <= face < count:
        raise FaceNotFoundError(f"`face` must be in [0, {count - 1}], got {face}: {count} found in the photo.")
    asked = face_quad(faces_landmarks[face], scale)
    return Crop(*_crop(photo, asked, size), photo, face_count=count, face_index=face, asked=asked)


def crop_again(photo: Image.Image, asked: np.ndarray, size: int) -> Crop:
    """Cut a face out as before, by the quad that was requested; it is taken for the only one."""
    return Crop(*_crop(photo, asked, size), photo, face_count=1, face_index=0, asked=asked)


def around(crop: Crop, margin: float, side: int = 4096) -> Crop:
    """The part of the photo around a face, as a crop of its own.

    Args:
        crop: The face.
        margin: How much of the photo to keep on each side, relative to the face.
        side: Pixels of the longer side at most.
    """
    width, height = crop.photo.size
    quad = np.array([[0, 0], [0, height], [width, height], [width, 0]]) - 0.5 if crop.quad is None else crop.quad
    reach = margin * (quad.max(0) - quad.min(0))
    x0, y0 = np.maximum(np.floor(quad.min(0) - reach), 0).astype(int).tolist()
    x1, y1 = np.minimum(np.ceil(quad.max(0) + reach), (width, height)).astype(int).tolist()
    scale = min(side / max(x1 - x0, y1 - y0), 1.0)
    size = (max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1))
    photo = crop.photo.resize(size, Image.Resampling.LANCZOS, box=(x0, y0, x1, y1), reducing_gap=2.0)
    moved = (quad - (x0, y0) + 0.5) * (size[0] / (x1 - x0), size[1] / (y1 - y0)) - 0.5
    return replace(crop, photo=photo, quad=None if crop.quad is None else moved)


def uncropped(
    photo: Image.Image,
    size: int,
    *,
    height: int | None = None,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> Crop:
    """Take the central part of a photo, such as one that is already an aligned crop, as a crop.

    It is the largest in the shape of the crop, `size` pixels wide and `height` high; `None` means a square.
    """
    _check_photo(photo)
    shape = (size, height or size)
    quad = _central_part(photo, *shape)
    (left, top), (right, bottom) = (quad[[0, 2]] + 0.5).astype(int).tolist()
    image = photo.crop((left, top, right, bottom))
    if image.size != shape:
        image = image.resize(shape, resample)
    whole = (right - left, bottom - top) == photo.size
    return Crop(image, None if whole else quad, photo, face_count=1, face_index=0)


def _central_part(photo: Image.Image, width: int, height: int) -> np.ndarray:
    """Find the quad of the largest rectangle of whole pixels in the middle that has the shape of width x height."""
    across = min(photo.width, round(photo.height * width / height))
    down = min(photo.height, round(photo.width * height / width))
    return rectangle((photo.width - across) // 2, (photo.height - down) // 2, max(across, 1), max(down, 1))


def _crop(photo: Image.Image, quad: np.ndarray, size: int) -> tuple[Image.Image, np.ndarray]:
    """Cut out the crop, and find the quad that it shows."""
    _check_photo(photo)
    _check_quad(quad, photo)
    side = float(np.hypot(*(quad[3] - quad[0])))

    # Shrink. `corners` are the quad's in the shrunken photo, `sampling` is the size before the last reduction
    official = size >= _OFFICIAL_SIZE
    shrink = shrink_factor(side, size)
    shrunken = np.maximum(np.rint(np.array(photo.size) / shrink), 1).astype(int)
    step = np.array(photo.size) / shrunken
    corners = quad / shrink if official else (quad + 0.5) / step - 0.5
    side /= shrink
    sampling = size if official or side <= size else size * 2 * int(np.ceil(side / size))

    # Crop, and shrink only that part
    border = max(int(np.rint(side * 0.1)), 3)
    low = np.maximum(np.floor(corners.min(0)).astype(int) - border, 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + border, shrunken)
    low, high = np.minimum(low, shrunken - 1), np.maximum(high, 1)
    box = (*(low * step), *(high * step))
    region = photo.resize(tuple(high - low), Image.Resampling.LANCZOS, box=box) if shrink > 1 else photo.crop(box)
    local = corners - low

    # Pad
    before = np.maximum(border - np.floor(local.min(0)).astype(int), 0)
    after = np.maximum(np.ceil(local.max(0)).astype(int) - (high - low) + border, 0)
    if max(*before, *after) > border - 4:
        least = int(np.rint(side * 0.3))
        before, after = np.maximum(before, least), np.maximum(after, least)
        region = _pad(region, before, after, blur=side * 0.02)
        local = local + before

    data = tuple((local + 0.5).ravel())
    image = region.transform((sampling, sampling), Image.Transform.QUAD, data, Image.Resampling.BILINEAR)
    if sampling != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return image, (corners + 0.5) * step - 0.5


def _pad(region: Image.Image, before: np.ndarray, after: np.ndarray, *, blur: float) -> Image.Image:
    """Mirror at the edges, with more blur and closer to the median farther out.

    Departure: 8 bits and Pillow's blur (three box blurs) instead of 32-bit floats and SciPy's. They take a fraction of
    the memory and time, and differ by at most two levels.
    """
    pixels = np.pad(np.asarray(region), ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="reflect")
    height, width = pixels.shape[:2]
    x, y = np.arange(width), np.arange(height)[:, None]
    # 1 at the rim, 0 where the photo begins, negative within
    across = 1 - np.minimum(x / before[0], (width - 1 - x) / after[0])
    along = 1 - np.minimum(y / before[1], (height - 1 - y) / after[1])

    def mask(slope: int, offset: int) -> Image.Image:
        levels = [np.rint(255 * np.clip(ramp * slope + offset, 0, 1)).astype(np.uint8) for ramp in (across, along)]
        return Image.fromarray(np.maximum(*levels))  # (H, W)

    padded = Image.fromarray(pixels)
    padded = Image.composite(padded.filter(ImageFilter.GaussianBlur(blur)), padded, mask(3, 1))
    padded.paste(tuple(ImageStat.Stat(padded).median), mask=mask(1, 0))
    return padded


def shrink_factor(side: float, size: int) -> int:
    """Compute by how much the photo is reduced before the crop."""
    return max(int(side / size / (2 if size >= _OFFICIAL_SIZE else 4)), 1)


def rectangle(left: int, top: int, width: int, height: int) -> np.ndarray:
    """Make the quad of a rectangle of whole pixels."""
    right, bottom = left + width, top + height
    return np.array([[left, top], [left, bottom], [right, bottom], [right, top]], dtype=np.float64) - 0.5


def _check_photo(photo: Image.Image) -> None:
    if photo.mode != "RGB":
        raise ValueError(f"`photo` must be of mode RGB, got {photo.mode}; pass it through `load_image` first.")


def _check_quad(quad: np.ndarray, photo: Image.Image) -> None:
    sides = np.hypot(*(quad[[3, 1]] - quad[0]).T)
    if np.hypot(*(quad[0] + quad[2] - quad[1] - quad[3])) > 1e-3 * max(sides.max(), 1.0):
        raise ValueError(f"`quad` must be a square or a parallelogram, got {quad.tolist()}; see `face_quad`.")
    if sides.min() < MIN_QUAD_SIDE:
        raise FaceNotFoundError(
            f"The face is too small: its crop is {sides.min():.1f} pixels wide, at least {MIN_QUAD_SIDE} are needed. "
            "Use a photo of a higher resolution."
        )
    if sides.max() > MAX_QUAD_SIDE * max(photo.size) or (
        (quad.max(0) < 0).any() or (quad.min(0) > np.array(photo.size) - 1).any()
    ):
        raise FaceNotFoundError(
            f"The crop from {quad.min(0).round(1).tolist()} to {quad.max(0).round(1).tolist()} does not fit the photo "
            f"of {photo.width} x {photo.height} pixels; the landmarks must be in its pixels."
        )
