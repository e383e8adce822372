"""What only e4e has: offsets that are switched on one by one, and a discriminator that keeps the codes near W.

Paper: Tov et al. 2021, "Designing an Encoder for StyleGAN Image Manipulation", arXiv:2102.02766 (section 5).
Original code: omertov/encoder4editing (MIT), training/coach.py. Own code. Departures: the discriminator is updated
after the encoder, with the codes of that same pass (the original runs the encoder a second time, before it); the pools
draw from a seeded source, so a resumed run is exact.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stylegan_inversion.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from stylegan_inversion.models.discriminator import LatentDiscriminator, LatentDiscriminatorConfig
from stylegan_inversion.training.config import E4EOptions, SFEOptions


def progressive_stage(share: float, *, num_ws: int, open_from: float, open_until: float) -> int:
    """How many offsets are switched on, in [0, num_ws - 1], when a share of the run is done.

    The paper opens the first of the 17 offsets after 20,000 of 200,000 steps and one more every 2,000 steps: from 10 %
    to 26 % of the run. Here this is scaled to runs of any length and generators of any size.
    """
    last = num_ws - 1
    if share >= open_until or last < 1:
        return last
    if share < open_from:
        return 0
    if last == 1:
        return 1
    return 1 + int((share - open_from) / (open_until - open_from) * (last - 1) + 1e-9)


class WPool:
    """A pool of earlier w: of what goes in, about half comes back as an older one.

    Shrivastava et al. 2017, arXiv:1612.07828; here as in e4e: while it fills, every w passes; then with probability
    1/2 a w is exchanged for a random one of the pool.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.w: Tensor | None = None  # (at most size, w_dim)

    def query(self, w: Tensor, rng: torch.Generator) -> Tensor:
        """Exchange new codes, (B, w_dim), detached, for new and older ones. `rng` draws on the CPU."""
        if self.size == 0:
            return w
        pool = w[:0] if self.w is None else self.w.to(w)
        result = []
        for code in w:
            if len(pool) < self.size:
                pool = torch.cat([pool, code[None]])
            elif float(torch.rand((), generator=rng)) < 0.5:
                index = int(torch.randint(self.size, (), generator=rng))
                code, pool[index] = pool[index].clone(), code
            result.append(code)
        self.w = pool
        return torch.stack(result)


class Adversary:
    """A discriminator with its optimizer."""

    def __init__(self, network: nn.Module, options: E4EOptions | SFEOptions, *, device: torch.device) -> None:
        self.network = network.requires_grad_(False).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=options.discriminator_lr)
        self.r1, self.r1_every = options.r1, options.r1_every

    def penalty(self, real: Tensor) -> Tensor:
        """Weighted R1 on real samples, for one step in `r1_every`."""
        real = real.detach().requires_grad_()
        return r1_penalty(self.network(real), real) * (self.r1 / 2 * self.r1_every)

    def descend(self, loss: Tensor) -> bool:
        """Follow the gradient of a loss if it is finite."""
        loss.backward()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        finite = bool(torch.isfinite(torch.stack([g.sum() for g in gradients])).all())
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class LatentAdversary(Adversary):
    """The latent discriminator with its optimizer and its two pools of w."""

    def __init__(self, w_dim: int, options: E4EOptions, *, device: torch.device) -> None:
        super().__init__(LatentDiscriminator(LatentDiscriminatorConfig(w_dim=w_dim)), options, device=device)
        self.real_pool, self.fake_pool = WPool(options.pool_size), WPool(options.pool_size)

    def encoder_loss(self, w_plus: Tensor, stage: int) -> Tensor:
        """The encoder's term, a scalar: the mean over the open layers of softplus(-D(w_i))."""
        open_w = w_plus[:, : stage + 1].flatten(0, 1)  # (B * (stage + 1), w_dim)
        return generator_loss(self.network(open_w))

    def update(
        self, real_w: Tensor, w_plus: Tensor, *, stage: int, step: int, rng: torch.Generator
    ) -> tuple[dict[str, Tensor], bool]:
        """Train the discriminator for a step, on w of the mapping network, (B, w_dim), and codes of the encoder.

        One random layer of each code, (B, num_ws, w_dim), detached, is judged: one of those that `stage` has opened.
        Returns the loss, and R1 at each `r1_every` steps, and whether both were finite. If not, nothing has changed.
        """
        before = copy.deepcopy(self.state())
        layers = torch.randint(stage + 1, (len(w_plus),), generator=rng).to(w_plus.device)
        fake_w = self.fake_pool.query(w_plus[torch.arange(len(w_plus), device=w_plus.device), layers], rng)
        real_w = self.real_pool.query(real_w, rng)
        self.network.requires_grad_(True)
        loss = discriminator_loss(self.network(real_w), self.network(fake_w))
        terms, finite = {"discriminator": loss.detach()}, self.descend(loss)
        if finite and step % self.r1_every == 0:
            penalty = self.penalty(real_w)
            terms["r1"], finite = penalty.detach(), self.descend(penalty)
        self.network.requires_grad_(False)
        if not finite:  # two updates are undone together, and the pools with them
            self.load_state(before)
        return terms, finite

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {**super().state(), "real_pool": self.real_pool.w, "fake_pool": self.fake_pool.w}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        super().load_state(state)
        self.real_pool.w, self.fake_pool.w = state["real_pool"], state["fake_pool"]
