"""Names and errors of the converters, at tiny sizes; the numbers are in tests/models/test_conformance.py."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion.checkpoints.generator import (
    discriminator_from_rosinality,
    generator_from_nvidia,
    generator_from_rosinality,
    generator_to_rosinality,
)
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.hub import fill_module
from stylegan_inversion.models.discriminator import Discriminator, DiscriminatorConfig
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.ops import blur_kernel

TINY = GeneratorConfig(resolution=16, z_dim=6, w_dim=8, mapping_layers=3, channel_base=64, channel_max=8)


def draw(module: torch.nn.Module) -> dict[str, Tensor]:
    """A state dict of the module's names and shapes, drawn from a seed."""
    rng = torch.Generator().manual_seed(2)
    return {key: torch.randn(tensor.shape, generator=rng) for key, tensor in module.state_dict().items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def rosinality() -> dict[str, Tensor]:
    return generator_to_rosinality(TINY, draw(Generator(TINY)))[0]


def nvidia(config: GeneratorConfig = TINY) -> dict[str, Tensor]:
    """Our state dict in the names of stylegan2-ada-pytorch's `networks.py`, written down independently."""
    official = {}
    for key, tensor in draw(Generator(config)).items():
        parts = key.split(".")
        if key == "w_avg":
            name = "mapping.w_avg"
        elif key == "synthesis.const":
            name, tensor = "synthesis.b4.const", tensor[0]
        elif parts[0] == "mapping":
            name = f"mapping.fc{parts[2]}.{parts[3]}"
        else:
            name = ".".join([parts[0], "b" + parts[2], parts[3].replace("to_rgb", "torgb"), *parts[4:]])
        official[name] = tensor
    for r in config.resolutions:
        official[f"synthesis.b{r}.resample_filter"] = blur_kernel()
        official[f"synthesis.b{r}.conv1.resample_filter"] = blur_kernel()
    return official


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, resolution=64, channel_base=512),
        replace(TINY, mapping_layers=1, channel_max=4),
        replace(TINY, channel_base=100, channel_max=30),  # not a multiple of the side
        replace(TINY, channel_base=2**15, channel_max=5),  # the same width everywhere
    ],
)
def test_to_rosinality_and_back_to_the_bit(config: GeneratorConfig) -> None:
    state_dict = draw(Generator(config))
    official, latent_avg = generator_to_rosinality(config, state_dict)
    found, back = generator_from_rosinality(official, latent_avg=latent_avg)
    assert_same(back, state_dict)
    assert replace(found, channel_base=config.channel_base, channel_max=config.channel_max) == config
    assert all(found.channels(r) == config.channels(r) for r in config.resolutions)
    fill_module(Generator(found), back, source="test")


def test_rosinality_names_and_shapes() -> None:
    official = {key: tuple(tensor.shape) for key, tensor in rosinality().items()}
    expected = {
        "input.input": (1, 8, 4, 4),
        "style.1.weight": (8, 6),
        "style.3.bias": (8,),
        "conv1.conv.weight": (1, 8, 8, 3, 3),
        "conv1.conv.modulation.weight": (8, 8),
        "conv1.noise.weight": (1,),
        "conv1.activate.bias": (8,),
        "to_rgb1.conv.weight": (1, 3, 8, 1, 1),
        "to_rgb1.bias": (1, 3, 1, 1),
        "convs.2.conv.weight": (1, 4, 8, 3, 3),
        "convs.3.conv.modulation.bias": (4,),
        "convs.0.conv.blur.kernel": (4, 4),
        "to_rgbs.1.upsample.kernel": (4, 4),
        "noises.noise_0": (1, 1, 4, 4),
        "noises.noise_4": (1, 1, 16, 16),
    }
    assert {key: official.get(key) for key in expected} == expected
    assert not any(key.startswith(("convs.4", "to_rgbs.2", "noises.noise_5", "style.4")) for key in official)


