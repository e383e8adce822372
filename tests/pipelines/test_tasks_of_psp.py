"""pSp's tasks, from a file in the official layout to pictures on the disk, in Python and on the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import InversionOutput, PSPPipeline, PTIPipeline, cli
from stylegan_inversion.checkpoints.export import checkpoint_to_official
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.preprocessing.sources import LabelSource, PhotoSource, source_from_config
from tests.checkpoints.official_files import TINY, UNITS, WIDTHS, lively

LABELS = (np.arange(80 * 60) // 253).astype(np.uint8).reshape(80, 60)  # 0 to 18
TASKS: dict[str, tuple[int, dict[str, Any], str]] = {  # channels, options in Python, and on the command line
    "celebs_sketch_to_face": (1, {}, ""),
    "celebs_seg_to_face": (19, {}, ""),
    "celebs_super_resolution": (3, {"resize_factor": 8.0}, "--resize-factor 8"),
    "ffhq_frontalize": (3, {"align": True}, "--align --detector builtin"),
    "toonify": (3, {"align": True, "mix_alpha": 0.5}, "--align --detector builtin --mix-alpha 0.5"),
}


def official_psp(task: str, channels: int) -> dict[str, Any]:
    sizes = PyramidEncoderConfig(64, 64, 8, channels, widths=WIDTHS, units=UNITS, reduction=2)
    decoder = TINY, lively(Generator, TINY).state_dict()
    checkpoint = checkpoint_to_official("psp", (sizes, lively(GradualStyleEncoder, sizes).state_dict()), decoder)
    checkpoint["opts"] |= {"dataset_type": task, "resize_factors": "1,2,4,8,16,32"}
    assert checkpoint["opts"]["label_nc"] == (0 if channels == 3 else channels)
    return checkpoint


def make_picture(channels: int) -> Image.Image:
    if channels == 3:
        return load_image(sample_photos()[0])
    return Image.fromarray(LABELS if channels == 19 else LABELS * 13)


@pytest.mark.parametrize("task", TASKS)
def test_a_task(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    channels, options, arguments = TASKS[task]
    torch.save(official_psp(task, channels), "official.pt")
    picture = make_picture(channels)
    picture.save("drawing.png")

    pipe = PSPPipeline.from_single_file("official.pt", detector="builtin")
    out = pipe.translate("drawing.png", num_outputs=4, **options)
    one = pipe.translate("drawing.png", **{key: value for key, value in options.items() if key != "mix_alpha"})
    assert len(out) == 4 and torch.equal(out.w_plus[:, :4], one.w_plus[:, :4].expand(4, -1, -1))  # 8 of 18, of 10
    assert all(torch.pdist(out.w_plus[:, k]).min() > 0.01 for k in range(4, 10))
    assert len({image.tobytes() for image in out.images}) == 4
    does = {"ffhq_frontalize": "frontalization", "celebs_super_resolution": "super_resolution"}.get(task, task)
    assert channels != 3 or pipe.source == PhotoSource(does)
    if "align" in options:  # as the task needs it
        assert torch.equal(pipe.translate("drawing.png").w_plus, one.w_plus)
        assert not torch.equal(pipe.translate("drawing.png", align=False).w_plus, one.w_plus)
    if "resize_factor" in options:
        sharp, blurred = (np.asarray(pipe.translate("drawing.png", resize_factor=f).crops[0].image) for f in (1, 8))
        assert np.diff(blurred.astype(int), axis=0).std() < np.diff(sharp.astype(int), axis=0).std() / 2
    if "align" in options:  # it is put back into the photo
        (pasted, *_) = pipe.paste_back(out, detail="none")
        assert pasted.size == picture.size and pasted.getpixel((0, 0)) == picture.getpixel((0, 0))

    assert cli.main(["convert", "official.pt", "model"]) == 0
    assert PSPPipeline.from_pretrained("model").source == pipe.source
    assert ("psp" in PTIPipeline.from_pretrained("model").pivots) is False  # what it draws is not the photo
    command = ["translate", "drawing.png", "gone.png", "--model", "model", "--num-outputs", "4", "--output", "made"]
    assert cli.main([*command, *arguments.split(), "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "drawing.png: 4 drawn, in made/drawing" in said and "gone.png: failed: " in said
    for k in range(4):
        drawn = np.asarray(load_image(f"made/drawing/output_{k + 1}.png"), int)
        assert np.abs(drawn - np.asarray(out.images[k], int)).max() <= 1
    assert torch.equal(InversionOutput.load("made/drawing/inversion").w_plus, out.w_plus)
    shown = load_image("made/drawing/input.png")
    if channels != 19:
        assert shown.tobytes() == out.crops[0].image.tobytes()
    else:  # the colours of CelebAMask-HQ, and a legend beside the picture
        assert pipe.source(Image.fromarray(LABELS), 64).argmax(0)[32, 32] == LABELS[40, 31] == 9
        assert shown.getpixel((shown.height // 2 + 2, shown.height // 2 + 2)) == (255, 0, 0)  # the right ear
        assert shown.width > 1.5 * shown.height


def test_a_task_that_the_file_does_not_say(tmp_path: Path) -> None:
    """Toonify's file is one of "ffhq_encode"."""
    torch.save(official_psp("ffhq_encode", 3), tmp_path / "official.pt")
    assert cli.main(["convert", str(tmp_path / "official.pt"), str(tmp_path / "model"), "--task", "toonify"]) == 0
    pipe = PSPPipeline.from_pretrained(tmp_path / "model")
    assert pipe.source == PhotoSource("toonify") and pipe.config["source"] == {"kind": "photo", "task": "toonify"}
    assert PSPPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "again")).source == pipe.source
    with pytest.raises(ValueError, match=r"`task` of a photo must be one of inversion, .*, got 'comic'"):
        source_from_config({"kind": "photo", "task": "comic"})


def test_labels_of_another_data_set_have_numbers_for_names() -> None:
    """Only those that are in the picture are in the legend."""
    source = LabelSource(5)
    names, colours = zip(*source.colours().items())
    assert names == tuple(f"label {k}" for k in range(5)) and len(set(colours)) == 5

    def explained(seen: list[str]) -> set[str]:
        pixels = np.array([[tuple(bytes.fromhex(colour[1:])) for colour in seen]] * 5, np.uint8)
        sheet = source.with_legend(Image.fromarray(pixels))
        beside = np.asarray(sheet)[:, sheet.height :].reshape(-1, 3)
        return {f"#{bytes(colour).hex()}" for colour in beside} & set(colours)

    assert explained([*colours[:2]] * 2 + [colours[0]]) == set(colours[:2]) and explained([*colours]) == set(colours)
