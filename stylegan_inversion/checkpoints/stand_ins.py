"""Our own stand-ins for what a checkpoint holds: tensors as places in the file, objects as names and attributes.

Standard library only: the reading process starts without PyTorch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stylegan_inversion.errors import CheckpointError

Bytes = bytes | memoryview

# NumPy's codes -> safetensors' names; bytes of one number.
NUMPY_CODES = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u1": "U8"}
NUMPY_CODES |= {"b1": "BOOL"}
ITEM_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, eq=False)
class Global:
    """A name of the table. `build` gets the arguments of a call; `dtype` marks the class of a storage."""

    name: str
    build: Callable[..., Any] | None = None
    dtype: str | None = None


@dataclass(eq=False)
class Storage:
    """A run of numbers. The data may come later, from another part of the file."""

    dtype: str
    numel: int
    data: Bytes | None = None

    def fill(self, data: Bytes) -> None:
        """Take the numbers, after checking how many there are."""
        if len(data) != self.numel * ITEM_SIZES[self.dtype]:
            raise CheckpointError(
                f"A tensor's data is {len(data)} bytes long, but {self.numel} numbers of {self.dtype} were announced; "
                "the file is damaged: fetch it again."
            )
        self.data = data


@dataclass(frozen=True, eq=False)
class TensorView:
    """A tensor: a storage, where it begins there, its shape and strides, in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Module:
    """A network that NVIDIA's `persistence` pickled whole: its source code is dropped, unread."""

    class_name: str
    state: dict[Any, Any]


@dataclass(eq=False)
class LongText:
    """A text that is not decoded: source code, or the bytes of a tensor in a pickle of protocol 2."""

    utf8: memoryview
    encoded: bytes | None = None  # asked for twice, made once


class Attributes(dict[Any, Any]):
    """An object that is known by its attributes: `argparse.Namespace`."""


@dataclass(eq=False)
class DType:
    """A NumPy dtype."""

    dtype: str
    little_endian: bool = True


@dataclass(eq=False)
class Array:
    """A NumPy array, which is filled after it is made."""

    tensor: TensorView | None = None


def make_tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> TensorView:
    """Check that a tensor lies inside its storage.

    Raises:
        CheckpointError: If it does not.
    """
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or any(type(n) is not int or not 0 <= n < 2**62 for n in numbers):
        raise CheckpointError("A tensor of the file has a storage, an offset, a shape or strides that are none.")
    if len(shape) != len(stride) or len(shape) > 16:
        raise CheckpointError(f"A tensor of the file has {len(shape)} sizes and {len(stride)} strides.")
    end = offset + sum((n - 1) * s for n, s in zip(shape, stride)) + 1 if 0 not in shape else 0
    if end > storage.numel:
        raise CheckpointError(
            f"A tensor of shape {tuple(shape)} reaches beyond its storage: to {end} of {storage.numel} numbers."
        )
    return TensorView(storage, offset, tuple(shape), tuple(stride))


def contiguous(storage: Storage, shape: tuple[int, ...], *, fortran: bool = False) -> TensorView:
    """The view of a storage that lies row by row, or (`fortran`) column by column."""
    if len(shape) > 16 or any(type(size) is not int or not 0 <= size < 2**62 for size in shape):
        raise CheckpointError("An array of the file has a shape that is none.")
    sizes = shape if fortran else shape[::-1]
    strides = [math.prod(sizes[:i]) for i in range(len(sizes))]
    return make_tensor(storage, 0, shape, tuple(strides if fortran else strides[::-1]))
