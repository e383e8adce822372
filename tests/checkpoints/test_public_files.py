"""Kinds of public files that broke: each in its official layout, with small sizes, from the file to the saved edit."""

import io
import logging
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from stylegan_inversion.checkpoints.model_folder import write_model
from stylegan_inversion.checkpoints.sandbox import PickledModule, read_checkpoint
from stylegan_inversion.checkpoints.single_file import read_single_file, recognise
from torch import Tensor

from stylegan_inversion import E4EPipeline, InversionOutput, PSPPipeline, PTIPipeline, ReStylePipeline
from stylegan_inversion.checkpoints import sandbox
from stylegan_inversion.checkpoints.export import checkpoint_to_rosinality
from stylegan_inversion.checkpoints.generator import generator_from_nvidia, generator_from_rosinality
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.pipelines.base import InversionPipeline
from tests.checkpoints.official_files import (
    TINY,
    assert_same,
    generator,
    nvidia,
    nvidia_pickle,
    pti_file,
)
from tests.checkpoints.test_generator import rosinality_discriminator
from tests.checkpoints.test_single_file import encoder, official

PHOTO = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)  # not square
ROSINALITY = checkpoint_to_rosinality(*generator())
G_EMA, LATENT_AVG = ROSINALITY["g_ema"], ROSINALITY["latent_avg"]
OURS = generator()[1]


def without(tensors: dict[str, Tensor], *endings: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not any(part in key for part in endings)}


