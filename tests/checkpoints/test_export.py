"""What is written is what was read, to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_inversion import storage
from stylegan_inversion.checkpoints.export import checkpoint_to_official, write_model, write_official
from stylegan_inversion.checkpoints.recognise import SingleFile, read_single_file
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from tests.checkpoints.official_files import SMALL, TINY, UNITS, WIDTHS, assert_same, draw, generator

SIZES: dict[str, Any] = dict(widths=WIDTHS, units=UNITS, reduction=2)
ODD = PyramidEncoderConfig(128, 32, 8, coarse_end=2, middle_end=5, style_channels=3, **SIZES)


@pytest.mark.parametrize(
    ("kind", "sizes", "encoder_sizes", "average"),
    [
        ("psp", TINY, PyramidEncoderConfig(64, 64, 8, **SIZES), "own"),
        ("e4e", TINY, PyramidEncoderConfig(64, 64, 8, **SIZES), "generator"),
        ("psp", SMALL, ODD, "none"),
        ("e4e", replace(TINY, resolution=16), PyramidEncoderConfig(16, 32, 8, **SIZES), "own"),
    ],
)
def test_whole_file_there_and_back(
    kind: str, sizes: GeneratorConfig, encoder_sizes: PyramidEncoderConfig, average: str, tmp_path: Path
) -> None:
    config, drawn = generator(sizes)
    tensors = draw(ENCODERS[kind].network(encoder_sizes))  # type: ignore[call-arg]
    if average != "own":
        w_avg = drawn["w_avg"] if average == "generator" else torch.zeros(8)
        tensors["pyramid.w_avg"] = w_avg.repeat(encoder_sizes.num_ws, 1)
    checkpoint = checkpoint_to_official(kind, (encoder_sizes, tensors), (config, drawn))
    assert ("w_avg" in checkpoint) == (average == "own")
    expected = {"start_from_latent_avg": average != "none", "learn_in_w": False, "input_nc": 3, "label_nc": 0}
    expected |= {"encoder_type": {"psp": "GradualStyleEncoder", "e4e": "Encoder4Editing"}[kind]}
    expected |= {"output_size" if kind == "psp" else "stylegan_size": config.resolution, "n_styles": config.num_ws}
    assert expected.items() <= checkpoint["opts"].items()  # their loaders read these without a default
    torch.save(checkpoint, tmp_path / "x.pt")
    file = read_single_file(tmp_path / "x.pt")
    assert (file.kind, file.notes, file.parts["encoder"].config) == (kind, (), encoder_sizes)
    assert_same(file.parts["encoder"].state_dict, tensors)
    assert_same(file.parts["generator"].state_dict, drawn)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="A file of kind ganspace has no form in a folder"):
        write_model(SingleFile("ganspace"), tmp_path)
    with pytest.raises(
        ValueError, match=r"`layout` must be one of e4e, psp, restyle, sfe, rosinality, nvidia, got 'tf'"
    ):
        write_official(storage.builtin_path("faces64"), tmp_path / "x.pt", layout="tf")
    storage.save_module(
        Generator(GeneratorConfig(16, 8, 8, 2, channel_base=128, channel_max=8)), tmp_path / "m/generator"
    )
    with pytest.raises(ModelNotFoundError, match=r"holds no encoder of e4e \(folder 'e4e_encoder'\)"):
        write_official(tmp_path / "m", tmp_path / "x.pt", layout="e4e")
    assert not (tmp_path / "x.pt").exists()
