"""`EncoderLearner`: an encoder of pSp or e4e, the frozen generator behind it, and one training step of the two."""

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from stylegan_inversion import hub
from stylegan_inversion.losses.crop import inner_face
from stylegan_inversion.losses.identity import IdentityLoss, load_identity
from stylegan_inversion.losses.l2 import l2_loss
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.losses.moco import load_moco
from stylegan_inversion.losses.w_distance import w_distance_loss
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.sources import to_config
from stylegan_inversion.training.batch_norm import synchronize_batch_norm
from stylegan_inversion.training.compiling import compile_networks
from stylegan_inversion.training.config import TrainConfig
from stylegan_inversion.training.data import FaceFolder
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.e4e import LatentAdversary, progressive_stage
from stylegan_inversion.training.generator_model import check_side
from stylegan_inversion.training.learner import update_ema
from stylegan_inversion.training.objective import EncoderObjective
from stylegan_inversion.training.optimize import apply_gradients, make_optimizer
from stylegan_inversion.training.seeds import seeded_weights
from stylegan_inversion.training.start import ENCODERS, close_offsets, load_teacher, loss_weights, make_encoder
from stylegan_inversion.training.tasks import Task, make_task

logger = logging.getLogger(__name__)

LOSS_RESOLUTION = 256  # pictures are compared at this side at most, as pSp and e4e do


