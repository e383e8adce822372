from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion.checkpoints.direction import (
    components_from_ganspace,
    direction_from_official,
    vector_from_official,
)
from stylegan_inversion.editing.ganspace import fit_pca
from stylegan_inversion.errors import CheckpointError
from tests.checkpoints.official_files import components_to_ganspace

UNIT = torch.tensor([0.6, 0.8])
LAYERS = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-1.0, 2.0]])


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        (UNIT, (2,)),
        (UNIT[None], (2,)),
        (UNIT[None].double(), (2,)),
        (UNIT.repeat(5, 1), (2,)),
        (UNIT.repeat(1, 5, 1), (2,)),
        (UNIT.half(), (2,)),
        (UNIT * 20, (2,)),
        (LAYERS, (3, 2)),
        (LAYERS[None], (3, 2)),
        (LAYERS.reshape(1, 6), (3, 2)),
        (LAYERS.reshape(6), (3, 2)),
    ],
)
def test_vector(tensor: Tensor, shape: tuple[int, ...]) -> None:
    vector = vector_from_official(tensor, w_dim=2)
    assert vector.dtype == torch.float32 and vector.shape == shape
    assert torch.allclose(vector.expand(tensor.numel() // 2, 2), tensor.float().reshape(-1, 2), atol=1e-3)


def test_rows_of_one_direction_and_rows_of_other_lengths() -> None:
    assert vector_from_official(UNIT.repeat(5, 1)).shape == (2,)  # one direction, for generators of any size
    uneven = torch.stack([UNIT, 2 * UNIT])  # parallel, but the layers move differently: that stays
    assert torch.equal(vector_from_official(uneven), uneven)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (UNIT.long(), r"Not a direction, .*: it has shape \(2,\) and type torch.int64"),
        (torch.tensor(1.0), r"it has shape \(\)"),
        (torch.zeros(0), r"it has shape \(0,\)"),
        (UNIT.expand(1, 1, 1, 2), r"it has shape \(1, 1, 1, 2\)"),
        (UNIT.repeat(3, 5, 1), r"Not a direction but 3 style codes: shape \(3, 5, 2\)"),
        (UNIT * torch.nan, r"Not a direction: it is zero, or holds NaN or infinity"),
        (UNIT * 0, r"Not a direction: it is zero, or holds NaN or infinity"),
    ],
)
def test_not_a_vector(tensor: Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        vector_from_official(tensor)


def test_direction() -> None:
    direction = direction_from_official(UNIT[None], name="age", description="e4e")
    assert (direction.name, direction.description) == ("age", "e4e")
    assert torch.equal(direction.step, UNIT)
    layered = direction_from_official(LAYERS, name="pose")
    assert torch.allclose(layered.step, LAYERS)
    assert torch.allclose(direction_from_official(LAYERS, name="pose", unit=2.0).step, LAYERS * (2 / layered.unit))
    with pytest.raises(ValueError, match="`name` must be a Python identifier"):
        direction_from_official(UNIT, name="a b")


def test_components_there_and_back() -> None:
    w = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    principal = fit_pca(w, 3)
    official = components_to_ganspace(principal)
    assert {key: tuple(tensor.shape) for key, tensor in official.items()} == {
        "mean": (1, 4),
        "comp": (3, 1, 4),
        "std": (3,),
    }
    back = components_from_ganspace(official)
    for name in ("mean", "components", "std"):
        assert torch.equal(getattr(back, name), getattr(principal, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": 3}, r"Not GANSpace's components, `mean` \(1, w_dim\), .*: "),
        ({"mean": torch.zeros(1, 5)}, r"Not GANSpace's components, .*: shape '\[4\]' is invalid"),
        ({"std": torch.ones(3)}, r"Not GANSpace's components, .*: shape '\[3, 4\]' is invalid"),
        ({"comp": torch.tensor(1.0)}, r"Not GANSpace's components"),
        ({"std": torch.zeros(2)}, r"Not GANSpace's components.*: `std` must be positive"),
    ],
)
def test_components_that_are_none(change: dict[str, Any], message: str) -> None:
    official = {"mean": torch.zeros(1, 4), "comp": torch.eye(4)[:2, None], "std": torch.ones(2), **change}
    with pytest.raises(CheckpointError, match=message):
        components_from_ganspace(official)
