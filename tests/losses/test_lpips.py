import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stylegan_inversion.errors import CheckpointError, MissingDependencyError
from stylegan_inversion.losses.lpips import LPIPS, PerceptualDistance, load_perceptual
from tests.conformance import draw

# What lpips 0.1.4 (the authors' package, net="alex", float32) answered on the inputs of `pair`. With these weights it
# gives 0.7219 and 0.1376 on the pictures of the authors' example, and so does the network here.
GOLDEN = {
    33: [0.01297658123075962, 0.014763297513127327],
    64: [0.04542427137494087, 0.03937842324376106],
    128: [0.07187588512897491, 0.07150661945343018],
}


def pair(side: int) -> tuple[Tensor, Tensor]:
    shape = (2, 3, side, side)
    x = torch.from_numpy(draw("x", shape, ["normal", 0, 0.5], 0)).clamp(-1, 1)
    y = (x + torch.from_numpy(draw("y", shape, ["normal", 0, 0.3], 0))).clamp(-1, 1)
    return x, y


@pytest.fixture(scope="module")
def alex() -> PerceptualDistance:
    return load_perceptual()


@pytest.mark.parametrize("side", GOLDEN)
@torch.no_grad()
def test_golden_values(alex: PerceptualDistance, side: int) -> None:
    """To 5e-4: the weights that ship are float16."""
    torch.testing.assert_close(alex(*pair(side)), torch.tensor(GOLDEN[side]), rtol=5e-4, atol=0)


def test_the_gradient_of_the_norm_at_zero_is_finite() -> None:
    """Without a ReLU that masks it, the gradient of a plain square root is NaN there."""
    network: Any = fake_network()
    network.net = FeaturesAreTheImage()
    x = torch.zeros(1, 3, 33, 33, requires_grad=True)
    LPIPS(network)(x, torch.ones(1, 3, 33, 33)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_refusals(alex: PerceptualDistance) -> None:
    assert (alex.name, alex.threshold) == ("alex", 0.06)  # PTI's LPIPS_value_threshold
    assert alex(torch.zeros(1, 3, 31, 31), torch.ones(1, 3, 31, 31)).item() > 0  # the smallest image
    for height, width in ((30, 64), (64, 30)):
        with pytest.raises(ValueError, match=rf"Images must be at least 31 px a side, got {height} x {width}\."):
            alex(torch.zeros(1, 3, height, width), torch.zeros(1, 3, height, width))
    with pytest.raises(ValueError, match=r"`perceptual` must be one of alex, vgg, got 'squeeze'\."):
        load_perceptual("squeeze")


@pytest.mark.parametrize(
    ("failure", "way"),
    [
        ("absent", r"\. Install it with: pip install '\.\[faces\]' in a checkout"),
        ("broken", r"does not exist\)\. Here torch and torchvision do not fit each other: install both from one index"),
    ],
)
def test_lpips_that_cannot_be_imported(failure: str, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    if failure == "absent":
        monkeypatch.setitem(sys.modules, "lpips", None)
    else:
        (tmp_path / "lpips.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')
        monkeypatch.delitem(sys.modules, "lpips", raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        MissingDependencyError,
        match=rf"lpips cannot be imported \(.*{way}.* `perceptual` 'vgg' needs it; the built-in 'alex' needs nothing",
    ):
        load_perceptual("vgg")


def install_lpips(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[dict[str, Any]]:
    """Put a module `lpips` in place whose `LPIPS(...)` returns, or raises, `answer`."""
    calls: list[dict[str, Any]] = []

    def build(**arguments: Any) -> Any:
        calls.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    module = ModuleType("lpips")
    module.LPIPS = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    return calls


def test_a_backbone_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    install_lpips(monkeypatch, OSError("no route to host"))
    with pytest.raises(CheckpointError, match=r"The backbone of LPIPS 'vgg' .* could not be fetched: no route to host"):
        load_perceptual("vgg")


class Backbone(nn.Module):
    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=rng)

    def forward(self, x: Tensor) -> list[Tensor]:
        h1 = self.conv1(x).relu()
        return [h1, self.conv2(h1).relu()]


class FeaturesAreTheImage(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x[:, [0, 1, 2, 0]], x[:, [0, 1, 2, 0, 1]]]


def fake_network() -> nn.Module:
    """A network with the parts of `lpips.LPIPS`: scaling_layer, net, lins."""
    rng = torch.Generator().manual_seed(4)
    network: Any = nn.Module()
    network.scaling_layer = nn.Hardtanh(-0.5, 0.5)
    network.net = Backbone(rng)
    network.lins = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in (4, 5))
    for lin in network.lins:
        nn.init.uniform_(lin.weight, generator=rng)
    return network


def test_lpips_is_its_own_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = fake_network()
    calls = install_lpips(monkeypatch, network)
    model = load_perceptual("vgg")
    assert isinstance(model, LPIPS) and not model.training
    assert (model.name, model.threshold) == ("vgg", 0.12)
    assert calls == [{"net": "vgg", "verbose": False}]
    assert not any(parameter.requires_grad for parameter in model.parameters())

    x, y = pair(33)
    expected = torch.zeros(2)
    layers = [network.net(network.scaling_layer(image)) for image in (x, y)]
    for p, q, lin in zip(*layers, network.lins):
        p, q = (h / (h.norm(dim=1, keepdim=True) + 1e-10) for h in (p, q))
        expected += (lin.weight[0] * (p - q) ** 2).sum(dim=1).mean(dim=(1, 2))
    torch.testing.assert_close(model(x, y), expected)
    torch.testing.assert_close(model(x, y[:1])[0], expected[0])
    assert torch.equal(model(x, x.clone()), torch.zeros(2))
