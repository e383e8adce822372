"""`MappingLearner`: the mapping network, fitted to the w that an autoencoder gives to pictures.

Own design: sliced Wasserstein distance (Rabin et al. 2012) and a latent discriminator, as e4e has, between mapped z and
the w of all pictures. It is the second part of the warm start; the adversarial run after it trains all together.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from stylegan_inversion import hub
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.training.data import FaceFolder, PositionSampler, load_batches
from stylegan_inversion.training.e4e import LatentAdversary
from stylegan_inversion.training.generator_config import MappingConfig
from stylegan_inversion.training.generator_model import export_model, load_part, make_generator, open_pictures
from stylegan_inversion.training.learner import update_ema
from stylegan_inversion.training.optimize import apply_gradients, make_optimizer
from stylegan_inversion.training.progress import SampleProgress
from stylegan_inversion.training.seeds import seeded, seeded_weights

ENCODED_AT_ONCE = 64
AVERAGED = 10_000  # samples of which the average w is computed


def sliced_wasserstein(a: Tensor, b: Tensor, projections: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of two sets of as many points, a mean over directions.

    Args:
        a: Points, (N, D).
        b: Points, (N, D).
        projections: Directions, (D, P), of unit norm.

    Returns:
        Scalar, >= 0.
    """
    return ((a @ projections).sort(dim=0).values - (b @ projections).sort(dim=0).values).square().mean()


