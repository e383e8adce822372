import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stylegan_inversion.editing.directions import (
    Direction,
    apply_directions,
    layer_slice,
    load_directions,
    save_directions,
)
from stylegan_inversion.errors import CheckpointError

NUM_WS, W_DIM = 6, 8


def unit(seed: int, *shape: int) -> torch.Tensor:
    vector = torch.randn(*(shape or (W_DIM,)), generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm(dim=-1, keepdim=True)


def codes(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, NUM_WS, W_DIM, generator=torch.Generator().manual_seed(9))


def test_apply_moves_only_its_layers_and_keeps_its_input() -> None:
    w_plus, vector = codes(), unit(0)
    before = w_plus.clone()
    moved = Direction("smile", vector, layers=(1, 4)).apply(w_plus, 3.0)
    assert torch.equal(w_plus, before)
    assert torch.equal(moved[:, [0, 4, 5]], w_plus[:, [0, 4, 5]])
    torch.testing.assert_close(moved[:, 1:4] - w_plus[:, 1:4], (3 * vector).expand(2, 3, W_DIM))


def test_apply_without_layers_moves_all_and_the_call_can_choose() -> None:
    w_plus, direction = codes(), Direction("smile", unit(0))
    assert (direction.apply(w_plus, 1.0) != w_plus).any(dim=2).all()
    moved = Direction("smile", unit(0), layers=(0, 2)).apply(w_plus, 1.0, layers=(5, 6))
    assert (moved != w_plus).any(dim=2).tolist() == [[False] * 5 + [True]] * 2


def test_apply_takes_one_strength_a_sample() -> None:
    w_plus, direction = codes(), Direction("smile", unit(0))
    moved = direction.apply(w_plus, torch.tensor([0.0, -2.0]))
    assert torch.equal(moved[0], w_plus[0])
    assert torch.equal(moved[1], direction.apply(w_plus[1:], -2.0)[0])


def test_apply_with_one_vector_a_layer() -> None:
    w_plus, vector = codes(), unit(1, NUM_WS, W_DIM)
    moved = Direction("pose", vector, layers=(2, 6)).apply(w_plus, 2.0)
    torch.testing.assert_close(moved[:, 2:] - w_plus[:, 2:], (2 * vector[2:]).expand(2, 4, W_DIM))
    assert torch.equal(moved[:, :2], w_plus[:, :2])


def test_apply_follows_the_dtype_of_the_codes_and_lets_gradients_through() -> None:
    w_plus = codes().double().requires_grad_()
    moved = Direction("smile", unit(0)).apply(w_plus, 1.0)
    assert moved.dtype == torch.float64
    moved.sum().backward()
    assert w_plus.grad is not None and torch.equal(w_plus.grad, torch.ones_like(w_plus))


@given(first=st.floats(-30, 30), second=st.floats(-30, 30))
def test_steps_add_up_and_can_be_undone(first: float, second: float) -> None:
    w_plus, direction = codes().double(), Direction("smile", unit(0), layers=(1, 5))
    twice = direction.apply(direction.apply(w_plus, first), second)
    torch.testing.assert_close(twice, direction.apply(w_plus, first + second))
    torch.testing.assert_close(direction.apply(twice, -first - second), w_plus)


def test_from_vector_normalises() -> None:
    vector = 5 * torch.ones(2, W_DIM)
    direction = Direction.from_vector("age", vector, layers=(0, 1), strength_range=(-2.0, 2.0), description="years")
    torch.testing.assert_close(direction.vector.norm(dim=1), torch.ones(2))
    assert (direction.layers, direction.strength_range, direction.description) == ((0, 1), (-2.0, 2.0), "years")


def test_from_vector_keeps_the_proportions_between_layers() -> None:
    vector = torch.stack([3 * unit(0), torch.zeros(W_DIM), 4 * unit(1)])
    direction = Direction.from_vector("pose", vector)
    norms = direction.vector.norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([3.0, 0.0, 4.0]) / math.sqrt(25 / 3))
    assert norms.square().mean().item() == pytest.approx(1)


def test_the_unit_of_strength() -> None:
    vector = 7 * unit(2, NUM_WS, W_DIM)
    direction = Direction.from_vector("pose", vector, unit=None)  # the norm of the vector, 7
    assert direction.unit == pytest.approx(7)
    torch.testing.assert_close(direction.step, vector)
    torch.testing.assert_close(direction.apply(codes(), 2.0), codes() + 2 * vector)
    torch.testing.assert_close(Direction.from_vector("pose", vector, unit=0.5).step, vector / 14)
    for unit_that_is_none in (0.0, -1.0, math.nan, math.inf, 1e300, 1e-300):
        with pytest.raises(ValueError, match=r"`unit` of direction 'age' must be a number in \[1e-06, 1e\+06\], got"):
            Direction("age", unit(0), unit=unit_that_is_none)
    farthest = Direction("age", unit(0), unit=1e6, strength_range=(-1e6, 1e6))
    assert farthest.apply(codes(), 1e6).isfinite().all()


