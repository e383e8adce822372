"""Names and errors of the converters, at tiny sizes; the numbers are in tests/models/test_conformance.py."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stylegan_inversion.checkpoints.encoder import (
    arcface_from_official,
    latent_discriminator_from_official,
    pyramid_encoder_from_official,
    split_checkpoint,
    w_encoder_from_official,
)
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import LatentDiscriminator, LatentDiscriminatorConfig
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig, WEncoder, WEncoderConfig

StateDict = dict[str, Tensor]

WIDTHS, UNITS = (4, 6, 8, 10), (1, 3, 2, 1)
PYRAMID = PyramidEncoderConfig(64, 64, 6, widths=WIDTHS, units=UNITS, reduction=2)
INTO_W = WEncoderConfig(64, 256, 6, widths=WIDTHS, units=UNITS, reduction=2)
ARCFACE = ArcFaceConfig(widths=WIDTHS, units=UNITS, reduction=2, resolution=32, embedding_dim=5)


def draw(module: nn.Module) -> StateDict:
    """A state dict of the module's names, shapes and types, drawn from a seed."""
    rng = torch.Generator().manual_seed(2)
    return {k: torch.randn(v.shape, generator=rng).to(v.dtype) for k, v in module.state_dict().items()}


def assert_same(ours: StateDict, theirs: StateDict) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def backbone_name(key: str) -> str:
    """Our backbone's name -> InsightFace_Pytorch's: one list of units, counted through all stages."""
    top, _, rest = key.partition(".")
    if top == "stem":
        return f"input_layer.{rest}"
    stage, unit, branch, rest = rest.split(".", 3)
    index = sum(UNITS[: int(stage)]) + int(unit)
    return f"body.{index}.{ {'residual': 'res_layer', 'shortcut': 'shortcut_layer'}[branch] }.{rest}"


def official_pyramid(cls: type[Any] = GradualStyleEncoder) -> tuple[StateDict, Tensor]:
    """The tensors of a pyramid encoder in the official names, and `latent_avg`."""
    official = {}
    state_dict = draw(cls(PYRAMID))
    latent_avg = state_dict.pop("pyramid.w_avg")
    for key, tensor in state_dict.items():
        key = key.removeprefix("pyramid.")
        if key.startswith("backbone."):
            key = backbone_name(key.removeprefix("backbone."))
        elif key.startswith("styles.") and ".convs." in key:
            head, _, tail = key.partition(".convs.")
            j, part = tail.split(".")
            key = f"{head}.convs.{2 * int(j)}.{part}"  # theirs count the activations too
        else:
            key = key.replace("lateral2", "latlayer1").replace("lateral1", "latlayer2")
        official[key] = tensor
    return official, latent_avg


def official_w() -> tuple[StateDict, Tensor]:
    state_dict = draw(WEncoder(INTO_W))
    latent_avg = state_dict.pop("w_avg")
    backbone = "backbone."
    return {
        backbone_name(k[len(backbone) :]) if k.startswith(backbone) else k: v for k, v in state_dict.items()
    }, latent_avg


def official_arcface() -> StateDict:
    official = {}
    for key, tensor in draw(ArcFace(ARCFACE)).items():
        top, _, rest = key.partition(".")
        official[backbone_name(rest) if top == "backbone" else f"output_layer.{rest}"] = tensor
    return official


def change(state_dict: StateDict, changes: dict[str, Tensor | None]) -> StateDict:
    """Replace tensors, add them, or (`None`) leave them out."""
    return {key: tensor for key, tensor in {**state_dict, **changes}.items() if tensor is not None}


@pytest.mark.parametrize("cls", [GradualStyleEncoder, Encoder4Editing])
def test_pyramid_encoder(cls: type[Any]) -> None:
    official, latent_avg = official_pyramid(cls)
    config, state_dict = pyramid_encoder_from_official(official, latent_avg=latent_avg)
    assert config == PYRAMID
    assert_same(state_dict, draw(cls(PYRAMID)))


def test_official_names() -> None:
    """A few names spelled out, so that the inverse above cannot err along with the converter."""
    official, _ = official_pyramid()
    shapes = {
        "input_layer.0.weight": (4, 3, 3, 3),
        "body.0.res_layer.5.fc1.weight": (2, 4, 1, 1),
        "body.1.shortcut_layer.0.weight": (6, 4, 1, 1),
        "body.6.res_layer.3.weight": (10, 10, 3, 3),
        "styles.0.convs.2.bias": (6,),
        "styles.9.convs.6.weight": (6, 6, 3, 3),
        "styles.9.linear.weight": (6, 6),
        "latlayer1.weight": (10, 8, 1, 1),
        "latlayer2.weight": (10, 6, 1, 1),
    }
    assert {key: tuple(official[key].shape) for key in shapes} == shapes


def test_pyramid_average_w() -> None:
    official, _ = official_pyramid()
    assert torch.equal(pyramid_encoder_from_official(official)[1]["pyramid.w_avg"], torch.zeros(10, 6))
    w = torch.arange(6.0)
    for latent_avg in (w, w[None], w.repeat(10, 1)):
        converted = pyramid_encoder_from_official(official, latent_avg=latent_avg)[1]
        assert torch.equal(converted["pyramid.w_avg"], w.repeat(10, 1))
    for shape in ((5,), (18, 6), (1, 1, 6)):
        with pytest.raises(CheckpointError, match=r"`latent_avg` must be \(6,\) or \(10, 6\), got "):
            pyramid_encoder_from_official(official, latent_avg=torch.zeros(shape))


NO_BACKBONE = ["input_layer.0.weight", "body.0.res_layer.5.fc1.weight", "body.3.res_layer.3.weight"]


