"""Reads the mark of AI's work in a file, as other software does."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MP4_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def read_mark(path: Path) -> str | None:
    """IPTC's `DigitalSourceType` in a PNG, JPEG, GIF or MP4; `None` if it has none."""
    data = Path(path).read_bytes()
    if data.startswith(b"GIF8"):
        packet = data.partition(b"\x21\xff\x0bXMP DataXMP")[2]
    elif data[4:8] == b"ftyp":
        packet = data.rpartition(b"uuid" + MP4_XMP)[2]
    else:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            packet = image.info.get("xmp") or str(image.info.get("XML:com.adobe.xmp", "")).encode()
    found = re.search(rb"<Iptc4xmpExt:DigitalSourceType>([^<]+)</", packet)
    return found[1].decode() if found else None


def damaged_zips() -> Iterator[bytes]:
    """Zips whose packed content is damaged, by each kind of packing."""
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", packing) as archive:
            archive.writestr("config.json", bytes(range(256)) * 9)
        data = bytearray(buffer.getvalue())
        data[41:70] = b"\xff" * 29  # behind the header and the name
        yield bytes(data)
