"""The papers' directions come with every generator that they were found in. All files are small ones of ours."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_inversion import E4EPipeline, PTIPipeline, cli
from stylegan_inversion.catalogue import CatalogueEntry
from stylegan_inversion.checkpoints import direction, find
from stylegan_inversion.checkpoints.direction import style_directions
from stylegan_inversion.checkpoints.export import write_official
from stylegan_inversion.checkpoints.find import find_folder
from stylegan_inversion.checkpoints.generator import generator_to_rosinality
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from tests.checkpoints.official_files import TINY, generator, official
from tests.checkpoints.public_directions import LAYOUTS, Rows, make_direction, publish, save_direction
from tests.conftest import make_pti

NUM_WS, W_DIM = TINY.num_ws, TINY.w_dim
SPREAD = torch.linspace(3, 1, 4)
NAMES = ["age", "smile", "pose", "ganspace_1", "ganspace_2", "ganspace_3", "ganspace_4"]


def w_avg() -> Tensor:
    return generator()[1]["w_avg"]


def make_files(mean: Tensor | None = None, *, w_dim: int = W_DIM) -> dict[str, Any]:
    """Directions that are of unit norm within a hundredth only, and components around a mean."""
    mean = torch.zeros(w_dim) if mean is None else mean
    return {
        "direction-ffhq-age": make_direction((1, w_dim), "one", 1.007, w_dim=w_dim, seed=1).float(),
        "direction-ffhq-smile": make_direction((1, w_dim), "one", 1.0, w_dim=w_dim, seed=2).float(),
        "direction-ffhq-pose": make_direction((1, NUM_WS, w_dim), "own", 1.0, w_dim=w_dim, seed=3).float(),
        "direction-ffhq-rotation": make_direction((1, w_dim), "one", 1.0, w_dim=w_dim, seed=4).float(),
        "ganspace-ffhq": {"mean": mean[None], "comp": torch.eye(w_dim)[:4, None], "std": SPREAD},
    }


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def e4e(tmp_path: Path) -> Path:
    """Of a training on `ffhq_encode`, at 64 px."""
    torch.save(official("e4e"), tmp_path / "e4e_ffhq_encode.pt")
    return tmp_path / "e4e_ffhq_encode.pt"


@pytest.fixture
def rosinality(tmp_path: Path) -> Path:
    """A generator that says nothing of what it draws, but for its average w."""
    tensors, latent_avg = generator_to_rosinality(*generator())
    torch.save({"g_ema": tensors, "latent_avg": latent_avg}, tmp_path / "g.pt")
    return tmp_path / "g.pt"


def test_the_strengths_are_those_of_the_papers_code(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e4e = write_official(find_folder("faces64"), tmp_path / "e4e_ffhq_encode.pt", layout="e4e")
    checkpoint = torch.load(e4e)
    checkpoint["opts"]["dataset_type"] = "ffhq_encode"
    torch.save(checkpoint, e4e)
    files = make_files(w_dim=512)
    server = publish(monkeypatch, files, resolution=64)
    pipeline = E4EPipeline.from_single_file(e4e, cache_dir=cache)
    assert list(pipeline.directions) == NAMES and len(server.asked) == 4  # rotation only if it is asked for
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    out = pipeline(photo, align=False)
    saved = E4EPipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "saved"))
    for name, factor in (("age", -3.0), ("smile", 2.0), ("pose", 4.0)):
        expected = out.w_plus + factor * files[f"direction-ffhq-{name}"]  # as their code does, whatever the norm
        torch.testing.assert_close(pipeline.edit(out, **{name: factor}).w_plus, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(saved.edit(out, **{name: factor}).w_plus, expected, rtol=1e-5, atol=1e-5)
    ranges = {name: pipeline.directions[name].strength_range for name in NAMES[:4]}
    assert ranges == {"age": (-10, 10), "smile": (-5, 5), "pose": (-7, 7), "ganspace_1": (-6, 6)}
    both = pipeline.edit(out, smile=2, age=-3)
    assert both.images[0].size == pipeline.paste_back(both)[0].size == (64, 64)
    assert {name: each.strength_range for name, each in saved.directions.items()} == {
        name: each.strength_range for name, each in pipeline.directions.items()
    }


def test_a_model_of_the_catalogue_brings_them(
    e4e: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({**official("e4e"), "opts": {"encoder_type": "Encoder4Editing"}}, e4e)  # the entry alone tells
    entry = CatalogueEntry("e4e-ffhq-64", "e4e", "", "", "", repository="o/r", file=e4e.name, domain="ffhq-64")
    server = publish(monkeypatch, make_files(), models=(entry,), resolution=64)
    fetch = find.fetch
    monkeypatch.setattr(find, "fetch", lambda one, access: e4e if one == entry else fetch(one, access))
    monkeypatch.setattr(find, "remove", lambda path: None)
    server.down = True
    first = E4EPipeline.from_pretrained("e4e-ffhq-64", cache_dir=cache)  # it loads all the same
    assert not first.directions and len(server.asked) == 1 and len(caplog.records) == 1
    assert caplog.messages[0].startswith(
        "The directions of e4e-ffhq-64 are missing (age, smile, pose, ganspace): https://raw.githubusercontent.com/"
    )
    assert "no route to host" in caplog.messages[0] and "loaded again with a network" in caplog.messages[0]
    caplog.clear()
    server.down = False
    again = E4EPipeline.from_pretrained("e4e-ffhq-64", cache_dir=cache)  # nobody waits for the network twice
    assert not again.directions and len(server.asked) == 1 and len(caplog.records) == 1
    assert "no route to host" in caplog.messages[0] and "Only a new process tries again." in caplog.messages[0]
    caplog.clear()
    monkeypatch.setattr(find, "_failed", [])
    online = E4EPipeline.from_pretrained("e4e-ffhq-64", cache_dir=cache)
    assert list(online.directions) == NAMES and not caplog.records
    asked, server.down = len(server.asked), True  # they travel with the conversion
    assert list(E4EPipeline.from_pretrained("e4e-ffhq-64", cache_dir=cache).directions) == NAMES
    assert len(server.asked) == asked and not caplog.records


@pytest.mark.parametrize(("distance", "near"), [(0.05, True), (0.2, False)])
def test_a_generator_is_known_by_its_average_w(
    distance: float, near: bool, rosinality: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = torch.eye(W_DIM)[5] * distance * SPREAD.norm()
    server = publish(monkeypatch, make_files(w_avg() + away), resolution=64)
    pipeline = PTIPipeline.from_single_file(rosinality, cache_dir=cache)
    assert list(pipeline.directions) == (NAMES if near else []) and len(server.asked) == (4 if near else 1)
    server.down = True  # the second time nothing is asked
    assert list(PTIPipeline.from_single_file(rosinality, cache_dir=cache).directions) == (NAMES if near else [])


def test_a_generator_that_cannot_be_known(
    rosinality: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = publish(monkeypatch, make_files(w_avg()), resolution=64)
    assert not PTIPipeline.from_single_file(rosinality, cache_dir=cache, local_files_only=True).directions
    assert not server.asked and len(caplog.records) == 1 and "the network may not be used" in caplog.messages[0]
    assert caplog.messages[0].startswith("If g.pt draws FFHQ's faces, its directions are missing (age, smile, pose,")
    caplog.clear()
    monkeypatch.undo()
    publish(monkeypatch, make_files(w_avg()), resolution=128)  # another resolution: nothing is asked or said
    with caplog.at_level(logging.INFO):
        assert not PTIPipeline.from_single_file(rosinality, cache_dir=cache).directions
    assert not caplog.records


def test_a_direction_of_the_catalogue_by_its_name_and_the_command(
    e4e: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = make_files()
    publish(monkeypatch, files, resolution=64)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    pipeline = make_pti(Generator(TINY))
    direction = pipeline.load_direction("direction-ffhq-rotation", "rotation")
    torch.testing.assert_close(direction.step, files["direction-ffhq-rotation"][0])
    assert direction.strength_range == (-7, 7) and direction.description.startswith("Rotation of FFHQ faces")
    assert cli.main(["convert", str(e4e), str(tmp_path / "model")]) == 0
    assert cli.main(["directions", "--model", str(tmp_path / "model")]) == 0
    printed = capsys.readouterr().out
    assert "age        -10.0 to +10.0  Age of FFHQ faces, by InterFaceGAN (omertov/encoder4editing, MIT)" in printed


@pytest.fixture(scope="module")
def ffhq() -> PTIPipeline:
    """The real sizes of w, in 1024 px, with next to no channels."""
    return make_pti(Generator(GeneratorConfig(1024, 8, 512, 1, channel_base=1024, channel_max=1)))


@pytest.mark.parametrize(("name", "shape", "dtype", "rows", "norm"), LAYOUTS, ids=[layout[0] for layout in LAYOUTS])
def test_every_public_direction_is_read(
    name: str, shape: tuple[int, ...], dtype: str, rows: Rows, norm: float, ffhq: PTIPipeline, tmp_path: Path
) -> None:
    tensor = make_direction(shape, rows, norm)
    path = save_direction(tensor, tmp_path / name, dtype)
    direction = ffhq.load_direction(path, "edit")
    w_plus = torch.randn(1, 18, 512, generator=torch.Generator().manual_seed(9))
    expected = w_plus + 3 * tensor.float().reshape(-1, 512)
    torch.testing.assert_close(direction.apply(w_plus, 3.0), expected)
    assert direction.unit == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(ffhq.load_direction(path, "edit", unit=1.0).step, direction.step / norm)
    assert cli.main(["convert", str(path), str(tmp_path / "folder"), "--name", "edit"]) == 0
    torch.testing.assert_close(load_directions(tmp_path / "folder")["edit"].step, direction.step)


def test_equal_rows_and_dictionaries(ffhq: PTIPipeline, tmp_path: Path) -> None:
    same = make_direction((18, 512), "equal", 2.5)
    assert ffhq.load_direction(save_direction(same, tmp_path / "same.npy", "float64"), "same").vector.shape == (512,)
    torch.save({"age": same.float(), "pose": make_direction((1, 18, 512), "own", 1.0).float()}, tmp_path / "two.pt")
    assert ffhq.load_direction(tmp_path / "two.pt", "pose").vector.shape == (18, 512)
    with pytest.raises(CheckpointError, match=r"no single direction .* It holds age, pose: say which by `name`"):
        ffhq.load_direction(tmp_path / "two.pt", "other")
    torch.save({"direction": same.float(), "comment": "text"}, tmp_path / "one.pt")
    assert ffhq.load_direction(tmp_path / "one.pt", "anything").unit == pytest.approx(2.5)
    with pytest.raises(ValueError, match=r"`unit` of direction 'same' must be a number in .*, got -1"):
        ffhq.load_direction(tmp_path / "same.npy", "same", unit=-1.0)


def test_the_published_channels_need_no_network(
    e4e: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At full size each stands where StyleSpace counts it; then the road, with a list for a small generator."""
    found = style_directions("ffhq-1024", GeneratorConfig())
    layers = dict(enumerate(found["glasses"].step.split(GeneratorConfig().style_sizes)))
    where = {(layer, int(channel)) for layer, row in layers.items() for channel in row.nonzero()}
    assert where == {(2, 288), (1, 175), (2, 120), (1, 97)}  # (3, 288), (2, 175), ... with the ToRGB layers
    assert found["glasses"].strength_range == (-10, 10) and found["glasses"].step.max().item() == pytest.approx(3)
    assert found["lipstick"].step.nonzero().item() == sum(GeneratorConfig().style_sizes[:10]) + 45
    assert found["gender"].strength_range == (-10, 7) and found["lipstick"].strength_range is None
    assert not style_directions("ffhq-1024", GeneratorConfig(channel_base=16384)) and not style_directions(None, TINY)

    numbers = {TINY.resolution: TINY.style_sizes}
    listed = {f"ffhq-{TINY.resolution}": [{"name": "glasses", "channels": [[3, 1]], "description": "Off."}]}
    (tmp_path / "stylespace.json").write_text(json.dumps(listed))
    own = {"stylespace.json": tmp_path / "stylespace.json"}
    there = direction.storage.builtin_path
    monkeypatch.setattr(direction.storage, "builtin_path", lambda name: own.get(name) or there(name))
    monkeypatch.setattr(
        direction, "GeneratorConfig", lambda resolution: SimpleNamespace(style_sizes=numbers[resolution])
    )
    server = publish(monkeypatch, make_files(), resolution=64)
    server.down = True
    from_file = E4EPipeline.from_single_file(e4e, cache_dir=cache)
    assert [*from_file.directions] == ["glasses"] and from_file.directions["glasses"].space == "s"
    folder = from_file.save_pretrained(tmp_path / "plain")
    shutil.rmtree(folder / "directions")  # as a version without them wrote it
    assert [*E4EPipeline.from_pretrained(folder).directions] == ["glasses"]
    assert E4EPipeline.from_pretrained(folder).config["dataset"] == "ffhq-64"
    assert cli.main(["convert", str(e4e), str(tmp_path / "converted")]) == 0
    shutil.rmtree(tmp_path / "converted" / "directions")
    assert [*E4EPipeline.from_pretrained(tmp_path / "converted").directions] == ["glasses"]
    entry = CatalogueEntry("e4e-ffhq-64", "e4e", "", "", "", repository="o/r", file=e4e.name, domain="ffhq-64")
    publish(monkeypatch, make_files(), models=(entry,), resolution=64).down = True
    monkeypatch.setattr(find, "fetch", lambda one, access: e4e if one == entry else _refuse())
    monkeypatch.setattr(find, "remove", lambda path: None)
    named = E4EPipeline.from_pretrained("e4e-ffhq-64", cache_dir=cache)
    assert [*named.directions] == ["glasses"] and not [*cache.rglob("directions")]  # so the others may still come
    saved = named.save_pretrained(tmp_path / "saved")
    assert cli.main(["directions", "--model", str(saved)]) == 0 and "glasses" in capsys.readouterr().out


def _refuse() -> Path:
    raise ModelNotFoundError("no route to host")
