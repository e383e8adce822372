"""Python's unpickler with a closed table of names: nothing that a pickle names is imported, and nothing of it is run.

What answers for a name is a function of this file, which only arranges its arguments. How much a pickle may make of a
small file is bounded.
"""

import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

import torch
from torch import Tensor

from stylegan_inversion.errors import CheckpointError

MAX_STEPS, MAX_VALUES = 1_500_000, 500_000
_MAX_DEPTH, _MAX_AXES, _MAX_NUMEL = 64, 16, 2**48
_SHORT = 256  # longer bytes are views of the file


@dataclass(frozen=True, eq=False)
class PickledModule:
    """A network that NVIDIA's `persistence` pickled whole: the name of its class and its attributes, not its code."""

    class_name: str
    state: Mapping[Any, Any]

    def modules(self, prefix: str = "") -> Iterator[tuple[str, "PickledModule"]]:
        """Yield the network and those inside it with their names; each name but the first ends in a dot."""
        yield prefix, self
        for name, module in self._entries("_modules").items():
            if isinstance(module, PickledModule):
                yield from module.modules(f"{prefix}{name}.")

    def state_dict(self) -> dict[str, Tensor]:
        """Return parameters and persistent buffers by their full names, as PyTorch's `state_dict()` does."""
        tensors: dict[str, Tensor] = {}
        for prefix, module in self.modules():
            transient = module.state.get("_non_persistent_buffers_set") or ()
            for name, tensor in {**module._entries("_parameters"), **module._entries("_buffers")}.items():
                if isinstance(tensor, Tensor) and name not in transient:
                    tensors[f"{prefix}{name}"] = tensor
        return tensors

    def _entries(self, name: str) -> dict[str, Any]:
        entries = self.state.get(name)
        return {str(key): value for key, value in entries.items()} if isinstance(entries, dict) else {}


class Limits:
    """What reading one file may take, all its pickles together."""

    def __init__(self, file_size: int) -> None:
        self.left = {"steps": MAX_STEPS, "values": MAX_VALUES, "bytes": 6 * file_size + 16_000_000}

    def spend(self, what: str, amount: int) -> None:
        """Count what was taken, and refuse what is too much."""
        self.left[what] -= amount
        if self.left[what] < 0:
            raise CheckpointError(f"It takes many times the {what} of a checkpoint of its size; it looks malicious.")

    def spend_arguments(self, *arguments: Any) -> None:
        """Count what a call may copy: a small pickle can pass one long list or text many times."""
        for value in arguments:
            if isinstance(value, (list, tuple, dict, str, bytes, memoryview)):
                self.spend("steps" if isinstance(value, (list, tuple, dict)) else "bytes", len(value))


class Stream:
    """Bytes that are read from front to back."""

    def __init__(self, data: memoryview, limits: Limits) -> None:
        self.data, self.limits, self.position = data, limits, 0

    def read(self, size: int) -> Any:
        """Read bytes: short ones as a copy, long ones as a view."""
        self.limits.spend("steps", 1)
        start, end = self.position, self.position + size
        if end > len(self.data):
            where = f"{size} bytes are announced at byte {start} of {len(self.data)}"
            raise CheckpointError(f"It is cut short: {where}. Fetch it again; the download did not finish.")
        self.position = end
        return bytes(self.data[start:end]) if size <= _SHORT else self.data[start:end]

    def readline(self) -> bytes:
        """Read a name of a pickle."""
        size = bytes(self.data[self.position : self.position + _SHORT]).find(b"\n") + 1
        if not size:
            raise ValueError("a name without an end")
        return bytes(self.read(size))


@dataclass(frozen=True, eq=False)
class Name:
    """What a pickle gets for a name: a function of this file that answers calls to it, or a class of storages."""

    name: str
    call: Callable[..., Any] | None = None
    dtype: torch.dtype | None = None


class _Attributes(dict[Any, Any]):
    """The attributes of an `argparse.Namespace`."""