def test_rosinality_average_w() -> None:
    official = rosinality()
    assert torch.equal(generator_from_rosinality(official)[1]["w_avg"], torch.zeros(8))
    w_avg = torch.arange(8.0)
    for latent_avg in (w_avg, w_avg[None], w_avg.repeat(6, 1)):
        assert torch.equal(generator_from_rosinality(official, latent_avg=latent_avg)[1]["w_avg"], w_avg)
    with pytest.raises(CheckpointError, match=r"`latent_avg` must be \(8,\) or \(num_ws, 8\), got \(9,\)\."):
        generator_from_rosinality(official, latent_avg=torch.zeros(9))


def test_rosinality_without_blur_kernels() -> None:
    """Some checkpoints leave the constant filters out."""
    official = rosinality()
    bare = {key: tensor for key, tensor in official.items() if not key.endswith(".kernel")}
    assert_same(generator_from_rosinality(bare)[1], generator_from_rosinality(official)[1])


@pytest.mark.parametrize("name", ["style.1.weight", "conv1.conv.weight", "convs.1.conv.weight"])
def test_rosinality_tensors_that_give_the_sizes(name: str) -> None:
    official = rosinality()
    del official[name]
    with pytest.raises(CheckpointError, match=f"in rosinality's format: tensor '{name}' is missing"):
        generator_from_rosinality(official)


@pytest.mark.parametrize("name", ["noises.noise_3", "to_rgb1.bias", "convs.0.activate.bias", "style.2.bias"])
def test_rosinality_missing_tensor(name: str) -> None:
    official = rosinality()
    del official[name]
    with pytest.raises(
        CheckpointError, match=rf"Not a StyleGAN2 generator .*: missing \['{name}'\], unexpected \[\]\."
    ):
        generator_from_rosinality(official)


def test_rosinality_unexpected_tensor() -> None:
    with pytest.raises(CheckpointError, match=r"missing \[\], unexpected \['extra.weight'\]\."):
        generator_from_rosinality({**rosinality(), "extra.weight": torch.zeros(1)})


@pytest.mark.parametrize("shape", [(8,), (8, 6, 1)])
def test_rosinality_tensor_of_other_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"Not a StyleGAN2 generator in rosinality's format"):
        generator_from_rosinality({**rosinality(), "style.1.weight": torch.zeros(shape)})


@pytest.mark.parametrize("kernel", [torch.ones(4, 4), torch.ones(3, 3)])
def test_another_blur_filter(kernel: Tensor) -> None:
    key = "convs.0.conv.blur.kernel"
    with pytest.raises(CheckpointError, match=rf"{key} is not the blur filter \[1, 3, 3, 1\]"):
        generator_from_rosinality({**rosinality(), key: kernel})
    key = "synthesis.b8.resample_filter"
    with pytest.raises(CheckpointError, match=rf"{key} is not the blur filter \[1, 3, 3, 1\]"):
        generator_from_nvidia({**nvidia(), key: kernel})


@pytest.mark.parametrize("width", [1, 6, 9])
def test_widths_that_fit_no_base(width: int) -> None:
    official = {**rosinality(), "convs.1.conv.weight": torch.zeros(1, width, width, 3, 3)}  # side 8, between 8 and 4
    with pytest.raises(CheckpointError, match=rf"widths \{{4: 8, 8: {width}, 16: 4\}} are not min\(base / side, max\)"):
        generator_from_rosinality(official)


def test_not_a_generator() -> None:
    for convert in (generator_from_rosinality, generator_from_nvidia, discriminator_from_rosinality):
        for state_dict in ({}, {"fc.weight": torch.zeros(2, 2)}):
            with pytest.raises(CheckpointError, match=r"^Not "):
                convert(state_dict)


def test_a_generator_that_is_too_small() -> None:
    official = {k: v for k, v in rosinality().items() if not k.startswith(("to_rgbs.1.", "convs.2.", "convs.3."))}
    with pytest.raises(CheckpointError, match=r"Not a StyleGAN2 generator: `resolution` must be .* got 8\."):
        generator_from_rosinality(official)


