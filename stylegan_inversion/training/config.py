"""The config of a training run: dataclasses that tyro reads from a YAML file and the command line.

The comment beside a field is its text in `stylegan-inversion train --help`. No PyTorch here: the help must be fast.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from stylegan_inversion.bounds import check_bounds, number
from stylegan_inversion.errors import MissingDependencyError


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer. The defaults are those of pSp and e4e."""

    name: Literal["ranger", "adam"] = "ranger"  # the algorithm
    lr: float = number(1e-4, 1e-12, 100.0)  # learning rate
    warmup: float = number(0.0, 0.0, 1.0)  # share of the run in which the learning rate rises from 0
    schedule: Literal["constant", "cosine"] = "constant"  # how the learning rate goes on; cosine falls to 0
    betas: tuple[float, float] | None = number(None, 0.0, 0.999999999, count=2)  # of the moments; None: its own
    max_grad_norm: float | None = number(None, 1e-12, 1e12)  # longer gradients are scaled down to it; None: no limit


@dataclass(frozen=True)
class RunConfig:
    """The options of every training run."""

    data: str | None = None  # folder of aligned pictures
    validation_data: str | None = None  # folder of pictures that are not trained on
    validation_images: int = number(200, 0, 10**9)  # how many of them are used, at most
    output: str = "runs/model"  # folder of the run
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    steps: int = number(500_000, 1, 10**9)  # length of the run
    batch_size: int = number(8, 0, 10**6)  # pictures per process in a micro-batch
    accumulation: int = number(1, 1, 10**6)  # micro-batches per step
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"  # type of the networks' arithmetic; fp16 needs a GPU
    compile: bool = False  # fuse the generator by torch.compile; takes minutes and, on a CPU, needs a C++ compiler
    cpu: bool = False  # stay on the CPU
    seed: int = number(0, 0, 2**63 - 1)  # seed of all random draws
    num_workers: int = number(2, 0, 1024)  # processes that load pictures
    log_every: int = number(50, 1, 10**9)  # steps between two lines of the log
    image_every: int = number(1000, 1, 10**9)  # steps between two grids of pictures
    validate_every: int = number(2500, 1, 10**9)  # steps between two validations
    checkpoint_every: int = number(5000, 1, 10**9)  # steps between two checkpoints
    trackers: tuple[str, ...] = ("tensorboard",)  # some of tensorboard, wandb, trackio, or nothing

    def __post_init__(self) -> None:
        """Check the values."""
        check(self)
        if self.batch_size and self.data is None:
            raise ValueError("`data` must be a folder of pictures, got none. Add --data FOLDER.")

    @property
    def examples(self) -> int:
        """How many examples a process has in a micro-batch."""
        return self.batch_size

    @property
    def extendable(self) -> bool:
        """Whether a stopped run may go on with more `steps`: nothing in it is a share of its length."""
        return self.optimizer.schedule == "constant" and not self.optimizer.warmup


@dataclass(frozen=True)
class EncoderOptions:
    """Sizes of a new encoder; see `PyramidEncoderConfig`. With `init` the encoder keeps its own sizes."""

    input_resolution: int = 256  # side of the pictures it reads
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of the four stages
    units: tuple[int, ...] = (3, 4, 14, 3)  # blocks of the four stages
    reduction: int = 16  # reduction of squeeze-and-excitation
    style_channels: int | None = None  # of map2style; None: w_dim. SFE: of a layer that all w share; None: none
    coarse_end: int = 3  # first style that reads the middle level
    middle_end: int = 7  # first style that reads the finest level
    backbone: str | None = None  # an ArcFace of these sizes to start from (folder or Hub): pSp starts from IR-SE50