def test_from_vector_refuses_zero() -> None:
    with pytest.raises(ValueError, match="'age' must not be zero"):
        Direction.from_vector("age", torch.zeros(2, 3))


@pytest.mark.parametrize("name", ["", "open eyes", "a=b", "5 o'clock"])
def test_name_must_be_an_identifier(name: str) -> None:
    with pytest.raises(ValueError, match="`name` must be a Python identifier"):
        Direction(name, unit(0))


@pytest.mark.parametrize("vector", [torch.zeros(0, 4), torch.ones(1, 1, 1)], ids=["empty", "3-D"])
def test_vector_must_have_a_shape_that_means_something(vector: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(w_dim,\) or \(num_ws, w_dim\)"):
        Direction("smile", vector)


def test_vector_must_be_finite() -> None:
    with pytest.raises(ValueError, match="'smile' must be finite"):
        Direction("smile", torch.tensor([math.nan, 1.0]))


@pytest.mark.parametrize("vector", [torch.zeros(4), 1.01 * unit(0), torch.stack([unit(0), 2 * unit(1)])])
def test_vector_must_have_unit_norm(vector: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must have unit norm .* `Direction.from_vector` normalises"):
        Direction("smile", vector)


@pytest.mark.parametrize("strength_range", [(1.0, 1.0), (2.0, -2.0), (-math.inf, 1.0), (0.0, math.nan), (0.0, 1e300)])
def test_strength_range_must_be_one(strength_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="`strength_range` of direction 'smile' must be"):
        Direction("smile", unit(0), strength_range=strength_range)


@pytest.mark.parametrize("layers", [(3, 3), (4, 2), (-1, 2)])
def test_layers_must_not_be_empty(layers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="0 <= start < stop <= num_ws, got"):
        Direction("smile", unit(0), layers=layers)


def test_layers_must_be_inside_a_vector_a_layer() -> None:
    with pytest.raises(ValueError, match=r"stop <= 2, got \(0, 3\)"):
        Direction("pose", unit(0, 2, W_DIM), layers=(0, 3))


@pytest.mark.parametrize("own, asked", [((0, 7), None), (None, (5, 8)), ((0, 2), (6, 7)), (None, (0, 0))])
def test_apply_refuses_layers_the_codes_do_not_have(own: tuple[int, int], asked: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="stop <= 6, got"):
        Direction("smile", unit(0), layers=own).apply(codes(), 1.0, layers=asked)


@pytest.mark.parametrize("vector", [unit(0, 7), unit(0, 5, W_DIM)], ids=["w_dim", "num_ws"])
def test_apply_refuses_codes_of_another_generator(vector: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"does not fit `w_plus` of shape \(2, 6, 8\)"):
        Direction("smile", vector).apply(codes(), 1.0)


@pytest.mark.parametrize("strength", [math.nan, math.inf, torch.tensor([0.0, math.nan])])
def test_apply_refuses_a_strength_that_is_not_finite(strength: float | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="`strength` of 'smile' must be finite"):
        Direction("smile", unit(0)).apply(codes(), strength)


def test_apply_refuses_strengths_for_another_batch() -> None:
    with pytest.raises(ValueError, match=r"`strength` must be one number or 2 \(one a sample\), got 3"):
        Direction("smile", unit(0)).apply(codes(), torch.zeros(3))


def test_to_keeps_everything_else() -> None:
    direction = Direction("smile", unit(0), layers=(0, 2), strength_range=(-1.0, 1.0), description="d", unit=2.0)
    moved = direction.to("cpu")
    assert torch.equal(moved.vector, direction.vector) and moved.unit == 2.0
    assert (moved.name, moved.layers, moved.strength_range, moved.description) == ("smile", (0, 2), (-1.0, 1.0), "d")


def test_layer_slice() -> None:
    assert layer_slice((2, 5)) == slice(2, 5) == layer_slice((2, 5), 5)
    with pytest.raises(ValueError, match=r"stop <= 4, got \(2, 5\)"):
        layer_slice((2, 5), 4)


def test_several_edits_add_up_in_any_order() -> None:
    w_plus = codes()
    known = {
        "smile": Direction("smile", unit(0), layers=(0, 4)),
        "age": Direction("age", unit(1)),
        "yaw": Direction("yaw", unit(2)),
    }
    both = apply_directions(w_plus, known, strengths={"smile": 2.0, "age": -1.0})
    expected = w_plus - unit(1)
    expected[:, :4] += 2 * unit(0)
    torch.testing.assert_close(both, expected)
    torch.testing.assert_close(apply_directions(w_plus, known, strengths={"age": -1.0, "smile": 2.0}), both)


def test_no_edit_is_a_copy() -> None:
    w_plus = codes()
    same = apply_directions(w_plus, {}, strengths={})
    assert torch.equal(same, w_plus) and same.data_ptr() != w_plus.data_ptr()


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    known = {"smile": Direction("smile", unit(0)), "age": Direction("age", unit(1))}
    with pytest.raises(
        ValueError, match=r"no direction 'simle'. Did you mean 'smile'\? Known directions: age, smile\."
    ):
        apply_directions(codes(), known, strengths={"simle": 1.0})
    with pytest.raises(ValueError, match=r"no direction 'smile'. Known directions: none\."):
        apply_directions(codes(), {}, strengths={"smile": 1.0})


def test_save_and_load_give_back_the_same_directions(tmp_path: Path) -> None:
    rows = unit(3, 3, W_DIM)  # views of one matrix
    directions = {
        "zoom": Direction("zoom", rows[0], (1, 3), (-2.5, 4.0), "närmare"),
        "age": Direction("age", rows[1].double()),
        "pose": Direction("pose", unit(4, NUM_WS, W_DIM)),
        "factor": Direction("factor", unit(5), unit=2.5),
    }
    save_directions(directions, tmp_path / "new" / "directions")
    loaded = load_directions(tmp_path / "new" / "directions")
    assert list(loaded) == ["zoom", "age", "pose", "factor"]
    for name, direction in directions.items():
        assert torch.equal(loaded[name].vector, direction.vector.float()) and loaded[name].vector.dtype == torch.float32
        for field in ("name", "layers", "strength_range", "description", "unit"):
            assert getattr(loaded[name], field) == getattr(direction, field)


def test_an_empty_bank_can_be_saved(tmp_path: Path) -> None:
    save_directions({}, tmp_path)
    assert load_directions(tmp_path) == {}


def test_save_refuses_a_key_that_is_not_the_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key 'happy' must be the name of its direction, which is 'smile'"):
        save_directions({"happy": Direction("smile", unit(0))}, tmp_path)


def saved(folder: Path) -> Path:
    save_directions({"smile": Direction("smile", unit(0))}, folder)
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_load_names_the_file_that_is_missing(tmp_path: Path, name: str) -> None:
    (saved(tmp_path) / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_directions(tmp_path)


@pytest.mark.parametrize("config", [{}, {"directions": ["smile"]}])
def test_load_refuses_another_config(tmp_path: Path, config: dict[str, object]) -> None:
    (saved(tmp_path) / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r'must hold \{"directions": \{NAME: ...\}\}'):
        load_directions(tmp_path)


def test_load_refuses_files_that_disagree(tmp_path: Path) -> None:
    save_file({"age": unit(0)}, saved(tmp_path) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"names the directions \['smile'\], model.safetensors holds \['age'\]"):
        load_directions(tmp_path)


@pytest.mark.parametrize(
    "entry", [None, {"layers": None}, {"layers": None, "strength_range": None, "description": "", "x": 1}]
)
def test_load_refuses_an_entry_with_other_keys(tmp_path: Path, entry: object) -> None:
    (saved(tmp_path) / "config.json").write_text(json.dumps({"directions": {"smile": entry}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"entry of direction 'smile' .* must have the keys"):
        load_directions(tmp_path)


@pytest.mark.parametrize("layers", [3, [1], [0, "x"], [4, 2], [0, math.inf]])
def test_load_refuses_layers_that_are_none(tmp_path: Path, layers: object) -> None:
    entry = {"layers": layers, "strength_range": None, "description": ""}
    (saved(tmp_path) / "config.json").write_text(json.dumps({"directions": {"smile": entry}}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"direction 'smile' in .* is not valid"):
        load_directions(tmp_path)


@pytest.mark.parametrize("vector", [2 * unit(0), torch.arange(3), torch.zeros(0, 3), torch.ones(1, 1, 1)])
def test_load_refuses_a_vector_that_is_no_direction(tmp_path: Path, vector: torch.Tensor) -> None:
    save_file({"smile": vector}, saved(tmp_path) / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"direction 'smile' in .* is not valid: `vector` of direction 'smile' must"
    ):
        load_directions(tmp_path)
