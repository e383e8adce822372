"""Networks out of a folder, and into one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from tests.hub_parts import Tiny, TinyConfig, assert_same, state


def test_module_round_trip(tmp_path: Path) -> None:
    config = GeneratorConfig(resolution=16, z_dim=6, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)
    generator = Generator(config)
    before = state(generator)
    hub.save_module(generator, tmp_path / "generator")
    assert_same(state(generator), before)
    assert generator.training and all(parameter.requires_grad for parameter in generator.parameters())
    assert sorted(path.name for path in (tmp_path / "generator").iterdir()) == ["config.json", "model.safetensors"]

    loaded = hub.load_module(Generator, GeneratorConfig, tmp_path / "generator")
    assert loaded.config == config
    assert_same(state(loaded), before)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    w_plus = torch.zeros(1, generator.num_ws, 8)
    assert torch.equal(loaded.synthesis(w_plus), generator.synthesis(w_plus))


def test_tuples_of_a_config_come_back_as_tuples(tmp_path: Path) -> None:
    hub.save_module(Tiny(TinyConfig(3, (4, 5, 6))), tmp_path)
    assert hub.load_module(Tiny, TinyConfig, tmp_path).config == TinyConfig(3, (4, 5, 6))


def test_half_precision_in_the_file_is_float32_in_memory(tmp_path: Path) -> None:
    module = Tiny(TinyConfig())
    hub.save_module(module, tmp_path, dtype=torch.float16)
    stored = hub.read_tensors(tmp_path / "model.safetensors")
    assert stored["linear.weight"].dtype == torch.float16
    assert stored["norm.num_batches_tracked"].dtype == torch.int64
    loaded = hub.load_module(Tiny, TinyConfig, tmp_path)
    assert loaded.linear.weight.dtype == torch.float32
    assert torch.equal(loaded.linear.weight, module.linear.weight.half().float())


def test_variants(tmp_path: Path) -> None:
    module = Tiny(TinyConfig())
    hub.save_module(module, tmp_path, dtype=torch.float16, variant="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.fp16.safetensors"]
    assert torch.equal(
        hub.load_module(Tiny, TinyConfig, tmp_path, variant="fp16").linear.weight, module.linear.weight.half().float()
    )
    with pytest.raises(CheckpointError, match=r"has no variant 'bf16' \(model.bf16.safetensors\); leave `variant` out"):
        hub.load_module(Tiny, TinyConfig, tmp_path, variant="bf16")
    for variant in ("", "a/b", "..", "a b", "x" * 33):
        with pytest.raises(ValueError, match=r"`variant` must be a word such as 'fp16', got "):
            hub.find_model("faces64", variant=variant)
    module.linear.weight.data.fill_(1e9)
    with pytest.raises(ValueError, match=r"`dtype` torch.float16 cannot hold the weights of this Tiny\."):
        hub.save_module(module, tmp_path, dtype=torch.float16)


def test_dtype_on_request(tmp_path: Path) -> None:
    hub.save_module(Tiny(TinyConfig()), tmp_path)
    loaded = hub.load_module(Tiny, TinyConfig, tmp_path, dtype=torch.float64, device="cpu")
    assert loaded.linear.weight.dtype == torch.float64
    assert state(loaded)["norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widht": 4}, r"config.json does not describe a Tiny: .*unexpected keyword argument 'widht'"),
        ({"width": 0}, r"config.json does not describe a Tiny: `width` must be >= 1, got 0\."),
        ({"width": "4"}, r"config.json does not describe a Tiny: "),
        ({"width": 4.5}, r"config.json does not describe a Tiny: "),
        ({"width": None}, r"config.json does not describe a Tiny: "),
        ({"sizes": 3}, r"config.json does not describe a Tiny: "),
    ],
)
def test_a_config_that_does_not_fit(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    hub.save_module(Tiny(TinyConfig()), tmp_path)
    hub.write_config(fields, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        hub.load_module(Tiny, TinyConfig, tmp_path)


@pytest.mark.parametrize("fields", [{"resolution": 64.0}, {"resolution": "64"}, {"w_dim": 8.5}, {"z_dim": [1, 2]}])
def test_a_generator_config_of_the_wrong_type(fields: dict[str, Any], tmp_path: Path) -> None:
    hub.write_tensors({}, tmp_path / hub.WEIGHTS_NAME)
    hub.write_config({"resolution": 16, "channel_base": 64, **fields}, tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json does not describe a Generator: "):
        hub.load_module(Generator, GeneratorConfig, tmp_path)


def test_load_without_weights(tmp_path: Path) -> None:
    hub.write_config({}, tmp_path)
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read as safetensors"):
        hub.load_module(Tiny, TinyConfig, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear.bias": None}, r"^the file does not fit Tiny: missing linear.bias\.$"),
        ({"extra": torch.ones(1)}, r"^the file does not fit Tiny: unexpected extra\.$"),
        ({"linear.bias": torch.ones(3)}, r"linear.bias is \(3,\), not \(2,\)\.$"),
        ({"linear.bias": torch.ones(1)}, r"linear.bias is \(1,\), not \(2,\)\.$"),  # would broadcast
        ({"linear.bias": torch.ones(2, dtype=torch.int64)}, r"linear.bias is torch.int64, not torch.float32\.$"),
        (
            {"linear.bias": None, "extra": torch.ones(1), "linear.weight": torch.ones(1)},
            r"missing linear.bias; unexpected extra; linear.weight is \(1,\), not \(2, 4\)\.$",
        ),
        ({f"extra{i}": torch.ones(1) for i in range(5)}, r"unexpected extra3; unexpected extra4\.$"),
        ({f"extra{i}": torch.ones(1) for i in range(8)}, r"unexpected extra3; unexpected extra4 and 3 more\.$"),
    ],
)
def test_weights_that_do_not_fit_leave_the_network_as_it_was(change: dict[str, Any], message: str) -> None:
    module, other = Tiny(TinyConfig()), Tiny(TinyConfig())
    before = state(module)
    weights = {key: tensor for key, tensor in {**state(other), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        hub.fill_module(module, weights, source="the file")
    assert_same(state(module), before)
    assert module.training and all(parameter.requires_grad for parameter in module.parameters())


def test_fill_module(tmp_path: Path) -> None:
    module, other = Tiny(TinyConfig()), Tiny(TinyConfig())
    hub.fill_module(module, state(other), source="the file")
    assert_same(state(module), state(other))
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
    with torch.no_grad():
        other.linear.weight.zero_()
    assert module.linear.weight.abs().max() > 0  # a copy


def test_loading_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    hub.load_module(Generator, GeneratorConfig, hub.builtin_path("faces64/generator"))
    assert torch.equal(torch.get_rng_state(), state)
