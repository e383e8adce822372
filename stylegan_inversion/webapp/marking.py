"""Pictures that say what they are: made or changed by an AI model, in the words that photo software and the web read.

The mark is IPTC's `DigitalSourceType` (cv.iptc.org/newscodes/digitalsourcetype) in an XMP packet. It is metadata: it
survives copying, not a screenshot. No other metadata is written.
"""

import dataclasses
import io
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin

from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.pipelines.output import InversionOutput

Kind = Literal["photo", "edited", "generated"]  # as it came; a photo with an edited face; a face of nobody

OF_NOBODY = {"truncation", "source"}  # in the reports of what no photo shows
MAX_GIF_BYTES = 5_000_000  # an animation is made smaller until it fits
SOFTWARE = "stylegan-inversion"

_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_MARKS = {
    "edited": (
        f"{_VOCABULARY}compositeWithTrainedAlgorithmicMedia",
        "AI-edited: a part of this picture was changed with a StyleGAN2 model.",
    ),
    "generated": (
        f"{_VOCABULARY}trainedAlgorithmicMedia",
        "AI-generated: a StyleGAN2 model drew this, which shows nobody and nothing real.",
    ),
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

# XMP in GIF (XMP specification part 3, 1.1.2): the packet stands bare, where blocks with lengths should be; the trailer
# of 258 bytes leads a reader that takes any of its bytes for a length to the end, a zero.
_GIF_XMP = b"\x21\xff\x0bXMP DataXMP"
_GIF_TRAILER = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
_MP4_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # the uuid of XMP's box, part 3, 2.3

_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
_DITHER = (_BAYER * 0.75 - 5.6).round().astype(np.int16)  # 12 of 255 levels, about the distance of two colours


def encode(image: Image.Image, kind: Kind, *, png: bool = False) -> bytes:
    """Write a PNG or a JPEG that says it is AI's work; a "photo" that nothing changed has no mark."""
    buffer, bare = io.BytesIO(), _bare(image)
    if not png:
        bare.save(buffer, "JPEG", quality=92, subsampling=0, **({} if kind == "photo" else {"xmp": _xmp(kind)}))
        return buffer.getvalue()
    info = PngImagePlugin.PngInfo()
    if kind != "photo":
        info.add_itxt("XML:com.adobe.xmp", _xmp(kind).decode())
        info.add_text("Software", SOFTWARE)
        info.add_text("Description", _MARKS[kind][1])
    bare.save(buffer, "PNG", pnginfo=info, compress_level=1, compress_type=3)  # a quarter of the time, no larger
    return buffer.getvalue()


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
    packet = _MP4_XMP + _xmp(kind)
    return buffer.getvalue() + (8 + len(packet)).to_bytes(4, "big") + b"uuid" + packet


def _gif(pictures: Sequence[Image.Image], kind: Kind, duration: int) -> bytes:
    """All frames in one palette, there and back, and the mark."""
    palette = _shared_palette(pictures)
    first, *others = [_dithered(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    options = {"duration": duration, "loop": 0, "optimize": True, "comment": _MARKS[kind][1].encode()}
    first.save(buffer, "GIF", save_all=True, append_images=[*others, *others[-2::-1]], **options)
    data = buffer.getvalue()
    return data[:-1] + _GIF_XMP + _xmp(kind) + _GIF_TRAILER + data[-1:]  # the last byte ends a GIF


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


def _xmp(kind: Kind) -> bytes:
    source, sentence = _MARKS[kind]
    return _XMP.format(source=source, sentence=sentence, software=SOFTWARE).encode()


def kind_of(out: InversionOutput) -> Kind:
    """How a picture has to be marked."""
    return "generated" if OF_NOBODY & out.reports[0].keys() else "edited"


def as_edit(out: InversionOutput) -> InversionOutput:
    """The same as an edit of a photo, whatever its report says."""
    return dataclasses.replace(out, reports=[{k: v for k, v in out.reports[0].items() if k not in OF_NOBODY}])
