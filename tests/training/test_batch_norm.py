from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from stylegan_inversion.training.batch_norm import SynchronizedBatchNorm2d, synchronize_batch_norm
from torch import Tensor, nn

from stylegan_inversion import hub
from tests.training import children

STEPS = 3


def make_network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Sequential(nn.BatchNorm2d(4, momentum=0.3))
        )
        network.append(nn.BatchNorm2d(4, affine=False))
    return network


def batches() -> Tensor:
    return torch.randn(STEPS, 4, 3, 7, 5, generator=torch.Generator().manual_seed(1)) * 3 + 5


def train_network(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A few passes: outputs, gradients and statistics. The loss is not symmetric, or there would be no gradient."""
    results: dict[str, Any] = {}
    for step, batch in enumerate(x):
        batch = batch.clone().requires_grad_()
        out = network(batch)
        network.zero_grad()
        (out.pow(3).mean() + out.abs().mean()).backward()
        results |= {f"{step}.out": out.detach(), f"{step}.x": batch.grad}
    results |= {f"grad.{name}": p.grad for name, p in network.named_parameters()}
    return {name: value for name, value in results.items() if value is not None} | network.state_dict()


def train_one_of_two(folder: Path) -> None:
    rank = Accelerator(cpu=True).process_index
    network = make_network()
    synchronize_batch_norm(network)
    hub.write_tensors(train_network(network, batches()[:, 2 * rank : 2 * rank + 2]), folder / f"{rank}.safetensors")


def train_both(folder: Path) -> None:
    debug_launcher(train_one_of_two, (folder,), num_processes=2)


def test_alone_it_is_the_usual_one() -> None:
    ours, theirs = make_network(), make_network()
    synchronize_batch_norm(ours)
    assert [type(m) for m in ours.modules() if isinstance(m, nn.BatchNorm2d)] == [SynchronizedBatchNorm2d] * 3
    assert list(ours.state_dict()) == list(theirs.state_dict())
    a, b = train_network(ours, batches()), train_network(theirs, batches())
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_are_one_with_both_batches(tmp_path: Path) -> None:
    assert children.run(train_both, tmp_path) == 0
    halves = [hub.read_tensors(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    whole = train_network(make_network(), batches())
    for name, expected in whole.items():
        if name.endswith((".out", ".x")):
            got = torch.cat([half[name] for half in halves])
            if name.endswith(".x"):
                got = got / 2  # each process has the mean over its own half
        elif name.startswith("grad."):
            got = (halves[0][name] + halves[1][name]) / 2
        else:
            got = halves[0][name]
            assert torch.equal(got, halves[1][name])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert int(whole["1.num_batches_tracked"]) == STEPS


def test_bfloat16_keeps_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """As two processes do it, but with one."""
    from stylegan_inversion.training import batch_norm

    monkeypatch.setattr(batch_norm.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(batch_norm.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm.dist, "all_reduce", lambda sums: sums.mul_(2))
    norm, x = SynchronizedBatchNorm2d(3), batches()[0].bfloat16()
    out = norm(x)
    assert out.dtype == torch.bfloat16 and norm.running_mean is not None and norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(out.float(), nn.BatchNorm2d(3)(x.float()), rtol=0.02, atol=0.02)
