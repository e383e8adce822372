"""Pictures and animations with the mark of AI's work in their XMP (`pipelines/receipts.py`), and no other metadata."""

import dataclasses
import io
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.receipts import FORMATS, MARKS, OF_NOBODY, PICTURES, Kind, Receipt, kind_of, mark
from stylegan_inversion.preprocessing.image import encode_image

MAX_GIF_BYTES = 5_000_000  # an animation is made smaller until it fits

# XMP in GIF (XMP specification part 3, 1.1.2): the packet stands bare, where blocks with lengths should be; the trailer
# of 258 bytes leads a reader that takes any of its bytes for a length to the end, a zero.
_GIF_XMP = b"\x21\xff\x0bXMP DataXMP"
_GIF_TRAILER = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
_MP4_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # the uuid of XMP's box, part 3, 2.3

_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
_DITHER = (_BAYER * 0.75 - 5.6).round().astype(np.int16)  # 12 of 255 levels, about the distance of two colours


def encode(image: Image.Image, kind: Kind, *, png: bool = False, receipt: Receipt | None = None) -> bytes:
    """Write a PNG or a JPEG that says it is AI's work, perhaps with its receipt; a "photo" has neither."""
    buffer = io.BytesIO()
    quick = {"compress_level": 1, "compress_type": 3}  # a quarter of the time, no larger
    options = quick if png else FORMATS["JPEG"]
    encode_image(_bare(image), buffer, "PNG" if png else "JPEG", xmp=mark(kind, receipt), **options)
    return buffer.getvalue()


def encode_picture(out: InversionOutput, picture: str, *, png: bool | None = None) -> tuple[bytes, str]:
    """Write a picture of `PICTURES` with its receipt, and give the suffix; a large one becomes a JPEG unless told."""
    image = PICTURES[picture](out, "move")
    png = image.width * image.height <= 1_000_000 if png is None else png  # a photo's PNG is many times its JPEG
    data = encode(image, kind_of(out), png=png, receipt=Receipt.of(out, picture, image))
    return data, ".png" if png else ".jpg"


def encode_gif(frames: Sequence[Image.Image], kind: Kind, *, seconds: float = 2.0) -> bytes:
    """Write a GIF that goes there and back for ever, at most 5 MB; it is made smaller for that if needed."""
    pictures = [_bare(frame) for frame in frames]
    duration = max(20, 10 * round(100 * seconds / len(frames)))  # milliseconds; GIF counts hundredths of a second
    while True:
        data = _gif(pictures, kind, duration)
        if len(data) <= MAX_GIF_BYTES or max(pictures[0].size) <= 64:
            return data
        smaller = min(0.9, 0.95 * math.sqrt(MAX_GIF_BYTES / len(data)))
        width, height = (max(1, round(side * smaller)) for side in pictures[0].size)
        pictures = [_bare(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]


def encode_mp4(frames: Sequence[Image.Image], kind: Kind, *, seconds: float = 2.0) -> bytes:
    """Write an MP4 (H.264) that goes there and back three times.

    Raises:
        MissingDependencyError: If PyAV is not installed.
    """
    try:
        import av
    except ImportError as e:
        raise MissingDependencyError.of_extra("MP4 needs PyAV (`av`).", "app") from e
    width, height = (side - side % 2 for side in frames[0].size)  # H.264's colours go in pairs
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(len(frames) / seconds).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in [*frames, *frames[-2:0:-1]] * 3:
            container.mux(stream.encode(av.VideoFrame.from_image(_bare(frame).crop((0, 0, width, height)))))
        container.mux(stream.encode())
    packet = _MP4_XMP + (mark(kind) or b"")
    return buffer.getvalue() + (8 + len(packet)).to_bytes(4, "big") + b"uuid" + packet


def _gif(pictures: Sequence[Image.Image], kind: Kind, duration: int) -> bytes:
    """All frames in one palette, there and back, and the mark."""
    palette = _shared_palette(pictures)
    first, *others = [_dithered(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    options = {"duration": duration, "loop": 0, "optimize": True, "comment": MARKS[kind][1].encode()}
    first.save(buffer, "GIF", save_all=True, append_images=[*others, *others[-2::-1]], **options)
    data = buffer.getvalue()
    return data[:-1] + _GIF_XMP + (mark(kind) or b"") + _GIF_TRAILER + data[-1:]  # the last byte ends a GIF


def _shared_palette(pictures: Sequence[Image.Image], *, count: int = 5, side: int = 64) -> Image.Image:
    """A palette of 255 colours for all frames, so that none flickers; the 256th is for what does not change."""
    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, count).round().astype(int)]
    mosaic = Image.new("RGB", (side, side * count))
    for i, picture in enumerate(chosen):
        mosaic.paste(picture.resize((side, side), Image.Resampling.BILINEAR), (0, side * i))
    return mosaic.quantize(255, method=Image.Quantize.MEDIANCUT)


def _dithered(picture: Image.Image) -> Image.Image:
    """Add an ordered pattern; unlike error diffusion it stands still where the picture does, and packs well."""
    width, height = picture.size
    pattern = np.tile(_DITHER, (height // 4 + 1, width // 4 + 1))[:height, :width, None]
    return Image.fromarray((np.asarray(picture) + pattern).clip(0, 255).astype(np.uint8))


def _bare(image: Image.Image) -> Image.Image:
    """A copy without any metadata."""
    copy = image.convert("RGB")
    copy.info = {}
    return copy


def as_edit(out: InversionOutput) -> InversionOutput:
    """The same as an edit of a photo, whatever its report says."""
    return dataclasses.replace(out, reports=[{k: v for k, v in out.reports[0].items() if k not in OF_NOBODY}])
