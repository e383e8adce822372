from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from torch import Tensor

from stylegan_inversion import hub

SIZES = ImageEncoderConfig(16, 12, (4, 4, 4, 4))


def pictures(count: int, side: int = 16) -> Tensor:
    """Smooth ones, so that a few components stand out."""
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(small, size=side, mode="bilinear")


def encoder_of(sizes: ImageEncoderConfig) -> ImageEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageEncoder(sizes)


@pytest.mark.parametrize(("side", "linear"), [(16, 16), (32, 32), (48, 16), (64, 32), (96, 32)])
def test_shapes(side: int, linear: int) -> None:
    encoder = encoder_of(ImageEncoderConfig(side, 10, (2, 3, 4, 5)))
    assert encoder.config.linear_resolution == linear
    x = pictures(3, side)
    assert encoder.pixels(x).shape == (3, 3 * linear**2)
    for mode in (True, False):
        w = encoder.train(mode)(x)
        assert w.shape == (3, 10)
        torch.testing.assert_close(w.square().mean(dim=1), torch.ones(3))


def test_the_defaults_are_those_of_the_first_weights() -> None:
    encoder = ImageEncoder(ImageEncoderConfig())
    convs = [(m.out_channels, m.stride[0]) for m in encoder.convs if isinstance(m, torch.nn.Conv2d)]
    assert convs == [(32, 2), (32, 1), (96, 2), (96, 1), (160, 2), (160, 1), (256, 2), (256, 1)]
    assert encoder.head.in_features == 4096 and encoder.head.out_features == 512


def test_larger_pictures_are_pooled() -> None:
    encoder = encoder_of(SIZES).eval()
    large = pictures(2, 64)
    torch.testing.assert_close(encoder(large), encoder(torch.nn.functional.avg_pool2d(large, 4)))


def test_every_part_has_a_say() -> None:
    encoder = encoder_of(SIZES)
    encoder(pictures(4))[:, 0].sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name
    black = encoder_of(SIZES)
    for p in black.parameters():
        p.data.zero_()
    assert torch.equal(black(pictures(2)), torch.zeros(2, 12))  # no division by 0


def test_the_linear_part_begins_as_principal_components() -> None:
    encoder, x = encoder_of(SIZES), pictures(60)
    pixels = encoder.pixels(x)
    encoder.start_from_components(pixels, 5)
    pca = PCA(5, svd_solver="full").fit(pixels.double().numpy())
    variance = pca.explained_variance_[::-1] * 59 / 60  # of all pictures, not an estimate; the largest comes last
    weight = encoder.linear.weight.detach().double().numpy()
    assert np.count_nonzero(weight[5:]) == 0
    lengths = np.linalg.norm(weight[:5], axis=1)
    for row, length, component in zip(weight[:5], lengths, pca.components_[::-1]):
        assert abs(row @ component) / length == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(lengths / lengths[0], (variance / variance[0]) ** -0.25, rtol=1e-4)
    np.testing.assert_allclose(encoder.mean.numpy(), pca.mean_, atol=1e-6)

    raw = encoder.linear(pixels - encoder.mean).detach()
    assert float(raw.square().mean()) == pytest.approx(1, rel=1e-4)  # of mean square 1 before each w is normalised
    expected = np.abs(pca.transform(pixels.double().numpy())[:, ::-1]) * variance**-0.25
    ours = raw[:, :5].abs().numpy()
    np.testing.assert_allclose(ours / ours.sum(), expected / expected.sum(), rtol=1e-3, atol=1e-6)
    # The convolutions say nothing yet, but can learn
    w = encoder(x)
    torch.testing.assert_close(w, raw * raw.square().mean(dim=1, keepdim=True).rsqrt(), rtol=1e-4, atol=1e-5)
    w[:, 5].sum().backward()
    assert encoder.head.weight.grad is not None and encoder.head.weight.grad.abs().sum() > 0


def test_as_many_components_as_w_has_axes() -> None:
    encoder = encoder_of(SIZES)
    encoder.start_from_components(encoder.pixels(pictures(13)), 12)
    assert bool((encoder.linear.weight.norm(dim=1) > 0).all())
    flat = encoder_of(SIZES)
    flat.start_from_components(encoder.pixels(torch.zeros(13, 3, 16, 16) + torch.eye(13)[:, :1, None, None]), 12)
    assert torch.isfinite(flat.linear.weight).all()


@pytest.mark.parametrize(
    ("count", "given", "message"),
    [
        (0, 20, r"`count` must be in \[1, 12\], the size of w or of the pictures, got 0"),
        (13, 20, r"`count` must be in \[1, 12\], .* got 13"),
        (5, 5, "5 components need more than 5 pictures, got 5"),
    ],
)
def test_bad_components(count: int, given: int, message: str) -> None:
    encoder = encoder_of(SIZES)
    with pytest.raises(ValueError, match=message):
        encoder.start_from_components(encoder.pixels(pictures(given)), count)


def test_bad_size() -> None:
    with pytest.raises(ValueError, match="`input_resolution` must be a multiple of 16, got 24"):
        ImageEncoderConfig(input_resolution=24)


def test_round_trip(tmp_path: Path) -> None:
    encoder = encoder_of(SIZES)
    encoder.start_from_components(encoder.pixels(pictures(20)), 4)
    encoder(pictures(8))  # moves its statistics
    hub.save_module(encoder, tmp_path)
    loaded = hub.load_module(ImageEncoder, ImageEncoderConfig, tmp_path)
    assert loaded.config == SIZES and not loaded.training
    assert torch.equal(loaded(pictures(2)), encoder.eval()(pictures(2)))
    assert torch.equal(loaded.mean, encoder.mean)
