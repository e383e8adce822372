"""Names of generators and discriminators, there and back; the numbers are in tests/models/test_conformance.py."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stylegan_inversion.checkpoints.generator import (
    average_w,
    discriminator_from_rosinality,
    generator_from_nvidia,
    generator_from_rosinality,
    generator_to_nvidia,
    generator_to_rosinality,
)
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.hub import fill_module
from stylegan_inversion.models.discriminator import Discriminator, DiscriminatorConfig
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.ops import blur_kernel
from tests.checkpoints.official_files import D_TINY, assert_same, draw, rosinality_discriminator
from tests.conformance import draw_state_dict, load_case

TINY = GeneratorConfig(resolution=16, z_dim=6, w_dim=8, mapping_layers=3, channel_base=64, channel_max=8)


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
def test_there_and_back_to_the_bit(config: GeneratorConfig) -> None:
    state_dict = draw(Generator(config))
    official, latent_avg = generator_to_rosinality(config, state_dict)
    for found, back in (
        generator_from_rosinality(official, latent_avg=latent_avg),
        generator_from_nvidia(generator_to_nvidia(config, state_dict)),
        generator_from_nvidia(nvidia(config)),
    ):
        assert_same(back, state_dict)
        assert replace(found, channel_base=config.channel_base, channel_max=config.channel_max) == config
        assert all(found.channels(r) == config.channels(r) for r in config.resolutions)
        fill_module(Generator(found), back, source="test")


def test_export_has_the_names_of_nvidias_generator() -> None:
    case, _ = load_case("stylegan2_ada_64")
    state_dict = draw_state_dict(case["state_dict"], case["seed"])
    assert_same(generator_to_nvidia(*generator_from_nvidia(state_dict)), state_dict)


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


def test_average_w_is_that_of_the_mapping_network() -> None:
    state_dict = draw(Generator(TINY))
    module = Generator(TINY)
    fill_module(module, state_dict, source="test")
    z = torch.randn(7_000, 6, generator=torch.Generator().manual_seed(0))
    ours = average_w(TINY, state_dict, samples=7_000)
    assert torch.allclose(ours, module.mapping(z).mean(0), atol=1e-5)  # in steps of 5 000: another stream, same mean
    assert torch.equal(ours, average_w(TINY, state_dict, samples=7_000))


def test_files_without_blur_kernels_or_noise() -> None:
    official = rosinality()
    bare = {key: tensor for key, tensor in official.items() if not key.endswith(".kernel")}
    assert_same(generator_from_rosinality(bare)[1], generator_from_rosinality(official)[1])
    drawn = [
        generator_from_rosinality({k: v for k, v in official.items() if not k.startswith("noises.")})[1],
        generator_from_nvidia({k: v for k, v in nvidia().items() if not k.endswith("noise_const")})[1],
    ]
    noise = [{k: v for k, v in converted.items() if k.endswith("noise_const")} for converted in drawn]
    assert_same(*noise)  # the same in both formats


@pytest.mark.parametrize("config", [D_TINY, replace(D_TINY, resolution=32, channel_base=100)])
def test_discriminator(config: DiscriminatorConfig) -> None:
    found, state_dict = discriminator_from_rosinality(rosinality_discriminator(config))
    assert_same(state_dict, draw(Discriminator(config)))
    fill_module(Discriminator(found), state_dict, source="test")


ZERO, WIDE = torch.zeros(1), torch.zeros(1, 9, 9, 3, 3)
REFUSED = [
    (generator_from_rosinality, {"noises.noise_3": None}, r"missing \['noises.noise_3'\], unexpected \[\]\."),
    (generator_from_rosinality, {"extra.weight": ZERO}, r"missing \[\], unexpected \['extra.weight'\]\."),
    (generator_from_rosinality, {"convs.1.conv.weight": WIDE}, r"widths \{4: 8, 8: 9, 16: 4\} are not min\(base"),
    (generator_from_rosinality, {"convs.0.conv.blur.kernel": torch.ones(4, 4)}, r"kernel is not the blur filter"),
    (
        generator_from_nvidia,
        {"synthesis.b8.resample_filter": torch.ones(3, 3)},
        r"filter is not the blur filter \[1, 3",
    ),
    (generator_from_nvidia, {"mapping.w_avg": None}, r"missing \['mapping.w_avg'\], unexpected \[\]\."),
    (generator_from_nvidia, {f"synthesis.b{r}.torgb.weight": None for r in (4, 8, 16)}, r"it has no `torgb`"),
    (discriminator_from_rosinality, {"final_conv.1.bias": None}, r"missing \['final_conv.1.bias'\], unexpected \[\]\."),
]


@pytest.mark.parametrize(("convert", "change", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refused(convert: object, change: dict[str, Tensor | None], message: str) -> None:
    whole = {generator_from_rosinality: rosinality, generator_from_nvidia: nvidia}.get(
        convert, rosinality_discriminator
    )()  # type: ignore[call-overload]
    with pytest.raises(CheckpointError, match=message):
        convert({key: tensor for key, tensor in {**whole, **change}.items() if tensor is not None})  # type: ignore[operator]
