"""One generator tuned on several photos, by Python and by the command line."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import InversionOutput, PTIPipeline, cli, storage
from stylegan_inversion.batch import invert_photos
from stylegan_inversion.inversion.pivotal_tuning import TuningConfig, tune_generator
from stylegan_inversion.pipelines.play import interpolate_outputs
from stylegan_inversion.preprocessing.image import load_image, to_tensor


def views(photo: Image.Image) -> list[Image.Image]:
    return [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), photo.rotate(5)]


def delta_bytes(folder: Path) -> int:
    """Of what is saved of the generators."""
    tensors = storage.read_tensors(folder / "model.safetensors")
    return sum(tensor.nbytes for key, tensor in tensors.items() if key.startswith("generator."))


@pytest.fixture
def named(pti: PTIPipeline, detector: Any, tmp_path: Path) -> PTIPipeline:
    return PTIPipeline.from_pretrained(pti.save_pretrained(tmp_path / "model"), detector=detector)


def test_one_generator_for_several_photos(named: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in named.generator.state_dict().items()}
    seen: list[tuple[int, int, str, int]] = []

    def note(step: int, info: dict[str, Any]) -> None:
        seen.append((step, info["photo"], info["stage"], len(info["y_hat"])))

    out = named(views(photo), together=True, num_w_steps=2, num_tuning_steps=6, batch_size=2, callback=note)
    assert [each[1:] for each in seen] == [(0, "projection", 2)] * 2 + [(2, "projection", 1)] * 2 + [
        (0, "tuning", 3)
    ] * 6
    assert out.generator is not named.generator and out.generators == [out.generator] * 3
    assert all(torch.equal(value, before[key]) for key, value in named.generator.state_dict().items())
    alone = named(views(photo), num_w_steps=2, num_tuning_steps=6, batch_size=2)
    assert torch.equal(out.w_plus, alone.w_plus) and len({id(generator) for generator in alone.generators}) == 3
    assert all(report["l2"] < report["l2_pivot"] and report["tuning_steps"] == 6 for report in out.reports)
    # what lies between two of them is drawn by the same generator; an edit keeps it
    frames = interpolate_outputs(out[0], out[2], steps=3)
    middle = out.generator.synthesis(out.w_plus[:1].lerp(out.w_plus[2:], 0.5))
    assert abs(to_tensor(frames[1]) - middle.clamp(-1, 1)).max() <= 1.01 / 127.5
    assert named.edit(out, smile=2.0).generator is out.generator
    # one change is kept, whatever the number of photos; one photo of them is an output of its own
    out.save(tmp_path / "together")
    loaded = InversionOutput.load(tmp_path / "together")
    assert loaded.generator is loaded.generators[2]
    assert [image.tobytes() for image in loaded.images] == [image.tobytes() for image in out.images]
    kept = {name: delta_bytes(each.save(tmp_path / name)) for name, each in {"one": out[0], "alone": alone}.items()}
    assert delta_bytes(tmp_path / "together") == kept["one"] < kept["alone"] / 2


def test_each_photo_has_its_own_turn_pivot_and_stop(named: PTIPipeline, photo: Image.Image) -> None:
    """The steps are those of PTI's loop: each photo's loss, gradient and update of Adam, one after the other."""
    generator, perceptual = named.generator, named.perceptual
    target = torch.cat([to_tensor(named.align(view).image) for view in views(photo)])
    w_pivot = named(views(photo), num_tuning_steps=0, num_w_steps=1, seed=5).w_plus
    config = TuningConfig(num_steps=3, lpips_threshold=0.0, learning_rate=1e-3)
    tuned = tune_generator(generator, target, w_pivot, perceptual=perceptual, config=config)
    with torch.enable_grad():
        expected = copy.deepcopy(generator).requires_grad_(True)
        optimizer = torch.optim.Adam(expected.synthesis.parameters(), lr=1e-3)
        for _ in range(3):
            for y, w in zip(target, w_pivot):
                y_hat = expected.synthesis(w[None])
                optimizer.zero_grad()
                ((y_hat - y[None]).square().mean() + perceptual(y_hat, y[None]).mean()).backward()
                optimizer.step()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(tuned.generator.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    # a photo that is near enough waits; the run ends when all of them are
    with torch.no_grad():
        start = perceptual(generator.synthesis(w_pivot), target)
    easy = TuningConfig(num_steps=40, lpips_threshold=0.97 * float(start.max()), learning_rate=1e-3)
    tuned = tune_generator(generator, target, w_pivot, perceptual=perceptual, config=easy)
    with torch.no_grad():
        reached = perceptual(tuned.generator.synthesis(w_pivot), target)
    assert tuned.stopped_by == "threshold" and 1 < len(tuned.losses) < 40
    assert float(reached.max()) <= tuned.lpips_threshold


def test_on_the_command_line(
    named: PTIPipeline, photo: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    names = [str(tmp_path / f"{name}.png") for name in "abc"]
    for view, name in zip(views(photo), names):
        view.resize((64, 64)).save(name)
    command = ["invert", names[0], str(tmp_path / "missing.png"), *names[1:], "--method", "pti", "--together"]
    command += ["--model", str(tmp_path / "model"), "--no-align", "--num-w-steps", "2", "--num-tuning-steps", "3"]
    assert cli.main([*command, "--edit", "smile=2", "--output", str(tmp_path / "out"), "--device", "cpu"]) == 1
    text = capsys.readouterr().out
    assert "3 of 4 photos done." in text and "missing.png: failed: " in text
    out = InversionOutput.load(tmp_path / "out" / "together")
    assert len(out) == 3 and out.generator is out.generators[2]
    for k, name in enumerate("abc"):
        pictures = {path.name for path in (tmp_path / "out" / name).iterdir()}
        assert pictures == {"crop.png", "inverted.png", "edited.png", "photo.png"}
        assert load_image(tmp_path / "out" / name / "inverted.png").tobytes() == out.images[k].tobytes()
    assert cli.main(["invert", str(tmp_path), "--together", "--output", str(tmp_path / "no")]) == 2
    assert "`together` is for single photos" in capsys.readouterr().err
    (record, none), *_ = invert_photos(named, ["no.png"], tmp_path / "none", options={"together": True})
    assert none is None and "no.png" in str(record.error)
