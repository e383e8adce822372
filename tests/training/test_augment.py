import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from stylegan_inversion.latents import seeded
from stylegan_inversion.training.augment import (
    NUM_DRAWS,
    AdaptiveProbability,
    augment,
    color_matrices,
    move_pixels,
    recolor,
    vary_photo,
    warp,
    warp_matrices,
)
from stylegan_inversion.training.config import AdaptiveOptions, AugmentOptions

OFF = {"flip": False, "blit": False, "geometric": False, "color": False}


def sources(count: int, *, first: int = 0, seed: int = 0) -> list[torch.Generator]:
    return [seeded(seed, "augment", first + i) for i in range(count)]


def pictures(count: int, side: int = 16, *, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def uniform(count: int, *, seed: int = 0) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return iter(torch.rand(count, NUM_DRAWS, generator=rng, dtype=torch.float64).unbind(1))


def columns(*values: float) -> Iterator[Tensor]:
    """Draws of one sample."""
    return iter(torch.tensor([values], dtype=torch.float64).unbind(1))


def share(changed: Tensor) -> float:
    return changed.double().mean().item()


@pytest.mark.parametrize("group, at_least", [("flip", 0.4), ("blit", 0.88), ("geometric", 1.0), ("color", 1.0)])
def test_with_p_of_1_each_group_changes_the_samples(group: str, at_least: float) -> None:
    images = pictures(200, 8)
    out = augment(images, 1.0, sources(200), options=AugmentOptions(**(OFF | {group: True})))
    changed = share((out != images).flatten(1).any(1))
    assert at_least <= changed <= (0.6 if group == "flip" else 1.0)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images = pictures(12)
    whole = augment(images, 0.5, sources(12))
    parts = [augment(images[i : i + n], 0.5, sources(n, first=i)) for i, n in ((0, 1), (1, 4), (5, 7))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0.0, atol=1e-5)
    assert not torch.equal(whole, augment(images, 0.5, sources(12, seed=1)))


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("right, down", [(2, -1)])
def test_moves_of_pixels_against_numpy(flip: int, turns: int, right: int, down: int) -> None:
    image = pictures(1, 8)
    out = move_pixels(image, torch.tensor([[flip, turns, right, down]]))
    expected = image[0].numpy()
    if flip:
        expected = expected[:, :, ::-1]
    expected = np.rot90(expected, turns, axes=(1, 2))
    padded = np.pad(expected, ((0, 0), (4, 4), (4, 4)), mode="symmetric")
    expected = padded[:, 4 - down : 12 - down, 4 - right : 12 - right]
    assert np.array_equal(out[0].numpy(), expected)


def test_the_distribution_of_warps() -> None:
    only_turn = AugmentOptions(scale=0.0, translation=0.0)
    for p in (0.3, 1.0):
        turned = (warp_matrices(uniform(20_000), p, only_turn) != torch.eye(3)).flatten(1).any(1)
        assert share(turned) == pytest.approx(p, abs=0.015)
    angles = warp_matrices(uniform(20_000), 1.0, AugmentOptions(scale=0.0, translation=0.0))
    assert torch.atan2(angles[:, 0, 1], angles[:, 0, 0]).std().item() == pytest.approx(math.pi / math.sqrt(3), rel=0.03)

    matrices = warp_matrices(uniform(20_000), 1.0, AugmentOptions())
    assert (matrices[:, :2, :2].det().log2() / 2).std().item() == pytest.approx(0.2, rel=0.03)  # the scale
    singular = torch.linalg.svdvals(matrices[:, :2, :2]).log2()
    spread = (singular[:, 0] - singular[:, 1]) / 2  # |stretch|
    assert spread.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.03)
    assert (matrices[:, :2, 2] / 2).std(0).tolist() == pytest.approx([0.125, 0.125], rel=0.03)

    moved = warp_matrices(uniform(20_000), 0.25, AugmentOptions(scale=0.0, rotation=0.0))[:, :2, 2]
    assert share((moved != 0).all(1)) == share((moved != 0).any(1)) == pytest.approx(0.25, abs=0.015)


def blobs(x: Tensor, y: Tensor) -> Tensor:
    """Three smooth pictures on the plane, (3, *x.shape)."""
    centres = ((0.3, -0.1), (-0.2, 0.25), (0.0, -0.35))
    return torch.stack([2 * torch.exp(-((x - a) ** 2 + 2 * (y - b) ** 2) / (2 * 0.2**2)) - 1 for a, b in centres])


