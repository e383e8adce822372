from itertools import pairwise

import pytest
import torch

from stylegan_inversion import latents


def test_num_ws_and_layer_ranges() -> None:
    assert [latents.num_ws(resolution) for resolution in (4, 8, 256, 1024, 2048)] == [2, 4, 14, 18, 20]
    assert latents.layer_ranges(1024) == {"coarse": (0, 4), "middle": (4, 8), "fine": (8, 18)}
    for resolution in (4, 8, 16, 64, 2048):
        ranges = list(latents.layer_ranges(resolution).values())
        assert ranges[0][0] == 0 and ranges[-1][1] == latents.num_ws(resolution)
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
    for resolution in (-4, 0, 2, 1000, 4096):
        with pytest.raises(ValueError, match=rf"`resolution` must be a power of two from 4 to 2048, got {resolution}"):
            latents.num_ws(resolution)


def test_broadcast_repeats_and_owns_its_memory() -> None:
    w = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    w_plus = latents.broadcast(w, 3)
    assert w_plus.shape == (2, 3, 5)
    w_plus[:, 1] = 0  # one layer is changed, not all of them
    assert torch.equal(w_plus[:, 0], w) and torch.equal(w_plus[:, 2], w)


@pytest.mark.parametrize(("psi", "cutoff", "count"), [(1.0, None, 6), (0.0, None, 6), (0.7, None, 6), (0.5, 2, 2)])
def test_truncate_is_the_formula_and_leaves_its_input(psi: float, cutoff: int | None, count: int) -> None:
    rng = torch.Generator().manual_seed(1)
    w_plus, w_avg = torch.randn(2, 6, 4, generator=rng).requires_grad_(), torch.randn(4, generator=rng)
    before = w_plus.detach().clone()
    truncated = latents.truncate(w_plus, w_avg, truncation_psi=psi, truncation_cutoff=cutoff)
    torch.testing.assert_close(truncated[:, :count], w_avg + psi * (before[:, :count] - w_avg))
    assert torch.equal(truncated[:, count:], before[:, count:])
    truncated.sum().backward()
    assert w_plus.grad is not None and torch.equal(w_plus.grad[:, :count], torch.full((2, count, 4), psi))
    truncated.detach().zero_()
    assert torch.equal(w_plus, before)
