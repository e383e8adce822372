from itertools import pairwise

import pytest
import torch

from stylegan_inversion import latents


@pytest.mark.parametrize(("resolution", "expected"), [(4, 2), (8, 4), (256, 14), (512, 16), (1024, 18), (2048, 20)])
def test_num_ws(resolution: int, expected: int) -> None:
    assert latents.num_ws(resolution) == expected


@pytest.mark.parametrize("resolution", [-4, 0, 2, 6, 1000, 4096])
def test_num_ws_refuses_other_sides(resolution: int) -> None:
    with pytest.raises(ValueError, match=rf"`resolution` must be a power of two from 4 to 2048, got {resolution}\."):
        latents.num_ws(resolution)


def test_broadcast_repeats_and_owns_its_memory() -> None:
    w = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    w_plus = latents.broadcast(w, 3)
    assert w_plus.shape == (2, 3, 5)
    assert all(torch.equal(w_plus[:, i], w) for i in range(3))
    w_plus[:, 1] = 0  # one layer is changed, not all of them
    assert torch.equal(w_plus[:, 0], w) and torch.equal(w_plus[:, 2], w)


def codes() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(2, 6, 4, generator=rng), torch.randn(4, generator=rng)


def test_truncate_ends() -> None:
    w_plus, w_avg = codes()
    assert torch.equal(latents.truncate(w_plus, w_avg), w_plus)
    assert torch.equal(latents.truncate(w_plus, w_avg, truncation_psi=0.0), w_avg.expand(2, 6, 4))


def test_truncate_is_the_formula_and_leaves_its_input() -> None:
    w_plus, w_avg = codes()
    before = w_plus.clone()
    truncated = latents.truncate(w_plus, w_avg, truncation_psi=0.7)
    torch.testing.assert_close(truncated, w_avg + 0.7 * (before - w_avg))
    assert torch.equal(w_plus, before)
    truncated.zero_()
    assert torch.equal(w_plus, before)


@pytest.mark.parametrize("cutoff", [0, 2, 6])
def test_truncation_cutoff_counts_from_the_coarsest_layer(cutoff: int) -> None:
    w_plus, w_avg = codes()
    truncated = latents.truncate(w_plus, w_avg, truncation_psi=0.5, truncation_cutoff=cutoff)
    torch.testing.assert_close(truncated[:, :cutoff], (w_avg + w_plus[:, :cutoff]) / 2)
    assert torch.equal(truncated[:, cutoff:], w_plus[:, cutoff:])


def test_truncate_carries_a_gradient() -> None:
    w_plus, w_avg = codes()
    w_plus.requires_grad_()
    latents.truncate(w_plus, w_avg, truncation_psi=0.5, truncation_cutoff=2).sum().backward()
    assert w_plus.grad is not None
    assert torch.equal(w_plus.grad[:, :2], torch.full((2, 2, 4), 0.5))
    assert torch.equal(w_plus.grad[:, 2:], torch.ones(2, 4, 4))


def test_layer_ranges_at_1024() -> None:
    assert latents.layer_ranges(1024) == {"coarse": (0, 4), "middle": (4, 8), "fine": (8, 18)}


@pytest.mark.parametrize("resolution", [2**k for k in range(2, 12)])
def test_layer_ranges_tile_the_layers(resolution: int) -> None:
    ranges = list(latents.layer_ranges(resolution).values())
    assert ranges[0][0] == 0 and ranges[-1][1] == latents.num_ws(resolution)
    assert all(a[1] == b[0] for a, b in pairwise(ranges))


def test_layer_ranges_refuse_other_sides() -> None:
    with pytest.raises(ValueError, match=r"`resolution` must be a power of two from 4 to 2048, got 100\."):
        latents.layer_ranges(100)
