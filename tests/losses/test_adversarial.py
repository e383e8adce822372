import math

import pytest
import torch

from stylegan_inversion.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from stylegan_inversion.models.discriminator import LatentDiscriminator, LatentDiscriminatorConfig
from tests.conformance import draw_state_dict, load_case, relative_error


def test_conformance() -> None:
    case, theirs = load_case("latent_adversarial")
    discriminator = LatentDiscriminator(LatentDiscriminatorConfig(w_dim=512, num_layers=4))
    discriminator.load_state_dict(draw_state_dict(case["state_dict"], case["seed"]))
    inputs = draw_state_dict(case["inputs"], case["seed"])
    real_w = inputs["real_w"].requires_grad_()
    real_logits = discriminator(real_w)
    fake_logits = discriminator(inputs["fake_w"])
    ours = {
        "real_pred": real_logits[:, None],
        "fake_pred": fake_logits[:, None],
        "d_loss": discriminator_loss(real_logits, fake_logits)[None],
        "e_loss": generator_loss(fake_logits)[None],
        "r1_penalty": r1_penalty(real_logits, real_w)[None],
    }
    assert {name: error for name in ours if (error := relative_error(ours[name], theirs[name])) > 1e-4} == {}


def test_values_by_hand() -> None:
    zeros, huge = torch.zeros(4, 1), torch.tensor([1e4, -1e4])
    assert discriminator_loss(zeros, torch.zeros(7)).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(zeros).item() == pytest.approx(math.log(2))
    assert discriminator_loss(huge, huge).item() == 1e4 and generator_loss(huge).item() == 5e3  # finite
    high, low = torch.full((3, 1), 10.0), torch.full((3, 1), -10.0)
    assert discriminator_loss(high, low) < 1e-3 < 19 < discriminator_loss(low, high)
    assert generator_loss(high) < 1e-3 < 9 < generator_loss(low)


def test_r1_needs_inputs_with_a_gradient() -> None:
    weight, images = torch.ones(2, requires_grad=True), torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"call `real_inputs.requires_grad_\(\)` before the discriminator"):
        r1_penalty(images @ weight, images)
    images.requires_grad_()
    with torch.no_grad():
        logits = images @ weight
    with pytest.raises(ValueError, match="`real_logits` must come from `real_inputs` with gradients on"):
        r1_penalty(logits, images)
