"""Pictures through an encoder and a generator that learn together: the autoencoder behind faces64."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from image_encoder import ImageEncoder
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.bounds import number
from stylegan_inversion.losses.l2 import l2_loss
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.training.config import OptimizerOptions
from stylegan_inversion.training.data import SeededDraws
from stylegan_inversion.training.encoder import synchronize_batch_norm
from stylegan_inversion.training.optimizer import apply_gradients, make_optimizer


@dataclass(frozen=True)
class ReconstructionOptions:
    """Pictures that an encoder and the generator draw again, beside the samples or alone."""

    batch_size: int = number(0, 0, 10**6)  # pictures of a micro-batch that are drawn again, in place of samples
    weight: float = number(1.0, 0.0, 1e9)  # weight of L1 + L2 + lpips * perceptual distance
    lpips: float = number(2.0, 0.0, 1e9)  # weight of the perceptual distance in it
    w_noise: float = number(0.1, 0.0, 1e9)  # standard deviation of the noise added to w, whose mean square is 1
    noise: bool = True  # random noise inputs
    encoder_lr: float = number(1e-3, 1e-12, 100.0)  # learning rate of the encoder


class Reconstruction:
    """An encoder with its optimizer, and the loss of what the generator makes of its w."""

    def __init__(
        self,
        encoder: ImageEncoder,
        options: ReconstructionOptions,
        *,
        perceptual: PerceptualDistance | None,
        optimizer: OptimizerOptions,
        accelerator: Accelerator,
        steps: int,
    ) -> None:
        """Take over an encoder and move it to the device; its learning rate follows the schedule of `optimizer`."""
        self.options, self.accelerator, self.perceptual = options, accelerator, perceptual
        self.encoder = encoder.to(accelerator.device).train().requires_grad_(True)
        synchronize_batch_norm(self.encoder)
        self.parameters = list(self.encoder.parameters())
        self.optimizer, self.schedule = make_optimizer(
            dataclasses.replace(optimizer, lr=options.encoder_lr), self.parameters, steps=steps
        )

    def codes(self, x: Tensor, draws: SeededDraws, serial: int, *, num_ws: int) -> tuple[Tensor, list[Tensor]]:
        """Encode pictures: w_plus, (B, num_ws, w_dim), with noise on the w, and the noise of each style layer."""
        w = self.encoder(x)
        w = w + self.options.w_noise * draws.normal("reconstruction", serial, w.shape)
        noise = draws.noise(serial, len(w), purpose="reconstruction noise")
        if not self.options.noise:
            noise = [torch.zeros_like(tensor) for tensor in noise]
        return latents.broadcast(w, num_ws), noise

    def statistics(self) -> list[Tensor]:
        """Copy the encoder's buffers, which every pass in training moves; `restore` puts them back."""
        return [buffer.clone() for buffer in self.encoder.buffers()]

    def restore(self, statistics: list[Tensor]) -> None:
        """Put the encoder's buffers back."""
        for buffer, before in zip(self.encoder.buffers(), statistics):
            buffer.copy_(before)

    def losses(self, y_hat: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute L1 + L2 + lpips * perceptual distance, times the weight; and the terms."""
        terms = {"l1": (y_hat - y).abs().mean(), "l2": l2_loss(y_hat, y)}
        loss = terms["l1"] + terms["l2"]
        if self.perceptual is not None:
            with torch.no_grad():
                features = self.perceptual.features(y)
            terms["lpips"] = self.perceptual.distance(self.perceptual.features(y_hat), features).mean()
            loss = loss + self.options.lpips * terms["lpips"]
        return loss * self.options.weight, terms

    def step(self, loss: Tensor, step: int) -> bool:
        """Let the encoder follow its gradients. Whether they were finite."""
        self.schedule.step(step)
        finite = apply_gradients(self.accelerator, self.optimizer, loss)
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"encoder": self.encoder.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
