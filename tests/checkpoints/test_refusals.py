"""What is no file of the field, or a damaged one, says what it is and what to do."""

import os
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion import PTIPipeline
from stylegan_inversion.checkpoints.export import checkpoint_to_rosinality
from stylegan_inversion.checkpoints.generator import generator_to_rosinality
from stylegan_inversion.checkpoints.recognise import read_single_file, recognise
from stylegan_inversion.checkpoints.unpickle import PickledModule
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from tests.checkpoints.official_files import (
    TINY,
    generator,
    nvidia,
    nvidia_pickle,
    official,
    prefixed,
    without,
)

ROSINALITY = checkpoint_to_rosinality(*generator())
G_EMA, LATENT_AVG = ROSINALITY["g_ema"], ROSINALITY["latent_avg"]


def tensorflow_pickle() -> bytes:
    """The first StyleGAN2's .pkl: three networks of `dnnlib.tflib`, by name."""
    module = ModuleType("dnnlib.tflib.network")

    class Network:
        pass

    Network.__module__, Network.__qualname__ = module.__name__, "Network"
    module.Network = Network  # type: ignore[attr-defined]
    names = {"dnnlib": ModuleType("dnnlib"), "dnnlib.tflib": ModuleType("dnnlib.tflib"), module.__name__: module}
    sys.modules.update(names)
    try:
        return pickle.dumps((Network(), Network(), Network()), 2)
    finally:
        for name in names:
            del sys.modules[name]


def not_square() -> dict[str, Tensor]:
    state_dict = nvidia()
    state_dict["synthesis.b4.const"] = state_dict["synthesis.b4.const"][..., :2]
    return state_dict


def resnet34() -> dict[str, Any]:
    encoders = {"encoder.conv1.weight": torch.zeros(64, 6, 7, 7), "encoder.styles.0.linear.weight": torch.zeros(8, 8)}
    tensors = encoders | prefixed(G_EMA, "decoder.")
    return {"state_dict": tensors, "opts": {"encoder_type": "ResNetBackboneEncoder"}, "latent_avg": LATENT_AVG}


def pickled(**state: Any) -> PickledModule:
    return PickledModule("Generator", {"_parameters": {}, "_buffers": {}, "_modules": {}, **state})


