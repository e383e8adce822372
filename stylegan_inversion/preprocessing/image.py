"""Read photos, and convert between images and tensors: the one place for file formats, colour modes and 127.5."""

import functools
import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import Float
from PIL import ExifTags, Image, ImageCms, PngImagePlugin
from torch import Tensor

from stylegan_inversion import storage
from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing.decoding_cost import cost_of, exif_fault

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # JPEG includes MPO, which phones write
MIN_SIDE = 16
MAX_SIDE = 16384
MAX_PIXELS = 64_000_000

_TIFF_SINCE = (13, 0)  # the first Pillow whose decoder of TIFF has no known hole
_PILLOW = tuple(int(number) for number in re.findall(r"\d+", PIL.__version__)[:2])
_USUAL_SCANS = 20  # this many scans of the largest picture take a second or two
_MAX_PROFILE_BYTES = 4_000_000
_TABLES = re.compile(rb"[AD]2B\d")  # in the list of a profile's tags
_STRIP_PIXELS = 2**18  # colours are converted in strips, so that a large photo is in memory only once


@dataclass(frozen=True)
class ImageLimits:
    """Limits on the files that `load_image` reads, checked before a pixel is decoded.

    Memory matters for progressive JPEG and WebP, whose decoders take 7 to 20 bytes a pixel, and lossless WebP, which
    may take 790 MB more; all others take 7 bytes a pixel.
    """

    formats: tuple[str, ...] = FORMATS  # the content of a file decides, not its name
    max_pixels: int = MAX_PIXELS  # width times height
    max_memory: int = 2_500_000_000  # bytes that decoding may take
    max_table_pixels: int = MAX_PIXELS  # under a colour profile that is a table, which takes ten times as long


