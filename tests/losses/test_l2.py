import torch

from stylegan_inversion.losses.l2 import l2_loss


def test_by_hand() -> None:
    y_hat = torch.tensor([[[[1.0, -1.0]]], [[[0.5, 0.0]]]])
    y = torch.tensor([[[[-1.0, -1.0]]], [[[0.0, 0.0]]]])
    assert l2_loss(y_hat, y).item() == (4 + 0.25) / 4
    assert l2_loss(y, y).item() == 0
    assert l2_loss(torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)).item() == 4