@dataclass(frozen=True)
class LossOptions:
    """Weight of each term of the loss. 0 leaves a term out; None takes the task's weight, or e4e's."""

    l2: float | None = number(None, 0.0, 1e9)  # mean squared error in [-1, 1]
    lpips: float | None = number(None, 0.0, 1e9)  # perceptual distance
    identity: float | None = number(None, 0.0, 1e9)  # 1 - cosine of face recognition features; faces only
    moco: float | None = number(None, 0.0, 1e9)  # the same with MoCo's ResNet-50, for other domains: 0.5
    w_norm: float | None = number(None, 0.0, 1e9)  # distance of w_plus from w_avg; 0.005 for sketches and label maps
    l2_crop: float | None = number(None, 0.0, 1e9)  # l2 of the inner face alone; frontalization
    lpips_crop: float | None = number(None, 0.0, 1e9)  # lpips of the inner face alone; frontalization
    delta: float | None = number(None, 0.0, 1e9)  # e4e: norm of the offsets from the first w; 2e-4
    adversarial: float | None = number(None, 0.0, 1e9)  # e4e: a discriminator of w; 0.1. SFE: one of pictures; 0.01
    features: float | None = number(None, 0.0, 1e9)  # SFE: squared distance of the features from the generator's; 0.01
    w_distance: float | None = number(None, 0.0, 1e9)  # distance from the true w, known for samples of the generator


@dataclass(frozen=True)
class TaskOptions:
    """Options of a task. None takes the task's own."""

    factors: tuple[int, ...] | None = number(None, 1, 10**4, count=(1, 100))  # super_resolution: how much is reduced
    num_labels: int | None = number(None, 1, 256)  # labels_to_face: how many labels there are


@dataclass(frozen=True)
class E4EOptions:
    """What only e4e has. The defaults are the paper's, with its schedule of 200,000 steps as shares of the run."""

    open_from: float = number(0.1, 0.0, 1.0)  # share of the run after which the first offset is switched on
    open_until: float = number(0.26, 0.0, 1.0)  # share of the run after which all offsets are on
    discriminator_lr: float = number(2e-5, 1e-12, 100.0)  # learning rate of the latent discriminator
    r1: float = number(10.0, 0.0, 1e9)  # weight of its gradient penalty
    r1_every: int = number(16, 1, 10**6)  # steps between two such penalties, each counting as many times
    pool_size: int = number(50, 0, 10**6)  # earlier w that are shown to it again; 0: none


@dataclass(frozen=True)
class ReStyleOptions:
    """What only ReStyle has. The defaults are pSp's form for faces."""

    offsets: bool = False  # e4e's form: one w and offsets to it, with e4e's losses and schedule
    resnet: bool = False  # a ResNet-34 instead of an IR-SE50, as for other domains than faces
    iterations: int = number(5, 1, 100)  # passes over a picture, each with a loss of its own


@dataclass(frozen=True)
class SFEOptions:
    """What only StyleFeatureEditor has. The defaults are the paper's, for its 300,000 steps."""

    part: Literal["inverter", "editor"] = "inverter"  # what is trained: the inverter; or, of its model, the editor
    depth: int = 5  # residual blocks of the Fuser and of the Feature Editor
    blend_steps: int = number(10_000, 0, 10**9)  # over which the inverter's features replace the generator's own
    adversarial_from: int = number(45_000, 0, 10**9)  # step from which a discriminator of pictures takes part
    discriminator_lr: float = number(1e-4, 1e-12, 100.0)  # its learning rate
    r1: float = number(10.0, 0.0, 1e9)  # weight of its gradient penalty
    r1_every: int = number(16, 1, 10**6)  # steps between two such penalties, each counting as many times