def sound(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """With variances that are above zero, so that the encoder gives numbers."""
    inner = {k: v.abs() + 0.1 if k.endswith("running_var") else v for k, v in checkpoint["state_dict"].items()}
    return {**checkpoint, "state_dict": inner}


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def walk(pipeline: InversionPipeline, folder: Path) -> list[np.ndarray]:
    """Photo -> edit -> save -> load, and the same with the saved pipeline; the pictures."""
    vector = torch.ones(TINY.w_dim) / TINY.w_dim**0.5
    pipeline.directions["smile"] = Direction("smile", vector)
    steps: dict[str, Any] = {"num_w_steps": 1, "num_tuning_steps": 1} if isinstance(pipeline, PTIPipeline) else {}
    pictures = []
    for step in (pipeline, type(pipeline).from_pretrained(pipeline.save_pretrained(folder / "model"))):
        out = step.edit(step(PHOTO, align=False, **steps), smile=2.0)
        again = InversionOutput.load(out.save(folder / "out"), base=pipeline.generator)
        assert np.array_equal(np.asarray(again.images[0]), np.asarray(out.images[0]))
        assert step.paste_back(again)[0].size == (64, 96)
        pictures.append(np.asarray(out.images[0]))
    assert np.array_equal(*pictures)
    return pictures


# Where the generator lies in the file, and what its tensors are called. `None`: the file needs no note.

NESTED: dict[str, Any] = {
    "g_ema": {"g_ema": G_EMA, "latent_avg": LATENT_AVG},
    "G_ema": {"G_ema": G_EMA, "latent_avg": LATENT_AVG},
    "params_ema": {"params": prefixed(G_EMA, ""), "params_ema": G_EMA, "latent_avg": LATENT_AVG},
    "model and its average": {
        "model": {key: tensor + 1 for key, tensor in G_EMA.items()},
        "model_ema": G_EMA,
        "latent_avg": LATENT_AVG,
    },
    "state_dict": {"state_dict": G_EMA, "latent_avg": LATENT_AVG, "epoch": 3},
    "two levels": {"checkpoint": {"state_dict": G_EMA, "latent_avg": LATENT_AVG}},
    "bare": {**G_EMA, "latent_avg": LATENT_AVG},
    "DataParallel": {"g_ema": prefixed(G_EMA, "module."), "latent_avg": LATENT_AVG},
    "compiled in DataParallel": {"g_ema": prefixed(G_EMA, "module._orig_mod."), "latent_avg": LATENT_AVG},
    "compiled inside": {
        "g_ema": {key.replace("convs.", "convs._orig_mod."): tensor for key, tensor in G_EMA.items()},
        "latent_avg": LATENT_AVG,
    },
    "a wrapper's": {"state_dict": prefixed(G_EMA, "model.generator."), "latent_avg": LATENT_AVG},
    "NVIDIA's, nested": {"G_ema": nvidia()},
    "NVIDIA's, wrapped": {"state_dict": prefixed(nvidia(), "module.G_ema.")},
    "pSp's": official("psp"),
    "pSp's in DataParallel": official("psp", state_dict=prefixed(official("psp")["state_dict"], "module.")),
    "e4e's, a wrapper's": official("e4e", state_dict=prefixed(official("e4e")["state_dict"], "net._orig_mod.")),
    "e4e's, nested": {"model": official("e4e"), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
}


@pytest.mark.parametrize("layout", NESTED)
def test_wherever_it_lies(layout: str, tmp_path: Path) -> None:
    torch.save(NESTED[layout], tmp_path / "x.pt")
    file = read_single_file(tmp_path / "x.pt")
    assert file.notes == ()
    own = dict(file.parts["generator"].state_dict)
    assert_same(own, OURS)
    if "encoder" in file.parts:
        assert_same(file.parts["encoder"].state_dict, encoder(file.kind)[1])


@pytest.mark.parametrize("layout", ["params_ema", "NVIDIA's, wrapped", "pSp's in DataParallel", "e4e's, nested"])
def test_the_whole_road(layout: str, tmp_path: Path) -> None:
    cls: Any = {"p": PSPPipeline, "e": E4EPipeline}.get(layout[0] if "'s" in layout else "", PTIPipeline)
    checkpoint = {key: sound(value) if key == "model" else value for key, value in NESTED[layout].items()}
    torch.save(sound(checkpoint) if "state_dict" in checkpoint else checkpoint, tmp_path / "x.pt")
    walk(cls.from_single_file(tmp_path / "x.pt"), tmp_path)


def test_of_two_tensors_with_one_name_none_is_taken() -> None:
    with pytest.raises(CheckpointError, match=r"holds the tensor 'input\.input' twice: once as 'module\.input\.input'"):
        recognise({"g_ema": {**G_EMA, "module.input.input": G_EMA["input.input"]}})


# Noise that is missing.


@pytest.mark.parametrize("layout", ["rosinality", "NVIDIA's", "NVIDIA's .pkl", "PTI's", "e4e's"])
def test_noise_that_is_missing(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, cls = tmp_path / "x.pt", E4EPipeline if layout == "e4e's" else PTIPipeline
    bare = without(nvidia(), "noise_const")
    if layout == "rosinality":
        torch.save({"g_ema": without(G_EMA, "noises."), "latent_avg": LATENT_AVG}, path)
    elif layout == "NVIDIA's":
        torch.save(bare, path)
    elif layout == "NVIDIA's .pkl":
        path.write_bytes(nvidia_pickle(bare))
    elif layout == "PTI's":
        pti_file(bare, path)
    else:
        torch.save(sound(official("e4e", state_dict=without(official("e4e")["state_dict"], "noises."))), path)
    with caplog.at_level(logging.WARNING):
        pipeline = cls.from_single_file(path)
    assert "The file has no constant noise; it was drawn from a seed" in caplog.text
    state_dict = pipeline.generator.state_dict()
    drawn = {key for key in OURS if key.endswith("noise_const")}
    assert all(torch.equal(state_dict[key], OURS[key]) for key in OURS.keys() - drawn)
    fine = state_dict["synthesis.blocks.64.conv1.noise_const"]
    assert abs(float(fine.mean())) < 0.05 and abs(float(fine.std()) - 1) < 0.05
    assert_same(cls.from_single_file(path).generator.state_dict(), state_dict)  # the same each time
    walk(pipeline, tmp_path)


def test_the_same_noise_in_both_formats() -> None:
    ours = generator_from_rosinality(without(G_EMA, "noises."))[1], generator_from_nvidia(without(nvidia(), "_const"))
    assert_same(
        {k: v for k, v in ours[0].items() if "noise" in k}, {k: v for k, v in ours[1][1].items() if "noise" in k}
    )


def test_a_generator_that_was_trained_without_noise() -> None:
    file = recognise({"G_ema": without(nvidia(), "noise_")})
    strengths = [v for k, v in file.parts["generator"].state_dict.items() if k.endswith("noise_strength")]
    assert len(strengths) == 9 and not any(bool(strength) for strength in strengths)
    with pytest.raises(CheckpointError, match=r"missing \['noises.noise_3'\]"):  # one of them: damaged
        recognise({"g_ema": without(G_EMA, "noise_3")})


# A good generator beside something else.


@pytest.mark.parametrize(
    ("checkpoint", "left_out"),
    [
        ({"g_ema": G_EMA, "d": {"blocks.0.attention.weight": torch.zeros(2, 2)}}, ["d"]),
        ({"g_ema": G_EMA, "d": {**rosinality_discriminator(), "extra.weight": torch.zeros(1)}}, ["d"]),
        ({"g_ema": G_EMA, "d": rosinality_discriminator()}, []),
        ({"g_ema": G_EMA, "g": G_EMA, "g_optim": {"state": {0: {"step": torch.zeros(1)}}}}, []),
        ({"g_ema": G_EMA, "e": {"net.weight": torch.zeros(4)}, "d": rosinality_discriminator()}, ["e"]),
        ({"state_dict": prefixed(G_EMA, "G.") | {"D.x": torch.zeros(3), "vgg.y": torch.zeros(3)}}, ["D", "vgg"]),
        ({"state_dict": prefixed({k: v + 1 for k, v in G_EMA.items()}, "G.") | prefixed(G_EMA, "G_ema.")}, ["G"]),
        (official("e4e", discriminator_state_dict={"x.weight": torch.zeros(2)}), ["discriminator_state_dict"]),
        (official("psp", state_dict=official("psp")["state_dict"] | {"grid_align.x": torch.zeros(1)}), ["grid_align"]),
    ],
)
def test_a_good_generator_beside_something_else(checkpoint: Any, left_out: list[str], tmp_path: Path) -> None:
    torch.save({"latent_avg": LATENT_AVG, **checkpoint}, tmp_path / "x.pt")
    file = read_single_file(tmp_path / "x.pt")
    assert_same(file.parts["generator"].state_dict, OURS)
    shown = ", ".join(f"`{name}`" for name in left_out)
    assert file.notes == ((f"The file also holds {shown}, which was left out.",) if left_out else ())
    PTIPipeline.from_pretrained(write_model(file, tmp_path / "model"))


# Large files.


def sparse(checkpoint: Any, path: Path, gigabytes: int) -> int:
    """What `torch.save` writes, behind a hole of so many GB, as a zip of so many; its size."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    with path.open("wb") as file, zipfile.ZipFile(buffer) as source:
        file.write(b"PK\3\4")
        file.seek(gigabytes * 2**30)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
    assert path.stat().st_blocks * 512 < 2**28, "this file system keeps no holes"
    return path.stat().st_size


def test_a_checkpoint_of_more_than_4_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"global_step": 7, "best_val_loss": None, "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}}}
    size = sparse(official("e4e", **training), tmp_path / "iteration_7.pt", gigabytes=5)
    assert size > 5 * 2**30
    file = read_single_file(tmp_path / "iteration_7.pt")
    assert file.kind == "e4e" and file.notes == ()
    assert_same(file.parts["generator"].state_dict, OURS)
    monkeypatch.setattr(sandbox, "MAX_FILE_BYTES", 5 * 2**30)
    with pytest.raises(CheckpointError, match=r"has 5\.0 GB; checkpoints of up to 5\.0 GB are read"):
        read_checkpoint(tmp_path / "iteration_7.pt", max_bytes=sandbox.MAX_FILE_BYTES)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_memory_that_reading_takes(tmp_path: Path) -> None:
    """One copy of the file on disk; in memory only the pages that are looked at."""
    torch.save({"g_ema": G_EMA, "g_optim": {"state": {0: torch.ones(50_000_000)}}}, tmp_path / "x.pt")  # 200 MB

    def held() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    before = held()
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert held() - before < 50e6 and checkpoint["g_optim"]["state"][0].shape == (50_000_000,)


# What cannot be read says what it is.


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
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_says_what_it_is(kind: str, tmp_path: Path) -> None:
    content, message = REFUSED[kind]
    if isinstance(content, dict) and any(isinstance(value, PickledModule) for value in content.values()):
        with pytest.raises(CheckpointError, match=message):
            recognise(content)
        return
    if isinstance(content, Callable):  # type: ignore[arg-type]
        content(tmp_path / "x.pt")
    else:
        torch.save(content, tmp_path / "x.pt")
    cls = ReStylePipeline if kind.startswith("ReStyle") else PTIPipeline
    with pytest.raises(CheckpointError, match=message):
        cls.from_single_file(tmp_path / "x.pt")


def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelNotFoundError, match=r"a pipeline of diffusers \(model_index\.json\), not a GAN"):
        PTIPipeline.from_pretrained(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"a folder: use from_pretrained"):
        PTIPipeline.from_single_file(tmp_path)
    os.remove(tmp_path / "model_index.json")
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json, so it is not a model saved by this package"):
        PTIPipeline.from_pretrained(tmp_path)
