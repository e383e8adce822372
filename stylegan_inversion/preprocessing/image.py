"""Photos in, tensors out, and back: the one place that knows file formats, colour modes and 127.5."""

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import ExifTags, Image, ImageCms
from torch import Tensor

from stylegan_inversion import hub
from stylegan_inversion.errors import InvalidImageError

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # MPO, the photos of phones, comes with JPEG
MIN_SIDE = 16
MAX_SIDE = 16384
MAX_PIXELS = 64_000_000

_UPRIGHT = {  # EXIF orientation -> what makes the photo upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SUPPORTED = "Supported are JPEG, PNG, WebP, BMP, GIF and TIFF."
_ELSEWHERE = "; convert it to JPEG or PNG first."


def load_image(source: Any) -> Image.Image:
    """Read a photo and put it right: upright, 8 bits, sRGB, no transparency, no metadata.

    Sizes are checked in the header, before any pixel is decoded. Transparency is laid over white. Of an animation the
    first frame is used, and a warning is logged.

    Args:
        source: A path (`str` or `os.PathLike`), the bytes of a file, a PIL image of any mode, or a NumPy array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), sRGB: uint8, uint16, or floating point in [0, 1].

    Returns:
        A new image of mode RGB that carries no EXIF, profile or other metadata. 16 to 16,384 pixels a side, at most
        64 megapixels.

    Raises:
        InvalidImageError: If it is not an image, damaged, too small or too large, of a format that is not supported,
            or an array of the wrong shape, dtype or range.
        OSError: If the file does not exist or may not be read.
        TypeError: If `source` is of another type.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "The image")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read(io.BytesIO(source), "The file")
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        if "\0" in str(path):
            raise InvalidImageError("The path of the image holds a null character; pass the path of a file.")
        if path.exists() and not path.is_file():
            raise InvalidImageError(f"`{path.name}` is a folder or a device, not an image; pass the path of a file.")
        with path.open("rb") as file:
            return _read(file, f"`{path.name}`")
    raise TypeError(
        f"`source` must be a path, bytes, a PIL image or a NumPy array, got {type(source).__name__}; "
        "turn a tensor in [-1, 1] into images with `to_pil`."
    )


def to_tensor(image: Image.Image, size: int | None = None) -> Float[Tensor, "1 3 height width"]:
    """Turn an image into a tensor, resized with antialiasing if asked for.

    Args:
        image: An RGB image, as `load_image` gives it.
        size: Side of the result in pixels; `image` must be square then. `None` keeps the size.

    Returns:
        (1, 3, H, W), RGB, in [-1, 1], float32, on the CPU.

    Raises:
        ValueError: If `image` is not RGB, or `size` is not positive, or `size` is given and `image` is not square.
    """
    if image.mode != "RGB":
        raise ValueError(f"`image` must be of mode RGB, got {image.mode}; pass it through `load_image` first.")
    if size is not None:
        if size < 1:
            raise ValueError(f"`size` must be at least 1, got {size}.")
        if image.width != image.height:
            raise ValueError(
                f"`image` must be square when `size` is given, got {image.width} x {image.height}; "
                "crop it with `align_face` or `uncropped` first."
            )
        if image.width != size:
            image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, H, W), uint8
    return pixels.to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1


def to_pil(images: Float[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    """Turn a batch of tensors into images: clamped, and rounded to the nearest of 256 levels.

    Args:
        images: (B, 3, H, W), RGB, in [-1, 1]; what lies outside is clamped. Any device and floating point type.

    Returns:
        B images of mode RGB.

    Raises:
        ValueError: If `images` holds NaN.
    """
    levels = (images.detach().float().cpu() + 1) * 127.5
    if levels.isnan().any():
        raise ValueError("`images` holds NaN, which has no colour; check the network or the latent that made it.")
    pixels = levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(image) for image in pixels]


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image in the format of its suffix, whole or not at all.

    Args:
        image: The image.
        path: Ends in ".png" or ".jpg"; its folder is made if needed.
        **options: Of Pillow's writer, such as `quality`.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk. A file that was there is untouched.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    hub.write_file(path, lambda temporary: image.save(temporary, kind, **options))


def _read(file: io.BytesIO | io.BufferedReader, name: str) -> Image.Image:
    """Open an encoded image, header first."""
    head = file.read(1024)
    file.seek(0)
    if not head:
        raise InvalidImageError(f"{name} is empty (0 bytes).")
    _refuse_known(head, name)
    try:
        with _pillow_quiet():
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as e:  # the same answer as `_check_size`, should Pillow notice first
        raise InvalidImageError(
            f"{name} is too large: at most {MAX_SIDE} a side and {MAX_PIXELS / 1e6:.0f} megapixels are read; "
            "shrink it first."
        ) from e
    except Exception as e:  # decoders of untrusted files raise nearly anything: SyntaxError, struct.error, ...
        raise InvalidImageError(f"{name} is not an image, or damaged. {_SUPPORTED}") from e
    with image:
        return _decode(image, name)


def _refuse_known(head: bytes, name: str) -> None:
    """Tell users of well-known formats that are not supported how to convert them."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        raise InvalidImageError(f"{name} is an AVIF image{_ELSEWHERE} {_SUPPORTED}")
    if head[4:8] == b"ftyp":
        raise InvalidImageError(
            f"{name} is a HEIC image or a video{_ELSEWHERE} On an iPhone: Settings, Camera, Formats, Most Compatible. "
            "In Python: the package `pillow-heif`, and pass the PIL image."
        )
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!")) and b"<svg" in text):
        raise InvalidImageError(f"{name} is an SVG drawing{_ELSEWHERE} Any browser or Inkscape exports PNG.")
    if text.startswith((b"%pdf", b"%!ps", b"\xc5\xd0\xd3\xc6")):
        raise InvalidImageError(f"{name} is a PDF or PostScript document{_ELSEWHERE} {_SUPPORTED}")


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Check the size, then decode the pixels and normalise them."""
    _check_size(image.width, image.height, name)
    try:
        with _pillow_quiet():
            # MPO is a photo with a depth map or the like, not an animation
            animated = image.format != "MPO" and getattr(image, "is_animated", False)
            image.load()
            rgb = _to_srgb(image)
            clean = Image.new("RGB", rgb.size)  # a new image carries no metadata
            clean.paste(rgb)
            orientation = _orientation(image)
    except InvalidImageError:
        raise
    except Exception as e:  # see `_read`
        raise InvalidImageError(f"{name} is damaged or incomplete: {e}. Save or download it again.") from e
    if animated:
        logger.warning("%s has several frames; only the first one is used.", name)
    return clean.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else clean


def _to_srgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, through the colour profile if there is a sound one, transparency over white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_to_grey(image)
    alpha = None
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode[:-1] + "A")
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "LA" else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    elif image.mode in ("P", "PA", "1"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    rgb = _apply_profile(image, profile) if profile else image.convert("RGB")
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours under an ICC profile -> sRGB. A broken or unfitting profile is passed over."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and ImageCms.getProfileDescription(source).startswith("sRGB"):
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception as e:  # see `_read`
        logger.warning("The colour profile of the image cannot be used and is ignored: %s", e)
        return image.convert("RGB")
    assert converted is not None  # only `inPlace=True` returns None
    return converted


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """16-bit and floating point grey -> 8 bits, scaled rather than clipped."""
    pixels = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(_to_levels(pixels))
    if pixels.min() < 0 or pixels.max() > 65535:
        raise InvalidImageError(
            f"The image has 32-bit levels from {pixels.min()} to {pixels.max()}; save it with 8 or 16 bits."
        )
    return Image.fromarray(_to_levels(pixels.astype(np.uint16)))


def _to_levels(pixels: np.ndarray) -> np.ndarray:
    """uint16, or floating point in [0, 1] -> uint8."""
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    low, high = float(pixels.min()), float(pixels.max())  # NaN wins both
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise InvalidImageError(
            f"Floating point images must be finite and in [0, 1], got {low:.6g} to {high:.6g}; "
            "divide 0..255 by 255, map [-1, 1] with (x + 1) / 2."
        )
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    """(H, W), (H, W, 1 | 3 | 4) -> RGB."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InvalidImageError(
            f"An array must be (H, W) or (H, W, 1 | 3 | 4), got shape {array.shape}; move the channels to the end."
        )
    _check_size(array.shape[1], array.shape[0], "The array")
    if array.dtype.kind != "f" and array.dtype not in (np.uint8, np.uint16):
        raise InvalidImageError(
            f"An array must be uint8, uint16 or floating point in [0, 1], got {array.dtype}; convert it with `astype`."
        )
    pixels = array if array.dtype == np.uint8 else _to_levels(array)
    return _decode(Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)), "")


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise InvalidImageError(f"{name} is too small: {width} x {height} pixels, at least {MIN_SIDE} a side needed.")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InvalidImageError(
            f"{name} is too large: {width} x {height} pixels, at most {MAX_SIDE} a side and {MAX_PIXELS / 1e6:.0f} "
            "megapixels are read; shrink it first."
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when there is none or the EXIF block is broken."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as e:  # see `_read`
        logger.warning("The EXIF block of the image is broken and ignored: %s", e)
        return 1


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Silence Pillow's warnings (bombs, corrupt EXIF): we raise or log ourselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
