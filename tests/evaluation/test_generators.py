import builtins
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import PTIPipeline, hub
from stylegan_inversion.errors import CheckpointError, InvalidImageError, MissingDependencyError, ModelNotFoundError
from stylegan_inversion.evaluation import features, sheets
from stylegan_inversion.evaluation.figure import CELL, GAP, GROUP_GAP, HEADER
from stylegan_inversion.evaluation.generators import evaluate_generators, load_generators, measure
from stylegan_inversion.evaluation.samples import (
    draw_samples,
    perceptual_path_length,
    round_levels,
    sample_noise,
    sample_w_plus,
)
from stylegan_inversion.losses.identity import load_identity
from stylegan_inversion.losses.lpips import (
    AlexLPIPS,
    AlexLPIPSConfig,
    PerceptualDistance,
    load_perceptual,
)
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
    monkeypatch.setattr("stylegan_inversion.evaluation.generators.load_perceptual", lambda name, device: network)


def options(**changes: Any) -> dict[str, Any]:
    return {"num_samples": 10, "num_paths": 3, "identity": None, "batch_size": 4} | changes


def other(generator: Generator, **changes: Any) -> Generator:
    config = {"z_dim": 8, "w_dim": 16, "mapping_layers": 2, "channel_base": 256, "channel_max": 8} | changes
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Generator(GeneratorConfig(**({"resolution": 32} | config)))


def test_samples_follow_from_seed_and_number(generator: Generator) -> None:
    together = draw_samples(generator, range(5), seed=3)
    parts = torch.cat([draw_samples(generator, part, seed=3) for part in (range(3), range(3, 5))])
    alone = draw_samples(generator, [4], seed=3)
    assert (together - parts).abs().max() <= 1.01 / 127.5 and (together[4:] - alone).abs().max() <= 1.01 / 127.5
    assert (draw_samples(generator, range(5), seed=4) - together).abs().mean() > 0.01
    assert len({tuple(picture.flatten().tolist()) for picture in together}) == 5
    assert torch.equal(together, torch.cat([to_tensor(picture) for picture in to_pil(together)]))  # 8 bits

    noise = sample_noise(generator, range(2), seed=3)
    assert [tuple(layer.shape) for layer in noise] == [(2, 1, r, r) for r in (4, 8, 8, 16, 16, 32, 32)]
    drawn = torch.cat([layer.flatten(1) for layer in noise], dim=1)
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 1) < 0.1 and not torch.equal(drawn[0], drawn[1])
    drawn_too = round_levels(generator.synthesis(sample_w_plus(generator, range(2), seed=3), noise=noise))
    torch.testing.assert_close(drawn_too, together[:2], rtol=0, atol=1.01 / 127.5)


def test_truncation(generator: Generator) -> None:
    generator.w_avg.fill_(1)
    full, half, none = (sample_w_plus(generator, [0], seed=0, truncation_psi=psi) for psi in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half, (full + 1) / 2)
    assert (none == 1).all() and none.shape == (1, 8, 16)


def test_path_length(generator: Generator) -> None:
    perceptual = load_perceptual()
    found = perceptual_path_length(generator, perceptual, num_samples=6, seed=0, batch_size=4)
    again = perceptual_path_length(generator, perceptual, num_samples=6, seed=0, batch_size=12)
    assert found > 0 and again == pytest.approx(found, rel=0.02)  # differences of nearly equal pictures
    start = sample_w_plus(generator, range(6), seed=0, purpose="path start")
    end = sample_w_plus(generator, range(6), seed=0, purpose="path end")
    noise = sample_noise(generator, range(6), seed=0)
    step = 1e-3  # of the length of a curve, any small step gives the same
    pictures = [generator.synthesis(w, noise=noise) for w in (start, start + step * (end - start))]
    lengths = sorted((perceptual(*pictures) / step**2).tolist())
    # six numbers: the 1st and the 99th percentile, taken outwards, are the ends, and leave nothing out
    assert found == pytest.approx(sum(lengths) / 6, rel=0.05)
    for conv in generator.synthesis.convs:
        conv.affine.weight.data.zero_()  # a picture that does not depend on w
    for block in generator.synthesis.blocks.values():
        block.to_rgb.affine.weight.data.zero_()
    assert perceptual_path_length(generator, perceptual, num_samples=2, seed=0, batch_size=1) == pytest.approx(0)
    with pytest.raises(ValueError, match="`num_samples` must be >= 1, got 0"):
        perceptual_path_length(generator, perceptual, num_samples=0, seed=0, batch_size=4)


