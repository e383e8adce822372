"""PTI on every road to a model, with the settings that users get: only the numbers of steps are smaller.

A threshold that stops too early ends the tuning after a step, so each road must take them all.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import E4EPipeline, InversionOutput, PSPPipeline, PTIPipeline, cli, storage
from stylegan_inversion.catalogue import CatalogueEntry
from stylegan_inversion.checkpoints import find
from stylegan_inversion.checkpoints.export import write_official
from stylegan_inversion.checkpoints.generator import generator_to_nvidia
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.hub import file_sha256
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.preprocessing.domain import Domain
from tests.checkpoints.official_files import nvidia_pickle
from tests.fake_hub import FakeHub

STEPS: dict[str, Any] = {"num_w_steps": 2, "num_tuning_steps": 8}
FILES = ("e4e.pt", "psp.pt", "rosinality.pt", "nvidia.pkl")
ROADS = (*FILES, "converted and saved", "saved by psp", "catalogue", "trained")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth, so that a few steps come nearer to it."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One generator, with each of the encoders, in the official layouts."""
    folder = tmp_path_factory.mktemp("official")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig(64, 6, 8, 3, channel_base=256, channel_max=8))
        sizes = PyramidEncoderConfig(64, 64, 8, widths=(4, 6, 8, 10), units=(1, 3, 2, 1), reduction=2)
        for name in ("e4e", "psp"):
            pipeline: Any = METHODS[name].pipeline
            pipeline(generator, ENCODERS[name].network(sizes)).save_pretrained(folder / name)
            write_official(folder / name, folder / f"{name}.pt", layout=name)
    write_official(folder / "e4e", folder / "rosinality.pt", layout="rosinality")
    state = {key: value.detach() for key, value in generator.state_dict().items()}
    (folder / "nvidia.pkl").write_bytes(nvidia_pickle(generator_to_nvidia(generator.config, state)))
    return folder


@pytest.fixture(params=ROADS)
def source(
    request: pytest.FixtureRequest, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path | str]:
    """What a user names at the end of a road: an official file, a folder of ours, or a name."""
    road, folder = request.param, tmp_path / "model"
    if road in FILES:
        yield files / road
    elif road == "converted and saved":
        assert cli.main(["convert", str(files / "e4e.pt"), str(folder)]) == 0
        yield PTIPipeline.from_pretrained(folder).save_pretrained(tmp_path / "again")
    elif road == "saved by psp":
        yield PSPPipeline.from_single_file(files / "psp.pt").save_pretrained(folder)
    elif road == "trained":
        (tmp_path / "pictures").mkdir()
        for i in range(4):
            Image.new("RGB", (64, 64), (60 * i, 90, 120)).save(tmp_path / "pictures" / f"{i}.png")
        sizes = {"resolution": 64, "z-dim": 8, "w-dim": 16, "mapping-layers": 2, "channel-base": 256, "channel-max": 8}
        run = ["--method", "gan", "--data", str(tmp_path / "pictures"), "--output", str(tmp_path / "run"), "--cpu"]
        run += [text for name, size in sizes.items() for text in (f"--generator.{name}", str(size))]
        few = "--steps 1 --batch-size 4 --num-workers 0 --image-every 100 --ada.kimg 0 --trackers"
        assert cli.main(["train", *run, *few.split()]) == 0
        yield tmp_path / "run" / "last"
    else:
        path, fake_hub = files / "e4e.pt", request.getfixturevalue("fake_hub")
        assert isinstance(fake_hub, FakeHub)
        names = ("test-e4e", "e4e", "", "", "", "hub", "org/repo", path.name)
        entry = CatalogueEntry(*names, size=path.stat().st_size, sha256=file_sha256(path))
        monkeypatch.setattr(find, "catalogue", lambda: (entry,))
        fake_hub.repositories["org/repo"] = {path.name: path.read_bytes()}
        yield "test-e4e"


def load(source: Path | str, **options: Any) -> PTIPipeline:
    is_file = isinstance(source, Path) and source.is_file()
    return (PTIPipeline.from_single_file if is_file else PTIPipeline.from_pretrained)(source, **options)


