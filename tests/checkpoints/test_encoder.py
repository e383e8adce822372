"""Names of encoders and other networks, there and back; the numbers are in tests/models/test_conformance.py."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion.checkpoints.encoder import (
    arcface_from_official,
    latent_discriminator_from_official,
    moco_from_official,
    pyramid_encoder_from_official,
    pyramid_encoder_to_official,
)
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.discriminator import LatentDiscriminator, LatentDiscriminatorConfig
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.irse import ArcFace
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.models.resnet import ResNet, ResNetConfig
from tests.checkpoints.official_files import ARCFACE, UNITS, WIDTHS, assert_same, backbone_name, draw, official_arcface
from tests.conformance import DATA

PYRAMID = PyramidEncoderConfig(64, 64, 6, widths=WIDTHS, units=UNITS, reduction=2)


def official_pyramid(cls: type[Any] = GradualStyleEncoder) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a pyramid encoder in the official names, written down independently, and `latent_avg`."""
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


@pytest.mark.parametrize("cls", [GradualStyleEncoder, Encoder4Editing])
def test_pyramid_encoder_there_and_back(cls: type[Any]) -> None:
    official, latent_avg = official_pyramid(cls)
    config, state_dict = pyramid_encoder_from_official(official, latent_avg=latent_avg)
    assert config == PYRAMID
    assert_same(state_dict, draw(cls(PYRAMID)))
    back, average = pyramid_encoder_to_official(config, state_dict)
    assert_same(back, official)
    assert torch.equal(average, latent_avg)


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


@pytest.mark.parametrize("name", ["psp_1024", "e4e_1024", "e4e_256"])
def test_names_and_shapes_of_the_official_state_dict(name: str) -> None:
    spec = json.loads((DATA / f"{name}.json").read_text())["state_dict"]
    prefix = "encoder."
    official = {
        key[len(prefix) :]: torch.zeros(()).expand(entry["shape"])  # no memory
        for key, entry in spec.items()
        if key.startswith(prefix)
    }
    config, state_dict = pyramid_encoder_from_official(official)
    back, latent_avg = pyramid_encoder_to_official(config, state_dict)
    assert back.keys() == official.keys()
    assert all(tensor is official[key] for key, tensor in back.items())
    assert latent_avg.shape == (config.num_ws, 512)
    assert (config.coarse_end, config.middle_end, config.style_channels) == (3, 7, None)


def test_pyramid_average_w() -> None:
    official, _ = official_pyramid()
    assert torch.equal(pyramid_encoder_from_official(official)[1]["pyramid.w_avg"], torch.zeros(10, 6))
    w = torch.arange(6.0)
    for latent_avg in (w, w[None], w.repeat(10, 1)):
        converted = pyramid_encoder_from_official(official, latent_avg=latent_avg)[1]
        assert torch.equal(converted["pyramid.w_avg"], w.repeat(10, 1))


def test_other_networks() -> None:
    config, state_dict = arcface_from_official(official_arcface())
    assert config == ARCFACE
    assert_same(state_dict, draw(ArcFace(ARCFACE)))

    judge = draw(LatentDiscriminator(LatentDiscriminatorConfig(w_dim=6, num_layers=3)))
    found, state_dict = latent_discriminator_from_official(judge)
    assert found == LatentDiscriminatorConfig(w_dim=6, num_layers=3)
    assert_same(state_dict, judge)

    sizes = ResNetConfig((4, 5, 6, 7), (1, 2, 1, 1))
    trunk = draw(ResNet(sizes))
    others = {"encoder_q.fc.0.weight": torch.zeros(28, 28), "queue": torch.zeros(8, 16)}
    others |= {f"encoder_k.{key}": tensor for key, tensor in trunk.items()}
    resnet, state_dict = moco_from_official({f"encoder_q.{key}": tensor for key, tensor in trunk.items()} | others)
    assert resnet == sizes
    assert_same(state_dict, trunk)


ZERO = torch.zeros(1)
REFUSED: list[tuple[Any, dict[str, Tensor | None], str]] = [
    (pyramid_encoder_from_official, {"latlayer1.weight": None}, r"it has 10 `styles`, or `latlayer1` is missing"),
    (pyramid_encoder_from_official, {"styles.10.x": ZERO}, r"it has 11 `styles`, or `latlayer1` is missing"),
    (
        pyramid_encoder_from_official,
        {"extra.weight": ZERO},
        r"Not one of .* encoders: unexpected .*\['extra.weight'\]\.",
    ),
    (arcface_from_official, {"linear.weight": ZERO}, r"Not one of the papers' encoders: unexpected tensors \['linear"),
]


@pytest.mark.parametrize(("convert", "change", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refused(convert: Any, change: dict[str, Tensor | None], message: str) -> None:
    whole = official_arcface() if convert is arcface_from_official else official_pyramid()[0]
    with pytest.raises(CheckpointError, match=message):
        convert({key: tensor for key, tensor in {**whole, **change}.items() if tensor is not None})


def test_an_average_of_another_size() -> None:
    for shape in ((5,), (18, 6), (1, 1, 6)):
        with pytest.raises(CheckpointError, match=r"`latent_avg` must be \(6,\) or \(10, 6\), got "):
            pyramid_encoder_from_official(official_pyramid()[0], latent_avg=torch.zeros(shape))
