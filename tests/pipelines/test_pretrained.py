import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import E4EPipeline, PTIPipeline
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError
from stylegan_inversion.hub import read_config, read_tensors, write_config
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from tests.fake_hub import FakeHub, hub_client, serve

GREY = Image.new("RGB", (64, 64), (120, 100, 90))


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    with serve() as hub, hub_client(hub, tmp_path / "cache"):
        yield hub


@pytest.fixture
def e4e(generator: Generator, pti: PTIPipeline) -> E4EPipeline:
    config = PyramidEncoderConfig(
        output_resolution=32,
        input_resolution=64,
        w_dim=16,
        widths=(8, 8, 8, 8),
        units=(1, 1, 1, 1),
        reduction=4,
        style_channels=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder4Editing(config)
    return E4EPipeline(generator, encoder, directions=pti.directions)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype(e4e: E4EPipeline, dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = E4EPipeline.from_pretrained(e4e.save_pretrained(tmp_path / "model"), dtype=dtype)
    assert pipe.dtype == dtype and {p.dtype for p in pipe.encoder.parameters()} == {dtype}
    out, expected = pipe(GREY, align=False), e4e(GREY, align=False)
    assert out.w_plus.dtype == torch.float32 and not torch.equal(out.w_plus, expected.w_plus)
    assert (out.w_plus - expected.w_plus).norm() / expected.w_plus.norm() < 0.05
    assert pipe.edit(out, smile=1.0).images[0].size == (32, 32)


@pytest.mark.parametrize("args", [(torch.float64,), ("cpu", torch.float64), (torch.device("cpu"), torch.float64), ()])
def test_to(e4e: E4EPipeline, pti: PTIPipeline, tmp_path: Path, args: tuple[Any, ...]) -> None:
    """As PyTorch's and diffusers': every network goes along, and those that are loaded later."""
    with_encoder = PTIPipeline(
        pti.generator, perceptual=pti.perceptual, tuning=pti.tuning, encoders={"e4e": e4e.encoder}
    )
    folder = with_encoder.save_pretrained(tmp_path / "model")
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


def test_to_a_half_type(e4e: E4EPipeline, tmp_path: Path) -> None:
    pipe = E4EPipeline.from_pretrained(e4e.save_pretrained(tmp_path / "model"))
    assert pipe.base_name is not None
    assert (
        pipe.to(torch.bfloat16).dtype == torch.bfloat16 and pipe.base_name is None
    )  # its generator has other numbers now
    assert pipe(GREY, align=False).images[0].size == (32, 32)


def test_what_to_refuses(e4e: E4EPipeline, pti: PTIPipeline) -> None:
    with pytest.raises(ValueError, match=r"`dtype` must be torch.float32 or torch.float64, got torch.bfloat16: tuning"):
        pti.to(torch.bfloat16)
    assert pti.dtype == torch.float32
    for dtype in (torch.int8, torch.float8_e4m3fn, "float64"):
        with pytest.raises(ValueError, match=r"`dtype` must be a floating-point type such as torch.bfloat16, got "):
            e4e.to(dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`device` must be auto, cuda, mps, cpu or such as cuda:1, got 'gpu'"):
        e4e.to("gpu")
    wrong: list[Any] = [True, 1.5, torch.ones(1)]
    for value in wrong:
        with pytest.raises(
            TypeError, match=r'`to` takes a device such as "cuda" and a dtype such as torch.float64, got'
        ):
            e4e.to(value)
    with pytest.raises(TypeError, match=r"`to` takes one device and one dtype, got 'cuda' as well"):
        e4e.to("cpu", "cuda")
    with pytest.raises(TypeError, match=r"`to` takes one device and one dtype, got torch.float32 as well"):
        e4e.to(torch.float64, torch.float32)


def test_dtypes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"`dtype` must be a floating-point type such as .*, got torch.int8"):
        E4EPipeline.from_pretrained("faces64", dtype=torch.int8)
    with pytest.raises(ValueError, match=r"`dtype` must be torch.float32 or torch.float64, got torch.float16: tuning"):
        PTIPipeline.from_pretrained("faces64", dtype=torch.float16)


def test_pti_in_double_precision(pti: PTIPipeline, tmp_path: Path) -> None:
    pipe = PTIPipeline.from_pretrained(pti.save_pretrained(tmp_path / "model"), dtype=torch.float64)
    out = pipe(GREY, align=False)
    assert out.generator.w_avg.dtype == torch.float64 and out.reports[0]["l2"] >= 0


def test_variants(e4e: E4EPipeline, tmp_path: Path) -> None:
    folder = e4e.save_pretrained(tmp_path / "model")
    e4e.save_pretrained(folder, variant="fp16")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    parts = ("generator", "e4e_encoder")
    assert names == {f"{part}/model{v}.safetensors" for part in parts for v in ("", ".fp16")} | {
        "directions/model.safetensors"
    }
    half = read_tensors(folder / "generator" / "model.fp16.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    pipe = E4EPipeline.from_pretrained(folder, variant="fp16")
    assert pipe.dtype == torch.float32 and pipe.directions.keys() == e4e.directions.keys()
    assert torch.equal(pipe.generator.w_avg, e4e.generator.w_avg.half().float())
    assert torch.equal(E4EPipeline.from_pretrained(folder).generator.w_avg, e4e.generator.w_avg)
    with pytest.raises(CheckpointError, match=r"generator has no variant 'fp8' \(model.fp8.safetensors\); leave"):
        E4EPipeline.from_pretrained(folder, variant="fp8")
    with pytest.raises(ValueError, match=r"`variant` must be a word such as 'fp16', got '\.\./x'\."):
        e4e.save_pretrained(folder, variant="../x")
    e4e.generator.w_avg.fill_(1e6)
    with pytest.raises(ValueError, match=r"`dtype` torch.float16 cannot hold the weights of this Generator\."):
        e4e.save_pretrained(folder, variant="fp16")
    assert torch.isfinite(read_tensors(folder / "generator" / "model.fp16.safetensors")["w_avg"]).all()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client
def test_through_the_hub_and_back(
    e4e: E4EPipeline, fake_hub: FakeHub, photo: Image.Image, detector: Callable[..., object]
) -> None:
    address = e4e.push_to_hub("org/mine", token="write", private=True, license="mit", metrics={"l2": 0.25})
    assert address.startswith(fake_hub.url)
    e4e.push_to_hub("org/mine", token="write", variant="fp16")
    files = fake_hub.repositories["org/mine"]
    assert {"README.md", "config.json", "generator/model.safetensors", "generator/model.fp16.safetensors"} <= set(files)
    assert b'from_pretrained("org/mine")' in files["README.md"] and b"license: mit" in files["README.md"]

    pipe = E4EPipeline.from_pretrained("org/mine", detector=detector)  # type: ignore[arg-type]
    asked = [path for method, path in fake_hub.log if method == "GET" and "/resolve/" in path]
    assert asked and not any("fp16" in path or path.endswith(".md") for path in asked)
    half = E4EPipeline.from_pretrained("org/mine", variant="fp16", detector=detector)  # type: ignore[arg-type]
    assert torch.equal(half.generator.w_avg, e4e.generator.w_avg.half().float())
    assert half.directions.keys() == e4e.directions.keys()
    assert pipe(photo).base.name.revision == "1" * 40  # type: ignore[union-attr]


def test_each_argument_of_a_download(
    e4e: E4EPipeline, fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e4e.save_pretrained(tmp_path / "source" / "inner")
    fake_hub.add("org/mine", tmp_path / "source")
    fake_hub.tokens["org/mine"] = "read"
    load = functools.partial(E4EPipeline.from_pretrained, "org/mine", subfolder="inner")
    weights = "inner/generator/model.safetensors"

    with pytest.raises(ModelNotFoundError, match=r"org/mine"):
        load(token=False)
    pipe = load(token="read", device="cpu")
    assert torch.equal(pipe.generator.w_avg, e4e.generator.w_avg) and pipe.device.type == "cpu"
    assert pipe.directions.keys() == e4e.directions.keys() and fake_hub.gets(weights) == 1
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        E4EPipeline.from_pretrained("org/mine", token="read")  # nothing at the root

    load(token="read")
    assert fake_hub.gets(weights) == 1
    load(token="read", force_download=True)
    assert fake_hub.gets(weights) == 2
    load(token="read", cache_dir=tmp_path / "elsewhere")
    assert fake_hub.gets(weights) == 3 and list((tmp_path / "elsewhere").rglob("inner/generator/model.safetensors"))

    with pytest.raises(ModelNotFoundError, match="v2"):
        load(token="read", revision="v2")
    fake_hub.branches.add("v2")
    load(token="read", revision="v2")
    assert any("/revision/v2" in path or "/tree/v2" in path for _, path in fake_hub.log)

    asked = len(fake_hub.log)
    assert torch.equal(load(local_files_only=True).generator.w_avg, e4e.generator.w_avg)
    with pytest.raises(ModelNotFoundError, match="org/mine"):
        load(local_files_only=True, cache_dir=tmp_path / "empty")
    with pytest.raises(ValueError, match="`device` is 'cuda', which this machine or this build of PyTorch lacks"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        load(local_files_only=True, device="cuda")
    assert len(fake_hub.log) == asked


def test_an_upload_that_fails(e4e: E4EPipeline, fake_hub: FakeHub) -> None:
    with pytest.raises(UploadError, match="'org/mine' could not be uploaded"):
        e4e.push_to_hub("org/mine", token="wrong")
    with pytest.raises(ValueError, match="`repo_id` must be organisation/repository, got 'mine'"):
        e4e.push_to_hub("mine")
    assert not fake_hub.repositories


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"_class_name": "os.system"}, r"config\.json is of a 'os\.system', not of a pipeline of this package"),
        ("", {"_class_name": ["E4EPipeline"]}, r"not of a pipeline of this package"),
        ("", {"crop_scale": "../x"}, r"`crop_scale` must be a number in \(0, 100\), got '\.\./x'"),
        ("", {"crop_scale": float("nan")}, r"`crop_scale` must be a number in \(0, 100\), got 'nan'"),
        ("", {"crop_scale": -1}, r"`crop_scale` must be a number in \(0, 100\), got '-1'"),
        ("", {"source": {"kind": "../x"}}, r"bad settings under `source`: `kind` of a source must be one of photo"),
        ("generator", {"_class_name": "subprocess.Popen"}, r"is of a 'subprocess\.Popen', not of a Generator"),
        ("e4e_encoder", {"_class_name": "Generator"}, r"is of a 'Generator', not of a Encoder4Editing"),
        ("generator", {"w_dim": "../x"}, r"does not describe a Generator"),
    ],
)
def test_a_config_that_is_not_ours(
    part: str, change: dict[str, Any], message: str, e4e: E4EPipeline, tmp_path: Path
) -> None:
    folder = e4e.save_pretrained(tmp_path / "model")
    write_config({**read_config(folder / part), **change}, folder / part)
    with pytest.raises(CheckpointError, match=message):
        E4EPipeline.from_pretrained(folder)


def test_a_card_comes_with_the_folder_and_stays(e4e: E4EPipeline, tmp_path: Path) -> None:
    folder = e4e.save_pretrained(tmp_path / "model", metrics={"l2": 0.5})
    card = (folder / "README.md").read_text()
    assert "| l2 | 0.5 |" in card and read_config(folder)["_class_name"] == "E4EPipeline"
    (folder / "README.md").write_text("mine")
    e4e.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    e4e.save_pretrained(folder, overwrite_card=True)
    assert re.match("---\n", (folder / "README.md").read_text())
