"""Roads to a model and back: folders, variants, the Hub, official files, directions of the field."""

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import E4EPipeline, InversionOutput, PSPPipeline, PTIPipeline, storage
from stylegan_inversion.checkpoints.export import write_model, write_official
from stylegan_inversion.checkpoints.find import find_file
from stylegan_inversion.checkpoints.recognise import read_single_file
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.editing.ganspace import PrincipalComponents, fit_pca
from stylegan_inversion.editing.text_directions import Relevance
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError
from stylegan_inversion.hub import file_sha256
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.preprocessing.domain import Domain
from tests.fake_hub import FakeHub

GREY = Image.new("RGB", (64, 64), (120, 100, 90))


# Folders


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype(e4e: E4EPipeline, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = e4e.save_pretrained(tmp_path / "model")
    pipe = E4EPipeline.from_pretrained(pretrained_model_name_or_path=folder, dtype=dtype)
    assert pipe.dtype == dtype and {p.dtype for p in pipe.encoder.parameters()} == {dtype}
    out, expected = pipe(GREY, align=False), e4e(GREY, align=False)
    assert out.w_plus.dtype == torch.float32 and not torch.equal(out.w_plus, expected.w_plus)
    assert (out.w_plus - expected.w_plus).norm() / expected.w_plus.norm() < 0.05
    assert pipe.edit(out, smile=1.0).images[0].size == (32, 32)
    moved = E4EPipeline.from_pretrained(tmp_path / "model")
    assert moved.base_name is not None and moved.to(dtype).dtype == dtype
    assert (moved.base_name is None) == (dtype != torch.float64)  # whether its generator has other numbers now
    assert torch.equal(moved(GREY, align=False).w_plus, out.w_plus)


@pytest.mark.parametrize("args", [(torch.float64,), ("cpu", torch.float64), (torch.device("cpu"), torch.float64), ()])
def test_to(both: PTIPipeline, tmp_path: Path, args: tuple[Any, ...]) -> None:
    """As PyTorch's and diffusers': every network goes along, and those that are loaded later."""
    folder = both.save_pretrained(tmp_path / "model")
    options = {} if args else {"device": "cpu", "dtype": torch.float64}
    for cls in (E4EPipeline, PTIPipeline):
        pipe: Any = cls.from_pretrained(folder)
        assert pipe.to(*args, **options) is pipe
        call = functools.partial(pipe, GREY, align=False, **({"pivot": "e4e"} if cls is PTIPipeline else {}))
        assert call().generator.w_avg.dtype == torch.float64
        assert {p.dtype for network in pipe.networks for p in network.parameters()} == {torch.float64}
        assert pipe.to("cpu").to().to(None).dtype == torch.float64
        pipe.to(torch.float32)  # an encoder of PTI's that is there already
        assert call().w_plus.shape == (1, 8, 16)
        assert {p.dtype for network in pipe.networks for p in network.parameters()} == {torch.float32}


def test_parts_are_shared_and_shown(e4e: E4EPipeline, pti: PTIPipeline) -> None:
    for pipe in (e4e, pti):
        sibling = type(pipe)(**pipe.components)  # type: ignore[arg-type]
        assert sibling.generator is pipe.generator and sibling.crop_scale == pipe.crop_scale
        assert sibling.networks == pipe.networks and sibling.directions == pipe.directions
    assert repr(e4e) == "E4EPipeline(Generator, Encoder4Editing; 32 x 32 px; directions: smile, age; float32 on cpu)"


def test_variants(e4e: E4EPipeline, tmp_path: Path) -> None:
    folder = e4e.save_pretrained(tmp_path / "model")
    e4e.save_pretrained(folder, variant="fp16")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    parts = ("generator", "e4e_encoder")
    weights = {f"{part}/model{v}.safetensors" for part in parts for v in ("", ".fp16")}
    assert names == weights | {"directions/model.safetensors"}
    half = storage.read_tensors(folder / "generator" / "model.fp16.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    pipe = E4EPipeline.from_pretrained(folder, variant="fp16")
    assert pipe.dtype == torch.float32 and pipe.directions.keys() == e4e.directions.keys()
    assert torch.equal(pipe.generator.w_avg, e4e.generator.w_avg.half().float())
    assert torch.equal(E4EPipeline.from_pretrained(folder).generator.w_avg, e4e.generator.w_avg)
    with pytest.raises(CheckpointError, match=r"generator has no variant 'fp8' \(model.fp8.safetensors\); leave"):
        E4EPipeline.from_pretrained(folder, variant="fp8")
    (folder / "generator" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"generator has variants alone: give variant='fp16'\."):
        E4EPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"`variant` must be a word such as 'fp16', got '\.\./x'\."):
        e4e.save_pretrained(folder, variant="../x")
    e4e.generator.w_avg.fill_(1e6)
    with pytest.raises(ValueError, match=r"`dtype` torch.float16 cannot hold the weights of this Generator\."):
        e4e.save_pretrained(folder, variant="fp16")
    assert torch.isfinite(storage.read_tensors(folder / "generator" / "model.fp16.safetensors")["w_avg"]).all()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client
def test_what_texts_need_travels_along(both: PTIPipeline, fake_hub: FakeHub, tmp_path: Path) -> None:
    folder, count = both.save_pretrained(tmp_path / "model"), sum(both.generator.config.style_sizes)
    Relevance(torch.eye(count, 8), torch.ones(count), "x").save(folder / "relevance")
    pipe = PTIPipeline.from_pretrained(folder)
    shutil.rmtree(folder / "relevance")
    pipe.save_pretrained(folder)
    pipe.encoder_pipeline("e4e").save_pretrained(tmp_path / "encoder")
    pipe.push_to_hub("org/mine", token="write", variant="fp16")
    half = PTIPipeline.from_pretrained("org/mine", variant="fp16").save_pretrained(tmp_path / "half")
    for each in (folder, tmp_path / "encoder", half):
        assert torch.equal(Relevance.load(each / "relevance", both.generator).rows, torch.eye(count, 8)), each


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"variant": "fp16"}])
def test_inversions_of_other_numbers_can_be_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    model = E4EPipeline.from_pretrained("faces64").save_pretrained(tmp_path / "model", variant=options.get("variant"))
    out = E4EPipeline.from_pretrained(model, **options)(np.zeros((64, 64, 3), np.uint8), align=False)
    again = InversionOutput.load(out.save(tmp_path / "out"))
    assert torch.equal(again.w_plus.float(), out.w_plus.float())
    assert np.abs(np.asarray(again.images[0], int) - np.asarray(out.images[0], int)).max() <= 8


