"""Pictures that do harm: broken ones, the same in every run, and bombs, which cost far more than they weigh."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image, ImageCms

_TURNED = Image.Exif()
_TURNED[0x0112] = 6
_TEXT = zlib.compress(("\N{PILE OF POO}" + "a" * 1_000_000).encode(), 9)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def seeds(photo: Image.Image) -> list[tuple[str, bytes]]:
    """Sound files of each format and of several kinds of each."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    meta: dict[str, object] = {"exif": _TURNED, "icc_profile": profile}
    frames: dict[str, object] = {"save_all": True, "append_images": [photo.rotate(90)]}
    palette = {"transparency": bytes(range(256))}
    kinds: list[tuple[str, str, dict[str, object]]] = [
        ("JPEG", "RGB", {"quality": 80, **meta}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {"restart_marker_rows": 1}),
        ("JPEG", "L", {}),
        ("MPO", "RGB", frames),
        ("PNG", "RGB", meta),
        ("PNG", "RGBA", {}),
        ("PNG", "P", palette),
        ("PNG", "I;16", {}),
        ("APNG", "RGB", frames),
        ("WEBP", "RGB", meta),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", frames),
        ("GIF", "RGB", frames),
        ("TIFF", "RGB", {"compression": "jpeg"}),
        ("TIFF", "RGB", {}),
        ("BMP", "RGB", {}),
    ]
    files = []
    for name, mode, options in kinds:
        image = photo.convert("L") if mode == "I;16" else photo
        files.append((name, encode(image.convert(mode), name.removeprefix("A"), **options)))
    return files


def broken(files: list[tuple[str, bytes]], count: int, seed: int = 0) -> Iterator[bytes]:
    """Broken copies of sound files."""
    drawn = random.Random(seed)
    for k in range(count):
        data = files[k % len(files)][1]
        for _ in range(drawn.randint(1, 3)):
            data = drawn.choice((_flip, _flip_header, _cut, _replace, _number))(bytearray(data), drawn)
        yield data


def _flip(data: bytearray, drawn: random.Random, most: int = 12, size: int | None = None) -> bytes:
    for _ in range(drawn.randint(1, most)):
        data[drawn.randrange(len(data[:size]))] = drawn.choice((0, 1, 127, 128, 255, drawn.randrange(256)))
    return bytes(data)


def _flip_header(data: bytearray, drawn: random.Random) -> bytes:
    return _repaired(_flip(data, drawn, 6, 200))


def _cut(data: bytearray, drawn: random.Random) -> bytes:
    return bytes(data[: drawn.randrange(1, len(data))])


def _replace(data: bytearray, drawn: random.Random) -> bytes:
    """Remove, double or insert bytes."""
    start, size = drawn.randrange(len(data)), drawn.randint(0, 64)
    data[start : start + size] = drawn.choice((b"", drawn.randbytes(size), data[start : start + 200], bytes(300)))
    return bytes(data) or b"\0"


def _number(data: bytearray, drawn: random.Random) -> bytes:
    """Write a size, a count or an offset that is not true."""
    width = drawn.choice((2, 4))
    value = drawn.choice((0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)) & (256**width - 1)
    start = drawn.randrange(max(1, min(len(data) - width, 400)))
    data[start : start + width] = value.to_bytes(width, drawn.choice(("big", "little")))
    return _repaired(bytes(data))


def _repaired(data: bytes) -> bytes:
    """Put the check sums of a PNG right, so that what is wrong with it goes farther in."""
    if data[:4] != b"\x89PNG":
        return data
    whole, position = data[:8], 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        whole += data[position:end] + struct.pack(">I", zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return whole


def bombs() -> dict[str, Callable[[], bytes]]:
    """What each does, and how to build it. All are sound files of at most 20 MB."""
    return {
        "PNG with a palette and transparency, 64 Mpx": lambda: png(8000, 8000, 3, 8, before=_PALETTE),
        "PNG of 16 bits with alpha, 40 Mpx": lambda: png(8000, 5000, 6, 16),
        "PNG, interlaced, with alpha, 40 Mpx": lambda: png(8000, 5000, 6, 8, interlaced=True),
        "PNG with 1.6 million chunks": lambda: png(64, 64, 2, 8, before=chunk(b"prVt", b"") * 1_600_000),
        "PNG with 60 MB of compressed text": lambda: png(
            8000, 5000, 2, 8, before=b"".join(chunk(b"iTXt", b"k%d\0\1\0\0\0" % k + _TEXT) for k in range(60))
        ),
        "PNG with 15 MB of EXIF headers": lambda: png(64, 64, 2, 8, before=chunk(b"eXIf", b"Exif\0\0" * 2_500_000)),
        "PNG with EXIF entries that share 1 MB": lambda: png(
            64, 64, 2, 8, before=chunk(b"eXIf", directory(60_000, 10**6))
        ),
        "JPEG of 20,000 scans": lambda: jpeg_of_scans(2000, 2000, 20_000),
        "JPEG of 100 scans, 40 Mpx": lambda: jpeg_of_scans(8000, 5000, 100),
        "JPEG, CMYK, turned, 40 Mpx": lambda: jpeg(8000, 5000, "CMYK", exif=_TURNED),
        "JPEG with 19 MB of fill bytes": lambda: after_start(jpeg(64, 64), b"\xff" * 19_000_000),
        "JPEG with EXIF entries that share 30 kB": lambda: after_start(
            jpeg(64, 64), segment(0xE1, b"Exif\0\0" + directory(2000, 30_000))
        ),
        "JPEG with 19 MB of Photoshop entries": lambda: after_start(
            jpeg(8000, 5000), segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5460) * 290
        ),
        "WebP, lossless, 268 Mpx": lambda: webp(16383, 16383),
        "WebP, lossless, 40 Mpx": lambda: webp(8000, 5000),
        "WebP with 65,536 Huffman codes": lambda: webp_of_codes(1024, 1024),
        "WebP with 300,000 frames": lambda: webp_animation(300_000),
    }


