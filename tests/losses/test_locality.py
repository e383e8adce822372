import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylegan_inversion.losses.locality import interpolate_codes, locality_terms


@given(seed=st.integers(0, 2**31), alpha=st.floats(0.1, 100))
def test_codes_lie_between_the_pivot_and_the_sample_at_most_alpha_away(seed: int, alpha: float) -> None:
    w_pivot, w_sampled = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(seed)).double()
    towards = w_sampled - w_pivot
    step = interpolate_codes(w_pivot, w_sampled, alpha=alpha) - w_pivot
    distance = towards.norm(dim=(1, 2))
    torch.testing.assert_close(step.norm(dim=(1, 2)), distance.clamp(max=alpha))
    torch.testing.assert_close(step, (step.norm(dim=(1, 2)) / distance)[:, None, None] * towards)


def test_the_papers_default_interpolates() -> None:
    """In W at 1024 px: 30 over 18 equal layers are 7.07 in each."""
    w_pivot, towards = torch.zeros(1, 18, 512), torch.ones(1, 18, 512) / 512**0.5
    step = interpolate_codes(w_pivot, 10 * towards)
    torch.testing.assert_close(step.norm(dim=2), torch.full((1, 18), 30 / 18**0.5))
    near = interpolate_codes(w_pivot, 5 * towards)
    torch.testing.assert_close(near, 5 * towards)  # not past w_z


def test_equal_codes_stay() -> None:
    w_pivot = torch.randn(2, 3, 4)
    assert torch.equal(interpolate_codes(w_pivot, w_pivot.clone()), w_pivot)


def test_terms_compare_and_only_the_tuned_images_get_a_gradient() -> None:
    y_hat = torch.zeros(2, 3, 4, 4, requires_grad=True)
    y_hat_frozen = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    l2, perceptual = locality_terms(y_hat, y_hat_frozen, perceptual=lambda a, b: (a - b).abs().mean())
    assert l2.item() == pytest.approx(0.25) and perceptual.item() == pytest.approx(0.5)
    (l2 + perceptual).backward()
    assert y_hat.grad is not None and y_hat.grad.abs().min() > 0
    assert y_hat_frozen.grad is None
