import torch
from hypothesis import given
from hypothesis import strategies as st

from stylegan_inversion.editing.mixing import mix_styles

A = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
B = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))


@given(start=st.integers(0, 5), length=st.integers(1, 6), alpha=st.floats(-1, 2))
def test_only_the_chosen_layers_are_blended(start: int, length: int, alpha: float) -> None:
    stop = min(start + length, 6)
    mixed = mix_styles(A, B, layers=(start, stop), alpha=alpha)
    torch.testing.assert_close(mixed[:, start:stop], ((1 - alpha) * A + alpha * B)[:, start:stop])
    assert torch.equal(mixed[:, :start], A[:, :start]) and torch.equal(mixed[:, stop:], A[:, stop:])


def test_without_layers_it_interpolates_all() -> None:
    torch.testing.assert_close(mix_styles(A, B, alpha=0.25), 0.75 * A + 0.25 * B)
    assert torch.equal(mix_styles(A, B, alpha=0.0), A)


def test_a_mask_chooses_any_layers() -> None:
    mask = torch.tensor([True, False, True, False, False, True])
    mixed = mix_styles(A, B, layers=mask)
    torch.testing.assert_close(mixed[:, mask], B[:, mask])
    assert torch.equal(mixed[:, ~mask], A[:, ~mask])


def test_one_code_can_be_mixed_into_all() -> None:
    mixed = mix_styles(A, B[:1].double(), layers=(0, 3))
    assert mixed.dtype == A.dtype
    torch.testing.assert_close(mixed[:, :3], B[:1, :3].expand(2, 3, 4))
