"""Directions and components of the field's files, in every layout; what is none says so."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion.checkpoints.direction import components_from_ganspace, vector_from_official
from stylegan_inversion.errors import CheckpointError

UNIT = torch.tensor([0.6, 0.8])


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
