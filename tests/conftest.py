from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import Tensor, nn

from stylegan_inversion import Direction, PTIPipeline
from stylegan_inversion.inversion.pivotal_tuning import TuningConfig
from stylegan_inversion.inversion.projector import ProjectorConfig
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.preprocessing.landmarks import Face
from tests.fake_hub import FakeHub, hub_client, serve

# Examples are drawn the same way each time, and a busy machine is no failure.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")


def landmarks_at(x: float, y: float, size: float) -> Face:
    """A face whose eyes and mouth make a level FFHQ square of about 4 times `size`."""
    points = np.full((68, 2), (x, y), dtype=np.float64)
    points[36:42], points[42:48] = (x - size, y - size), (x + size, y - size)
    points[48], points[54] = (x - size, y + size), (x + size, y + size)
    return Face(points, (x - size, y - size, x + size, y + size), 1.0)


def two_faces(photo: Image.Image) -> list[Face]:
    """A detector that finds two faces in every photo, the larger first."""
    return [landmarks_at(120.0, 120.0, 30.0), landmarks_at(250.0, 100.0, 15.0)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all numbers of a network."""
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal, to the bit and to the type."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and a == b


def make_photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC)


def make_generator(channel_max: int = 8) -> Generator:
    sizes = GeneratorConfig(32, z_dim=8, w_dim=16, mapping_layers=2, channel_base=256, channel_max=channel_max)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = Generator(sizes)
    for conv in tiny.synthesis.convs:
        conv.noise_strength.data.fill_(0.1)
    return tiny


def make_pti(generator: Generator) -> PTIPipeline:
    vector = torch.eye(16)
    return PTIPipeline(
        generator,
        perceptual=load_perceptual(),
        projector=ProjectorConfig(num_steps=3),
        tuning=TuningConfig(num_steps=3, lpips_threshold=0.0),
        directions={
            "smile": Direction("smile", vector[0], strength_range=(-5.0, 5.0)),
            "age": Direction("age", vector[1]),
        },
        domain=Domain(crop_scale=0.8),
        detector=two_faces,
    )


@pytest.fixture
def photo() -> Image.Image:
    return make_photo()


@pytest.fixture
def detector() -> Callable[[Image.Image], list[Face]]:
    """Two faces in every photo, the larger first."""
    return two_faces


@pytest.fixture
def generator() -> Generator:
    return make_generator()


@pytest.fixture
def pti(generator: Generator) -> PTIPipeline:
    """The real classes, tiny, a few steps."""
    return make_pti(generator)


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub without models, an empty cache in `tmp_path / "cache"`, and the client set to both."""
    with serve() as hub, hub_client(hub, tmp_path / "cache"):
        yield hub
