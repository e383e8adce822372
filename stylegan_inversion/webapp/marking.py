"""Pictures that say what they are: made or changed by an AI model, in the words that photo software and the web read.

The mark is IPTC's `DigitalSourceType` (cv.iptc.org/newscodes/digitalsourcetype) in an XMP packet, beside a plain
sentence. It is metadata: it survives copying, not a screenshot.
"""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin

Kind = Literal["edited", "generated"]

MAX_BYTES = 5_000_000  # of an animation; it is made smaller until it fits
SOFTWARE = "stylegan-inversion"

_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_SOURCES = {
    "edited": f"{_VOCABULARY}compositeWithTrainedAlgorithmicMedia",
    "generated": f"{_VOCABULARY}trainedAlgorithmicMedia",
}
_SENTENCES = {
    "edited": "AI-edited: the face in this picture was changed with a StyleGAN2 model.",
    "generated": "AI-generated: this face was drawn by a StyleGAN2 model and belongs to nobody.",
}
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/">
<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{sentence}</rdf:li></rdf:Alt></dc:description>
<xmp:CreatorTool>{software}</xmp:CreatorTool>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
_SOURCE_TYPE = re.compile(rb"<Iptc4xmpExt:DigitalSourceType>([^<]+)</")

# XMP in GIF (XMP specification part 3, 1.1.2): the packet stands bare, where blocks with lengths should be; the trailer
# of 258 bytes leads a reader that takes any of its bytes for a length to the end, a zero.
_GIF_XMP = b"\x21\xff\x0bXMP DataXMP"
_GIF_TRAILER = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"

_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
_DITHER = (_BAYER * 0.75 - 5.6).round().astype(np.int16)  # 12 of 255 levels, about the distance of two colours


def save_marked(image: Image.Image, folder: Path, *, name: str, kind: Kind, lossy: bool = False) -> Path:
    """Write a PNG or a JPEG that says it is AI's work and carries no other metadata.

    Args:
        image: The picture.
        folder: Where to write it; made if needed. Nothing in there is overwritten.
        name: Name of the file, with or without ".png": letters, digits, "-" and "_".
        kind: "edited" is a photo with an edited face, "generated" a face of nobody.
        lossy: Write a JPEG, which is quicker and smaller, to be looked at.

    Returns:
        Path of the file.

    Raises:
        ValueError: If `name` or `kind` is not as above.
        FileExistsError: If there is such a file.
    """
    path = _path(folder, name, kind, "jpg" if lossy else "png")
    if lossy:
        with path.open("xb") as file:
            _bare(image).save(file, "JPEG", quality=92, subsampling=0, xmp=_xmp(kind).encode())
        return path
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", _xmp(kind))
    info.add_text("Software", SOFTWARE)
    info.add_text("Description", _SENTENCES[kind])
    with path.open("xb") as file:
        _bare(image).save(file, "PNG", pnginfo=info)
    return path


def save_animation(
    frames: Sequence[Image.Image], folder: Path, *, name: str, kind: Kind, seconds: float = 2.0, boomerang: bool = True
) -> Path:
    """Write a GIF that loops, says it is AI's work, and has at most 5 MB; it is made smaller for that if needed.

    Args:
        frames: The pictures, of one size.
        folder: Where to write it; made if needed. Nothing in there is overwritten.
        name: Name of the file, with or without ".gif": letters, digits, "-" and "_".
        kind: As in `save_marked`.
        seconds: From the first frame to the last; a frame stays for 0.02 s at least.
        boomerang: Also go back from the last frame to the first.

    Returns:
        Path of the file.

    Raises:
        ValueError: If `name`, `kind` or `seconds` is not as above, or there are no frames, or of several sizes.
        FileExistsError: If there is such a file.
    """
    if not frames:
        raise ValueError("`frames` must hold at least one picture, got none.")
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        raise ValueError(f"`frames` must be of one size, got {sizes}: resize them first.")
    if not 0 < seconds < 60:
        raise ValueError(f"`seconds` must be in (0, 60), got {seconds}.")
    path = _path(folder, name, kind, "gif")
    pictures = [_bare(frame) for frame in frames]
    duration = max(20, 10 * round(100 * seconds / len(frames)))  # milliseconds; GIF counts hundredths of a second
    while True:
        data = _gif(pictures, kind, duration, boomerang)
        if len(data) <= MAX_BYTES or max(pictures[0].size) <= 64:
            break
        smaller = min(0.9, 0.95 * math.sqrt(MAX_BYTES / len(data)))
        width, height = (max(1, round(side * smaller)) for side in pictures[0].size)
        pictures = [_bare(frame).resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    with path.open("xb") as file:
        file.write(data)
    return path


def read_mark(path: Path) -> str | None:
    """The `DigitalSourceType` that a PNG, JPEG or GIF carries, from IPTC's vocabulary; `None` if it has none."""
    data = Path(path).read_bytes()
    if data.startswith(b"GIF8"):
        start = data.find(_GIF_XMP)
        packet = data[start : data.find(_GIF_TRAILER, start)] if start >= 0 else b""
    elif data.startswith(b"\x89PNG"):
        with Image.open(path, formats=["PNG"]) as image:
            packet = str(image.info.get("XML:com.adobe.xmp", "")).encode()
    elif data.startswith(b"\xff\xd8"):
        with Image.open(path, formats=["JPEG"]) as image:
            packet = bytes(image.info.get("xmp", b""))
    else:
        return None
    found = _SOURCE_TYPE.search(packet)
    return found[1].decode("utf-8", "replace") if found else None


def _gif(pictures: Sequence[Image.Image], kind: Kind, duration: int, boomerang: bool) -> bytes:
    """All frames in one palette, and the mark."""
    palette = _shared_palette(pictures)
    indexed = [_dithered(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    if boomerang:
        indexed += indexed[-2:0:-1]
    first, *others = indexed
    options = {"comment": _SENTENCES[kind].encode(), "duration": duration, "loop": 0, "optimize": True}
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, **options)
    data = buffer.getvalue()
    return data[:-1] + _GIF_XMP + _xmp(kind).encode() + _GIF_TRAILER + data[-1:]  # the last byte ends a GIF


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
    copy = image.convert("RGB").copy()
    copy.info = {}
    return copy


def _xmp(kind: Kind) -> str:
    return _XMP.format(source=_SOURCES[kind], sentence=_SENTENCES[kind], software=SOFTWARE)


def _path(folder: Path, name: str, kind: Kind, suffix: str) -> Path:
    stem = name.removesuffix(f".{suffix}")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", stem):
        raise ValueError(f"`name` must be letters, digits, '-' and '_', got {name!r}.")
    if kind not in _SOURCES:
        raise ValueError(f"`kind` must be one of {list(_SOURCES)}, got {kind!r}.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / f"{stem}.{suffix}"