# The Hub


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client
def test_through_the_hub_and_back(e4e: E4EPipeline, fake_hub: FakeHub, photo: Image.Image, detector: Any) -> None:
    with pytest.raises(UploadError, match="'org/mine' could not be uploaded"):
        e4e.push_to_hub("org/mine", token="wrong")
    assert not fake_hub.repositories
    address = e4e.push_to_hub("org/mine", token="write", private=True, license="mit", metrics={"l2": 0.25})
    assert address.startswith(fake_hub.url)
    e4e.push_to_hub("org/mine", token="write", variant="fp16")
    files = fake_hub.repositories["org/mine"]
    files["code.py"] = b"raise SystemExit"
    assert {"README.md", "config.json", "generator/model.safetensors", "generator/model.fp16.safetensors"} <= set(files)
    assert b'from_pretrained("org/mine")' in files["README.md"] and b"license: mit" in files["README.md"]
    assert b"| l2 | 0.25 |" in files["README.md"]

    pipe = E4EPipeline.from_pretrained("org/mine", detector=detector)
    asked = [path for method, path in fake_hub.log if method == "GET" and "/resolve/" in path]
    assert asked and not any("fp16" in path or path.endswith((".md", ".py")) for path in asked)
    half = E4EPipeline.from_pretrained("org/mine", variant="fp16", detector=detector)
    assert torch.equal(half.generator.w_avg, e4e.generator.w_avg.half().float())
    assert half.directions.keys() == e4e.directions.keys()
    assert pipe(photo).base.name.revision == "1" * 40  # type: ignore[union-attr]


