"""Directions and components of the field's files, in every layout; what is none says so."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion.checkpoints.direction import components_from_ganspace, vector_from_official
from stylegan_inversion.editing.ganspace import fit_pca
from stylegan_inversion.errors import CheckpointError

UNIT = torch.tensor([0.6, 0.8])
LAYERS = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-1.0, 2.0]])


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        (UNIT, (2,)),
        (UNIT[None].double() * 20, (2,)),
        (UNIT.half().repeat(1, 5, 1), (2,)),  # one direction, for generators of any size
        (torch.stack([UNIT, 2 * UNIT]), (2, 2)),  # parallel, but the layers move differently: that stays
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


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (UNIT.long(), r"Not a direction, .*: it has shape \(2,\) and type torch.int64"),
        (torch.tensor(1.0), r"it has shape \(\)"),
        (torch.zeros(0), r"it has shape \(0,\)"),
        (UNIT.expand(1, 1, 1, 2), r"it has shape \(1, 1, 1, 2\)"),
        (UNIT.repeat(3, 5, 1), r"it has shape \(3, 5, 2\)"),
        (UNIT * torch.nan, r"Not a direction: it is zero, or holds NaN or infinity"),
        (UNIT * 0, r"Not a direction: it is zero, or holds NaN or infinity"),
    ],
)
def test_not_a_vector(tensor: Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        vector_from_official(tensor)


def test_components() -> None:
    principal = fit_pca(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), 3)
    official = {"mean": principal.mean[None], "comp": principal.components[:, None], "std": principal.std}
    back = components_from_ganspace(official)
    assert all(torch.equal(getattr(back, name), getattr(principal, name)) for name in ("mean", "components", "std"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": 3}, r"Not GANSpace's components, `mean` \(1, w_dim\), .*: "),
        ({"mean": torch.zeros(1, 5)}, r"Not GANSpace's components, .*: shape '\[4\]' is invalid"),
        ({"comp": torch.tensor(1.0)}, r"Not GANSpace's components"),
        ({"std": torch.zeros(2)}, r"Not GANSpace's components.*: `std` must be positive"),
    ],
)
def test_not_components(change: dict[str, Any], message: str) -> None:
    official = {"mean": torch.zeros(1, 4), "comp": torch.eye(4)[:2, None], "std": torch.ones(2), **change}
    with pytest.raises(CheckpointError, match=message):
        components_from_ganspace(official)