def png(width: int, height: int, colour: int, depth: int, before: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG, all of it zero; `colour` is PNG's own number."""
    bits = {0: 1, 2: 3, 3: 1, 6: 4}[colour] * depth
    passes = [(width, height)]
    if interlaced:
        steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        passes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in steps]
    packer = zlib.compressobj(9)
    rows = [(1 + -(-across * bits // 8), down) for across, down in passes]
    data = b"".join(packer.compress(bytes(row)) for row, count in rows for _ in range(count)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_PALETTE = chunk(b"PLTE", bytes(range(256)) * 3) + chunk(b"tRNS", bytes(range(256)))


def directory(entries: int, size: int) -> bytes:
    """An EXIF block whose entries all point to the same bytes."""
    start = 8 + 2 + 12 * entries + 4
    rows = b"".join(struct.pack("<HHII", k, 1, size, start) for k in range(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + rows + bytes(4) + bytes(size)


def jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    return encode(Image.new(mode, (width, height), 90 if mode == "L" else (90,) * len(mode)), "JPEG", **options)


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = jpeg(width, height, progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def after_start(data: bytes, more: bytes) -> bytes:
    return data[:2] + more + data[2:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", min(len(body) + 2, 0xFFFF)) + body[:0xFFFD]


def webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour, a few dozen bytes."""
    return _riff(b"VP8L", _bits((0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 4), (0, 3), *([(1, 4)] * 5)))


def webp_of_codes(width: int, height: int) -> bytes:
    """A lossless WebP in which every block of 4 x 4 pixels brings Huffman codes of its own."""
    blocks = width // 4 * (height // 4)
    values = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 4), (0, 1), (0, 1), (1, 1), (0, 3)]
    # The image of the codes' numbers: no colour cache, then codes of green, red, blue, alpha, distance.
    values += [(0, 1), *_flat(280), *_flat(256), (1, 4), (1, 4), (1, 4)]
    for k in range(blocks):  # codes go highest bit first
        values += [(int(f"{k & 255:08b}"[::-1], 2), 8), (int(f"{k >> 8:08b}"[::-1], 2), 8)]
    return _riff(b"VP8L", _bits(*values, *([(1, 4)] * (5 * blocks))))


def _flat(symbols: int) -> list[tuple[int, int]]:
    """A Huffman code in which the first 256 symbols have 8 bits each and the others none."""
    order = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8)  # of the code for the lengths: 0 and 8 have one bit each
    values = [(0, 1), (len(order) - 4, 4), *((int(each in (0, 8)), 3) for each in order)]
    values += [(1, 1), (3, 3), (256 - 2, 8)] if symbols > 256 else [(0, 1)]  # how many lengths are told
    return values + [(1, 1)] * 256


def webp_animation(frames: int, width: int = 5000, height: int = 3000) -> bytes:
    """Frames of 16 x 16 pixels on a large canvas."""
    one = webp(16, 16)[12:]
    frame = b"ANMF" + struct.pack("<I", 16 + len(one)) + bytes(6) + b"\x0f\0\0" * 2 + b"\x0a\0\0\0" + one
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    canvas = b"VP8X" + struct.pack("<IB3x", 10, 2) + size
    return _wrap(canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + frame * frames)


def _riff(kind: bytes, data: bytes) -> bytes:
    return _wrap(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2))


def _wrap(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _bits(*values: tuple[int, int]) -> bytes:
    """Numbers of some bits each, the lowest bit first."""
    word, filled, out = 0, 0, bytearray()
    for value, width in values:
        word |= value << filled
        filled += width
        while filled >= 8:
            out.append(word & 255)
            word, filled = word >> 8, filled - 8
    return bytes(out) + bytes((word,)) + bytes(8)
