import copy
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from stylegan_inversion import InversionOutput, PTIPipeline
from stylegan_inversion.latents import broadcast
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines.play import (
    edit_frames,
    find_components,
    interpolate_outputs,
    mix_outputs,
    sample_face,
)
from stylegan_inversion.preprocessing.image import to_pil


@pytest.fixture
def pipeline(pti: PTIPipeline) -> PTIPipeline:
    pti.generator.w_avg.copy_(torch.linspace(-0.5, 0.5, 16))
    return pti


def sampled(pipeline: PTIPipeline, seed: int) -> InversionOutput:
    return sample_face(pipeline, seed=seed, truncation=1.0)


def tuned(out: InversionOutput, seed: int) -> InversionOutput:
    """As PTI gives it: the same code, another generator, and what that draws."""
    generator, rng = copy.deepcopy(out.generator), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in generator.synthesis.state_dict().values():
            tensor += 0.2 * torch.randn(tensor.shape, generator=rng)
    picture = drawn(generator, out.w_plus)
    return replace(out, images=[picture], reconstructions=[picture], generators=[generator])


@torch.no_grad()
def drawn(generator: Generator, w_plus: torch.Tensor) -> Image.Image:
    return to_pil(generator.synthesis(w_plus))[0]


def are_close(a: Image.Image, b: Image.Image) -> bool:
    return max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True)) <= 1


def state(*outputs: InversionOutput) -> list[torch.Tensor]:
    tensors = [tensor for out in outputs for tensor in (out.w_plus, *out.generator.state_dict().values())]
    return [tensor.clone() for tensor in tensors]


def test_a_face_from_z(pipeline: PTIPipeline, tmp_path: Path) -> None:
    random, generator = torch.random.get_rng_state(), pipeline.generator
    out = sample_face(pipeline, seed=3, truncation=0.5)
    assert torch.equal(torch.random.get_rng_state(), random)
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(3))
    w = generator.w_avg + 0.5 * (generator.mapping(z) - generator.w_avg)
    assert torch.allclose(out.w_plus, broadcast(w, 8), atol=1e-6) and not out.w_plus.requires_grad
    assert out.images[0].tobytes() == drawn(generator, out.w_plus).tobytes()
    assert out.reports == [{"seed": 3, "truncation": 0.5}] and out.generator is generator and out.edits == {}
    crop = out.crops[0]
    assert crop.image.tobytes() == out.images[0].tobytes() == crop.photo.tobytes() and crop.quad is None
    assert not sample_face(pipeline, seed=4, truncation=0.5).w_plus.equal(out.w_plus)
    average = sample_face(pipeline, seed=4, truncation=0.0)
    assert torch.allclose(average.w_plus, generator.w_avg.expand(1, 8, 16), atol=1e-6)

    edited = pipeline.edit(out, smile=2.0)  # it is an inversion like any
    assert pipeline.paste_back(out)[0].tobytes() == out.images[0].tobytes()
    assert pipeline.paste_back(edited)[0].tobytes() != out.images[0].tobytes()
    loaded = InversionOutput.load(edited.save(tmp_path / "out"))
    assert loaded.reports == out.reports and loaded.images[0].tobytes() == edited.images[0].tobytes()


def test_layers_of_another_face(pipeline: PTIPipeline) -> None:
    a, b = tuned(sampled(pipeline, 0), 5), tuned(sampled(pipeline, 1), 6)
    before = state(a, b)
    mixed = mix_outputs(a, b, layers=(2, 5))
    assert mixed.w_plus[:, 2:5].equal(b.w_plus[:, 2:5]) and mixed.generator is a.generator
    assert mixed.w_plus[:, :2].equal(a.w_plus[:, :2]) and mixed.w_plus[:, 5:].equal(a.w_plus[:, 5:])
    assert mixed.images[0].tobytes() == drawn(a.generator, mixed.w_plus).tobytes() != a.images[0].tobytes()
    assert mixed.reconstructions == a.reconstructions and mixed.crops == a.crops and mixed.w_inverted is a.w_plus
    assert mix_outputs(a, b).w_plus.equal(b.w_plus)
    half = mix_outputs(a, b, layers=(2, 5), alpha=0.5).w_plus
    assert torch.allclose(half[:, 2:5], (a.w_plus + b.w_plus)[:, 2:5] / 2, atol=1e-6)
    assert all(map(torch.equal, before, state(a, b)))


