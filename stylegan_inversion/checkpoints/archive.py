"""The files of the field as containers: what kind of file it is, and the values it holds.

PyTorch's zip and the stream it wrote before 1.6 (both with `torch.save`), a bare pickle (NVIDIA's .pkl), NumPy's .npy,
safetensors. All are read from one view of the file without copying numbers. Everything else is refused by what it is.
Standard library only: the reading process starts without PyTorch.
"""

import struct
import zlib
from typing import Any

from stylegan_inversion.checkpoints import allowed
from stylegan_inversion.checkpoints.plain import read_numpy, read_safetensors, refuse
from stylegan_inversion.checkpoints.stand_ins import ITEM_SIZES, Global, Storage
from stylegan_inversion.checkpoints.unpickle import Budget, Unpickler
from stylegan_inversion.errors import CheckpointError

MAX_MEMBERS = 20_000
_MAX_DIRECTORY = 4_000_000  # bytes of a zip's list of members
_MAX_PICKLE = 64_000_000  # bytes of the pickle in a zip, which holds no numbers
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_container(data: memoryview) -> Any:
    """Read a file of any of the kinds.

    Returns:
        Plain values and the stand-ins of `stand_ins.py`.

    Raises:
        CheckpointError: If it is damaged, of another kind, or asks for what is not known.
    """
    start = bytes(data[:9])
    if start[:4] == b"PK\3\4":
        return _read_zip(data)
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return _read_pickles(data)
    if start[:6] == b"\x93NUMPY":
        return read_numpy(data)
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 2**48:
        return read_safetensors(data)
    raise refuse(data)


def _members(data: memoryview) -> dict[str, memoryview]:
    """The members of an uncompressed zip, checked against their sums."""
    tail = bytes(data[-65_557:])
    end = len(data) - len(tail) + (at := tail.rfind(b"PK\5\6"))
    if at < 0 or len(tail) - at < 22:
        raise CheckpointError("It is a zip archive without its end: the download did not finish. Fetch it again.")
    count, size, offset = struct.unpack_from("<H2L", data, end + 10)
    if 0xFFFF == count or 0xFFFFFFFF in (size, offset):
        locator = struct.unpack_from("<4sLQL", data, end - 20)
        count, size, offset = struct.unpack_from("<3Q", data, locator[2] + 32)
    if count > MAX_MEMBERS or size > _MAX_DIRECTORY:
        raise CheckpointError(f"It is a zip archive of {count} members; a checkpoint has at most {MAX_MEMBERS}.")
    members: dict[str, memoryview] = {}
    total = 0
    for _ in range(count):
        fields = struct.unpack_from("<4s6H3L5H2L", data, offset)
        flags, method, crc, packed, unpacked, name_size, extra_size, comment_size = (
            fields[i] for i in (3, 4, 7, 8, 9, 10, 11, 12)
        )
        begin = fields[16]
        name = str(data[offset + 46 : offset + 46 + name_size], "utf-8", "replace")
        extra = data[offset + 46 + name_size : offset + 46 + name_size + extra_size]
        offset += 46 + name_size + extra_size + comment_size
        if fields[0] != b"PK\1\2":
            raise CheckpointError("Its list of members is damaged (zip). Fetch it again.")
        if method != 0 or flags & 1:
            raise CheckpointError(
                f"Its member {name[:100]!r} is {'compressed' if method else 'encrypted'}, which PyTorch never does; "
                "if it is an archive around a checkpoint, unpack it and give the file inside."
            )
        if 0xFFFFFFFF in (packed, unpacked, begin):
            packed, unpacked, begin = _zip64(extra, packed, unpacked, begin)
        if name in members:
            raise CheckpointError(
                f"It is a zip archive with two members named {name[:100]!r}: damaged, or made to harm."
            )
        inner_name, inner_extra = struct.unpack_from("<2H", data, begin + 26)
        begin += 30 + inner_name + inner_extra
        total += unpacked
        if packed != unpacked or begin + unpacked > len(data) or total > len(data):
            raise CheckpointError(f"Its member {name[:100]!r} reaches beyond the file: damaged. Fetch it again.")
        members[name] = data[begin : begin + unpacked]
        if crc and zlib.crc32(members[name]) != crc:  # 0: `torch.serialization.set_crc32_options(False)`
            raise CheckpointError(f"Its member {name[:100]!r} is damaged: its checksum differs. Fetch the file again.")
    return members


