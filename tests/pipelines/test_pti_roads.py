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

from stylegan_inversion import E4EPipeline, InversionOutput, PSPPipeline, PTIPipeline, cli, hub
from stylegan_inversion.catalogue import CatalogueEntry
from stylegan_inversion.checkpoints import find
from stylegan_inversion.checkpoints.export import write_official
from stylegan_inversion.checkpoints.generator import generator_to_nvidia
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.remote import file_sha256
from tests.checkpoints.official_files import nvidia_pickle
from tests.fake_hub import hub_client, serve

STEPS: dict[str, Any] = {"num_w_steps": 2, "num_tuning_steps": 8}
FILES = ("e4e.pt", "psp.pt", "rosinality.pt", "nvidia.pkl")
ROADS = (*FILES, "converted", "converted and saved", "saved by e4e", "saved by psp", "catalogue", "trained")


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
        e4e, psp = E4EPipeline(generator, Encoder4Editing(sizes)), PSPPipeline(generator, GradualStyleEncoder(sizes))
    for name, pipeline in (("e4e", e4e), ("psp", psp)):
        write_official(pipeline.save_pretrained(folder / name), folder / f"{name}.pt", layout=name)  # type: ignore[arg-type]
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
    elif road.startswith("converted"):
        assert cli.main(["convert", str(files / "e4e.pt"), str(folder)]) == 0
        yield PTIPipeline.from_pretrained(folder).save_pretrained(tmp_path / "again") if "saved" in road else folder
    elif road == "saved by e4e":
        yield E4EPipeline.from_single_file(files / "e4e.pt").save_pretrained(folder)
    elif road == "saved by psp":
        yield PSPPipeline.from_single_file(files / "psp.pt").save_pretrained(folder)
    elif road == "trained":
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        for i in range(4):
            Image.new("RGB", (64, 64), (60 * i, 90, 120)).save(pictures / f"{i}.png")
        sizes = {"resolution": 64, "z-dim": 8, "w-dim": 16, "mapping-layers": 2, "channel-base": 256, "channel-max": 8}
        run = ["--method", "gan", "--data", str(pictures), "--output", str(tmp_path / "run"), "--steps", "1"]
        run += [text for name, size in sizes.items() for text in (f"--generator.{name}", str(size))]
        few = ["--batch-size", "4", "--cpu", "--num-workers", "0", "--image-every", "100", "--ada.kimg", "0"]
        assert cli.main(["train", *run, *few, "--trackers"]) == 0
        yield tmp_path / "run" / "last"
    else:
        path = files / "e4e.pt"
        entry = CatalogueEntry(
            *("test-e4e", "e4e", "", "", "", "hub", "org/repo", path.name),
            size=path.stat().st_size,
            sha256=file_sha256(path),
        )
        monkeypatch.setattr(find, "catalogue", lambda: (entry,))
        with serve() as server, hub_client(server, tmp_path / "cache"):
            server.repositories["org/repo"] = {path.name: path.read_bytes()}
            yield "test-e4e"


def load(source: Path | str, **options: Any) -> PTIPipeline:
    is_file = isinstance(source, Path) and source.is_file()
    return (PTIPipeline.from_single_file if is_file else PTIPipeline.from_pretrained)(source, **options)


def check(out: InversionOutput, **expected: Any) -> None:
    report = out.reports[0]
    expected = {"perceptual": "alex", "lpips_threshold": 0.06, "tuning_steps": 8, "stopped_by": "steps", **expected}
    assert {name: report[name] for name in expected} == expected
    print(f"{report['tuning_steps']} steps, L2 {report['l2_pivot']:.4f} -> {report['l2']:.4f}")  # `pytest -rP` shows it
    assert report["l2"] < report["l2_pivot"]


def test_a_road(source: Path | str, photo: Image.Image) -> None:
    pipeline = load(source)
    check(pipeline(photo, align=False, **STEPS))
    for encoder in set(pipeline.pivots) - {"w", "w_plus"}:
        check(pipeline(photo, align=False, pivot=encoder, **STEPS), w_steps=0)  # type: ignore[arg-type]


