import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylegan_inversion.editing.interfacegan import condition_boundary, fit_boundary
from stylegan_inversion.errors import MissingDependencyError
from tests.conformance import draw, load_case, relative_error


def problem(num_samples: int = 1000, w_dim: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(num_samples, w_dim, generator=generator)
    truth = torch.nn.functional.normalize(torch.randn(w_dim, generator=generator), dim=0)
    return w, w @ truth + 0.1 * torch.randn(num_samples, generator=generator), truth


def test_conformance_boundary() -> None:
    case, theirs = load_case("editing")
    spec, seed = case["inputs"], case["seed"]
    w, truth, noise = (
        draw(key, spec[key]["shape"], spec[key]["rule"], seed) for key in ("w", "true_direction", "noise")
    )
    scores = w @ (truth / np.linalg.norm(truth)) + np.float32(0.3) * noise
    boundary = fit_boundary(torch.from_numpy(w), torch.from_numpy(scores), chosen_ratio=0.05, seed=seed)
    assert boundary.vector @ theirs["boundary"][0] >= 0.9999  # 0.98 is asked for; with its shuffle it is the same plane


@pytest.mark.parametrize("count", [1, 2, 3])
def test_conformance_conditioned(count: int) -> None:
    case, theirs = load_case("editing")
    conditions = [draw(f"condition_{k}", [1, 512], ["normal", 0, 1], case["seed"])[0] for k in range(count)]
    ours = condition_boundary(
        theirs["boundary"][0], *(torch.from_numpy(condition / np.linalg.norm(condition)) for condition in conditions)
    )
    assert relative_error(ours[None], theirs[f"conditioned_on_{count}"]) <= 1e-5


def test_boundary_points_to_higher_scores_and_separates() -> None:
    w, scores, truth = problem()
    boundary = fit_boundary(w, scores, chosen_ratio=0.2)
    assert boundary.vector.dtype == torch.float32
    assert boundary.vector.norm().item() == pytest.approx(1, abs=1e-6)
    assert boundary.vector @ truth > 0.95
    assert min(boundary.train_accuracy, boundary.validation_accuracy, boundary.full_accuracy) > 0.9
    assert fit_boundary(w, -scores, chosen_ratio=0.2).vector @ truth < -0.95


def test_bias_is_the_distance_of_the_origin() -> None:
    w, scores, _ = problem()
    shift = torch.full((w.shape[1],), 3.0)
    here, there = fit_boundary(w, scores, chosen_ratio=0.1), fit_boundary(w + shift, scores, chosen_ratio=0.1)
    torch.testing.assert_close(here.vector, there.vector, atol=2e-3, rtol=0)
    assert there.bias == pytest.approx(here.bias - (here.vector @ shift).item(), abs=0.05)


def test_accuracies_tell_that_scores_mean_nothing() -> None:
    w, _, _ = problem()
    scores = torch.randn(len(w), generator=torch.Generator().manual_seed(5))
    boundary = fit_boundary(w, scores, chosen_ratio=0.2)
    assert 0.3 < boundary.validation_accuracy < 0.7 and 0.3 < boundary.full_accuracy < 0.7


def test_the_seed_chooses_the_split_and_leaves_the_global_state_alone() -> None:
    w, scores, _ = problem()
    state = np.random.get_state(legacy=False)
    first, again, other = (fit_boundary(w, scores, chosen_ratio=0.1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.vector, again.vector) and not torch.equal(first.vector, other.vector)
    np.testing.assert_equal(np.random.get_state(legacy=False), state)


def test_invalid_scores_are_left_out() -> None:
    w, scores, _ = problem()
    marked = torch.cat([scores, torch.full((50,), -100.0)])
    with_outliers = torch.cat([w, torch.full((50, w.shape[1]), math.nan)])
    ours = fit_boundary(with_outliers, marked, chosen_ratio=0.1, invalid_value=-100.0)
    assert torch.equal(ours.vector, fit_boundary(w, scores, chosen_ratio=0.1).vector)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 0.6, math.nan])
def test_chosen_ratio_is_checked(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"`chosen_ratio` must be in \(0, 0.5\], got"):
        fit_boundary(*problem()[:2], chosen_ratio=ratio)


@pytest.mark.parametrize("ratio", [0.0, 1.0, math.nan])
def test_split_ratio_is_checked(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"`split_ratio` must be in \(0, 1\), got"):
        fit_boundary(*problem()[:2], split_ratio=ratio)


def test_one_score_a_sample() -> None:
    w, scores, _ = problem()
    with pytest.raises(ValueError, match="one score for each of the 1000 samples of `w`, got 999"):
        fit_boundary(w, scores[:-1])


def test_too_few_samples() -> None:
    w, scores, _ = problem(20)
    with pytest.raises(ValueError, match="20 valid samples leave 0 a side to fit and 0 to validate; give more samples"):
        fit_boundary(w, scores)


@pytest.mark.parametrize("where", ["w", "scores"])
def test_not_finite(where: str) -> None:
    w, scores, _ = problem()
    (w if where == "w" else scores)[3] = math.nan
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity; mark such scores"):
        fit_boundary(w, scores)


def test_equal_scores() -> None:
    w, scores, _ = problem()
    with pytest.raises(ValueError, match=r"`scores` must differ, but every valid score is 2\.0"):
        fit_boundary(w, torch.full_like(scores, 2))


def test_equal_samples() -> None:
    w, scores, _ = problem()
    with pytest.raises(ValueError, match="the fitted normal is zero"):
        fit_boundary(torch.zeros_like(w), scores)


def test_scikit_learn_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stylegan-inversion\[train\]'"):
        fit_boundary(*problem()[:2])


@given(seed=st.integers(0, 2**31), count=st.integers(0, 6))
def test_conditioned_is_orthogonal_to_every_condition(seed: int, count: int) -> None:
    primary, *conditions = torch.randn(1 + count, 16, generator=torch.Generator().manual_seed(seed)).double()
    result = condition_boundary(primary, *conditions)
    torch.testing.assert_close(result.norm(), torch.tensor(1.0, dtype=torch.float64))
    assert all(abs(result @ condition) < 1e-9 for condition in conditions)
    assert result @ primary > 0
    torch.testing.assert_close(result, condition_boundary(7 * primary, *(3 * condition for condition in conditions)))


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.tensor([1.0, math.inf, 0.0])])
def test_condition_refuses_zero_and_not_finite(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="`primary` and `conditions` must be finite and not zero"):
        condition_boundary(torch.ones(3), bad)
    with pytest.raises(ValueError, match="`primary` and `conditions` must be finite and not zero"):
        condition_boundary(bad)


def test_condition_refuses_the_same_condition_twice() -> None:
    with pytest.raises(ValueError, match="2 `conditions` must be linearly independent"):
        condition_boundary(torch.eye(3)[0], torch.eye(3)[1], -2 * torch.eye(3)[1])
    with pytest.raises(ValueError, match="3 `conditions` must be linearly independent"):
        condition_boundary(torch.ones(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))


def test_condition_refuses_to_leave_nothing() -> None:
    with pytest.raises(ValueError, match="Nothing of `primary` is left"):
        condition_boundary(torch.tensor([1.0, 2.0, 0.0]), torch.eye(3)[0], torch.eye(3)[1])