def test_mixes_of_edited_faces_go_into_the_photo(pipeline: PTIPipeline, photo: Image.Image) -> None:
    a, b = pipeline(photo), pipeline.edit(sampled(pipeline, 1), age=3.0)
    edited = pipeline.edit(a, smile=1.0)
    mixed = mix_outputs(edited, b, layers=(0, 4))
    assert mixed.edits == {"smile": 1.0} and mixed.w_plus[:, :4].equal(b.w_plus[:, :4])
    assert mixed.w_plus[:, 4:].equal(edited.w_plus[:, 4:]) and mixed.w_inverted is a.w_plus
    assert pipeline.paste_back(mixed)[0].tobytes() != photo.tobytes()
    nothing = mix_outputs(a, b, layers=(0, 4), alpha=0.0)
    assert pipeline.paste_back(nothing)[0].tobytes() == photo.tobytes()


def test_from_one_face_to_another(pipeline: PTIPipeline) -> None:
    a, b = sampled(pipeline, 0), pipeline.edit(sampled(pipeline, 1), smile=2.0)
    frames = interpolate_outputs(a, b, steps=5)
    assert len(frames) == 5 and frames[0].tobytes() == a.images[0].tobytes()
    assert frames[-1].tobytes() == b.images[0].tobytes()
    assert frames[1].tobytes() == drawn(a.generator, a.w_plus.lerp(b.w_plus, 0.25)).tobytes()

    a, b = tuned(sampled(pipeline, 0), 5), tuned(sampled(pipeline, 1), 6)
    before = state(a, b)
    frames = interpolate_outputs(a, b, steps=3)
    assert frames[0].tobytes() == a.images[0].tobytes() and frames[-1].tobytes() == b.images[0].tobytes()
    between, ends = copy.deepcopy(a.generator), (a.generator.state_dict(), b.generator.state_dict())
    between.load_state_dict({name: (tensor + ends[1][name]) / 2 for name, tensor in ends[0].items()})
    assert are_close(drawn(between, (a.w_plus + b.w_plus) / 2), frames[1])
    assert frames[1].tobytes() != drawn(a.generator, (a.w_plus + b.w_plus) / 2).tobytes()
    assert all(map(torch.equal, before, state(a, b)))


def test_an_edit_that_grows(pipeline: PTIPipeline) -> None:
    out = tuned(sampled(pipeline, 0), 5)
    frames = edit_frames(pipeline, out, {"smile": 3.0, "age": -2.0}, steps=4)
    assert len(frames) == 4 and frames[0].tobytes() == out.images[0].tobytes()
    assert frames[-1].tobytes() == pipeline.edit(out, smile=3.0, age=-2.0).images[0].tobytes()
    assert are_close(pipeline.edit(out, smile=1.0, age=-2 / 3).images[0], frames[1])


@torch.no_grad()
def test_directions_without_names(generator: Generator) -> None:
    random, before = torch.random.get_rng_state(), {k: v.clone() for k, v in generator.state_dict().items()}
    groups = find_components(generator, count=4)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    z = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(9))
    for title, layers in (("GANSpace", None), ("SeFa", (2, 6))):
        found = groups[title]
        assert [one.name for one in found] == [f"{title.lower()}_{k}" for k in (1, 2, 3, 4)]
        vectors = torch.stack([one.vector for one in found])
        assert torch.allclose(vectors @ vectors.T, torch.eye(4), atol=1e-5)
        ends = torch.tensor([one.strength_range for one in found])
        spread = 2 * (generator.mapping(z) @ vectors.T).std(dim=0)
        if title == "SeFa":
            spread = 0.8 * generator.mapping(z).var(dim=0).sum().sqrt().expand(4)
        assert torch.allclose(ends[:, 1], spread, rtol=0.08) and torch.equal(ends[:, 0], -ends[:, 1])
        assert all(one.layers == layers and "Nobody named it" in one.description for one in found)
        again = find_components(generator)[title]
        assert len(again) == 6 and torch.equal(again[3].vector, found[3].vector)


def test_of_generators_with_fewer_directions(generator: Generator, caplog: pytest.LogCaptureFixture) -> None:
    groups = find_components(Generator(GeneratorConfig(16, z_dim=4, w_dim=4, mapping_layers=1, channel_max=8)))
    assert [len(found) for found in groups.values()] == [4, 4] and groups["SeFa"][0].layers == (2, 5)
    for layer in generator.mapping.layers:
        layer.get_parameter("weight").data.zero_()
    generator.synthesis.convs[3].affine.weight.data.zero_()
    with caplog.at_level(logging.WARNING):
        assert find_components(generator) == {}
    assert "no directions of GANSpace: `w` spreads in fewer than 6" in caplog.text
    assert "no directions of SeFa: Every row" in caplog.text