_UPRIGHT = {  # EXIF orientation -> what makes the photo upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LIBRARY = ImageLimits()
_ELSEWHERE = "; convert it to JPEG or PNG first."
_KNOWN = (  # well-known formats that are not supported: how they start, what they are, how to convert them
    (rb".{4}ftypavi[fs]", "an AVIF image", ""),
    (
        rb".{4}ftyp",
        "a HEIC image or a video",
        "On an iPhone: Settings, Camera, Formats, Most Compatible. In Python: the package `pillow-heif`, and pass the "
        "PIL image.",
    ),
    (rb"[\xef\xbb\xbf\s]*(<svg|<(\?xml|!).*<svg)", "an SVG drawing", "Any browser or Inkscape exports PNG."),
    (rb"[\xef\xbb\xbf\s]*(%pdf|%!ps|\xc5\xd0\xd3\xc6)", "a PDF or PostScript document", ""),
)


def load_image(source: Any, *, limits: ImageLimits = LIBRARY) -> Image.Image:
    """Read a photo and normalise it: upright, 8 bits, sRGB, no transparency, no metadata.

    Its cost is read from the header, before any pixel is decoded. Transparency becomes white. Of an animation the first
    frame is used, and a warning is logged.

    Args:
        source: A path (`str` or `os.PathLike`), the bytes of a file, a PIL image of any mode, or a NumPy array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), sRGB: uint8, uint16, or floating point in [0, 1].
        limits: Which files are read. The default takes every format of `FORMATS` that the installed Pillow decodes
            without a known hole (TIFF from 13.0 on), and 64 megapixels.

    Returns:
        A new image of mode RGB without EXIF, profile or other metadata, 16 to 16,384 pixels a side.

    Raises:
        InvalidImageError: If it is not an image, damaged, too small, too large or too costly to decode, of a format
            that is not supported, or an array of the wrong shape, dtype or range.
        OSError: If the file does not exist or may not be read.
        TypeError: If `source` is of another type.
    """
    if isinstance(source, Image.Image):
        if getattr(source, "tile", None):  # opened, and not decoded yet
            _check_format(source.format, "The image", limits)
        return _upright(*_decode(source, "The image", limits))
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    with open_source(source, limits) as (image, name):
        planes, orientation = _decode(image, name, limits)
    del image  # frees its memory before the result is made
    return _upright(planes, orientation)


def to_tensor(image: Image.Image) -> Float[Tensor, "1 3 height width"]:
    """Turn an RGB image into (1, 3, H, W), RGB, in [-1, 1], float32, on the CPU."""
    if image.mode != "RGB":
        raise ValueError(f"`image` must be of mode RGB, got {image.mode}; pass it through `load_image` first.")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # (1, 3, H, W), uint8
    return pixels.to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1


def to_pil(images: Float[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    """Turn (B, 3, H, W), RGB, in [-1, 1], into PIL images: clamped, and rounded to the nearest of 256 levels."""
    levels = (images.detach().float().cpu() + 1) * 127.5
    if levels.isnan().any():
        raise ValueError("`images` holds NaN, which has no colour; check the network or the code that made it.")
    pixels = levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(image) for image in pixels]


def pixels_sha256(image: Image.Image) -> str:
    """Compute the sha256 of an image's pixels, row by row."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def encode_image(image: Image.Image, file: Any, kind: str, *, xmp: bytes | None = None, **options: Any) -> None:
    """Write an image, with a packet of XMP as its only metadata, in a format of Pillow's: "PNG", "JPEG" or "WEBP"."""
    if xmp is not None and kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif xmp is not None:
        options["xmp"] = xmp
    image.save(file, kind, **options)


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image in the format of its suffix, such as ".png", completely or not at all.

    Args:
        image: The image.
        path: The file.
        **options: As of `encode_image`.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk. A file that was there is untouched.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    storage.write_file(path, lambda temporary: encode_image(image, temporary, kind, **options))


def list_images(folder: Path, *, without: Path | None = None) -> list[str]:
    """List the pictures in a folder and its subfolders: paths relative to it, with "/", sorted.

    Links are followed; hidden files and folders, and the folder `without`, are left out. A subfolder that cannot be
    read is left out with a warning.

    Raises:
        ValueError: If it is not a folder, or holds no picture.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a folder of pictures.")
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    names, seen = [], {os.path.realpath(without)} if without else set()
    left_out = functools.partial(logger.warning, "A folder is left out: %s")
    for root, folders, files in os.walk(folder, followlinks=True, onerror=left_out):
        if (real := os.path.realpath(root)) in seen:  # a link may lead back to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = [Path(root, name) for name in files if not name.startswith(".")]
        names += [path.relative_to(folder).as_posix() for path in found if path.suffix.lower() in suffixes]
    if not names:
        where = f" outside {without}" if without else ""
        raise ValueError(f"{folder} holds no picture{where} ({', '.join(sorted(suffixes))}).")
    return sorted(names)


@contextmanager
def open_source(source: Any, limits: ImageLimits = LIBRARY) -> Iterator[tuple[Image.Image, str]]:
    """Open a path, or the bytes of a file, as an image that is not decoded yet, with its name for messages."""
    file: io.BytesIO | io.BufferedReader
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, file = "The file", io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        if "\0" in str(path):
            raise InvalidImageError("The path of the image holds a null character; pass the path of a file.")
        if path.exists() and not path.is_file():  # opening a named pipe or a device may block for ever
            raise InvalidImageError(f"`{path.name}` is a folder or a device, not an image; pass the path of a file.")
        name, file = f"`{path.name}`", path.open("rb")
    else:
        raise TypeError(
            f"`source` must be a path, bytes, a PIL image or a NumPy array, got {type(source).__name__}; "
            "turn a tensor in [-1, 1] into images with `to_pil`."
        )
    with file, open_image(file, name, limits) as image:
        yield image, name


def open_image(file: io.BytesIO | io.BufferedReader, name: str, limits: ImageLimits = LIBRARY) -> Image.Image:
    """Open an encoded image without decoding a pixel. `name` is for messages.

    Raises:
        InvalidImageError: If it is not an image, damaged, or outside the limits.
    """
    head = file.read(1024)
    if not head:
        raise InvalidImageError(f"{name} is empty (0 bytes).")
    for start, what, hint in _KNOWN:
        if re.match(start, head, re.DOTALL | re.IGNORECASE):
            raise InvalidImageError(f"{name} is {what}{_ELSEWHERE} {hint or _supported(limits)}")
    unknown = InvalidImageError(f"{name} is not an image, or damaged. {_supported(limits)}")
    Image.init()  # loads the formats
    file_format = next((kind for kind in FORMATS if (accept := Image.OPEN[kind][1]) and accept(head[:16])), None)
    if file_format is None:
        raise unknown
    _check_format(file_format, name, limits)
    file.seek(0)
    data = file.read()
    try:
        cost = cost_of(data, file_format)
    except ValueError as e:
        raise InvalidImageError(f"{name} {e}") from e
    if cost.size is not None:
        _check_size(*cost.size, name, limits)
        pixels = cost.size[0] * cost.size[1]
        if cost.memory > limits.max_memory:
            raise InvalidImageError(
                f"{name} is a {cost.kind} of {pixels / 1e6:.1f} megapixels, which may take {cost.memory / 1e6:,.0f} "
                f"MB of memory, and at most {limits.max_memory / 1e6:,.0f} MB are allowed; save it as an ordinary JPEG "
                "or PNG."
            )
        if pixels * cost.scans > _USUAL_SCANS * limits.max_pixels:
            raise InvalidImageError(
                f"{name} is a {cost.kind} of {cost.scans} scans, too many for {pixels / 1e6:.0f} megapixels; save it "
                "as an ordinary JPEG."
            )
    try:
        with _pillow_quiet():
            image = Image.open(io.BytesIO(data), formats=[file_format])
    except Image.DecompressionBombError as e:  # Pillow noticed before `_check_size`
        raise InvalidImageError(f"{name} is too large: {_at_most(limits)}") from e
    except Exception as e:  # decoders of untrusted files raise nearly anything: SyntaxError, struct.error, ...
        raise unknown from e
    if cost.size not in (None, image.size):
        raise InvalidImageError(f"{name} is damaged: its header gives two sizes, {cost.size} and {image.size}.")
    return image


def _check_format(file_format: str | None, name: str, limits: ImageLimits) -> None:
    """Refuse formats outside the limits, and those that the installed Pillow does not decode safely."""
    if file_format in FORMATS and file_format not in limits.formats:
        raise InvalidImageError(f"{name} is a {file_format} image{_ELSEWHERE} {_supported(limits)}")
    if file_format == "TIFF" and _PILLOW < _TIFF_SINCE:
        installed, needed = (".".join(map(str, version)) for version in (_PILLOW, _TIFF_SINCE))
        raise InvalidImageError(
            f"{name} is a TIFF image, and Pillow {installed} may put pieces of memory into those; Pillow {needed} is "
            f"needed. Convert it to PNG, or, if the web app is not installed: pip install 'pillow>={needed}'"
        )


def _supported(limits: ImageLimits) -> str:
    """List the formats that are read, as a sentence."""
    sound = [each for each in limits.formats if each != "TIFF" or _PILLOW >= _TIFF_SINCE]
    *names, last = ({"WEBP": "WebP"}.get(each, each) for each in sound)
    return f"Supported are {', '.join(names)} and {last}."


def _decode(image: Image.Image, name: str, limits: ImageLimits) -> tuple[list[Image.Image], int]:
    """Check the size, then decode: red, green and blue as they are stored, and the EXIF orientation."""
    _check_size(image.width, image.height, name, limits)
    try:
        with _pillow_quiet():
            # MPO is a photo with a depth map or the like, not an animation
            animated = image.format != "MPO" and getattr(image, "is_animated", False)
            image.load()
            planes = _to_planes(image, name, limits)
            orientation = _orientation(image)
    except InvalidImageError:
        raise
    except Exception as e:  # see `open_image`
        raise InvalidImageError(f"{name} is damaged or incomplete: {e}. Save or download it again.") from e
    if animated:
        logger.warning("%s has several frames; only the first one is used.", name)
    return planes, orientation


def _upright(planes: list[Image.Image], orientation: int) -> Image.Image:
    """Merge three planes into a new image, which has no metadata, and turn it upright."""
    if orientation in _UPRIGHT:
        for i in range(3):  # one by one, to free the old ones
            planes[i] = planes[i].transpose(_UPRIGHT[orientation])
    return Image.merge("RGB", planes)


def _to_planes(image: Image.Image, name: str, limits: ImageLimits) -> list[Image.Image]:
    """Convert any mode to red, green and blue: through a sound colour profile, with transparency over white.

    The planes take 3 bytes a pixel, beside up to 4 of `image`; a copy of mode RGB would take 4.
    """
    transform = None
    if profile := image.info.get("icc_profile"):
        if image.width * image.height > limits.max_table_pixels and _TABLES.search(profile, 128, 128 + 4 + 100 * 12):
            raise InvalidImageError(
                f"{name} is a picture of {image.width * image.height / 1e6:.0f} megapixels whose colour profile is a "
                f"table; at most {limits.max_table_pixels / 1e6:.0f} are read of this kind. Save it in sRGB."
            )
        transform = _profile_transform(profile, _without_alpha(image.crop((0, 0, 1, 1)))[0])
    planes = [Image.new("L", image.size) for _ in range(3)]
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        colours, alpha = _without_alpha(image.crop(box))
        rgb = ImageCms.applyTransform(colours, transform) if transform else colours.convert("RGB")
        assert rgb is not None  # only `inPlace=True` returns None
        if alpha is not None:
            white = Image.new("RGB", rgb.size, "white")
            white.paste(rgb, mask=alpha)
            rgb = white
        for plane, band in zip(planes, rgb.split()):
            plane.paste(band, box)
    return planes


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split an image of any mode into its colours, and its transparency if there is any."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_to_grey(image)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode[:-1] + "A")
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "LA" else "RGBA")
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if image.mode in ("P", "PA", "1"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return image, None


def _profile_transform(profile: bytes, sample: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Make the transform of an ICC profile to sRGB; `None` if it is sRGB, broken, or does not fit."""
    try:
        if len(profile) > _MAX_PROFILE_BYTES or b"mpet" in profile:  # a program of any length, run for each colour
            raise ValueError(f"it is too complex ({len(profile):,} bytes)")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if sample.mode == "RGB" and ImageCms.getProfileDescription(source).startswith("sRGB"):
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), sample.mode, "RGB")
        ImageCms.applyTransform(sample, transform)
    except Exception as e:  # see `open_image`
        logger.warning("The colour profile of the image cannot be used and is ignored: %s", e)
        return None
    return transform


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit or floating point grey to 8 bits."""
    pixels = np.asarray(image)
    if image.mode == "F":
        return Image.fromarray(_to_levels(pixels))
    if pixels.min() < 0 or pixels.max() > 65535:
        raise InvalidImageError(
            f"The image has 32-bit levels from {pixels.min()} to {pixels.max()}; save it with 8 or 16 bits."
        )
    return Image.fromarray(_to_levels(pixels.astype(np.uint16)))


def _to_levels(pixels: np.ndarray) -> np.ndarray:
    """Convert uint16, or floating point in [0, 1], to uint8."""
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    low, high = float(pixels.min()), float(pixels.max())  # both are NaN if one pixel is
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise InvalidImageError(
            f"Floating point images must be finite and in [0, 1], got {low:.6g} to {high:.6g}; "
            "divide 0..255 by 255, map [-1, 1] with (x + 1) / 2."
        )
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _from_array(array: np.ndarray, limits: ImageLimits) -> Image.Image:
    """Convert (H, W) or (H, W, 1 | 3 | 4) to RGB."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InvalidImageError(
            f"An array must be (H, W) or (H, W, 1 | 3 | 4), got shape {array.shape}; move the channels to the end."
        )
    _check_size(array.shape[1], array.shape[0], "The array", limits)
    if array.dtype.kind != "f" and array.dtype not in (np.uint8, np.uint16):
        raise InvalidImageError(
            f"An array must be uint8, uint16 or floating point in [0, 1], got {array.dtype}; convert it with `astype`."
        )
    pixels = array if array.dtype == np.uint8 else _to_levels(array)
    image = Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels))
    return _upright(*_decode(image, "The array", limits))


def _check_size(width: int, height: int, name: str, limits: ImageLimits) -> None:
    if min(width, height) < MIN_SIDE:
        raise InvalidImageError(f"{name} is too small: {width} x {height} pixels, at least {MIN_SIDE} a side needed.")
    if max(width, height) > MAX_SIDE or width * height > limits.max_pixels:
        raise InvalidImageError(f"{name} is too large: {width} x {height} pixels, {_at_most(limits)}")


def _at_most(limits: ImageLimits) -> str:
    return f"at most {MAX_SIDE} a side and {limits.max_pixels / 1e6:.0f} megapixels are read; shrink it first."


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8. It is 1 if there is none or the EXIF block is broken."""
    try:
        exif = image.info.get("exif", b"")
        if not exif and "Raw profile type exif" in image.info:  # ImageMagick's, in a PNG
            exif = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        if fault := exif_fault(exif):
            raise ValueError(f"it has {fault}")
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as e:  # see `open_image`
        logger.warning("The EXIF block of the image is broken and ignored: %s", e)
        return 1


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Silence Pillow's warnings about bombs and corrupt EXIF, which are raised or logged here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