@pytest.mark.parametrize("name", NO_BACKBONE)
def test_backbone_that_lacks_a_tensor(name: str) -> None:
    message = rf"Not an IR-SE backbone: tensor '{name}' is missing\."
    with pytest.raises(CheckpointError, match=message):
        pyramid_encoder_from_official(change(official_pyramid()[0], {name: None}))
    with pytest.raises(CheckpointError, match=message):
        w_encoder_from_official(change(official_w()[0], {name: None}), output_resolution=64)
    with pytest.raises(CheckpointError, match=message):
        arcface_from_official(change(official_arcface(), {name: None}))


def test_backbone_of_three_stages() -> None:
    official = {k: v for k, v in official_pyramid()[0].items() if not k.startswith("body.6.")}
    with pytest.raises(
        CheckpointError, match=r"Not an IR-SE backbone of four stages: `widths` must be 4 numbers, .*got \(4, 6, 8\)"
    ):
        pyramid_encoder_from_official(official)


def without(prefix: str, state_dict: StateDict) -> dict[str, Tensor | None]:
    return {key: None for key in state_dict if key.startswith(prefix)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"latlayer1.weight": None},
            r"Not a feature-pyramid encoder: it has 10 `styles`, and `latlayer1` is missing\.",
        ),
        (without("styles.9.", official_pyramid()[0]), r"Not a feature-pyramid encoder: it has 9 `styles`\."),
        (without("styles.", official_pyramid()[0]), r"Not a feature-pyramid encoder: it has 0 `styles`\."),
        (
            {"styles.0.linear.weight": None},
            r"Not a feature-pyramid encoder: tensor 'styles.0.linear.weight' is missing",
        ),
        (without("styles.0.convs", official_pyramid()[0]), r"Not a feature-pyramid encoder: `input_resolution`"),
        ({"styles.1.odd": torch.zeros(1)}, r"Not a feature-pyramid encoder: unexpected tensor 'styles.1.odd'\."),
        ({"extra.weight": torch.zeros(1)}, r"Not one of the papers' encoders: unexpected tensors \['extra.weight'\]\."),
    ],
)
def test_pyramid_errors(changes: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        pyramid_encoder_from_official(change(official_pyramid()[0], changes))


def test_one_encoder_is_not_taken_for_another() -> None:
    with pytest.raises(CheckpointError, match=r"Not a feature-pyramid encoder: it has 0 `styles`\."):
        pyramid_encoder_from_official(official_w()[0])
    with pytest.raises(CheckpointError, match=r"Not an encoder into W: tensor 'linear.weight' is missing\."):
        w_encoder_from_official(official_pyramid()[0], output_resolution=64)
    with pytest.raises(CheckpointError, match=r"Not an ArcFace network: tensor 'output_layer.3.weight' is missing\."):
        arcface_from_official(official_w()[0])
    with pytest.raises(CheckpointError, match=r"Not one of the papers' encoders: unexpected tensors \['output_layer"):
        w_encoder_from_official({**official_w()[0], **official_arcface()}, output_resolution=64)
    with pytest.raises(CheckpointError, match=r"Not one of the papers' encoders: unexpected tensors \['linear"):
        arcface_from_official({**official_w()[0], **official_arcface()})


def test_w_encoder() -> None:
    official, latent_avg = official_w()
    for avg in (latent_avg, latent_avg[None]):
        config, state_dict = w_encoder_from_official(official, output_resolution=64, latent_avg=avg)
        assert config == INTO_W
        assert_same(state_dict, draw(WEncoder(INTO_W)))
    assert torch.equal(w_encoder_from_official(official, output_resolution=64)[1]["w_avg"], torch.zeros(6))


def test_w_encoder_for_a_resolution_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"`resolution` must be a power of two from 4 to 2048, got 65\."):
        w_encoder_from_official(official_w()[0], output_resolution=65)


def test_w_encoder_refuses_an_average_of_another_size() -> None:
    with pytest.raises(CheckpointError, match=r"`latent_avg` must be \(6,\) or \(num_ws, 6\), got \(5,\)\."):
        w_encoder_from_official(official_w()[0], output_resolution=64, latent_avg=torch.zeros(5))


def test_arcface() -> None:
    config, state_dict = arcface_from_official(official_arcface())
    assert config == ARCFACE
    assert_same(state_dict, draw(ArcFace(ARCFACE)))


def test_latent_discriminator() -> None:
    config = LatentDiscriminatorConfig(w_dim=6, num_layers=3)
    official = draw(LatentDiscriminator(config))
    assert {"mlp.0.weight", "mlp.2.bias", "mlp.4.weight"} <= official.keys()
    found, state_dict = latent_discriminator_from_official(official)
    assert found == config
    assert_same(state_dict, official)
    with pytest.raises(CheckpointError, match=r"Not e4e's latent discriminator: tensor 'mlp.0.weight' is missing\."):
        latent_discriminator_from_official(official_arcface())


def test_split_checkpoint() -> None:
    one = torch.ones(1)
    state_dict = {"encoder.body.0.x": one, "decoder.style.1.weight": 2 * one, "latent_avg": 3 * one, "encoder": one}
    encoder, decoder = split_checkpoint(state_dict)
    assert encoder == {"body.0.x": one} and decoder == {"style.1.weight": 2 * one}


def test_split_checkpoint_that_is_none() -> None:
    with pytest.raises(
        CheckpointError, match=r"Not a pSp or e4e checkpoint: its state dict has no `encoder.` tensors\."
    ):
        split_checkpoint({"decoder.style.1.weight": torch.ones(1)})
