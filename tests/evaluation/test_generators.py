import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import PTIPipeline, cli, storage
from stylegan_inversion.errors import CheckpointError, InvalidImageError, MissingDependencyError, ModelNotFoundError
from stylegan_inversion.evaluation import generators
from stylegan_inversion.evaluation.distribution import draw_samples, measure, sample_w_plus
from stylegan_inversion.evaluation.generators import evaluate_generators, find_generators, read_picture
from stylegan_inversion.evaluation.report import CELL, GAP, GROUP_GAP, HEADER
from stylegan_inversion.losses.identity import load_identity
from stylegan_inversion.losses.lpips import AlexLPIPS, AlexLPIPSConfig
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.image import load_image, to_pil, to_tensor


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve pictures of noise, one of them not square, one in a folder of its own."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    for i in range(12):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = folder / ("more/a.png" if i == 11 else f"{i:02}.png")
        small.resize((48 if i == 3 else 40, 40), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of 20 numbers, so that the linear algebra takes no time."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = AlexLPIPS(AlexLPIPSConfig((4, 4, 4, 4, 4))).requires_grad_(False)
    network.name = "small"
    monkeypatch.setattr(generators, "load_perceptual", lambda name, device: network)


def other(**changes: Any) -> Generator:
    config = {"z_dim": 8, "w_dim": 16, "mapping_layers": 2, "channel_base": 256, "channel_max": 8} | changes
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Generator(GeneratorConfig(**({"resolution": 32} | config)))


@pytest.fixture
def models(pti: PTIPipeline, tmp_path: Path) -> list[str]:
    """A whole model, and the generator of a run alone, in a folder whose name holds "="."""
    storage.save_module(other(), tmp_path / "run=1" / "ema")
    return [str(pti.save_pretrained(tmp_path / "tiny")), str(tmp_path / "run=1" / "ema")]


def evaluated(models: list[str], data: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    options = {"num_samples": 10, "num_paths": 3, "identity": None, "batch_size": 4} | changes
    return evaluate_generators(models, data, data.parent / "out", **options)


def test_the_command(models: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"evaluate-generator --data {data} --models {' '.join(models)} --output {tmp_path / 'out'} --device cpu"
    options = "--num-samples 10 --num-paths 3 --batch-size 4 --truncation-psi 0.5"
    assert cli.main([*command.split(), *options.split()]) == 0
    out = tmp_path / "out"
    kinds = ("samples", "samples_psi0.7", "mixing", "nearest")
    pictures = {f"{name}_{kind}.png" for name in ("tiny", "ema") for kind in kinds}
    assert {path.name for path in out.iterdir()} == {"generators.json", "generators.md", *pictures}
    results, table = json.loads((out / "generators.json").read_text()), (out / "generators.md").read_text("utf-8")
    assert table in capsys.readouterr().out
    heads = ["generator", "FD (alex)", "KD (alex) x 1000", "precision (alex)", "recall (alex)"]
    heads += ["FD (FaceRes)", "KD (FaceRes) x 1000", "precision (FaceRes)", "recall (FaceRes)"]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert rows[0] == [*heads, "PPL (W, alex)"]
    assert [row[0] for row in rows[1:]] == ["tiny", "ema", "one half of the data against the other"]
    assert all(len(row) == 10 for row in rows) and rows[3][-1] == "-"
    for words in ("10 samples against 12 pictures at 32 px", "Truncation psi 0.5,", "alex 1152, FaceRes 1024"):
        assert words in table
    # The figures, by hand.
    generator = storage.load_module(Generator, GeneratorConfig, tmp_path / "tiny" / "generator")
    real = [read_picture(data / name, 32) for name in [*(f"{i:02}.png" for i in range(11)), "more/a.png"]]
    images = (torch.cat(real), draw_samples(generator, range(10), seed=0, truncation_psi=0.5))
    expected = measure(*(load_identity().embed(x) * 1024**0.5 for x in images), seed=0)
    figures = results["generators"]["tiny"]["figures"]["faceres"]
    assert figures == {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in expected.items()}
    assert figures["kernel_subset"] == 5


def test_sheets(models: list[str], data: Path, tmp_path: Path, small: None, generator: Generator) -> None:
    _, table = evaluated(models[:1], data, num_paths=0, limit=11)
    assert "against 11 pictures" in table and "PPL" not in table
    grid = to_tensor(load_image(tmp_path / "out" / "tiny_samples.png"))
    assert grid.shape[-2:] == (8 * 32, 8 * 32)
    sample = draw_samples(generator, [10], seed=0)  # second row, third column
    assert (grid[..., 32:64, 64:96] - sample).abs().max() <= 1.01 / 127.5
    # At 32 px there are no fine layers: A, then four B for the coarse and four for the middle ones.
    assert b"/trainedAlgorithmicMedia" in (tmp_path / "out" / "tiny_samples.png").read_bytes()
    sheet = load_image(tmp_path / "out" / "tiny_mixing.png")
    assert sheet.size == (GAP + 9 * CELL + 2 * GROUP_GAP + 6 * GAP + GAP, 2 * HEADER + 5 * (CELL + GAP) + GAP)
    w_plus = sample_w_plus(generator, range(8), seed=0)
    mixed = torch.cat([w_plus[1:2, :4], w_plus[6:7, 4:]], dim=1)  # A 2 with the middle layers of B 3
    left, top = GAP + CELL + 2 * GROUP_GAP + 6 * CELL + 5 * GAP, 2 * HEADER + 2 * (CELL + GAP)
    expected = to_pil(generator.synthesis(mixed))[0].resize((CELL, CELL), Image.Resampling.LANCZOS)
    found = np.asarray(sheet.crop((left, top, left + CELL, top + CELL))).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 2
    # The nearest pictures of the data.
    vectors, paths = torch.eye(12), [*sorted(data.glob("*.png")), data / "more" / "a.png"]
    _, nearest, *_ = generators.find_nearest(sample, {"n": (vectors[5:6], vectors)}, paths)
    picture = nearest.pictures[0]
    assert picture is not None
    assert picture.tobytes() == load_image(data / "05.png").resize((32, 32), Image.Resampling.LANCZOS).tobytes()


def test_fid(models: list[str], data: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    """With torch-fidelity's interface around a network of a few numbers."""

    class Inception(torch.nn.Module):
        def __init__(self, name: str, features_list: list[str]) -> None:
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            assert x.dtype == torch.uint8
            return (torch.nn.functional.adaptive_avg_pool2d(x.double(), 2).flatten(1) / 255,)

    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.__dict__["FeatureExtractorInceptionV3"] = Inception
    monkeypatch.setitem(sys.modules, module.__name__, module)
    results, table = evaluated(models[:1], data, fid=True, num_paths=0)
    assert "| FID | KID x 1000 | precision (Inception) | recall (Inception) |" in table
    assert results["networks"]["inception"]["dim"] == 12

    def offline(name: str, features_list: list[str]) -> None:
        raise OSError("no network")

    module.__dict__["FeatureExtractorInceptionV3"] = offline
    with pytest.raises(CheckpointError, match=r"Inception weights.*could not be fetched: no network.*leave out `fid`"):
        evaluated(models[:1], data, fid=True)
    monkeypatch.setitem(sys.modules, module.__name__, None)
    with pytest.raises(MissingDependencyError, match=r"stylegan-inversion\[fid\].*built-in networks need nothing"):
        evaluated(models[:1], data, fid=True)


def test_names_of_models(models: list[str]) -> None:
    model, alone = models
    found = find_generators([model, alone, f"again={model}"])
    assert found == {"tiny": Path(model, "generator"), "ema": Path(alone), "again": Path(model, "generator")}


@pytest.mark.parametrize(
    ("names", "changes", "error", "message"),
    [
        (["{tiny}", "{tiny}"], {}, ValueError, r"called 'tiny': write NAME=MODEL, such as tiny2=.*tiny\."),
        (["a/b={tiny}"], {}, ValueError, "The name of a generator must be letters, digits.*got 'a/b'"),
        (["{tiny}", "{large}"], {}, ValueError, "must share their resolution.*'tiny' has 32 px, 'large' has 64"),
        (["new=faces46"], {}, ModelNotFoundError, "No model 'faces46'"),
        (["{tiny}"], {"device": "gpu"}, ValueError, "`device` must be auto, cuda"),
        (["{tiny}"], {"limit": 7}, ValueError, "There must be at least 8 pictures of the data, got 7"),
        (["{tiny}"], {"perceptual": "squeeze"}, ValueError, "`perceptual` must be one of"),
        (["{tiny}"], {"broken": True}, InvalidImageError, r"02.png: .* is not an image.*Replace or remove the file"),
        (["{damaged}"], {}, CheckpointError, "cannot be read as JSON"),
    ],
)
def test_what_is_refused(
    names: list[str], changes: dict[str, Any], error: type[Exception], message: str, models: list[str], data: Path
) -> None:
    folders = {name: data.parent / name for name in ("tiny", "large", "damaged")}
    storage.save_module(other(resolution=64), folders["large"])
    (folders["damaged"] / "generator").mkdir(parents=True)
    (folders["damaged"] / "config.json").write_text("{}")
    if changes.pop("broken", False):
        (data / "02.png").write_bytes(b"none")
    with pytest.raises(error, match=message):
        evaluated([name.format(**folders) for name in names], data, **changes)
    assert error is InvalidImageError or not (data.parent / "out").exists()
