import torch

from stylegan_inversion.editing.ganspace import fit_pca, name_components


def test_components_are_the_axes_of_the_samples() -> None:
    rng = torch.Generator().manual_seed(1)
    axes, std = torch.linalg.qr(torch.randn(8, 8, generator=rng)).Q[:3], torch.tensor([3.0, 2.0, 0.5])
    samples = torch.randn(8, generator=rng) + (torch.randn(4000, 3, generator=rng) * std) @ axes
    fitted = fit_pca(samples, 3)
    torch.testing.assert_close(fitted.mean, samples.mean(dim=0))
    assert ((fitted.components * axes).sum(dim=1).abs() > 0.995).all()
    torch.testing.assert_close(fitted.std, std, rtol=0.05, atol=0)
    # the coordinates of the samples are uncorrelated and of unit variance
    coordinates = (samples - fitted.mean) @ fitted.components.T / fitted.std
    torch.testing.assert_close(coordinates.T.cov(), torch.eye(3), atol=1e-4, rtol=0)
    assert (fitted.components.amax(dim=1) == fitted.components.abs().amax(dim=1)).all()
    first, second = name_components(fitted.first(2), layers=(0, 4))
    assert (first.name, second.name, second.layers) == ("ganspace_1", "ganspace_2", (0, 4))
    assert first.strength_range == (-float(f"{2 * fitted.std[0]:.2g}"), float(f"{2 * fitted.std[0]:.2g}"))
    torch.testing.assert_close(second.vector, fitted.components[1])
