"""Files of encoders, other networks and directions through `read_single_file`, and the papers' numbers."""

import pathlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stylegan_inversion.checkpoints.network_file import average_w
from stylegan_inversion.checkpoints.part import Part
from stylegan_inversion.checkpoints.single_file import read_single_file, recognise
from torch import Tensor, nn

from stylegan_inversion.checkpoints.export import checkpoint_to_official
from stylegan_inversion.checkpoints.generator import generator_to_rosinality
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import LatentDiscriminator, LatentDiscriminatorConfig
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.irse import ArcFace
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig, WEncoder, WEncoderConfig
from stylegan_inversion.models.resnet import ResNet, ResNetConfig
from tests.checkpoints.official_files import SMALL, TINY, assert_same, check, draw, generator
from tests.checkpoints.test_encoder import ARCFACE, official_arcface
from tests.conformance import draw_state_dict, load_case

WIDTHS, UNITS = (4, 6, 8, 10), (1, 3, 2, 1)
ENCODERS = {
    TINY: PyramidEncoderConfig(64, 64, 8, widths=WIDTHS, units=UNITS, reduction=2),
    SMALL: PyramidEncoderConfig(128, 32, 8, widths=WIDTHS, units=(2, 1, 1, 2), reduction=4),
}
CLASSES = {"psp": GradualStyleEncoder, "e4e": Encoder4Editing}


def encoder(kind: str, config: GeneratorConfig = TINY) -> tuple[PyramidEncoderConfig, dict[str, Tensor]]:
    w_avg = generator(config)[1]["w_avg"].repeat(config.num_ws, 1)  # one average w in the official file
    return ENCODERS[config], {**draw(CLASSES[kind](ENCODERS[config]), seed=3), "pyramid.w_avg": w_avg}


def official(kind: Any, config: GeneratorConfig = TINY, **changes: Any) -> dict[str, Any]:
    """A checkpoint as the official code writes it; a change to `None` leaves an entry out."""
    checkpoint = checkpoint_to_official(kind, encoder(kind, config), generator(config))
    checkpoint["opts"] |= {"exp_dir": "/x", "lr": 1e-4, "dataset_type": "ffhq_encode"}
    return {key: value for key, value in {**checkpoint, **changes}.items() if value is not None}


def without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in names}


@pytest.mark.parametrize("config", [TINY, SMALL], ids=["64", "128"])
@pytest.mark.parametrize("kind", ["psp", "e4e"])
@pytest.mark.parametrize("legacy", [False, True])
def test_encoder_file(kind: str, config: GeneratorConfig, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "a_misleading_name.pkl"
    torch.save(official(kind, config), path, _use_new_zipfile_serialization=not legacy)
    file = read_single_file(path)
    assert (file.kind, file.notes, file.options["exp_dir"]) == (kind, (), "/x")
    assert file.parts["encoder"].module_class is CLASSES[kind]
    assert file.parts["encoder"].config == ENCODERS[config]
    assert_same(file.parts["encoder"].state_dict, encoder(kind, config)[1])
    assert_same(file.parts["generator"].state_dict, generator(config)[1])
    assert isinstance(file.parts["encoder"].build(), CLASSES[kind])
    image = file.parts["generator"].build().synthesis(torch.zeros(1, config.num_ws, config.w_dim))
    assert image.shape == (1, 3, config.resolution, config.resolution)


def test_e4e_training_file_holds_its_discriminator(tmp_path: Path) -> None:
    config = LatentDiscriminatorConfig(w_dim=8, num_layers=2)
    discriminator = LatentDiscriminator(config)
    optimizer = torch.optim.Adam(discriminator.parameters())
    extra = {
        "discriminator_state_dict": draw(discriminator),
        "discriminator_optimizer_state_dict": optimizer.state_dict(),
        "global_step": 7,
        "best_val_loss": {"loss": np.float64(0.5)},
    }
    torch.save(official("e4e", **extra), tmp_path / "iteration_7.pt")
    file = read_single_file(tmp_path / "iteration_7.pt")
    assert file.parts["latent_discriminator"].config == config
    assert_same(file.parts["latent_discriminator"].state_dict, draw(discriminator))


def test_options_of_stylegan3_editing_with_paths(tmp_path: Path) -> None:
    options = official("psp")["opts"] | {"exp_dir": pathlib.Path("/runs/a"), "device": torch.device("cuda:0")}
    torch.save(official("psp", opts=options), tmp_path / "x.pt")
    read = read_single_file(tmp_path / "x.pt").options
    assert (read["exp_dir"], read["device"]) == ("/runs/a", "cuda:0")


def test_older_file_without_learn_in_w_and_output_size() -> None:
    checkpoint = official("psp")
    checkpoint["opts"] = without(checkpoint["opts"], "learn_in_w", "output_size", "n_styles")
    file = recognise(checkpoint)
    assert (file.kind, file.notes, file.parts["generator"].config.resolution) == ("psp", (), 64)
    assert_same(file.parts["encoder"].state_dict, encoder("psp")[1])


@pytest.mark.parametrize(("kind", "samples"), [("psp", 100_000), ("e4e", 10_000)])
def test_older_file_without_latent_avg(kind: str, samples: int) -> None:
    file = recognise(official(kind, latent_avg=None))
    assert f"no average w; it was computed from the mapping network, over {samples} samples" in file.notes[0]
    w_avg = file.parts["generator"].state_dict["w_avg"]
    assert torch.equal(w_avg, average_w(*generator(), samples=samples))
    assert torch.equal(file.parts["encoder"].state_dict["pyramid.w_avg"], w_avg.expand(10, 8))


def test_average_w_is_that_of_the_mapping_network() -> None:
    config, state_dict = generator()
    module = Part(Generator, config, state_dict).build()
    z = torch.randn(7_000, 6, generator=torch.Generator().manual_seed(0))
    ours = average_w(config, state_dict, samples=7_000)
    assert torch.allclose(ours, module.mapping(z).mean(0), atol=1e-5)  # in steps of 5 000: another stream, same mean
    assert torch.equal(ours, average_w(config, state_dict, samples=7_000))


def test_an_encoder_that_does_not_start_from_the_average() -> None:
    checkpoint = official("psp")
    checkpoint["opts"]["start_from_latent_avg"] = False
    file = recognise(checkpoint)
    assert not file.parts["encoder"].state_dict["pyramid.w_avg"].any()
    assert torch.equal(file.parts["generator"].state_dict["w_avg"], checkpoint["latent_avg"][0])


def test_without_options_the_caller_says_which_encoder() -> None:
    checkpoint = official("e4e", opts=None)
    with pytest.raises(CheckpointError, match=r'no `opts` that tell which: say `encoder="psp"` or `encoder="e4e"`'):
        recognise(checkpoint)
    assert recognise(checkpoint, encoder="e4e").parts["encoder"].module_class is Encoder4Editing
    assert recognise(checkpoint, encoder="psp").parts["encoder"].module_class is GradualStyleEncoder
    bare = official("e4e", opts={"stylegan_size": 64})
    assert recognise(bare).kind == "e4e" and recognise(official("psp", opts={"output_size": 64})).kind == "psp"


def test_the_other_encoder_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"It is a checkpoint of e4e, not of psp: use the pipeline of e4e\."):
        recognise(official("e4e"), encoder="psp")


