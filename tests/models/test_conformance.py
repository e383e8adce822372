"""Every network against the official code's numbers, through our converters: relative error at most 1e-4 in float32."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stylegan_inversion import latents
from stylegan_inversion.checkpoints import encoder as convert_encoder
from stylegan_inversion.checkpoints import generator as convert_generator
from stylegan_inversion.losses.identity import crop_face
from stylegan_inversion.models.discriminator import Discriminator
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.feature_generator import FeatureGenerator
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.irse import ArcFace
from stylegan_inversion.storage import fill_module
from tests.conformance import draw_state_dict, load_case, relative_error

TOLERANCE = 1e-4


def build(cls: type[nn.Module], converted: tuple[Any, dict[str, Tensor]]) -> Any:
    config, state_dict = converted
    with torch.device("meta"):  # drawing the initial weights would take seconds
        module = cls(config)  # type: ignore[call-arg]
    fill_module(module.to_empty(device="cpu"), state_dict, source="the official state dict")
    return module


def check(name: str, ours: Tensor, theirs: Tensor) -> None:
    error = relative_error(ours, theirs)
    print(f"{name}: relative error {error:.1e}")  # `pytest -rP` shows it
    assert error <= TOLERANCE, f"{name}: {error:.2e}"


@pytest.mark.parametrize("name", ["psp_1024", pytest.param("e4e_1024", marks=pytest.mark.slow), "e4e_256"])
@torch.no_grad()
def test_encoder_and_its_generator(name: str) -> None:
    case, expected = load_case(name)
    whole = draw_state_dict(case["state_dict"], case["seed"])
    encoder_part, decoder_part = (
        {key.removeprefix(part): tensor for key, tensor in whole.items() if key.startswith(part)}
        for part in ("encoder.", "decoder.")
    )
    del whole
    inputs = draw_state_dict({"input": case["input"], "latent_avg": case["latent_avg"]}, case["seed"])
    x, latent_avg = inputs["input"], inputs["latent_avg"]
    kind = name.partition("_")[0]

    converted = convert_encoder.encoder_from_official(kind, encoder_part, latent_avg=latent_avg)
    encoder = build(ENCODERS[kind].network, converted)
    w_plus = encoder(x)
    check("latents", w_plus, expected["latents"])
    check("codes", w_plus - encoder.w_avg, expected["codes"])
    for key in (key for key in expected if key.startswith("codes_stage_")):
        encoder.progressive_stage = int(key.rsplit("_", 1)[1])
        check(key, encoder(x) - encoder.w_avg, expected[key])
    del encoder, encoder_part

    generator = build(Generator, convert_generator.generator_from_official(decoder_part))
    image = generator.synthesis(expected["latents"])
    middle = image.shape[-1] // 2
    check("image_patch", image[..., middle - 16 : middle + 16, middle - 16 : middle + 16], expected["image_patch"])
    check("image_256", nn.functional.adaptive_avg_pool2d(image, 256), expected["image_256"])
    check("image_mean", image.mean(dim=(2, 3)), expected["image_mean"])
    check("image_std", image.std(dim=(2, 3)), expected["image_std"])


@torch.no_grad()
def test_arcface() -> None:
    case, expected = load_case("arcface")
    x = draw_state_dict({"input": case["input"]}, case["seed"])["input"]
    arcface = build(ArcFace, convert_encoder.arcface_from_official(draw_state_dict(case["state_dict"], case["seed"])))
    crop = crop_face(x)
    check("crop", crop[:, :, ::8, ::8], expected["crop"])
    check("embedding", arcface(crop), expected["embedding"])


@torch.no_grad()
def test_rosinality() -> None:
    case, expected = load_case("stylegan2_128")
    inputs = draw_state_dict(case["inputs"], case["seed"])
    part = case["generator"]
    official = draw_state_dict(dict(part["state_dict"]), part["seed"])
    generator = build(Generator, convert_generator.generator_from_official(official, latent_avg=inputs["mean_latent"]))
    w, w2 = generator.mapping(inputs["z"]), generator.mapping(inputs["z2"])
    check("w", w, expected["w"])
    check("image", generator(inputs["z"]), expected["image"])
    check("truncated", generator(inputs["z"], truncation_psi=0.7), expected["image_truncated_0.7"])
    mixed = latents.broadcast(w, generator.num_ws)
    mixed[:, 4:] = w2[:, None]
    check("mixed", generator.synthesis(mixed), expected["image_mixed_4"])
    check("w_plus", generator.synthesis(inputs["w_plus"]), expected["image_from_w_plus"])

    part = case["discriminator"]
    official = draw_state_dict(dict(part["state_dict"]), part["seed"])
    discriminator = build(Discriminator, convert_generator.discriminator_from_rosinality(official))
    check("logits", discriminator(inputs["image"]), expected["logits"].squeeze(1))


@torch.no_grad()
def test_nvidia() -> None:
    case, expected = load_case("stylegan2_ada_64")
    inputs = draw_state_dict(case["inputs"], case["seed"])
    official = draw_state_dict(case["state_dict"], case["seed"])
    generator = build(Generator, convert_generator.generator_from_official(official))
    ws = latents.broadcast(generator.mapping(inputs["z"]), generator.num_ws)
    check("ws", ws, expected["ws"])
    truncated = latents.truncate(ws, generator.w_avg, truncation_psi=0.7)
    check("ws_truncated", truncated, expected["ws_truncated_0.7"])
    check("const", generator.synthesis(ws), expected["image_const_noise"])
    check("none", generator.synthesis(ws, noise_mode="none"), expected["image_no_noise"])
    check("w_plus", generator.synthesis(inputs["w_plus"]), expected["image_from_w_plus"])


def check_features(name: str, ours: Tensor, expected: dict[str, Tensor]) -> None:
    check(f"{name}_patch", ours[:, :32:4, 28:36, 28:36], expected[f"{name}_patch"])
    check(f"{name}_mean", ours.mean(dim=(2, 3)), expected[f"{name}_mean"])
    check(f"{name}_std", ours.std(dim=(2, 3)), expected[f"{name}_std"])


def check_picture(name: str, ours: Tensor, expected: dict[str, Tensor]) -> None:
    middle = slice(ours.shape[-1] // 2 - 16, ours.shape[-1] // 2 + 16)
    check(f"{name}_32", nn.functional.adaptive_avg_pool2d(ours, 32), expected[f"{name}_32"])
    check(f"{name}_patch", ours[..., middle, middle], expected[f"{name}_patch"])
    check(f"{name}_mean", ours.mean(dim=(2, 3)), expected[f"{name}_mean"])
    check(f"{name}_std", ours.std(dim=(2, 3)), expected[f"{name}_std"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@torch.no_grad()
def test_style_feature_editor() -> None:
    case, expected = load_case("sfe_1024")
    others, seed = load_case(case["parts_of"])[0]["state_dict"], case["seed"]

    def part(prefix: str, kept: str = "") -> dict[str, Tensor]:
        names = {key: f"{kept}{key.removeprefix(prefix)}" for key in others if key.startswith(prefix)}
        drawn = draw_state_dict({names[key]: others[key] for key in names}, seed)
        return {key.removeprefix(kept): tensor for key, tensor in drawn.items()}

    official = draw_state_dict(case["editor"], seed)
    converted = convert_encoder.encoder_from_official("sfe", official)
    back, _ = convert_encoder.encoder_to_official("sfe", *converted)
    assert len(back) == 701 and back.keys() == official.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in official.items())
    sfe = build(ENCODERS["sfe"].network, converted)
    latent_avg = draw_state_dict({"latent_avg": case["latent_avg"]}, seed)["latent_avg"]
    converted = convert_generator.generator_from_official(part("decoder."), latent_avg=latent_avg)
    generator = build(Generator, converted)
    converted = convert_encoder.encoder_from_official("e4e", part("encoder.", "encoder."), latent_avg=latent_avg)
    e4e = build(ENCODERS["e4e"].network, converted)
    del official, back, converted
    inputs = draw_state_dict(case["inputs"], seed)
    coarse, mask = (
        inputs[f"{name}_coarse"].repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
        for name, scale in (("input", 64), ("mask", 4))
    )
    x = sfe.shrink((coarse + inputs["input_fine"]).clamp(-1, 1))

    codes, predicted = sfe.backbone(x)
    check("codes", codes, expected["codes"])
    check_features("f_pred", predicted, expected)
    w_plus, fused, coarse = sfe(x, generator)
    check_features("f_w", generator.synthesis.features_at(64, w_plus)[0], expected)
    check_features("f_fused", fused, expected)
    check_features("f_inversion", sfe.editor(fused, torch.zeros_like(fused)), expected)
    w_edit = e4e(x)
    check("w_e4e", w_edit, expected["w_e4e"])
    drawn_by = FeatureGenerator(generator, sfe.editor, features=fused, w_inverted=w_plus, w_edit=w_edit, coarse=coarse)
    check_picture("inversion", drawn_by.synthesis(w_plus), expected)

    # half the official power is our strength; our directions have the unit of their file
    step = case["edit"]["power"] / 2 * inputs["direction"]
    before = generator.synthesis.features_at(64, w_edit)[0]
    delta = before - generator.synthesis.features_at(64, w_edit + step)[0]
    check_features("delta", delta, expected)
    check_features("f_edit", sfe.editor(fused, delta), expected)
    check_picture("edit", drawn_by.synthesis(w_plus + step), expected)
    drawn_by = drawn_by.keeping(mask)
    check_features("delta_masked", delta * (1 - drawn_by.photo["keep"]), expected)
    check_picture("edit_masked", drawn_by.synthesis(w_plus + step), expected)

    # in StyleSpace: what is added to a channel of a style can be added to the bias that it comes from
    for layer, channel in case["stylespace"]["channels"]:
        conv = generator.synthesis.convs[2 * ((layer + 1) // 3) - (layer % 3 == 2)]
        conv.affine.bias[channel] += 3 * case["stylespace"]["power"]
    delta = before - generator.synthesis.features_at(64, w_edit)[0]
    check_features("delta_stylespace", delta, expected)
    check_picture("stylespace", generator.synthesis(w_plus, features=sfe.editor(fused, delta)), expected)