@dataclass(frozen=True)
class EncoderRunConfig(RunConfig):
    """A training run of a pSp, e4e, ReStyle or StyleFeatureEditor encoder."""

    method: str = "psp"  # whose encoder: psp, e4e, restyle, sfe; `--method gan --help` lists a generator's options
    output: str = "runs/encoder"  # folder of the run
    model: str = "faces64"  # whose generator: built-in model, folder, or repository on the Hub
    sources: str | None = None  # folder of sketches or label maps, for tasks that pair two pictures
    validation_sources: str | None = None  # the same for validation_data
    task: str = "inversion"  # or frontalization, super_resolution, labels_to_face, sketch_to_face, toonify
    task_options: TaskOptions = field(default_factory=TaskOptions)
    init: str | None = None  # a model whose encoder is fine-tuned: built-in model, folder, or repository on the Hub
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    perceptual: str = "alex"  # network of the lpips terms: alex or vgg
    identity: str = "builtin"  # network of the identity term: the built-in one, or an ArcFace IR-SE50 (folder or Hub)
    identity_images: int = number(0, 0, 10**6)  # pictures of a micro-batch that the identity term compares; 0: all
    moco: str = "moco-v2-800ep"  # network of the moco term: the papers', which is fetched, or a folder or Hub
    e4e: E4EOptions = field(default_factory=E4EOptions)
    restyle: ReStyleOptions = field(default_factory=ReStyleOptions)
    sfe: SFEOptions = field(default_factory=SFEOptions)
    other_cameras: float = number(0.0, 0.0, 1.0)  # probability of each change of light, colour, place, sharpness, noise
    train_decoder: bool = False  # train the generator too; it is saved with the encoder
    batch_size: int = number(8, 0, 10**6)  # pictures per process in a micro-batch; 0 trains on samples alone
    synthetic_batch_size: int = number(0, 0, 10**6)  # samples of the generator with their true w, beside the pictures
    ema_decay: float = number(0.0, 0.0, 0.999999999)  # decay of the average encoder, which is saved; 0: none

    def __post_init__(self) -> None:
        """Check the values."""
        from stylegan_inversion.models.encoders import ENCODERS  # needs PyTorch, which `--help` does without

        super().__post_init__()
        if self.method not in ENCODERS:
            known = ", ".join(ENCODERS)
            raise ValueError(f"`method` must be one of {known}, or gan for a generator, got {self.method!r}.")
        if self.batch_size + self.synthetic_batch_size == 0:
            raise ValueError("`batch_size` and `synthetic_batch_size` are both 0: there is nothing to train on.")
        if self.e4e.open_from > self.e4e.open_until:
            raise ValueError(
                f"`e4e.open_from` must be at most `e4e.open_until`, got {self.e4e.open_from} and {self.e4e.open_until}."
            )

    @property
    def examples(self) -> int:
        """How many examples a process has in a micro-batch: pictures and samples."""
        return self.batch_size + self.synthetic_batch_size

    @property
    def progressive(self) -> bool:
        """Whether the encoder gives one w and offsets that are switched on one by one, as e4e's does."""
        from stylegan_inversion.models.encoders import ENCODERS

        kind = ENCODERS[self.method]
        return kind.progressive or (kind.iterative and self.restyle.offsets)

    @property
    def extendable(self) -> bool:
        """Whether a stopped run may go on with more `steps`: e4e's stages are shares of its length."""
        return not self.progressive and super().extendable


@dataclass(frozen=True)
class GeneratorOptions:
    """Sizes of a new generator; see `GeneratorConfig`. With `init` the generator keeps its own, but may grow."""

    resolution: int | None = None  # side of its pictures; None: that of `init`, or 256
    z_dim: int = 512  # length of z
    w_dim: int = 512  # length of w
    mapping_layers: int = 8  # layers of the mapping network
    mapping_lr_multiplier: float = 0.01  # learning rate of the mapping network relative to the others
    channel_base: int = 32768  # a layer of side r has min(channel_base / r, channel_max) channels
    channel_max: int = 512  # see channel_base


@dataclass(frozen=True)
class DiscriminatorOptions:
    """Sizes of a new discriminator; see `DiscriminatorConfig`."""

    new: bool = False  # begin with a new one even if `init` brings one
    channel_base: int | None = None  # None: the generator's
    channel_max: int | None = None  # None: the generator's
    group_size: int = 4  # pictures whose spread it compares at once
    lr: float | None = number(None, 1e-12, 100.0)  # learning rate; None: the generator's


