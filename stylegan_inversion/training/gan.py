"""The training of a StyleGAN2 generator against a discriminator: what a run starts from, one step of it, its score.

Papers: Karras et al. 2020, arXiv:1912.04958 (losses, lazy regularisation, path length), and arXiv:2006.06676 (adaptive
augmentation). Original code: NVlabs/stylegan2-ada-pytorch (NVIDIA Source Code Licence; not used). Own code.
Departures: R1 is taken of the augmented pictures, as the discriminator sees them; the mean path length is that of all
processes.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from stylegan_inversion import latents, storage
from stylegan_inversion.checkpoints.find import find_folder
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from stylegan_inversion.losses.frechet import frechet_distance, pool_features
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.losses.path_length import path_length, path_length_penalty
from stylegan_inversion.models.discriminator import Discriminator, DiscriminatorConfig
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.training.augment import AdaptiveProbability, augment
from stylegan_inversion.training.config import GANConfig, GeneratorOptions
from stylegan_inversion.training.data import FaceFolder, SeededDraws, seeded_weights
from stylegan_inversion.training.objective import Terms, add_terms, check_side
from stylegan_inversion.training.optimizer import apply_gradients, lazy_options, make_optimizer, update_ema
from stylegan_inversion.training.tasks import Inversion, Task

DEFAULT_RESOLUTION = 256
SCORED_AT_ONCE = 64  # pictures that go through the networks when a generator is scored
STATEFUL = ("generator", "average", "discriminator", "optimizer", "discriminator_optimizer")

Batches = Sequence[dict[str, Tensor]]


class GANLearner:
    """A generator, its running average and its discriminator, and what a step does to them.

    See `trainer.Learner` for the methods. `recipes/faces64` replaces `make_discriminator`, `fakes` and
    `generator_terms`.
    """

    def __init__(self, config: GANConfig, accelerator: Accelerator) -> None:
        """Build or load everything."""
        self.config, self.accelerator = config, accelerator
        options, device = config.adversarial, accelerator.device
        self.init = None if config.init is None else find_folder(config.init)
        self.settings = {} if self.init is None else storage.read_config(self.init)
        self.settings.pop("dataset", None)  # it learns to draw another
        faces = False if config.whole_photos else None
        given = {"has_faces": faces, "crop_scale": config.crop_scale, "height": config.height}
        self.domain = Domain.of_config(self.settings, self.init or Path()).changed(given)
        with seeded_weights(config.seed):
            self.generator = make_generator(config.generator, self.init).to(device).train().requires_grad_(True)
            self.perceptual = load_perceptual(config.perceptual, device=device)
            self.discriminator = self.make_discriminator().to(device).train().requires_grad_(False)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.optimizer, self.schedule = make_optimizer(
            lazy_options(config.optimizer, options.path_length_every if options.path_length else 0),
            list(self.generator.parameters()),
            steps=config.steps,
        )
        d_options = dataclasses.replace(config.optimizer, lr=config.discriminator.lr or config.optimizer.lr)
        self.discriminator_optimizer, self.discriminator_schedule = make_optimizer(
            lazy_options(d_options, options.r1_every if options.r1 else 0),
            list(self.discriminator.parameters()),
            steps=config.steps,
        )
        self.draws = SeededDraws(self.generator, accelerator, seed=config.seed)
        self.ada = AdaptiveProbability(config.ada)
        self.mean_length = torch.zeros((), device=device)
        self.lazy: Terms = {}  # terms of the regularisers as last computed: a log line seldom falls on such a step
        self.drawn: list[Tensor] = []  # pictures of the generator's step, one batch per micro-batch
        self.score_features: dict[str, Callable[[Tensor], list[Tensor]]] = {
            f"fd ({self.perceptual.name})": self.perceptual.features
        }
        if config.compile:
            self.generator.synthesis.compile(dynamic=False)

    def make_discriminator(self) -> nn.Module:
        """Build a discriminator for the generator, or load that of `init`."""
        options, sizes = self.config.discriminator, self.generator.config
        folder = None if self.init is None or options.new else self.init / "discriminator"
        if folder and folder.is_dir() and storage.read_config(folder).get("_class_name") == Discriminator.__name__:
            discriminator = storage.load_module(Discriminator, DiscriminatorConfig, folder)
            if (side := discriminator.config.resolution) != sizes.resolution:
                raise ValueError(
                    f"`init` brings a discriminator of {side} px; the generator draws {sizes.resolution} px. To begin "
                    "with a new one add --discriminator.new."
                )
        else:
            discriminator = Discriminator(
                DiscriminatorConfig(
                    resolution=sizes.resolution,
                    channel_base=options.channel_base or sizes.channel_base,
                    channel_max=options.channel_max or sizes.channel_max,
                    group_size=options.group_size,
                )
            )
        if (batch := self.config.batch_size) > (group := discriminator.config.group_size) and batch % group:
            raise ValueError(
                f"`batch_size` must be a multiple of the discriminator's group size, {group}, or at most that, got "
                f"{batch}. For a new discriminator set `discriminator.group_size`."
            )
        return discriminator

    def open_data(self, *, held_out: bool = False, training: bool = True) -> FaceFolder | None:
        """The pictures of the run; `None` if there are no held-out ones."""
        config, side = self.config, self.generator.config.resolution
        folder = config.validation_data if held_out else config.data
        if folder is None:
            return None
        pictures = FaceFolder(
            folder,
            (Inversion if config.mirror else Task)("pictures", {}, bars=True),
            input_resolution=side,
            output_resolution=side,
            seed=config.seed,
            training=training and not held_out,
            domain=self.domain,
        )
        if held_out and (count := min(len(pictures), config.validation_images)) < 2:
            raise ValueError(
                f"A Frechet distance needs at least 2 pictures in `validation_data`, and `validation_images` >= 2, "
                f"got {count}."
            )
        if held_out:
            check_side(self.perceptual, side, otherwise="leave out validation_data")
        return pictures

    def step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        """Train for one step: the generator, its path length, the discriminator, its R1; the second and last are lazy.

        The terms of the lazy parts are those last computed. A part that was not finite has changed nothing.
        """
        options = self.config.adversarial
        self.schedule.step(step)
        self.discriminator_schedule.step(step)
        terms, finite = self._generator_step(batches, step)
        if options.path_length and options.path_length_every and step % options.path_length_every == 0:
            more, fine = self._path_length_step(batches, step)
            terms, finite = terms | more, finite and fine
        images = len(batches) * self.config.batch_size * self.accelerator.num_processes
        if finite:
            half_life = options.ema_kimg * 1000
            if options.ema_rampup:
                half_life = min(half_life, (step + 1) * images * options.ema_rampup)
            update_ema(self.average, self.generator, 0.5 ** (images / max(half_life, 1e-8)))
        more, fine = self._discriminator_step(batches, step)
        terms, finite = terms | more, finite and fine
        if options.r1 and options.r1_every and step % options.r1_every == 0:
            more, fine = self._r1_step(batches, step)
            terms, finite = terms | more, finite and fine
        terms["augmentation"] = torch.tensor(self.ada.p, device=self.accelerator.device)
        return self.lazy | terms, finite

    def fakes(self, batch: dict[str, Tensor], serial: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Draw pictures of the generator, (B, 3, R, R); and the first w of the samples, (count, w_dim)."""
        count = self.config.batch_size
        w_plus, w = self.draws.styles(purpose, serial, count, mixing=self.config.adversarial.style_mixing)
        return self.generator.synthesis(w_plus, noise=self.noise(serial, count, f"{purpose} noise")), w

    def noise(self, serial: int, count: int, purpose: str) -> list[Tensor]:
        """Noise inputs for pictures; zeros in runs without noise."""
        noise = self.draws.noise(serial, count, purpose=purpose)
        return noise if self.config.adversarial.noise else [torch.zeros_like(tensor) for tensor in noise]

    def generator_terms(self, images: Tensor, batch: dict[str, Tensor], serial: int) -> Terms:
        """Compute the terms of the generator's loss, and their sum as "loss"."""
        loss = generator_loss(self.discriminator(self._augment(images, serial, "generator")))
        return {"generator": loss, "loss": loss}

    def _augment(self, images: Tensor, serial: int, purpose: str) -> Tensor:
        """Augment pictures for the discriminator, in the layout in which half precision is fast."""
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
        for serial, batch in enumerate(batches, step * len(batches)):
            with self.accelerator.autocast():
                images, w = self.fakes(batch, serial, "generator")
                self.drawn.append(images.detach())
                parts = self.generator_terms(images, batch, serial)
            self.accelerator.backward(parts["loss"] / len(batches))
            add_terms(terms, parts, len(batches))
            mean_w += w.detach().float().mean(dim=0) / len(batches)
        finite = self._apply(self.optimizer, terms["loss"])
        if finite:
            self.generator.w_avg.lerp_(self._mean(mean_w), 1 - self.config.adversarial.w_avg_decay)
        return terms, finite

    def _path_length_step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        options = self.config.adversarial
        count = max(1, self.config.batch_size // options.path_length_shrink)
        side = self.generator.config.resolution
        terms: Terms = {}
        new_mean = torch.zeros_like(self.mean_length)
        for serial, _ in enumerate(batches, step * len(batches)):
            w_plus, _ = self.draws.styles("path length", serial, count, mixing=options.style_mixing)
            noise = self.noise(serial, count, "path length noise")
            with torch.compiler.set_stance("force_eager"):  # its gradients are differentiated again
                images = self.generator.synthesis(w_plus, noise=noise)
            lengths = path_length(images, w_plus, self.draws.normal("direction", serial, (count, 3, side, side)))
            penalty, mean = path_length_penalty(lengths, self.mean_length)
            self.accelerator.backward(penalty * (options.path_length * options.path_length_every / len(batches)))
            add_terms(terms, {"path length": lengths.mean(), "path length penalty": penalty}, len(batches))
            new_mean += mean / len(batches)
        finite = self._apply(self.optimizer, terms["path length penalty"])
        if finite:
            self.mean_length = self._mean(new_mean)
            self._remember(terms)
        return terms, finite

    def _discriminator_step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        terms: Terms = {}
        signs = torch.zeros((), device=self.accelerator.device)
        self.discriminator.requires_grad_(True)
        for serial, (batch, images) in enumerate(zip(batches, self.drawn), step * len(batches)):
            with self.accelerator.autocast():
                if not self.config.adversarial.reuse_samples:
                    with torch.no_grad():
                        images, _ = self.fakes(batch, serial, "discriminator")
                fake = self.discriminator(self._augment(images, serial, "fake"))
                real = self.discriminator(self._augment(batch["y"], serial, "real"))
                loss = discriminator_loss(real, fake)
            self.accelerator.backward(loss / len(batches))
            signs += real.detach().float().sign().sum()
            scores = {"discriminator": loss, "real score": real.mean(), "fake score": fake.mean()}
            add_terms(terms, scores, len(batches))
        finite = self._apply(self.discriminator_optimizer, terms["discriminator"])
        self.discriminator.requires_grad_(False)
        if finite:
            signs = cast(Tensor, self.accelerator.reduce(signs))
            self.ada.observe(float(signs), len(batches) * self.config.batch_size * self.accelerator.num_processes)
        return terms, finite

    def _r1_step(self, batches: Batches, step: int) -> tuple[Terms, bool]:
        options = self.config.adversarial
        terms: Terms = {}
        self.discriminator.requires_grad_(True)
        for serial, batch in enumerate(batches, step * len(batches)):
            real = self._augment(batch["y"], serial, "real").detach().requires_grad_()
            penalty = r1_penalty(self.discriminator(real), real)
            self.accelerator.backward(penalty * (options.r1 / 2 * options.r1_every / len(batches)))
            add_terms(terms, {"r1": penalty}, len(batches))
        finite = self._apply(self.discriminator_optimizer, terms["r1"])
        self.discriminator.requires_grad_(False)
        if finite:
            self._remember(terms)
        return terms, finite

    def _apply(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> bool:
        """Step one of the two networks, and forget its gradients. Whether it was finite."""
        finite = apply_gradients(self.accelerator, optimizer, loss, max_norm=self.config.optimizer.max_grad_norm)
        optimizer.zero_grad(set_to_none=True)
        return finite

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return cast(Tensor, self.accelerator.reduce(value, reduction="mean"))

    def _remember(self, terms: Terms) -> None:
        """Keep the terms of a regulariser for the log of the steps without it, as means over all processes."""
        self.lazy |= {name: self._mean(term) for name, term in terms.items()}

    @torch.no_grad()
    def evaluate(self, batches: Iterator[dict[str, Tensor]], *, score: bool) -> tuple[dict[str, float], list[Tensor]]:
        """Draw samples of the average generator, as many as there are pictures and of the same z each time.

        Returns Frechet distances by name and their geometric mean as "loss", with `score`; and pictures of the first
        batch: real, samples, and the same samples truncated to 0.7. The features are not Inception's: this is not FID.
        """
        draws = SeededDraws(self.average, self.accelerator, seed=self.config.seed)
        real: dict[str, list[Tensor]] = {name: [] for name in self.score_features}
        fake: dict[str, list[Tensor]] = {name: [] for name in self.score_features}
        columns: list[Tensor] = []
        pieces = (zip(batch["y"].split(SCORED_AT_ONCE), batch["index"].split(SCORED_AT_ONCE)) for batch in batches)
        for y, index in itertools.chain.from_iterable(pieces):
            w = self.average.mapping(draws.numbered("progress", index.tolist(), self.average.config.z_dim))
            w_plus = latents.broadcast(w, self.average.num_ws)
            images = self.average.synthesis(w_plus).clamp(-1, 1)
            if not columns:
                truncated = latents.truncate(w_plus, self.average.w_avg, truncation_psi=0.7)
                columns = [y, images, self.average.synthesis(truncated).clamp(-1, 1)]
            if not score:
                break
            for name, features in self.score_features.items():
                real[name].append(pool_features(features(y)).cpu().double())
                fake[name].append(pool_features(features(images)).cpu().double())
        if not score:
            return {}, columns
        values = {name: frechet_distance(_everyone(real[name]), _everyone(fake[name])) for name in real}
        return {**values, "loss": math.prod(values.values()) ** (1 / len(values))}, columns

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        return parts | {"mean_length": self.mean_length, "lazy": self.lazy, "ada": self.ada.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.mean_length = state["mean_length"].to(self.accelerator.device)
        self.lazy = {name: term.to(self.accelerator.device) for name, term in state["lazy"].items()}
        self.ada.load_state(state["ada"])

    def export(self, folder: Path) -> None:
        """Write the average generator as a model for the pipelines, and the discriminator for another run.

        The settings of the pipeline of `init` stay. Its directions and encoders belong to its generator: left out.
        """
        config = self.settings | {"domain": dataclasses.asdict(self.domain)}
        config.pop("_class_name", None)  # of a pipeline with an encoder, perhaps
        with storage.write_together(folder) as stage:
            for name, network in self.exported().items():
                storage.save_module(network, stage / name)
            storage.write_config(config, stage)

    def exported(self) -> dict[str, nn.Module]:
        """The networks of the saved model, by the name of their folder."""
        return {"generator": self.average, "discriminator": self.discriminator}


def make_generator(options: GeneratorOptions, model: Path | None) -> Generator:
    """Build a generator, or load that of a model's folder; if a larger resolution is asked for, it grows."""
    if model is None:
        return Generator(GeneratorConfig(**{**vars(options), "resolution": options.resolution or DEFAULT_RESOLUTION}))
    if not (model / "generator").is_dir():
        raise ModelNotFoundError(f"`init`: {model} holds no generator (folder 'generator').")
    generator = storage.load_module(Generator, GeneratorConfig, model / "generator")
    side = generator.config.resolution
    if options.resolution is None or options.resolution == side:
        return generator
    if options.resolution < side:
        raise ValueError(f"`generator.resolution` is {options.resolution}, but `init` brings a generator of {side} px.")
    return grow_generator(generator, options.resolution)


def grow_generator(generator: Generator, resolution: int) -> Generator:
    """Give a copy of a generator further blocks, which draw nothing yet: its pictures are the old ones, enlarged."""
    grown = Generator(dataclasses.replace(generator.config, resolution=resolution))
    state = grown.state_dict()
    for side in grown.config.resolutions:
        if side > generator.config.resolution:
            state[f"synthesis.blocks.{side}.to_rgb.weight"].zero_()  # in place: it is the network's own
    grown.load_state_dict(state | generator.state_dict())
    return grown


def _everyone(features: list[Tensor]) -> Tensor:
    """Features of the pictures of all processes, (N, D)."""
    return torch.cat([part for parts in gather_object([features]) for part in parts])
