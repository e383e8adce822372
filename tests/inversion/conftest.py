import pytest
import torch

from stylegan_inversion.losses.lpips import AlexLPIPS, AlexLPIPSConfig
from stylegan_inversion.models.generator import Generator, GeneratorConfig


@pytest.fixture
def generator() -> Generator:
    """The real class, tiny: 32 px, 8 layers of w."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = Generator(GeneratorConfig(32, z_dim=8, w_dim=16, mapping_layers=2, channel_base=256, channel_max=16))
    for conv in tiny.synthesis.convs:
        conv.noise_strength.data.fill_(0.1)
    return tiny.eval().requires_grad_(False)


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
