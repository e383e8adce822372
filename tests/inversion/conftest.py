import pytest
import torch

from stylegan_inversion.losses.lpips import AlexLPIPS, AlexLPIPSConfig
from stylegan_inversion.models.generator import Generator
from tests.conftest import make_generator


@pytest.fixture
def generator() -> Generator:
    """The real class, tiny: 32 px, 8 layers of w."""
    return make_generator(channel_max=16).eval().requires_grad_(False)


@pytest.fixture
def perceptual() -> AlexLPIPS:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AlexLPIPS(AlexLPIPSConfig((8, 8, 8, 8, 8))).eval().requires_grad_(False)


@pytest.fixture
def target(generator: Generator) -> torch.Tensor:
    """What the generator draws at some w: it can be found."""
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(5))
    return generator(z)
