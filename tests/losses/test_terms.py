"""The terms of one line: L2, the crop, e4e's deltas, the W-norm and the distance to a known w."""

import pytest
import torch

from stylegan_inversion.losses.delta import delta_loss
from stylegan_inversion.losses.identity import inner_face
from stylegan_inversion.losses.l2 import l2_loss
from stylegan_inversion.losses.w_distance import w_distance_loss
from stylegan_inversion.losses.w_norm import w_norm_loss
from tests.conformance import draw_state_dict, load_case, relative_error


def test_conformance() -> None:
    case, theirs = load_case("latent_adversarial")
    inputs = draw_state_dict(case["inputs"], case["seed"])
    for stage in (1, 9, 17):
        ours = delta_loss(inputs["w_plus"], stage)[None]
        assert relative_error(ours, theirs[f"delta_reg_stage_{stage}"]) <= 1e-4
    assert relative_error(w_norm_loss(inputs["w_plus"], inputs["latent_avg"])[None], theirs["w_norm"]) <= 1e-4


def test_l2_by_hand() -> None:
    y_hat = torch.tensor([[[[1.0, -1.0]]], [[[0.5, 0.0]]]])
    y = torch.tensor([[[[-1.0, -1.0]]], [[[0.0, 0.0]]]])
    assert l2_loss(y_hat, y).item() == (4 + 0.25) / 4
    assert l2_loss(torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)).item() == 4


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
def test_the_crop_is_a_view_of_the_region(side: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    x = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    crop = inner_face(x)
    assert torch.equal(crop, x[:, :, rows[0] : rows[1], columns[0] : columns[1]])
    crop.fill_(-1.0)
    assert (x == -1).sum() == crop.numel() > 0


def test_delta_by_hand() -> None:
    w_plus = torch.tensor([[[1.0, 1.0], [4.0, 5.0], [1.0, 3.0]], [[0.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    assert delta_loss(w_plus, 0).item() == 0
    assert delta_loss(w_plus, 1).item() == (5 + 1) / 2
    assert delta_loss(w_plus[:1], 2).item() == 5 + 2
    equal = torch.ones(2, 4, 3, requires_grad=True)
    delta_loss(equal, 3).backward()
    assert equal.grad is not None and torch.isfinite(equal.grad).all()


def test_w_distance_by_hand() -> None:
    w_plus = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]], requires_grad=True)
    w = torch.tensor([[1.0, 2.0], [0.0, 0.0]])  # one w goes with its own sample: batch and layers are equal here
    loss = w_distance_loss(w_plus, w)
    assert loss.item() == w_distance_loss(w_plus, w[:, None].expand(2, 2, 2)).item() == (0 + 4 + 0 + 2) / 4
    loss.backward()
    assert w_plus.grad is not None
    torch.testing.assert_close(w_plus.grad, 2 * (w_plus - w[:, None]).detach() / 8)


def test_refusals() -> None:
    for num_deltas in (-1, 4):
        with pytest.raises(ValueError, match=rf"`num_deltas` must be in \[0, 3\], got {num_deltas}\."):
            delta_loss(torch.zeros(1, 4, 2), num_deltas)
    with pytest.raises(ValueError, match=r"Images must be square, got 192 x 256\."):
        inner_face(torch.zeros(1, 3, 192, 256))
