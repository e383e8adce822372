"""Files without a pickle (NumPy's .npy, safetensors), and a word for every file that is no checkpoint at all.

Standard library only: the reading process starts without PyTorch.
"""

import json
import math
import re
import struct
from typing import Any

from stylegan_inversion.checkpoints.stand_ins import ITEM_SIZES, NUMPY_CODES, Storage, TensorView, contiguous
from stylegan_inversion.errors import CheckpointError

MAX_TENSORS = 20_000
_MAX_HEADER = 4_000_000
_EXPECTED = "Expected a PyTorch .pt or .pth, NVIDIA's .pkl, a .safetensors, or a NumPy .npy. "
_NUMPY_HEADER = re.compile(
    r"\{'descr': '([<>=|])(\w+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), *\} *\n?"
)
_ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7-Zip", b"Rar!": "RAR"}
_ARCHIVES |= {b"(\xb5/\xfd": "zstd"}
_OTHERS = {b"\x89HDF": "an HDF5 file", b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"%PDF": "a PDF"}
_OTHERS |= {b"GGUF": "a GGUF file", b"\x80\0": "a pickle of protocol 0", b"\x80\1": "a pickle of protocol 1"}


def read_numpy(data: memoryview) -> TensorView:
    """Read a .npy of numbers.

    Raises:
        CheckpointError: If it is damaged, or holds Python objects.
    """
    if data[6:7] not in (b"\1", b"\2", b"\3") or len(data) < 12:
        raise CheckpointError("It is a NumPy file of an unknown version, or cut short. Fetch it again.")
    code, begin = ("<H", 10) if data[6] == 1 else ("<I", 12)
    size = struct.unpack_from(code, data, 8)[0]
    header = str(data[begin : begin + min(size, 10_000)], "latin-1")
    found = _NUMPY_HEADER.fullmatch(header)
    if found is None or found.group(2) == "O":
        objects = "'descr': '|O'" in header
        held = "Python objects, which it stores as a pickle" if objects else f"something else: {header[:100]!r}"
        raise CheckpointError(f"It is a NumPy file that should hold an array of numbers, but holds {held}.")
    order, code, fortran, sizes = found.groups()
    if code not in NUMPY_CODES or order == ">":
        raise CheckpointError(f"It is a NumPy file of type {order + code!r}; little-endian numbers are read.")
    shape = tuple(int(size[:20]) for size in sizes.replace(" ", "").split(",") if size)
    storage = Storage(NUMPY_CODES[code], math.prod(shape))
    storage.fill(data[begin + size :])
    return contiguous(storage, shape, fortran=fortran == "True")


def read_safetensors(data: memoryview) -> dict[str, TensorView]:
    """Read a safetensors file.

    Raises:
        CheckpointError: If it is damaged.
    """
    size = struct.unpack_from("<Q", data)[0]
    if size > _MAX_HEADER:
        raise CheckpointError(f"Its header would be {size} bytes long; safetensors of a network have less than 1 MB.")
    if size + 8 > len(data):
        raise CheckpointError("It is a safetensors file cut short. Fetch it again; the download did not finish.")
    try:
        header = json.loads(bytes(data[8 : 8 + size]))
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"The header of its safetensors is damaged: {str(e)[:100]}. Fetch it again.") from e
    body, tensors = data[8 + size :], {}
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise CheckpointError(f"The header of its safetensors lists no tensors, or more than {MAX_TENSORS}.")
    header.pop("__metadata__", None)
    reached = 0
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            reached = max(reached, end)
            if dtype not in ITEM_SIZES or not 0 <= begin <= end <= len(body):
                raise ValueError(f"{dtype} at [{begin}, {end}] of {len(body)} bytes")
            storage = Storage(dtype, (end - begin) // ITEM_SIZES[dtype])
            storage.fill(body[begin:end])
            tensors[name] = contiguous(storage, tuple(shape))
            if math.prod(shape) != storage.numel:
                raise ValueError(f"shape {shape} of {storage.numel} numbers")
        except (KeyError, TypeError, ValueError) as e:
            shown = f"{name[:100]!r}: {str(e)[:200]}"
            raise CheckpointError(f"The header of its safetensors is damaged at {shown}. Fetch it again.") from e
    if reached != len(body):
        raise CheckpointError(
            f"It is a safetensors file of {len(body)} bytes of data, but describes {reached}: damaged."
        )
    return tensors


def refuse(data: memoryview) -> CheckpointError:
    """The error for a file that is none of the kinds: what it is, and the way out."""
    start = bytes(data[:4096])
    text = start.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    if not start:
        what, way = "It is empty (0 bytes)", "The download did not begin: fetch it again."
    elif re.match(r"<(!doctype|html|head|\?xml|!--)", text, re.IGNORECASE):
        title = re.search(r"<title[^>]*>\s*(.{0,200}?)\s*</title>", text, re.IGNORECASE | re.DOTALL)
        named = f" titled {title.group(1)!r}" if title else ""
        what = f"It is a web page (HTML){named}, not a checkpoint"
        way = (
            "That is what a drive sends when its quota is spent or it asks a question: open the address in a browser "
            "and download from there, or take another source."
        )
    elif text.startswith("version https://git-lfs"):
        what, way = (
            "It is a pointer of Git LFS, not the file itself",
            "Run `git lfs pull` in the repository it is from.",
        )
    elif start[257:262] == b"ustar" or (archive := _match(start, _ARCHIVES)):
        kind = "tar" if start[257:262] == b"ustar" else archive
        what, way = f"It is a {kind} archive", "Unpack it and give the checkpoint inside."
    elif other := _match(start, _OTHERS):
        what, way = f"It is {other}, which is not read", _EXPECTED + "Give such a file."
    elif start.isascii() and " ".join(text.split()).isprintable():
        what, way = f"It is a text that begins {text[:60]!r}", _EXPECTED + "Fetch it again."
    elif not start.strip(b"\0"):
        what, way = "It begins with thousands of zeros", "The download or the disk lost its contents: fetch it again."
    else:
        what, way = (
            f"It begins with the bytes {start[:8].hex(' ')}, which is no known format",
            _EXPECTED + "Fetch it again.",
        )
    return CheckpointError(f"{what}. {way}")


def _match(start: bytes, table: dict[bytes, str]) -> Any:
    return next((name for magic, name in table.items() if start.startswith(magic)), None)
