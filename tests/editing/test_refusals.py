"""The functions of editing refuse what does not fit, and say what would."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stylegan_inversion.editing.directions import Direction, apply_directions, layer_slice, save_directions
from stylegan_inversion.editing.ganspace import PrincipalComponents, fit_pca
from stylegan_inversion.editing.interfacegan import condition_boundary, fit_boundary
from stylegan_inversion.editing.mixing import mix_styles
from stylegan_inversion.editing.sefa import factorize
from stylegan_inversion.errors import MissingDependencyError

CODES = torch.zeros(2, 6, 8)
UNIT = torch.eye(8)[0]
SMILE = Direction("smile", UNIT)
W = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
E = torch.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((lambda name=name: Direction(name, UNIT), "`name` must be a Python identifier") for name in ("", "a=b")),
        (lambda: Direction("smile", torch.zeros(0, 4)), r"must have the shape \(w_dim,\) or \(num_ws, w_dim\)"),
        (lambda: Direction("smile", torch.ones(1, 1, 1)), r"must have the shape \(w_dim,\) or \(num_ws, w_dim\)"),
        (lambda: Direction("smile", torch.tensor([math.nan, 1.0])), "'smile' must be finite"),
        (lambda: Direction("smile", 1.01 * UNIT), r"must have unit norm .* `Direction.from_vector` normalises"),
        (lambda: Direction("smile", torch.stack([UNIT, 2 * UNIT])), "must have unit norm"),
        *(
            (
                lambda unit=unit: Direction("age", UNIT, unit=unit),
                r"`unit` of direction 'age' must be a number in \[1e-06",
            )
            for unit in (0.0, math.nan, 1e300)
        ),
        *(
            (
                lambda ends=ends: Direction("smile", UNIT, strength_range=ends),
                "`strength_range` of direction 'smile' must",
            )
            for ends in ((1.0, 1.0), (0.0, math.nan), (0.0, 1e300))
        ),
        (lambda: Direction("smile", UNIT, layers=(3, 3)), "0 <= start < stop <= num_ws, got"),
        (lambda: Direction("pose", UNIT.expand(2, 8), layers=(0, 3)), r"stop <= 2, got \(0, 3\)"),
        (lambda: Direction.from_vector("age", torch.zeros(2, 3)), "'age' must not be zero"),
        (lambda: Direction("smile", UNIT, layers=(0, 7)).apply(CODES, 1.0), "stop <= 6, got"),
        (lambda: SMILE.apply(CODES, 1.0, layers=(5, 8)), "stop <= 6, got"),
        (lambda: Direction("a", torch.eye(7)[0]).apply(CODES, 1.0), r"does not fit `w_plus` of shape \(2, 6, 8\)"),
        (lambda: Direction("a", UNIT.expand(5, 8)).apply(CODES, 1.0), r"does not fit `w_plus` of shape \(2, 6, 8\)"),
        (lambda: SMILE.apply(CODES, math.inf), "`strength` of 'smile' must be finite"),
        (lambda: SMILE.apply(CODES, torch.tensor([0.0, math.nan])), "`strength` of 'smile' must be finite"),
        (lambda: SMILE.apply(CODES, torch.zeros(3)), r"`strength` must be one number or 2 \(one for each sample\),"),
        (
            lambda: apply_directions(CODES, {"smile": SMILE, "age": SMILE}, strengths={"simle": 1.0}),
            r"no direction 'simle'. Did you mean 'smile'\? Known directions: age, smile\.",
        ),
        (lambda: apply_directions(CODES, {}, strengths={"smile": 1.0}), r"no direction 'smile'. Known directions:"),
        (lambda: layer_slice((2, 5), 4), r"stop <= 4, got \(2, 5\)"),
        (lambda: save_directions({"happy": SMILE}, Path("never-made")), "key 'happy' must be the name of its"),
        (lambda: fit_pca(W[:4], 4), r"must be in \[1, 3\] for 4 samples, got 4"),
        (lambda: fit_pca(torch.tensor([[1.0, math.nan], [0.0, 1.0]]), 1), "`w` must be finite"),
        (
            lambda: fit_pca(torch.arange(5.0)[:, None] * torch.tensor([1.0, 2.0]), 2),
            "spreads in fewer than 2 directions",
        ),
        (
            lambda: PrincipalComponents(torch.zeros(2), torch.full((1, 2), math.inf), torch.ones(1)),
            "`components` must be finite",
        ),
        (
            lambda: PrincipalComponents(torch.zeros(2), torch.eye(2), torch.tensor([1.0, -1.0])),
            "`std` must be positive, its smallest value is -1",
        ),
        (lambda: fit_boundary(W, W[:, 0], chosen_ratio=0.6), r"`chosen_ratio` must be in \(0, 0.5\], got"),
        (lambda: fit_boundary(W, W[:, 0], split_ratio=math.nan), r"`split_ratio` must be in \(0, 1\), got"),
        (lambda: fit_boundary(W, W[1:, 0]), "one score for each of the 1000 samples of `w`, got 999"),
        (lambda: fit_boundary(W[:20], W[:20, 0]), "20 valid samples leave 0 a side to fit and 0 to validate"),
        (lambda: fit_boundary(W, W[:, 0].log()), "must be finite, got NaN or infinity; mark such scores"),
        (lambda: fit_boundary(W, torch.full((1000,), 2.0)), r"`scores` must differ, but every valid score is 2\.0"),
        (lambda: fit_boundary(torch.zeros_like(W), W[:, 0]), "the fitted normal is zero"),
        (lambda: condition_boundary(E[0], torch.zeros(3)), "`primary` and `conditions` must be finite and not zero"),
        (lambda: condition_boundary(E[0], E[1], -2 * E[1]), "2 `conditions` must be linearly independent"),
        (lambda: condition_boundary(E[0, :2], *E[:, :2].abs() + 1), "3 `conditions` must be linearly independent"),
        (lambda: condition_boundary(torch.tensor([1.0, 2.0, 0.0]), E[0], E[1]), "Nothing of `primary` is left"),
        (lambda: mix_styles(CODES, CODES[[0, 1, 0]]), "`w_plus_b` must hold 1 or 2 codes, as `w_plus_a` does, got 3"),
        (lambda: mix_styles(CODES, CODES, alpha=math.nan), "`alpha` must be finite, got nan"),
        (lambda: mix_styles(CODES, CODES, layers=(3, 7)), r"stop <= 6, got \(3, 7\)"),
        (
            lambda: mix_styles(CODES, CODES, layers=torch.ones(5, dtype=torch.bool)),
            "mask `layers` must have 6 entries, one a style layer, got 5",
        ),
        (lambda: factorize([]), "at least one matrix, all with the same w_dim"),
        (lambda: factorize([torch.ones(2, 3), torch.ones(2, 4)]), "at least one matrix, all with the same w_dim"),
        (lambda: factorize([E], 4), r"`num_directions` must be in \[1, 3\], got 4"),
        (lambda: factorize([torch.tensor([[1.0], [0.0]])]), "Every row of `weights` must be finite and not zero"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_scikit_learn_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stylegan-inversion\[train\]'"):
        fit_boundary(W, W[:, 0])
