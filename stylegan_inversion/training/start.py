"""What a run starts from: its encoder (new, with the backbone of a face recognition network, or trained), its loss."""

import dataclasses
from typing import Any, cast

from torch import Tensor, nn

from stylegan_inversion import hub
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.preprocessing.sources import PhotoSource
from stylegan_inversion.training.config import EncoderOptions, TrainConfig
from stylegan_inversion.training.generator_model import load_part
from stylegan_inversion.training.objective import EncoderObjective, LossWeights
from stylegan_inversion.training.tasks import Task

Encoder = GradualStyleEncoder | Encoder4Editing


@dataclasses.dataclass(frozen=True)
class EncoderMethod:
    """How the two papers differ.

    Attributes:
        encoder: The network.
        folder: Where a model keeps it.
        loss: Weights beside the task's.
        progressive: Whether offsets open one by one and a discriminator keeps the codes near W.
    """

    encoder: type[Encoder]
    folder: str
    loss: dict[str, float]
    progressive: bool


ENCODERS = {
    "psp": EncoderMethod(GradualStyleEncoder, "psp_encoder", {}, progressive=False),
    "e4e": EncoderMethod(Encoder4Editing, "e4e_encoder", {"delta": 2e-4, "adversarial": 0.1}, progressive=True),
}


def loss_weights(task: Task, config: TrainConfig) -> LossWeights:
    """The weights of a run: the task's, e4e's, and above them those of the config.

    Raises:
        ValueError: If the config weighs a term that does not exist, a weight is out of range, or the run has nothing
            that a term could be computed of.
    """
    weights = {**vars(task.loss), **ENCODERS[config.method].loss, **config.loss}
    known = [field.name for field in dataclasses.fields(LossWeights)]
    unknown = [name for name in weights if name not in known]
    if unknown:
        raise ValueError(f"`loss` has no term {unknown[0]!r}; the terms are {', '.join(known)}.")
    loss = LossWeights(**weights)
    if loss.adversarial > 0 and not ENCODERS[config.method].progressive:
        raise ValueError(f"`loss.adversarial` is {loss.adversarial:g}, but only method=e4e has a latent discriminator.")
    if loss.w_distance > 0 and config.synthetic_batch_size == 0 and config.teacher is None:
        raise ValueError(
            f"`loss.w_distance` is {loss.w_distance:g}, but pictures have no known w: set `synthetic_batch_size`, or "
            "`teacher`."
        )
    if config.teacher is not None and not (loss.w_distance and config.batch_size):
        raise ValueError(
            f"`teacher` is {config.teacher!r}, but `loss.w_distance` is {loss.w_distance:g} and `batch_size` "
            f"{config.batch_size}: both must be above 0, or `teacher` left out."
        )
    if config.moco is not None and loss.moco == 0:
        raise ValueError(
            f"`moco` is {config.moco!r}, but `loss.moco` is 0: weigh it, such as loss.moco=0.5 loss.identity=0."
        )
    of_pictures = sum(getattr(loss, name) for name in EncoderObjective.IMAGE_TERMS) if config.batch_size else 0.0
    if of_pictures + loss.w_distance == 0:
        raise ValueError(
            "`loss` weighs nothing that tells the encoder what to draw: with pictures (`batch_size`) it needs l2, "
            "lpips, identity or moco, with samples of the generator (`synthetic_batch_size`) w_distance."
        )
    return loss


def make_encoder(config: TrainConfig, task: Task, generator: Generator) -> Encoder:
    """Build or load the encoder that a run trains, in training mode, on the CPU.

    Its average w is that of the generator, also when an encoder of another generator is fine-tuned.

    Raises:
        ValueError: If it does not fit the generator or the task.
        ModelNotFoundError: If `init` holds no such encoder.
        CheckpointError: If a file is damaged or does not fit.
    """
    method = ENCODERS[config.method]
    cls = method.encoder
    if config.init is not None:
        encoder = _load_encoder(config.init, cls, method.folder)
        if config.encoder != EncoderOptions():
            _compare(config.encoder, encoder.config)
    else:
        options = config.encoder
        encoder = cls(
            PyramidEncoderConfig(
                output_resolution=generator.config.resolution,
                input_resolution=options.input_resolution,
                w_dim=generator.config.w_dim,
                coarse_end=options.coarse_end,
                middle_end=options.middle_end,
                in_channels=task.source.in_channels,
                widths=tuple(options.widths),
                units=tuple(options.units),
                reduction=options.reduction,
                style_channels=options.style_channels,
            )
        )
        if options.backbone is not None:
            _load_backbone(encoder, options.backbone)
    _check(encoder.config, generator, task)
    if config.synthetic_batch_size and not isinstance(task.source, PhotoSource):
        raise ValueError(
            f"`synthetic_batch_size` is {config.synthetic_batch_size}, but `task` {type(task).__name__} does not read "
            "pictures, which is what the generator draws. Set it to 0."
        )
    encoder.w_avg.copy_(generator.w_avg.cpu())
    return encoder.train().requires_grad_(True)


