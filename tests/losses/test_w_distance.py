import torch

from stylegan_inversion.losses.w_distance import w_distance_loss


def test_by_hand() -> None:
    w_plus = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]])
    w = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    # ||.||^2 / 2 a layer: 0, (4 + 4) / 2, 0, 4 / 2
    assert w_distance_loss(w_plus, w).item() == (0 + 4 + 0 + 2) / 4
    assert w_distance_loss(w_plus, w[:, None].expand(2, 2, 2)).item() == (0 + 4 + 0 + 2) / 4
    assert w_distance_loss(w_plus, w_plus).item() == 0


def test_one_w_goes_with_its_own_sample_even_where_batch_and_layers_are_equal() -> None:
    w = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert w_distance_loss(w[:, None].expand(3, 3, 5), w).item() == 0
    assert w_distance_loss(w[None].expand(3, 3, 5), w).item() > 0


def test_gradient() -> None:
    w_plus = torch.zeros(2, 3, 4, requires_grad=True)
    w_distance_loss(w_plus, torch.ones(2, 4)).backward()
    assert w_plus.grad is not None
    torch.testing.assert_close(w_plus.grad, torch.full((2, 3, 4), -2 / 24))