def test_each_argument_of_a_download(e4e: E4EPipeline, fake_hub: FakeHub, tmp_path: Path) -> None:
    e4e.save_pretrained(tmp_path / "source" / "inner")
    fake_hub.add("org/mine", tmp_path / "source")
    fake_hub.tokens["org/mine"] = "read"
    fake_hub.branches.add("v2")
    load = functools.partial(E4EPipeline.from_pretrained, "org/mine", subfolder="inner")
    weights = "inner/generator/model.safetensors"
    for options in ({"token": False}, {"token": "read", "subfolder": None}, {"token": "read", "revision": "v1"}):
        with pytest.raises(ModelNotFoundError, match=r"org/mine|config\.json"):
            load(**options)
    pipe = load(token="read", device="cpu")
    assert torch.equal(pipe.generator.w_avg, e4e.generator.w_avg) and pipe.device.type == "cpu"
    load(token="read")
    assert pipe.directions.keys() == e4e.directions.keys() and fake_hub.gets(weights) == 1
    load(token="read", force_download=True)
    assert fake_hub.gets(weights) == 2
    load(token="read", cache_dir=tmp_path / "elsewhere")
    assert fake_hub.gets(weights) == 3 and list((tmp_path / "elsewhere").rglob("inner/generator/model.safetensors"))
    load(token="read", revision="v2")
    assert any("/revision/v2" in path or "/tree/v2" in path for _, path in fake_hub.log)

    asked = len(fake_hub.log)
    assert torch.equal(load(local_files_only=True).generator.w_avg, e4e.generator.w_avg)
    with pytest.raises(ModelNotFoundError, match="org/mine"):
        load(local_files_only=True, cache_dir=tmp_path / "empty")
    assert len(fake_hub.log) == asked


# Official files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """faces64 in the official layouts."""
    folder, model = tmp_path_factory.mktemp("official"), storage.builtin_path("faces64")
    layouts: tuple[Any, ...] = ("psp", "e4e", "rosinality", "nvidia")
    return {name: write_official(model, folder / f"{name}.pt", layout=name) for name in layouts}


@pytest.mark.parametrize("kind", ["psp", "e4e"])
def test_there_and_back(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    cls: Any = METHODS[kind].pipeline
    theirs, ours = cls.from_single_file(files[kind], domain=Domain(crop_scale=0.74)), cls.from_pretrained("faces64")
    assert theirs.crop_scale == 0.74
    for a, b in ((theirs.generator, ours.generator), (theirs.encoder, ours.encoder)):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(a.state_dict()[key], value) for key, value in b.state_dict().items())
    photo = np.asarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)), np.uint8)
    expected = ours(photo, align=False).w_plus
    assert torch.equal(theirs(photo, align=False).w_plus, expected)
    again = cls.from_pretrained(theirs.save_pretrained(tmp_path / "saved"))
    assert torch.equal(again(photo, align=False).w_plus, expected)
    half = cls.from_single_file(files[kind], dtype=torch.bfloat16)
    assert {p.dtype for network in half.networks for p in network.parameters()} == {torch.bfloat16}
    converted = write_model(read_single_file(files[kind]), tmp_path / "converted")
    assert torch.equal(cls.from_pretrained(converted)(photo, align=False).w_plus, expected)


