from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_inversion.hub import save_module
from stylegan_inversion.losses.moco import MoCoLoss, load_moco
from stylegan_inversion.models.resnet import ResNet, ResNetConfig

TINY = ResNetConfig((4, 4, 4, 4), (1, 1, 1, 1))


@pytest.fixture
def moco() -> MoCoLoss:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MoCoLoss(ResNet(TINY))


def images(seed: int, count: int = 2, side: int = 48) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("count", [1, 3])  # the original fails on a batch of one
def test_formula(moco: MoCoLoss, count: int) -> None:
    y_hat, y = images(1, count), images(2, count)
    features = [moco.network(F.interpolate(x, size=224, mode="nearest")) for x in (y_hat, y)]
    torch.testing.assert_close(moco(y_hat, y), (1 - F.cosine_similarity(*features)).mean(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(moco(y, y), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(moco.embed(y).norm(dim=1), torch.ones(count))


def test_gradient_reaches_y_hat_and_nothing_else(moco: MoCoLoss) -> None:
    y_hat, y = images(1).requires_grad_(), images(2).requires_grad_()
    moco(y_hat, y).backward()
    assert y_hat.grad is not None and y_hat.grad.isfinite().all() and (y_hat.grad.abs().amax(dim=(1, 2, 3)) > 0).all()
    assert y.grad is None
    assert all(p.grad is None and not p.requires_grad for p in moco.parameters())


def test_train_mode_of_a_parent_changes_nothing(moco: MoCoLoss) -> None:
    before = {key: value.clone() for key, value in moco.state_dict().items()}
    parent = nn.ModuleList([moco]).train()
    assert parent.training and not any(m.training for m in moco.modules())
    moco(images(1), images(2))
    assert all(torch.equal(value, before[key]) for key, value in moco.state_dict().items())


def test_from_a_folder(moco: MoCoLoss, tmp_path: Path) -> None:
    save_module(moco.network, tmp_path / "moco")
    loaded = load_moco(tmp_path / "moco")
    assert loaded.network.config == TINY
    assert torch.equal(loaded(images(1), images(2)), moco(images(1), images(2)))
