"""The training of an encoder of pSp, e4e or ReStyle in front of a generator: what a run starts from, and its step.

Papers: Richardson et al. 2021 (pSp), arXiv:2008.00951; Tov et al. 2021 (e4e), arXiv:2102.02766; Alaluf et al. 2021
(ReStyle), arXiv:2104.02699. Original code: eladrich/pixel2style2pixel, omertov/encoder4editing and
yuval-alaluf/restyle-encoder (all MIT), training/coach*.py. Own code.
"""

import copy
import dataclasses
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from stylegan_inversion import storage
from stylegan_inversion.checkpoints.find import find_folder
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.losses.l2 import l2_loss
from stylegan_inversion.losses.w_distance import w_distance_loss
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.models.resnet import ResNetConfig
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.preprocessing.sources import PhotoSource, to_config
from stylegan_inversion.training.config import EncoderOptions, EncoderRunConfig, ReStyleOptions, SFEOptions
from stylegan_inversion.training.data import FaceFolder, SeededDraws, seeded_weights
from stylegan_inversion.training.e4e import LatentAdversary, progressive_stage
from stylegan_inversion.training.objective import EncoderObjective, Terms, add_terms, loss_weights
from stylegan_inversion.training.optimizer import apply_gradients, make_optimizer, update_ema
from stylegan_inversion.training.tasks import Task, make_task

Pass = tuple[Tensor, Tensor]  # the codes, (B, num_ws, w_dim), and what the next one looks at, (B, 3, S, S)
LOSS_RESOLUTION = 256  # pictures are compared at this side at most, as pSp and e4e do