@pytest.mark.parametrize("number", range(2))
def test_a_warp_of_a_smooth_picture(number: int) -> None:
    side = 48
    at = (torch.arange(side, dtype=torch.float64) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    matrices = warp_matrices(uniform(1, seed=number), 1.0, AugmentOptions(translation=0.05))
    out = warp(blobs(x, y)[None], matrices)[0]
    points = torch.linalg.inv(matrices)[0] @ torch.stack([x.flatten(), y.flatten(), torch.ones(side * side)]).double()
    u, v = points[0].view_as(x), points[1].view_as(y)
    inside = (u.abs() < 0.9) & (v.abs() < 0.9)
    assert share(inside) > 0.3
    error = (out - blobs(u, v)).abs()[:, inside]
    assert error.max().item() < 0.03 and error.mean().item() < 0.003


def test_colors_against_numpy() -> None:
    up = 0.8413447460685429  # normal number of 1
    off = (1.0, 0.0)  # a draw that is not below p
    grey = np.ones(3) / math.sqrt(3)
    image = pictures(1, 4)
    pixels = image[0].flatten(1).numpy().astype(np.float64)  # (3, 16)

    def ours(*draws: float) -> np.ndarray:
        return recolor(image.double(), color_matrices(columns(*draws), 0.5, AugmentOptions()))[0].flatten(1).numpy()

    along = np.outer(grey, grey @ pixels)
    hue = Rotation.from_rotvec(grey * math.pi / 2).as_matrix()  # 0.75 of [-pi, pi)
    np.testing.assert_allclose(ours(0, up, *off * 4), pixels + 0.2, atol=1e-7)
    np.testing.assert_allclose(ours(*off, 0, up, *off * 3), pixels * math.sqrt(2), atol=1e-7)
    np.testing.assert_allclose(ours(*off * 2, 0, 0.9, *off * 2), pixels - 2 * along, atol=1e-7)
    np.testing.assert_allclose(ours(*off * 2, 0, 0.4, *off * 2), pixels, atol=1e-7)
    np.testing.assert_allclose(ours(*off * 3, 0, 0.75, *off), hue @ pixels, atol=1e-7)
    np.testing.assert_allclose(ours(*off * 4, 0, up), along + 2 * (pixels - along), atol=1e-7)
    everything = ours(0, up, 0, up, 0, 0.9, 0, 0.75, 0, up)
    step = (pixels + 0.2) * math.sqrt(2)
    step = hue @ (step - 2 * np.outer(grey, grey @ step))
    along = np.outer(grey, grey @ step)
    np.testing.assert_allclose(everything, along + 2 * (step - along), atol=1e-7)


def test_a_photo_of_another_camera() -> None:
    x = blobs(*torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="xy"))
    assert all(torch.equal(a, x) for a in vary_photo(x, x, 0.0, torch.Generator().manual_seed(0)))
    pairs = [vary_photo(x, x, 1.0, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert all(a.shape == b.shape == x.shape and max(a.abs().max(), b.abs().max()) <= 1 for a, b in pairs)
    apart = torch.tensor([float((a - b).square().mean()) for a, b in pairs])  # blur, noise, JPEG: not to be drawn
    moved = torch.tensor([float((b - x).square().mean()) for _, b in pairs])  # light, colour, place: in both
    assert apart.min() > 1e-5 and apart.median() < 0.2 * moved.median()
    wide = vary_photo(x[:, 4:-4], x[:, 4:-4], 1.0, torch.Generator().manual_seed(0))  # cars are
    assert wide[0].shape == wide[1].shape == (3, 24, 32)
    again = vary_photo(x, x, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], pairs[0][0]) and torch.equal(again[1], pairs[0][1])


def test_p_rises_over_kimg_and_falls_again() -> None:
    adaptive = AdaptiveProbability(AdaptiveOptions(target=0.6, kimg=1), every=64)
    assert adaptive.observe(32.0, 32) == 0  # not yet
    assert adaptive.observe(32.0, 32) == pytest.approx(0.064) and adaptive.r_t == 1
    for _ in range(20):
        adaptive.observe(60.0, 64)
    assert adaptive.p == 1  # 1000 images later
    assert adaptive.observe(10.0, 64) == pytest.approx(0.936) and adaptive.r_t == pytest.approx(10 / 64)
    for _ in range(20):
        adaptive.observe(-64.0, 64)
    assert adaptive.p == 0
