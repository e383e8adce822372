from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.training.batch_norm import SynchronizedBatchNorm2d
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.generator_config import ReconstructionOptions
from stylegan_inversion.training.reconstruction import Reconstruction
from torch import Tensor

from stylegan_inversion import hub, latents
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from tests.training.test_checkpoint import same


def pictures(count: int = 4, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def reconstruction_of(warm: Path, options: ReconstructionOptions, *, perceptual: bool = False) -> Reconstruction:
    encoder = hub.load_module(ImageEncoder, ImageEncoderConfig, warm / "autoencoder")
    return Reconstruction(
        encoder,
        options,
        perceptual=load_perceptual() if perceptual else None,
        betas=(0, 0.99),
        accelerator=Accelerator(cpu=True),
    )


def test_the_encoder_is_trained(warm: Path) -> None:
    reconstruction = reconstruction_of(warm, ReconstructionOptions(encoder_lr=3e-3))
    assert reconstruction.encoder.training and all(p.requires_grad for p in reconstruction.encoder.parameters())
    assert isinstance(reconstruction.encoder.convs[1], SynchronizedBatchNorm2d)
    group = reconstruction.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (3e-3, (0.0, 0.99))


def test_losses(warm: Path) -> None:
    y, y_hat = pictures(2, 32), pictures(4, 32)[2:].requires_grad_()
    plain = reconstruction_of(warm, ReconstructionOptions(weight=2.0))
    loss, terms = plain.losses(y_hat, y)
    l1, l2 = (y_hat - y).abs().mean(), (y_hat - y).square().mean()
    assert set(terms) == {"l1", "l2"}
    torch.testing.assert_close([loss, terms["l1"], terms["l2"]], [2 * (l1 + l2), l1, l2])
    full = reconstruction_of(warm, ReconstructionOptions(weight=2.0, lpips=3.0), perceptual=True)
    loss, terms = full.losses(y_hat, y)
    assert full.perceptual is not None
    torch.testing.assert_close(terms["lpips"], full.perceptual(y_hat, y).mean())
    torch.testing.assert_close(loss, 2 * (l1 + l2 + 3 * terms["lpips"]))
    loss.backward()
    assert y_hat.grad is not None and all(p.grad is None for p in full.perceptual.parameters())


@pytest.mark.parametrize("w_noise", [0.0, 0.3])
def test_codes(warm: Path, w_noise: float) -> None:
    generator = hub.load_module(Generator, GeneratorConfig, warm / "generator")
    reconstruction = reconstruction_of(warm, ReconstructionOptions(w_noise=w_noise))
    draws = Draws(generator, Accelerator(cpu=True), seed=0)
    (w_plus, noise), again = (reconstruction.codes(pictures(), draws, 3, num_ws=6) for _ in range(2))
    others = reconstruction.codes(pictures(), draws, 4, num_ws=6)
    assert torch.equal(w_plus, again[0]) and all(torch.equal(a, b) for a, b in zip(noise, again[1], strict=True))
    assert torch.equal(w_plus, others[0]) == (w_noise == 0)
    assert not any(torch.equal(a, b) for a, b in zip(noise, others[1], strict=True))
    assert generator.synthesis(w_plus, noise=noise).shape == (4, 3, 16, 16)
    reconstruction.restore(statistics := reconstruction.statistics())
    expected = reconstruction.encoder(pictures()) + w_noise * draws.normal("reconstruction", 3, (4, 16))
    torch.testing.assert_close(w_plus, latents.broadcast(expected, 6))
    assert not any(torch.equal(a, b) for a, b in zip(statistics[1:3], reconstruction.statistics()[1:3]))


def test_a_step(warm: Path) -> None:
    reconstruction = reconstruction_of(warm, ReconstructionOptions(encoder_lr=1e-2))
    for rate in (1.0, 0.25):
        before = [p.detach().clone() for p in reconstruction.parameters]
        loss = (reconstruction.encoder(pictures()) - 1).square().mean()
        loss.backward()
        assert reconstruction.step(loss, rate=rate)
        moves = [(p - old).abs().max() for p, old in zip(reconstruction.parameters, before)]
        assert 0 < float(torch.stack(moves).max().detach()) <= 1e-2 * rate * 11
        assert reconstruction.optimizer.param_groups[0]["lr"] == 1e-2 * rate
        assert all(p.grad is None for p in reconstruction.parameters)
    state = reconstruction.state()
    other = reconstruction_of(warm, ReconstructionOptions(encoder_lr=1e-2))
    other.load_state(state)
    assert same(dict(other.encoder.state_dict()), dict(reconstruction.encoder.state_dict()))
    assert same(other.optimizer.state_dict(), reconstruction.optimizer.state_dict())


def test_statistics_come_back(warm: Path) -> None:
    reconstruction = reconstruction_of(warm, ReconstructionOptions())
    before = reconstruction.statistics()
    reconstruction.encoder(pictures())
    assert not same(reconstruction.statistics(), before)
    reconstruction.restore(before)
    assert same(reconstruction.statistics(), before)