def changed(tensors: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of pSp with other tensors; `None` leaves one out."""
    found = official("psp")["state_dict"] | tensors
    return official("psp", state_dict={key: tensor for key, tensor in found.items() if tensor is not None})


SMALLER = {k: v for k, v in G_EMA.items() if not re.match(r"(to_rgbs\.[1-9]|convs\.([2-9]|1\d))\.", k)}
REFUSED: dict[str, tuple[Any, str]] = {
    "stylegan-human": ({"G_ema": not_square()}, r"draws 64 x 32 pixels \(height x width\); only square ones are"),
    "its .pkl": (lambda path: path.write_bytes(nvidia_pickle(not_square())), r"draws 64 x 32 pixels"),
    "rosinality's, not square": (
        {"g_ema": {**G_EMA, "input.input": torch.zeros(1, 8, 4, 8)}},
        r"draws 64 x 128 pixels \(height x width\); only square ones are supported",
    ),
    "another beginning": (
        {"g_ema": {**G_EMA, "input.input": torch.zeros(1, 8, 5, 5)}},
        r"draws 80 x 80 pixels .*only those that begin with 4 x 4 pixels are supported",
    ),
    "TensorFlow": (
        lambda path: path.write_bytes(tensorflow_pickle()),
        r"TensorFlow network .*Convert it where it came",
    ),
    "StyleGAN3": (
        {"synthesis.input.freqs": torch.zeros(1)},
        r"a StyleGAN3 generator \(tensor 'synthesis.input.freqs'\)",
    ),
    "StyleGAN3's .pkl": (
        lambda path: path.write_bytes(nvidia_pickle({"synthesis.L0_36_512.weight": torch.zeros(1)})),
        r"a StyleGAN3 generator",
    ),
    "StyleGAN1": ({"g_running": {"generator.progression.0.x": torch.zeros(1)}}, r"a StyleGAN1 generator"),
    "conditional": ({"G_ema": {**nvidia(), "mapping.embed.weight": torch.zeros(1)}}, r"a conditional generator"),
    "conditional .pkl": (
        lambda path: path.write_bytes(nvidia_pickle(nvidia(), c_dim=10)),
        r"a conditional generator \(c_dim = 10\), .*Take an unconditional one",
    ),
    "EG3D": ({"G_ema": {"backbone.synthesis.b4.const": torch.zeros(1)}}, r"a 3D generator"),
    "ReStyle on a ResNet34": (resnet34(), r"a ReStyle encoder on a ResNet34 .*Take the e4e checkpoint"),
    "SFE": (
        {"state_dict": {"encoder.x.weight": torch.zeros(1), "inverter.fuser.weight": torch.zeros(1)}},
        r"a checkpoint of StyleFeatureEditor \(tensor 'inverter\.fuser\.weight'\)",
    ),
    "HyperStyle": ({"state_dict": {"hypernet.x": torch.zeros(1)}}, r"a checkpoint of HyperStyle"),
    "GFPGAN": (
        {"params_ema": {"stylegan_decoder.style_mlp.1.weight": torch.zeros(1)}},
        r"StyleGAN2 of BasicSR or GFPGAN",
    ),
    "BasicSR": ({"params_ema": {"style_conv1.weight": torch.zeros(1)}}, r"StyleGAN2 of BasicSR or GFPGAN"),
    "MMGeneration": (
        {"state_dict": {"generator_ema.style_mapping.1.weight": torch.zeros(1)}},
        r"MMGeneration or MMagic",
    ),
    "Stable Diffusion": ({"state_dict": {"model.diffusion_model.x": torch.zeros(1)}}, r"a diffusion model .*not a GAN"),
    "a LoRA": ({"unet_x.lora_down.weight": torch.zeros(1)}, r"a LoRA of a diffusion model .*not a GAN"),
    "ours": ({"synthesis.blocks.4.x": torch.zeros(1)}, r"a file of this package .*from_pretrained"),
    "a discriminator": (
        {"D": PickledModule("Discriminator", {})},
        r"there are no tensors in it, only D: Discriminator",
    ),
    "a pickled discriminator": (PickledModule("Discriminator", {}), r"Not a generator: a pickled Discriminator\."),
    "one channel": (pickled(img_channels=1), r"Its images have 1 channels, not 3 \(RGB\)"),
    "relu": (
        pickled(_modules={"b": PickledModule("L", {"activation": "relu"})}),
        r"layer 'b' has the activation 'relu'",
    ),
    "nothing": ({}, r"there are no tensors in it, only nothing"),
    "a list": ([1], r"Not a checkpoint of this field: it holds a list\."),
    "other tensors": ({"x": torch.zeros(1, 2, 3, 4)}, r"Not a checkpoint of this field: it holds \['x'\]\. Known are"),
    "zeros": (torch.zeros(1, 18, 512), r"Not a direction: it is zero, or holds NaN or infinity"),
    "one name twice": (
        {"g_ema": {**G_EMA, "module.input.input": G_EMA["input.input"]}},
        r"holds the tensor 'input\.input' twice: once as 'module\.input\.input'",
    ),
    "a missing tensor": ({"conv1.conv.weight": torch.zeros(1)}, r"tensor 'input.input' is missing"),
    "odd shapes": ({"g_ema": {**G_EMA, "style.1.weight": torch.zeros(8)}}, r"shapes or types that fit no network"),
    "a small generator": ({"g_ema": SMALLER}, r"fit no network of the field: `resolution` must be .* got 8\."),
    "w_avg": ({"g_ema": G_EMA, "latent_avg": torch.zeros(9)}, r"`latent_avg` must be \(8,\) or \(num_ws, 8\)"),
    "one of the noises": ({"g_ema": without(G_EMA, "noise_3")}, r"missing \['noises.noise_3'\]"),
    "ReStyle of six channels": (
        changed({"encoder.input_layer.0.weight": torch.zeros(4, 6, 3, 3)}),
        r"It is a ReStyle encoder with a feature pyramid \(tensor 'latlayer1\.weight'\), which is not supported",
    ),
    "another encoder": (official("psp", opts={"encoder_type": "Mine"}), r"Its encoder is a 'Mine'; known are Gradual"),
    "a bias": (
        changed({"encoder.styles.0.linear.bias": torch.zeros(3)}),
        r"It does not fit GradualStyleEncoder: .*\(3,\)",
    ),
    "a unit": (
        changed({"encoder.body.0.res_layer.1.weight": None}),
        r"does not fit GradualStyleEncoder: missing .*0\.0\.residual\.1\.weight",
    ),
    "NaN": (
        changed({"encoder.styles.9.linear.bias": torch.full((8,), torch.nan)}),
        r"pyramid.styles.9.linear.bias holds NaN or infinity",
    ),
    "no backbone": (official("psp", state_dict={"encoder.x": torch.zeros(1)}), r"Not a feature-pyramid encoder"),
    "three stages": (
        changed({key: None for key in official("psp")["state_dict"] if key.startswith("encoder.body.6.")}),
        r"`widths` must be 4 numbers, .*got \(4, 6, 8\)",
    ),
    "a bottleneck": (
        {"state_dict": {f"encoder_q.layer{i}.0.conv1.weight": torch.zeros(4, 4, 1, 1) for i in range(1, 5)}},
        r"does not fit ResNet: missing .* more",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_says_what_it_is(kind: str, tmp_path: Path) -> None:
    content, message = REFUSED[kind]
    path = tmp_path / "x.pt"
    if isinstance(content, PickledModule) or (
        isinstance(content, dict) and isinstance(content.get("D"), PickledModule)
    ):
        with pytest.raises(CheckpointError, match=message):
            recognise(content)
        return
    if isinstance(content, Callable):  # type: ignore[arg-type]
        content(path)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: ") + f".*{message}"):
        read_single_file(path)


def test_an_encoder_for_another_generator() -> None:
    half = generator_to_rosinality(*generator(replace(TINY, resolution=32)))[0]
    tensors = {k: v for k, v in official("psp")["state_dict"].items() if k.startswith("encoder.")}
    with pytest.raises(CheckpointError, match=r"encoder is for a generator of 64 px, but its generator draws 32 px\."):
        recognise(official("psp", state_dict=tensors | prefixed(half, "decoder.")))


def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelNotFoundError, match=r"a pipeline of diffusers \(model_index\.json\), not a GAN"):
        PTIPipeline.from_pretrained(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"a folder: use from_pretrained"):
        PTIPipeline.from_single_file(tmp_path)
    os.remove(tmp_path / "model_index.json")
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json, so it is not a model saved by this package"):
        PTIPipeline.from_pretrained(tmp_path)
