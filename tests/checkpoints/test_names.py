"""Official key names, there and back; the numbers behind them are in tests/models/test_conformance.py."""

import json
from dataclasses import replace

import pytest
import torch

from stylegan_inversion.checkpoints.encoder import (
    encoder_from_official,
    encoder_to_official,
)
from stylegan_inversion.checkpoints.generator import (
    average_w,
    generator_from_official,
    generator_to_nvidia,
    generator_to_rosinality,
)
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.storage import fill_module
from tests.checkpoints.official_files import (
    assert_same,
    draw,
    encoder,
    without,
)
from tests.conformance import DATA, draw_state_dict, load_case

TINY = GeneratorConfig(resolution=16, z_dim=6, w_dim=8, mapping_layers=3, channel_base=64, channel_max=8)


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
def test_generators(config: GeneratorConfig) -> None:
    state_dict = draw(Generator(config))
    rosinality, latent_avg = generator_to_rosinality(config, state_dict)
    nvidia = generator_to_nvidia(config, state_dict)
    for found, back in (
        generator_from_official(rosinality, latent_avg=latent_avg),
        generator_from_official(without(rosinality, ".kernel"), latent_avg=latent_avg.repeat(6, 1)),
        generator_from_official(nvidia),
    ):
        assert_same(back, state_dict)
        assert replace(found, channel_base=config.channel_base, channel_max=config.channel_max) == config
        assert all(found.channels(r) == config.channels(r) for r in config.resolutions)
        fill_module(Generator(found), back, source="test")
    bare = without(rosinality, "noises."), without(nvidia, "noise_const", "w_avg")
    drawn = [generator_from_official(official)[1] for official in bare]
    assert_same(*drawn)  # the same noise in both formats


def test_names_of_nvidia_and_rosinality() -> None:
    case, _ = load_case("stylegan2_ada_64")
    state_dict = draw_state_dict(case["state_dict"], case["seed"])
    assert_same(generator_to_nvidia(*generator_from_official(state_dict)), state_dict)
    case, _ = load_case("stylegan2_128")
    state_dict = draw_state_dict(case["generator"]["state_dict"], case["generator"]["seed"])
    written = generator_to_rosinality(*generator_from_official(state_dict))[0]
    assert_same(without(written, ".kernel"), without(state_dict, ".kernel"))


@pytest.mark.parametrize("name", ["psp_1024", "e4e_1024", "e4e_256"])
def test_names_of_encoders(name: str) -> None:
    spec, kind = json.loads((DATA / f"{name}.json").read_text())["state_dict"], name.partition("_")[0]
    official = {
        key.removeprefix("encoder."): torch.zeros(()).expand(entry["shape"])  # no memory
        for key, entry in spec.items()
        if key.startswith("encoder.")
    }
    config, state_dict = encoder_from_official(kind, official)
    back, latent_avg = encoder_to_official(kind, config, state_dict)
    assert back.keys() == official.keys() and all(tensor is official[key] for key, tensor in back.items())
    assert latent_avg.shape == (config.num_ws, 512)
    assert (config.coarse_end, config.middle_end, config.style_channels) == (3, 7, None)


def test_average_w() -> None:
    official, w = encoder_to_official("psp", *encoder("psp"))[0], torch.arange(8.0)
    for latent_avg, expected in ((None, torch.zeros(8)), (w, w), (w[None], w), (w.repeat(10, 1), w)):
        converted = encoder_from_official("psp", official, latent_avg=latent_avg)[1]
        assert torch.equal(converted["pyramid.w_avg"], expected.repeat(10, 1))
    state_dict, module = draw(Generator(TINY)), Generator(TINY)
    fill_module(module, state_dict, source="test")
    ours = average_w(TINY, state_dict, samples=7_000)
    z = torch.randn(7_000, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours, module.mapping(z).mean(0), atol=1e-5)  # in steps of 5 000: another stream, same mean
    assert torch.equal(ours, average_w(TINY, state_dict, samples=7_000))
