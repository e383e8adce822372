import pytest
import torch
from stylegan_inversion.training.learner import update_ema
from torch import nn


@pytest.mark.parametrize("decay", [0.0, 0.25, 1.0])
def test_update_ema(decay: float) -> None:
    average, network = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    network(torch.randn(4, 2))
    before = [p.detach().clone() for p in average.parameters()]
    update_ema(average, network, decay)
    for p, old, new in zip(average.parameters(), before, network.parameters()):
        torch.testing.assert_close(p.data, decay * old + (1 - decay) * new.data)
        assert p.grad is None
    assert all(torch.equal(a, b) for a, b in zip(average.buffers(), network.buffers()))