@dataclass(eq=False)
class _NumPy:
    """A dtype or an array of NumPy, which a pickle completes after it is made."""

    dtype: torch.dtype | None = None
    tensor: Tensor | None = None

    def build(self, state: Any) -> None:
        if self.dtype is None:
            _, shape, dtype, fortran, data = state
            self.tensor = _from_buffer(data, dtype, shape, "F" if fortran is True else "C")
        elif state[1] not in ("<", "|", "=") or state[2:5] != (None, None, None):
            raise ValueError("an array of big-endian numbers, or of records")


class _Unpickler(pickle._Unpickler):
    """Python's unpickler with a closed table of names, and only the operations that checkpoints are written in.

    The version in C takes the memory that an index of the memo asks for, and hashes keys before they can be checked.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: Stream, names: Mapping[str, Name], storage: Callable[[Any], Tensor] | None) -> None:
        super().__init__(stream, encoding="latin-1")  # of texts of Python 2
        self.stream, self.names, self.storage = stream, names, storage

    def find_class(self, module: str, name: str) -> Any:
        if (found := self.names.get(f"{_ALIASES.get(module, module)}.{name}")) is None:
            raise _unknown_name(module, name)
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self.storage is None:
            raise ValueError("data outside of the pickle, which is not there")
        return self.storage(pid)

    def refuse(self) -> None:
        raise ValueError("an operation that PyTorch does not write")

    def skip_frame(self) -> None:
        self.stream.read(8)  # a length, as a hint

    def long1(self) -> None:
        if (size := self.stream.read(1)[0]) > 16:
            raise ValueError(f"an integer of {size} bytes")
        self.append(int.from_bytes(self.stream.read(size), "little", signed=True))

    def setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update({_check_key(key): value})

    def setitems(self) -> None:
        items = self.pop_mark()
        if len(items) % 2:
            raise ValueError("a key without a value")
        self.stack[-1].update(zip(map(_check_key, items[::2]), items[1::2]))

    def call(self) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, Name) or target.call is None or type(arguments) is not tuple:
            raise ValueError(f"a call of {target.name if isinstance(target, Name) else type(target).__name__}")
        self.stream.limits.spend_arguments(*arguments)
        self.append(target.call(*arguments))

    def build(self) -> None:
        """Give the object on top of the stack its state."""
        state, target = self.stack.pop(), self.stack[-1]
        self.stream.limits.spend_arguments(state, *(state if isinstance(state, tuple) else ()))
        if isinstance(target, _Attributes) and isinstance(state, dict):
            target.update(state)
        elif isinstance(target, _NumPy):
            target.build(state)
        elif type(target) is not dict:  # an OrderedDict's own attributes are left out
            raise ValueError(f"a state for a {type(target).__name__}")

    dispatch: ClassVar[dict[int, Any]] = {
        **dict.fromkeys(range(256), refuse),
        **{code: pickle._Unpickler.dispatch[code] for code in b".(01NJKMGUTXCB)t]ae}cQqrhj\x80\x88\x89\x8c\x8d\x8e"},
        **{code: pickle._Unpickler.dispatch[code] for code in b"\x85\x86\x87\x93\x94"},
        **{0x95: skip_frame, 0x8A: long1, ord("s"): setitem, ord("u"): setitems},
        **{ord("R"): call, 0x81: call, ord("b"): build},
        0x96: pickle._Unpickler.dispatch[0x8E],  # a bytearray, as bytes
        0x8F: pickle._Unpickler.dispatch[ord("]")],  # sets, as lists
        0x90: pickle._Unpickler.dispatch[ord("e")],
        0x91: pickle._Unpickler.dispatch[ord("l")],
    }


def unpickle(stream: Stream, names: Mapping[str, Name], storage: Callable[[Any], Tensor] | None = None) -> Any:
    """Read the next pickle of a stream; `storage` finds what it holds outside of itself."""
    try:
        return _Unpickler(stream, names, storage).load()
    except CheckpointError:
        raise
    except Exception as e:
        reason = str(e)[:150] if type(e) is ValueError else f"{type(e).__name__}: {str(e)[:150]}"
        where = f"Its pickle is damaged or made to do harm near byte {stream.position}"
        raise CheckpointError(f"{where}: {reason}. Nothing of it was run. Fetch it again from its authors.") from e


def resolve(value: Any, limits: Limits, depth: int = 0) -> Any:
    """Turn what a pickle gave into plain values, and bound how much they are."""
    limits.spend("values", 1)
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"Its values are nested deeper than {_MAX_DEPTH}, deeper than any checkpoint's.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [resolve(item, limits, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: resolve(item, limits, depth + 1) for key, item in value.items()}
    if isinstance(value, PickledModule):
        return PickledModule(value.class_name, resolve(value.state, limits, depth + 1))
    if isinstance(value, _NumPy) and value.tensor is not None:
        value = value.tensor
    if isinstance(value, Tensor):
        limits.spend("bytes", value.numel() * value.itemsize)
        return value.contiguous()
    if isinstance(value, (bytes, memoryview)):
        return f"({len(value)} bytes)"
    return value.name if isinstance(value, Name) else f"({type(value).__name__})"


# The functions that a pickle may call. `unpickle` words a `CheckpointError` of what they raise.


def _check_key(key: Any) -> Any:
    if type(key) not in (str, int, float, bool, type(None)) or (type(key) is int and key.bit_length() > 64):
        raise ValueError(f"a key of a dict that is a {type(key).__name__}, or too large")
    return key


def numbers(data: Any, dtype: torch.dtype) -> Tensor:
    """View bytes as a flat tensor."""
    data = bytearray(data) if isinstance(data, bytes) else data  # torch wants bytes that can be written
    raw = torch.frombuffer(data, dtype=torch.uint8) if len(data) else torch.empty(0, dtype=torch.uint8, device="cpu")
    if len(data) % dtype.itemsize or (dtype is torch.bool and (raw > 1).any()):
        raise ValueError(f"{len(data)} bytes that are no numbers of type {dtype}")
    return (raw.clone() if raw.data_ptr() % dtype.itemsize else raw).view(dtype)


def _sizes(values: Any) -> tuple[int, ...]:
    whole = type(values) in (tuple, list) and len(values) <= _MAX_AXES
    if not whole or not all(type(n) is int and 0 <= n < _MAX_NUMEL for n in values):
        raise ValueError("a tensor with an invalid size or stride")
    return tuple(values)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    if len(rest) > 1 and rest[1]:
        raise ValueError("a tensor with backward hooks, which are functions; weights have none")
    (offset,), shape, stride = _sizes([offset]), _sizes(shape), _sizes(stride)
    if not isinstance(storage, Tensor) or len(shape) != len(stride) or math.prod(n or 1 for n in shape) > _MAX_NUMEL:
        raise ValueError("a tensor with an invalid storage, or too many numbers")
    end = offset + sum((n - 1) * step for n, step in zip(shape, stride)) + 1 if 0 not in shape else 0
    if end > storage.numel():
        raise ValueError(f"a tensor of shape {shape} that reaches to {end} of {storage.numel()} numbers")
    return torch.as_strided(storage, shape, stride, offset)


def _persistent_object(meta: Any) -> PickledModule:
    name, state = meta.get("class_name"), meta.get("state")
    if type(name) is not str or len(name) > 100 or type(state) is not dict:
        raise ValueError("an object of NVIDIA's `persistence` without the name of its class, or a state")
    return PickledModule(name, state)


def _encode(text: str, encoding: str = "utf-8") -> Any:
    """Give the bytes that a pickle of protocol 2 holds as a text."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in another encoding than latin1: {encoding:.50}")
    return memoryview(bytearray(text, "latin-1"))


