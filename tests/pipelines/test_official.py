import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stylegan_inversion import E4EPipeline, InversionOutput, PSPPipeline, PTIPipeline, hub
from stylegan_inversion.checkpoints import find
from stylegan_inversion.checkpoints.direction import components_to_ganspace
from stylegan_inversion.checkpoints.find import find_file
from stylegan_inversion.checkpoints.model_folder import write_model
from stylegan_inversion.checkpoints.part import Part, SingleFile
from stylegan_inversion.checkpoints.recognise import read_single_file
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.editing.ganspace import fit_pca
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import WEncoder, WEncoderConfig
from stylegan_inversion.pipelines.export import write_official

CLASSES = {"psp": PSPPipeline, "e4e": E4EPipeline}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """faces64 in the official layouts."""
    folder = tmp_path_factory.mktemp("official")
    layouts: tuple[Any, ...] = ("psp", "e4e", "rosinality", "nvidia")
    return {name: write_official("faces64", folder / f"{name}.pt", layout=name) for name in layouts}


@pytest.mark.parametrize("kind", ["psp", "e4e"])
def test_there_and_back(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    cls = CLASSES[kind]
    theirs, ours = cls.from_single_file(files[kind], crop_scale=0.74), cls.from_pretrained("faces64")
    assert isinstance(theirs, cls) and theirs.crop_scale == 0.74
    for a, b in ((theirs.generator, ours.generator), (theirs.encoder, ours.encoder)):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(a.state_dict()[key], value) for key, value in b.state_dict().items())
    photo = np.asarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)), np.uint8)
    assert torch.equal(theirs(photo, align=False).w_plus, ours(photo, align=False).w_plus)
    again = cls.from_pretrained(theirs.save_pretrained(tmp_path / "saved"))
    assert torch.equal(again(photo, align=False).w_plus, ours(photo, align=False).w_plus)


@pytest.mark.parametrize("kind", ["psp", "e4e", "rosinality", "nvidia"])
def test_pti_takes_the_generator_and_what_encoder_there_is(kind: str, files: dict[str, Path]) -> None:
    pipeline = PTIPipeline.from_single_file(files[kind])
    w = torch.randn(1, 10, 512, generator=torch.Generator().manual_seed(0))
    expected = PTIPipeline.from_pretrained("faces64").generator.synthesis(w)
    assert torch.equal(pipeline.generator.synthesis(w), expected)
    assert pipeline.pivots == ("w", "w_plus", *((kind,) if kind in CLASSES else ()))


def test_dtype_of_a_single_file(files: dict[str, Path]) -> None:
    pipeline = PSPPipeline.from_single_file(files["psp"], dtype=torch.bfloat16)
    assert {p.dtype for net in (pipeline.generator, pipeline.encoder) for p in net.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"torch.float32 or torch.float64"):
        PTIPipeline.from_single_file(files["psp"], dtype=torch.bfloat16)


