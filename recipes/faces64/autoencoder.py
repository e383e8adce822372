"""Step 5 of faces64: the synthesis network as the decoder of an autoencoder.

    python recipes/faces64/autoencoder.py --config recipes/faces64/autoencoder16.yaml

Adversarial training from nothing needs millions of pictures, a regression tens of thousands. Run the script at 16, 32
and 64 px in turn, each time from the model of the run before. Its models draw samples too: their mapping network is
computed from the w of training pictures, see `normal_prior.py`.
"""

import copy
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from image_encoder import ImageEncoder, ImageEncoderConfig
from normal_prior import fit_prior
from reconstruction import Reconstruction, ReconstructionOptions
from torch import Tensor

from stylegan_inversion import latents, storage
from stylegan_inversion.bounds import number
from stylegan_inversion.checkpoints.find import find_folder
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.training.config import GeneratorOptions, OptimizerOptions, RunConfig, load_config
from stylegan_inversion.training.data import FaceFolder, SeededDraws, seeded_weights
from stylegan_inversion.training.gan import make_generator
from stylegan_inversion.training.objective import add_terms, check_side
from stylegan_inversion.training.optimizer import apply_gradients, make_optimizer, update_ema
from stylegan_inversion.training.tasks import Inversion, Task
from stylegan_inversion.training.trainer import train_main

logger = logging.getLogger("autoencoder")
ENCODED_AT_ONCE = 64  # pictures


@dataclass(frozen=True)
class AutoencoderConfig(RunConfig):
    """A run of the autoencoder."""

    method: Literal["autoencoder"] = "autoencoder"  # what is trained
    output: str = "runs/faces64/autoencoder"  # folder of the run
    optimizer: OptimizerOptions = field(
        default_factory=lambda: OptimizerOptions("adam", 1e-2, schedule="cosine", betas=(0.5, 0.99))
    )
    init: str | None = None  # folder of a model to start from
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    mirror: bool = True  # mirror every second picture
    perceptual: str = "alex"  # network of the perceptual distance
    crop_scale: float | None = number(None, 1e-6, 1e6)  # crop relative to FFHQ's; None: that of `init`, or 1.0
    input_resolution: int = number(64, 16, 2048)  # side of the encoder's input, a multiple of 16
    components: int = number(256, 0, 4096)  # principal components of the pictures that the encoder begins with
    component_images: int = number(6000, 1, 10**6)  # how many pictures they are computed from
    reconstruction: ReconstructionOptions = field(default_factory=ReconstructionOptions)
    ema_decay: float = number(0.995, 0.0, 1.0)  # decay of the average networks per step
    prior_images: int = number(1000, 2, 10**6)  # pictures to whose w the saved mapping network is fitted
    validation_images: int = number(500, 0, 10**9)  # how many validation pictures are used, at most


