from unittest import mock

import pytest
import torch
from torch import Tensor

from stylegan_inversion import ops
from stylegan_inversion.losses.path_length import path_length
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.layers import channels_last_is_fast
from tests.conftest import rng

TINY = GeneratorConfig(resolution=16, z_dim=6, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)


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


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tuned", [False, True])
def test_fast_forms_draw_what_the_reference_forms_draw(batch: int, tuned: bool) -> None:
    """A frozen generator has its channels last, a tuned one first; path lengths are differentiated twice."""
    generator = build().requires_grad_(tuned)
    w_plus = codes(generator, batch).requires_grad_()
    leaves = [*generator.synthesis.parameters(), w_plus] if tuned else [w_plus]
    forms = {name: getattr(ops, f"{name}_reference") for name in ("styled_conv", "to_rgb", "upfirdn2d")}
    results = []
    for patched in ({}, forms):
        with mock.patch.dict(vars(ops), patched):
            image = generator.synthesis(w_plus)
            lengths = path_length(image, w_plus, torch.ones_like(image))
            first = torch.autograd.grad(image.square().mean(), leaves, retain_graph=True)
            second = torch.autograd.grad(lengths.sum(), leaves, allow_unused=True)
            results.append([image, lengths, *first, *second])
    assert results[0][0].is_contiguous()
    for fast, plain in zip(*results):
        assert (fast is None) == (plain is None)
        if fast is not None:
            torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4 * float(plain.detach().abs().max()) + 1e-12)


def test_channels_last_only_where_it_was_measured() -> None:
    """Of other devices, such as MPS, nobody knows whether it is faster, or right."""
    for dtype in (torch.float16, torch.float32):
        assert not channels_last_is_fast(torch.empty(1, dtype=dtype, device="meta"))