def test_what_a_pipeline_cannot_take(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a checkpoint of psp, not of e4e: use the pipeline of psp"):
        E4EPipeline.from_single_file(files["psp"])
    with pytest.raises(CheckpointError, match=r"holds no encoder .*rosinality.* PTIPipeline needs the generator"):
        PSPPipeline.from_single_file(files["rosinality"])
    boundary = tmp_path / "smile.npy"
    np.save(boundary, np.eye(1, 512))
    with pytest.raises(CheckpointError, match=r"holds a direction, .* `pipeline.load_direction` reads it"):
        PTIPipeline.from_single_file(boundary)


def test_finding_a_file(files: dict[str, Path], tmp_path: Path) -> None:
    path = files["rosinality"]
    assert find_file(path, sha256=sha256(path)) == path
    with pytest.raises(CheckpointError, match=r"has not the sha256 0000.*another file, or damaged"):
        find_file(path, sha256="0" * 64)
    with pytest.raises(ModelNotFoundError, match=r"no file '.*gone.pt'"):
        find_file(tmp_path / "gone.pt")
    with pytest.raises(ModelNotFoundError, match=r"a folder: use from_pretrained"):
        find_file(tmp_path)
    with pytest.raises(ValueError, match=r"'hf://a/b' is not hf://organisation/repository/file"):
        find_file("hf://a/b")
    with pytest.raises(ValueError, match=r"give the `sha256` of the file too"):
        find_file("https://example.org/e4e.pt")
    with pytest.raises(ValueError, match=r"'ftp://.*' is neither a path nor an hf:// or https:// address"):
        find_file("ftp://example.org/e4e.pt")


def test_an_address_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def download(*args: Any, **options: Any) -> Path:
        asked.append((args, options["revision"], options["sha256"]))
        return tmp_path

    monkeypatch.setattr(find, "download_file", download)
    assert find_file("hf://org/repo@v1/folder/e4e.pt", sha256="abc") == tmp_path
    find_file("hf://org/repo/e4e.pt")
    assert asked == [(("org/repo", "folder/e4e.pt"), "v1", "abc"), (("org/repo", "e4e.pt"), None, None)]


@pytest.mark.parametrize("shape", [(1, 512), (1, 10, 512)])
def test_a_direction_of_the_field(shape: tuple[int, ...], tmp_path: Path) -> None:
    vector = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    vector /= vector.norm(dim=-1, keepdim=True)
    torch.save(vector, tmp_path / "age.pt")
    pipeline = PTIPipeline.from_pretrained("faces64")
    direction = pipeline.load_direction(tmp_path / "age.pt", "older", description="of the field")
    assert pipeline.directions["older"] is direction and direction.description == "of the field"
    w_plus = torch.zeros(1, 10, 512)
    assert torch.allclose(direction.apply(w_plus, 1.0)[0], vector.reshape(-1, 512).expand(10, 512), atol=1e-6)


def test_no_direction_of_this_generator(files: dict[str, Path], tmp_path: Path) -> None:
    pipeline = PTIPipeline.from_pretrained("faces64")
    np.save(tmp_path / "small.npy", np.eye(1, 16))
    with pytest.raises(CheckpointError, match=r"shape \(16,\); it must be \(512,\) or \(10, 512\)"):
        pipeline.load_direction(tmp_path / "small.npy", "small")
    with pytest.raises(CheckpointError, match=r"holds no single direction \(found: rosinality\)"):
        pipeline.load_direction(files["rosinality"], "smile")
    assert "small" not in pipeline.directions


def test_components(files: dict[str, Path], tmp_path: Path) -> None:
    principal = fit_pca(torch.randn(200, 512, generator=torch.Generator().manual_seed(0)), 12)
    torch.save(components_to_ganspace(principal), tmp_path / "ffhq_pca.pt")
    pipeline = PTIPipeline.from_pretrained("faces64")
    before = list(pipeline.directions)
    with pytest.raises(CheckpointError, match=r"\(found: ganspace\)\. `load_components` takes GANSpace's files"):
        pipeline.load_direction(tmp_path / "ffhq_pca.pt", "x")
    found = pipeline.load_components(tmp_path / "ffhq_pca.pt", layers=(2, 6))
    assert [direction.name for direction in found] == [f"ganspace_{k}" for k in range(1, 11)]
    assert list(pipeline.directions) == before + [direction.name for direction in found]
    w_plus = torch.zeros(1, 10, 512)
    moved = pipeline.directions["ganspace_3"].apply(w_plus, 2 * float(principal.std[2]))
    expected = torch.zeros(1, 10, 512)
    expected[:, 2:6] = 2 * principal.std[2] * principal.components[2]
    assert torch.allclose(moved, expected, atol=1e-6)
    low, high = found[2].strength_range or (0, 0)
    assert low == -high and high == pytest.approx(2 * float(principal.std[2]), rel=0.05)
    (first,) = pipeline.load_components(tmp_path / "ffhq_pca.pt", count=1, name="cars")
    assert first.name == "cars_1" and first.layers is None and "cars_1" in pipeline.directions
    assert list(load_directions(pipeline.save_pretrained(tmp_path / "saved") / "directions")) == list(
        pipeline.directions
    )


def test_components_that_cannot_be_taken(files: dict[str, Path], tmp_path: Path) -> None:
    pipeline = PTIPipeline.from_pretrained("faces64")
    before = list(pipeline.directions)
    small = fit_pca(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), 3)
    torch.save(components_to_ganspace(small), tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match=r"components of 8 numbers; this generator's w have 512"):
        pipeline.load_components(tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match=r"holds no components of GANSpace \(found: rosinality\)"):
        pipeline.load_components(files["rosinality"])
    with pytest.raises(ValueError, match="`count` must be at least 1, got 0"):
        pipeline.load_components(tmp_path / "small.pt", count=0)
    with pytest.raises(
        ValueError, match=r"`layers` must be \(start, stop\) with 0 <= start < stop <= 10, got \(2, 18\)"
    ):
        pipeline.load_components(tmp_path / "small.pt", layers=(2, 18))
    assert list(pipeline.directions) == before


