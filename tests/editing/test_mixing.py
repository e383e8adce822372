import pytest
import torch

from stylegan_inversion.editing.mixing import mix_styles

A = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
B = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layers", [(1, 4), (0, 6), None, torch.tensor([True, False, True, False, False, True])])
@pytest.mark.parametrize("alpha", [1.0, 0.25, -1.0])
def test_only_the_chosen_layers_are_blended(layers: tuple[int, int] | torch.Tensor | None, alpha: float) -> None:
    chosen = torch.zeros(6, dtype=torch.bool)
    chosen[layers if isinstance(layers, torch.Tensor) else slice(*(layers or (0, 6)))] = True
    mixed = mix_styles(A, B, layers=layers, alpha=alpha)
    torch.testing.assert_close(mixed[:, chosen], ((1 - alpha) * A + alpha * B)[:, chosen])
    assert torch.equal(mixed[:, ~chosen], A[:, ~chosen])
    one = mix_styles(A, B[:1].double(), layers=layers, alpha=alpha)  # goes into all
    assert one.dtype == A.dtype and torch.equal(one[0], mixed[0])
