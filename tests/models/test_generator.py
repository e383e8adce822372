import torch
from torch import Tensor

from stylegan_inversion.models.generator import Generator, GeneratorConfig

TINY = GeneratorConfig(resolution=16, z_dim=6, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(config: GeneratorConfig = TINY) -> Generator:
    """A generator whose parameters and buffers, noise strengths too, are drawn from a seed."""
    generator, source = Generator(config), rng(7)
    with torch.no_grad():
        for tensor in [*generator.parameters(), *generator.buffers()]:
            tensor.copy_(torch.randn(tensor.shape, generator=source))
    return generator.eval()


def codes(generator: Generator, batch: int = 2) -> Tensor:
    return torch.randn(batch, generator.num_ws, generator.config.w_dim, generator=rng(3))


@torch.no_grad()
def test_noise_modes() -> None:
    generator = build()
    w_plus = codes(generator, 1).repeat(2, 1, 1)
    const, none = (generator.synthesis(w_plus, noise_mode=mode) for mode in ("const", "none"))
    assert torch.equal(const, generator.synthesis(w_plus))  # the default
    assert not torch.allclose(const, none)
    first, again, other = (generator.synthesis(w_plus, noise_mode="random", rng=rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])
    noise = generator.synthesis.noise("random", batch=2, rng=rng(0))
    assert torch.equal(generator.synthesis(w_plus, noise_mode="none", noise=noise), first)  # overrides the mode
    assert torch.equal(generator.synthesis(w_plus, noise=[None] * len(noise)), none)
    for conv in generator.synthesis.convs:
        conv.noise_strength.zero_()
    torch.testing.assert_close(generator.synthesis(w_plus, noise_mode="random"), none)
