"""The cost of decoding a picture, read from its file before a decoder runs.

Pillow checks the width and the height. A small file can also declare many scans of a JPEG, chunks, entries of an EXIF
block or compressed texts, which cost memory and time. Each has a bound, far above what cameras and programs write.
"""

import re
import struct
from dataclasses import dataclass

MAX_SCANS = 100  # of a JPEG; programs write about 10
MAX_PARTS = 10_000  # segments of a JPEG, chunks of a PNG or a WebP
_MIN_DATA = 1024  # smaller chunks of pixels of a PNG count as parts; libpng writes 8 kB each
MAX_EXIF_BYTES = 131_072  # twice JPEG's own limit
MAX_EXIF_ENTRIES = 100  # of the first directory; cameras write about 20
_MAX_TEXTS = 16  # chunks of a PNG that Pillow unpacks to 1 MB each, and 4 MB in memory
_MAX_PHOTOSHOP = 64  # segments of a JPEG that Pillow takes apart entry by entry
_MAX_JUNK = 65_536  # bytes between the segments of a JPEG
_WEBP_BYTES = 20  # a pixel: the decoder keeps several canvases
_CODE_BYTES = 12_000  # lossless: each block of 4 x 4 pixels may have its set of Huffman codes, up to 65,536 sets

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # not stuffing, restarts or fill bytes
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; with Huffman codes
_RARE_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_SCAN, _END = 0xDA, 0xD9
_HEADER = (*_FRAMES, 0xC4, 0xDB, 0xDD, 0xFE, _SCAN, *range(0xE0, 0xF0))  # what may stand before the first scan


@dataclass(frozen=True)
class Cost:
    """What decoding takes, where it is more than the usual 7 bytes a pixel."""

    kind: str = "picture"  # of file, for messages
    memory: int = 0  # bytes at the peak, the result included; 0 means the usual
    scans: int = 1  # how often a JPEG's decoder reads the whole picture
    size: tuple[int, int] | None = None  # width and height; `None` leaves them to Pillow


def cost_of(data: bytes, file_format: str) -> Cost:
    """Read the cost of decoding a file of a format, by Pillow's name.

    Raises:
        ValueError: If it declares more than any honest picture, is of a kind that few programs write, or is damaged.
            The message says what the file does, to follow its name.
    """
    if file_format == "JPEG":
        return _cost_of_jpeg(data)
    if file_format == "PNG":
        _check_png(data)
    elif file_format == "WEBP":
        return _cost_of_webp(data)
    return Cost()


def exif_fault(block: bytes) -> str:
    """Say why an EXIF block (or a list of pictures, MPF) costs too much to read; "" if it does not."""
    if len(block) > MAX_EXIF_BYTES:
        return f"{len(block):,} bytes, and at most {MAX_EXIF_BYTES:,} are read"
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return ""  # Pillow ignores it
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start) if start + 2 <= len(block) else (0,)
    return f"{count} entries, and at most {MAX_EXIF_ENTRIES} are read" if count > MAX_EXIF_ENTRIES else ""


def _cost_of_jpeg(data: bytes) -> Cost:
    """Read the segments as libjpeg does, to the end of the first picture."""
    frame, exif, whole, progressive = b"", b"", True, False
    position, scans, junk, photoshop = 2, 0, 0, 0
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, position)
        if found is None:
            break  # truncated: the decoder reports it
        marker, start = data[found.end() - 1], found.end()
        if not scans:
            junk += found.start() - position
            if junk > _MAX_JUNK:
                raise ValueError("is damaged: it has other data between the parts of a JPEG.")
            if marker in _RARE_FRAMES:
                raise ValueError("is a lossless or arithmetic JPEG; save it as an ordinary JPEG.")
            if marker not in _HEADER:
                raise ValueError(f"is not an image, or damaged: a JPEG has no part {marker:#x} there.")
        if marker == _END:
            break
        if marker in (0x01, 0xD8):  # without a length; libjpeg skips the first and refuses the second
            position = start
            continue
        length = max(int.from_bytes(data[start : start + 2], "big"), 2)
        body, position = data[start + 2 : start + length], start + length
        if marker == _SCAN:
            if not scans:
                whole = bool(frame) and body[:1] == frame[5:6]
            scans += 1
            if scans > MAX_SCANS:
                raise ValueError(f"is a progressive JPEG of more than {MAX_SCANS} scans; save it as an ordinary JPEG.")
        elif scans:
            continue
        elif marker in _FRAMES:
            if frame or len(body) < 6 or len(body) < 6 + 3 * body[5]:
                raise ValueError("is damaged: its JPEG has two frames, or an incomplete one.")
            frame, progressive = body, marker == 0xC2
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif += body[6 if exif else 0 :]
            _check_block(exif, "EXIF block")
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            _check_block(body[4:], "MPF block")
        elif marker == 0xED:
            photoshop += 1
            if photoshop > _MAX_PHOTOSHOP:
                raise ValueError("has too much metadata of Photoshop. Save the photo again without it.")
    else:
        raise ValueError(f"has more than {MAX_PARTS:,} parts; save it as an ordinary JPEG.")
    if not frame:
        raise ValueError("is not an image, or damaged: it starts like a JPEG, but holds no picture.")
    height, width, count = struct.unpack_from(">HHB", frame, 1)
    factors = [(each >> 4, each & 15) for each in frame[7 : 6 + 3 * count : 3]]
    full = max((h for h, _ in factors), default=1) * max((v for _, v in factors), default=1)
    samples = sum(h * v for h, v in factors) / max(full, 1)
    if progressive or not whole:  # all coefficients, of 2 bytes each, are in memory at once
        memory = int(width * height * ((1 if count == 1 else 4) + 2 * samples))
        return Cost("progressive JPEG", memory, scans, (width, height))
    return Cost("JPEG", scans=scans, size=(width, height))


def _check_png(data: bytes) -> None:
    position, texts, parts = 8, 0, 0
    while parts < MAX_PARTS:
        if position + 8 > len(data):
            return  # truncated: the decoder reports it
        length, kind = struct.unpack_from(">I4s", data, position)
        parts += kind != b"IDAT" or length < _MIN_DATA
        texts += kind in (b"zTXt", b"iTXt")
        if texts > _MAX_TEXTS:
            raise ValueError(f"holds more than {_MAX_TEXTS} compressed texts; save it as a PNG without metadata.")
        if kind == b"IEND":
            return
        position += 12 + length
    raise ValueError(f"has more than {MAX_PARTS:,} parts; save it as an ordinary PNG.")


def _cost_of_webp(data: bytes) -> Cost:
    position, lossless = 12, False
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        inner = data[position + 24 : position + 28] if kind == b"ANMF" else kind
        lossless |= inner in (b"VP8L", b"ALPH")
        position += 8 + length + length % 2
    else:
        raise ValueError(f"has more than {MAX_PARTS:,} parts; save it as a WebP without animation, or a PNG.")
    start, bits = data[12:16], int.from_bytes(data[21:25], "little")
    if start == b"VP8X":
        width, height = (1 + int.from_bytes(data[k : k + 3], "little") for k in (24, 27))
    elif start == b"VP8L":
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(data[k : k + 2], "little") & 0x3FFF for k in (26, 28))
    memory = _WEBP_BYTES * width * height
    if lossless:
        memory += _CODE_BYTES * min(width * height // 16, 65_536)
    return Cost("lossless or transparent WebP" if lossless else "WebP", memory, size=(width, height))


def _check_block(block: bytes, what: str) -> None:
    if fault := exif_fault(block):
        raise ValueError(f"has an {what} of {fault}. Save the photo again without its metadata.")