def test_a_road_in_the_app(source: Path | str, photo: Image.Image) -> None:
    pytest.importorskip("gradio")
    from stylegan_inversion.webapp.models import Models, load_model, make_model
    from stylegan_inversion.webapp.studio import Studio, Visit

    is_file = isinstance(source, Path) and source.is_file()
    model = make_model(load(source), name="file") if is_file else load_model(source, device="cpu")
    crop = model.tuner.align(photo, align=False)
    *_, last = Studio(Models(model)).tune(Visit(), crop, preset="fast", **STEPS)
    assert last.output is not None
    pivot = next((name for name in ("e4e", "psp") if name in model.pipelines), "w")
    check(last.output, pivot=pivot, w_steps=2 if pivot == "w" else 0)


@pytest.mark.parametrize("name", ["e4e", "psp"])
def test_a_pivot_that_is_near_is_tuned_too(name: Any, tmp_path: Path) -> None:
    """Of a trained model in an official file: its first pictures pass a threshold of another network's scale."""
    pipeline = load(
        write_official(hub.builtin_path("faces64"), tmp_path / "file.pt", layout=name),
        crop_scale=0.74,
        detector="builtin",
    )
    report = pipeline(sample_photos()[0], pivot=name, num_tuning_steps=6).reports[0]
    assert (report["perceptual"], report["lpips_threshold"], report["w_steps"]) == ("alex", 0.06, 0)
    assert report["tuning_steps"] > 1 and report["l2"] < report["l2_pivot"] < 0.03


def test_the_walk_can_fail(files: Path, photo: Image.Image) -> None:
    pipeline = load(files / "rosinality.pt")
    pipeline.perceptual.threshold = 10.0  # every picture is near enough
    report = pipeline(photo, align=False, **STEPS).reports[0]
    assert (report["tuning_steps"], report["stopped_by"], report["lpips_threshold"]) == (1, "threshold", 10.0)


@pytest.mark.parametrize("kind", [E4EPipeline, PSPPipeline])
def test_settings_survive_a_round_trip_through_any_pipeline(
    kind: type[E4EPipeline | PSPPipeline], files: Path, tmp_path: Path
) -> None:
    name = "e4e" if kind is E4EPipeline else "psp"
    shutil.copytree(files / name, tmp_path / "model")
    settings = {"perceptual": "alex", "tuning": {"learning_rate": 0.002, "lpips_threshold": 0.01}}
    config = {**hub.read_config(tmp_path / "model"), "pti": settings, "crop_scale": 0.7}
    hub.write_config(config, tmp_path / "model")
    saved = kind.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "saved")
    assert hub.read_config(saved) == {**config, "_library_version": hub.read_config(saved)["_library_version"]}
    pti = PTIPipeline.from_pretrained(saved)
    assert (pti.tuning.learning_rate, pti.tuning.lpips_threshold, pti.crop_scale) == (0.002, 0.01, 0.7)
    again = pti.encoder_pipeline(name).save_pretrained(tmp_path / "again")
    assert PTIPipeline.from_pretrained(again).tuning == pti.tuning
    assert PTIPipeline.from_pretrained(pti.save_pretrained(tmp_path / "pti")).tuning == pti.tuning
    assert type(kind.from_pretrained(tmp_path / "pti").source) is type(kind.from_pretrained(saved).source)


def test_a_perceptual_network_can_be_chosen(files: Path, photo: Image.Image, tmp_path: Path) -> None:
    own = load(files / "e4e.pt").perceptual
    own.threshold, own.name = 0.5, None
    for source in (files / "e4e.pt", files / "e4e"):
        assert load(source, perceptual="alex").perceptual.name == "alex"
        report = load(source, perceptual=own)(photo, align=False, num_w_steps=1, num_tuning_steps=1).reports[0]
        assert (report["perceptual"], report["lpips_threshold"]) == (None, 0.5)
        with pytest.raises(ValueError, match=r"`perceptual` must be one of alex, vgg, got 'squeeze'\."):
            load(source, perceptual="squeeze")
    with pytest.raises(ValueError, match=r"`perceptual` is for PTI; E4EPipeline optimises nothing\. Leave it out\."):
        E4EPipeline.from_pretrained(files / "e4e", perceptual="alex")
    with pytest.raises(ValueError, match=r"`perceptual` is for PTI; PSPPipeline optimises nothing"):
        PSPPipeline.from_single_file(files / "psp.pt", perceptual="alex")
