"""Read a foreign checkpoint without running any of it: bytes -> dicts, lists, numbers, texts and tensors.

Formats: PyTorch's zip, the stream it wrote before 1.6, bare pickles (NVIDIA's `.pkl`), NumPy's `.npy`, safetensors.
Every size that a file declares is checked against the size of the file before memory is taken for it.
"""

import io
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_inversion import storage
from stylegan_inversion.checkpoints.unpickle import NAMES, STORAGES, Limits, Name, Stream, numbers, resolve, unpickle
from stylegan_inversion.errors import CheckpointError

_MAX_DIRECTORY = 4_000_000  # bytes of a zip's list of members
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_checkpoint(path: Path) -> Any:
    """Read a `.pt`, `.pth`, `.pkl`, `.npy` or `.safetensors` of any origin; its name and suffix do not matter.

    Returns:
        Dicts, lists (also for tuples and sets), tensors on the CPU, `PickledModule`, texts, numbers, bools and `None`.
        A text describes bytes and classes. Tensors may be private views of the file, which take memory when used.

    Raises:
        CheckpointError: If there is no such file, it is damaged or of another kind, or its pickle asks for anything
            that the weights of this field do not need. The message begins with the path.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder." if path.is_dir() else f"{path}: there is no such file.")
    try:
        data = _map(path)
        start, limits = bytes(data[:9]), Limits(len(data))
        if start[8:9] == b"{" and start[6:8] == b"\0\0":
            return storage.read_tensors(path)
        if start[:6] == b"\x93NUMPY":
            return _read_numpy(path)
        if start[:4] == b"PK\3\4":
            return resolve(_read_zip(_members(path, data), limits), limits)
        if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
            return resolve(_read_pickles(data, limits), limits)
        raise CheckpointError(_describe_other(data))
    except CheckpointError as e:
        raise e if str(e).startswith(str(path)) else CheckpointError(f"{path}: {e}") from e
    except Exception as e:  # whatever a hostile file brings about
        raise CheckpointError(f"{path} cannot be read ({type(e).__name__}: {str(e)[:200]}). Fetch it again.") from e


def _map(path: Path) -> memoryview:
    """Map the file into memory, so that nothing written to the memory reaches the file."""
    if os.name == "nt":  # where a file that is mapped cannot be removed
        return memoryview(bytearray(path.read_bytes()))
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else b"")


class _ZipFile(io.FileIO):
    """A file for `zipfile`, which reads the whole list of members at once."""

    def read(self, size: int | None = -1, /) -> Any:
        if (size or 0) > _MAX_DIRECTORY:
            raise CheckpointError(f"It is a zip archive with a list of members of {size} bytes, too many to read.")
        return super().read(size)


def _members(path: Path, data: memoryview) -> dict[str, memoryview]:
    """Find the members of an uncompressed zip, and check their sizes and sums."""
    with _ZipFile(path) as file, zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    members, total = dict[str, memoryview](), 0
    for info in infos:
        name = info.filename[:100]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(
                f"Its member {name!r} is compressed or encrypted, which PyTorch never does; if it is an archive around "
                "a checkpoint, unpack it and give the file inside."
            )
        begin = info.header_offset + 30
        begin += sum(struct.unpack("<2H", data[begin - 4 : begin]))  # the lengths of its name and its extra field
        member, total = data[begin : begin + info.file_size], total + info.file_size
        whole = info.compress_size == info.file_size == len(member) and total <= len(data)
        if not whole or name in members or (info.CRC and zlib.crc32(member) != info.CRC):  # 0: no sum was written
            raise CheckpointError(f"Its member {name!r} is damaged: its size or checksum differs. Fetch it again.")
        members[name] = member
    return members


def _read_zip(members: dict[str, memoryview], limits: Limits) -> Any:
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in members):
        raise CheckpointError("It is TorchScript, which holds a program; save the network's `state_dict()` instead.")
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        held = ", ".join(sorted(members)[:5])[:200]
        raise CheckpointError(f"It is a zip archive, but none of PyTorch's. Unpack it and give a file inside: {held}.")
    if bytes(members.get(f"{roots[0]}byteorder", b"little")) != b"little":
        raise CheckpointError("It was saved on a big-endian machine; save it again on a usual one.")
    _, persistent = _storages(lambda key, dtype, numel: numbers(members[f"{roots[0]}data/{key}"], dtype))
    return unpickle(Stream(members[f"{roots[0]}data.pkl"], limits), NAMES, persistent)


def _storages(
    make: Callable[[str, torch.dtype, int], Tensor],
) -> tuple[dict[str, Tensor], Callable[[Any], Tensor]]:
    """Return the storages that a pickle asks for, each made once, and the function that it asks."""
    made: dict[str, Tensor] = {}

    def persistent(pid: Any) -> Tensor:
        _, kind, key, _, numel, *view = pid
        if not isinstance(kind, Name) or kind.dtype is None or type(key) is not str:
            raise ValueError("a reference to something other than a tensor's data")
        if view not in ([], [None]):
            raise ValueError("a tensor of PyTorch 0.3 or older; load the file there and save it again")
        if type(numel) is not int or numel < 0:
            raise ValueError("a tensor's data without a length")
        found = made[key] if key in made else made.setdefault(key, make(key, kind.dtype, numel))
        if (found.dtype, found.numel()) != (kind.dtype, numel):
            there = f"{found.numel()} of type {found.dtype}"
            raise ValueError(f"{numel} numbers of type {kind.dtype} where there are {there}")
        return found

    return made, persistent


def _read_pickles(data: memoryview, limits: Limits) -> Any:
    """Read a bare pickle, or PyTorch's stream of five pickles and the numbers after them."""
    load = Name("torch.storage._load_from_bytes", partial(_load_from_bytes, limits))
    stream = Stream(data, limits)
    value = unpickle(stream, {**NAMES, "torch.storage._load_from_bytes": load})
    return _read_stream(stream, NAMES) if type(value) is int and value == _LEGACY_MAGIC else value


