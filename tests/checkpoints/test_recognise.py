"""Files of the field in their official layouts, with small sizes: what each is, and the road from file to edit."""

import argparse
import io
import logging
import pathlib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stylegan_inversion import E4EPipeline, InversionOutput, PSPPipeline, PTIPipeline
from stylegan_inversion.checkpoints.export import write_model
from stylegan_inversion.checkpoints.generator import average_w
from stylegan_inversion.checkpoints.recognise import read_single_file, recognise
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.models.discriminator import LatentDiscriminator, LatentDiscriminatorConfig
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.resnet import ResNet, ResNetConfig
from stylegan_inversion.pipelines.base import InversionPipeline
from tests.checkpoints.official_files import (
    ARCFACE,
    D_TINY,
    ENCODER_SIZES,
    TINY,
    assert_same,
    checkpoint_to_rosinality,
    draw,
    encoder,
    generator,
    nvidia,
    nvidia_pickle,
    official,
    official_arcface,
    prefixed,
    pti_file,
    rosinality_discriminator,
    without,
)

PHOTO = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)  # not square
G_EMA, LATENT_AVG = checkpoint_to_rosinality(*generator()).values()
PSP, E4E = official("psp"), official("e4e")
OURS = generator()[1]


def sound(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """With variances that are above zero, so that the encoder gives numbers."""
    inner = {k: v.abs() + 0.1 if k.endswith("running_var") else v for k, v in checkpoint["state_dict"].items()}
    return {**checkpoint, "state_dict": inner}


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


# Where the generator lies in the file, and what its tensors are called. None of these needs a note.

NESTED: dict[str, Any] = {
    "params_ema": {"params": {"x": torch.zeros(1)}, "params_ema": G_EMA, "latent_avg": LATENT_AVG},
    "model and its average": {
        "model": {key: tensor + 1 for key, tensor in G_EMA.items()},
        "model_ema": G_EMA,
        "latent_avg": LATENT_AVG,
    },
    "two levels": {"checkpoint": {"state_dict": prefixed(G_EMA, "model.generator."), "latent_avg": LATENT_AVG}},
    "bare": {**G_EMA, "latent_avg": LATENT_AVG},
    "compiled in DataParallel": {
        "g_ema": {f"module.{key.replace('convs.', 'convs._orig_mod.')}": tensor for key, tensor in G_EMA.items()},
        "latent_avg": LATENT_AVG,
    },
    "NVIDIA's, wrapped": {"state_dict": prefixed(nvidia(), "module.G_ema.")},
    "pSp's in DataParallel": official("psp", state_dict=prefixed(PSP["state_dict"], "module.")),
    "e4e's, a wrapper's": official("e4e", state_dict=prefixed(E4E["state_dict"], "net._orig_mod.")),
    "e4e's, nested": {"model": E4E, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
}


@pytest.mark.parametrize("layout", NESTED)
def test_wherever_it_lies(layout: str) -> None:
    file = recognise(NESTED[layout])
    assert file.notes == (() if layout != "params_ema" else ("The file also holds `params`, which was left out.",))
    assert_same(file.parts["generator"].state_dict, OURS)
    if "encoder" in file.parts:
        assert_same(file.parts["encoder"].state_dict, encoder(file.kind)[1])


@pytest.mark.parametrize("layout", ["params_ema", "NVIDIA's, wrapped", "pSp's in DataParallel", "e4e's, nested"])
def test_the_whole_road(layout: str, tmp_path: Path) -> None:
    cls: Any = {"p": PSPPipeline, "e": E4EPipeline}.get(layout[0] if "'s" in layout else "", PTIPipeline)
    checkpoint = {key: sound(value) if key == "model" else value for key, value in NESTED[layout].items()}
    torch.save(sound(checkpoint) if "state_dict" in checkpoint else checkpoint, tmp_path / "x.pt")
    walk(cls.from_single_file(tmp_path / "x.pt"), tmp_path)


@pytest.mark.parametrize("layout", ["rosinality", "PTI's", "e4e's"])
def test_noise_that_is_missing(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, cls = tmp_path / "x.pt", E4EPipeline if layout == "e4e's" else PTIPipeline
    if layout == "rosinality":
        torch.save({"g_ema": without(G_EMA, "noises."), "latent_avg": LATENT_AVG}, path)
    elif layout == "PTI's":
        pti_file(without(nvidia(), "noise_const"), path)
    else:
        torch.save(sound(official("e4e", state_dict=without(E4E["state_dict"], "noises."))), path)
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


def test_a_generator_that_was_trained_without_noise() -> None:
    file = recognise({"G_ema": without(nvidia(), "noise_")})
    strengths = [v for k, v in file.parts["generator"].state_dict.items() if k.endswith("noise_strength")]
    assert len(strengths) == 9 and not any(bool(strength) for strength in strengths)


@pytest.mark.parametrize(
    ("checkpoint", "left_out"),
    [
        ({"g_ema": G_EMA, "d": {**rosinality_discriminator(), "extra.weight": torch.zeros(1)}}, ["d"]),
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


# What each file is.


@pytest.mark.parametrize(("kind", "legacy"), [("psp", False), ("e4e", True)])
def test_encoder_file(kind: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "a_misleading_name.pkl"
    options = official(kind)["opts"] | {"exp_dir": pathlib.Path("/runs/a"), "device": torch.device("cuda:0")}
    judge = draw(LatentDiscriminator(LatentDiscriminatorConfig(w_dim=8, num_layers=2)))
    training = {"discriminator_state_dict": judge, "global_step": 7, "best_val_loss": {"loss": np.float64(0.5)}}
    torch.save(official(kind, opts=options, **training), path, _use_new_zipfile_serialization=not legacy)
    file = read_single_file(path)
    assert (file.kind, file.notes, file.options["exp_dir"]) == (kind, (), "/runs/a")
    assert file.parts["encoder"].module_class is ENCODERS[kind].network
    assert file.parts["encoder"].config == ENCODER_SIZES[TINY]
    assert_same(file.parts["encoder"].state_dict, encoder(kind)[1])
    assert_same(file.parts["generator"].state_dict, OURS)
    assert_same(file.parts["latent_discriminator"].state_dict, judge)


def test_older_encoder_files() -> None:
    checkpoint = official("psp")
    checkpoint["opts"] = {k: v for k, v in checkpoint["opts"].items() if k not in ("learn_in_w", "output_size")}
    file = recognise(checkpoint)
    assert (file.kind, file.notes, file.parts["generator"].config.resolution) == ("psp", (), 64)
    for kind, samples in (("psp", 100_000), ("e4e", 10_000)):
        file = recognise(official(kind, latent_avg=None))
        assert f"no average w; it was computed from the mapping network, over {samples} samples" in file.notes[0]
        w_avg = file.parts["generator"].state_dict["w_avg"]
        assert torch.equal(w_avg, average_w(*generator(), samples=samples))
        assert torch.equal(file.parts["encoder"].state_dict["pyramid.w_avg"], w_avg.expand(10, 8))


def test_an_encoder_that_does_not_start_from_the_average() -> None:
    checkpoint = official("psp")
    checkpoint["opts"]["start_from_latent_avg"] = False
    file = recognise(checkpoint)
    assert not file.parts["encoder"].state_dict["pyramid.w_avg"].any()
    assert torch.equal(file.parts["generator"].state_dict["w_avg"], checkpoint["latent_avg"][0])


def test_which_encoder_it_is() -> None:
    sizes, learn_in_w = ({"stylegan_size": 64}, {"output_size": 64}), {"learn_in_w": False}
    for kind, options in zip(("e4e", "psp", "psp", "e4e"), (*sizes, learn_in_w, sizes[0] | learn_in_w)):
        file = recognise(official(kind, opts=options))
        assert (file.kind, file.parts["encoder"].module_class) == (kind, ENCODERS[kind].network)
    for kind in ("psp", "e4e"):
        assert recognise(official("e4e", opts=None), kind).parts["encoder"].module_class is ENCODERS[kind].network


def test_an_encoder_alone_and_one_into_w() -> None:
    tensors = {k: v for k, v in official("e4e")["state_dict"].items() if k.startswith("encoder.")}
    file = recognise(official("e4e", state_dict=tensors))
    assert file.parts.keys() == {"encoder"} and file.notes == ("The file has no generator (`decoder.`).",)
    into_w = prefixed(G_EMA, "decoder.") | {"encoder.linear.weight": torch.zeros(8, 8)}
    into_w |= {k: v for k, v in tensors.items() if k.startswith(("encoder.body.", "encoder.input_layer."))}
    file = recognise(official("psp", state_dict=into_w, opts={"encoder_type": "BackboneEncoderUsingLastLayerIntoW"}))
    assert file.parts.keys() == {"generator"} and file.notes == (
        "Its encoder into W was left out: no pipeline takes it.",
    )


def test_rosinality_training_snapshot(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    optimizer_state = {"g_optim": optimizer.state_dict(), "args": argparse.Namespace(size=64, path="x")}
    snapshot = {"g": {k: v + 1 for k, v in G_EMA.items()}, "d": rosinality_discriminator(), "g_ema": G_EMA}
    torch.save({**snapshot, **optimizer_state, "ada_aug_p": 0.0}, tmp_path / "010000.pt")
    file = read_single_file(tmp_path / "010000.pt")
    assert (file.kind, file.parts["discriminator"].config) == ("rosinality", D_TINY)
    assert "over 10000 samples" in file.notes[0]
    assert_same(file.parts["generator"].state_dict, {**OURS, "w_avg": average_w(*generator(), samples=10_000)})
    file = recognise({"g": G_EMA, "latent_avg": LATENT_AVG})
    assert file.notes == ("The file has no `g_ema`, the averaged generator; `g`, the one in training, was taken.",)


@pytest.mark.parametrize("protocol", [2, 5])
def test_nvidia_pickle(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(nvidia_pickle(nvidia(), protocol=protocol))
    file = read_single_file(tmp_path / "x.bin")
    assert (file.kind, file.notes) == ("nvidia", ())
    assert file.parts["generator"].config.mapping_lr_multiplier == 0.02
    assert_same(file.parts["generator"].state_dict, OURS)


@pytest.mark.parametrize("legacy", [False, True])
def test_pti(legacy: bool, tmp_path: Path) -> None:
    pti_file(nvidia(), tmp_path / "model_ABC_multi_id.pt", legacy=legacy, c_dim=np.int64(0), conv_clamp=256)
    file = read_single_file(tmp_path / "model_ABC_multi_id.pt")
    assert file.kind == "pti" and "conv_clamp" in file.notes[0]
    assert_same(file.parts["generator"].state_dict, OURS)
    bare = {key: tensor for key, tensor in nvidia().items() if key != "mapping.w_avg"}
    assert "no average w" in recognise({"state_dict": bare}).notes[0]


def test_arcface_moco_and_directions(tmp_path: Path) -> None:
    torch.save(official_arcface(), tmp_path / "model_ir_se50.pth", _use_new_zipfile_serialization=False)
    file = read_single_file(tmp_path / "model_ir_se50.pth")
    assert (file.kind, file.parts["identity"].config) == ("arcface", ARCFACE)
    # CurricularFace's IR-101: no squeeze, and a last normalisation without parameters
    plain = {key: v for key, v in official_arcface().items() if ".res_layer.5." not in key}
    plain = {key: v for key, v in plain.items() if key not in ("output_layer.4.weight", "output_layer.4.bias")}
    part = recognise(plain).parts["identity"]
    assert part.config == replace(ARCFACE, reduction=0, affine=False)
    assert part.build()(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    trunk = draw(ResNet(ResNetConfig((4, 8, 12, 16), (1, 1, 1, 1))))
    torch.save({"arch": "resnet50", "state_dict": prefixed(trunk, "module.encoder_q.")}, tmp_path / "moco.pth.tar")
    assert_same(read_single_file(tmp_path / "moco.pth.tar").parts["moco"].state_dict, trunk)
    np.save(tmp_path / "boundary.npy", np.random.default_rng(0).standard_normal((1, 16)))
    file = read_single_file(tmp_path / "boundary.npy")
    assert file.kind == "direction" and file.vectors["direction"].shape == (16,)
    torch.save({"age": 3 * torch.eye(4)[:1], "pose": torch.eye(4)}, tmp_path / "several.pt")
    file = read_single_file(tmp_path / "several.pt")
    assert {name: tuple(vector.shape) for name, vector in file.vectors.items()} == {"age": (4,), "pose": (4, 4)}
    pca = {"mean": torch.zeros(1, 4), "comp": torch.eye(4)[:2, None], "std": torch.ones(2)}
    torch.save(pca, tmp_path / "ffhq_pca.pt")
    file = read_single_file(tmp_path / "ffhq_pca.pt")
    assert file.kind == "ganspace" and file.components is not None and file.components.components.shape == (2, 4)


def test_reading_leaves_the_callers_seed_alone() -> None:
    checkpoint = official("psp", latent_avg=None)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    recognise(checkpoint).parts["encoder"].build()
    assert torch.equal(torch.rand(1), expected)


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


def test_a_checkpoint_of_more_than_4_gib(tmp_path: Path) -> None:
    size = sparse(official("e4e", global_step=7, best_val_loss=None), tmp_path / "iteration_7.pt", gigabytes=5)
    assert size > 5 * 2**30
    file = read_single_file(tmp_path / "iteration_7.pt")
    assert file.kind == "e4e" and file.notes == ()
    assert_same(file.parts["generator"].state_dict, OURS)
