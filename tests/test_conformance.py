import math
from typing import Any

import numpy as np
import torch

from tests.conformance import draw, draw_state_dict, relative_error


def test_draw_is_the_published_stream() -> None:
    # The same numbers on every machine and NumPy version, or nothing that is compared with them means anything.
    generator = np.random.Generator(np.random.PCG64(3632233996 + 1000003 * 7))  # zlib.crc32(b"test")
    expected = generator.standard_normal((2, 3), dtype=np.float32) * np.float32(0.5) + np.float32(1)
    ours = draw("test", [2, 3], ["normal", 1, 0.5], 7)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, expected)


def test_draw_uniform_values_and_int() -> None:
    uniform = draw("u", [1000], ["uniform", 2, 3], 0)
    assert uniform.dtype == np.float32 and 2 <= uniform.min() < 2.1 and 2.9 < uniform.max() <= 3
    np.testing.assert_array_equal(draw("v", [2, 1], ["values", [0.25, 0.5]], 0), np.array([[0.25], [0.5]], np.float32))
    count = draw("c", [], ["int", 3], 0)
    assert count.dtype == np.int64 and count.shape == () and count == 3


def test_state_dict_is_clamped_where_asked() -> None:
    spec: dict[str, dict[str, Any]] = {
        "x": {"shape": [100], "rule": ["normal", 0, 1], "clamp": [-1, 1]},
        "n": {"shape": [], "rule": ["int", 0]},
    }
    tensors = draw_state_dict(spec, 1)
    assert tensors["x"].max() == 1 and tensors["x"].min() == -1
    assert tensors["n"].dtype == torch.int64 and tensors["n"].shape == ()


def test_relative_error() -> None:
    theirs = torch.tensor([1.0, -4.0])
    assert relative_error(torch.tensor([1.0, -3.0]), theirs) == 0.25
    assert relative_error(torch.tensor([[1.0, -4.0]]), theirs) == math.inf
    assert relative_error(torch.tensor([1.0, math.nan]), theirs) == math.inf