class EncoderLearner:
    """The networks of a run and what a step does to them. See `trainer.Learner` for the methods."""

    def __init__(self, config: EncoderRunConfig, accelerator: Accelerator, *, teacher: nn.Module | None = None) -> None:
        """Build or load everything. `teacher`, (B, 3, R, R) -> (B, w_dim), knows the w of pictures for `w_distance`."""
        self.config, self.accelerator, self.teacher = config, accelerator, teacher
        device = accelerator.device
        self.model_folder = find_folder(config.model)
        self.domain = Domain.of_config(storage.read_config(self.model_folder), self.model_folder)
        self.task = make_task(config.task, config.task_options)
        if not self.domain.has_faces:  # a network that tells people apart has nothing to say
            self.task = replace(self.task, loss={k: v for k, v in self.task.loss.items() if k != "identity"})
        self.weights = loss_weights(self.task, config, knows_w=teacher is not None)
        self.kind = ENCODERS[config.method]
        self.generator = storage.load_module(Generator, GeneratorConfig, self.model_folder / "generator", device=device)
        self.output_resolution = min(self.generator.config.resolution, LOSS_RESOLUTION)
        self.generator.synthesis.requires_grad_(config.train_decoder)
        with seeded_weights(config.seed):
            self.encoder = make_encoder(config, self.task, self.generator).to(device)
            self.input_resolution = self.encoder.config.input_resolution
            self.prepare()
        synchronize_batch_norm(self.encoder)
        self.passes = self.encoder.config.iterations if self.kind.iterative else 1
        self.ema, self.ema_generator = (
            copy.deepcopy(network).eval().requires_grad_(False) if config.ema_decay and trained else None
            for network, trained in ((self.encoder, True), (self.generator, config.train_decoder))
        )
        trained = [p for network in (self.encoder, self.generator) for p in network.parameters() if p.requires_grad]
        self.optimizer, self.schedule = make_optimizer(config.optimizer, trained, steps=config.steps)
        self.draws = SeededDraws(self.generator, accelerator, seed=config.seed)
        self.objective = EncoderObjective(self.weights, config, resolution=self.output_resolution, device=device)
        if config.compile:
            self.generator.synthesis.compile(dynamic=False)

    def prepare(self) -> None:
        """Make the discriminator of the run, with seeded weights; `adversary` is `None` without one."""
        device = self.accelerator.device
        weighed = "adversarial" in self.weights
        size, options = self.generator.config.w_dim, self.config.e4e
        self.adversary: Any = LatentAdversary(size, options, device=device) if weighed else None

    def open_data(self, *, held_out: bool = False, training: bool = True) -> FaceFolder | None:
        """The pictures of the run; `None` if it takes samples alone, or no held-out pictures."""
        config = self.config
        folders = (config.validation_data, config.validation_sources) if held_out else (config.data, config.sources)
        if folders[0] is None or not (held_out or config.batch_size):
            return None
        return FaceFolder(
            folders[0],
            self.task,
            input_resolution=self.input_resolution,
            output_resolution=self.output_resolution,
            seed=config.seed,
            training=training and not held_out,
            sources=folders[1],
            domain=self.domain,
            other_cameras=config.other_cameras,
        )

    def stage(self, step: int) -> int:
        """How many offsets are switched on at a step: for pSp, which has none, all of the later styles count."""
        num_ws, e4e = self.generator.num_ws, self.config.e4e
        if not self.config.progressive:
            return num_ws - 1
        share = step / self.config.steps
        return progressive_stage(share, num_ws=num_ws, open_from=e4e.open_from, open_until=e4e.open_until)

    def step(self, batches: Sequence[dict[str, Tensor]], step: int) -> tuple[Terms, bool]:
        """Train for one step.

        If the encoder's part is not finite, nothing has changed; if only the discriminator's is not, it has not.
        """
        stage = self.stage(step)
        for network in (self.encoder, self.ema):
            if self.config.progressive and network is not None:
                network.progressive_stage = stage
        buffers = [buffer.clone() for buffer in self.encoder.buffers()]
        self.schedule.step(step)
        self.optimizer.zero_grad(set_to_none=True)
        sums: Terms = {}
        judged = []
        for micro, batch in enumerate(batches):
            serial = step * len(batches) + micro  # counts the micro-batches of this process
            with self.accelerator.autocast():
                x, true_w = self._inputs(batch, serial)
            seen = self.encoder.start(x, self.generator) if self.kind.iterative else None
            for number in range(self.passes):  # ReStyle's have a loss and a gradient each, which add up
                turn = serial * self.passes + number
                with self.accelerator.autocast():
                    loss, terms, made, drawn = self._losses(batch.get("y"), x, true_w, turn, stage, seen)
                self.accelerator.backward(loss / len(batches))
                if number == 0:  # what the discriminator is trained on; of ReStyle's passes as in its code
                    judged.append(made.detach().float())
                if number + 1 < self.passes:
                    seen = self._look(x, made.detach().float(), drawn)
            add_terms(sums, {**terms, "loss": loss}, len(batches))
        max_norm = self.config.optimizer.max_grad_norm
        if not apply_gradients(self.accelerator, self.optimizer, sums["loss"], max_norm=max_norm):
            for buffer, before in zip(self.encoder.buffers(), buffers):
                buffer.copy_(before)
            return sums, False
        for average, network in ((self.ema, self.encoder), (self.ema_generator, self.generator)):
            if average is not None:
                update_ema(average, network, self.config.ema_decay)
        if self.adversary is None:
            return sums, True
        terms, finite = self._train_adversary(judged, batches, step)
        return sums | terms, finite

    def _train_adversary(
        self, judged: list[Tensor], batches: Sequence[dict[str, Tensor]], step: int
    ) -> tuple[Terms, bool]:
        """Train the discriminator on the codes of the micro-batches and on as many of the mapping network."""
        w_plus = self._gather_codes(torch.stack(judged))
        real_w, rng = self.draws.w(step, len(w_plus))
        return self.adversary.update(real_w, w_plus, stage=self.stage(step), step=step, rng=rng)

    def _inputs(self, batch: dict[str, Tensor], serial: int) -> tuple[Tensor, Tensor]:
        """What the encoder reads, pictures and then samples of the generator, and the w of the samples."""
        synthetic, true_w = self.draws.synthesize(serial, self.config.synthetic_batch_size, side=self.input_resolution)
        pictures = [batch["x"]] if self.config.batch_size else []
        x = torch.cat(pictures + [self.domain.without_bars(synthetic)] * bool(len(synthetic)))  # a sketch: 1 channel
        if self.config.mixed_precision != "no":
            x = x.contiguous(memory_format=torch.channels_last)  # in which half precision is fast
        return x, true_w

    def _losses(
        self, y: Tensor | None, x: Tensor, true_w: Tensor, turn: int, stage: int, seen: Pass | None
    ) -> tuple[Tensor, Terms, Tensor, Tensor | None]:
        """Loss, terms, codes and pictures of a pass over a micro-batch, which has `seen` the one before, if any.

        The codes are what the discriminator judges. `turn` counts the passes of this process.
        """
        w_plus = self.encoder(x) if seen is None else seen[0] + self.encoder(x, seen[1])
        drawn = None
        terms = self.objective.codes(w_plus, w_avg=self.encoder.w_avg, num_deltas=stage)
        if y is not None and self.objective.image_terms:
            noise = self.draws.noise(turn, len(y))
            drawn = self.generator.synthesis(w_plus[: len(y)], noise=noise)
            terms |= self.objective.images(self.resize(drawn), y)
        if "w_distance" in self.weights:
            if self.teacher is not None and y is not None:
                with torch.no_grad():
                    true_w = torch.cat([self.teacher(y).float(), true_w])
            terms["w_distance"] = w_distance_loss(w_plus[len(w_plus) - len(true_w) :], true_w)
        if self.adversary is not None:
            terms["adversarial"] = self.adversary.encoder_loss(w_plus, stage)
        return self.objective.total(terms), terms, w_plus, drawn

    @torch.no_grad()
    def _look(self, x: Tensor, w_plus: Tensor, drawn: Tensor | None) -> Pass:
        """What the next pass looks at: the pictures that are drawn already, and those of the other codes."""
        pictures = [] if drawn is None else [drawn.detach().float()]
        others = w_plus[sum(map(len, pictures)) :]
        if len(others):
            pictures.append(self.generator.synthesis(others))
        return w_plus, self.encoder.look(x, torch.cat(pictures))

    def resize(self, images: Tensor) -> Tensor:
        """Pool what the generator draws to the side at which pictures are compared, without its bars."""
        if images.shape[-1] != self.output_resolution:
            images = F.adaptive_avg_pool2d(images, self.output_resolution)
        return self.domain.without_bars(images)

    def _gather_codes(self, w_plus: Tensor) -> Tensor:
        """The codes of all processes, so that each updates the discriminator in the same way.

        `w_plus` holds the codes of this one, (micro-batches, B, num_ws, w_dim). They are put in the order in which a
        single process with the whole batch has them.
        """
        everyone = cast(Tensor, self.accelerator.gather(w_plus)).unflatten(0, (-1, len(w_plus)))  # (processes, ...)
        parts = everyone.tensor_split([self.config.batch_size], dim=2)  # pictures, samples of the generator
        return torch.cat([part.transpose(0, 1).flatten(1, 2) for part in parts], dim=1).flatten(0, 1)

    def draw(self, x: Tensor, encoder: Any, generator: Generator) -> Tensor:
        """Draw what the pipeline makes of inputs of the encoder, (B, C, S, S): (B, 3, R, R)."""
        return generator.synthesis(encoder.refine(x, generator) if self.kind.iterative else encoder(x))

    def score(self, batch: dict[str, Tensor], encoder: Any, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw held-out pictures, (B, 3, R', R'), and judge them: means over the batch, "loss" among them."""
        y_hat = self.resize(self.draw(batch["x"], encoder, generator))
        return y_hat, self.figures(y_hat, batch["y"])

    def figures(self, y_hat: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Judge pictures, (B, 3, R', R'): their terms, "l2", and the sum as "loss"."""
        terms = self.objective.images(y_hat, y)
        l2 = l2_loss(y_hat, y)  # what is compared when the run weighs no pictures
        return {"l2": l2, "loss": self.objective.total(terms) if terms else l2, **terms}

    @torch.no_grad()
    def evaluate(self, batches: Iterator[dict[str, Tensor]], *, score: bool) -> tuple[dict[str, float], list[Tensor]]:
        """Compute the losses on held-out pictures, with the encoder that would be saved.

        `score` is ignored: scoring a few pictures costs nothing. Returns each term's mean over all pictures of all
        processes, "loss" among them; and the first batch's sources, targets and outputs.
        """
        encoder, generator = self._saved()
        trained = [module for module in encoder.modules() if module.training]
        encoder.eval()
        figures: list[tuple[int, dict[str, float]]] = []
        columns: list[Tensor] = []
        for batch in batches:
            y_hat, values = self.score(batch, encoder, generator)
            figures.append((len(y_hat), {name: float(value) for name, value in values.items()}))
            columns = columns or [self.task.source.preview(batch["x"]), batch["y"], y_hat]
        for module in trained:
            module.training = True
        everyone = gather_object(figures)
        count = sum(number for number, _ in everyone)
        names = sorted(everyone[0][1]) if everyone else ["loss"]
        return {n: sum(k * values[n] for k, values in everyone) / count if count else math.nan for n in names}, columns

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        return {
            "encoder": self.encoder.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "generator": self.generator.synthesis.state_dict() if self.config.train_decoder else None,
            "ema_generator": None if self.ema_generator is None else self.ema_generator.synthesis.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.config.train_decoder:
            self.generator.synthesis.load_state_dict(state["generator"])
        if self.ema_generator is not None:
            self.ema_generator.synthesis.load_state_dict(state["ema_generator"])
        if self.adversary is not None:
            self.adversary.load_state(state["adversary"])

    def _saved(self) -> tuple[Any, Generator]:
        """The encoder and the generator that are judged and saved: the averages, if there are any."""
        return self.ema or self.encoder, self.ema_generator or self.generator

    def export(self, folder: Path) -> None:
        """Write a model that the pipelines read: the encoder, with the generator and the directions beside it.

        Offsets of e4e that are not open yet are written as 0: the pipelines switch all of them on.
        """
        encoder, generator = self._saved()
        encoder = copy.deepcopy(encoder)
        if self.config.progressive:
            close_offsets(encoder, encoder.progressive_stage)
        config = storage.read_config(self.model_folder) | {
            "domain": asdict(self.domain),
            "source": to_config(self.task.source),
        }
        with storage.write_together(folder) as stage:
            others = [ENCODERS[name].folder for name in self.kind.needs]
            kept = () if self.config.train_decoder else ("generator", "relevance")
            for part in ("directions", *others, *kept):
                for file in sorted((self.model_folder / part).glob("*")):
                    (stage / part).mkdir(exist_ok=True)
                    shutil.copyfile(file, stage / part / file.name)
            if self.config.train_decoder:
                storage.save_module(generator, stage / "generator")
            storage.save_module(encoder, stage / self.kind.folder)
            storage.write_config(config, stage)


def make_encoder(config: EncoderRunConfig, task: Task, generator: Generator) -> Any:
    """Build or load the encoder that a run trains, in training mode, on the CPU.

    Its average w is that of the generator, also when an encoder of another generator is fine-tuned.
    """
    kind = ENCODERS[config.method]
    fields = {each.name for each in dataclasses.fields(kind.config)}
    options = vars(config.encoder) | vars(config.restyle) | vars(config.sfe)
    sizes: dict[str, Any] = {name: value for name, value in options.items() if name in fields}
    if sizes.get("resnet") and config.encoder.units == EncoderOptions().units:  # those of IR-SE50
        sizes["units"] = ResNetConfig().units
    needed: dict[str, Any] = {
        "output_resolution": generator.config.resolution,
        "w_dim": generator.config.w_dim,
        "in_channels": task.source.in_channels,
    }
    encoder: Any = None if config.init is None else _load_encoder(config.init, config.method)
    if "channels" in fields:  # of the generator's features; without squeeze-and-excitation
        side = (config.encoder if encoder is None else encoder.config).input_resolution // 4
        needed |= {"channels": generator.config.channels(max(side, 4)), "reduction": 1}
    if encoder is None:
        encoder = kind.network(kind.config(**sizes | needed))
        if config.encoder.backbone is not None:
            _load_backbone(encoder, config.encoder.backbone, pairs=kind.iterative)
    else:
        own = (config.encoder, config.restyle, config.sfe.depth)
        default = own == (EncoderOptions(), ReStyleOptions(), SFEOptions().depth)
        for name, wanted in (needed if default else sizes | needed).items():
            if wanted != (found := getattr(encoder.config, name, None)):
                raise ValueError(
                    f"`init` brings an encoder with {name}={found}, but `model`, `task` or `encoder` asks for {wanted}."
                )
    for name in ("synthetic_batch_size", "other_cameras"):
        if (value := getattr(config, name)) and not isinstance(task.source, PhotoSource):
            raise ValueError(f"`{name}` is {value:g}, but `task` {task.name} does not read pictures. Set it to 0.")
    if not kind.needs:  # SFE's has the generator's at hand
        encoder.w_avg.copy_(generator.w_avg.cpu())
    return encoder.train().requires_grad_(True)


def _load_encoder(name: str, method: str) -> Any:
    """Load a trained encoder. e4e may go on from a pSp encoder: it takes its first w, and its offsets start from 0."""
    model, kind = find_folder(name), ENCODERS[method]
    if (model / kind.folder).is_dir():
        return storage.load_module(kind.network, kind.config, model / kind.folder)
    for other in ENCODERS.values():  # one with the same weights under the same names
        if kind.progressive and other.config is kind.config and (model / other.folder).is_dir():
            first = storage.load_module(other.network, other.config, model / other.folder)
            encoder = kind.network(first.config)
            encoder.load_state_dict(first.state_dict())
            close_offsets(encoder, 0)
            return encoder
    raise ModelNotFoundError(f"`init`: {name!r} holds no {kind.network.__name__} (folder {kind.folder!r}).")


def close_offsets(encoder: Any, stage: int) -> None:
    """Make the offsets of e4e above a stage 0 for every picture, in place."""
    for style in list(getattr(encoder, "pyramid", encoder).styles)[stage + 1 :]:  # ReStyle has no pyramid
        nn.init.zeros_(style.linear.weight)
        nn.init.zeros_(style.linear.bias)


def _load_backbone(encoder: Any, name: str, *, pairs: bool) -> None:
    """Start from the backbone of a face recognition network, as pSp does; but for the stem if the channels differ.

    With `pairs` of pictures, ReStyle's input, the first of the two is read like theirs.
    """
    arcface = storage.load_module(ArcFace, ArcFaceConfig, find_folder(name))
    backbone = getattr(encoder, "pyramid", encoder).backbone
    theirs: dict[str, Tensor] = arcface.backbone.state_dict()
    if pairs:
        stem = backbone.state_dict()["stem.0.weight"][:, arcface.config.in_channels :]
        theirs["stem.0.weight"] = torch.cat([theirs["stem.0.weight"], stem], dim=1)
    elif backbone.config.in_channels != arcface.config.in_channels:
        ours = backbone.state_dict()
        theirs = {key: ours[key] if key.startswith("stem.") else tensor for key, tensor in theirs.items()}
    storage.fill_module(backbone, theirs, source=name)


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all processes, of one shape; PyTorch's `SyncBatchNorm` refuses the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, (B, C, H, W)."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        x = input.float()
        world = dist.get_world_size()
        sums = torch.cat([x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))])
        mean, square = (all_reduce(sums) / world).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        count = input.numel() / input.shape[1] * world
        with torch.no_grad():
            self.running_mean.lerp_(mean, cast(float, self.momentum))
            self.running_var.lerp_(variance * (count / (count - 1)), cast(float, self.momentum))
            self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt() * self.weight  # not F.batch_norm: it gives the statistics no gradient
        out = (x - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return out.to(input.dtype)


def synchronize_batch_norm(module: nn.Module) -> None:
    """Turn every `nn.BatchNorm2d` of a network into a synchronised one, in place; names and weights stay."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SynchronizedBatchNorm2d
