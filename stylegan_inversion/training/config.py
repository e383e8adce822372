"""`TrainConfig`: all that a training run of an encoder is told; `RunConfig`: what every run is told."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

# Not frozen: OmegaConf cannot merge into frozen dataclasses.


@dataclass
class EncoderOptions:
    """Sizes of a new encoder; see `PyramidEncoderConfig`. An encoder that is fine-tuned brings its own."""

    input_resolution: int = 256
    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    units: list[int] = field(default_factory=lambda: [3, 4, 14, 3])
    reduction: int = 16
    style_channels: int | None = None
    coarse_end: int = 3
    middle_end: int = 7
    backbone: str | None = None  # an ArcFace of these sizes to start from (folder or Hub): pSp starts from IR-SE50


@dataclass
class OptimizerOptions:
    """The optimizer. The defaults are pSp's and e4e's."""

    name: str = "ranger"  # ranger or adam
    lr: float = 1e-4
    warmup: float = 0.0  # share of the run in which the learning rate rises from 0
    schedule: str = "constant"  # constant, or cosine down to 0 at the end
    betas: list[float] | None = None  # of Adam and of Ranger; None: their own
    max_grad_norm: float | None = None  # longer gradients are scaled down to this norm


@dataclass
class E4EOptions:
    """What only e4e has. The defaults are the paper's, its schedule as shares of the run: 20,000 of 200,000 steps."""

    open_from: float = 0.1  # share of the run after which the first offset is switched on
    open_until: float = 0.26  # and the last one
    discriminator_lr: float = 2e-5
    r1: float = 10.0
    r1_every: int = 16
    pool_size: int = 50  # 0: no pools of w


@dataclass
class RunConfig:
    """What every training run is told, whatever it trains."""

    method: str = ""  # one of `methods.METHODS`
    data: str | None = None  # folder of aligned pictures
    validation_data: str | None = None  # folder of pictures that are not trained on
    validation_images: int = 200  # how many of them are looked at, at most
    output: str = "runs/model"
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    steps: int = 500_000
    batch_size: int = 8  # pictures a step, process and micro-batch
    accumulation: int = 1  # micro-batches a step
    mixed_precision: str = "no"  # no, bf16 or fp16
    compile: bool = False  # fuse the networks by torch.compile, which takes minutes and, on a CPU, a C++ compiler
    cpu: bool = False  # stay on the CPU
    seed: int = 0
    num_workers: int = 2
    log_every: int = 50
    image_every: int = 1000
    validate_every: int = 2500
    checkpoint_every: int = 5000
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self) -> None:
        """Check the values."""
        one_of("optimizer.name", self.optimizer.name, ("ranger", "adam"))
        one_of("optimizer.schedule", self.optimizer.schedule, ("constant", "cosine"))
        one_of("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        for name in ("steps", "accumulation", "log_every", "image_every", "validate_every", "checkpoint_every"):
            at_least(name, getattr(self, name), 1)
        for name in ("batch_size", "num_workers", "validation_images", "seed"):
            at_least(name, getattr(self, name), 0)
        if self.batch_size and self.data is None:
            raise ValueError("`data` must be a folder of pictures, got none. Add data=FOLDER.")
        positive("optimizer.lr", self.optimizer.lr)
        if self.optimizer.max_grad_norm is not None:
            positive("optimizer.max_grad_norm", self.optimizer.max_grad_norm)
        share("optimizer.warmup", self.optimizer.warmup)
        betas = self.optimizer.betas
        if betas is not None and not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"`optimizer.betas` must be two numbers in [0, 1), got {betas}.")

    @property
    def examples(self) -> int:
        """How many examples a micro-batch of a process has."""
        return self.batch_size

    @property
    def extendable(self) -> bool:
        """Whether a run can go on with more `steps` than it began with: nothing in it is a share of its length."""
        return self.optimizer.schedule == "constant" and not self.optimizer.warmup


@dataclass
class TrainConfig(RunConfig):
    """A training run of a pSp or e4e encoder."""

    method: str = "psp"  # psp or e4e
    output: str = "runs/encoder"
    model: str = "faces64"  # whose generator: built-in model, folder, or repository on the Hub
    sources: str | None = None  # folder of sketches or label maps, for tasks that pair two pictures
    validation_sources: str | None = None
    task: str = "inversion"
    task_options: dict[str, Any] = field(default_factory=dict)
    init: str | None = None  # a model whose encoder is fine-tuned: built-in model, folder, or repository on the Hub
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    loss: dict[str, float] = field(default_factory=dict)  # weights by name; the others are the task's, and e4e's
    perceptual: str = "alex"  # or vgg
    identity: str = "builtin"  # the built-in network, or an ArcFace IR-SE50: folder or Hub
    moco: str | None = None  # a MoCo ResNet-50: folder or Hub
    e4e: E4EOptions = field(default_factory=E4EOptions)
    teacher: str | None = None  # a generator's run, whose autoencoder knows a w for each picture: for loss.w_distance
    batch_size: int = 8  # pictures a step, process and micro-batch; 0 trains on the generator's own samples alone
    synthetic_batch_size: int = 0  # samples of the generator with their true w, beside the pictures
    ema_decay: float = 0.0  # 0: the encoder itself is saved

    def __post_init__(self) -> None:
        """Check the values."""
        one_of("method", self.method, ("psp", "e4e"))
        super().__post_init__()
        at_least("synthetic_batch_size", self.synthetic_batch_size, 0)
        if self.batch_size + self.synthetic_batch_size == 0:
            raise ValueError("`batch_size` and `synthetic_batch_size` are both 0: there is nothing to train on.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), got {self.ema_decay}.")
        if not 0 <= self.e4e.open_from <= self.e4e.open_until <= 1:
            raise ValueError(
                f"`e4e.open_from` and `e4e.open_until` must be shares of the run, in this order, "
                f"got {self.e4e.open_from} and {self.e4e.open_until}."
            )
        positive("e4e.discriminator_lr", self.e4e.discriminator_lr)
        if self.e4e.r1_every < 1 or self.e4e.pool_size < 0 or not (math.isfinite(self.e4e.r1) and self.e4e.r1 >= 0):
            raise ValueError(
                "`e4e.r1_every` must be >= 1, `e4e.pool_size` and `e4e.r1` >= 0, "
                f"got {self.e4e.r1_every}, {self.e4e.pool_size} and {self.e4e.r1}."
            )

    @property
    def examples(self) -> int:
        """How many examples a micro-batch of a process has: pictures and samples."""
        return self.batch_size + self.synthetic_batch_size

    @property
    def extendable(self) -> bool:
        """Whether a run can go on with more `steps`: e4e's stages are shares of its length."""
        return self.method != "e4e" and super().extendable


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not known.

    Raises:
        ValueError: If so; the message names the field and what it may be.
    """
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")


def at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below a bound, or one that is not finite.

    Raises:
        ValueError: If so.
    """
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"`{name}` must be >= {least}, got {value}.")


def positive(name: str, value: float) -> None:
    """Refuse 0 and below, and what is not finite.

    Raises:
        ValueError: If so.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be > 0, got {value}.")


def share(name: str, value: float) -> None:
    """Refuse what is no share of a run.

    Raises:
        ValueError: If so.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a share of the run, in [0, 1], got {value}.")


def config_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain dicts and lists: what is read back from its JSON."""
    return cast(dict[str, Any], json.loads(json.dumps(asdict(config))))
