"""The training of a pSp or e4e encoder in front of a frozen generator: what a run starts from, and one step of it.

Papers: Richardson et al. 2021 (pSp), arXiv:2008.00951; Tov et al. 2021 (e4e), arXiv:2102.02766. Original code:
eladrich/pixel2style2pixel and omertov/encoder4editing (MIT), training/coach.py. Own code.
"""

import copy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
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
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.preprocessing.sources import PhotoSource, to_config
from stylegan_inversion.training.config import EncoderOptions, EncoderRunConfig
from stylegan_inversion.training.data import FaceFolder, SeededDraws, seeded_weights
from stylegan_inversion.training.e4e import LatentAdversary, progressive_stage
from stylegan_inversion.training.objective import EncoderObjective, Terms, add_terms, loss_weights
from stylegan_inversion.training.optimizer import apply_gradients, make_optimizer, update_ema
from stylegan_inversion.training.tasks import Task, make_task

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
        self.adversary: LatentAdversary | None = None
        with seeded_weights(config.seed):
            self.encoder = make_encoder(config, self.task, self.generator).to(device)
            if "adversarial" in self.weights:
                self.adversary = LatentAdversary(self.generator.config.w_dim, config.e4e, device=device)
        synchronize_batch_norm(self.encoder)
        self.input_resolution = self.encoder.config.input_resolution
        self.output_resolution = min(self.generator.config.resolution, LOSS_RESOLUTION)
        self.ema = copy.deepcopy(self.encoder).eval().requires_grad_(False) if config.ema_decay else None
        self.optimizer, self.schedule = make_optimizer(
            config.optimizer, list(self.encoder.parameters()), steps=config.steps
        )
        self.draws = SeededDraws(self.generator, accelerator, seed=config.seed)
        self.objective = EncoderObjective(self.weights, config, resolution=self.output_resolution, device=device)
        if config.compile:
            self.generator.synthesis.compile(dynamic=False)

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
        )

    def stage(self, step: int) -> int:
        """How many offsets are switched on at a step: for pSp, which has none, all of the later styles count."""
        num_ws, e4e = self.generator.num_ws, self.config.e4e
        if not self.kind.progressive:
            return num_ws - 1
        share = step / self.config.steps
        return progressive_stage(share, num_ws=num_ws, open_from=e4e.open_from, open_until=e4e.open_until)

    def step(self, batches: Sequence[dict[str, Tensor]], step: int) -> tuple[Terms, bool]:
        """Train for one step.

        If the encoder's part is not finite, nothing has changed; if only the discriminator's is not, it has not.
        """
        stage = self.stage(step)
        for network in (self.encoder, self.ema):
            if self.kind.progressive and network is not None:
                network.progressive_stage = stage
        buffers = [buffer.clone() for buffer in self.encoder.buffers()]
        self.schedule.step(step)
        self.optimizer.zero_grad(set_to_none=True)
        sums: Terms = {}
        codes = []
        for micro, batch in enumerate(batches):
            with self.accelerator.autocast():
                loss, terms, w_plus = self._losses(batch, step * len(batches) + micro, stage)
            self.accelerator.backward(loss / len(batches))
            codes.append(w_plus.detach().float())
            add_terms(sums, {**terms, "loss": loss}, len(batches))
        max_norm = self.config.optimizer.max_grad_norm
        if not apply_gradients(self.accelerator, self.optimizer, sums["loss"], max_norm=max_norm):
            for buffer, before in zip(self.encoder.buffers(), buffers):
                buffer.copy_(before)
            return sums, False
        if self.ema is not None:
            update_ema(self.ema, self.encoder, self.config.ema_decay)
        if self.adversary is None:
            return sums, True
        w_plus = self._gather_codes(torch.stack(codes))
        real_w, rng = self.draws.w(step, len(w_plus))
        terms, finite = self.adversary.update(real_w, w_plus, stage=stage, step=step, rng=rng)
        return sums | terms, finite

    def _losses(self, batch: dict[str, Tensor], serial: int, stage: int) -> tuple[Tensor, Terms, Tensor]:
        """Loss, terms and codes of a micro-batch; `serial` counts the micro-batches of one process."""
        synthetic, true_w = self.draws.synthesize(serial, self.config.synthetic_batch_size, side=self.input_resolution)
        pictures = [batch["x"]] if self.config.batch_size else []
        x = torch.cat(pictures + [self.domain.without_bars(synthetic)] * bool(len(synthetic)))  # a sketch: 1 channel
        if self.config.mixed_precision != "no":
            x = x.contiguous(memory_format=torch.channels_last)  # in which half precision is fast
        w_plus = self.encoder(x)
        count = len(w_plus) - len(synthetic)
        terms = self.objective.codes(w_plus, w_avg=self.encoder.w_avg, num_deltas=stage)
        if count and self.objective.image_terms:
            noise = self.draws.noise(serial, count)
            y_hat = self.resize(self.generator.synthesis(w_plus[:count], noise=noise))
            terms |= self.objective.images(y_hat, batch["y"])
        if "w_distance" in self.weights:
            if self.teacher is not None:
                with torch.no_grad():
                    true_w = torch.cat([self.teacher(batch["y"]).float(), true_w])
            terms["w_distance"] = w_distance_loss(w_plus[len(w_plus) - len(true_w) :], true_w)
        if self.adversary is not None:
            terms["adversarial"] = self.adversary.encoder_loss(w_plus, stage)
        return self.objective.total(terms), terms, w_plus

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

    @torch.no_grad()
    def evaluate(self, batches: Iterator[dict[str, Tensor]], *, score: bool) -> tuple[dict[str, float], list[Tensor]]:
        """Compute the losses on held-out pictures, with the encoder that would be saved.

        `score` is ignored: scoring a few pictures costs nothing. Returns each term's mean over all pictures of all
        processes, "loss" among them; and the first batch's sources, targets and outputs.
        """
        encoder = self.encoder if self.ema is None else self.ema
        was_training = encoder.training
        encoder.eval()
        count = torch.zeros((), device=self.accelerator.device)
        sums = {name: torch.zeros_like(count) for name in ("l2", "loss", *self.objective.image_terms)}
        columns: list[Tensor] = []
        for batch in batches:
            y_hat = self.resize(self.generator.synthesis(encoder(batch["x"])))
            terms = self.objective.images(y_hat, batch["y"])
            l2 = l2_loss(y_hat, batch["y"])  # what is compared when the run weighs no pictures
            for name, term in {"l2": l2, "loss": self.objective.total(terms) if terms else l2, **terms}.items():
                sums[name] += term * len(y_hat)
            count += len(y_hat)
            columns = columns or [self.task.source.preview(batch["x"]), batch["y"], y_hat]
        encoder.train(was_training)
        total = cast(Tensor, self.accelerator.reduce(count))
        reduced = {name: cast(Tensor, self.accelerator.reduce(value)) for name, value in sorted(sums.items())}
        return {name: float(value / total) for name, value in reduced.items()}, columns

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        return {
            "encoder": self.encoder.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.adversary is not None:
            self.adversary.load_state(state["adversary"])

    def export(self, folder: Path) -> None:
        """Write a model that the pipelines read: the encoder, with the generator and the directions beside it.

        Offsets of e4e that are not open yet are written as 0: the pipelines switch all of them on.
        """
        encoder = copy.deepcopy(self.encoder if self.ema is None else self.ema)
        if self.kind.progressive:
            close_offsets(encoder, encoder.progressive_stage)
        config = storage.read_config(self.model_folder) | {
            "domain": asdict(self.domain),
            "source": to_config(self.task.source),
        }
        with storage.write_together(folder) as stage:
            for part in ("generator", "directions"):
                for file in sorted((self.model_folder / part).glob("*")):
                    (stage / part).mkdir(exist_ok=True)
                    shutil.copyfile(file, stage / part / file.name)
            storage.save_module(encoder, stage / self.kind.folder)
            storage.write_config(config, stage)


def make_encoder(config: EncoderRunConfig, task: Task, generator: Generator) -> Any:
    """Build or load the encoder that a run trains, in training mode, on the CPU.

    Its average w is that of the generator, also when an encoder of another generator is fine-tuned.
    """
    sizes: dict[str, Any] = {name: value for name, value in vars(config.encoder).items() if name != "backbone"}
    needed: dict[str, Any] = {
        "output_resolution": generator.config.resolution,
        "w_dim": generator.config.w_dim,
        "in_channels": task.source.in_channels,
    }
    if config.init is None:
        encoder: Any = ENCODERS[config.method].network(PyramidEncoderConfig(**sizes, **needed))
        if config.encoder.backbone is not None:
            _load_backbone(encoder, config.encoder.backbone)
    else:
        encoder = _load_encoder(config.init, config.method)
        for name, wanted in (needed if config.encoder == EncoderOptions() else needed | sizes).items():
            if wanted != (found := getattr(encoder.config, name, None)):
                raise ValueError(
                    f"`init` brings an encoder with {name}={found}, but `model`, `task` or `encoder` asks for {wanted}."
                )
    if config.synthetic_batch_size and not isinstance(task.source, PhotoSource):
        raise ValueError(
            f"`synthetic_batch_size` is {config.synthetic_batch_size}, but `task` {task.name} does not read pictures, "
            "which is what the generator draws. Set it to 0."
        )
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
    for style in list(encoder.pyramid.styles)[stage + 1 :]:
        nn.init.zeros_(style.linear.weight)
        nn.init.zeros_(style.linear.bias)


def _load_backbone(encoder: Any, name: str) -> None:
    """Start from the backbone of a face recognition network, as pSp does; but for the stem if the channels differ."""
    arcface = storage.load_module(ArcFace, ArcFaceConfig, find_folder(name))
    backbone = encoder.pyramid.backbone
    theirs: dict[str, Tensor] = arcface.backbone.state_dict()
    if backbone.config.in_channels != arcface.config.in_channels:
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
