"""`GANLearner`: StyleGAN2's adversarial training.

Papers: Karras et al. 2020, arXiv:1912.04958 (losses, lazy regularisation, path length), and arXiv:2006.06676 (adaptive
augmentation). Original code: NVlabs/stylegan2-ada-pytorch (NVIDIA Source Code Licence; not used). Own code. Departures:
R1 is taken of the augmented pictures, as the discriminator sees them; the mean path length is that of all processes.
Beside samples, a run can draw pictures again through an encoder, as the warm start for few cores wants.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stylegan_inversion import hub
from stylegan_inversion.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from stylegan_inversion.losses.identity import load_identity
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.losses.path_length import path_length, path_length_penalty
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.training.augment import AdaptiveProbability, augment
from stylegan_inversion.training.compiling import compile_networks, uncompiled
from stylegan_inversion.training.data import FaceFolder
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.generator_config import GANConfig
from stylegan_inversion.training.generator_model import (
    check_groups,
    check_side,
    export_model,
    load_part,
    make_discriminator,
    make_generator,
    open_pictures,
)
from stylegan_inversion.training.learner import update_ema
from stylegan_inversion.training.optimize import apply_gradients, lazy_options, make_optimizer
from stylegan_inversion.training.progress import SampleProgress
from stylegan_inversion.training.reconstruction import Reconstruction
from stylegan_inversion.training.seeds import seeded_weights

Batches = Sequence[dict[str, Tensor]]
Terms = dict[str, Tensor]


class GANLearner:
    """A generator, its running average and its discriminator, and what a step does to them."""

    def __init__(self, config: GANConfig, accelerator: Accelerator) -> None:
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
        options, device = config.adversarial, accelerator.device
        self.init = None if config.init is None else hub.find_model(config.init)
        with seeded_weights(config.seed):
            self.generator = make_generator(config.generator, self.init).to(device).train().requires_grad_(True)
            perceptual = load_perceptual(config.perceptual, device=device)
            discriminator = make_discriminator(
                config.discriminator,
                self.generator.config,
                self.init,
                perceptual=perceptual,
                pictures=self.open_data(training=False) if config.discriminator.kind == "features" else None,
            )
        self.discriminator = discriminator.to(device).train().requires_grad_(False)
        check_groups(discriminator, config.batch_size)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.reconstruction = self._make_reconstruction(perceptual) if config.reconstruction.batch_size else None
        self.parameters = {
            "generator": list(self.generator.parameters()),
            "discriminator": list(self.discriminator.parameters()),
        }
        every = options.path_length_every if options.path_length else 0
        self.optimizer, self.schedule = make_optimizer(
            lazy_options(config.optimizer, every), self.parameters["generator"], steps=config.steps
        )
        d_options = copy.copy(config.optimizer)
        d_options.lr = config.discriminator.lr or d_options.lr
        self.discriminator_optimizer, self.discriminator_schedule = make_optimizer(
            lazy_options(d_options, options.r1_every if options.r1 else 0),
            self.parameters["discriminator"],
            steps=config.steps,
        )
        self.draws = Draws(self.generator, accelerator, seed=config.seed)
        self.ada = AdaptiveProbability(target=config.ada.target, kimg=config.ada.kimg, p=config.ada.p)
        self.mean_length = torch.zeros((), device=device)
        self.lazy: Terms = {}  # of the regularisers, as last computed: a log line seldom falls on such a step
        self.drawn: list[Tensor] = []  # by the generator's step, one batch a micro-batch
        judged_by_face = config.discriminator.kind == "features" and "face" in config.discriminator.networks
        face = load_identity(device=device) if judged_by_face else None
        self.progress = SampleProgress(perceptual, accelerator, seed=config.seed, face=face)
        if config.compile:
            compile_networks(self.generator.synthesis, device=device)

    def _make_reconstruction(self, perceptual: Any) -> Reconstruction:
        encoder = load_part(self.init, "autoencoder", ImageEncoder, ImageEncoderConfig)
        if encoder is None:
            raise ValueError(
                "`reconstruction.batch_size` needs the encoder of an autoencoder run: give that run's model as `init`, "
                "or set it to 0."
            )
        options, side = self.config.reconstruction, self.generator.config.resolution
        if encoder.config.input_resolution > side:
            raise ValueError(
                f"`init` brings an encoder of pictures of {encoder.config.input_resolution} px; the generator draws "
                f"{side} px. Let the autoencoder grow first, or set reconstruction.batch_size=0."
            )
        if options.lpips:
            check_side(perceptual, side, otherwise="reconstruction.lpips=0")
        betas = self.config.optimizer.betas or [0.9, 0.999]
        return Reconstruction(
            encoder,
            options,
            perceptual=perceptual if options.lpips else None,
            betas=(betas[0], betas[1]),
            accelerator=self.accelerator,
        )

    def open_data(self, *, training: bool = True) -> FaceFolder | None:
        """The pictures that are trained on, or the same as they are."""
        return open_pictures(self.config.data, self.config, side=self.generator.config.resolution, training=training)

    def open_validation_data(self) -> FaceFolder | None:
        """The pictures that are held out; `None` if there are none."""
        return self.progress.open_pictures(self.config, side=self.generator.config.resolution)

    def step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        """Train for one step: the generator, its path length, the discriminator, its R1; the second and last are lazy.

        Args:
            batches: The micro-batches of this process.
            step: Number of the step, from 0. All random draws follow from it and from the places in the run.

        Returns:
            The terms, means over this process, those of the lazy parts as last computed, and whether all were finite.
            What was not has changed nothing.
        """
        options = self.config.adversarial
        self.schedule.step(step)
        self.discriminator_schedule.step(step)
        terms, finite = self._generator_step(batches, step)
        if options.path_length and options.path_length_every and step % options.path_length_every == 0:
            more, fine = self._path_length_step(batches, step)
            terms, finite = terms | more, finite and fine
            self._remember(more if fine else {})
        images = len(batches) * self.config.batch_size * self.accelerator.num_processes
        if finite:
            update_ema(self.average, self.generator, self._decay((step + 1) * images, images))
        more, fine = self._discriminator_step(batches, step)
        terms, finite = terms | more, finite and fine
        if options.r1 and options.r1_every and step % options.r1_every == 0:
            more, fine = self._r1_step(batches, step)
            terms, finite = terms | more, finite and fine
            self._remember(more if fine else {})
        terms["augmentation"] = torch.tensor(self.ada.p, device=self.accelerator.device)
        return self.lazy | terms, finite

    def _remember(self, lazy: Terms) -> None:
        """Keep means over the processes: a resumed run gets the main one's state."""
        for name, term in lazy.items():
            self.lazy[name] = cast(Tensor, self.accelerator.reduce(term, reduction="mean"))

    def _decay(self, seen: int, images: int) -> float:
        """Of the average generator at a step of so many images, when so many have been seen."""
        options = self.config.adversarial
        half_life = options.ema_kimg * 1000
        if options.ema_rampup is not None:
            half_life = min(half_life, seen * options.ema_rampup)
        return 0.5 ** (images / max(half_life, 1e-8))

    def _fakes(self, batch: dict[str, Tensor], serial: int, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures of the generator: samples, then as many reconstructions as the config wants.

        Returns:
            The pictures, (B, 3, R, R), the reconstructions among them, and the first w of the samples.
        """
        drawn_again = self.config.reconstruction.batch_size
        count = self.config.batch_size - drawn_again
        w_plus, w = self.draws.styles(purpose, serial, count, mixing=self.config.adversarial.style_mixing)
        noise = self._noise(serial, count, purpose=f"{purpose} noise")
        if self.reconstruction is not None:  # both in one pass
            x, num_ws = batch["y"][:drawn_again], self.generator.num_ws
            again, its_noise = self.reconstruction.codes(x, self.draws, serial, num_ws=num_ws)
            w_plus, noise = torch.cat([w_plus, again]), [torch.cat(pair) for pair in zip(noise, its_noise)]
        images = self.generator.synthesis(w_plus, noise=noise)
        return images, images[count:], w

    def _noise(self, serial: int, count: int, *, purpose: str) -> list[Tensor]:
        noise = self.draws.noise(serial, count, purpose=purpose)
        return noise if self.config.adversarial.noise else [torch.zeros_like(tensor) for tensor in noise]

    @torch.no_grad()
    def _new_fakes(self, batch: dict[str, Tensor], serial: int) -> Tensor:
        statistics = [] if self.reconstruction is None else self.reconstruction.statistics()
        images, _, _ = self._fakes(batch, serial, "discriminator")
        if self.reconstruction is not None:
            self.reconstruction.restore(statistics)  # the generator's step has moved them already
        return images

    def _seen(self, images: Tensor, serial: int, purpose: str) -> Tensor:
        """What the discriminator sees of pictures, in the layout in which half precision is fast."""
        if self.config.mixed_precision != "no":
            images = images.contiguous(memory_format=torch.channels_last)
        if self.ada.p == 0:
            return images
        sources = self.draws.sources(f"augment {purpose}", serial, len(images))
        return augment(images, self.ada.p, sources, options=self.config.augment)

    def _generator_step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        terms: Terms = {}
        self.drawn = []
        mean_w = torch.zeros_like(self.generator.w_avg)
        statistics = [] if self.reconstruction is None else self.reconstruction.statistics()
        for micro, batch in enumerate(batches):
            serial = step * len(batches) + micro
            with self.accelerator.autocast():
                images, drawn_again, w = self._fakes(batch, serial, "generator")
                self.drawn.append(images.detach())
                loss = generator_loss(self.discriminator(self._seen(images, serial, "generator")))
                parts = {"generator": loss}
                if self.reconstruction is not None:
                    extra, more = self.reconstruction.losses(drawn_again, batch["y"][: len(drawn_again)])
                    loss, parts = loss + extra, parts | more
            self.accelerator.backward(loss / len(batches))
            _add(terms, {**parts, "loss": loss}, len(batches))
            mean_w += w.detach().float().mean(dim=0) / len(batches)
        finite = self._apply("generator", terms["loss"], last=self.reconstruction is None)
        if self.reconstruction is not None:
            rate = self.schedule.rate(step) / self.schedule.options.lr  # the encoder takes no lazy steps
            finite = self.reconstruction.step(terms["loss"], rate=rate) and finite
            if not finite:
                self.reconstruction.restore(statistics)
        if finite:
            mean_w = cast(Tensor, self.accelerator.reduce(mean_w, reduction="mean"))
            self.generator.w_avg.lerp_(mean_w, 1 - self.config.adversarial.w_avg_decay)
        return terms, finite

    def _path_length_step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        options = self.config.adversarial
        count = max(1, self.config.batch_size // options.path_length_shrink)
        side = self.generator.config.resolution
        terms: Terms = {}
        new_mean = torch.zeros_like(self.mean_length)
        for micro in range(len(batches)):
            serial = step * len(batches) + micro
            w_plus, _ = self.draws.styles("path length", serial, count, mixing=options.style_mixing)
            noise = self._noise(serial, count, purpose="path length noise")
            with uncompiled():
                images = self.generator.synthesis(w_plus, noise=noise)
            lengths = path_length(images, w_plus, self.draws.normal("direction", serial, (count, 3, side, side)))
            penalty, mean = path_length_penalty(lengths, self.mean_length)
            self.accelerator.backward(penalty * (options.path_length * options.path_length_every / len(batches)))
            _add(terms, {"path length": lengths.mean(), "path length penalty": penalty}, len(batches))
            new_mean += mean / len(batches)
        finite = self._apply("generator", terms["path length penalty"])
        if finite:
            self.mean_length = cast(Tensor, self.accelerator.reduce(new_mean, reduction="mean"))
        return terms, finite

    def _discriminator_step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        terms: Terms = {}
        signs = torch.zeros((), device=self.accelerator.device)
        reuse = self.config.adversarial.reuse_samples
        self.discriminator.requires_grad_(True)
        for micro, batch in enumerate(batches):
            serial = step * len(batches) + micro
            with self.accelerator.autocast():
                images = self.drawn[micro] if reuse else self._new_fakes(batch, serial)
                fake = self.discriminator(self._seen(images, serial, "fake"))
                real = self.discriminator(self._seen(batch["y"], serial, "real"))
                loss = discriminator_loss(real, fake)
            self.accelerator.backward(loss / len(batches))
            signs += real.detach().float().sign().sum()
            scores = {"discriminator": loss, "real score": real.mean(), "fake score": fake.mean()}
            _add(terms, scores, len(batches))
        finite = self._apply("discriminator", terms["discriminator"])
        self.discriminator.requires_grad_(False)
        if finite:
            signs = cast(Tensor, self.accelerator.reduce(signs))
            self.ada.observe(float(signs), len(batches) * self.config.batch_size * self.accelerator.num_processes)
        return terms, finite

    def _r1_step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        options = self.config.adversarial
        terms: Terms = {}
        self.discriminator.requires_grad_(True)
        for micro, batch in enumerate(batches):
            real = self._seen(batch["y"], step * len(batches) + micro, "real").detach().requires_grad_()
            penalty = r1_penalty(self.discriminator(real), real)
            self.accelerator.backward(penalty * (options.r1 / 2 * options.r1_every / len(batches)))
            _add(terms, {"r1": penalty}, len(batches))
        finite = self._apply("discriminator", terms["r1"])
        self.discriminator.requires_grad_(False)
        return terms, finite

    def _apply(self, name: str, loss: Tensor, *, last: bool = True) -> bool:
        """Step one of the two networks, and forget its gradients; `last` as in `apply_gradients`."""
        optimizer = self.optimizer if name == "generator" else self.discriminator_optimizer
        parameters = self.parameters[name]
        norm = self.config.optimizer.max_grad_norm
        finite = apply_gradients(self.accelerator, optimizer, parameters, loss, max_norm=norm, last=last)
        optimizer.zero_grad(set_to_none=True)
        return finite

    @torch.no_grad()
    def evaluate(self, batches: Iterator[dict[str, Tensor]], *, score: bool) -> tuple[dict[str, float], list[Tensor]]:
        """Frechet distances and pictures of the average generator, see `SampleProgress`."""
        return self.progress.evaluate(self.average, batches, score=score)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        scaler = self.accelerator.scaler
        return {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "mean_length": self.mean_length,
            "lazy": self.lazy,
            "ada": self.ada.state(),
            "reconstruction": None if self.reconstruction is None else self.reconstruction.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.mean_length = state["mean_length"].to(self.accelerator.device)
        self.lazy = {name: term.to(self.accelerator.device) for name, term in state.get("lazy", {}).items()}
        self.ada.load_state(state["ada"])
        if self.reconstruction is not None:
            self.reconstruction.load_state(state["reconstruction"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def export(self, folder: Path) -> None:
        """Write the average generator as a model for the pipelines, with what another run can start from."""
        parts: dict[str, nn.Module] = {"generator": self.average, "discriminator": self.discriminator}
        if self.reconstruction is not None:
            parts["autoencoder"] = self.reconstruction.encoder
        export_model(folder, parts, init=self.init, crop_scale=self.config.crop_scale)


def _add(sums: Terms, terms: Terms, micro_batches: int) -> None:
    """Add the terms of a micro-batch to their means."""
    for name, term in terms.items():
        sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach() / micro_batches
