import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from PIL import Image

from stylegan_inversion import InversionOutput, PTIPipeline
from stylegan_inversion.latents import broadcast
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines.play import edit_frames, interpolate_outputs, mix_outputs, sample_face
from stylegan_inversion.preprocessing.image import to_pil


@pytest.fixture
def pipeline(pti: PTIPipeline) -> PTIPipeline:
    pti.generator.w_avg.copy_(torch.linspace(-0.5, 0.5, 16))
    return pti


def sampled(pipeline: PTIPipeline, seed: int) -> InversionOutput:
    return sample_face(pipeline, seed=seed, truncation=1.0)


def tuned(out: InversionOutput, seed: int) -> InversionOutput:
    """As PTI gives it: the same code, another generator, and what that draws."""
    generator = copy.deepcopy(out.generator)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in generator.synthesis.state_dict().values():
            tensor += 0.2 * torch.randn(tensor.shape, generator=rng)
    picture = drawn(generator, out.w_plus)
    return replace(out, images=[picture], reconstructions=[picture], generators=[generator])


@torch.no_grad()
def drawn(generator: Generator, w_plus: torch.Tensor) -> Image.Image:
    return to_pil(generator.synthesis(w_plus))[0]


def state(*outputs: InversionOutput) -> list[torch.Tensor]:
    tensors = [tensor for out in outputs for tensor in (out.w_plus, *out.generator.state_dict().values())]
    return [tensor.clone() for tensor in tensors]


def unchanged(before: list[torch.Tensor], *outputs: InversionOutput) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, state(*outputs), strict=True))


def test_a_face_from_z(pipeline: PTIPipeline) -> None:
    random = torch.random.get_rng_state()
    out = sample_face(pipeline, seed=3, truncation=0.5)
    assert torch.equal(torch.random.get_rng_state(), random)
    generator = pipeline.generator
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(3))
    w = generator.w_avg + 0.5 * (generator.mapping(z) - generator.w_avg)
    assert torch.allclose(out.w_plus, broadcast(w, 8), atol=1e-6) and not out.w_plus.requires_grad
    assert out.images[0].tobytes() == drawn(generator, out.w_plus).tobytes()
    assert out.reports == [{"seed": 3, "truncation": 0.5}] and out.generator is generator and out.edits == {}
    crop = out.crops[0]
    assert crop.image.tobytes() == out.images[0].tobytes() == crop.photo.tobytes() and crop.quad is None
    assert sample_face(pipeline, seed=3, truncation=0.5).w_plus.equal(out.w_plus)
    assert not sample_face(pipeline, seed=4, truncation=0.5).w_plus.equal(out.w_plus)
    assert sample_face(pipeline, seed=3).reports[0]["truncation"] == 0.7
    average = sample_face(pipeline, seed=4, truncation=0.0)
    assert torch.allclose(average.w_plus, generator.w_avg.expand(1, 8, 16), atol=1e-6)


