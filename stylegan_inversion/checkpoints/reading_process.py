"""The process that reads a foreign file: limits on itself, a guard, then one safetensors file and one description.

It starts without this package's `__init__`, so without PyTorch: standard library only. `sandbox.py` starts it and
turns what it writes into tensors. All that it says is in `description.json`: {"value": ...} or {"error": "..."}.
A value is a JSON number, text, bool or null, or a list whose first entry says what it is:
["list", ...], ["dict", [key, value], ...], ["module", class name, state], ["tensor", storage, offset, shape, stride].
"""

import codecs
import json
import mmap
import os
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

from stylegan_inversion.checkpoints.archive import read_container
from stylegan_inversion.checkpoints.stand_ins import (
    ITEM_SIZES,
    Array,
    Bytes,
    Global,
    LongText,
    Module,
    Storage,
    TensorView,
)
from stylegan_inversion.errors import CheckpointError

DESCRIPTION_NAME = "description.json"
STORAGES_NAME = "storages.safetensors"
GUARD_EXIT = 77  # the guard's exit status
MAX_DEPTH = 64
MAX_NODES = 500_000
MAX_TEXT = 16_000_000
_SLACK = 16_000_000  # bytes that expanded tensors may take beyond twice the file
_FORBIDDEN = ("open", "exec", "compile", "import", "marshal.", "pickle.", "os.", "subprocess.", "socket.", "ctypes.")


class Describer:
    """Turns values into JSON and gathers the storages of their tensors.

    Args:
        file_size: Bounds what the tensors may take.
    """

    def __init__(self, file_size: int) -> None:
        self.storages: dict[int, tuple[str, Storage]] = {}
        self._nodes = MAX_NODES
        self._text = MAX_TEXT
        self._stored = file_size
        self._expanded = 2 * file_size + _SLACK

    def describe(self, value: Any, depth: int = 0) -> Any:
        """Describe a value and all that is in it.

        Raises:
            CheckpointError: If there is too much of it, or something of no known kind.
        """
        self._nodes -= 1
        if depth > MAX_DEPTH or self._nodes < 0:
            raise CheckpointError(
                f"Its values are nested deeper than {MAX_DEPTH} or more than {MAX_NODES}, which no checkpoint is."
            )
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            self._text -= len(value)
            if self._text < 0:
                raise CheckpointError(f"Its texts are longer than {MAX_TEXT} characters, many times a checkpoint's.")
            return value
        if isinstance(value, (list, tuple)):
            return ["list", *(self.describe(item, depth + 1) for item in value)]
        if isinstance(value, dict):
            return ["dict", *([self.describe(k, depth + 1), self.describe(v, depth + 1)] for k, v in value.items())]
        if isinstance(value, Module):
            return ["module", value.class_name, self.describe(value.state, depth + 1)]
        if isinstance(value, TensorView):
            return self._tensor(value)
        if isinstance(value, Array) and value.tensor is not None:
            return self._tensor(value.tensor)
        if isinstance(value, (LongText, Bytes)):
            return f"({len(value.utf8 if isinstance(value, LongText) else value)} bytes)"
        if isinstance(value, Global):
            return value.name
        raise CheckpointError(f"It holds a {type(value).__name__} where a checkpoint holds tensors and plain values.")

    def _tensor(self, tensor: TensorView) -> list[Any]:
        storage, size = tensor.storage, ITEM_SIZES[tensor.storage.dtype]
        numel = 1
        for n in tensor.shape:
            numel *= n
        self._expanded -= numel * size
        assert storage.data is not None  # the containers fill every storage that they make
        if id(storage) not in self.storages:
            if storage.dtype == "BOOL" and bytes(storage.data).translate(None, b"\0\1"):
                raise CheckpointError("A tensor of booleans holds other values: damaged. Fetch it again.")
            self._stored -= len(storage.data)
            self.storages[id(storage)] = (f"s{len(self.storages)}", storage)
        if min(self._stored, self._expanded) < 0:
            raise CheckpointError("Its tensors are many times larger than the file: it is made to fill the memory.")
        return ["tensor", self.storages[id(storage)][0], tensor.offset, list(tensor.shape), list(tensor.stride)]


def write_storages(storages: list[tuple[str, Storage]], file: BinaryIO) -> None:
    """Write storages as a safetensors file of flat tensors, the widest numbers first so that all are aligned."""
    ordered = sorted(storages, key=lambda entry: -ITEM_SIZES[entry[1].dtype])
    header: dict[str, Any] = {}
    position = 0
    for name, storage in ordered:
        end = position + storage.numel * ITEM_SIZES[storage.dtype]
        header[name] = {"dtype": storage.dtype, "shape": [storage.numel], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, storage in ordered:
        file.write(storage.data or b"")


def _limit(memory: int, seconds: int, size: int) -> None:
    """Bound this process's memory, processor time and files, where the system can (not on Windows)."""
    try:
        import resource
    except ImportError:
        return
    limits = {"RLIMIT_AS": memory, "RLIMIT_CPU": seconds, "RLIMIT_FSIZE": size, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            try:
                resource.setrlimit(kind, (value, value))
            except (ValueError, OSError):  # macOS knows some of them in name only
                continue


def guard() -> None:
    """From here on, to open, import, compile or start anything ends this process at once."""

    def hook(event: str, _: Any) -> None:
        if event.startswith(_FORBIDDEN):
            os._exit(GUARD_EXIT)

    sys.addaudithook(hook)


def main(arguments: list[str]) -> None:
    """Read `path` into `folder` within `memory` bytes and `seconds` of processor time."""
    path, folder, memory, seconds = arguments
    with (
        Path(path).open("rb") as source,
        (Path(folder) / STORAGES_NAME).open("wb") as storages,
        (Path(folder) / DESCRIPTION_NAME).open("w", encoding="ascii") as description,
    ):
        size = os.fstat(source.fileno()).st_size
        data = memoryview(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
        codecs.lookup("latin-1"), codecs.lookup("unicode_escape")  # imported here, before the guard
        _limit(int(memory), int(seconds), 2 * size + 2 * _SLACK)
        guard()
        answer: dict[str, Any]
        try:
            describer = Describer(size)
            answer = {"value": describer.describe(read_container(data))}
            write_storages(list(describer.storages.values()), storages)
            storages.flush()  # a full disk shows here
        except CheckpointError as e:
            answer = {"error": str(e)}
        except MemoryError:
            answer = {"error": f"Reading it takes more than {int(memory) >> 20} MB, which a sound file does not."}
        except OSError as e:
            way = "Make room there, or name another one by TMPDIR."
            answer = {"error": f"Its tensors could not be written to the temporary folder: {e}. {way}"}
        except Exception as e:  # a traceback would open source files, which the guard takes for an attack
            answer = {"error": f"It is damaged, or no checkpoint ({type(e).__name__} while it was read)."}
        try:
            json.dump(answer, description)
            description.flush()
        except Exception:
            os._exit(1)