def check(out: InversionOutput, **expected: Any) -> None:
    report = out.reports[0]
    expected = {"perceptual": "alex", "lpips_threshold": 0.06, "tuning_steps": 8, "stopped_by": "steps", **expected}
    assert {name: report[name] for name in expected} == expected
    assert report["l2"] < report["l2_pivot"]


def test_a_road(source: Path | str, photo: Image.Image) -> None:
    pipeline = load(source)
    encoder = next((name for name in pipeline.pivots if name in ENCODERS), None)
    check(pipeline(photo, align=False, **STEPS), pivot="w", w_steps=2)
    check(pipeline(photo, align=False, preset="fast", **STEPS), pivot=encoder or "w", w_steps=0 if encoder else 2)


@pytest.mark.parametrize("name", ["e4e", "psp"])
def test_a_pivot_that_is_near_is_tuned_too(name: str, tmp_path: Path) -> None:
    """Of a trained model in an official file: its first pictures pass a threshold of another network's scale."""
    path = write_official(storage.builtin_path("faces64"), tmp_path / "file.pt", layout=name)
    pipeline = load(path, domain=Domain(crop_scale=0.74), detector="builtin")
    report = pipeline(sample_photos()[0], pivot=name, num_tuning_steps=6).reports[0]
    assert (report["perceptual"], report["lpips_threshold"], report["w_steps"]) == ("alex", 0.06, 0)
    assert report["tuning_steps"] > 1 and report["l2"] < report["l2_pivot"] < 0.03


@pytest.mark.parametrize("name", ["e4e", "psp"])
def test_settings_survive_a_round_trip_through_any_pipeline(name: str, files: Path, tmp_path: Path) -> None:
    kind = METHODS[name].pipeline
    shutil.copytree(files / name, tmp_path / "model")
    settings = {"perceptual": "alex", "tuning": {"learning_rate": 0.002, "lpips_threshold": 0.01}}
    config = {**storage.read_config(tmp_path / "model"), "pti": settings}
    config["domain"] = {"has_faces": True, "crop_scale": 0.7, "height": 1.0}
    storage.write_config(config, tmp_path / "model")
    saved = kind.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "saved")
    assert storage.read_config(saved) == config
    pti = PTIPipeline.from_pretrained(saved)
    assert (pti.tuning.learning_rate, pti.tuning.lpips_threshold, pti.crop_scale) == (0.002, 0.01, 0.7)
    again = pti.encoder_pipeline(name).save_pretrained(tmp_path / "again")
    assert PTIPipeline.from_pretrained(again).tuning == pti.tuning
    assert PTIPipeline.from_pretrained(pti.save_pretrained(tmp_path / "pti")).tuning == pti.tuning
    assert kind.from_pretrained(tmp_path / "pti").config["source"] == config["source"]


def test_a_perceptual_network_can_be_chosen(files: Path, photo: Image.Image) -> None:
    own = load(files / "e4e.pt").perceptual
    own.threshold, own.name = 10.0, None  # every picture is near enough
    for source in (files / "e4e.pt", files / "e4e"):
        assert load(source, perceptual="alex").perceptual.name == "alex"
        report = load(source, perceptual=own)(photo, align=False, **STEPS).reports[0]
        assert (report["perceptual"], report["lpips_threshold"]) == (None, 10.0)
        assert (report["tuning_steps"], report["stopped_by"]) == (1, "threshold")
        with pytest.raises(ValueError, match=r"`perceptual` must be one of alex, vgg, got 'squeeze'\."):
            load(source, perceptual="squeeze")
    with pytest.raises(ValueError, match=r"`perceptual` is for PTI; E4EPipeline optimises nothing\. Leave it out\."):
        E4EPipeline.from_pretrained(files / "e4e", perceptual="alex")
    with pytest.raises(ValueError, match=r"`perceptual` is for PTI; PSPPipeline optimises nothing"):
        PSPPipeline.from_single_file(files / "psp.pt", perceptual="alex")
