"""What is written is what was read, to the bit; names and shapes are the official code's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stylegan_inversion.checkpoints.part import Part
from stylegan_inversion.checkpoints.single_file import read_single_file
from torch import Tensor

from stylegan_inversion.checkpoints.encoder import (
    pyramid_encoder_from_official,
    split_checkpoint,
    w_encoder_from_official,
)
from stylegan_inversion.checkpoints.export import checkpoint_to_official, checkpoint_to_rosinality, encoder_to_official
from stylegan_inversion.checkpoints.generator import generator_from_nvidia, generator_to_nvidia
from stylegan_inversion.hub import builtin_path, load_module
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig, WEncoder, WEncoderConfig
from tests.checkpoints.official_files import SMALL, TINY, assert_same, draw, generator
from tests.checkpoints.test_encoder import official_pyramid, official_w
from tests.conformance import DATA

CLASSES = {"psp": GradualStyleEncoder, "e4e": Encoder4Editing}


@pytest.mark.parametrize("name", ["psp_1024", "e4e_1024", "e4e_256"])
def test_names_and_shapes_of_the_official_state_dict(name: str) -> None:
    spec = json.loads((DATA / f"{name}.json").read_text())["state_dict"]
    official = {key: torch.zeros(()).expand(entry["shape"]) for key, entry in spec.items()}  # no memory
    encoder, _ = split_checkpoint(official)
    config, state_dict = pyramid_encoder_from_official(encoder)
    back, latent_avg = encoder_to_official(config, state_dict)
    assert back.keys() == encoder.keys()
    assert all(tensor is encoder[key] for key, tensor in back.items())
    assert latent_avg.shape == (config.num_ws, 512)
    assert (config.coarse_end, config.middle_end, config.style_channels) == (3, 7, None)


def test_encoder_there_and_back() -> None:
    official, latent_avg = official_pyramid()
    config, state_dict = pyramid_encoder_from_official(official, latent_avg=latent_avg)
    back, average = encoder_to_official(config, state_dict)
    assert_same(back, official)
    assert torch.equal(average, latent_avg)
    official, latent_avg = official_w()
    into_w, state_dict = w_encoder_from_official(official, output_resolution=64, latent_avg=latent_avg)
    back, average = encoder_to_official(into_w, state_dict)
    assert_same(back, official)
    assert torch.equal(average, latent_avg[None])


SIZES = dict(widths=(4, 6, 8, 10), units=(1, 3, 2, 1), reduction=2)


@pytest.mark.parametrize("kind", ["psp", "e4e"])
@pytest.mark.parametrize(
    ("generator_config", "encoder_config"),
    [
        (TINY, PyramidEncoderConfig(64, 64, 8, **SIZES)),
        (SMALL, PyramidEncoderConfig(128, 32, 8, coarse_end=2, middle_end=5, style_channels=3, **SIZES)),
        (replace(TINY, resolution=16), PyramidEncoderConfig(16, 32, 8, **SIZES)),
    ],
)
@pytest.mark.parametrize("average", ["own", "generator", "none"])
def test_whole_file_there_and_back(
    kind: Any, generator_config: GeneratorConfig, encoder_config: PyramidEncoderConfig, average: str, tmp_path: Path
) -> None:
    config, drawn = generator(generator_config)
    encoder = draw(CLASSES[kind](encoder_config))
    if average != "own":
        w_avg = drawn["w_avg"] if average == "generator" else torch.zeros(8)
        encoder["pyramid.w_avg"] = w_avg.repeat(encoder_config.num_ws, 1)
    checkpoint = checkpoint_to_official(kind, (encoder_config, encoder), (config, drawn))
    assert ("w_avg" in checkpoint) == (average == "own")
    assert checkpoint["opts"]["start_from_latent_avg"] == (average != "none")
    torch.save(checkpoint, tmp_path / "x.pt")
    file = read_single_file(tmp_path / "x.pt")
    assert (file.kind, file.notes) == (kind, ())
    assert file.parts["encoder"].config == encoder_config
    assert_same(file.parts["encoder"].state_dict, encoder)
    assert_same(file.parts["generator"].state_dict, drawn)


def test_options_that_the_official_code_reads() -> None:
    """pSp's and e4e's loaders take these from `opts` without a default."""
    encoder = (
        PyramidEncoderConfig(64, 64, 8, **SIZES),
        draw(GradualStyleEncoder(PyramidEncoderConfig(64, 64, 8, **SIZES))),
    )
    psp = checkpoint_to_official("psp", encoder, generator())["opts"]
    assert psp["encoder_type"] == "GradualStyleEncoder" and psp["output_size"] == 64 and psp["learn_in_w"] is False
    assert (psp["input_nc"], psp["label_nc"], psp["n_styles"]) == (3, 0, 10)
    e4e = checkpoint_to_official("e4e", encoder, generator())["opts"]
    assert e4e["encoder_type"] == "Encoder4Editing" and e4e["stylegan_size"] == 64
    json.dumps(psp), json.dumps(e4e)  # plain values, as `torch.load(weights_only=True)` wants them


def test_written_files_load_with_weights_only(tmp_path: Path) -> None:
    config = WEncoderConfig(64, 256, 8, **SIZES)
    torch.save(checkpoint_to_official("psp", (config, draw(WEncoder(config))), generator()), tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True).keys() >= {"state_dict", "opts", "latent_avg"}
    torch.save(checkpoint_to_rosinality(*generator()), tmp_path / "y.pt")
    assert torch.load(tmp_path / "y.pt", weights_only=True)["g_ema"]["convs.0.conv.blur.kernel"].shape == (4, 4)


def test_generator_to_nvidia_and_back() -> None:
    for config in (TINY, SMALL, replace(TINY, resolution=16, mapping_layers=1)):
        official = generator_to_nvidia(*generator(config))
        back, state_dict = generator_from_nvidia(official)
        assert [back.channels(r) for r in back.resolutions] == [config.channels(r) for r in config.resolutions]
        assert_same(state_dict, generator(config)[1])


@pytest.mark.parametrize("kind", ["psp", "e4e"])
def test_builtin_model_there_and_back(kind: Any, tmp_path: Path) -> None:
    folder = builtin_path("faces64")
    encoder = load_module(CLASSES[kind], PyramidEncoderConfig, folder / f"{kind}_encoder")
    model = load_module(Generator, GeneratorConfig, folder / "generator")

    def state(module: Any) -> tuple[Any, dict[str, Tensor]]:
        return module.config, module.state_dict()

    torch.save(checkpoint_to_official(kind, state(encoder), state(model)), tmp_path / "x.pt")
    file = read_single_file(tmp_path / "x.pt", encoder=kind)
    assert file.parts["encoder"].config == encoder.config
    assert_same(file.parts["encoder"].state_dict, encoder.state_dict())
    assert_same(file.parts["generator"].state_dict, model.state_dict())


def test_part_refuses_what_does_not_fit() -> None:
    config, state_dict = generator()
    with pytest.raises(Exception, match=r"Not a Generator: w_avg is missing; extra is unexpected\."):
        Part(Generator, config, {**{k: v for k, v in state_dict.items() if k != "w_avg"}, "extra": torch.zeros(1)})
