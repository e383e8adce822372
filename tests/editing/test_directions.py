import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stylegan_inversion.editing.directions import Direction, load_directions, save_directions
from stylegan_inversion.errors import CheckpointError

NUM_WS, W_DIM = 6, 8
ENTRY: dict[str, Any] = {"layers": None, "strength_range": None, "description": ""}


def unit(seed: int, *shape: int) -> torch.Tensor:
    vector = torch.randn(*(shape or (W_DIM,)), generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm(dim=-1, keepdim=True)


def codes(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, NUM_WS, W_DIM, generator=torch.Generator().manual_seed(9))


def test_apply_moves_only_its_layers_and_keeps_its_input() -> None:
    w_plus, vector = codes(), unit(0)
    before = w_plus.clone()
    direction = Direction("smile", vector, layers=(1, 4))
    moved = direction.apply(w_plus, 3.0)
    assert torch.equal(w_plus, before)
    assert torch.equal(moved[:, [0, 4, 5]], w_plus[:, [0, 4, 5]])
    torch.testing.assert_close(moved[:, 1:4] - w_plus[:, 1:4], (3 * vector).expand(2, 3, W_DIM))
    chosen = direction.apply(w_plus, 1.0, layers=(5, 6))  # the call can choose others
    assert (chosen != w_plus).any(dim=2).tolist() == [[False] * 5 + [True]] * 2
    assert (Direction("smile", vector).apply(w_plus, 1.0) != w_plus).any(dim=2).all()


def test_apply_takes_one_strength_a_sample_and_one_vector_a_layer() -> None:
    w_plus, vector = codes(), unit(1, NUM_WS, W_DIM)
    moved = Direction("pose", vector, layers=(2, 6)).apply(w_plus, torch.tensor([0.0, -2.0]))
    assert torch.equal(moved[0], w_plus[0]) and torch.equal(moved[1, :2], w_plus[1, :2])
    torch.testing.assert_close(moved[1, 2:] - w_plus[1, 2:], -2 * vector[2:])


def test_apply_follows_the_dtype_of_the_codes_and_lets_gradients_through() -> None:
    w_plus = codes().double().requires_grad_()
    moved = Direction("smile", unit(0)).to("cpu").apply(w_plus, 1.0)
    assert moved.dtype == torch.float64
    moved.sum().backward()
    assert w_plus.grad is not None and torch.equal(w_plus.grad, torch.ones_like(w_plus))


def test_from_vector_normalises_and_keeps_the_proportions_between_layers() -> None:
    vector = torch.stack([3 * unit(0), torch.zeros(W_DIM), 4 * unit(1)])
    direction = Direction.from_vector("pose", vector, layers=(0, 1), strength_range=(-2.0, 2.0), description="turns")
    norms = direction.vector.norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([3.0, 0.0, 4.0]) / math.sqrt(25 / 3))
    assert norms.square().mean().item() == pytest.approx(1)
    assert (direction.layers, direction.strength_range, direction.description) == ((0, 1), (-2.0, 2.0), "turns")


def test_the_unit_of_strength() -> None:
    vector = 7 * unit(2, NUM_WS, W_DIM)
    direction = Direction.from_vector("pose", vector, unit=None)  # the norm of the vector, 7
    assert direction.unit == pytest.approx(7)
    torch.testing.assert_close(direction.apply(codes(), 2.0), codes() + 2 * vector)
    torch.testing.assert_close(Direction.from_vector("pose", vector, unit=0.5).step, vector / 14)
    farthest = Direction("age", unit(0), unit=1e6, strength_range=(-1e6, 1e6))
    assert farthest.apply(codes(), 1e6).isfinite().all()


def test_save_and_load_give_back_the_same_directions(tmp_path: Path) -> None:
    rows = unit(3, 3, W_DIM)  # views of one matrix
    directions = {
        "zoom": Direction("zoom", rows[0], (1, 3), (-2.5, 4.0), "närmare"),
        "age": Direction("age", rows[1].double()),
        "pose": Direction("pose", unit(4, NUM_WS, W_DIM)),
        "factor": Direction("factor", unit(5), unit=2.5, photo_limit=4.0),
    }
    save_directions(directions, tmp_path / "new" / "directions")
    loaded = load_directions(tmp_path / "new" / "directions")
    assert list(loaded) == ["zoom", "age", "pose", "factor"]
    for name, direction in directions.items():
        assert torch.equal(loaded[name].vector, direction.vector.float()) and loaded[name].vector.dtype == torch.float32
        for field in ("name", "layers", "strength_range", "description", "unit", "photo_limit"):
            assert getattr(loaded[name], field) == getattr(direction, field)
    save_directions({}, tmp_path)
    assert load_directions(tmp_path) == {}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_load_names_the_file_that_is_missing(tmp_path: Path, name: str) -> None:
    save_directions({"smile": Direction("smile", unit(0))}, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_directions(tmp_path)


@pytest.mark.parametrize(
    ("config", "vectors", "message"),
    [
        ({"directions": ["smile"]}, {}, r'must hold \{"directions": \{NAME: ...\}\}'),
        ({"directions": {"smile": ENTRY}}, {"age": unit(0)}, r"the directions \['smile'\], model.* holds \['age'\]"),
        ({"directions": {"smile": None}}, {"smile": unit(0)}, r"'smile' .* is not valid: its entry must have the keys"),
        ({"directions": {"smile": {**ENTRY, "x": 1}}}, {"smile": unit(0)}, r"'smile' .* must have the keys"),
        ({"directions": {"smile": {**ENTRY, "layers": [1]}}}, {"smile": unit(0)}, "'smile' in .* is not valid"),
        ({"directions": {"smile": {**ENTRY, "layers": [0, math.inf]}}}, {"smile": unit(0)}, "is not valid"),
        ({"directions": {"smile": ENTRY}}, {"smile": 2 * unit(0)}, r"is not valid: `vector` of direction 'smile' must"),
        ({"directions": {"smile": ENTRY}}, {"smile": torch.zeros(0, 3)}, "is not valid: `vector` of direction 'smile'"),
    ],
)
def test_load_refuses(tmp_path: Path, config: object, vectors: dict[str, torch.Tensor], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(vectors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_directions(tmp_path)
