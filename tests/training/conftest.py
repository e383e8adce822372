from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from stylegan_inversion import Direction, hub
from stylegan_inversion.editing.directions import save_directions
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.training.config import (
    EncoderOptions,
    EncoderRunConfig,
    GANConfig,
    GeneratorOptions,
    LossOptions,
    OptimizerOptions,
)
from stylegan_inversion.training.data import load_batches, positions
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.gan import GANLearner

MakeConfig = Callable[..., EncoderRunConfig]
MakeLearner = Callable[..., EncoderLearner]
MakeGAN = Callable[..., GANConfig]
MakeGANLearner = Callable[..., GANLearner]

QUIET: dict[str, Any] = {
    **{"num_workers": 0, "cpu": True, "log_every": 1, "trackers": ()},
    **{"image_every": 1000, "validate_every": 1000, "checkpoint_every": 1000},
}
FAST = LossOptions(lpips=0.0, identity=0.0)
SIZES = EncoderOptions(32, (8, 8, 8, 8), (1, 1, 1, 1), 4, 8)


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
    hub.save_module(generator, folder / "generator")
    save_directions({"smile": Direction("smile", torch.eye(w_dim)[0])}, folder / "directions")
    hub.write_config({"_class_name": "PTIPipeline", "crop_scale": 0.9}, folder)
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
            "model": str(model),
            "data": str(pictures),
            "output": str(tmp_path / "run"),
            # coarse, middle and fine styles among the 6 of a generator of 16 px
            "encoder": EncoderOptions(32, (8, 8, 8, 8), (1, 1, 1, 1), 4, 8, coarse_end=2, middle_end=4),
            "loss": FAST,
            "optimizer": OptimizerOptions(lr=1e-3),
            "steps": 4,
            "batch_size": 4,
        }
        return EncoderRunConfig(**(QUIET | values | overrides))

    return make


@pytest.fixture
def make_gan(pictures: Path, tmp_path: Path) -> MakeGAN:
    """Configs of tiny adversarial runs; a step takes about a twentieth of a second."""

    def make(**overrides: Any) -> GANConfig:
        values: dict[str, Any] = {
            "data": str(pictures),
            "output": str(tmp_path / "run"),
            "generator": GeneratorOptions(16, z_dim=8, w_dim=16, mapping_layers=2, channel_base=128, channel_max=8),
            "steps": 4,
            "batch_size": 4,
        }
        return GANConfig(**(QUIET | values | overrides))

    return make


@pytest.fixture
def make_learner(make_config: MakeConfig) -> MakeLearner:
    def make(*, teacher: Any = None, **overrides: Any) -> EncoderLearner:
        return EncoderLearner(make_config(**overrides), Accelerator(cpu=True), teacher=teacher)

    return make


@pytest.fixture
def make_gan_learner(make_gan: MakeGAN) -> MakeGANLearner:
    def make(**overrides: Any) -> GANLearner:
        return GANLearner(make_gan(**overrides), Accelerator(cpu=True))

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks only lose by more, above all beside other tests; and the bits are those of the child processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