def test_path_length_leaves_out_extremes(generator: Generator) -> None:
    class Outliers(PerceptualDistance):
        def features(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x]

        def distance(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
            lengths = torch.full((len(a[0]),), 3e-8)
            lengths[0] = 5.0 if len(lengths) == 100 else -5.0  # the first of each batch of ways
            return lengths

    found = perceptual_path_length(generator, Outliers(), num_samples=150, seed=0, batch_size=200)
    assert found == pytest.approx(3)


def test_everything(generator: Generator, data: Path, tmp_path: Path) -> None:
    generators = {"tiny": generator, "other": other(generator)}
    state = {key: value.clone() for key, value in generator.state_dict().items()}
    done = evaluate_generators(generators, data, tmp_path / "out", **options(identity="builtin"))
    assert all(torch.equal(state[key], value) for key, value in generator.state_dict().items())
    assert {path.name for path in done.output.iterdir() if path.is_file()} == {
        "generators.json",
        "generators.md",
        *(f"{n}_{kind}.png" for n in generators for kind in ("samples", "samples_psi0.7", "mixing", "nearest")),
    }
    assert json.loads((done.output / "generators.json").read_text()) == done.results
    assert (done.output / "generators.md").read_text("utf-8") == done.table
    heads = ["generator", "FD (alex)", "KD (alex) x 1000", "precision (alex)", "recall (alex)"]
    heads += ["FD (dlib faces)", "KD (dlib faces) x 1000", "precision (dlib faces)", "recall (dlib faces)"]
    rows = [line.strip("| ").split(" | ") for line in done.table.splitlines() if line.startswith("| ")]
    assert rows[0] == [*heads, "PPL (W, alex)"]
    assert [row[0] for row in rows[1:]] == ["tiny", "other", "one half of the data against the other"]
    assert all(len(row) == 10 for row in rows) and rows[3][-1] == "-"
    assert "10 samples against 12 pictures at 32 px" in done.table and "alex 1152, dlib faces 128" in done.table
    assert "FID (" not in done.table and done.results["num_data"] == 12

    # the figures, by hand
    real = [features.read_picture(data / name, 32) for name in [*(f"{i:02}.png" for i in range(11)), "more/a.png"]]
    fake = draw_samples(generator, range(10), seed=0)
    identity = load_identity()
    embedded = [identity.embed(images) * 128**0.5 for images in (torch.cat(real), fake)]
    expected, figures = measure(*embedded, seed=0), done.results["generators"]["tiny"]["figures"]["dlib"]
    assert figures == {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in expected.items()}
    assert figures["kernel_subset"] == 5


def test_limit_and_no_path_length(generator: Generator, data: Path, tmp_path: Path, small: None) -> None:
    done = evaluate_generators({"tiny": generator}, data, tmp_path / "out", **options(num_paths=0, limit=11))
    assert done.results["num_data"] == 11 and "against 11 pictures" in done.table
    assert "PPL" not in done.table and "path_length" not in done.results["generators"]["tiny"]["figures"]


def test_sheets(generator: Generator, data: Path, tmp_path: Path, small: None) -> None:
    done = evaluate_generators({"tiny": generator}, data, tmp_path / "out", **options(num_paths=0))
    grid = to_tensor(load_image(done.output / "tiny_samples.png"))
    assert grid.shape[-2:] == (8 * 32, 8 * 32)
    sample = draw_samples(generator, [10], seed=0)  # second row, third column
    assert (grid[..., 32:64, 64:96] - sample).abs().max() <= 1.01 / 127.5

    # at 32 px there are no fine layers: A, then four B for the coarse and four for the middle ones
    sheet = load_image(done.output / "tiny_mixing.png")
    assert sheet.size == (GAP + 9 * CELL + 2 * GROUP_GAP + 6 * GAP + GAP, 2 * HEADER + 5 * (CELL + GAP) + GAP)
    w_plus = sample_w_plus(generator, range(8), seed=0)
    mixed = torch.cat([w_plus[1:2, :4], w_plus[6:7, 4:]], dim=1)  # A 2 with the middle layers of B 3
    left = GAP + CELL + 2 * GROUP_GAP + 6 * CELL + 5 * GAP
    place = (left, 2 * HEADER + 2 * (CELL + GAP), left + CELL, 2 * HEADER + 2 * (CELL + GAP) + CELL)
    expected = to_pil(generator.synthesis(mixed))[0].resize((CELL, CELL), Image.Resampling.LANCZOS)
    found = np.asarray(sheet.crop(place)).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 2

    first = load_image(data / "05.png").resize((32, 32), Image.Resampling.LANCZOS)
    vectors = torch.eye(12)
    nearest = tmp_path / "nearest.png"
    paths = [*sorted(data.glob("*.png")), data / "more" / "a.png"]
    sheets.save_nearest(sample, {"n": vectors[5:6]}, {"n": vectors}, paths, nearest)
    left = GAP + CELL + GROUP_GAP
    found = np.asarray(load_image(nearest).crop((left, 2 * HEADER, left + CELL, 2 * HEADER + CELL)))
    assert (found == np.asarray(first.resize((CELL, CELL), Image.Resampling.LANCZOS))).all()


def test_large_pictures_are_reduced_in_the_grid(tmp_path: Path) -> None:
    sheets.save_grid([Image.new("RGB", (512, 512), "red")] * 9, tmp_path / "grid.png")
    assert load_image(tmp_path / "grid.png").size == (8 * 256, 2 * 256)
    with pytest.raises(ValueError, match="`pictures` must hold at least one picture, got none"):
        sheets.save_grid([], tmp_path / "grid.png")


def test_features_of_the_data_are_kept(
    generator: Generator,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    small: None,
) -> None:
    read: list[Path] = []
    real = features.read_picture

    def counted(path: Path, resolution: int) -> torch.Tensor:
        read.append(path)
        return real(path, resolution)

    monkeypatch.setattr(features, "read_picture", counted)
    run = options(num_paths=0)
    first = evaluate_generators({"tiny": generator}, data, tmp_path / "out", **run)
    assert len(read) == 12
    kept = list((tmp_path / "out" / "features").iterdir())
    assert len(kept) == 1 and kept[0].name.startswith("small-")
    again = evaluate_generators({"tiny": generator}, sorted(data.rglob("*.png")), tmp_path / "out", **run)
    assert len(read) == 12 and again.results == first.results  # the same files, as a list
    with caplog.at_level(logging.WARNING):
        kept[0].write_bytes(b"torn")
        evaluate_generators({"tiny": generator}, data, tmp_path / "out", **run)
    assert len(read) == 24 and "The features are made again" in caplog.text
    Image.new("RGB", (64, 64), "red").save(data / "01.png")  # another size
    changed = evaluate_generators({"tiny": generator}, data, tmp_path / "out", **run)
    assert len(read) == 36 and changed.results["data_key"] != first.results["data_key"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 7}, "`num_samples` must be >= 8, got 7"),
        ({"batch_size": 0}, "`batch_size` must be >= 1, got 0"),
        ({"num_paths": -1}, "`num_paths` must be >= 0, got -1"),
        ({"seed": -1}, "`seed` must be >= 0, got -1"),
        ({"truncation_psi": float("nan")}, "`truncation_psi` must be finite, got nan"),
        ({"limit": 0}, "`limit` must be >= 1, got 0"),
        ({"limit": 7}, "There must be at least 8 pictures of the data, got 7"),
        ({"perceptual": "squeeze"}, "`perceptual` must be one of"),
    ],
)
def test_wrong_arguments(
    generator: Generator, data: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_generators({"tiny": generator}, data, tmp_path / "out", **options(**change))
    assert not (tmp_path / "out").exists()


def test_wrong_generators(generator: Generator, data: Path, tmp_path: Path) -> None:
    for generators, message in (
        ({}, "`generators` must hold at least one generator, got none"),
        ({"a/b": generator}, "The name of a generator must be letters, digits.*got 'a/b'"),
        (
            {"tiny": generator, "large": other(generator, resolution=64)},
            "`generators` must share resolution and device.*'tiny' has 32 px on cpu, 'large' 64 px on cpu",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_generators(generators, data, tmp_path / "out", **options())


def test_wrong_pictures(generator: Generator, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There must be at least 8 pictures of the data, got 0"):
        evaluate_generators({"tiny": generator}, [], tmp_path / "out", **options())
    (data / "02.png").write_bytes(b"none")
    with pytest.raises(
        InvalidImageError, match=r"02.png: .* is not an image, or damaged.*Replace the file, or take it"
    ):
        evaluate_generators({"tiny": generator}, data, tmp_path / "out", **options())


def test_truncation_reaches_samples_and_grid(generator: Generator, data: Path, tmp_path: Path, small: None) -> None:
    runs = [
        evaluate_generators({"g": generator}, data, tmp_path / f"{psi}", **options(truncation_psi=psi, num_paths=0))
        for psi in (1.0, 0.0)
    ]
    figures = [run.results["generators"]["g"]["figures"]["small"] for run in runs]
    assert figures[0] != figures[1] and "Truncation psi 0," in runs[1].table
    grids = [to_tensor(load_image(run.output / "g_samples.png")) for run in runs]
    spread = [grid.view(3, 8, 32, 8, 32).std(dim=(1, 3)).mean() for grid in grids]
    assert spread[1] < 0.8 * spread[0]  # only the noise is left
    same = [(run.output / "g_samples_psi0.7.png").read_bytes() for run in runs]
    assert same[0] == same[1]


def test_measures_of_the_same_pictures() -> None:
    cloud = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    found = measure(cloud, cloud, seed=0)
    assert found["frechet"] == pytest.approx(0, abs=1e-9) and found["precision"] == found["recall"] == 1
    assert found["kernel_subset"] == 30 and found["kernel_std"] > 0
    assert measure(cloud, cloud + 1, seed=0)["frechet"] == pytest.approx(4, abs=1e-5)


def test_fid(generator: Generator, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    """With torch-fidelity's interface around a network of a few numbers."""

    class Inception(torch.nn.Module):
        def __init__(self, name: str, features_list: list[str]) -> None:
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])
            self.fc = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            assert x.dtype == torch.uint8
            return (torch.nn.functional.adaptive_avg_pool2d(x.double(), 2).flatten(1) / 255,)

    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.__dict__["FeatureExtractorInceptionV3"] = Inception
    monkeypatch.setitem(sys.modules, module.__name__, module)
    done = evaluate_generators({"tiny": generator}, data, tmp_path / "out", **options(fid=True, num_paths=0))
    assert "| FID | KID x 1000 | precision (Inception) | recall (Inception) |" in done.table
    assert done.results["networks"]["inception"]["dim"] == 12

    def offline(name: str, features_list: list[str]) -> None:
        raise OSError("no network")

    module.__dict__["FeatureExtractorInceptionV3"] = offline
    with pytest.raises(CheckpointError, match=r"Inception weights.*could not be fetched: no network.*leave out `fid`"):
        evaluate_generators({"tiny": generator}, data, tmp_path / "out", **options(fid=True))


def test_fid_without_torch_fidelity(
    generator: Generator, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torch_fidelity"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(MissingDependencyError, match=r"stylegan-inversion\[fid\].*built-in networks need nothing"):
        evaluate_generators({"tiny": generator}, data, tmp_path / "out", **options(fid=True))


def test_load_generators(pti: PTIPipeline, tmp_path: Path) -> None:
    pti.save_pretrained(tmp_path / "model")
    hub.save_module(other(pti.generator), tmp_path / "run=1" / "generator_ema")
    model, alone = str(tmp_path / "model"), str(tmp_path / "run=1" / "generator_ema")
    found = load_generators([model, alone, f"again={model}"])
    assert list(found) == ["model", "generator_ema", "again"]
    for key, value in pti.generator.state_dict().items():
        assert torch.equal(found["model"].state_dict()[key], value)
        assert torch.equal(found["again"].state_dict()[key], value)
    assert torch.equal(found["generator_ema"].synthesis.const, other(pti.generator).synthesis.const)
    assert not any(parameter.requires_grad for parameter in found["model"].parameters())

    with pytest.raises(ValueError, match=r"Two models are called 'model': write NAME=MODEL, such as model2=.*model\."):
        load_generators([model, model])
    with pytest.raises(ModelNotFoundError, match="No model 'faces46'"):
        load_generators(["new=faces46"])
    with pytest.raises(ValueError, match="`device` must be auto, cuda"):
        load_generators([model], device="gpu")
    (tmp_path / "model" / "generator" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_generators([model])
