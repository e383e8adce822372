import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stylegan_inversion.training.compiling import compile_networks, uncompiled
from stylegan_inversion.training.generator_config import AdversarialOptions, ReconstructionOptions

from stylegan_inversion.training import compiling
from tests.training import children
from tests.training.conftest import MakeAutoencoder, MakeConfig, MakeGAN
from tests.training.runs import elsewhere, read_log

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's, when it loads its compiler
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler on this machine")


def parameter_names(folder: Path) -> dict[str, list[str]]:
    found = {str(path.relative_to(folder)): sorted(load_file(path)) for path in folder.rglob("*.safetensors")}
    return dict(sorted(found.items()))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"`compile` needs a C\+\+ compiler on a CPU.*set compile=false"):
        compile_networks(layer, device=torch.device("cpu"))
    compile_networks(layer, device=torch.device("cuda"))  # which brings its own


@needs_compiler
@pytest.mark.slow
def test_gradients_of_second_order() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    x = torch.randn(4, 3, requires_grad=True)
    expected = network(x)
    compile_networks(network, device=torch.device("cpu"))
    torch.testing.assert_close(network(x), expected)
    with uncompiled():
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert network[0].weight.grad is not None and network[0].weight.grad.abs().sum() > 0


@needs_compiler
@pytest.mark.slow
def test_compiled_runs_are_the_same_to_rounding(
    make_config: MakeConfig, make_gan: MakeGAN, make_autoencoder: MakeAutoencoder, warm: Path, tmp_path: Path
) -> None:
    again = ReconstructionOptions(batch_size=2, lpips=0)
    lazy = AdversarialOptions(path_length_every=2, r1_every=2)
    runs = {
        "encoder": make_config(),
        "gan": make_gan(init=str(warm), reconstruction=again, adversarial=lazy),
        "autoencoder": make_autoencoder(),
    }
    for name, config in runs.items():
        plain = elsewhere(config, tmp_path, f"{name}-plain")
        fused = elsewhere(config, tmp_path, f"{name}-fused", compile=True)
        for one in (plain, fused):  # without the checks of shapes, which are not to be compiled
            assert children.run(children.train, one, timeout=600) == 0
        losses = [[line["loss"] for line in read_log(one)] for one in (fused, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        names = [parameter_names(Path(one.output) / "last") for one in (fused, plain)]
        assert names[0] == names[1] and names[0]
