import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from stylegan_inversion import Direction, storage
from stylegan_inversion.editing.directions import save_directions
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.training.checkpoint import read_latest
from stylegan_inversion.training.config import (
    E4EOptions,
    EncoderOptions,
    EncoderRunConfig,
    GANConfig,
    GeneratorOptions,
    LossOptions,
    OptimizerOptions,
    RunConfig,
)
from stylegan_inversion.training.data import load_batches, positions
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.gan import GANLearner
from tests.conftest import same

MakeConfig = Callable[..., EncoderRunConfig]
MakeLearner = Callable[..., EncoderLearner]
MakeGAN = Callable[..., GANConfig]
MakeGANLearner = Callable[..., GANLearner]
Config = TypeVar("Config", bound=RunConfig)

QUIET: dict[str, Any] = {
    **{"num_workers": 0, "cpu": True, "log_every": 1, "trackers": ()},
    **{"image_every": 1000, "validate_every": 1000, "checkpoint_every": 1000},
}
FAST = LossOptions(lpips=0.0, identity=0.0)
SIZES = EncoderOptions(32, (8, 8, 8, 8), (1, 1, 1, 1), 4, 8)
SIZES_16 = dataclasses.replace(SIZES, coarse_end=2, middle_end=4)  # all three levels for the 6 styles of 16 px
EVERYTHING: dict[str, Any] = {  # e4e with all there is: pools overflow in the first step, offsets open all the time
    "method": "e4e",
    "steps": 36,
    "batch_size": 2,
    "synthetic_batch_size": 1,
    "accumulation": 2,
    "ema_decay": 0.9,
    "loss": LossOptions(lpips=0.0, identity=0.0, w_distance=0.5),
    "e4e": E4EOptions(open_from=0.2, open_until=0.8, pool_size=5, r1_every=4, discriminator_lr=1e-3),
    "optimizer": OptimizerOptions(lr=1e-3, warmup=0.1, schedule="cosine", max_grad_norm=1.0),
    "validate_every": 5,
    "checkpoint_every": 3,
}


def save_model(folder: Path, *, resolution: int = 16, w_dim: int = 16, seed: int = 0) -> Path:
    """A model without an encoder: a tiny generator of the real class, with an average w and noise that shows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = GeneratorConfig(resolution, z_dim=8, w_dim=w_dim, mapping_layers=2, channel_base=128, channel_max=8)
        generator = Generator(sizes)
        with torch.no_grad():
            generator.w_avg.copy_(generator.mapping(torch.randn(256, 8)).mean(0))
    for conv in generator.synthesis.convs:
        conv.noise_strength.data.fill_(0.05)
    storage.save_module(generator, folder / "generator")
    save_directions({"smile": Direction("smile", torch.eye(w_dim)[0])}, folder / "directions")
    storage.write_config({"_class_name": "PTIPipeline", "crop_scale": 0.9}, folder)
    return folder


def save_pictures(folder: Path, count: int, *, side: int = 20, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return folder


def batches_of(learner: EncoderLearner | GANLearner, count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Micro-batches of the run, from one on."""
    folder = learner.open_data()
    assert folder is not None
    return list(
        load_batches(folder, positions(learner.config.batch_size, start=start, end=start + count), num_workers=0)
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return save_pictures(tmp_path / "pictures", 10)


@pytest.fixture
def make_config(model: Path, pictures: Path, tmp_path: Path) -> MakeConfig:
    """Configs of tiny runs; a step takes a few hundredths of a second."""

    def make(**overrides: Any) -> EncoderRunConfig:
        values: dict[str, Any] = {
            **{"model": str(model), "data": str(pictures), "output": str(tmp_path / "run"), "encoder": SIZES_16},
            **{"loss": FAST, "optimizer": OptimizerOptions(lr=1e-3), "steps": 4, "batch_size": 4},
        }
        return EncoderRunConfig(**(QUIET | values | overrides))

    return make


@pytest.fixture
def make_gan(pictures: Path, tmp_path: Path) -> MakeGAN:
    """Configs of tiny adversarial runs; a step takes about a twentieth of a second."""

    def make(**overrides: Any) -> GANConfig:
        sizes = GeneratorOptions(16, z_dim=8, w_dim=16, mapping_layers=2, channel_base=128, channel_max=8)
        values: dict[str, Any] = {"data": str(pictures), "output": str(tmp_path / "run"), "generator": sizes}
        return GANConfig(**(QUIET | values | {"steps": 4, "batch_size": 4} | overrides))

    return make


@pytest.fixture
def make_learner(make_config: MakeConfig) -> MakeLearner:
    def make(*, teacher: Any = None, **overrides: Any) -> EncoderLearner:
        return EncoderLearner(make_config(**overrides), Accelerator(cpu=True), teacher=teacher)

    return make


@pytest.fixture
def make_gan_learner(make_gan: MakeGAN) -> MakeGANLearner:
    return lambda **overrides: GANLearner(make_gan(**overrides), Accelerator(cpu=True))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks only lose by more, above all beside other tests; and the bits are those of the child processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    AcceleratorState._reset_state(reset_partial_state=True)  # kept for the whole process


def elsewhere(config: Config, name: str, **changes: Any) -> Config:
    """The same run in another folder beside."""
    return dataclasses.replace(config, output=str(Path(config.output).with_name(name)), **changes)


def read_log(config: RunConfig, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def saved(config: RunConfig) -> dict[str, Any]:
    state = read_latest(Path(config.output) / "checkpoints")
    assert state is not None
    return state


def same_runs(a: RunConfig, b: RunConfig) -> None:
    """Two runs have ended with the same bits everywhere."""
    one, other = saved(a), saved(b)
    for name, part in one["learner"].items():
        assert same(part, other["learner"][name]), name
    assert same(one, other)
    assert read_log(a) == read_log(b) and read_log(a, "validation") == read_log(b, "validation")
    for model in ("last", "best"):
        files = [path.relative_to(a.output) for path in Path(a.output, model).rglob("*.safetensors")]
        assert Path(a.output, model).exists() == Path(b.output, model).exists()
        assert all(Path(a.output, file).read_bytes() == Path(b.output, file).read_bytes() for file in files)


def alike(one: RunConfig, two: RunConfig, parts: tuple[str, ...], *, atol: float = 1e-5) -> None:
    """Two runs have logged the same and ended with the same networks, but for rounding."""
    for kind in ("train", "validation"):
        for a, b in zip(read_log(one, kind), read_log(two, kind), strict=True):
            assert b == {k: v if k == "kind" else pytest.approx(v, rel=1e-4, abs=1e-5) for k, v in a.items()}
    a, b = saved(one)["learner"], saved(two)["learner"]
    for part in parts:
        for name in a[part]:
            torch.testing.assert_close(b[part][name], a[part][name], rtol=1e-4, atol=atol)
