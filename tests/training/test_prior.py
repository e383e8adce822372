import copy

import pytest
import torch
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.training.prior import fit_prior
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.layers import EqualLinear, StyledConv, ToRGB
from tests.training.test_checkpoint import same


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def networks(*, z_dim: int = 16, w_dim: int = 16, layers: int = 2) -> tuple[Generator, ImageEncoder]:
    """Tiny ones of the real classes, whose every part shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = GeneratorConfig(16, z_dim=z_dim, w_dim=w_dim, mapping_layers=layers, channel_base=128, channel_max=8)
        generator, encoder = Generator(sizes), ImageEncoder(ImageEncoderConfig(16, w_dim, (4, 4, 4, 4)))
        for module in generator.synthesis.modules():
            if isinstance(module, StyledConv | ToRGB):
                torch.nn.init.normal_(module.bias)
                torch.nn.init.normal_(module.affine.bias)
        for conv in generator.synthesis.convs:
            torch.nn.init.constant_(conv.noise_strength, 0.1)
        torch.nn.init.normal_(encoder.mean)
        encoder(torch.randn(8, 3, 16, 16))  # statistics of the batch normalisation
    return generator.eval(), encoder.eval()


def codes(count: int, w_dim: int) -> Tensor:
    """Correlated, of deviations from 2 down to 0.1 and a mean of both signs."""
    return (normal(count, w_dim) * torch.linspace(2, 0.1, w_dim)) @ normal(w_dim, w_dim, seed=1) / w_dim**0.5 + normal(
        w_dim, seed=2
    )


def fit(generator: Generator, encoder: ImageEncoder, w: Tensor) -> Tensor:
    """Fit, and tell the axes by what has become of the encoder's bias-free part; (w_dim, w_dim), in columns."""
    before = encoder.linear.weight.detach().double().clone()
    fit_prior(generator, encoder, w)
    return torch.linalg.lstsq(before.T, encoder.linear.weight.detach().double().T).solution


def expected_w(z: Tensor, w: Tensor, axes: Tensor, count: int) -> Tensor:
    """The closed form: the mean, and along the first axes the deviation times the normalised z."""
    turned = w.double() @ axes
    z = z.double() / z.double().square().mean(dim=1, keepdim=True).sqrt()
    expected = turned.mean(dim=0).repeat(len(z), 1)
    expected[:, :count] += turned.std(dim=0)[:count] * z[:, :count]
    return expected


@torch.no_grad()
def test_reconstructions_do_not_change() -> None:
    generator, encoder = networks()
    old_generator, old_encoder = copy.deepcopy(generator), copy.deepcopy(encoder)
    axes = fit(generator, encoder, codes(100, 16))
    torch.testing.assert_close(axes @ axes.T, torch.eye(16).double(), rtol=0, atol=1e-5)
    assert (axes - torch.eye(16)).abs().max() > 0.5  # they do turn
    x = normal(12, 3, 16, 16, seed=3)
    old_w, w = old_encoder(x), encoder(x)
    torch.testing.assert_close(w, (old_w.double() @ axes).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        generator.synthesis(latents.broadcast(w, 6)),
        old_generator.synthesis(latents.broadcast(old_w, 6)),
        rtol=1e-5,
        atol=1e-5,
    )
    # Another w in each layer
    torch.testing.assert_close(
        generator.synthesis(w.view(2, 6, 16)), old_generator.synthesis(old_w.view(2, 6, 16)), rtol=1e-5, atol=1e-5
    )
    kinds = set()
    for (name, module), old in zip(generator.synthesis.named_modules(), old_generator.synthesis.modules()):
        if isinstance(module, StyledConv | ToRGB):
            kinds.add(type(module))
            torch.testing.assert_close(
                module.affine(w), old.get_submodule("affine")(old_w), rtol=1e-5, atol=1e-5, msg=name
            )
    assert kinds == {StyledConv, ToRGB}


def test_what_is_written() -> None:
    generator, encoder = networks()
    changed = []
    before = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks()]
    w = codes(100, 16)
    kept = w.clone()
    fit_prior(generator, encoder, w)
    assert torch.equal(w, kept)
    for network, old in zip((generator, encoder), before):
        changed.append({name for name, tensor in network.state_dict().items() if not torch.equal(tensor, old[name])})
    styles = {
        f"synthesis.{name}.affine.weight" for name, m in generator.synthesis.named_modules() if hasattr(m, "affine")
    }
    assert len(styles) == 5 + 3
    mapping = {f"mapping.{name}" for name, _ in generator.mapping.named_parameters()}
    assert changed == [{"w_avg"} | styles | mapping, {"head.weight", "head.bias", "linear.weight"}]
    assert all(p.requires_grad and p.grad_fn is None for p in generator.parameters())


