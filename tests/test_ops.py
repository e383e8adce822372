import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from stylegan_inversion import ops


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    before=st.integers(-1, 5),
    after=st.integers(-1, 5),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(7, 9), st.integers(7, 9)),
)
def test_upfirdn2d_equals_its_reference(
    up: int, down: int, before: int, after: int, kernel: tuple[int, int], size: tuple[int, int]
) -> None:
    x, k = randn(2, 3, *size), randn(*kernel, seed=1)
    fast = ops.upfirdn2d(x, k, up=up, down=down, padding=(before, after))
    plain = ops.upfirdn2d_reference(x, k, up=up, down=down, padding=(before, after))
    torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulated_conv2d_equals_its_reference(up: bool, demodulate: bool, kernel: int) -> None:
    if up and kernel == 1:
        kernel = 3  # StyleGAN2 only upsamples with 3 x 3
    x, weight, style = randn(3, 4, 5, 6), randn(7, 4, kernel, kernel, seed=1), randn(3, 4, seed=2)
    fast = ops.modulated_conv2d(x, weight, style, demodulate=demodulate, up=up)
    plain = ops.modulated_conv2d_reference(x, weight, style, demodulate=demodulate, up=up)
    torch.testing.assert_close(fast, plain)
    assert fast.shape[-2:] == ((10, 12) if up else (5, 6))


@pytest.mark.parametrize("up", [False, True])
def test_modulated_conv2d_is_differentiable_twice(up: bool) -> None:
    x, weight, style = (t.requires_grad_() for t in (randn(2, 2, 3, 3), randn(2, 2, 3, 3, seed=1), randn(2, 2, seed=2)))

    def run(x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
        return ops.modulated_conv2d(x, weight, style, up=up)

    assert gradcheck(run, (x, weight, style))
    assert gradgradcheck(run, (x, weight, style))


def test_upfirdn2d_and_bias_act_are_differentiable_twice() -> None:
    x, kernel, bias = randn(1, 2, 4, 4).requires_grad_(), ops.blur_kernel(dtype=torch.float64), randn(2, seed=3)
    assert gradgradcheck(lambda t: ops.upfirdn2d(t, kernel, up=2, padding=(2, 1)), (x,))
    assert gradgradcheck(ops.bias_act, (x, bias.requires_grad_()))
    assert gradcheck(ops.bias_act, (x, bias))


def test_no_weight_per_sample() -> None:
    """The memory that one call saves for the backward pass holds no (batch, out, in, k, k) tensor."""
    x, weight, style = torch.randn(8, 16, 4, 4), torch.randn(16, 16, 3, 3, requires_grad=True), torch.randn(8, 16)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.numel()), t)[1], lambda t: t):
        ops.modulated_conv2d(x, weight, style.requires_grad_())
    assert saved and max(saved) < 8 * 16 * 16 * 9


@pytest.mark.parametrize(
    ("size", "up", "demodulate"), [(0.0, False, True), (1e-3, True, True), (300.0, True, False), (1000.0, False, True)]
)
def test_float16_with_styles_of_any_size(size: float, up: bool, demodulate: bool) -> None:
    """The square of a style of 256 overflows in float16, and a layer that is divided by infinity draws zeros."""
    x, weight, style = randn(2, 64, 8, 8) * 50, randn(16, 64, 3, 3, seed=1) / 24, randn(2, 64, seed=2) * size
    if not demodulate:
        x = x / max(1.0, size)  # the result itself must fit float16
    x, weight, style = (tensor.half() for tensor in (x, weight, style))
    got = ops.modulated_conv2d(x, weight, style, demodulate=demodulate, up=up)
    want = ops.modulated_conv2d(x.float(), weight.float(), style.float(), demodulate=demodulate, up=up)
    assert got.dtype == torch.float16 and torch.isfinite(got).all()
    assert bool(want.any()) == (size > 0)
    torch.testing.assert_close(got.float(), want, rtol=0, atol=4e-3 * max(1e-4, float(want.abs().max())))
