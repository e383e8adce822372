"""What a checkpoint's pickle may name: an exact table, each name with a function of ours that runs none of theirs.

A pickle names functions and asks for calls to them. Here a name is looked up in a table of (module, name), whole, and
what answers is a function of this file that only arranges its arguments. Nothing is imported, looked up by `getattr` or
called by a name of the file's own. Standard library only: the reading process starts without PyTorch.
"""

import struct
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from stylegan_inversion.checkpoints.stand_ins import (
    ITEM_SIZES,
    NUMPY_CODES,
    Array,
    Attributes,
    Bytes,
    DType,
    Global,
    LongText,
    Module,
    Storage,
    TensorView,
    contiguous,
    make_tensor,
)
from stylegan_inversion.errors import CheckpointError

Table = Mapping[tuple[str, str], Global]

# PyTorch's storage classes -> safetensors' names; those -> struct's codes.
_STORAGES = {"Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32"}
_STORAGES |= {"Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL"}
_STRUCT_CODES = {
    "F64": "d",
    "F32": "f",
    "F16": "e",
    "I64": "q",
    "I32": "i",
    "I16": "h",
    "I8": "b",
    "U8": "B",
    "BOOL": "?",
}


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorView:
    # rest: requires_grad, backward_hooks, metadata
    if any(isinstance(value, dict) and value for value in rest[1:2]):
        raise CheckpointError("A tensor of the file carries backward hooks, which are functions; weights have none.")
    return make_tensor(storage, offset, shape, stride)


def _rebuild_parameter(data: Any, *_: Any) -> TensorView:
    if not isinstance(data, TensorView):
        raise CheckpointError("A parameter of the file holds no tensor.")
    return data


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    return {check_key(key): value for key, value in items}


def _persistent_object(meta: Any) -> Module:
    if not isinstance(meta, dict) or type(name := meta.get("class_name")) is not str or len(name) > 100:
        raise CheckpointError("The file holds an object of NVIDIA's `persistence` without the name of its class.")
    if not isinstance(state := meta.get("state"), dict):
        raise CheckpointError(f"The file holds a {name} of NVIDIA's `persistence` without a state.")
    return Module(name, state)


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """The one text codec of pickles of protocol 2, where bytes travel as text; in steps, so that it stays small."""
    if encoding not in ("latin1", "latin-1"):
        raise CheckpointError(f"The pickle encodes a text as {str(encoding)[:50]!r}; bytes travel as latin1.")
    if isinstance(text, str):
        return text.encode("latin-1")
    if not isinstance(text, LongText):
        raise CheckpointError("The pickle encodes something that is no text.")
    if text.encoded is not None:
        return text.encoded
    encoded, start = bytearray(), 0
    while start < len(text.utf8):
        end = min(start + 2**20, len(text.utf8))
        while end < len(text.utf8) and text.utf8[end] & 0xC0 == 0x80:  # not inside a character
            end += 1
        encoded += str(text.utf8[start:end], "utf-8").encode("latin-1")
        start = end
    text.encoded = bytes(encoded)
    return text.encoded


def _empty_bytes() -> bytes:
    return b""


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise CheckpointError("A path of the file is made of something that is no text.")
    return str(PurePosixPath(*parts))


def _device(kind: Any, index: Any = None) -> str:
    return str(kind)[:50] if index is None else f"{str(kind)[:50]}:{str(index)[:50]}"


def _list(items: Any = ()) -> list[Any]:
    return list(items)


def _dtype(code: Any, *_: Any) -> DType:
    if code not in NUMPY_CODES:
        raise CheckpointError(f"The file holds a NumPy array of type {str(code)[:50]!r}; only numbers are read.")
    return DType(NUMPY_CODES[code])


