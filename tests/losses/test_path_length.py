import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stylegan_inversion.losses.path_length import path_length, path_length_penalty

SHAPE = (3, 2, 4)  # of an image
WS = (2, 5)  # num_ws, w_dim


def quadratic(seed: int = 0) -> Callable[[Tensor], Tensor]:
    """w_plus -> images, each pixel a sum of a linear and of a quadratic form of its own sample."""
    rng = torch.Generator().manual_seed(seed)
    pixels, sizes = math.prod(SHAPE), math.prod(WS)
    linear = torch.randn(pixels, sizes, generator=rng, dtype=torch.float64)
    square = torch.randn(pixels, sizes, sizes, generator=rng, dtype=torch.float64)

    def draw(w_plus: Tensor) -> Tensor:
        w = w_plus.flatten(1)
        return (w @ linear.T + torch.einsum("bi,pij,bj->bp", w, square, w)).unflatten(1, SHAPE)

    return draw


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_against_a_jacobian_of_finite_differences() -> None:
    draw, w_plus, noise = quadratic(), normal(3, *WS), normal(3, *SHAPE, seed=2)
    step, columns = 1e-6, []
    for i in range(math.prod(WS)):
        move = torch.zeros(math.prod(WS), dtype=torch.float64)
        move[i] = step
        change = draw(w_plus + move.view(WS)) - draw(w_plus - move.view(WS))
        columns.append(change.flatten(1) / (2 * step))
    jacobian = torch.stack(columns, dim=2)  # (B, pixels, num_ws * w_dim)
    y = noise.flatten(1) / math.sqrt(2 * 4)
    product = torch.einsum("bpi,bp->bi", jacobian, y).unflatten(1, WS)
    expected = product.square().sum(2).mean(1).sqrt()

    w_plus.requires_grad_()
    torch.testing.assert_close(path_length(draw(w_plus), w_plus, noise), expected, rtol=1e-7, atol=0.0)


def test_the_mean_moves_a_hundredth_and_is_a_constant() -> None:
    lengths = torch.tensor([1.0, 3.0], requires_grad=True)
    penalty, mean = path_length_penalty(lengths, torch.tensor(1.0, requires_grad=True))
    assert mean.item() == pytest.approx(1.01) and not mean.requires_grad
    assert penalty.item() == 2
    penalty.backward()
    assert lengths.grad is not None and lengths.grad.tolist() == [0, 2]


def test_gradients_must_be_on() -> None:
    draw, w_plus, noise = quadratic(), normal(2, *WS), normal(2, *SHAPE)
    with pytest.raises(ValueError, match=r"call `w_plus.requires_grad_\(\)` before the generator"):
        path_length(draw(w_plus), w_plus, noise)
    w_plus.requires_grad_()
    with torch.no_grad():
        images = draw(w_plus)
    with pytest.raises(ValueError, match="`images` must come from `w_plus` with gradients on"):
        path_length(images, w_plus, noise)