def _dtype(code: str, *_: Any) -> _NumPy:
    if type(code) is not str or code not in _NUMPY:
        raise ValueError(f"an array of NumPy of type {code:.50}; only numbers are read")
    return _NumPy(_NUMPY[code])


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Tensor:
    if not isinstance(data, (bytes, memoryview)):
        raise ValueError("an array of Python objects; only numbers are read")
    flat, sizes = numbers(data, dtype.dtype), _sizes(shape)[:: 1 if order == "F" else -1]
    strides = [math.prod(sizes[:i]) for i in range(len(sizes))]
    return _rebuild_tensor(flat, 0, shape, strides if order == "F" else strides[::-1])


_TORCH = dict(Double=torch.float64, Float=torch.float32, Half=torch.float16, BFloat16=torch.bfloat16, Long=torch.int64)
_TORCH |= dict(Int=torch.int32, Short=torch.int16, Char=torch.int8, Byte=torch.uint8, Bool=torch.bool)
_NUMPY = dict(f8=torch.float64, f4=torch.float32, f2=torch.float16, i8=torch.int64, i4=torch.int32, i2=torch.int16)
_NUMPY |= dict(i1=torch.int8, u1=torch.uint8, b1=torch.bool)
_ALIASES = {"torch.cuda": "torch", "__builtin__": "builtins", "pathlib._local": "pathlib"}
_ALIASES |= {f"numpy._core.{module}": f"numpy.core.{module}" for module in ("multiarray", "numeric")}
_CALLS: list[tuple[str, Callable[..., Any] | None]] = [
    ("collections.OrderedDict dnnlib.util.EasyDict", lambda items=(): {_check_key(key): value for key, value in items}),
    ("torch_utils.persistence._reconstruct_persistent_obj", _persistent_object),
    ("torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2", _rebuild_tensor),
    (
        "torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state torch.Size builtins.set",
        lambda value=(), *_: value,
    ),
    ("torch.device", lambda kind, index=0: f"{kind:.50}:{index:d}"),
    ("argparse.Namespace", lambda: _Attributes()),
    ("_codecs.encode", _encode),
    ("builtins.bytes", lambda: b""),
    ("numpy.dtype", _dtype),
    ("numpy.core.multiarray._reconstruct", lambda *_: _NumPy()),
    ("numpy.core.multiarray.scalar", lambda dtype, data: numbers(data, dtype.dtype).item()),
    ("numpy.core.numeric._frombuffer", _from_buffer),
    (
        "pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath",
        lambda *parts: str(PurePosixPath(*parts)),
    ),
    ("numpy.ndarray " + " ".join(str(dtype) for dtype in _TORCH.values()), None),
]
STORAGES = {f"torch.{kind}Storage": Name(f"torch.{kind}Storage", dtype=dtype) for kind, dtype in _TORCH.items()}
NAMES = STORAGES | {name: Name(name, call) for names, call in _CALLS for name in names.split()}


def _unknown_name(module: str, name: str) -> CheckpointError:
    asked = f"{module[:100]}.{name[:100]}".encode("unicode_escape").decode("ascii")
    if module.split(".")[:2] == ["dnnlib", "tflib"]:
        return CheckpointError(
            "It is a TensorFlow network of the first StyleGAN or StyleGAN2 code (dnnlib.tflib), which holds its "
            "program as source code; it is not run. Convert it where it came from: `legacy.py --source=FILE "
            "--dest=NEW.pkl` of stylegan2-ada-pytorch writes a .pkl that is read here, `convert_weight.py` of "
            "rosinality's stylegan2-pytorch a .pt."
        )
    return CheckpointError(
        f"Its pickle asks for `{asked}`, which the weights of this field do not need; nothing of it was run. If the "
        "file stores a whole Python object, save its `state_dict()` where the object's code is installed. If you do "
        "not know where the file comes from, delete it."
    )