def test_encoder_alone() -> None:
    tensors = {k: v for k, v in official("e4e")["state_dict"].items() if k.startswith("encoder.")}
    file = recognise(official("e4e", state_dict=tensors))
    assert file.parts.keys() == {"encoder"} and file.notes == ("The file has no generator (`decoder.`).",)
    with pytest.raises(CheckpointError, match=r"neither an average w \(`latent_avg`\) nor a generator"):
        recognise(official("e4e", state_dict=tensors, latent_avg=None))


@pytest.mark.parametrize("kind", ["psp", "e4e"])
def test_encoder_into_w(kind: Any, tmp_path: Path) -> None:
    config = WEncoderConfig(64, 256, 8, widths=WIDTHS, units=UNITS, reduction=2)
    state_dict = draw(WEncoder(config))
    checkpoint = checkpoint_to_official(kind, (config, state_dict), generator())
    assert checkpoint["latent_avg"].shape == (1, 8) and checkpoint["opts"]["learn_in_w"]
    torch.save(checkpoint, tmp_path / "w.pt")
    file = read_single_file(tmp_path / "w.pt", encoder=kind)
    assert (file.kind, file.parts["encoder"].config) == (kind, config)
    assert_same(file.parts["encoder"].state_dict, state_dict)
    assert_same(file.parts["generator"].state_dict, generator()[1])
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("encoder.")}
    assert recognise(checkpoint, encoder=kind).parts["encoder"].config == config
    del checkpoint["opts"]["output_size" if kind == "psp" else "stylegan_size"]
    file = recognise(checkpoint, encoder=kind)
    assert file.parts["encoder"].config.output_resolution == 1024 and "1024, the papers', was taken" in file.notes[1]