def test_what_a_pipeline_cannot_take(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a checkpoint of psp, not of e4e: use the pipeline of psp"):
        E4EPipeline.from_single_file(files["psp"])
    with pytest.raises(CheckpointError, match=r"holds no encoder .*rosinality.* PTIPipeline needs the generator"):
        PSPPipeline.from_single_file(files["rosinality"])
    np.save(tmp_path / "smile.npy", np.eye(1, 512))
    with pytest.raises(CheckpointError, match=r"holds a direction, .* `pipeline.load_direction` or"):
        PTIPipeline.from_single_file(tmp_path / "smile.npy")


def test_finding_a_file(files: dict[str, Path], fake_hub: FakeHub, tmp_path: Path) -> None:
    path = files["rosinality"]
    assert find_file(path, sha256=file_sha256(path)) == path
    fake_hub.repositories["org/repo"] = {"folder/e4e.pt": files["e4e"].read_bytes()}
    fake_hub.branches.add("v1")
    pipe = E4EPipeline.from_single_file("hf://org/repo@v1/folder/e4e.pt", sha256=file_sha256(files["e4e"]))
    assert pipe.generator.config.resolution == 64
    assert any("v1" in path for _, path in fake_hub.log)
    cases: tuple[tuple[Any, str | None, type[Exception], str], ...] = (
        (path, "0" * 64, CheckpointError, r"has not the sha256 0000.*another file, or damaged"),
        (tmp_path / "gone.pt", None, ModelNotFoundError, r"no file '.*gone.pt'"),
        (tmp_path, None, ModelNotFoundError, r"a folder: use from_pretrained"),
        ("hf://org/repo/folder/other.pt", None, ModelNotFoundError, r"other\.pt"),
        ("hf://a/b", None, ValueError, r"'hf://a/b' is neither a path nor hf://organisation/repository/file"),
        ("https://example.org/e4e.pt", None, ValueError, r"give the `sha256` of the file too"),
        ("ftp://example.org/e4e.pt", None, ValueError, r"'ftp://.*' is neither a path nor hf://"),
    )
    for source, sha256, error, message in cases:
        with pytest.raises(error, match=message):
            find_file(source, sha256=sha256)


# Directions of the field


@pytest.fixture
def pipeline() -> PTIPipeline:
    return PTIPipeline.from_pretrained("faces64")


def write_components(path: Path, w_dim: int = 512, count: int = 12) -> PrincipalComponents:
    """Write a GANSpace file as e4e ships it."""
    found = fit_pca(torch.randn(200, w_dim, generator=torch.Generator().manual_seed(0)), count)
    tensors = {"mean": found.mean[None], "comp": found.components[:, None], "std": found.std}
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return found


def test_components(pipeline: PTIPipeline, tmp_path: Path) -> None:
    path, before = tmp_path / "pca.pt", list(pipeline.directions)
    principal = write_components(path)
    found = pipeline.load_components(path, layers=(2, 6))
    assert [direction.name for direction in found] == [f"ganspace_{k}" for k in range(1, 11)]
    assert list(pipeline.directions) == before + [direction.name for direction in found]
    moved = pipeline.directions["ganspace_3"].apply(torch.zeros(1, 10, 512), 2 * float(principal.std[2]))
    expected = torch.zeros(1, 10, 512)
    expected[:, 2:6] = 2 * principal.std[2] * principal.components[2]
    assert torch.allclose(moved, expected, atol=1e-6)
    low, high = found[2].strength_range or (0, 0)
    assert low == -high and high == pytest.approx(2 * float(principal.std[2]), rel=0.05)
    (first,) = pipeline.load_components(path, count=np.int64(1), name="cars")  # type: ignore[arg-type]
    assert first.name == "cars_1" and first.layers is None and "cars_1" in pipeline.directions
    saved = pipeline.save_pretrained(tmp_path / "saved")
    assert list(load_directions(saved / "directions")) == list(pipeline.directions)


def test_none_of_this_generator(pipeline: PTIPipeline, files: dict[str, Path], tmp_path: Path) -> None:
    before = list(pipeline.directions)
    np.save(tmp_path / "small.npy", np.eye(1, 16))
    write_components(tmp_path / "small.pt", 8, 3)
    for load, path, message in (
        (pipeline.load_direction, tmp_path / "small.npy", r"shape \(16,\); it must be \(512,\) or \(10, 512\)"),
        (pipeline.load_direction, files["rosinality"], r"holds no single direction \(found: rosinality\)"),
        (pipeline.load_direction, tmp_path / "small.pt", r"\(found: ganspace\)\. Is it for `load_components`\?"),
        (pipeline.load_components, tmp_path / "small.pt", "components of 8 numbers; this generator's w have 512"),
        (pipeline.load_components, files["rosinality"], r"holds no components of GANSpace \(found: rosinality\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(path, name="smile")  # type: ignore[operator]
    assert list(pipeline.directions) == before
