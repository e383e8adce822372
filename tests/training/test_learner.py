from pathlib import Path

import pytest
import torch
from torch import nn

from stylegan_inversion import hub
from stylegan_inversion.training.learner import sweep, update_ema


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


def test_sweep(tmp_path: Path) -> None:
    (tmp_path / "generator").mkdir()
    kept = [tmp_path / hub.CONFIG_NAME, tmp_path / "generator" / hub.WEIGHTS_NAME]
    orphans = [tmp_path / f".{hub.CONFIG_NAME}.abcd1234", tmp_path / "generator" / ".tmpabcdef"]
    for path in kept + orphans:
        path.write_text("x")
    sweep(tmp_path)
    assert all(path.exists() for path in kept) and not any(path.exists() for path in orphans)
    sweep(tmp_path / "nothing")