def _zip64(extra: memoryview, packed: int, unpacked: int, begin: int) -> tuple[int, int, int]:
    """The sizes of a member that do not fit 32 bits: those that are full, in the order of the format."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{size // 8}Q", extra, position + 4))
            unpacked = next(values) if unpacked == 0xFFFFFFFF else unpacked
            packed = next(values) if packed == 0xFFFFFFFF else packed
            begin = next(values) if begin == 0xFFFFFFFF else begin
        position += 4 + size
    return packed, unpacked, begin


def _read_zip(data: memoryview) -> Any:
    try:
        members = _members(data)
    except (struct.error, StopIteration, OverflowError) as e:
        raise CheckpointError("Its list of members is damaged (zip). Fetch it again.") from e
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    shown = ", ".join(sorted(members)[:5])
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in members):
        raise CheckpointError(
            "It is TorchScript (`torch.jit.save`), which holds a program; save the network's `state_dict()` instead."
        )
    if len(roots) != 1:
        raise CheckpointError(
            f"It is a zip archive, but not one of PyTorch's: it holds {shown[:200]}. Unpack it and give a file inside."
        )
    root = roots[0]
    pickled = members[f"{root}data.pkl"]
    if len(pickled) > _MAX_PICKLE:
        raise CheckpointError(f"Its pickle is {len(pickled)} bytes long; a checkpoint's is at most {_MAX_PICKLE}.")
    if bytes(members.get(f"{root}byteorder", memoryview(b"little"))[:6]) != b"little":
        raise CheckpointError("It was saved on a big-endian machine; save it again on a usual one.")
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        dtype, key, numel = _parse_identity(identity)
        if key not in storages:
            if f"{root}data/{key}" not in members:
                raise CheckpointError(f"The data of tensor {key[:50]!r} is missing in the file: fetch it again.")
            storages[key] = Storage(dtype, numel)
            storages[key].fill(members[f"{root}data/{key}"])
        return _same(storages[key], dtype, numel)

    return Unpickler(pickled, known=_TABLE, budget=Budget(), storage=storage).load()


def _parse_identity(identity: Any) -> tuple[str, str, int]:
    """The kind, key and length of a storage, as PyTorch writes a persistent id."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise CheckpointError("Its pickle refers to something that is no tensor's data.")
    _, kind, key, _, numel, *view = identity
    dtype = kind.dtype if isinstance(kind, Global) else None
    if dtype is None or type(key) is not str or type(numel) is not int or numel < 0:
        raise CheckpointError("Its pickle refers to a tensor's data of an unknown kind.")
    if view not in ([], [None]):
        raise CheckpointError("It was saved by PyTorch 0.3 or older; load it there and save it again.")
    return dtype, key, numel


def _same(storage: Storage, dtype: str, numel: int) -> Storage:
    if (storage.dtype, storage.numel) != (dtype, numel):
        raise CheckpointError("Its pickle describes the same data in two ways: damaged. Fetch it again.")
    return storage


def _read_pickles(data: memoryview) -> Any:
    """A bare pickle, or PyTorch's stream of five pickles and the numbers after them."""
    budget = Budget()

    def nested(source: Any) -> Storage:
        view = memoryview(source)
        inner = Unpickler(view, known=_NESTED_TABLE, budget=budget)
        if inner.load() != _LEGACY_MAGIC:
            raise CheckpointError("A tensor inside its pickle is not stored as PyTorch stores it.")
        storage = _read_stream(view, inner.position, budget, nested_table=True)
        if not isinstance(storage, Storage):
            raise CheckpointError("A tensor inside its pickle is not stored as PyTorch stores it.")
        return storage

    known = allowed.table(nested)
    machine = Unpickler(data, known=known, budget=budget)
    value = machine.load()
    if type(value) is int and value == _LEGACY_MAGIC:
        return _read_stream(data, machine.position, budget, nested_table=False)
    return value


def _read_stream(data: memoryview, position: int, budget: Budget, *, nested_table: bool) -> Any:
    """What follows the magic number: version, system, the value, the keys of the storages, then their numbers."""
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        dtype, key, numel = _parse_identity(identity)
        return _same(storages.setdefault(key, Storage(dtype, numel)), dtype, numel)

    known = _NESTED_TABLE if nested_table else _TABLE
    machine = Unpickler(data, known=known, budget=budget, position=position, storage=storage)
    if (version := machine.load()) != 1001:
        raise CheckpointError(f"It is of version {str(version)[:50]} of PyTorch's old format; 1001 is read.")
    system = machine.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("It was saved on a big-endian machine; save it again on a usual one.")
    value = machine.load()
    keys = machine.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise CheckpointError("Its list of tensors differs from what its pickle describes: damaged. Fetch it again.")
    for key in keys:
        held = storages[key]
        if (numel := machine.number("q")) != held.numel:
            raise CheckpointError(f"A tensor of {held.numel} numbers is stored as {numel}: damaged. Fetch it again.")
        held.fill(machine.take(numel * ITEM_SIZES[held.dtype]))
    return value


_NESTED_TABLE = {key: value for key, value in allowed.table(None).items() if value.dtype is not None}
_TABLE = allowed.table(None)
