import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stylegan_inversion.losses.distribution import (
    FeatureStatistics,
    frechet_distance,
    kernel_distance,
    pool_features,
    precision_recall,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def covariance(dim: int, rank: int, seed: int) -> Tensor:
    root = normal(dim, rank, seed=seed)
    return root @ root.T


def test_pooling() -> None:
    pixels = torch.nn.functional.normalize(normal(2, 3, 4, 5), dim=1)
    vector = torch.nn.functional.normalize(normal(2, 5), dim=1)
    pooled = pool_features([pixels, vector])
    expected = np.concatenate([pixels.numpy().mean((2, 3)), vector.numpy()], axis=1) * 2  # sqrt(8 / 2)
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-12)
    assert pool_features([vector]).square().mean(dim=1).allclose(torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="`layers` must hold at least one layer, got none"):
        pool_features([])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) >= 2))
def test_statistics_in_any_batches(sizes: list[int]) -> None:
    features = (1e4 + normal(sum(sizes), 3)).float()  # a mean far from 0 is where sums of squares fail
    statistics = FeatureStatistics()
    for part in features.split(sizes):
        statistics.update(part)
    assert statistics.count == len(features)
    assert statistics.mean.dtype == statistics.cov.dtype == torch.float64
    np.testing.assert_allclose(statistics.mean, features.double().numpy().mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(statistics.cov, np.cov(features.double().numpy().T), rtol=1e-7, atol=1e-9)


def test_statistics_of_two_processes() -> None:
    features = normal(10, 4)
    one, other, whole, empty = (FeatureStatistics() for _ in range(4))
    one.update(features[:3])
    other.update(features[3:])
    whole.update(features)
    empty.merge(one)  # takes a copy
    before = other.mean.clone(), other.cov.clone()
    one.merge(other)
    one.merge(FeatureStatistics())
    assert one.count == 10 and other.count == 7 and empty.count == 3
    torch.testing.assert_close(one.mean, whole.mean)
    torch.testing.assert_close(one.cov, whole.cov)
    torch.testing.assert_close((other.mean, other.cov), before, rtol=0, atol=0)
    torch.testing.assert_close(empty.mean, features[:3].mean(dim=0))


def test_statistics_refuse() -> None:
    statistics = FeatureStatistics()
    with pytest.raises(ValueError, match="A mean needs at least 1 sample, got 0"):
        _ = statistics.mean
    with pytest.raises(ValueError, match="A covariance needs at least 2 samples, got 0"):
        _ = statistics.cov
    statistics.update(normal(1, 3))
    with pytest.raises(ValueError, match="A covariance needs at least 2 samples, got 1"):
        _ = statistics.cov
    with pytest.raises(ValueError, match="`features` must have 3 columns, as those before, got 4"):
        statistics.update(normal(2, 4))
    with pytest.raises(ValueError, match="`features` holds NaN or infinity"):
        statistics.update(torch.full((2, 3), math.nan))
    assert statistics.count == 1


def test_frechet_in_closed_form() -> None:
    m_a, m_b = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    a, b = torch.diag(torch.tensor([4.0, 9.0])), torch.diag(torch.tensor([1.0, 16.0]))
    assert frechet_distance(m_a, a, m_b, b) == pytest.approx(5 + 1 + 1, abs=1e-12)  # sum of (s_a - s_b)^2
    assert frechet_distance(m_a, a * 0, m_b, b * 0) == 5


@pytest.mark.parametrize(("rank_a", "rank_b"), [(12, 12), (3, 12), (2, 3)])
def test_frechet_against_scipy(rank_a: int, rank_b: int) -> None:
    a, b = covariance(8, rank_a, 0), covariance(8, rank_b, 1)
    m_a, m_b = normal(8, seed=2), normal(8, seed=3)
    # tr (A B)^(1/2) = sum of the square roots of the eigenvalues of A B
    cross = np.sqrt(np.clip(scipy.linalg.eigvals(a.numpy() @ b.numpy()).real, 0, None)).sum()
    expected = (m_a - m_b).square().sum().item() + a.trace().item() + b.trace().item() - 2 * cross
    found = frechet_distance(m_a, a, m_b, b)
    assert found == pytest.approx(expected, rel=1e-5)  # scipy's rounding: square roots of 1e-15
    assert frechet_distance(m_b, b, m_a, a) == pytest.approx(found, rel=1e-10)
    if rank_a == rank_b == 12:
        root = scipy.linalg.sqrtm(a.numpy() @ b.numpy()).real
        assert found == pytest.approx(expected + 2 * cross - 2 * np.trace(root), rel=1e-9)


def test_frechet_of_the_same_is_0() -> None:
    features = normal(20, 64).float()  # fewer than dimensions
    statistics = FeatureStatistics()
    statistics.update(features)
    found = frechet_distance(statistics.mean, statistics.cov, statistics.mean, statistics.cov)
    assert 0 <= found < 1e-11 * statistics.cov.trace().item()
    shifted = frechet_distance(statistics.mean, statistics.cov, statistics.mean + 1e-3, statistics.cov)
    assert shifted == pytest.approx(64e-6, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean_b": torch.zeros(3)}, r"`mean_b` must be of shape \(2,\), as `mean_a` is, got \(3,\)"),
        ({"cov_b": torch.eye(3)}, r"`cov_b` must be of shape \(2, 2\), as `mean_a` is, got \(3, 3\)"),
        ({"cov_a": torch.full((2, 2), math.inf)}, "`cov_a` holds NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_frechet_refuses(change: dict[str, Tensor], message: str) -> None:
    given = {"mean_a": torch.zeros(2), "cov_a": torch.eye(2), "mean_b": torch.zeros(2), "cov_b": torch.eye(2)}
    with pytest.raises(ValueError, match=message):
        _unchecked(frechet_distance)(**given | change)


def _unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without the types that the tests check: a user has the function's own messages only."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def test_kernel_by_brute_force() -> None:
    a, b = normal(6, 3), normal(5, 3, seed=1) + 0.5

    def kernel(x: Tensor, y: Tensor) -> float:
        return ((x @ y).item() / 3 + 1) ** 3

    def estimate(rows_a: list[int], rows_b: list[int]) -> float:
        m = len(rows_a)
        xx = sum(kernel(a[i], a[j]) for i in rows_a for j in rows_a if i != j) / (m * (m - 1))
        yy = sum(kernel(b[i], b[j]) for i in rows_b for j in rows_b if i != j) / (m * (m - 1))
        xy = sum(kernel(a[i], b[j]) for i in rows_a for j in rows_b) / m**2
        return xx + yy - 2 * xy

    same = rng()
    expected = [
        estimate(torch.randperm(6, generator=same)[:4].tolist(), torch.randperm(5, generator=same)[:4].tolist())
        for _ in range(3)
    ]
    found = kernel_distance(a, b, rng=rng(), num_subsets=3, subset_size=4)
    assert found.mean == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.std == pytest.approx(np.std(expected), rel=1e-10)


def test_kernel_is_unbiased() -> None:
    a, b = normal(4000, 4), normal(4000, 4, seed=1)
    small, large = (kernel_distance(a, b, rng=rng(), num_subsets=n, subset_size=s) for n, s in ((2000, 5), (20, 1000)))
    assert abs(small.mean) < 4 * small.std / 2000**0.5 and abs(large.mean) < 0.01
    assert kernel_distance(a, b + 0.3, rng=rng(), num_subsets=5).mean > 10 * abs(large.mean)
    again = kernel_distance(a, b, rng=rng(), num_subsets=20)
    assert again == large and again != kernel_distance(a, b, rng=rng(1), num_subsets=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset_size": 6}, r"`subset_size` must be in \[2, 5\], the size of the smaller set, got 6"),
        ({"subset_size": 1}, r"`subset_size` must be in \[2, 5\].*got 1"),
        ({"num_subsets": 0, "subset_size": 2}, "`num_subsets` must be >= 1, got 0"),
    ],
)
def test_kernel_refuses(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_distance(normal(6, 3), normal(5, 3), rng=rng(), **options)


def test_pairs_are_checked() -> None:
    nan = torch.full((5, 3), math.nan)
    for function, names, options in (
        (kernel_distance, ("a", "b"), {"rng": rng(), "subset_size": 2}),
        (precision_recall, ("real", "fake"), {}),
    ):
        with pytest.raises(ValueError, match=f"`{names[0]}` and `{names[1]}` must have as many columns, got 3 and 4"):
            _unchecked(function)(normal(5, 3), normal(5, 4), **options)
        with pytest.raises(ValueError, match=f"`{names[0]}` holds NaN"):
            function(nan, normal(5, 3), **options)
        with pytest.raises(ValueError, match=f"`{names[1]}` holds NaN"):
            function(normal(5, 3), nan, **options)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_by_brute_force(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylegan_inversion.losses.distribution._ROWS", 7)  # several chunks, the last one smaller
    real, fake = normal(40, 2) + 100, normal(25, 2, seed=1) * 0.5 + 101.5

    def inside(points: Tensor, centres: Tensor) -> float:
        radii = [sorted(math.dist(c, o) for o in centres.tolist())[k] for c in centres.tolist()]  # [0] is itself
        hits = [any(math.dist(p, c) <= r for c, r in zip(centres.tolist(), radii)) for p in points.tolist()]
        return sum(hits) / len(hits)

    found = precision_recall(real, fake, k=k)
    assert found.precision == pytest.approx(inside(fake, real)) and 0 < found.precision < 1
    assert found.recall == pytest.approx(inside(real, fake)) and 0 < found.recall < 1
    assert precision_recall(real.float(), fake.float(), k=k) == found


def test_precision_and_recall_tell_quality_from_variety() -> None:
    left, right = normal(200, 8), normal(200, 8, seed=1) + 20
    two_kinds = torch.cat([left, right])
    half = precision_recall(two_kinds, normal(400, 8, seed=2))  # looks right, but of one kind only
    assert half.precision > 0.8 and 0.4 < half.recall <= 0.5
    wrong = precision_recall(two_kinds, normal(400, 8, seed=2) - 50)
    assert wrong == (0, 0)
    copies = precision_recall(two_kinds, left[:1].expand(10, 8))  # all the same: a manifold of one point
    assert copies.precision == 1 and copies.recall == 1 / 400


def test_precision_recall_refuses() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"`k` must be in \[1, 4\], below the smaller set's size, got {k}"):
            precision_recall(normal(6, 3), normal(5, 3), k=k)