def load_teacher(config: TrainConfig, *, w_dim: int, side: int) -> ImageEncoder | None:
    """The encoder of the autoencoder that the generator grew from, frozen, on the CPU; `None` if the run has none.

    Args:
        config: The run.
        w_dim: Of the generator.
        side: Of the pictures that it will read.

    Raises:
        ValueError: If it does not fit the generator or the pictures.
        ModelNotFoundError: If `teacher` holds none.
        CheckpointError: If a file is damaged.
    """
    if config.teacher is None:
        return None
    teacher = load_part(hub.find_model(config.teacher), "autoencoder", ImageEncoder, ImageEncoderConfig)
    if teacher is None:
        raise ModelNotFoundError(
            f"`teacher`: {config.teacher!r} holds no autoencoder (folder 'autoencoder'), as runs of method=autoencoder "
            "and of method=gan with reconstructions have it."
        )
    sizes = teacher.config
    if sizes.w_dim != w_dim or sizes.input_resolution > side:
        raise ValueError(
            f"`teacher` gives w of {sizes.w_dim} for pictures of {sizes.input_resolution} px; `model` takes {w_dim}, "
            f"and its pictures are compared at {side} px."
        )
    return teacher.eval().requires_grad_(False)


def _load_encoder(name: str, cls: type[Encoder], folder: str) -> Encoder:
    """Load a trained encoder. e4e may go on from a pSp encoder: it takes its first w, and its offsets start from 0."""
    model = hub.find_model(name)
    if (model / folder).is_dir():
        return hub.load_module(cls, PyramidEncoderConfig, model / folder)
    psp_folder = model / ENCODERS["psp"].folder
    if cls is not Encoder4Editing or not psp_folder.is_dir():
        raise ModelNotFoundError(f"`init`: {name!r} holds no {cls.__name__} (folder {folder!r}).")
    psp = hub.load_module(GradualStyleEncoder, PyramidEncoderConfig, psp_folder)
    encoder = Encoder4Editing(psp.config)
    encoder.load_state_dict(psp.state_dict())
    close_offsets(encoder, 0)
    return encoder


def close_offsets(encoder: Encoder4Editing, stage: int) -> None:
    """Make the offsets of e4e above a stage 0 for every picture, in place."""
    for style in list(encoder.pyramid.styles)[stage + 1 :]:
        nn.init.zeros_(cast(Any, style).linear.weight)
        nn.init.zeros_(cast(Any, style).linear.bias)


def _load_backbone(encoder: Encoder, name: str) -> None:
    """Start from the backbone of a face recognition network, as pSp does; but for the stem if the channels differ."""
    arcface = hub.load_module(ArcFace, ArcFaceConfig, hub.find_model(name))
    backbone = encoder.pyramid.backbone
    theirs: dict[str, Tensor] = arcface.backbone.state_dict()
    if backbone.config.in_channels != arcface.config.in_channels:
        ours = backbone.state_dict()
        theirs = {key: ours[key] if key.startswith("stem.") else tensor for key, tensor in theirs.items()}
    hub.fill_module(backbone, theirs, source=name)


def _compare(options: EncoderOptions, sizes: PyramidEncoderConfig) -> None:
    """Sizes that the config names must be those that the loaded encoder has."""
    for name in (field.name for field in dataclasses.fields(options) if field.name != "backbone"):
        wanted, there = getattr(options, name), getattr(sizes, name)
        if (tuple(wanted) if isinstance(wanted, list) else wanted) != there:
            raise ValueError(
                f"`init` brings an encoder with {name}={there}, `encoder.{name}` is {wanted}: leave it out."
            )


def _check(sizes: PyramidEncoderConfig, generator: Generator, task: Task) -> None:
    theirs = generator.config
    if (sizes.output_resolution, sizes.w_dim) != (theirs.resolution, theirs.w_dim):
        raise ValueError(
            f"The encoder is for a generator of {sizes.output_resolution} px and w_dim {sizes.w_dim}; "
            f"`model` has {theirs.resolution} px and w_dim {theirs.w_dim}."
        )
    if sizes.in_channels != task.source.in_channels:
        raise ValueError(
            f"The encoder takes {sizes.in_channels} channels; `task` {type(task).__name__} gives "
            f"{task.source.in_channels}."
        )