class MappingLearner:
    """A mapping network and its running average. Every process does the whole of each step: it is small."""

    def __init__(self, config: MappingConfig, accelerator: Accelerator) -> None:
        """Load the networks and encode all pictures.

        Args:
            config: The run.
            accelerator: Device, precision, processes.

        Raises:
            ValueError: If `init` holds no encoder of an autoencoder, or there are too few pictures.
            ModelNotFoundError: If a model is missing.
            CheckpointError: If a file is damaged.
        """
        assert config.init is not None  # the config has checked it
        self.config, self.accelerator = config, accelerator
        device = accelerator.device
        self.init = hub.find_model(config.init)
        with seeded_weights(config.seed):  # it may grow
            self.generator = make_generator(config.generator, self.init).to(device)
        self.generator.requires_grad_(False).mapping.requires_grad_(True)
        encoder = load_part(self.init, "autoencoder", ImageEncoder, ImageEncoderConfig)
        if encoder is None:
            raise ValueError(f"`init`: {config.init} holds no encoder: give the model of an autoencoder run.")
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.adversary = self._make_adversary()
        self.parameters = list(self.generator.mapping.parameters())
        self.optimizer, self.schedule = make_optimizer(config.optimizer, self.parameters, steps=config.steps)
        self.progress = SampleProgress(load_perceptual(config.perceptual, device=device), accelerator, seed=config.seed)
        self.w = self._main_components(self._encode(encoder.to(device).eval()))
        self._mean = self.w.mean(dim=0)
        self._axes = self._principal_axes()

    def _make_adversary(self) -> LatentAdversary | None:
        if not self.config.adversarial:
            return None
        with seeded_weights(self.config.seed):
            adversary = LatentAdversary(
                self.generator.config.w_dim, lr=self.config.discriminator_lr, r1=10.0, r1_every=16, pool_size=0
            )
        return adversary.to(self.accelerator.device)

    @torch.no_grad()
    def _encode(self, encoder: ImageEncoder) -> Tensor:
        """The w of all pictures and, if the config wants, of their mirror images; (N, w_dim)."""
        side = max(self.generator.config.resolution, encoder.config.input_resolution)
        folder = open_pictures(self.config.data, self.config, side=side, training=False)
        assert folder is not None
        sampler = PositionSampler(ENCODED_AT_ONCE, end=-(-len(folder) // ENCODED_AT_ONCE), limit=len(folder))
        codes = []
        for batch in load_batches(folder, sampler, num_workers=self.config.num_workers):
            y = batch["y"].to(self.accelerator.device)
            codes += [encoder(y), encoder(y.flip(-1))] if self.config.mirror else [encoder(y)]
        return torch.cat(codes)

    def _main_components(self, w: Tensor) -> Tensor:
        """The w without what lies outside of their principal components: noise, which no z needs to explain."""
        count = self.config.components
        if not count < min(w.shape):
            raise ValueError(
                f"`components` must be less than the size of w and the number of pictures, {min(w.shape)}, got {count}."
            )
        mean = w.mean(dim=0)
        centred = w - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        components = vectors[:, -count:]
        return mean + centred @ components @ components.T

    def _principal_axes(self) -> Tensor:
        """Of the w, (w_dim, w_dim): in high dimensions nearly all other directions look alike."""
        centred = self.w - self._mean
        return torch.linalg.eigh(centred.T @ centred)[1]

    def _projections(self, rng: torch.Generator) -> Tensor:
        """The principal axes, and as many directions between them as the config wants."""
        count = self.w.shape[1]
        between = torch.randn(count, self.config.projections, generator=rng)
        return torch.cat([self._axes, (between / between.norm(dim=0)).to(self._axes)], dim=1)

    def open_data(self) -> FaceFolder | None:
        """No batches of pictures: all of them have been encoded."""
        return None

    def open_validation_data(self) -> FaceFolder | None:
        """The pictures that are held out; `None` if there are none."""
        return self.progress.open_pictures(self.config, side=self.generator.config.resolution)

    def step(self, batches: Sequence[dict[str, Tensor]], step: int) -> tuple[dict[str, Tensor], bool]:
        """Train for one step, see `Learner.step`."""
        config, device = self.config, self.accelerator.device
        rng = seeded(config.seed, "mapping", step)
        self.schedule.step(step)
        z = torch.randn(config.batch_size, self.generator.config.z_dim, generator=rng).to(device)
        real = self.w[torch.randint(len(self.w), (config.batch_size,), generator=rng).to(device)]
        w = self.generator.mapping(z)
        terms = {"wasserstein": sliced_wasserstein(w, real, self._projections(rng))}
        loss = terms["wasserstein"]
        if self.adversary is not None:
            terms["adversarial"] = self.adversary.encoder_loss(w[:, None], 0)
            loss = loss + config.adversarial * terms["adversarial"]
        self.accelerator.backward(loss)
        sums = {name: term.detach() for name, term in {**terms, "loss": loss}.items()}
        finite = apply_gradients(
            self.accelerator, self.optimizer, self.parameters, loss, max_norm=config.optimizer.max_grad_norm
        )
        self.optimizer.zero_grad(set_to_none=True)
        if not finite:
            return sums, False
        update_ema(self.average.mapping, self.generator.mapping, min(config.ema_decay, (step + 1) / (step + 10)))
        if self.adversary is not None:
            more, finite = self.adversary.update(real, w.detach()[:, None], stage=0, step=step, rng=rng)
            sums |= more
        return sums, finite

    @torch.no_grad()
    def _set_w_avg(self) -> None:
        z = torch.randn(AVERAGED, self.generator.config.z_dim, generator=seeded(self.config.seed, "w_avg", 0))
        self.average.w_avg.copy_(self.average.mapping(z.to(self.accelerator.device)).mean(dim=0))

    def evaluate(self, batches: Iterator[dict[str, Tensor]], *, score: bool) -> tuple[dict[str, float], list[Tensor]]:
        """Frechet distance and pictures, see `SampleProgress`."""
        self._set_w_avg()
        return self.progress.evaluate(self.average, batches, score=score)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        return {
            "w_mean": self._mean,
            "mapping": self.generator.mapping.state_dict(),
            "average": self.average.mapping.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            ValueError: If the run began with other pictures: their w have another mean.
        """
        if not torch.allclose(state["w_mean"].to(self._mean), self._mean, atol=1e-4):
            raise ValueError(
                f"The pictures in {self.config.data} are not those that the run began with: their w have another mean. "
                "Put them back, or begin another run (another `output`)."
            )
        self.generator.mapping.load_state_dict(state["mapping"])
        self.average.mapping.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary is not None:
            self.adversary.load_state(state["adversary"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def export(self, folder: Path) -> None:
        """Write the generator with its average mapping network, and the encoder it was fitted to."""
        self._set_w_avg()
        parts: dict[str, torch.nn.Module] = {"generator": self.average}
        export_model(folder, parts, init=self.init, crop_scale=self.config.crop_scale, keep=("autoencoder",))
