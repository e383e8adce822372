"""What is no file of the field, or a damaged one, says what it is and what to do."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion.checkpoints.generator import generator_to_rosinality
from stylegan_inversion.checkpoints.recognise import read_single_file
from stylegan_inversion.errors import CheckpointError
from tests.checkpoints.hostile_files import call, whole
from tests.checkpoints.official_files import (
    TINY,
    Persistent,
    checkpoint_to_rosinality,
    generator,
    nvidia,
    nvidia_names,
    nvidia_pickle,
    official,
    official_arcface,
    prefixed,
    restyle,
    rosinality_discriminator,
    without,
)

G_EMA, LATENT_AVG = checkpoint_to_rosinality(*generator()).values()
ZERO = torch.zeros(1)
NVIDIA = nvidia()
NOT_SQUARE = NVIDIA | {"synthesis.b4.const": NVIDIA["synthesis.b4.const"][..., :2]}
SMALLER = {k: v for k, v in G_EMA.items() if not re.match(r"(to_rgbs\.[1-9]|convs\.([2-9]|1\d))\.", k)}
HALF = generator_to_rosinality(*generator(replace(TINY, resolution=32)))[0]
PSP, E4E, RESTYLE = official("psp"), official("e4e"), restyle(offsets=True)
ENCODER = {key: tensor for key, tensor in PSP["state_dict"].items() if key.startswith("encoder.")}


def changed(tensors: dict[str, Tensor | None], checkpoint: dict[str, Any] = PSP) -> dict[str, Any]:
    """A checkpoint with other tensors in its encoder; `None` leaves one out."""
    found = checkpoint["state_dict"] | {f"encoder.{key}": tensor for key, tensor in tensors.items()}
    return {**checkpoint, "state_dict": {key: tensor for key, tensor in found.items() if tensor is not None}}


def pickled(class_name: str, **state: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with nvidia_names():
            torch.save(Persistent(class_name, "", _parameters={}, _buffers={}, _modules={}, **state), path)

    return write


REFUSED: list[tuple[Any, str]] = [
    # networks that are not supported
    ({"G_ema": NOT_SQUARE}, r"draws 64 x 32 pixels \(height x width\); only square ones that begin with 4 x 4 pixels"),
    (nvidia_pickle(NOT_SQUARE), r"draws 64 x 32 pixels"),
    ({"g_ema": {**G_EMA, "input.input": torch.zeros(1, 8, 4, 8)}}, r"draws 64 x 128 pixels"),
    ({"g_ema": {**G_EMA, "input.input": torch.zeros(1, 8, 5, 5)}}, r"draws 80 x 80 pixels"),
    (whole(call("dnnlib.tflib.network", "Network", "x")), r"TensorFlow network .*Convert it where it came"),
    ({"synthesis.input.freqs": ZERO}, r"a StyleGAN3 generator \(tensor 'synthesis\.input\.freqs'\)\. Supported are"),
    (nvidia_pickle({"synthesis.L0_36_512.weight": ZERO}), r"a StyleGAN3 generator"),
    ({"g_running": {"generator.progression.0.x": ZERO}}, r"a StyleGAN1 generator"),
    ({"G_ema": {**NVIDIA, "mapping.embed.weight": ZERO}}, r"a conditional generator, .* Supported are unconditional"),
    (nvidia_pickle(NVIDIA | {"mapping.embed.weight": ZERO}, c_dim=10), r"a conditional generator"),
    ({"G_ema": {"backbone.synthesis.b4.const": ZERO}}, r"a 3D generator"),
    ({"state_dict": {"encoder.x.weight": ZERO, "inverter.fuser.weight": ZERO}}, r"a checkpoint of StyleFeatureEditor"),
    ({"state_dict": {"hypernet.x": ZERO}}, r"a checkpoint of HyperStyle"),
    ({"params_ema": {"stylegan_decoder.style_mlp.1.weight": ZERO}}, r"StyleGAN2 of BasicSR or GFPGAN"),
    ({"params_ema": {"style_conv1.weight": ZERO}}, r"StyleGAN2 of BasicSR or GFPGAN"),
    ({"state_dict": {"generator_ema.style_mapping.1.weight": ZERO}}, r"MMGeneration or MMagic"),
    ({"state_dict": {"model.diffusion_model.x": ZERO}}, r"a diffusion model .*not a GAN"),
    ({"unet_x.lora_down.weight": ZERO}, r"a LoRA of one, not a GAN"),
    ({"synthesis.blocks.4.x": ZERO}, r"a file of this package, whose folder `from_pretrained` reads"),
    (pickled("Discriminator"), r"Not a generator: a pickled Discriminator\."),
    (pickled("Generator", activation="relu"), r"has the activation 'relu', not 'lrelu'"),
    # what is none
    ({"D": {}}, r"there are no tensors in it, only D"),
    ({}, r"there are no tensors in it, only nothing"),
    ([1], r"Not a checkpoint of this field: it holds a list\."),
    ({"x": torch.zeros(1, 2, 3, 4)}, r"Not a checkpoint of this field: it holds \['x'\]\. Supported are"),
    (torch.zeros(1, 18, 512), r"Not a direction: it is zero, or holds NaN or infinity"),
    # damaged generators
    ({"g_ema": {**G_EMA, "module.input.input": ZERO}}, r"holds the tensor 'input\.input' twice"),
    ({"conv1.conv.weight": ZERO}, r"Not a whole checkpoint of this field: tensor 'input.input' is missing"),
    ({"g_ema": {**G_EMA, "style.1.weight": torch.zeros(8)}}, r"shapes or types that fit no network"),
    ({"g_ema": SMALLER}, r"fit no network of the field: `resolution` must be .* got 8\."),
    ({"g_ema": G_EMA, "latent_avg": torch.zeros(9)}, r"`latent_avg` must be \(8,\) or \(num_ws, 8\)"),
    ({"g_ema": without(G_EMA, "noise_3")}, r"missing \['noises.noise_3'\], unexpected \[\]\."),
    ({"g_ema": {**G_EMA, "extra.weight": ZERO}}, r"missing \[\], unexpected \['extra.weight'\]\."),
    ({"g_ema": {**G_EMA, "convs.1.conv.weight": torch.zeros(1, 9, 9, 3, 3)}}, r"widths .* are not min\(base / side"),
    (
        {"g_ema": {**G_EMA, "convs.0.conv.blur.kernel": torch.ones(4, 4)}},
        r"kernel is not the blur filter \[1, 3, 3, 1\]",
    ),
    ({"G_ema": {**NVIDIA, "synthesis.b8.resample_filter": torch.ones(3, 3)}}, r"filter is not the blur filter"),
    ({"G_ema": without(NVIDIA, "torgb")}, r"Not NVIDIA's StyleGAN2 generator: missing \['synthesis.b4.torgb"),
    ({"G_ema": {**NVIDIA, "synthesis.b8.torgb.weight": torch.zeros(1, 8, 1, 1)}}, r"does not fit Generator: .*\(1, 8,"),
    # encoders
    (official("psp", opts={"encoder_type": "Mine"}), r"Its encoder is a 'Mine'; known are Encoder4Editing, .*Grad"),
    (official("psp", opts=None), r'no `opts` that tell which: say `encoder="e4e"` or `encoder="psp"`\.'),
    (official("e4e", state_dict=ENCODER, latent_avg=None), r"neither an average w \(`latent_avg`\) nor a generator"),
    (
        official("psp", state_dict=ENCODER | prefixed(HALF, "decoder.")),
        r"encoder is for a generator of 64 px, but its generator draws 32 px\.",
    ),
    (official("psp", latent_avg=torch.zeros(18, 8)), r"`latent_avg` must be \(8,\) or \(10, 8\), got \(18, 8\)\."),
    (changed({"styles.0.linear.bias": torch.zeros(3)}), r"It does not fit GradualStyleEncoder: .*\(3,\)"),
    (changed({"body.0.res_layer.1.weight": None}), r"GradualStyleEncoder: missing .*0\.0\.residual\.1\.weight"),
    (changed({"styles.9.linear.bias": torch.full((8,), torch.nan)}), r"styles.9.linear.bias holds NaN or infinity"),
    (official("psp", state_dict={"encoder.x": ZERO}), r"Not a feature-pyramid encoder: it has 0 `styles`"),
    (changed({"styles.10.x": ZERO}), r"it has 11 `styles`, or `latlayer1` is missing"),
    (changed({"extra.weight": ZERO}), r"Not one of the papers' encoders: unexpected tensors \['extra.weight'\]\."),
    (changed({key[8:]: None for key in ENCODER if "body.6." in key}), r"`widths` must be 4 numbers, .*got \(4, 6, 8\)"),
    (changed({"input_layer.0.weight": torch.zeros(4, 6, 3, 3)}), r"a ReStyle encoder with a feature pyramid \(tensor"),
    (changed({"latlayer1.weight": ZERO}, RESTYLE), r"a ReStyle encoder with a feature pyramid"),
    (restyle(offsets=True, encoder_type="ResNetBackboneEncoder"), r"say ResNetBackboneEncoder, but .* BackboneEncoder"),
    (restyle(offsets=False, encoder_type=None), r"of pSp's form or of e4e's, .*`encoder_type` .* must say which\."),
    (changed({"styles.3.linear.bias": None}, RESTYLE), r"ReStyleEncoder: missing styles\.3\.linear\.bias"),
    (changed({"styles.0.linear.weight": None}, RESTYLE), r"tensor 'styles\.0\.linear\.weight' is missing"),
    (changed({"styles.10.linear.bias": torch.zeros(8)}, RESTYLE), r"fit no network of the field: `resolution`"),
    # others
    ({**official_arcface(), "linear.weight": ZERO}, r"Not one of the papers' encoders: unexpected tensors \['linear"),
    (
        {"state_dict": {f"encoder_q.layer{i}.0.conv1.weight": torch.zeros(4, 4, 1, 1) for i in range(1, 5)}},
        r"does not fit ResNet: missing .* more",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_read_says_what_it_is(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: ") + f".*{message}"):
        read_single_file(path)


@pytest.mark.parametrize(
    ("checkpoint", "kind", "asked"),
    [
        (E4E, "e4e", "psp"),
        (PSP, "psp", "restyle"),
        (official("psp", opts={}), "e4e or psp", "restyle"),
        (RESTYLE, "restyle", "e4e"),
    ],
)
def test_another_encoder_than_was_asked_for(checkpoint: Any, kind: str, asked: str, tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=f"is a checkpoint of {kind}, not of {asked}: use the pipeline of {kind}"):
        read_single_file(tmp_path / "x.pt", encoder=asked)


def test_a_discriminator_with_another_filter_is_left_out(tmp_path: Path) -> None:
    judge = rosinality_discriminator() | {"convs.1.conv2.0.kernel": torch.ones(4, 4)}
    torch.save({"g_ema": G_EMA, "latent_avg": LATENT_AVG, "d": judge}, tmp_path / "x.pt")
    assert read_single_file(tmp_path / "x.pt").notes == ("The file also holds `d`, which was left out.",)
