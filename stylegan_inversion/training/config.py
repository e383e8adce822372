"""`TrainConfig`: all that a training run is told, read from YAML and overridden on the command line."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from stylegan_inversion.errors import MissingDependencyError

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
    """The encoder's optimizer. The defaults are pSp's and e4e's."""

    name: str = "ranger"  # ranger or adam
    lr: float = 1e-4
    warmup: float = 0.0  # share of the run in which the learning rate rises from 0
    schedule: str = "constant"  # constant, or cosine down to 0 at the end
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
class TrainConfig:
    """A training run of an encoder."""

    method: str = "psp"  # psp or e4e
    model: str = "faces64"  # whose generator: built-in model, folder, or repository on the Hub
    data: str | None = None  # folder of aligned pictures
    sources: str | None = None  # folder of sketches or label maps, for tasks that pair two pictures
    validation_data: str | None = None  # folder of pictures that are not trained on
    validation_sources: str | None = None
    validation_images: int = 200  # how many of them are looked at, at most
    output: str = "runs/encoder"
    task: str = "inversion"
    task_options: dict[str, Any] = field(default_factory=dict)
    init: str | None = None  # a model whose encoder is fine-tuned: built-in model, folder, or repository on the Hub
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    loss: dict[str, float] = field(default_factory=dict)  # weights by name; the others are the task's, and e4e's
    perceptual: str = "alex"  # alex, vgg, or the built-in st-alex
    identity: str = "builtin"  # the built-in network, or an ArcFace IR-SE50: folder or Hub
    moco: str | None = None  # a MoCo ResNet-50: folder or Hub
    e4e: E4EOptions = field(default_factory=E4EOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    steps: int = 500_000
    batch_size: int = 8  # pictures a step, process and micro-batch; 0 trains on the generator's own samples alone
    synthetic_batch_size: int = 0  # samples of the generator with their true w, beside the pictures
    accumulation: int = 1  # micro-batches a step
    ema_decay: float = 0.0  # 0: the encoder itself is saved
    mixed_precision: str = "no"  # no, bf16 or fp16
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
        _one_of("method", self.method, ("psp", "e4e"))
        _one_of("optimizer.name", self.optimizer.name, ("ranger", "adam"))
        _one_of("optimizer.schedule", self.optimizer.schedule, ("constant", "cosine"))
        _one_of("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        for name in ("steps", "accumulation", "log_every", "image_every", "validate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}.")
        for name in ("batch_size", "synthetic_batch_size", "num_workers", "validation_images", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}.")
        if self.batch_size + self.synthetic_batch_size == 0:
            raise ValueError("`batch_size` and `synthetic_batch_size` are both 0: there is nothing to train on.")
        if self.batch_size and self.data is None:
            raise ValueError("`data` must be a folder of pictures, got none. Add data=FOLDER.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), got {self.ema_decay}.")
        if not 0 <= self.e4e.open_from <= self.e4e.open_until <= 1:
            raise ValueError(
                f"`e4e.open_from` and `e4e.open_until` must be shares of the run, in this order, "
                f"got {self.e4e.open_from} and {self.e4e.open_until}."
            )
        for name, value in (
            ("optimizer.lr", self.optimizer.lr),
            ("optimizer.max_grad_norm", self.optimizer.max_grad_norm),
            ("e4e.discriminator_lr", self.e4e.discriminator_lr),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be > 0, got {value}.")
        if not 0 <= self.optimizer.warmup <= 1:
            raise ValueError(f"`optimizer.warmup` must be a share of the run, in [0, 1], got {self.optimizer.warmup}.")
        if self.e4e.r1_every < 1 or self.e4e.pool_size < 0 or not (math.isfinite(self.e4e.r1) and self.e4e.r1 >= 0):
            raise ValueError(
                "`e4e.r1_every` must be >= 1, `e4e.pool_size` and `e4e.r1` >= 0, "
                f"got {self.e4e.r1_every}, {self.e4e.pool_size} and {self.e4e.r1}."
            )


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a config.

    Args:
        path: YAML with fields of `TrainConfig`. `None` takes the defaults.
        overrides: `name=value`, such as `steps=1000` or `optimizer.lr=1e-4`; they win.

    Raises:
        ValueError: If the file cannot be read, a field is unknown, or a value does not fit; the message names it.
        MissingDependencyError: If OmegaConf is not installed.
    """
    try:
        import accelerate  # noqa: F401  the trainer's; better said here than by a traceback
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ImportError as e:
        raise MissingDependencyError('Training needs: pip install "stylegan-inversion[train]"') from e
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"{override!r} is not NAME=VALUE, such as steps=1000.")
    try:
        config = OmegaConf.structured(TrainConfig)
        if path is not None:
            config = OmegaConf.merge(config, OmegaConf.load(path))
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
        return cast(TrainConfig, OmegaConf.to_object(config))
    except OSError as e:
        raise ValueError(f"The config cannot be read: {e}") from e
    except (YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{path or 'An override'} is not YAML: {e}") from e
    except TypeError as e:
        raise ValueError(f"{path} must hold NAME: VALUE lines.") from e
    except OmegaConfBaseException as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f"The config does not fit at {getattr(e, 'full_key', None) or '?'}: {reason}") from e


def config_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as plain dicts and lists: what is read back from its JSON."""
    return cast(dict[str, Any], json.loads(json.dumps(asdict(config))))
