"""`AutoencoderLearner`: the synthesis network as the decoder of an autoencoder, to begin a generator with few cores.

Own design, no paper: adversarial training from nothing needs millions of pictures, a regression tens of thousands.
It is run at 16, 32, ... px in turn, each run from the model of the one before (`init`, `generator.resolution`). The
models that it leaves draw samples too: see `prior`.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from stylegan_inversion import hub, latents
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.training.compiling import compile_networks
from stylegan_inversion.training.data import FaceFolder
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.generator_config import AutoencoderConfig
from stylegan_inversion.training.generator_model import (
    check_side,
    export_model,
    load_part,
    make_generator,
    open_pictures,
)
from stylegan_inversion.training.learner import update_ema
from stylegan_inversion.training.optimize import apply_gradients, make_optimizer
from stylegan_inversion.training.prior import fit_prior
from stylegan_inversion.training.reconstruction import Reconstruction
from stylegan_inversion.training.seeds import seeded_weights

logger = logging.getLogger(__name__)

ENCODED_AT_ONCE = 64  # pictures


class AutoencoderLearner:
    """An encoder and a synthesis network, their running averages, and what a step does to them."""

    def __init__(self, config: AutoencoderConfig, accelerator: Accelerator) -> None:
        """Build or load everything.

        Args:
            config: The run.
            accelerator: Device, precision, processes.

        Raises:
            ValueError: If parts do not fit each other.
            ModelNotFoundError: If a model is missing.
            CheckpointError: If a file is damaged.
        """
        self.config, self.accelerator = config, accelerator
        device, options = accelerator.device, config.reconstruction
        self.init = None if config.init is None else hub.find_model(config.init)
        with seeded_weights(config.seed):
            self.generator = make_generator(config.generator, self.init).to(device).train().requires_grad_(True)
            encoder = self._make_encoder()
        self.generator.mapping.requires_grad_(False)
        perceptual = load_perceptual(config.perceptual, device=device) if options.lpips else None
        if perceptual is not None:
            check_side(perceptual, self.generator.config.resolution, otherwise="reconstruction.lpips=0")
        betas = config.optimizer.betas or [0.9, 0.999]
        self.reconstruction = Reconstruction(
            encoder,
            options,
            perceptual=perceptual,
            betas=(betas[0], betas[1]),
            accelerator=accelerator,
        )
        self.average: tuple[Generator, ImageEncoder] = (copy.deepcopy(self.generator), copy.deepcopy(encoder))
        for network in self.average:
            network.eval().requires_grad_(False)
        self.parameters = list(self.generator.synthesis.parameters())
        self.optimizer, self.schedule = make_optimizer(config.optimizer, self.parameters, steps=config.steps)
        self.draws = Draws(self.generator, accelerator, seed=config.seed)
        if config.compile:
            compile_networks(self.generator.synthesis, encoder, device=device)
        self._prior_pictures: Tensor | None = None  # read when the first model is saved
        self._check_prior()

    def _make_encoder(self) -> ImageEncoder:
        config = self.config
        encoder = load_part(self.init, "autoencoder", ImageEncoder, ImageEncoderConfig)
        if encoder is not None:
            if encoder.config.w_dim != self.generator.config.w_dim:
                raise ValueError(
                    f"`init` brings an encoder with a w of {encoder.config.w_dim}; the generator has "
                    f"{self.generator.config.w_dim}."
                )
            return encoder
        encoder = ImageEncoder(ImageEncoderConfig(config.input_resolution, self.generator.config.w_dim))
        if config.components:
            folder = open_pictures(config.data, config, side=config.input_resolution, training=True)
            assert folder is not None  # the config wants data
            count = min(config.component_images, len(folder))
            most = min(count - 1, encoder.config.w_dim, encoder.linear.in_features)
            if config.components > most:
                raise ValueError(
                    f"`components` must be in [0, {most}], for {count} pictures and a w of {encoder.config.w_dim}, "
                    f"got {config.components}."
                )
            with torch.no_grad():
                pixels = torch.cat([encoder.pixels(folder[i]["y"][None]) for i in range(count)])
            encoder.start_from_components(pixels, config.components)
        return encoder

    def _check_prior(self) -> None:
        if not self.config.prior_images:
            return
        way_out = "Or set prior_images=0: then the mapping network is left as it is."
        if (layers := self.generator.config.mapping_layers) < 2:
            raise ValueError(f"`prior_images` needs `generator.mapping_layers` of at least 2, got {layers}. {way_out}")
        if (count := len(self._open_prior_data())) < 2:
            raise ValueError(f"`prior_images` needs at least 2 pictures in {self.config.data}, got {count}. {way_out}")

    def _open_prior_data(self) -> FaceFolder:
        folder = open_pictures(self.config.data, self.config, side=self.side, training=False)
        assert folder is not None  # the config wants data
        return folder

    @property
    def side(self) -> int:
        """Of the pictures that are loaded: the encoder may look at larger ones than the generator draws."""
        return max(self.generator.config.resolution, self.reconstruction.encoder.config.input_resolution)

    def open_data(self, *, training: bool = True) -> FaceFolder | None:
        """The pictures that are trained on, or the same as they are."""
        return open_pictures(self.config.data, self.config, side=self.side, training=training)

    def open_validation_data(self) -> FaceFolder | None:
        """The pictures that are held out; `None` if there are none."""
        return open_pictures(self.config.validation_data, self.config, side=self.side, training=False)

    def step(self, batches: Sequence[dict[str, Tensor]], step: int) -> tuple[dict[str, Tensor], bool]:
        """Train for one step, see `Learner.step`."""
        encoder = self.reconstruction.encoder
        statistics = self.reconstruction.statistics()
        self.schedule.step(step)
        sums: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            serial = step * len(batches) + micro
            with self.accelerator.autocast():
                w_plus, noise = self.reconstruction.codes(batch["y"], self.draws, serial, num_ws=self.generator.num_ws)
                y_hat = self.generator.synthesis(w_plus, noise=noise)
                loss, terms = self.reconstruction.losses(y_hat, self._target(batch["y"]))
            self.accelerator.backward(loss / len(batches))
            for name, term in {**terms, "loss": loss}.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + term.detach() / len(batches)
        finite = apply_gradients(
            self.accelerator,
            self.optimizer,
            self.parameters,
            sums["loss"],
            max_norm=self.config.optimizer.max_grad_norm,
            last=False,
        )
        self.optimizer.zero_grad(set_to_none=True)
        finite = (
            self.reconstruction.step(sums["loss"], rate=self.schedule.rate(step) / self.config.optimizer.lr) and finite
        )
        if not finite:
            self.reconstruction.restore(statistics)
            return sums, False
        for average, network in zip(self.average, (self.generator, encoder)):
            update_ema(average, network, min(self.config.ema_decay, (step + 1) / (step + 10)))
        return sums, True

    def _target(self, y: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(y, self.generator.config.resolution)

    @torch.no_grad()
    def evaluate(self, batches: Iterator[dict[str, Tensor]], *, score: bool) -> tuple[dict[str, float], list[Tensor]]:
        """Errors of the average networks on held-out pictures: originals and copies side by side."""
        generator, encoder = self.average
        count = torch.zeros((), device=self.accelerator.device)
        sums: dict[str, Tensor] = {}
        shown: list[Tensor] = []
        for batch in batches:
            y = self._target(batch["y"])
            w_plus = latents.broadcast(encoder(batch["y"]), generator.num_ws)
            y_hat = generator.synthesis(w_plus)
            loss, terms = self.reconstruction.losses(y_hat, y)
            for name, term in {**terms, "loss": loss}.items():
                sums[name] = sums.get(name, torch.zeros_like(count)) + term * len(y)
            count += len(y)
            shown = shown or [y, y_hat.clamp(-1, 1)]
        total = cast(Tensor, self.accelerator.reduce(count))
        names = ("l1", "l2", "loss", *(("lpips",) if self.reconstruction.perceptual is not None else ()))
        reduced = {
            name: cast(Tensor, self.accelerator.reduce(sums.get(name, torch.zeros_like(count)))) for name in names
        }
        return {name: float(value / total) for name, value in reduced.items()}, shown

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        scaler = self.accelerator.scaler
        return {
            "generator": self.generator.state_dict(),
            "average": [network.state_dict() for network in self.average],
            "optimizer": self.optimizer.state_dict(),
            "reconstruction": self.reconstruction.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.generator.load_state_dict(state["generator"])
        for network, weights in zip(self.average, state["average"]):
            network.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.reconstruction.load_state(state["reconstruction"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    @torch.no_grad()
    def _prior_codes(self) -> Tensor:
        """The average encoder's w of `prior_images` training pictures, spread evenly, and of their mirror images."""
        encoder = self.average[1]
        if self._prior_pictures is None:
            folder, side = self._open_prior_data(), encoder.config.input_resolution
            count = min(self.config.prior_images, len(folder))
            pictures = (folder[i * len(folder) // count]["y"] for i in range(count))
            self._prior_pictures = torch.stack([F.adaptive_avg_pool2d(y, side) for y in pictures])
        codes = []
        for y in self._prior_pictures.split(ENCODED_AT_ONCE):
            y = y.to(self.accelerator.device)
            codes += [encoder(y), encoder(y.flip(-1))] if self.config.mirror else [encoder(y)]
        return torch.cat(codes)

    def export(self, folder: Path) -> None:
        """Write copies of the average networks, with a mapping network that is fitted to training pictures."""
        generator, encoder = copy.deepcopy(self.average)
        if self.config.prior_images:
            w = self._prior_codes()
            if w.isfinite().all():
                fit_prior(generator, encoder, w)
            else:  # a run that has diverged is saved nevertheless
                logger.warning("The mapping network is left as it is: the w of training pictures are not finite.")
        parts = {"generator": generator, "autoencoder": encoder}
        export_model(folder, parts, init=self.init, crop_scale=self.config.crop_scale)
