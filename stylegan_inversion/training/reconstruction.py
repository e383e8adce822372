"""Pictures through an encoder and a generator that learn together: the autoencoder of the warm start."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.losses.l2 import l2_loss
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.autoencoder import ImageEncoder
from stylegan_inversion.training.batch_norm import synchronize_batch_norm
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.generator_config import ReconstructionOptions
from stylegan_inversion.training.optimize import apply_gradients


class Reconstruction:
    """An encoder with its optimizer, and the loss of what the generator makes of its w."""

    def __init__(
        self,
        encoder: ImageEncoder,
        options: ReconstructionOptions,
        *,
        perceptual: PerceptualDistance | None,
        betas: tuple[float, float],
        accelerator: Accelerator,
    ) -> None:
        """Take an encoder over.

        Args:
            encoder: Moved to the device, in place.
            options: Weights and learning rate.
            perceptual: `None` if `options.lpips` is 0.
            betas: Of Adam.
            accelerator: Device and processes.
        """
        self.options, self.accelerator, self.perceptual = options, accelerator, perceptual
        self.encoder = encoder.to(accelerator.device).train().requires_grad_(True)
        synchronize_batch_norm(self.encoder)
        self.parameters = list(self.encoder.parameters())
        first, second = betas
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=options.encoder_lr, betas=(float(first), float(second)), fused=True
        )

    def codes(self, x: Tensor, draws: Draws, serial: int, *, num_ws: int) -> tuple[Tensor, list[Tensor]]:
        """What draws pictures again: w_plus, (B, num_ws, w_dim), and the noise of each style layer.

        The w get some noise, too, so that the neighbours of each mean something.
        """
        w = self.encoder(x)
        w = w + self.options.w_noise * draws.normal("reconstruction", serial, w.shape)
        noise = draws.noise(serial, len(w), purpose="reconstruction noise")
        if not self.options.noise:
            noise = [torch.zeros_like(tensor) for tensor in noise]
        return latents.broadcast(w, num_ws), noise

    def statistics(self) -> list[Tensor]:
        """Copies of the encoder's buffers, which every pass in training moves; for `restore`."""
        return [buffer.clone() for buffer in self.encoder.buffers()]

    def restore(self, statistics: list[Tensor]) -> None:
        """Put the encoder's buffers back."""
        for buffer, before in zip(self.encoder.buffers(), statistics):
            buffer.copy_(before)

    def losses(self, y_hat: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 + L2 + lpips * perceptual distance, times the weight; and the terms."""
        terms = {"l1": (y_hat - y).abs().mean(), "l2": l2_loss(y_hat, y)}
        loss = terms["l1"] + terms["l2"]
        if self.perceptual is not None:
            with torch.no_grad():
                features = self.perceptual.features(y)
            terms["lpips"] = self.perceptual.distance(self.perceptual.features(y_hat), features).mean()
            loss = loss + self.options.lpips * terms["lpips"]
        return loss * self.options.weight, terms

    def step(self, loss: Tensor, *, rate: float = 1.0) -> bool:
        """Let the encoder follow its gradients; `rate` scales its learning rate. Whether they were finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.encoder_lr * rate
        finite = apply_gradients(self.accelerator, self.optimizer, self.parameters, loss)
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"encoder": self.encoder.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