class AutoencoderLearner:
    """An encoder and a synthesis network, their running averages, and what a step does to them."""

    def __init__(self, config: AutoencoderConfig, accelerator: Accelerator) -> None:
        """Build or load everything."""
        self.config, self.accelerator = config, accelerator
        device, options = accelerator.device, config.reconstruction
        self.init = None if config.init is None else find_folder(config.init)
        with seeded_weights(config.seed):
            self.generator = make_generator(config.generator, self.init).to(device).train().requires_grad_(True)
            encoder = self._make_encoder()
        self.generator.mapping.requires_grad_(False)
        perceptual = load_perceptual(config.perceptual, device=device) if options.lpips else None
        if perceptual is not None:
            check_side(perceptual, self.generator.config.resolution, otherwise="set --reconstruction.lpips 0")
        self.reconstruction = Reconstruction(
            encoder,
            options,
            perceptual=perceptual,
            optimizer=config.optimizer,
            accelerator=accelerator,
            steps=config.steps,
        )
        self.average = copy.deepcopy(self.generator), copy.deepcopy(encoder)
        for network in self.average:
            network.eval().requires_grad_(False)
        self.parameters = list(self.generator.synthesis.parameters())
        self.optimizer, self.schedule = make_optimizer(config.optimizer, self.parameters, steps=config.steps)
        self.draws = SeededDraws(self.generator, accelerator, seed=config.seed)
        # The encoder may look at larger pictures than the generator draws
        self.side = max(self.generator.config.resolution, encoder.config.input_resolution)
        if config.compile:
            self.generator.synthesis.compile(dynamic=False)
            encoder.compile(dynamic=False)

    def _make_encoder(self) -> ImageEncoder:
        config = self.config
        if self.init is not None and (self.init / "autoencoder").is_dir():
            return storage.load_module(ImageEncoder, ImageEncoderConfig, self.init / "autoencoder")
        encoder = ImageEncoder(ImageEncoderConfig(config.input_resolution, self.generator.config.w_dim))
        if config.components:
            folder = self._folder(config.data, side=config.input_resolution, training=True)
            assert folder is not None  # the config wants data
            count = min(config.component_images, len(folder))
            with torch.no_grad():
                pixels = torch.cat([encoder.pixels(folder[i]["y"][None]) for i in range(count)])
            encoder.start_from_components(pixels, config.components)
        return encoder

    def _folder(self, folder: str | None, *, side: int, training: bool) -> FaceFolder | None:
        if folder is None:
            return None
        return FaceFolder(
            folder,
            (Inversion if self.config.mirror else Task)("pictures", {}),
            input_resolution=side,
            output_resolution=side,
            seed=self.config.seed,
            training=training,
        )

    def open_data(self, *, held_out: bool = False, training: bool = True) -> FaceFolder | None:
        """The pictures of the run; `None` if there are no held-out ones."""
        folder = self.config.validation_data if held_out else self.config.data
        return self._folder(folder, side=self.side, training=training and not held_out)

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
            add_terms(sums, {**terms, "loss": loss}, len(batches))
        norm = self.config.optimizer.max_grad_norm
        finite = apply_gradients(self.accelerator, self.optimizer, sums["loss"], max_norm=norm)
        self.optimizer.zero_grad(set_to_none=True)
        finite = self.reconstruction.step(sums["loss"], step) and finite
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
        """Compute the errors of the average networks on held-out pictures; originals and copies side by side."""
        generator, encoder = self.average
        zero = torch.zeros((), device=self.accelerator.device)
        names = ("l1", "l2", "loss", *(("lpips",) if self.reconstruction.perceptual is not None else ()))
        count, sums, columns = zero.clone(), {name: zero.clone() for name in names}, list[Tensor]()
        for batch in batches:
            y = self._target(batch["y"])
            y_hat = generator.synthesis(latents.broadcast(encoder(batch["y"]), generator.num_ws))
            loss, terms = self.reconstruction.losses(y_hat, y)
            for name, term in {**terms, "loss": loss}.items():
                sums[name] += term * len(y)
            count += len(y)
            columns = columns or [y, y_hat.clamp(-1, 1)]
        total = self.accelerator.reduce(count)
        return {name: float(self.accelerator.reduce(value) / total) for name, value in sums.items()}, columns

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        return {
            "generator": self.generator.state_dict(),
            "average": [network.state_dict() for network in self.average],
            "optimizer": self.optimizer.state_dict(),
            "reconstruction": self.reconstruction.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.generator.load_state_dict(state["generator"])
        for network, weights in zip(self.average, state["average"]):
            network.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.reconstruction.load_state(state["reconstruction"])

    @torch.no_grad()
    def _prior_codes(self) -> Tensor:
        """The average encoder's w of training pictures, spread evenly, and of their mirror images."""
        encoder, folder = self.average[1], self.open_data(training=False)
        assert folder is not None  # the config wants data
        count = min(self.config.prior_images, len(folder))
        pictures = torch.stack([folder[i * len(folder) // count]["y"] for i in range(count)])
        codes = []
        for y in pictures.split(ENCODED_AT_ONCE):
            y = y.to(self.accelerator.device)
            codes += [encoder(y), encoder(y.flip(-1))] if self.config.mirror else [encoder(y)]
        return torch.cat(codes)

    def export(self, folder: Path) -> None:
        """Write copies of the average networks, with a mapping network that is fitted to training pictures."""
        generator, encoder = copy.deepcopy(self.average)
        w = self._prior_codes()
        if w.isfinite().all():
            fit_prior(generator, encoder, w)
        else:  # a run that has diverged is saved nevertheless
            logger.warning("The mapping network is left as it is: the w of training pictures are not finite.")
        config: dict[str, Any] = {} if self.init is None else storage.read_config(self.init)
        domain = Domain.of_config(config, self.init or Path()).changed({"crop_scale": self.config.crop_scale})
        config["domain"] = asdict(domain)
        with storage.write_together(folder) as stage:
            storage.save_module(generator, stage / "generator")
            storage.save_module(encoder, stage / "autoencoder")
            storage.write_config(config, stage)


if __name__ == "__main__":
    sys.exit(train_main(load_config(sys.argv[1:], [AutoencoderConfig]), AutoencoderLearner))
