import torch

from stylegan_inversion.losses.w_norm import w_norm_loss
from tests.conformance import draw_state_dict, load_case, relative_error


def test_conformance() -> None:
    case, theirs = load_case("latent_adversarial")
    inputs = draw_state_dict(case["inputs"], case["seed"])
    assert relative_error(w_norm_loss(inputs["w_plus"], inputs["latent_avg"])[None], theirs["w_norm"]) <= 1e-4


def test_by_hand() -> None:
    w_plus = torch.tensor([[[4.0, 1.0], [1.0, 5.0]], [[1.0, 1.0], [1.0, 1.0]]])
    w_avg = torch.tensor([1.0, 1.0])
    assert w_norm_loss(w_plus, w_avg).item() == 5 / 2
    assert w_norm_loss(w_plus, w_avg.expand(2, 2)).item() == 5 / 2
    assert w_norm_loss(w_plus[1:], w_avg).item() == 0
