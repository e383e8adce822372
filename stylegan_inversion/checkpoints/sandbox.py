"""Reads a foreign checkpoint in a process of its own, within limits; nothing in the file is ever executed.

What a file may name says `allowed.py`, how it is read `archive.py`. Those do not execute anything either: the process
is there for files that are made to fill the memory or to take forever, and in case we are wrong. There is no way
around it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stylegan_inversion.checkpoints.reading_process import DESCRIPTION_NAME, GUARD_EXIT, STORAGES_NAME
from stylegan_inversion.errors import CheckpointError

MAX_FILE_BYTES = 16 * 2**30  # e4e's resumable file, which holds the optimiser's state too, has 4.1 GB
_MEMORY = 256 * 2**20  # what reading may take beside the file
_SECONDS = 10  # of processor time, and one more for each _BYTES_PER_SECOND
_BYTES_PER_SECOND = 50 * 2**20
_MAX_DESCRIPTION = 128 * 2**20
# A stand-in for the package, so that importing two of its files does not import PyTorch.
_START = (
    "import sys, types; package = types.ModuleType('stylegan_inversion'); package.__path__ = [sys.argv[1]]; "
    "sys.modules[package.__name__] = package; "
    "from stylegan_inversion.checkpoints.reading_process import main; main(sys.argv[2:])"
)


@dataclass(frozen=True, eq=False)
class PickledModule:
    """A network that was pickled whole, NVIDIA's way; of its code only the name of the class is kept.

    Args:
        class_name: Such as "Generator".
        state: Its attributes: parameters, buffers, sub-networks, sizes.
    """

    class_name: str
    state: Mapping[Any, Any]

    def modules(self, prefix: str = "") -> Iterator[tuple[str, "PickledModule"]]:
        """The network and those inside it, with their names; each name but the first ends in a dot."""
        yield prefix, self
        for name, module in _entries(self.state, "_modules").items():
            if isinstance(module, PickledModule):
                yield from module.modules(f"{prefix}{name}.")

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by their full names, as PyTorch's `state_dict()` gives them."""
        tensors: dict[str, Tensor] = {}
        for prefix, module in self.modules():
            transient = module.state.get("_non_persistent_buffers_set") or ()
            buffers = _entries(module.state, "_buffers")
            own = _entries(module.state, "_parameters") | {k: v for k, v in buffers.items() if k not in transient}
            tensors |= {f"{prefix}{name}": tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
        return tensors


def _entries(state: Mapping[Any, Any], name: str) -> dict[str, Any]:
    entries = state.get(name)
    return {str(key): value for key, value in entries.items()} if isinstance(entries, dict) else {}


def read_checkpoint(path: Path, *, max_bytes: int = MAX_FILE_BYTES, timeout: float | None = None) -> Any:
    """Read a `.pt`, `.pth`, `.pkl`, `.npy` or `.safetensors` of any origin without executing any of it.

    The temporary folder holds a copy of its tensors while this runs, so it needs as much room as the file has; the
    environment variable TMPDIR names another one. The tensors are mapped from there: only those that are used take
    memory.

    Args:
        path: The file; its name and suffix do not matter.
        max_bytes: Larger files are refused.
        timeout: Seconds after which reading ends. `None` gives a few times what the size takes.

    Returns:
        What the file holds: dicts, lists (tuples and sets too), tensors on the CPU, `PickledModule`, texts, numbers,
        bools and `None`. Long texts, bytes and class names are described by a text.

    Raises:
        CheckpointError: If there is no such file, or it is damaged, too large, of another kind, or asks for anything
            that the weights of this field do not need.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file." if not path.is_dir() else f"{path} is a folder.")
    size = path.stat().st_size
    if size > max_bytes:
        raise CheckpointError(
            f"{path} has {size / 2**30:.1f} GB; checkpoints of up to {max_bytes / 2**30:.1f} GB are read."
        )
    seconds = _SECONDS + size // _BYTES_PER_SECOND
    with tempfile.TemporaryDirectory(prefix="stylegan-inversion-") as folder:
        _run(path, Path(folder), _MEMORY + 3 * size, seconds, timeout or 4.0 * seconds)
        description = Path(folder) / DESCRIPTION_NAME
        if description.stat().st_size > _MAX_DESCRIPTION:
            raise CheckpointError(f"{path}: it describes more values than a checkpoint holds.")
        answer = json.loads(description.read_text("ascii"))
        if "error" in answer:
            raise CheckpointError(f"{path}: {answer['error']}")
        try:
            storages = load_file(Path(folder) / STORAGES_NAME)
            if os.name == "nt":  # elsewhere a file can go while its memory map stays
                storages = {name: tensor.clone() for name, tensor in storages.items()}
            return _rebuild(answer["value"], storages)
        except (OSError, SafetensorError, RuntimeError) as e:
            raise CheckpointError(f"{path}: its tensors could not be taken over: {e}") from e


def _run(path: Path, folder: Path, memory: int, seconds: int, timeout: float) -> None:
    package = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-I", "-S", "-B", "-c", _START, package, path.resolve(), folder, memory, seconds]
    try:
        ended = subprocess.run(
            [str(argument) for argument in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise CheckpointError(f"{path}: it was not read within {timeout:.0f} s. Nothing of it was used.") from e
    except OSError as e:
        raise CheckpointError(f"{path}: the process that reads foreign files could not start: {e}") from e
    if ended.returncode == GUARD_EXIT:
        raise CheckpointError(
            f"{path}: reading it would have opened or run something else, so it was stopped. Delete it."
        )
    if ended.returncode in (-24, -9):  # SIGXCPU, SIGKILL
        raise CheckpointError(
            f"{path}: reading it took more than {seconds} s or too much memory, which a sound one does not."
        )
    if ended.returncode != 0:
        last = ended.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
        raise CheckpointError(f"{path}: reading it failed (exit {ended.returncode}): {last}")


def _rebuild(value: Any, storages: Mapping[str, Tensor]) -> Any:
    """Turn a description (see `reading_process.py`) into values."""
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind == "list":
        return [_rebuild(item, storages) for item in rest]
    if kind == "dict":
        return {key: _rebuild(item, storages) for key, item in rest}
    if kind == "module":
        return PickledModule(rest[0], _rebuild(rest[1], storages))
    name, offset, shape, stride = rest
    return torch.as_strided(storages[name], shape, stride, offset).contiguous()