def test_a_face_from_z_is_an_inversion_like_any(
    pipeline: PTIPipeline, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = sample_face(pipeline)
    edited = pipeline.edit(out, smile=2.0)
    assert edited.images[0].tobytes() != out.images[0].tobytes()
    assert pipeline.paste_back(out)[0].tobytes() == out.images[0].tobytes()
    assert pipeline.paste_back(edited)[0].tobytes() != out.images[0].tobytes()
    loaded = InversionOutput.load(edited.save(tmp_path_factory.mktemp("out")))
    assert loaded.reports == out.reports and loaded.images[0].tobytes() == edited.images[0].tobytes()


@pytest.mark.parametrize("truncation", [-0.1, 2.1, math.nan])
def test_truncations_that_draw_nothing(truncation: float, pipeline: PTIPipeline) -> None:
    with pytest.raises(ValueError, match=rf"`truncation` must be in \[0, 2\], got {truncation}; 0\.7 is usual"):
        sample_face(pipeline, truncation=truncation)


def test_seeds_that_are_none(pipeline: PTIPipeline) -> None:
    with pytest.raises(ValueError, match=r"`seed` must be in \[0, 2\*\*63\), got -1"):
        sample_face(pipeline, seed=-1)


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
    assert unchanged(before, a, b)


def test_mixes_of_edited_faces_go_into_the_photo(pipeline: PTIPipeline, photo: Image.Image) -> None:
    a, b = pipeline(photo), pipeline.edit(sampled(pipeline, 1), age=3.0)
    edited = pipeline.edit(a, smile=1.0)
    mixed = mix_outputs(edited, b, layers=(0, 4))
    assert mixed.edits == {"smile": 1.0} and mixed.w_plus[:, :4].equal(b.w_plus[:, :4])
    assert mixed.w_plus[:, 4:].equal(edited.w_plus[:, 4:]) and mixed.w_inverted is a.w_plus
    assert pipeline.paste_back(mixed)[0].size == photo.size
    assert pipeline.paste_back(mixed)[0].tobytes() != photo.tobytes()
    nothing = mix_outputs(a, b, layers=(0, 4), alpha=0.0)
    assert pipeline.paste_back(nothing)[0].tobytes() == photo.tobytes()


def test_layers_that_there_are_not(pipeline: PTIPipeline) -> None:
    a, b = sampled(pipeline, 0), sampled(pipeline, 1)
    with pytest.raises(ValueError, match=r"`layers` must be \(start, stop\) .* <= 8, got \(4, 9\)"):
        mix_outputs(a, b, layers=(4, 9))
    with pytest.raises(ValueError, match="`alpha` must be finite, got inf"):
        mix_outputs(a, b, alpha=math.inf)


def test_from_one_face_to_another(pipeline: PTIPipeline) -> None:
    a, b = sampled(pipeline, 0), pipeline.edit(sampled(pipeline, 1), smile=2.0)
    frames = interpolate_outputs(a, b, steps=5)
    assert [frame.size for frame in frames] == [(32, 32)] * 5
    assert frames[0].tobytes() == a.images[0].tobytes() and frames[-1].tobytes() == b.images[0].tobytes()
    assert frames[1].tobytes() == drawn(a.generator, a.w_plus.lerp(b.w_plus, 0.25)).tobytes()


def test_from_one_tuned_generator_to_another(pipeline: PTIPipeline) -> None:
    a, b = tuned(sampled(pipeline, 0), 5), tuned(sampled(pipeline, 1), 6)
    before = state(a, b)
    frames = interpolate_outputs(a, b, steps=3)
    assert frames[0].tobytes() == a.images[0].tobytes() and frames[-1].tobytes() == b.images[0].tobytes()
    between = copy.deepcopy(a.generator)
    ends = a.generator.state_dict(), b.generator.state_dict()
    between.load_state_dict({name: (tensor + ends[1][name]) / 2 for name, tensor in ends[0].items()})
    wanted, got = drawn(between, (a.w_plus + b.w_plus) / 2), frames[1]
    assert max(abs(x - y) for x, y in zip(wanted.tobytes(), got.tobytes())) <= 1
    assert got.tobytes() != drawn(a.generator, (a.w_plus + b.w_plus) / 2).tobytes()
    assert unchanged(before, a, b)


def test_an_edit_that_grows(pipeline: PTIPipeline) -> None:
    out = tuned(sampled(pipeline, 0), 5)
    before = state(out)
    frames = edit_frames(pipeline, out, {"smile": 3.0, "age": -2.0}, steps=4)
    last = pipeline.edit(out, smile=3.0, age=-2.0)
    assert len(frames) == 4 and frames[0].tobytes() == out.images[0].tobytes()
    assert frames[-1].tobytes() == last.images[0].tobytes()
    third = pipeline.edit(out, smile=1.0, age=-2 / 3).images[0]
    assert max(abs(x - y) for x, y in zip(third.tobytes(), frames[1].tobytes())) <= 1
    assert unchanged(before, out)
    with pytest.raises(ValueError, match=r"There is no direction 'smlie'\. Did you mean 'smile'\?"):
        edit_frames(pipeline, out, {"smlie": 1.0}, steps=2)


def test_one_frame_is_no_animation(pipeline: PTIPipeline) -> None:
    a, b = sampled(pipeline, 0), sampled(pipeline, 1)
    for make in (
        lambda: interpolate_outputs(a, b, steps=1),
        lambda: edit_frames(pipeline, a, {"smile": 1.0}, steps=1),
    ):
        with pytest.raises(ValueError, match="`steps` must be >= 2, the first and the last frame, got 1"):
            make()


def test_two_photos_at_once(pipeline: PTIPipeline) -> None:
    one = sampled(pipeline, 0)
    two = InversionOutput(
        one.images * 2, one.reconstructions * 2, one.w_plus.repeat(2, 1, 1), [one.generator] * 2, one.crops * 2
    )
    calls: list[tuple[str, Callable[[], object]]] = [
        ("a", lambda: mix_outputs(two, one)),
        ("b", lambda: interpolate_outputs(one, two, steps=2)),
        ("out", lambda: edit_frames(pipeline, two, {}, steps=2)),
    ]
    for name, call in calls:
        with pytest.raises(ValueError, match=rf"`{name}` must be one photo, got 2: take .* `{name}\[0\]`"):
            call()


def test_faces_of_two_models(pipeline: PTIPipeline) -> None:
    a = sampled(pipeline, 0)
    larger = Generator(GeneratorConfig(64, z_dim=8, w_dim=16, mapping_layers=2, channel_base=256, channel_max=8))
    with pytest.raises(ValueError, match=r"the generators' sizes differ: .*resolution=32.*resolution=64.*one model"):
        mix_outputs(a, replace(a, generators=[larger]))
    other = copy.deepcopy(a.generator)
    other.w_avg += 1.0
    with pytest.raises(ValueError, match="of the same model, but their average w differ"):
        interpolate_outputs(a, replace(a, generators=[other]), steps=2)
