"""Outputs of the papers' own code (`tests/data/NAME.json` + `NAME.safetensors`), and the rule that draws its inputs.

Weights and inputs are not stored: each tensor is drawn from a stream of its own, seeded by its key, so the checkpoint
that the official code ran on can be rebuilt to the last bit.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent / "data"


def draw(key: str, shape: Sequence[int], rule: Sequence[Any], seed: int) -> NDArray[Any]:
    """Draw the tensor `key`: float32, or int64 under the rule "int". Exact on every machine."""
    kind, *arguments = rule
    shape = tuple(shape)
    if kind == "int":
        return np.full(shape, arguments[0], dtype=np.int64)
    if kind == "values":
        return np.asarray(arguments[0], dtype=np.float32).reshape(shape)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + 1000003 * seed))
    if kind == "normal":
        mean, std = (np.float32(value) for value in arguments)
        return np.asarray(mean + std * generator.standard_normal(shape, dtype=np.float32))
    assert kind == "uniform", kind
    low, high = arguments
    return np.asarray(np.float32(low) + np.float32(high - low) * generator.random(shape, dtype=np.float32))


def draw_state_dict(spec: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Tensor]:
    """Draw every tensor of `spec` (`{key: {"shape", "rule"[, "clamp"]}}`): a state dict, or the inputs of a case."""

    def tensor(key: str) -> Tensor:
        drawn = torch.from_numpy(draw(key, spec[key]["shape"], spec[key]["rule"], seed))
        return drawn.clamp(*spec[key]["clamp"]) if "clamp" in spec[key] else drawn

    with ThreadPoolExecutor(2) as pool:  # NumPy draws without Python's lock
        return dict(zip(spec, pool.map(tensor, spec)))


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read `tests/data/NAME.json` (how to draw the inputs) and `NAME.safetensors` (outputs of the official code)."""
    case = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return case, load_file(DATA / f"{name}.safetensors")


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """`max |ours - theirs| / max |theirs|`; infinite where the shapes differ or ours is not finite."""
    if ours.shape != theirs.shape:
        return math.inf
    error = ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()
    return error if math.isfinite(error) else math.inf
