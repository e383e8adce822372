import numpy as np
import pytest
import torch
from torch import nn

from stylegan_inversion.models.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    LatentDiscriminator,
    LatentDiscriminatorConfig,
    append_minibatch_std,
)

TINY = DiscriminatorConfig(resolution=16, channel_base=64, channel_max=8, group_size=2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(module: nn.Module) -> nn.Module:
    source = rng(9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    return module


@pytest.mark.parametrize("resolution", [16, 32, 64])
@pytest.mark.parametrize("batch", [1, 2, 4])
@torch.no_grad()
def test_shape(resolution: int, batch: int) -> None:
    discriminator = Discriminator(DiscriminatorConfig(resolution, channel_base=64, channel_max=8, group_size=2))
    logits = discriminator(torch.randn(batch, 3, resolution, resolution, generator=rng()))
    assert logits.shape == (batch,) and logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 48}, r"`resolution` must be a power of two from 4 to 2048, got 48\."),
        ({"channel_base": 512}, r"`channel_base` must be >= resolution, got 512\."),
    ],
)
def test_config_refuses(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**arguments)


def test_a_batch_that_groups_do_not_divide_is_refused() -> None:
    message = r"The batch \(3\) must be smaller than, or a multiple of, `group_size` \(2\)\."
    with pytest.raises(ValueError, match=message):
        append_minibatch_std(torch.zeros(3, 1, 4, 4), 2)
    with pytest.raises(ValueError, match=message):
        Discriminator(TINY)(torch.zeros(3, 3, 16, 16))


@pytest.mark.parametrize(("batch", "group_size"), [(8, 4), (4, 4), (2, 4), (6, 2)])
def test_minibatch_std_against_numpy(batch: int, group_size: int) -> None:
    x = torch.randn(batch, 3, 4, 5, generator=rng())
    group = min(batch, group_size)
    num_groups = batch // group
    expected = np.empty((batch, 1, 4, 5), np.float32)
    for g in range(num_groups):
        members = x.numpy()[g::num_groups]  # sample n belongs to group n mod num_groups
        assert len(members) == group
        expected[g::num_groups] = np.sqrt(members.var(axis=0) + 1e-8).mean()
    y = append_minibatch_std(x, group_size)
    assert torch.equal(y[:, :3], x)
    torch.testing.assert_close(y[:, 3:], torch.from_numpy(expected))


def test_every_parameter_gets_a_gradient() -> None:
    discriminator = seeded(Discriminator(TINY))
    discriminator(torch.randn(4, 3, 16, 16, generator=rng())).sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_the_gradient_penalty_is_differentiable() -> None:
    discriminator = seeded(Discriminator(TINY))
    x = torch.randn(2, 3, 16, 16, generator=rng()).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    weight = discriminator.get_parameter("from_rgb.weight")
    assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.abs().max() > 0


def test_latent_discriminator() -> None:
    discriminator = seeded(LatentDiscriminator(LatentDiscriminatorConfig(w_dim=6, num_layers=3)))
    logits = discriminator(torch.randn(5, 6, generator=rng()))
    assert logits.shape == (5,)
    assert sum(isinstance(layer, nn.Linear) for layer in discriminator.modules()) == 3
    logits.sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
