import pytest
import torch
from stylegan_inversion.models.feature_discriminator import FeatureDiscriminator, FeatureDiscriminatorConfig
from torch import Tensor


def features(x: Tensor) -> list[Tensor]:
    return [torch.nn.functional.normalize(x.repeat(1, 2, 1, 1)), torch.nn.functional.normalize(x[:, :, ::2, ::2])]


def make() -> FeatureDiscriminator:
    torch.manual_seed(0)
    return FeatureDiscriminator(FeatureDiscriminatorConfig((6, 3), width=4), features)


def test_one_score_an_image_whatever_the_batch() -> None:
    discriminator = make().eval()
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = discriminator(x)
    assert scores.shape == (4,)
    assert torch.allclose(scores, torch.cat([discriminator(image[None]) for image in x]), atol=1e-6)
    assert scores.std() > 0


def test_it_learns_to_tell_two_kinds_of_images() -> None:
    discriminator = make()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    rng = torch.Generator().manual_seed(0)

    def gap() -> Tensor:
        noise = torch.randn(8, 3, 16, 16, generator=rng)
        smooth = torch.nn.functional.interpolate(torch.randn(8, 3, 2, 2, generator=rng), size=16, mode="bilinear")
        return discriminator(smooth).mean() - discriminator(noise).mean()

    before = gap().item()
    for _ in range(40):
        loss = -gap()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert gap().item() > before + 0.5


def test_the_network_behind_it_is_no_part_of_it() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 6, 1)

        def features(self, x: Tensor) -> list[Tensor]:
            return [self.conv(x), x]

    network = Network()
    discriminator = FeatureDiscriminator(FeatureDiscriminatorConfig((6, 3)), network.features)
    assert all(key.startswith(("heads.", "norms.", "pixels.")) for key in discriminator.state_dict())
    assert len(list(discriminator.parameters())) == (2 * 3 + 5) * 2  # convolutions, weight and bias


def test_it_sees_what_the_features_leave_out() -> None:
    """A brighter picture of the same features, where they are normalised over the channels."""
    discriminator = make().eval()
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(features(x), features(2 * x)))
    assert (discriminator(x) - discriminator(2 * x)).abs().min() > 1e-4


def test_features_are_brought_to_those_of_real_pictures() -> None:
    discriminator = make().eval()
    x = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0.1 * x[:, 1] + 3
    x[:, 2] = 0.5  # a channel that never moves keeps its scale
    discriminator.features = lambda x: [x.repeat(1, 2, 1, 1), x[:, :, ::2, ::2]]
    before = discriminator(x)
    discriminator.fit([])
    assert torch.equal(discriminator(x), before)
    discriminator.fit(iter(x.split([8, 8, 1, 23])))
    assert not torch.equal(discriminator(x), before)
    for norm, layer in zip(discriminator.norms, discriminator.features(x)):
        seen = norm(layer)
        deviation, mean = torch.std_mean(seen[:, [0, 1, -3, -2]], dim=(0, 2, 3), correction=0)
        assert torch.allclose(mean, torch.zeros(4), atol=1e-5) and torch.allclose(deviation, torch.ones(4), atol=1e-5)
        assert torch.equal(seen[:, -1], torch.zeros_like(seen[:, -1])) and norm.deviation[-1] == 1
    other = make()
    other.load_state_dict(discriminator.state_dict())
    other.features = discriminator.features
    assert torch.equal(other.eval()(x), discriminator(x))


def test_bad_values() -> None:
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"`features` must be set before images are judged"):
        FeatureDiscriminator(FeatureDiscriminatorConfig((3,)))(x)
    with pytest.raises(ValueError, match=r"`features` must give 1 layers, one a head, got 2"):
        FeatureDiscriminator(FeatureDiscriminatorConfig((3,)), features)(x)
