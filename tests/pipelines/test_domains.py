"""Cars, churches and horses, from the papers' files to a photo with the edit in place; the tasks of pSp likewise."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stylegan_inversion import Direction, E4EPipeline, InversionOutput, PTIPipeline, cli, storage
from stylegan_inversion.batch import edit_folder, invert_folder
from stylegan_inversion.checkpoints.export import checkpoint_to_official
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.pipelines.play import edit_frames, find_components, interpolate_outputs, sample_face
from stylegan_inversion.pipelines.rows import read_rows
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.image import load_image, save_image, to_pil
from tests.checkpoints.official_files import TINY, UNITS, WIDTHS, lively

SIDE = TINY.resolution


def official_e4e(data_set: str, *, styles: int) -> dict[str, Any]:
    """`e4e_cars_encode.pt` and its like, small: the encoder reads 256 px, and may give more styles than are drawn."""
    sizes = PyramidEncoderConfig(2 ** (styles // 2 + 1), 256, TINY.w_dim, widths=WIDTHS, units=UNITS, reduction=2)
    encoder = sizes, lively(Encoder4Editing, sizes).state_dict()
    checkpoint = checkpoint_to_official("e4e", encoder, (TINY, lively(Generator, TINY).state_dict()))
    checkpoint["opts"] |= {"dataset_type": data_set, "stylegan_size": SIDE}
    return checkpoint


def official_transform(photo: Image.Image, size: tuple[int, int]) -> Tensor:
    """torchvision's Resize, ToTensor and Normalize of e4e's `transform_inference`; `size` is (width, height)."""
    pixels = torch.from_numpy(np.array(photo.resize(size, Image.Resampling.BILINEAR)))
    return ((pixels.permute(2, 0, 1).float().div(255) - 0.5) / 0.5)[None]


def scene(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


def no_detector(photo: Image.Image) -> Any:
    raise AssertionError("a face was looked for")


@pytest.mark.parametrize("data_set", ["cars_encode", "church_encode", "horse_encode"])
def test_a_photo_that_shows_no_face(
    data_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cars = data_set == "cars_encode"
    high = 48 if cars else 64
    torch.save(official_e4e(data_set, styles=12 if cars else TINY.num_ws), "model.pt")
    components = {"mean": torch.zeros(1, 8), "comp": torch.eye(8)[:, None], "std": torch.ones(8)}
    torch.save(components, "pca.pt")
    scene(640, 480).save("exact.png")  # 4:3: a car's whole photo
    scene(700, 400).save("wide.png")

    # As the official code reads it: without the styles that the generator does not take, and to the bit
    pipe = E4EPipeline.from_single_file("model.pt", detector=no_detector)
    theirs = torch.load("model.pt", weights_only=True)["state_dict"]
    assert pipe.encoder.config.num_ws == TINY.num_ws == 10 and ("encoder.styles.11.linear.bias" in theirs) == cars
    whole = load_image("exact.png") if cars else load_image("exact.png").crop((80, 0, 560, 480))
    crop = pipe.align("exact.png")
    assert torch.equal(pipe.inputs([crop]), official_transform(whole, (256, high * 4)))
    assert (crop.quad is None) == cars and crop.image.size == (SIDE, high)

    # The picture has no bars, and nothing but the rectangle changes
    out = pipe(["exact.png", "wide.png"])
    drawn = pipe.generator.synthesis(pipe.encoder(pipe.inputs(out.crops)))[..., (SIDE - high) // 2 :, :][..., :high, :]
    for picture, expected in zip(out.images, drawn, strict=True):
        assert picture.size == (SIDE, high)
        assert np.abs(np.asarray(picture) / 127.5 - 1 - expected.permute(1, 2, 0).clamp(-1, 1).numpy()).max() < 0.01
    assert [p.tobytes() for p in pipe.paste_back(out)] == [load_image(p).tobytes() for p in ("exact.png", "wide.png")]
    names = [each.name for each in pipe.load_components("pca.pt", count=3)]
    names += [each.name for each in find_components(pipe.generator, count=2, seed=0)["SeFa"]]
    pipe.directions |= {each.name: each for each in find_components(pipe.generator, count=2, seed=0)["SeFa"]}
    assert names == ["ganspace_1", "ganspace_2", "ganspace_3", "sefa_1", "sefa_2"]
    edited = pipe.edit(out, ganspace_1=2.0, sefa_1=1.0)
    wide = np.asarray(load_image("wide.png"))
    across = round(400 * SIDE / high)
    left = (700 - across) // 2
    for detail in ("move", "add", "none"):
        pasted = np.asarray(pipe.paste_back(edited, detail=detail)[1])
        changed = np.argwhere((pasted != wide).any(axis=2))
        assert len(changed) > 1000 and changed[:, 1].min() >= left and changed[:, 1].max() < left + across

    # Kept, and by PTI, around the encoder's code
    again = InversionOutput.load(edited.save("kept"), base=pipe.generator)
    assert again.images[0].tobytes() == edited.images[0].tobytes() and again.crops[1].is_central
    folder = pipe.save_pretrained("saved")
    assert storage.read_config(folder)["domain"] == dataclasses.asdict(pipe.domain)
    assert "photos of no faces as they are, and sees the largest central" in (folder / "README.md").read_text()
    pti = PTIPipeline.from_pretrained(folder, detector=no_detector)
    seen: list[tuple[int, ...]] = []
    tuned = pti("wide.png", pivot="e4e", num_tuning_steps=2, callback=lambda _, info: seen.append(info["y_hat"].shape))
    assert torch.allclose(tuned.w_plus, out.w_plus[1:], atol=1e-5) and set(seen) == {(1, 3, SIDE, SIDE)}
    assert tuned.images[0].size == (SIDE, high) and tuned.reports[0]["l2"] <= tuned.reports[0]["l2_pivot"]
    small = InversionOutput.load(tuned.save("small", rank=1))
    frames = [*interpolate_outputs(small, tuned, steps=2), *edit_frames(pti, tuned, {"sefa_1": 1.0}, steps=2)]
    assert {frame.size for frame in [*frames, *small.images, *sample_face(pti).images]} == {(SIDE, high)}
    with pytest.raises(ValueError, match="`align` is True, but this model draws no faces"):
        pti("wide.png", align=True)

    # The same on the command line, one by one and as a folder
    Path("photos").mkdir()
    load_image("wide.png").save("photos/wide.png")
    arguments = ["--device", "cpu", "--method", "e4e", "--model"]
    assert cli.main(["convert", "model.pt", "converted"]) == 0
    assert ("2 styles more than the generator takes" in capsys.readouterr().out) == cars
    assert storage.read_config(Path("converted"))["domain"] == dataclasses.asdict(pipe.domain)
    assert cli.main(["invert", "wide.png", *arguments, "saved", "--edit", "ganspace_1=2", "sefa_1=1"]) == 0
    assert difference(load_image("outputs/wide/photo.png"), pipe.paste_back(edited)[1]) < 0.3
    assert (
        cli.main(
            ["invert", "photos", *arguments, "converted", "--output", "table", "--save", "photo,crop", "--workers", "0"]
        )
        == 0
    )
    (pasted,) = pipe.paste_back(out[1], detail="none")
    assert difference(load_image("table/photo/wide.png-0.png"), pasted) < 0.1
    assert load_image("table/crop/wide.png-0.png").size == (SIDE, high)
    assert cli.main(["evaluate", "photos", *arguments[:2], "--model", "saved", "--methods", "e4e", "--edits"]) == 0
    assert '"error": null' in Path("evaluation/records.jsonl").read_text()
    assert "ID (" not in capsys.readouterr().out  # nobody is in the picture
    assert (
        cli.main(["evaluate", "photos", "--methods", "e4e", "--model", "saved", "--output", "x", "--edits", "sefa_1"])
        == 2
    )
    assert "what they cost in the identity of faces" in capsys.readouterr().err
    assert invert_folder(pipe, "photos", "own", workers=0).errors == 0
    (row,) = read_rows(Path("own"))  # the run's folder says what the model takes
    assert InversionOutput.from_row(row, pipe.generator, folder="own").images[0].size == (SIDE, high)
    assert edit_folder(pipe, "own", "edits", edits={"ganspace_1": [2.0]}, paste=True) == 1
    (pasted,) = pipe.paste_back(pipe.edit(out[1], ganspace_1=2.0))
    assert difference(load_image("edits/wide.png-0_ganspace_1+2.png"), pasted) < 5  # the codes are float16

    if not cars:
        return
    # An edit in S, of photos that share a generator; directions of the model's own, from labelled pictures alone
    pti.directions["doors"] = Direction("doors", torch.eye(sum(TINY.style_sizes))[3], space="s", unit=5.0)
    shared = pti(["exact.png", "wide.png"], pivot="e4e", num_tuning_steps=1, together=True)
    doors = pti.edit(shared, doors=2.0)
    assert doors.generator.unstyled is shared.generator and doors.images[1] != shared.images[1]
    kept = InversionOutput.load(doors.save("doors"))
    assert kept.generator is kept.generators[1] and kept.unedited.images == shared.images
    assert pti.edit(kept, doors=-2.0).images == shared.images and pti.paste_back(kept)[1].size == (700, 400)
    with torch.no_grad():
        pictures = to_pil(pti.domain.without_bars(pti.generator(torch.randn(24, TINY.z_dim))))
    for k, picture in enumerate(sorted(pictures, key=lambda each: np.asarray(each)[..., 0].mean())):
        save_image(picture, tmp_path / ("red" if k >= 12 else "other") / f"{k}.png")
    find = [
        "find-directions",
        "saved",
        "--num-samples",
        "64",
        "--num-points",
        "16",
        "--num-tests",
        "8",
        "--device",
        "cpu",
    ]
    labelled = ["--positive", "red", "--negative", "other", "--name", "red"]
    assert cli.main([*find, *labelled]) == 0 and "| red |" in capsys.readouterr().out
    assert "red" in PTIPipeline.from_pretrained("saved").directions
    assert cli.main(find) == 2 and "There is nothing to find" in capsys.readouterr().err
    assert cli.main([*find, "--scores", "age"]) == 2 and "saved draws none" in capsys.readouterr().err


def test_what_a_model_takes_can_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a file that does not name its data set, at conversion; nonsense is refused."""
    checkpoint = official_e4e("ffhq_encode", styles=TINY.num_ws)
    torch.save(checkpoint, tmp_path / "model.pt")
    convert = ["convert", str(tmp_path / "model.pt"), str(tmp_path / "model")]
    assert cli.main([*convert, "--height", "0.5"]) == 2
    assert "`height` must be 1 for a model of faces, whose crops are square, got 0.5" in capsys.readouterr().err
    assert cli.main([*convert, "--height", "0.5", "--whole-photos"]) == 0
    pipe = PTIPipeline.from_pretrained(tmp_path / "model")
    crop = pipe.align(scene(300, 300))
    assert isinstance(crop, Crop) and crop.image.size == (SIDE, SIDE // 2)
    with pytest.raises(ValueError, match=r"The crop is 64 x 64, but this model draws 64 x 32: cut it out"):
        pipe.align(dataclasses.replace(crop, image=scene(64, 64)))
    sizes = PyramidEncoderConfig(128, 64, 8, widths=WIDTHS, units=UNITS, reduction=2)
    decoder = TINY, lively(Generator, TINY).state_dict()
    psp = checkpoint_to_official("psp", (sizes, lively(GradualStyleEncoder, sizes).state_dict()), decoder)
    torch.save(psp, tmp_path / "psp.pt")
    with pytest.raises(CheckpointError, match="Its encoder is for a generator of 128 px, but its generator draws 64"):
        PTIPipeline.from_single_file(tmp_path / "psp.pt")
