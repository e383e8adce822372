import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from stylegan_inversion import E4EPipeline, PSPPipeline, PTIPipeline
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.inversion.projector import project_w
from stylegan_inversion.preprocessing.align import crop_quad, face_quad
from stylegan_inversion.preprocessing.image import to_tensor
from tests.conftest import same, state


def flipped(photo: Image.Image) -> Image.Image:
    return photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def test_photo_in_edited_photo_out(pti: PTIPipeline, photo: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    before = state(pti.generator)
    out = pti(photo)
    assert out.images[0].size == (32, 32) and out.w_plus.shape == (1, 8, 16)
    assert out.reports[0]["face_count"] == 2 and out.reports[0]["face_index"] == 0
    assert out.reports[0].keys() >= {"l2", "l2_pivot", "w_steps", "tuning_steps", "stopped_by", "seconds"}
    assert out.generator is not pti.generator and same(state(pti.generator), before)

    edited = pti.edit(out, smile=3.0)
    assert torch.allclose(edited.w_plus, out.w_plus + 3 * pti.directions["smile"].vector)
    assert edited.edits == {"smile": 3.0} and edited.generator is out.generator
    assert edited.reconstructions == out.images and edited.images != out.images
    more = pti.edit(edited, smile=-3.0, age=1.0)
    assert more.edits == {"smile": 0.0, "age": 1.0}
    assert torch.allclose(more.w_plus, out.w_plus + pti.directions["age"].vector, atol=1e-6)
    with caplog.at_level(logging.WARNING):
        pti.edit(edited, smile=5.0, age=9.0)
    assert caplog.messages == ["smile=8 is outside its calibrated range [-5, 5]."]

    pasted, quad = pti.paste_back(edited)[0], out.crops[0].quad
    assert pasted.size == photo.size and quad is not None
    changed = np.argwhere(np.asarray(ImageChops.difference(pasted, photo)).any(axis=2))[:, ::-1]
    assert len(changed) and (changed >= quad.min(0) - 1).all() and (changed <= quad.max(0) + 1).all()
    # An inversion that is not edited changes nothing; one that replaces the face does.
    assert ImageChops.difference(pti.paste_back(out)[0], photo).getbbox() is None
    assert ImageChops.difference(pti.paste_back(out, detail="none")[0], photo).getbbox() is not None
    for keep_detail, detail in ((True, "move"), (False, "none")):
        with pytest.warns(DeprecationWarning, match=f"use `detail='{detail}'`"):
            old = pti.paste_back(edited, keep_detail=keep_detail)
        assert old[0].tobytes() == pti.paste_back(edited, detail=detail)[0].tobytes()


def test_crops(pti: PTIPipeline, photo: Image.Image) -> None:
    for face, found in enumerate(pti.detector(photo)):
        crop = pti.align(photo, face=face)
        assert crop.quad is not None
        np.testing.assert_allclose(crop.quad, face_quad(found.landmarks, 0.8), atol=1.0)
    out = pti(photo.resize((64, 64)), align=False)
    assert out.crops[0].quad is None and out.crops[0].face_count == 1
    assert pti.paste_back(out, detail="none")[0].size == (64, 64)


def test_several_photos(pti: PTIPipeline, photo: Image.Image) -> None:
    faces = [photo, flipped(photo), photo.rotate(3)]
    steps: list[tuple[int, str, int]] = []

    def callback(step: int, info: dict[str, Any]) -> None:
        steps.append((info["photo"], info["stage"], len(info["y_hat"])))

    out = pti(faces, num_w_steps=6, num_tuning_steps=2, batch_size=2, seed=3, callback=callback)
    assert steps == [
        *[(0, "projection", 2)] * 6,
        *[(0, "tuning", 1)] * 2,
        *[(1, "tuning", 1)] * 2,
        *[(2, "projection", 1)] * 6,
        *[(2, "tuning", 1)] * 2,
    ]
    for face, together in zip(faces, out, strict=True):
        alone = pti(face, num_w_steps=6, num_tuning_steps=2, seed=3)
        torch.testing.assert_close(together.w_plus, alone.w_plus, atol=1e-4, rtol=1e-4)
        for ours, its in zip(together.generator.synthesis.convs, alone.generator.synthesis.convs):
            torch.testing.assert_close(ours.noise_const, its.noise_const, atol=1e-3, rtol=1e-3)
        assert together.reports[0]["l2"] == pytest.approx(alone.reports[0]["l2"], rel=1e-3)
    assert len(pti.paste_back(out)) == 3 and not torch.equal(out.w_plus[0], out.w_plus[1])
    with pytest.raises(ValueError, match="Each of the 3 photos has its own generator"):
        _ = out.generator
    assert out[1].generator is out.generators[1] and torch.equal(out[1].w_plus, out.w_plus[1:2])
    assert out[-1].images[0] is out.images[2]
    with pytest.raises(IndexError):
        _ = out[3]


def test_presets(pti: PTIPipeline, both: PTIPipeline, photo: Image.Image) -> None:
    psp = PTIPipeline(pti.generator, perceptual=pti.perceptual, encoders={"psp": both.encoders["psp"]})
    assert both.plan("fast") == ("e4e", 100, 50) and psp.plan("fast") == ("psp", 100, 50)
    assert pti.plan("fast") == ("w", 100, 50)  # without an encoder a short search
    assert both.plan("balanced") == ("e4e", 200, 150)
    assert both.plan("best") == pti.plan("best") == ("w", 450, 350)  # the paper's, whatever the model says
    assert pti.plan() == ("w", 3, 3)  # the model's own
    assert both.plan("fast", "w_plus", 7, 0) == ("w_plus", 7, 0)  # what is said wins
    report = both(photo, preset="fast", num_tuning_steps=2).reports[0]
    assert (report["pivot"], report["w_steps"], report["tuning_steps"]) == ("e4e", 0, 2)
    out = pti(photo, num_w_steps=5, num_tuning_steps=1, pivot="w_plus")
    assert [out.reports[0][name] for name in ("pivot", "w_steps", "tuning_steps")] == ["w_plus", 5, 1]
    assert not torch.equal(out.w_plus[:, 0], out.w_plus[:, 1])


@pytest.mark.parametrize("name", ["e4e", "psp"])
def test_pivots_of_encoders(name: str, both: PTIPipeline, photo: Image.Image) -> None:
    assert both.pivots == ("w", "w_plus", "e4e", "psp")
    encoder, steps = both.encoders[name], list[tuple[int, str]]()
    before = state(encoder)
    out = both(
        photo, pivot=name, num_w_steps=7, callback=lambda step, info: steps.append((step, info["stage"])), progress=True
    )
    with torch.no_grad():
        expected = encoder(to_tensor(crop_quad(out.crops[0].photo, out.crops[0].quad, 64)))
    assert torch.equal(out.w_plus, expected) and not expected.requires_grad
    assert steps == [(1, "tuning"), (2, "tuning"), (3, "tuning")]
    report = out.reports[0]
    assert (report["pivot"], report["w_steps"], report["tuning_steps"]) == (name, 0, 3)
    assert report["stopped_by"] == "steps" and report["l2"] < report["l2_pivot"]
    # The tuned copy keeps the noise of the generator, which the encoder was made for.
    for conv, own in zip(out.generator.synthesis.convs, both.generator.synthesis.convs):
        assert torch.equal(conv.noise_const, own.noise_const)
    assert same(state(encoder), before)


def test_pipelines_of_the_encoders(both: PTIPipeline, photo: Image.Image) -> None:
    for name, kind in (("e4e", E4EPipeline), ("psp", PSPPipeline)):
        pipeline = both.encoder_pipeline(name)
        assert type(pipeline) is kind and pipeline.encoder is both.encoders[name]
        assert pipeline.generator is both.generator and pipeline.detector is both.detector
        assert pipeline.directions is both.directions and pipeline.crop_scale == both.crop_scale
        out, untuned = pipeline(photo), both(photo, pivot=name, num_tuning_steps=0)
        assert torch.equal(out.w_plus, untuned.w_plus) and out.images[0].tobytes() == untuned.images[0].tobytes()
        assert out.reports[0]["l2"] == untuned.reports[0]["l2"] == pytest.approx(untuned.reports[0]["l2_pivot"])
    del both.encoders["psp"]
    with pytest.raises(ModelNotFoundError, match=r"holds no GradualStyleEncoder .* Take one of w, w_plus, e4e"):
        both.encoder_pipeline("psp")


def test_save_and_load(both: PTIPipeline, photo: Image.Image, tmp_path: Path, detector: Any) -> None:
    folder = both.save_pretrained(tmp_path / "model")
    loaded = PTIPipeline.from_pretrained(folder, detector=detector)
    assert loaded.directions.keys() == both.directions.keys() and loaded.crop_scale == 0.8
    assert loaded.projector == both.projector and loaded.tuning == both.tuning
    assert torch.equal(loaded(photo).w_plus, both(photo).w_plus)

    # Encoders are loaded when they are needed.
    assert loaded.pivots == ("w", "w_plus", "e4e", "psp") and not loaded.encoders
    with torch.inference_mode():  # of the caller: what is loaded in it stays usable outside
        out = loaded(photo, pivot="psp")
    assert loaded.encoders.keys() == {"psp"} and not loaded.encoders["psp"].training
    assert not any(p.requires_grad or p.is_inference() for p in loaded.encoders["psp"].parameters())
    assert torch.equal(out.w_plus, PSPPipeline.from_pretrained(folder, detector=detector)(photo).w_plus)
    again = loaded.save_pretrained(tmp_path / "again")  # the one that was never needed goes with it
    for name in ("e4e", "psp"):
        files = [path / f"{name}_encoder" / "model.safetensors" for path in (folder, again)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert loaded.to("meta").encoders["psp"].w_avg.device.type == "meta"
    (folder / "e4e_encoder" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        PTIPipeline.from_pretrained(folder, detector=detector)(photo, pivot="e4e")


@pytest.mark.parametrize("name", ["w", "e4e"])
def test_an_earlier_inversion_gives_the_pivots(name: str, both: PTIPipeline, photo: Image.Image) -> None:
    faces = [photo, flipped(photo)]
    expected = both(faces, pivot=name, num_w_steps=4, num_tuning_steps=2, seed=1)
    found = both(faces, pivot=name, num_w_steps=4, num_tuning_steps=0, seed=1)
    stages: list[str] = []
    edited = both.edit(found, smile=2.0)  # its pivot is what the photo gave
    out = both(
        faces, pivot=edited, num_tuning_steps=2, seed=1, callback=lambda step, info: stages.append(info["stage"])
    )
    assert torch.equal(out.w_plus, expected.w_plus) and stages == ["tuning"] * 4
    for ours, its in zip(out.generators, expected.generators):
        assert same(state(ours), state(its))
    for ours, its in zip(out.reports, expected.reports):
        assert {**ours, "seconds": 0, "made": 0} == {**its, "seconds": 0, "made": 0}
    for others in (faces[::-1], photo):
        with pytest.raises(ValueError, match="`pivot` must be of the photos in `image`, in the same order"):
            both(others, pivot=found)


def test_stopping(pti: PTIPipeline, photo: Image.Image) -> None:
    out = pti(photo, callback=lambda step, info: info["stage"] == "tuning" and step == 1)
    assert (out.reports[0]["stopped_by"], out.reports[0]["tuning_steps"]) == ("callback", 1)
    calls: list[str] = []
    out = pti(photo, callback=lambda step, info: bool(calls.append(info["stage"])) or step == 2)
    assert calls == ["projection", "projection"]  # and nothing is tuned
    assert (out.reports[0]["stopped_by"], out.reports[0]["tuning_steps"]) == ("callback", 0)
    weights = pti.generator.synthesis.blocks["4"].conv1.weight
    assert torch.equal(out.generator.synthesis.blocks["4"].conv1.weight, weights)


def test_the_report_and_the_noise_are_those_of_the_projection(pti: PTIPipeline, photo: Image.Image) -> None:
    out = pti(photo, num_tuning_steps=0, seed=4)
    target = to_tensor(out.crops[0].image)
    found = project_w(pti.generator, target, perceptual=pti.perceptual, config=pti.projector, seed=4)
    assert torch.equal(out.w_plus, found.w_plus)
    for conv, noise in zip(out.generator.synthesis.convs, found.noise, strict=True):
        assert torch.equal(conv.noise_const, noise[0, 0])
    with torch.no_grad():
        l2 = (out.generator.synthesis(out.w_plus).clamp(-1, 1) - target).square().mean().item()
    assert out.reports[0]["l2_pivot"] == pytest.approx(l2) == pytest.approx(out.reports[0]["l2"])


def test_a_seed_fixes_everything_in_any_mode_of_the_caller(pti: PTIPipeline, photo: Image.Image) -> None:
    expected = pti(photo, seed=1)
    with torch.inference_mode():
        out = pti(photo, seed=1)
    assert torch.equal(out.w_plus, expected.w_plus) and out.images[0].tobytes() == expected.images[0].tobytes()
    assert not torch.equal(pti(photo, seed=2).w_plus, expected.w_plus)