def change(checkpoint: dict[str, Any], **tensors: Tensor | None) -> dict[str, Any]:
    state_dict = checkpoint["state_dict"] | {key.replace("__", "."): tensor for key, tensor in tensors.items()}
    return {**checkpoint, "state_dict": {key: tensor for key, tensor in state_dict.items() if tensor is not None}}


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (
            change(official("psp"), encoder__input_layer__0__weight=torch.zeros(4, 6, 3, 3)),
            r"It is a ReStyle encoder with a feature pyramid \(tensor 'latlayer1\.weight'\), which is not supported",
        ),
        (change(official("psp"), encoder__latlayer1__weight=None), r"it has 10 `styles`, and `latlayer1` is missing"),
        (
            change(official("psp"), hypernet__x=torch.zeros(1)),
            r"It is a checkpoint of HyperStyle \(tensor 'hypernet\.x'\), which is not supported: take pSp's",
        ),
        (official("psp", opts={"encoder_type": "Mine"}), r"Its encoder is a 'Mine'; known are GradualStyleEncoder,"),
        (
            change(official("psp"), encoder__styles__0__linear__bias=torch.zeros(3)),
            r"Not a GradualStyleEncoder: .*\(3,\)",
        ),
        (change(official("psp"), encoder__body__0__res_layer__1__weight=None), r"0\.0\.residual\.1\.weight is missing"),
        (
            change(official("psp"), encoder__styles__9__linear__bias=torch.full((8,), torch.nan)),
            r"pyramid.styles.9.linear.bias holds NaN or infinity",
        ),
        (change(official("psp"), decoder__conv1__conv__weight=None), r"tensor 'conv1.conv.weight' is missing"),
        (
            change(official("psp"), encoder__body__0__res_layer__5__fc1__weight=torch.zeros(0, 4, 1, 1)),
            r"fit no network",
        ),
        (official("psp", latent_avg=torch.zeros(3, 4)), r"`latent_avg` must be"),
        ({**official("psp"), "state_dict": {"encoder.x": torch.zeros(1)}}, r"Not an encoder|Not an IR-SE backbone"),
    ],
)
def test_encoder_files_that_are_refused(checkpoint: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        recognise(checkpoint)


def test_encoder_for_another_generator() -> None:
    tensors = {
        f"decoder.{k}": v for k, v in generator_to_rosinality(*generator(replace(TINY, resolution=32)))[0].items()
    }
    tensors |= {k: v for k, v in official("psp")["state_dict"].items() if k.startswith("encoder.")}
    with pytest.raises(CheckpointError, match=r"encoder is for a generator of 64 px, but its generator draws 32 px\."):
        recognise(official("psp", state_dict=tensors))


def test_arcface_moco_and_directions(tmp_path: Path) -> None:
    torch.save(official_arcface(), tmp_path / "model_ir_se50.pth", _use_new_zipfile_serialization=False)
    file = read_single_file(tmp_path / "model_ir_se50.pth")
    assert (file.kind, file.parts["identity"].config) == ("arcface", ARCFACE)
    assert isinstance(file.parts["identity"].build(), ArcFace)

    trunk = draw(ResNet(ResNetConfig((4, 8, 12, 16), (1, 1, 1, 1))))
    moco = {"arch": "resnet50", "state_dict": {f"module.encoder_q.{key}": tensor for key, tensor in trunk.items()}}
    torch.save(moco, tmp_path / "moco.pth.tar")
    assert_same(read_single_file(tmp_path / "moco.pth.tar").parts["moco"].state_dict, trunk)

    boundary = np.random.default_rng(0).standard_normal((1, 16))
    np.save(tmp_path / "boundary.npy", boundary / np.linalg.norm(boundary))
    file = read_single_file(tmp_path / "boundary.npy")
    assert file.kind == "direction" and file.vectors["direction"].shape == (16,)
    torch.save({"age": 3 * torch.eye(4)[:1], "pose": torch.eye(4)}, tmp_path / "several.pt")
    file = read_single_file(tmp_path / "several.pt")
    assert {name: tuple(vector.shape) for name, vector in file.vectors.items()} == {"age": (4,), "pose": (4, 4)}

    pca = {"mean": torch.zeros(1, 4), "comp": torch.eye(4)[:2, None], "std": torch.ones(2)}
    torch.save(pca, tmp_path / "ffhq_pca.pt")
    file = read_single_file(tmp_path / "ffhq_pca.pt")
    assert file.kind == "ganspace" and file.components is not None and file.components.components.shape == (2, 4)


def test_the_message_begins_with_the_path(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'x.pt'}: Not a checkpoint of this field")):
        read_single_file(tmp_path / "x.pt")


def test_reading_leaves_the_callers_seed_alone() -> None:
    checkpoint = official("psp", latent_avg=None)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    recognise(checkpoint).parts["encoder"].build()
    assert torch.equal(torch.rand(1), expected)


# The papers' numbers, through the files.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["psp_1024", "e4e_1024", "e4e_256"])
@torch.no_grad()
def test_conformance_of_encoder_files(name: str, tmp_path: Path) -> None:
    case, expected = load_case(name)
    inputs = draw_state_dict({"input": case["input"], "latent_avg": case["latent_avg"]}, case["seed"])
    kind = name.partition("_")[0]
    options = {
        "encoder_type": case["encoder_type"],
        "start_from_latent_avg": True,
        "output_size" if kind == "psp" else "stylegan_size": case["stylegan_size"],
    }
    checkpoint = {"state_dict": draw_state_dict(case["state_dict"], case["seed"]), "opts": options}
    torch.save({**checkpoint, "latent_avg": inputs["latent_avg"]}, tmp_path / "x.pt")
    del checkpoint
    file = read_single_file(tmp_path / "x.pt")
    assert file.kind == kind
    check("latents", file.parts["encoder"].build()(inputs["input"]), expected["latents"])
    image = file.parts["generator"].build().synthesis(expected["latents"])
    check("image_256", nn.functional.adaptive_avg_pool2d(image, 256), expected["image_256"])
