import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from stylegan_inversion.evaluation import distribution
from stylegan_inversion.evaluation.distribution import (
    draw_samples,
    kernel_distance,
    measure,
    perceptual_path_length,
    precision_recall,
    sample_noise,
    sample_w_plus,
)
from stylegan_inversion.losses.frechet import frechet_distance, pool_features
from stylegan_inversion.losses.lpips import PerceptualDistance, load_perceptual
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.preprocessing.image import to_pil, to_tensor
from tests.conftest import rng


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def test_pooling() -> None:
    pixels = torch.nn.functional.normalize(normal(2, 3, 4, 5), dim=1)
    vector = torch.nn.functional.normalize(normal(2, 5), dim=1)
    expected = np.concatenate([pixels.numpy().mean((2, 3)), vector.numpy()], axis=1) * 2  # sqrt(8 / 2)
    np.testing.assert_allclose(pool_features([pixels, vector]).numpy(), expected, rtol=1e-12)
    assert pool_features([vector]).square().mean(dim=1).allclose(torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(("count_a", "count_b"), [(40, 40), (4, 40), (3, 4)])
def test_frechet_against_scipy(count_a: int, count_b: int) -> None:
    """Also with covariances that are singular: fewer samples than the 8 dimensions."""
    a, b = normal(count_a, 8) * 3, normal(count_b, 8, seed=1) + 0.5
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    # tr (A B)^(1/2) = sum of the square roots of the eigenvalues of A B
    cross = np.sqrt(np.clip(scipy.linalg.eigvals(cov_a @ cov_b).real, 0, None)).sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum().item()
    found = frechet_distance(a, b)
    assert found == pytest.approx(means + np.trace(cov_a) + np.trace(cov_b) - 2 * cross, rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(found, rel=1e-10)
    if count_a == 40:
        root = scipy.linalg.sqrtm(cov_a @ cov_b).real
        assert found == pytest.approx(means + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root), rel=1e-9)


def test_frechet_of_the_same_is_0() -> None:
    features = 1e3 + normal(20, 64)  # fewer than dimensions, and far from 0
    assert 0 <= frechet_distance(features.float(), features.float()) < 1e-9
    assert frechet_distance(features, features + 1e-3) == pytest.approx(64e-6, rel=1e-5)


def test_kernel_by_brute_force() -> None:
    a, b = normal(6, 3), normal(5, 3, seed=1) + 0.5

    def kernel(x: Tensor, y: Tensor) -> float:
        return ((x @ y).item() / 3 + 1) ** 3

    def estimate(rows_a: list[int], rows_b: list[int]) -> float:
        m = len(rows_a)
        xx = sum(kernel(a[i], a[j]) for i in rows_a for j in rows_a if i != j) / (m * (m - 1))
        yy = sum(kernel(b[i], b[j]) for i in rows_b for j in rows_b if i != j) / (m * (m - 1))
        return xx + yy - 2 * sum(kernel(a[i], b[j]) for i in rows_a for j in rows_b) / m**2

    same = rng()
    expected = [
        estimate(torch.randperm(6, generator=same)[:4].tolist(), torch.randperm(5, generator=same)[:4].tolist())
        for _ in range(3)
    ]
    found = kernel_distance(a, b, rng=rng(), num_subsets=3, subset_size=4)
    assert found == (pytest.approx(np.mean(expected), rel=1e-12), pytest.approx(np.std(expected), rel=1e-10))
    assert found != kernel_distance(a, b, rng=rng(1), num_subsets=3, subset_size=4)


def test_precision_recall_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "_ROWS", 7)  # several chunks, the last one smaller
    real, fake = normal(40, 2) + 100, normal(25, 2, seed=1) * 0.5 + 101.5

    def inside(points: Tensor, centres: Tensor) -> float:
        radii = [sorted(math.dist(c, o) for o in centres.tolist())[3] for c in centres.tolist()]  # [0] is itself
        hits = [any(math.dist(p, c) <= r for c, r in zip(centres.tolist(), radii)) for p in points.tolist()]
        return sum(hits) / len(hits)

    found = precision_recall(real, fake)
    assert found == pytest.approx((inside(fake, real), inside(real, fake))) and 0 < min(found) <= max(found) < 1
    assert precision_recall(real.float(), fake.float()) == found


def test_features_that_are_no_numbers_are_refused() -> None:
    features = normal(20, 3)
    assert measure(features, features, seed=0)["kernel_subset"] == 10
    with pytest.raises(ValueError, match="The features hold NaN or infinity"):
        measure(features, features * math.nan, seed=0)


def test_samples_follow_from_seed_and_number(generator: Generator) -> None:
    together = draw_samples(generator, range(5), seed=3)
    parts = torch.cat([draw_samples(generator, part, seed=3) for part in (range(3), [3], [4])])
    assert (together - parts).abs().max() <= 1.01 / 127.5
    assert (draw_samples(generator, range(5), seed=4) - together).abs().mean() > 0.01
    assert len({tuple(picture.flatten().tolist()) for picture in together}) == 5
    assert torch.equal(together, torch.cat([to_tensor(picture) for picture in to_pil(together)]))  # 8 bits
    noise = sample_noise(generator, range(2), seed=3)
    assert [tuple(layer.shape) for layer in noise] == [(2, 1, r, r) for r in (4, 8, 8, 16, 16, 32, 32)]
    images = generator.synthesis(sample_w_plus(generator, range(2), seed=3), noise=noise)
    assert (images.clamp(-1, 1) - together[:2]).abs().max() <= 1.01 / 127.5
    generator.w_avg.fill_(1)
    full, half, none = (sample_w_plus(generator, [0], seed=0, truncation_psi=psi) for psi in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half, (full + 1) / 2)
    assert (none == 1).all() and none.shape == (1, 8, 16)


def test_path_length(generator: Generator) -> None:
    perceptual = load_perceptual()
    found = perceptual_path_length(generator, perceptual, num_samples=6, seed=0, batch_size=4)
    again = perceptual_path_length(generator, perceptual, num_samples=6, seed=0, batch_size=12)
    assert found > 0 and again == pytest.approx(found, rel=0.02)  # differences of nearly equal pictures
    start, end = (sample_w_plus(generator, range(6), seed=0, purpose=f"path {which}") for which in ("start", "end"))
    noise = sample_noise(generator, range(6), seed=0)
    step = 1e-3  # of the length of a curve, any small step gives the same
    pictures = [generator.synthesis(w, noise=noise) for w in (start, start + step * (end - start))]
    # Six numbers: the 1st and the 99th percentile, taken outwards, are the ends, and leave nothing out.
    assert found == pytest.approx((perceptual(*pictures) / step**2).mean().item(), rel=0.05)


def test_path_length_leaves_out_extremes(generator: Generator) -> None:
    class Outliers(PerceptualDistance):
        def features(self, x: Tensor) -> list[Tensor]:
            return [x]

        def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
            lengths = torch.full((len(a[0]),), 3e-8)
            lengths[0] = 5.0 if len(lengths) == 100 else -5.0  # the first of each batch of ways
            return lengths

    found = perceptual_path_length(generator, Outliers(), num_samples=150, seed=0, batch_size=200)
    assert found == pytest.approx(3)