class EncoderLearner:
    """The networks of a run and what a step does to them."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
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
        device = accelerator.device
        self.task: Task = make_task(config.task, **config.task_options)
        self.weights = loss_weights(self.task, config)
        self._warn_of_weights()
        self.model_folder = hub.find_model(config.model)
        self.generator = hub.load_module(Generator, GeneratorConfig, self.model_folder / "generator", device=device)
        with seeded_weights(config.seed):
            self.encoder = make_encoder(config, self.task, self.generator).to(device)
            self.adversary = self._make_adversary()
        synchronize_batch_norm(self.encoder)
        self.input_resolution = self.encoder.config.input_resolution
        self.output_resolution = min(self.generator.config.resolution, LOSS_RESOLUTION)
        teacher = load_teacher(config, w_dim=self.generator.config.w_dim, side=self.output_resolution)
        self.teacher = None if teacher is None else teacher.to(device)
        self.ema = copy.deepcopy(self.encoder).eval().requires_grad_(False) if config.ema_decay else None
        self.parameters = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimizer, self.schedule = make_optimizer(config.optimizer, self.parameters, steps=config.steps)
        self.draws = Draws(self.generator, accelerator, seed=config.seed)
        self.objective = self._make_objective()
        if config.compile:
            compile_networks(self.generator.synthesis, device=device)

    def _warn_of_weights(self) -> None:
        """The papers' weights are for the papers' networks."""
        config, weights = self.config, self.weights
        chosen = "identity" in config.loss and weights.identity >= 0.5
        if config.identity == "builtin" and weights.identity > 0 and not chosen:
            logger.warning(
                "`loss.identity` is %g with the built-in network, for which strangers differ by 0.07 only: it will "
                "hardly count. Weigh it ten times as much, or give ArcFace as `identity`: the papers' weights are its.",
                weights.identity,
            )

    def _make_adversary(self) -> LatentAdversary | None:
        if self.weights.adversarial == 0:
            return None
        options = self.config.e4e
        adversary = LatentAdversary(
            self.generator.config.w_dim,
            lr=options.discriminator_lr,
            r1=options.r1,
            r1_every=options.r1_every,
            pool_size=options.pool_size,
        )
        return adversary.to(self.accelerator.device)

    def _make_objective(self) -> EncoderObjective:
        weights, perceptual = self.weights, None
        if weights.lpips + weights.lpips_crop > 0:
            perceptual = load_perceptual(self.config.perceptual)
        if perceptual is not None and weights.lpips_crop > 0:
            side = inner_face(torch.zeros(1, 1, self.output_resolution, self.output_resolution)).shape[-1]
            check_side(perceptual, side, otherwise="loss.lpips_crop=0")
        return EncoderObjective(
            weights,
            perceptual=perceptual,
            identity=IdentityLoss(load_identity(self.config.identity)) if weights.identity > 0 else None,
            moco=load_moco(self.config.moco) if weights.moco > 0 and self.config.moco else None,
        ).to(self.accelerator.device)

    def open_data(self, *, training: bool = True) -> FaceFolder | None:
        """The pictures that are trained on, or the same as they are; `None` if the run takes samples alone."""
        config = self.config
        return self._folder(config.data, config.sources, training=training) if config.batch_size else None

    def open_validation_data(self) -> FaceFolder | None:
        """The pictures that are held out; `None` if there are none."""
        return self._folder(self.config.validation_data, self.config.validation_sources, training=False)

    def _folder(self, targets: str | None, sources: str | None, *, training: bool) -> FaceFolder | None:
        if targets is None:
            return None
        return FaceFolder(
            targets,
            self.task,
            input_resolution=self.input_resolution,
            output_resolution=self.output_resolution,
            seed=self.config.seed,
            training=training,
            sources=sources,
        )

    def stage(self, step: int) -> int:
        """How many offsets e4e has switched on at a step; for pSp all of them count."""
        num_ws = self.generator.num_ws
        if not ENCODERS[self.config.method].progressive:
            return num_ws - 1
        options = self.config.e4e
        share = step / self.config.steps
        return progressive_stage(share, num_ws=num_ws, open_from=options.open_from, open_until=options.open_until)

    def step(self, batches: Sequence[dict[str, Tensor]], step: int) -> tuple[dict[str, Tensor], bool]:
        """Train for one step.

        Args:
            batches: The micro-batches of this process: "x", "y" and "position", or nothing when `batch_size` is 0.
            step: Number of the step, from 0. All random draws follow from it and from the positions.

        Returns:
            The terms of the loss, means over this process, and whether the step was finite. If the encoder's part is
            not, nothing has changed; if only the discriminator's is not, the discriminator has not.
        """
        stage = self.stage(step)
        if isinstance(self.encoder, Encoder4Editing):
            self.encoder.progressive_stage = stage
        buffers = [buffer.clone() for buffer in self.encoder.buffers()]
        self.schedule.step(step)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        codes = []
        for micro, batch in enumerate(batches):
            with self.accelerator.autocast():
                loss, terms, w_plus = self._losses(batch, step * len(batches) + micro, stage)
            self.accelerator.backward(loss / len(batches))
            codes.append(w_plus.detach().float())
            for name, term in {**terms, "loss": loss}.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + term.detach() / len(batches)

        finite = apply_gradients(
            self.accelerator,
            self.optimizer,
            self.parameters,
            sums["loss"],
            max_norm=self.config.optimizer.max_grad_norm,
        )
        if not finite:
            for buffer, before in zip(self.encoder.buffers(), buffers):
                buffer.copy_(before)
            return sums, False
        if self.ema is not None:
            update_ema(self.ema, self.encoder, self.config.ema_decay)
            if isinstance(self.ema, Encoder4Editing):
                self.ema.progressive_stage = stage
        if self.adversary is not None:
            terms, finite = self._update_adversary(self.adversary, torch.stack(codes), step, stage)
            sums.update(terms)
        return sums, finite

    def _losses(self, batch: dict[str, Tensor], serial: int, stage: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss, terms and codes of a micro-batch; `serial` counts the micro-batches of one process."""
        synthetic, true_w = self.draws.synthesize(serial, self.config.synthetic_batch_size, side=self.input_resolution)
        pictures = [batch["x"]] if self.config.batch_size else []
        x = torch.cat(pictures + [synthetic] * bool(len(synthetic)))  # a sketch has other channels
        if self.config.mixed_precision != "no":
            x = x.contiguous(memory_format=torch.channels_last)  # in which half precision is fast
        w_plus = self.encoder(x)
        count = len(w_plus) - len(synthetic)
        terms = self.objective.codes(w_plus, w_avg=self.encoder.w_avg, num_deltas=stage)
        if count and self.objective.image_terms:
            noise = self.draws.noise(serial, count)
            y_hat = self.resize(self.generator.synthesis(w_plus[:count], noise=noise))
            terms |= self.objective.images(y_hat, batch["y"])
        if self.weights.w_distance > 0:
            if self.teacher is not None:
                with torch.no_grad():
                    true_w = torch.cat([self.teacher(batch["y"]).float(), true_w])
            terms["w_distance"] = w_distance_loss(w_plus[len(w_plus) - len(true_w) :], true_w)
        if self.adversary is not None:
            terms["adversarial"] = self.adversary.encoder_loss(w_plus, stage)
        return self.objective.total(terms), terms, w_plus

    def resize(self, images: Tensor) -> Tensor:
        """Pool pictures to the side at which they are compared."""
        if images.shape[-1] == self.output_resolution:
            return images
        return F.adaptive_avg_pool2d(images, self.output_resolution)

    def _update_adversary(
        self, adversary: LatentAdversary, w_plus: Tensor, step: int, stage: int
    ) -> tuple[dict[str, Tensor], bool]:
        """Every process makes the same update, with the codes of all of them.

        `w_plus` holds those of this one, (micro-batches, B, num_ws, w_dim). They are put in the order in which a single
        process with the whole batch has them.
        """
        everyone = cast(Tensor, self.accelerator.gather(w_plus)).unflatten(0, (-1, len(w_plus)))  # (processes, ...)
        parts = everyone.tensor_split([self.config.batch_size], dim=2)  # pictures, samples of the generator
        w_plus = torch.cat([part.transpose(0, 1).flatten(1, 2) for part in parts], dim=1).flatten(0, 1)
        real_w, rng = self.draws.w(step, len(w_plus))
        return adversary.update(real_w, w_plus, stage=stage, step=step, rng=rng)

    @torch.no_grad()
    def evaluate(self, batches: Iterator[dict[str, Tensor]], *, score: bool) -> tuple[dict[str, float], list[Tensor]]:
        """Losses on pictures that are not trained on, with the encoder that would be saved.

        Args:
            batches: "x" and "y"; each process may get its own share.
            score: Of no matter: few pictures take no longer with their figures.

        Returns:
            Each term's mean over all pictures of all processes, `loss` among them; and the first batch's sources,
            targets and outputs.
        """
        encoder = self.ema if self.ema is not None else self.encoder
        was_training = encoder.training
        encoder.eval()
        if isinstance(encoder, Encoder4Editing):
            encoder.progressive_stage = cast(Encoder4Editing, self.encoder).progressive_stage
        count = torch.zeros((), device=self.accelerator.device)
        sums = {name: torch.zeros_like(count) for name in ("l2", "loss", *self.objective.image_terms)}
        shown: list[Tensor] = []
        for batch in batches:
            y_hat = self.resize(self.generator.synthesis(encoder(batch["x"])))
            terms = self.objective.images(y_hat, batch["y"])
            l2 = l2_loss(y_hat, batch["y"])  # what is compared when the run weighs no pictures
            for name, term in {"l2": l2, "loss": self.objective.total(terms) if terms else l2, **terms}.items():
                sums[name] += term * len(y_hat)
            count += len(y_hat)
            shown = shown or [self.task.source.preview(batch["x"]), batch["y"], y_hat]
        encoder.train(was_training)
        total = cast(Tensor, self.accelerator.reduce(count))
        reduced = {name: cast(Tensor, self.accelerator.reduce(value)) for name, value in sorted(sums.items())}
        return {name: float(value / total) for name, value in reduced.items()}, shown

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        scaler = self.accelerator.scaler
        return {
            "encoder": self.encoder.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.adversary is not None:
            self.adversary.load_state(state["adversary"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def export(self, folder: Path) -> None:
        """Write a model that the pipelines read: the encoder, with the generator and the directions beside it.

        Offsets of e4e that are not open yet are written as 0: the pipelines switch all of them on.
        """
        encoder = copy.deepcopy(self.ema if self.ema is not None else self.encoder)
        if isinstance(encoder, Encoder4Editing):
            close_offsets(encoder, cast(Encoder4Editing, self.encoder).progressive_stage)
        config = hub.read_config(self.model_folder)
        source = to_config(self.task.source)
        with hub.write_together(folder) as stage:
            for part in ("generator", "directions"):
                for file in sorted((self.model_folder / part).glob("*")):
                    hub.copy_file(file, stage / part / file.name)
            hub.save_module(encoder, stage / ENCODERS[self.config.method].folder)
            hub.write_config({**config, "source": source}, stage)