@dataclass(frozen=True)
class AdversarialOptions:
    """StyleGAN2's training. The defaults are the paper's, with NVIDIA's half-life of the average generator."""

    r1: float = number(10.0, 0.0, 1e9)  # gamma of gamma / 2 * ||grad D||^2; 0.0002 * resolution^2 / batch is a start
    r1_every: int = number(16, 0, 10**6)  # steps between two such penalties, each counting as many times; 0: never
    path_length: float = number(2.0, 0.0, 1e9)  # weight of the path-length penalty
    path_length_every: int = number(4, 0, 10**6)  # steps between two such penalties; 0: never
    path_length_shrink: int = number(2, 1, 10**6)  # its batch is this many times smaller
    reuse_samples: bool = False  # judge the pictures of the generator's step instead of drawing others: saves a pass
    style_mixing: float = number(0.9, 0.0, 1.0)  # share of the samples that are drawn with two w
    noise: bool = True  # random noise inputs; without them w has to account for all detail
    ema_kimg: float = number(10.0, 1e-9, 1e9)  # half-life of the average generator in thousands of pictures
    ema_rampup: float = number(0.05, 0.0, 1e9)  # bound on the half-life, as a share of the pictures so far; 0: none
    w_avg_decay: float = number(0.998, 0.0, 1.0)  # decay of the average w per step


@dataclass(frozen=True)
class AugmentOptions:
    """Which changes the discriminator's pictures go through, and how strong. The defaults are ADA's."""

    flip: bool = True  # mirror left and right
    blit: bool = True  # quarter turns and shifts by whole pixels
    geometric: bool = True  # scale, rotate, stretch, shift
    color: bool = True  # brightness, contrast, luma flip, hue, saturation
    luma_flip: bool = True  # whether `color` may turn light into dark
    shift: float = number(0.125, 0.0, 0.5)  # largest shift by whole pixels, as a share of the side
    scale: float = number(0.2, 0.0, 4.0)  # standard deviation of log2 of the scale, and of the stretch
    rotation: float = number(1.0, 0.0, 4.0)  # largest angle, as a share of half a turn
    translation: float = number(0.125, 0.0, 4.0)  # standard deviation of the shift, as a share of the side
    brightness: float = number(0.2, 0.0, 4.0)  # standard deviation of the added brightness, for pictures in [-1, 1]
    contrast: float = number(0.5, 0.0, 4.0)  # standard deviation of log2 of the factor
    hue: float = number(1.0, 0.0, 4.0)  # largest angle, as a share of half a turn
    saturation: float = number(1.0, 0.0, 4.0)  # standard deviation of log2 of the factor


@dataclass(frozen=True)
class AdaptiveOptions:
    """Adaptive augmentation (ADA, arXiv:2006.06676), for fewer than about 50,000 pictures."""

    p: float = number(0.0, 0.0, 1.0)  # probability of each change at the beginning
    target: float = number(0.6, -0.999999, 0.999999)  # E[sign D(real)] that is held: more of it means overfitting
    kimg: float = number(500.0, 0.0, 1e9)  # thousands of pictures in which p can go from 0 to 1; 0 keeps p