def test_models_of_single_files(files: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("psp", "e4e", "rosinality"):
        folder = write_model(read_single_file(files[kind]), tmp_path / kind)
        assert hub.read_config(folder)["_class_name"] == {"psp": "PSPPipeline", "e4e": "E4EPipeline"}.get(
            kind, "PTIPipeline"
        )
        (CLASSES.get(kind) or PTIPipeline).from_pretrained(folder)
    np.save(tmp_path / "boundary.npy", np.eye(1, 512))
    write_model(read_single_file(tmp_path / "boundary.npy"), tmp_path / "directions", name="pose")
    assert list(load_directions(tmp_path / "directions")) == ["pose"]


def test_what_has_no_form_in_a_folder(tmp_path: Path) -> None:
    torch.save(
        {"mean": torch.zeros(1, 512), "comp": torch.eye(512)[:3, None], "std": torch.ones(3)}, tmp_path / "ganspace.pt"
    )
    with pytest.raises(CheckpointError, match=r"kind ganspace has no form in a folder"):
        write_model(read_single_file(tmp_path / "ganspace.pt"), tmp_path / "model")


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"variant": "fp16"}])
def test_inversions_of_other_numbers_can_be_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    model = E4EPipeline.from_pretrained("faces64").save_pretrained(tmp_path / "model", variant=options.get("variant"))
    pipeline = E4EPipeline.from_pretrained(model, **options)
    out = pipeline(np.zeros((64, 64, 3), np.uint8), align=False)
    out.save(tmp_path / "out")
    again = InversionOutput.load(tmp_path / "out")
    assert torch.equal(again.w_plus.float(), out.w_plus.float())
    assert np.abs(np.asarray(again.images[0], int) - np.asarray(out.images[0], int)).max() <= 8


def test_an_encoder_into_w(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read_single_file(files["psp"])
    w_encoder = WEncoder(WEncoderConfig(widths=(8, 8, 8, 8), units=(1, 1, 1, 1), reduction=4))
    part = Part(WEncoder, w_encoder.config, w_encoder.state_dict())
    into_w = SingleFile("psp", {**file.parts, "encoder": part})
    assert PTIPipeline._from_file(into_w, None).pivots == ("w", "w_plus")
    folder = write_model(into_w, tmp_path / "model", crop_scale=0.74)
    assert hub.read_config(folder)["_class_name"] == "PTIPipeline" and not (folder / "psp_encoder").exists()
    assert PTIPipeline.from_pretrained(folder).crop_scale == 0.74


def test_layouts_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`layout` must be one of psp, e4e, rosinality, nvidia, got 'tf'"):
        write_official("faces64", tmp_path / "x.pt", layout="tf")  # type: ignore[arg-type]
    hub.save_module(Generator(GeneratorConfig(16, 8, 8, 2, channel_base=128, channel_max=8)), tmp_path / "m/generator")
    hub.write_config({}, tmp_path / "m")
    with pytest.raises(ModelNotFoundError, match=r"holds no encoder of e4e \(folder 'e4e_encoder'\)"):
        write_official(tmp_path / "m", tmp_path / "x.pt", layout="e4e")
    assert not (tmp_path / "x.pt").exists()