@pytest.mark.parametrize("config", [TINY, replace(TINY, resolution=32, mapping_layers=2)])
def test_from_nvidia(config: GeneratorConfig) -> None:
    found, state_dict = generator_from_nvidia(nvidia(config))
    assert found == config
    assert_same(state_dict, draw(Generator(config)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mapping.embed.weight": torch.zeros(1)}, r"Conditional generators are not supported: .* `mapping.embed`"),
        ({"synthesis.b4.const": None}, r"tensor 'synthesis.b4.const' is missing"),
        ({f"synthesis.b{r}.torgb.weight": None for r in (4, 8, 16)}, r"skip architecture: it has no `torgb`"),
        ({"mapping.fc0.weight": None}, r"Not NVIDIA's StyleGAN2 generator: tensor 'mapping.fc0.weight' is missing"),
        ({"synthesis.b8.conv1.weight": None}, r"tensor 'synthesis.b8.conv1.weight' is missing"),
        ({"mapping.w_avg": None}, r"Not NVIDIA's StyleGAN2 generator: missing \['mapping.w_avg'\], unexpected \[\]\."),
        ({"synthesis.b8.skip.weight": torch.zeros(1)}, r"missing \[\], unexpected \['synthesis.b8.skip.weight'\]\."),
        ({"synthesis.bx.torgb.weight": torch.zeros(1)}, r"Not NVIDIA's StyleGAN2 generator"),
        ({"mapping.fc0.weight": torch.zeros(8)}, r"Not NVIDIA's StyleGAN2 generator"),
    ],
)
def test_nvidia_errors(change: dict[str, Any], message: str) -> None:
    official = {key: tensor for key, tensor in {**nvidia(), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        generator_from_nvidia(official)


def test_nvidia_input_is_not_changed() -> None:
    official = nvidia()
    generator_from_nvidia(official)
    assert_same(official, nvidia())


D_TINY = DiscriminatorConfig(resolution=16, channel_base=64, channel_max=8)


def rosinality_discriminator(config: DiscriminatorConfig = D_TINY) -> dict[str, Tensor]:
    """Our state dict in the names of rosinality's `Discriminator`, written down independently."""
    official = {}
    sides = [str(2**k) for k in range(config.resolution.bit_length() - 1, 2, -1)]
    inner = {"conv0.weight": "conv1.0.weight", "conv0.bias": "conv1.1.bias", "conv1.weight": "conv2.1.weight"}
    inner |= {"conv1.bias": "conv2.2.bias", "skip.weight": "skip.1.weight"}
    outer = {"from_rgb.weight": "convs.0.0.weight", "from_rgb.bias": "convs.0.1.bias"}
    outer |= {"conv.weight": "final_conv.0.weight", "conv.bias": "final_conv.1.bias"}
    for key, tensor in draw(Discriminator(config)).items():
        if key.startswith("blocks."):
            _, side, rest = key.split(".", 2)
            key = f"convs.{sides.index(side) + 1}.{inner[rest]}"
        key = outer.get(key, key.replace("fc.", "final_linear.0.").replace("out.", "final_linear.1."))
        official[key] = tensor
    official |= {f"convs.{k + 1}.conv2.0.kernel": blur_kernel() for k in range(len(sides))}
    return official


@pytest.mark.parametrize("config", [D_TINY, replace(D_TINY, resolution=32, channel_base=100)])
def test_discriminator(config: DiscriminatorConfig) -> None:
    found, state_dict = discriminator_from_rosinality(rosinality_discriminator(config))
    assert_same(state_dict, draw(Discriminator(config)))
    fill_module(Discriminator(found), state_dict, source="test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convs.0.0.weight": None}, r"Not a StyleGAN2 discriminator in rosinality's format: 'convs.0.0.weight'\."),
        ({"convs.1.conv2.1.weight": None}, r"Not a StyleGAN2 discriminator .*: 'convs.1.conv2.1.weight'\."),
        ({"final_conv.1.bias": None}, r"missing \['final_conv.1.bias'\], unexpected \[\]\."),
        ({"extra": torch.zeros(1)}, r"missing \[\], unexpected \['extra'\]\."),
        ({"convs.1.conv2.0.kernel": torch.ones(4, 4)}, r"convs.1.conv2.0.kernel is not the blur filter"),
    ],
)
def test_discriminator_errors(change: dict[str, Any], message: str) -> None:
    official = {key: tensor for key, tensor in {**rosinality_discriminator(), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        discriminator_from_rosinality(official)