def _numbers(dtype: Any, data: Any) -> Storage:
    if not isinstance(dtype, DType) or not dtype.little_endian:
        raise CheckpointError("The file holds NumPy numbers of a type or byte order that is not read.")
    if not isinstance(data, Bytes):
        raise CheckpointError("The file holds a NumPy array of Python objects; only numbers are read.")
    storage = Storage(dtype.dtype, len(data) // ITEM_SIZES[dtype.dtype])
    storage.fill(data)
    return storage


def _scalar(dtype: Any, data: Any) -> bool | int | float:
    storage = _numbers(dtype, data)
    if storage.numel != 1:
        raise CheckpointError(f"A NumPy scalar of the file holds {storage.numel} numbers.")
    return struct.unpack(f"<{_STRUCT_CODES[storage.dtype]}", data)[0]


def _reconstruct(*_: Any) -> Array:
    return Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> TensorView:
    return contiguous(_numbers(dtype, data), tuple(shape), fortran=order == "F")


def check_key(key: Any) -> Any:
    """Keys of a dict are plain values.

    Raises:
        CheckpointError: If one is not.
    """
    if key is not None and type(key) not in (str, int, float, bool):
        raise CheckpointError(f"A dict of the file has a key of type {type(key).__name__}; keys are texts or numbers.")
    return key


def build(target: Any, state: Any) -> None:
    """Give an object its state, the pickle's BUILD.

    Raises:
        CheckpointError: If it is none of those that take one, or the state is not what they take.
    """
    if isinstance(target, Attributes) and isinstance(state, dict):
        target.update(state)
    elif type(target) is dict and isinstance(state, dict):
        pass  # an OrderedDict's own attributes: `_metadata` of a state dict
    elif isinstance(target, DType) and isinstance(state, tuple) and len(state) >= 5:
        target.little_endian = state[1] in ("<", "|", "=")
        if state[2:5] != (None, None, None):
            raise CheckpointError("The file holds a NumPy array of records; only numbers are read.")
    elif isinstance(target, Array) and isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, fortran, data = state
        target.tensor = contiguous(_numbers(dtype, data), shape, fortran=fortran is True)
    else:
        raise CheckpointError(f"The pickle gives a state to a {type(target).__name__}, which takes none.")


def table(load_from_bytes: Callable[[Any], Any] | None) -> Table:
    """The names that are known.

    Args:
        load_from_bytes: Reads the storages that are pickled inside a pickle. `None` inside of those.
    """
    names: dict[str, Callable[..., Any] | None] = {
        "collections OrderedDict": _ordered_dict,
        "dnnlib.util EasyDict": _ordered_dict,
        "torch_utils.persistence _reconstruct_persistent_obj": _persistent_object,
        "torch._utils _rebuild_tensor": _rebuild_tensor,
        "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils _rebuild_parameter": _rebuild_parameter,
        "torch._utils _rebuild_parameter_with_state": _rebuild_parameter,
        "torch device": _device,
        "torch Size": _list,
        "argparse Namespace": Attributes,
        "_codecs encode": _encode,
        "numpy dtype": _dtype,
        "numpy ndarray": None,
    }
    for module in ("numpy.core", "numpy._core"):
        names |= {f"{module}.multiarray scalar": _scalar, f"{module}.multiarray _reconstruct": _reconstruct}
        names[f"{module}.numeric _frombuffer"] = _from_buffer
    for module in ("builtins", "__builtin__"):
        names |= {f"{module} set": _list, f"{module} bytes": _empty_bytes}
    for module in ("pathlib", "pathlib._local"):
        names |= dict.fromkeys(
            (f"{module} {kind}Path" for kind in ("Posix", "Windows", "PurePosix", "PureWindows")), _path
        )
    for kind in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        names[f"torch {kind}"] = None
    if load_from_bytes is not None:
        names["torch.storage _load_from_bytes"] = load_from_bytes
    known: dict[tuple[str, str], Global] = {}
    for full, function in names.items():
        module, name = full.split(" ")
        known[module, name] = Global(f"{module}.{name}", function)
    for kind, dtype in _STORAGES.items():
        for module in ("torch", "torch.cuda"):
            known[module, f"{kind}Storage"] = Global(f"{module}.{kind}Storage", dtype=dtype)
    return known


def unknown_name(module: str, name: str) -> CheckpointError:
    """The error for a name that is not in the table."""
    shown = f"{module[:100]}.{name[:100]}".encode("unicode_escape").decode("ascii")
    if module.split(".")[:2] == ["dnnlib", "tflib"]:
        return CheckpointError(
            "It is a TensorFlow network of the first StyleGAN or StyleGAN2 code (dnnlib.tflib), which holds its "
            "program as source code; it is not run. Convert it where it came from: `legacy.py --source=FILE "
            "--dest=NEW.pkl` of stylegan2-ada-pytorch writes a .pkl that is read here, `convert_weight.py` of "
            "rosinality's stylegan2-pytorch a .pt."
        )
    if module.startswith(("torch.jit", "__torch__")):
        return CheckpointError(f"It is TorchScript ({shown}), a program; save the network's `state_dict()` instead.")
    return CheckpointError(
        f"Its pickle asks for `{shown}`, which the weights of this field do not need; nothing of it was run. If the "
        "file stores a whole Python object, save its `state_dict()` where the object's code is installed. If you do "
        "not know where the file comes from, delete it."
    )
