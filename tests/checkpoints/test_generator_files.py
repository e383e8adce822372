"""Files of generators through `read_single_file`: exact at tiny sizes, the papers' numbers at real ones."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stylegan_inversion.checkpoints.network_file import average_w
from stylegan_inversion.checkpoints.sandbox import PickledModule
from stylegan_inversion.checkpoints.single_file import read_single_file, recognise
from torch import nn

from stylegan_inversion import latents
from stylegan_inversion.checkpoints.export import checkpoint_to_rosinality
from stylegan_inversion.checkpoints.generator import generator_to_nvidia, generator_to_rosinality
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import GeneratorConfig
from tests.checkpoints.official_files import (
    SMALL,
    TINY,
    assert_same,
    check,
    generator,
    nvidia,
    nvidia_pickle,
    pti_file,
)
from tests.checkpoints.test_generator import D_TINY, rosinality_discriminator
from tests.conformance import draw_state_dict, load_case


@pytest.mark.parametrize("config", [TINY, SMALL], ids=["64", "128"])
def test_rosinality(config: GeneratorConfig, tmp_path: Path) -> None:
    torch.save(checkpoint_to_rosinality(*generator(config)), tmp_path / "x.pt")
    file = read_single_file(tmp_path / "x.pt")
    assert (file.kind, file.notes, file.parts.keys()) == ("rosinality", (), {"generator"})
    assert_same(file.parts["generator"].state_dict, generator(config)[1])


def test_rosinality_training_snapshot(tmp_path: Path) -> None:
    g_ema = checkpoint_to_rosinality(*generator())["g_ema"]
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    torch.save(
        {
            "g": {k: v + 1 for k, v in g_ema.items()},
            "d": rosinality_discriminator(),
            "g_ema": g_ema,
            "g_optim": optimizer.state_dict(),
            "d_optim": optimizer.state_dict(),
            "args": argparse.Namespace(size=64, path="x"),
            "ada_aug_p": 0.0,
        },
        tmp_path / "010000.pt",
    )
    file = read_single_file(tmp_path / "010000.pt")
    assert file.parts["discriminator"].config == D_TINY
    assert "over 10000 samples" in file.notes[0]
    expected = {**generator()[1], "w_avg": average_w(*generator(), samples=10_000)}
    assert_same(file.parts["generator"].state_dict, expected)


def test_rosinality_without_the_average_or_flat() -> None:
    official_dict, latent_avg = generator_to_rosinality(*generator())
    file = recognise({"g": official_dict, "latent_avg": latent_avg})
    assert file.notes == ("The file has no `g_ema`, the averaged generator; `g`, the one in training, was taken.",)
    assert recognise(dict(official_dict)).kind == "rosinality"
    assert recognise({"state_dict": official_dict, "latent_avg": latent_avg}).notes == ()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("config", [TINY, SMALL], ids=["64", "128"])
def test_nvidia_pickle(config: GeneratorConfig, protocol: int, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(nvidia_pickle(nvidia(config), protocol=protocol))
    file = read_single_file(tmp_path / "x.bin")
    assert (file.kind, file.notes) == ("nvidia", ())
    assert file.parts["generator"].config == replace(file.parts["generator"].config, mapping_lr_multiplier=0.02)
    assert_same(file.parts["generator"].state_dict, generator(config)[1])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("config", [TINY, SMALL], ids=["64", "128"])
def test_pti(config: GeneratorConfig, legacy: bool, tmp_path: Path) -> None:
    pti_file(nvidia(config), tmp_path / "model_ABC_multi_id.pt", legacy=legacy, c_dim=np.int64(0))
    file = read_single_file(tmp_path / "model_ABC_multi_id.pt")
    assert file.kind == "pti"
    assert_same(file.parts["generator"].state_dict, generator(config)[1])


def test_state_dict_of_nvidias_generator(tmp_path: Path) -> None:
    save_file(nvidia(), tmp_path / "final_pti_model.safetensors")
    file = read_single_file(tmp_path / "final_pti_model.safetensors")
    assert file.kind == "stylegan3-editing"
    assert_same(file.parts["generator"].state_dict, generator()[1])
    bare = {key: tensor for key, tensor in nvidia().items() if key != "mapping.w_avg"}
    assert "no average w" in recognise({"state_dict": bare}).notes[0]


def pickled(**state: Any) -> PickledModule:
    return PickledModule("Generator", {"_parameters": {}, "_buffers": {}, "_modules": {}, **state})


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (pickled(c_dim=10), r"It is a conditional generator \(c_dim = 10\), which is not supported"),
        ({"G_ema": pickled(c_dim=10)}, r"conditional generator"),
        (pickled(img_channels=1), r"Its images have 1 channels; only RGB is supported"),
        (pickled(_modules={"b": PickledModule("L", {"activation": "relu"})}), r"layer 'b' has the activation 'relu'"),
        (pickled(_parameters={"synthesis.L3_36_1024.w": torch.zeros(1)}), r"It is a StyleGAN3 generator"),
        (pickled(), r"Not a StyleGAN2 generator"),
        (PickledModule("Discriminator", {}), r"Not a generator: a pickled Discriminator\."),
        ({"synthesis.input.freqs": torch.zeros(1)}, r"It is a StyleGAN3 generator \(tensor 'synthesis.input.freqs'\)"),
        ({"generator.progression.0.x": torch.zeros(1)}, r"It is a StyleGAN1 generator"),
        ({"g_mapping.dense0.weight": torch.zeros(1)}, r"It is a StyleGAN1 generator .*only StyleGAN2 is supported"),
        ({"backbone.synthesis.b4.const": torch.zeros(1)}, r"It is a 3D generator"),
        ({**nvidia(), "mapping.embed.weight": torch.zeros(1)}, r"conditional generator \(`mapping.embed`: c_dim > 0\)"),
        ({"synthesis.blocks.4.x": torch.zeros(1)}, r"a file of this package .*load the folder that it is in"),
        ({"module.a": torch.zeros(1), "a": torch.zeros(1)}, r"holds the tensor 'a' twice: once as 'a'\. Save one"),
        ({"D": PickledModule("Discriminator", {})}, r"there are no tensors in it, only D: Discriminator"),
        ({}, r"there are no tensors in it, only nothing"),
        ([1], r"Not a checkpoint of this field: it holds a list\."),
        ({"weights": torch.zeros(1, 2, 3, 4)}, r"Not a checkpoint of this field: it holds \['weights'\]\. Known are"),
        ({"conv1.conv.weight": torch.zeros(1)}, r"Not a StyleGAN2 generator in rosinality's format"),
        (
            {"g_ema": {"conv1.conv.weight": torch.zeros(1), "style.1.weight": torch.zeros(2, 2)}},
            r"fit no network|Not a",
        ),
        (torch.zeros(1, 18, 512), r"Not a direction: it is zero, or holds NaN or infinity"),
    ],
)
def test_refused_by_name(checkpoint: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        recognise(checkpoint)


def test_layers_that_clamp_are_mentioned() -> None:
    module = pickled(_modules={"b4": PickledModule("SynthesisLayer", {"conv_clamp": 256})})
    flat = PickledModule("Generator", {"_parameters": nvidia(), "_modules": module.state["_modules"]})
    assert "conv_clamp" in recognise(flat).notes[0]


# The papers' numbers, through the files.


@torch.no_grad()
def test_conformance_of_a_rosinality_file(tmp_path: Path) -> None:
    case, expected = load_case("stylegan2_128")
    inputs = draw_state_dict(case["inputs"], case["seed"])
    g, d = (draw_state_dict(case[part]["state_dict"], case[part]["seed"]) for part in ("generator", "discriminator"))
    torch.save({"g_ema": g, "d": d, "latent_avg": inputs["mean_latent"][0]}, tmp_path / "x.pt")
    del g, d
    file = read_single_file(tmp_path / "x.pt")
    module = file.parts["generator"].build()
    check("image", module(inputs["z"]), expected["image"])
    check("truncated", module(inputs["z"], truncation_psi=0.7), expected["image_truncated_0.7"])
    check("logits", file.parts["discriminator"].build()(inputs["image"]), expected["logits"].squeeze(1))


@pytest.mark.parametrize("kind", ["nvidia", "pti"])
@torch.no_grad()
def test_conformance_of_nvidias_files(kind: str, tmp_path: Path) -> None:
    case, expected = load_case("stylegan2_ada_64")
    inputs = draw_state_dict(case["inputs"], case["seed"])
    state_dict = draw_state_dict(case["state_dict"], case["seed"])
    if kind == "nvidia":
        (tmp_path / "x").write_bytes(nvidia_pickle(state_dict))
    else:
        pti_file(state_dict, tmp_path / "x")
    part = read_single_file(tmp_path / "x").parts["generator"]
    # the stand-in says 0.02 where NVIDIA's layers say 0.01
    module = replace(part, config=replace(part.config, mapping_lr_multiplier=0.01)).build()
    ws = latents.broadcast(module.mapping(inputs["z"]), module.num_ws)
    check("ws", ws, expected["ws"])
    check("const", module.synthesis(ws), expected["image_const_noise"])


def test_export_of_nvidias_generator_is_exact() -> None:
    """Names and shapes of the official state dict, from the conformance case."""
    case, _ = load_case("stylegan2_ada_64")
    state_dict = draw_state_dict(case["state_dict"], case["seed"])
    part = recognise(dict(state_dict)).parts["generator"]
    assert_same(generator_to_nvidia(part.config, part.state_dict), state_dict)
