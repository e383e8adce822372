import pytest
import torch

from stylegan_inversion.losses.delta import delta_loss
from tests.conformance import draw_state_dict, load_case, relative_error


@pytest.mark.parametrize("stage", [1, 9, 17])
def test_conformance(stage: int) -> None:
    case, theirs = load_case("latent_adversarial")
    w_plus = draw_state_dict(case["inputs"], case["seed"])["w_plus"]
    assert relative_error(delta_loss(w_plus, stage)[None], theirs[f"delta_reg_stage_{stage}"]) <= 1e-4


def test_by_hand() -> None:
    w_plus = torch.tensor([[[1.0, 1.0], [4.0, 5.0], [1.0, 3.0]], [[0.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    assert delta_loss(w_plus, 1).item() == (5 + 1) / 2
    assert delta_loss(w_plus[:1], 2).item() == 5 + 2


def test_no_delta_costs_nothing() -> None:
    assert delta_loss(torch.randn(2, 3, 4), 0).item() == 0


def test_codes_in_w_cost_nothing_and_have_a_gradient() -> None:
    w_plus = torch.ones(2, 4, 3, requires_grad=True)
    loss = delta_loss(w_plus, 3)
    loss.backward()
    assert loss.item() == 0 and w_plus.grad is not None and torch.isfinite(w_plus.grad).all()


@pytest.mark.parametrize("num_deltas", [-1, 4])
def test_num_deltas_is_checked(num_deltas: int) -> None:
    with pytest.raises(ValueError, match=rf"`num_deltas` must be in \[0, 3\], got {num_deltas}\."):
        delta_loss(torch.zeros(1, 4, 2), num_deltas)
