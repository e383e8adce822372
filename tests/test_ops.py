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
@pytest.mark.parametrize("batch", [1, 3])  # one sample gets a weight of its own if its features are larger
@pytest.mark.parametrize("leaf", ["everything", "the style alone"])
def test_styled_conv_and_its_gradients_equal_the_reference(up: bool, batch: int, leaf: str) -> None:
    x, weight, style = randn(batch, 4, 7, 8), randn(7, 4, 3, 3, seed=1), randn(batch, 4, seed=2)
    side = (14, 16) if up else (7, 8)
    tensors = (x, weight, style, randn(7, seed=3), randn(1, 1, *side, seed=4))
    leaves = [tensor.requires_grad_() for tensor in (tensors if leaf == "everything" else (style,))]
    probes = [randn(*tensor.shape, seed=5) for tensor in leaves]
    results = []
    for run in (ops.styled_conv, ops.styled_conv_reference):
        out = run(*tensors, up=up)
        first = torch.autograd.grad(out.pow(3).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum((a * b).sum() for a, b in zip(first, probes)), leaves)
        results.append([out, *first, *second])
    assert results[0][0].shape == (batch, 7, *side)
    for fast, plain in zip(*results):
        torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_styled_conv_is_differentiable_twice(up: bool, batch: int) -> None:
    shapes = ((batch, 2, 4, 3), (2, 2, 3, 3), (batch, 2), (2,))
    inputs = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert gradcheck(lambda *tensors: ops.styled_conv(*tensors, up=up), inputs)
    assert gradgradcheck(lambda *tensors: ops.styled_conv(*tensors, up=up), inputs)


def test_to_rgb_equals_its_reference() -> None:
    shapes = ((3, 4, 5, 6), (3, 4, 1, 1), (3, 4), (3,))
    inputs = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    torch.testing.assert_close(ops.to_rgb(*inputs), ops.to_rgb_reference(*inputs))
    assert gradcheck(ops.to_rgb, inputs) and gradgradcheck(ops.to_rgb, inputs)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1.0), (torch.float16, 1.0), (torch.float16, 1e-4)])
def test_under_autocast(batch: int, dtype: torch.dtype, size: float) -> None:
    """The squares of small styles vanish in float16, in which autocast computes matrix products."""
    shapes = ((batch, 8, 16, 16), (8, 8, 3, 3), (batch, 8), (8,), (1, 1, 16, 16))
    x, weight, style, bias, noise = (randn(*shape, seed=i).float() for i, shape in enumerate(shapes))
    inputs, rgb = (x, weight, style * size, bias, noise), (weight[:3, :, :1, :1], style, bias[:3])
    want = ops.to_rgb(ops.styled_conv(*inputs), *rgb)
    with torch.autocast("cpu", dtype):
        features = ops.styled_conv(*inputs)
        got = ops.to_rgb(features, *rgb)
    assert features.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=0, atol=0.02 * float(want.abs().max()))


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
        ops.styled_conv(x, weight, style.requires_grad_(), torch.zeros(16))
    assert saved and max(saved) < 8 * 16 * 16 * 9


@pytest.mark.parametrize("size", [0.0, 1e-3, 300.0, 1000.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_float16_with_styles_of_any_size(size: float, batch: int) -> None:
    """The square of a style of 256 overflows in float16, and a layer that is divided by infinity draws zeros."""
    x, weight, style = randn(batch, 64, 8, 8) * 50, randn(16, 64, 3, 3, seed=1) / 24, randn(batch, 64, seed=2) * size
    drawn = x, weight, style, torch.zeros(16), None
    rgb = x / max(1.0, size), weight[:3, :, :1, :1], style, torch.zeros(3)  # the result itself must fit float16
    for run, inputs in ((ops.styled_conv, drawn), (ops.to_rgb, rgb)):
        halves = [t if t is None else t.half() for t in inputs]
        got, want = run(*halves), run(*(t if t is None else t.float() for t in halves))
        assert got.dtype == torch.float16 and torch.isfinite(got).all()
        assert bool(want.any()) == (size > 0)
        torch.testing.assert_close(got.float(), want, rtol=0, atol=4e-3 * max(1e-4, float(want.abs().max())))


@pytest.mark.parametrize(("size", "side"), [((188, 188), 112), ((10, 7), 3), ((5, 8), 16), ((12, 6), 3)])
def test_average_pool_equals_pytorchs(size: tuple[int, int], side: int) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ops.average_pool(x, side), torch.nn.functional.adaptive_avg_pool2d(x, side))