def _load_from_bytes(limits: Limits, data: Any) -> Tensor:
    """Read the storage that a pickle holds as bytes: a stream of its own."""
    stream = Stream(memoryview(data), limits)
    found = _read_stream(stream, STORAGES) if unpickle(stream, STORAGES) == _LEGACY_MAGIC else None
    if not isinstance(found, Tensor):
        raise ValueError("a tensor that is not stored as PyTorch stores it")
    return found


def _read_stream(stream: Stream, names: Mapping[str, Name]) -> Any:
    """Read what follows the magic number: version, system, the value, the keys of the storages, then their numbers."""

    def empty(_: str, dtype: torch.dtype, numel: int) -> Tensor:
        stream.limits.spend("bytes", numel * dtype.itemsize)
        return torch.empty(numel, dtype=dtype, device="cpu")

    storages, persistent = _storages(empty)
    version, system = unpickle(stream, names), unpickle(stream, names)
    if version != 1001 or not system.get("little_endian"):
        raise CheckpointError("It is of an unknown version of PyTorch's old format, or of a big-endian machine.")
    value, keys = unpickle(stream, names, persistent), unpickle(stream, names)
    if not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise CheckpointError("Its list of tensors differs from what its pickle describes: damaged. Fetch it again.")
    for key in keys:
        flat = storages[key]
        (numel,) = struct.unpack("<q", stream.read(8))
        if numel != flat.numel():
            raise CheckpointError(f"A tensor of {flat.numel()} numbers is stored as {numel}: damaged. Fetch it again.")
        if numel:
            flat.copy_(numbers(stream.read(numel * flat.itemsize), flat.dtype))
    return value


def _read_numpy(path: Path) -> Tensor:
    array = np.load(path, mmap_mode="c", allow_pickle=False)  # mapped: NumPy checks its size against the file's
    if array.dtype.kind not in "fiub" or array.dtype.byteorder == ">":
        raise CheckpointError(f"It is a NumPy file of {array.dtype}; only little-endian numbers are read.")
    return torch.from_numpy(np.array(array))


_EXPECTED = "Expected a PyTorch .pt or .pth, NVIDIA's .pkl, a .safetensors, or a NumPy .npy."
_OTHERS = {  # how a file of another kind begins -> what it is, and the way out
    r"$": "It is empty (0 bytes). The download did not begin: fetch it again.",
    r"\s*<(!doctype|html|head|\?xml|!--)": "It is a web page (HTML), not a checkpoint. That is what a drive sends when "
    "its quota is spent or it asks a question: open the address in a browser and download from there, or take another "
    "source.",
    r"version https://git-lfs": "It is a pointer of Git LFS, not the file itself. Run `git lfs pull` in the repository "
    "it is from.",
    r"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\(\xb5/\xfd|.{257}ustar": "It is an archive (gzip, bzip2, xz, 7-Zip, RAR, "
    "zstd or tar). Unpack it and give the checkpoint inside.",
    r"\x80[\0\1]": f"It is a pickle of protocol 0 or 1, which is not read. {_EXPECTED}",
    r"\0+$": "It begins with thousands of zeros. The download or the disk lost its contents: fetch it again.",
}


def _describe_other(data: memoryview) -> str:
    """Say what a file of no known kind is, and the way out."""
    start = str(data[:4096], "latin-1")
    for pattern, words in _OTHERS.items():
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return words
    if start.isascii() and " ".join(start.split()).isprintable():
        return f"It is a text that begins {start.strip()[:60]!r}. {_EXPECTED} Fetch it again."
    return f"It begins with the bytes {bytes(data[:8]).hex(' ')}, which is no known format. {_EXPECTED} Fetch it again."
