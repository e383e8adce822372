import pytest
import torch

from stylegan_inversion.losses.crop import inner_face


@pytest.mark.parametrize(
    ("side", "rows", "columns"),
    [
        (256, (35, 223), (32, 220)),
        (1024, (140, 892), (128, 880)),
        (64, (9, 56), (8, 55)),
        (32, (4, 28), (4, 28)),  # 27.5 is rounded up
        (1, (0, 1), (0, 1)),
    ],
)
def test_region(side: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    x = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    assert torch.equal(inner_face(x), x[:, :, rows[0] : rows[1], columns[0] : columns[1]])


@pytest.mark.parametrize("side", range(1, 70))
def test_never_empty(side: int) -> None:
    assert min(inner_face(torch.zeros(1, 3, side, side)).shape) > 0


def test_it_is_a_view() -> None:
    x = torch.zeros(1, 1, 64, 64)
    inner_face(x).fill_(1.0)
    assert x.sum() == 47 * 47


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Images must be square, got 192 x 256\."):
        inner_face(torch.zeros(1, 3, 192, 256))