@torch.no_grad()
def test_samples_have_the_mean_and_the_main_components_of_the_codes() -> None:
    generator, encoder = networks(z_dim=12)
    w = codes(300, 16)
    turned = w.double() @ fit(generator, encoder, w)
    # The axes are principal, the largest first
    cov, deviation = turned.T.cov(), turned.std(dim=0)
    torch.testing.assert_close(cov, torch.diag(cov.diag()), rtol=0, atol=1e-5)
    assert bool((deviation.diff() < 0).all()) and deviation[0] > 5 * deviation[-1]
    torch.testing.assert_close(generator.w_avg.double(), turned.mean(dim=0), rtol=1e-5, atol=1e-5)
    count = 200_000
    samples = generator.mapping(normal(count, 12, seed=5)).double()
    standard = (samples[:, :8] - turned.mean(dim=0)[:8]) / deviation[:8]
    # Standard errors: count^-1/2 of a mean and of a correlation, (2 / count)^1/2 of a variance
    assert float(standard.mean(dim=0).abs().max()) < 5 / count**0.5
    assert float((standard.T.cov() - torch.eye(8)).abs().max()) < 5 * (2 / count) ** 0.5
    # Where nothing is drawn, all samples are at the mean, to the last bit the same
    rest = turned.mean(dim=0)[8:]
    assert bool((rest < -0.01).any()) and bool((rest > 0.01).any())
    assert torch.equal(samples[:, 8:], samples[:1, 8:].expand(count, -1))
    torch.testing.assert_close(samples[0, 8:], rest, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("z_dim", "w_dim", "layers", "count", "drawn"),
    [
        (16, 16, 2, 100, 8),
        (16, 16, 3, 100, 8),
        (16, 16, 8, 100, 8),
        (16, 16, 2, 4, 3),  # few pictures
        (16, 16, 8, 2, 1),
        (3, 16, 8, 100, 3),  # small z
        (16, 9, 2, 100, 4),  # odd w
        (16, 9, 8, 100, 4),
        (1, 1, 2, 10, 0),  # nothing to draw
        (512, 512, 8, 600, 256),
    ],
)
def test_w_is_linear_in_the_normalised_z(z_dim: int, w_dim: int, layers: int, count: int, drawn: int) -> None:
    generator, encoder = networks(z_dim=z_dim, w_dim=w_dim, layers=layers)
    w = codes(count, w_dim)
    axes = fit(generator, encoder, w)
    z = 3 * normal(500, z_dim, seed=7)
    ours, expected = generator.mapping(z).double(), expected_w(z, w, axes, drawn)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    moves = (ours - ours[0]).abs().amax(dim=0) > 0
    assert bool(moves[:drawn].all()) and not moves[drawn:].any()
    if drawn > 3:  # the bends of the leaky ReLU are crossed
        assert bool((ours[:, 0] < 0).any()) and bool((ours[:, 0] > 0).any())
    # Opposite z lie opposite each other
    torch.testing.assert_close(
        generator.mapping(z) + generator.mapping(-z), 2 * generator.w_avg.expand(500, -1), rtol=1e-4, atol=1e-4
    )


def test_the_same_every_time() -> None:
    (a, a_encoder), (b, b_encoder), (c, c_encoder) = networks(), networks(), networks()
    w = codes(100, 16)
    fit_prior(a, a_encoder, w)
    fit_prior(b, b_encoder, w)
    assert same(dict(a.state_dict()), dict(b.state_dict()))
    assert same(dict(a_encoder.state_dict()), dict(b_encoder.state_dict()))
    # Rounding turns no sign: the largest part of each axis is positive
    axes = fit(c, c_encoder, w.flip(0))
    for name, tensor in c.state_dict().items():
        torch.testing.assert_close(tensor, a.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    assert bool((largest > 0).all())
    # Fitted again to the turned w, nothing is left to turn
    again = fit(c, c_encoder, (w.double() @ axes).float())
    torch.testing.assert_close(again, torch.eye(16).double(), rtol=0, atol=1e-4)
    for name, tensor in c.state_dict().items():
        torch.testing.assert_close(tensor, a.state_dict()[name], rtol=1e-3, atol=1e-3, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("layers", [2, 8])
def test_it_can_be_stored_as_float16(layers: int) -> None:
    generator, encoder = networks(z_dim=512, w_dim=512, layers=layers)
    fit_prior(generator, encoder, codes(600, 512))
    z = normal(50, 512, seed=7)
    w, w_avg = generator.mapping(z), generator.w_avg.clone()
    generator.half().float()
    assert all(bool(p.isfinite().all()) for p in generator.parameters())
    # Each weight and bias is off by a share of 2^-11 at most, and no number is the difference of larger ones
    bound = (layers + 1) * 2**-11 * (w_avg.abs() + (w - w_avg).abs()) + 1e-5
    assert bool(((generator.mapping(z) - w).abs() < bound).all())


def test_it_can_be_trained_on() -> None:
    """By an adversarial run. No unit is dead: after a step, in which the last layer begins to read all, all learn."""
    generator, encoder = networks(layers=8)
    fit_prior(generator, encoder, codes(100, 16))
    optimizer = torch.optim.Adam(generator.mapping.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (generator.mapping(normal(64, 16)) * normal(16, seed=9)).square().sum().backward()
        optimizer.step()
    for layer in generator.mapping.layers:
        assert isinstance(layer, EqualLinear) and layer.weight.grad is not None
        assert bool(layer.weight.grad.isfinite().all()) and bool(layer.weight.grad.any(dim=1).all())


def test_bad_arguments() -> None:
    generator, encoder = networks()
    before = [copy.deepcopy(dict(network.state_dict())) for network in (generator, encoder)]
    with pytest.raises(ValueError, match="A distribution needs at least 2 w, got 1"):
        fit_prior(generator, encoder, codes(1, 16))
    assert same([dict(network.state_dict()) for network in (generator, encoder)], before)
    with pytest.raises(ValueError, match="`mapping_layers` must be at least 2, got 1"):
        fit_prior(*networks(layers=1), codes(10, 16))