@dataclass(frozen=True)
class GANConfig(RunConfig):
    """A training run of a StyleGAN2 generator."""

    method: Literal["gan"] = "gan"  # what is trained
    output: str = "runs/generator"  # folder of the run
    init: str | None = None  # a model to start from: built-in model, folder, or repository on the Hub
    mirror: bool = True  # mirror every second picture
    perceptual: str = "alex"  # network of the Frechet distance: alex or vgg
    crop_scale: float | None = number(None, 1e-6, 100.0)  # crop relative to FFHQ's; None: that of `init`, or 1.0
    whole_photos: bool = False  # it draws no faces, or none that are cut out as FFHQ's: photos are taken whole
    height: float | None = number(None, 0.125, 1.0)  # of its pictures, relative to their width: the rest is black bars
    batch_size: int = number(32, 1, 10**6)  # pictures per process in a micro-batch
    validation_images: int = number(10_000, 0, 10**9)  # how many validation pictures are used, at most
    optimizer: OptimizerOptions = field(default_factory=lambda: OptimizerOptions("adam", 2.5e-3, betas=(0.0, 0.99)))
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    discriminator: DiscriminatorOptions = field(default_factory=DiscriminatorOptions)
    adversarial: AdversarialOptions = field(default_factory=AdversarialOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    ada: AdaptiveOptions = field(default_factory=AdaptiveOptions)


CONFIGS: tuple[type[RunConfig], ...] = (EncoderRunConfig, GANConfig)


def check(config: Any, prefix: str = "") -> None:
    """Check numbers against their bounds and texts against their choices, in the nested options too.

    Raises:
        ValueError: If a value does not fit; the message names the field as it is typed, such as `optimizer.lr`.
    """
    try:
        check_bounds(config)
    except ValueError as e:
        raise ValueError(f"`{prefix}{str(e).removeprefix('`')}") from None
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if get_origin(each.type) is Literal and value not in get_args(each.type):
            raise ValueError(f"`{prefix}{each.name}` must be one of {', '.join(get_args(each.type))}, got {value!r}.")
        if dataclasses.is_dataclass(value):
            check(value, f"{prefix}{each.name}.")


def load_config(arguments: Sequence[str] = (), configs: Sequence[type[RunConfig]] = CONFIGS) -> RunConfig:
    """Read the config of a run from the command line; `--help` and wrong options end the program, as usual there.

    Args:
        arguments: `--config FILE`, a YAML file with the fields of the config; then `--method NAME` and fields such as
            `--optimizer.lr 1e-4`, which win over the file.
        configs: Config classes, told apart by the choices of their fields `method`. The first takes all other methods.

    Raises:
        ValueError: If the file cannot be read, or a value does not fit.
        MissingDependencyError: If tyro is not installed.
    """
    try:
        import tyro
        import yaml
    except ImportError as e:
        raise MissingDependencyError.of_extra(f"Training needs tyro, which cannot be imported ({e}).", "train") from e
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--method")
    chosen, others = parser.parse_known_args(arguments)
    values: Any = {}
    if chosen.config is not None:
        try:
            values = yaml.load(chosen.config.read_text("utf-8"), yaml.BaseLoader) or {}  # texts as they are typed
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            raise ValueError(f"The config cannot be read: {chosen.config}: {e}") from e
        if not isinstance(values, dict):
            raise ValueError(f"{chosen.config} must hold NAME: VALUE lines.")
    methods = {name: cls for cls in configs for name in get_args(get_type_hints(cls)["method"])}
    cls = methods.get(str(chosen.method or values.get("method")), configs[0])
    if chosen.method:
        values["method"] = chosen.method
    try:
        given = list(_as_arguments(cls, values))
    except ValueError as e:
        raise ValueError(f"{chosen.config}: {e}") from e
    return tyro.cli(cls, prog="stylegan-inversion train", args=[*given, *others])


def _as_arguments(cls: type[Any], values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The values of a YAML file as command line arguments, so that one parser reads both."""
    types = {each.name: each.type for each in dataclasses.fields(cls)}
    for name, value in values.items():
        option, kind = f"--{prefix}{name}", types.get(name)
        if kind is None:
            raise ValueError(f"there is no `{prefix}{name}`; there are {', '.join(types)}.")
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ValueError(f"`{prefix}{name}` must hold NAME: VALUE lines, got {value!r}.")
            yield from _as_arguments(cast(Any, kind), value, f"{prefix}{name}.")
        elif kind is bool:
            if str(value).lower() not in ("true", "false"):
                raise ValueError(f"`{prefix}{name}` must be true or false, got {value!r}.")
            yield option if value.lower() == "true" else f"--{prefix}no-{name}"
        elif isinstance(value, list):
            yield from (option, *map(str, value))
        else:
            yield f"{option}={'None' if value in ('null', '') else value}"


def config_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain dicts and lists: what is read back from its JSON."""
    return cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def default_dict(kind: type[RunConfig]) -> dict[str, Any]:
    """The defaults of a config, as in `config_dict`: without checks, since they need not fit each other."""
    fields = dataclasses.fields(kind)
    values = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields}
    return cast(dict[str, Any], json.loads(json.dumps(values, default=dataclasses.asdict)))
