"""Edits in S (StyleSpace): the generator that draws changes, the codes do not, and nobody else need know."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stylegan_inversion import Direction, InversionOutput, PTIPipeline, SFEPipeline
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines.output import draw
from stylegan_inversion.pipelines.play import edit_frames, interpolate_outputs
from tests.checkpoints.official_files import style_features

CHANNELS = ((0, 3, 3.0), (4, 2, -6.0))  # layer, channel, what strength 1 adds


def glasses(generator: Generator) -> Direction:
    offsets = [torch.zeros(size) for size in generator.synthesis.style_sizes]
    for layer, channel, offset in CHANNELS:
        offsets[layer][channel] = offset
    return Direction.from_vector("glasses", torch.cat(offsets), strength_range=(-5.0, 5.0), unit=None, space="s")


def biased(generator: Generator, strength: float) -> Generator:
    """What the edit is by its definition: other biases of the affine layers."""
    other = copy.deepcopy(generator)
    for layer, channel, offset in CHANNELS:
        other.synthesis.convs[layer].affine.bias.data[channel] += strength * offset
    return other


@pytest.fixture(params=["pti", "sfe"])
def pipeline(request: pytest.FixtureRequest, pti: PTIPipeline, tmp_path: Path) -> Any:
    pipe: Any = pti
    if request.param == "sfe":
        torch.save(style_features(), tmp_path / "editor.pt")
        pipe = SFEPipeline.from_single_file(tmp_path / "editor.pt")
    pipe.directions["glasses"] = glasses(pipe.generator)
    pipe.directions["smile"] = Direction.from_vector("smile", torch.ones(pipe.generator.config.w_dim))
    return pipe


def test_an_edit_in_s_from_photo_to_folder(pipeline: Any, photo: Image.Image, tmp_path: Path) -> None:
    pipeline.base_name = None
    before = {key: value.clone() for key, value in pipeline.generator.state_dict().items()}
    out = pipeline([photo, photo], align=False)
    edited = pipeline.edit(out, glasses=2.0, smile=1.0)
    assert edited.edits == {"glasses": 2.0, "smile": 1.0} and edited.images[0] != out.images[0]
    assert torch.equal(edited.w_plus, pipeline.edit(out, smile=1.0).w_plus)
    tuned = out.generators[0].state_dict()
    assert all(torch.equal(value, tuned[key]) for key, value in edited.generators[0].state_dict().items())

    # edits add up, and back at 0 all is as it was, to the bit and to the generator
    again = pipeline.edit(pipeline.edit(out, smile=1.0, glasses=-0.7), glasses=2.7)
    torch.testing.assert_close(draw(again.generators, again.w_plus), draw(edited.generators, edited.w_plus))
    back = pipeline.edit(pipeline.edit(pipeline.edit(out, glasses=0.3), glasses=0.4), glasses=-0.7)
    assert all(one is other for one, other in zip(back.generators, out.generators)) and back.images == out.images
    assert [*edited.unedited.generators] == [*out.generators] and edited.unedited.images == out.images

    # the folder keeps it, and the way back
    loaded = InversionOutput.load(edited.save(tmp_path / "edited"))
    assert torch.equal(draw(loaded.generators, loaded.w_plus), draw(edited.generators, edited.w_plus))
    undone = pipeline.edit(loaded, glasses=-2.0, smile=-1.0)
    assert all(generator.style_offset is None for generator in undone.generators)
    assert (draw(undone.generators, undone.w_plus) - draw(out.generators, out.w_plus)).abs().max() < 1e-4
    if len(set(out.generators)) == 1:
        assert loaded.generator is loaded.generators[1]

    # pasting back and animation never ask
    assert pipeline.paste_back(edited)[0].size == photo.size
    frames = edit_frames(pipeline, out[0], {"glasses": 2.0, "smile": 1.0}, steps=3)
    assert (frames[0], frames[-1]) == (out.images[0], edited.images[0]) and len({f.tobytes() for f in frames}) == 3
    between = interpolate_outputs(out[0], edited[0], steps=3)
    assert (between[0], between[-1]) == (frames[0], frames[-1])
    after = pipeline.generator.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())

    # the pipeline keeps the direction
    pipeline.save_pretrained(tmp_path / "model")
    model = type(pipeline).from_pretrained(tmp_path / "model")
    assert model.directions["glasses"].space == "s"
    assert torch.equal(model.directions["glasses"].step, pipeline.directions["glasses"].step)


def test_a_style_offset_is_another_bias(generator: Generator) -> None:
    w_plus = torch.randn(2, generator.num_ws, 16, generator=torch.Generator().manual_seed(0))
    styled = glasses(generator).restyle(generator, 1.5)
    drawn = styled.synthesis(w_plus)
    torch.testing.assert_close(drawn, biased(generator, 1.5).synthesis(w_plus), rtol=1e-5, atol=1e-5)
    assert (drawn - generator.synthesis(w_plus)).abs().max() > 1e-3
    styled.to(torch.float64)  # it moves with the one whose weights it shares
    assert generator.synthesis.const.dtype == torch.float64
    torch.testing.assert_close(styled.synthesis(w_plus.double()).float(), drawn, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vector": torch.eye(4)[:2], "space": "s"}, "one row of numbers"),
        ({"vector": torch.eye(4)[0], "space": "s", "layers": (0, 1)}, "without `layers`"),
    ],
)
def test_what_is_no_direction_in_s(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Direction("glasses", **arguments)


def test_a_direction_of_another_generator(pti: PTIPipeline, photo: Image.Image) -> None:
    pti.directions["glasses"] = Direction("glasses", torch.eye(5)[0], space="s")
    out = pti(photo, align=False)
    with pytest.raises(ValueError, match=r"'glasses' does not fit .* one number for each of \d+ styles, got \(5,\)"):
        pti.edit(out, glasses=1.0)


def test_hostile_styles(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    pti.directions["glasses"] = glasses(pti.generator)
    pti.base_name = None
    folder = pti.edit(pti(photo, align=False), glasses=1.0).save(tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    count = len(tensors["styles.0"])
    for bad in (torch.full((count,), 1e300, dtype=torch.float64), torch.ones(3)):
        save_file({**tensors, "styles.0": bad}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="`offset` must"):
            InversionOutput.load(folder)
