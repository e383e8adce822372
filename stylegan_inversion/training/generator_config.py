"""What a training run of a generator is told: the adversarial run, and the autoencoder that can go before it."""

from dataclasses import dataclass, field

from stylegan_inversion.training.augment import AugmentOptions
from stylegan_inversion.training.config import OptimizerOptions, RunConfig, at_least, one_of, positive, share

SMALLEST_FACE = 103  # px: one less, and the last stage of the face network would have nothing to look at

# Not frozen: OmegaConf cannot merge into frozen dataclasses.


@dataclass
class GeneratorOptions:
    """Sizes of a new generator, see `GeneratorConfig`. Where `init` brings one, it keeps its own, but may grow."""

    resolution: int | None = None  # None: that of `init`, or 256
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    mapping_lr_multiplier: float = 0.01
    channel_base: int = 32768
    channel_max: int = 512


@dataclass
class DiscriminatorOptions:
    """A new discriminator. Sizes as in `DiscriminatorConfig`; `None` takes the generator's."""

    kind: str = "stylegan2"  # stylegan2, or features: heads on frozen networks, which learn with less
    new: bool = False  # even if `init` brings one
    networks: list[str] = field(default_factory=lambda: ["perceptual"])  # of features: perceptual, face, or both
    face_resolution: int = 112  # side that pictures are resized to for the face network, which was trained at 150
    width: int = 64  # channels of a head on features
    channel_base: int | None = None
    channel_max: int | None = None
    group_size: int = 4
    lr: float | None = None  # None: the generator's


@dataclass
class AdversarialOptions:
    """StyleGAN2's training. The defaults are the paper's, with NVIDIA's half-life of the average generator."""

    r1: float = 10.0  # gamma of the penalty gamma / 2 * ||grad D||^2; about 0.0002 * resolution^2 / batch is a start
    r1_every: int = 16  # steps between two such penalties, which count as many times; 0: never
    path_length: float = 2.0  # weight of the path-length penalty
    path_length_every: int = 4  # 0: never
    path_length_shrink: int = 2  # it is taken of a batch so many times smaller
    reuse_samples: bool = False  # judge the pictures of the generator's step, instead of drawing others: saves a pass
    style_mixing: float = 0.9  # share of the samples that are drawn with two w
    noise: bool = True  # random noise inputs; without, first of all w has to account for detail
    ema_kimg: float = 10.0  # thousands of pictures after which half of the average generator is new
    ema_rampup: float | None = 0.05  # ... but at most this share of the pictures so far; None: no such bound
    w_avg_decay: float = 0.998  # of the average w, a step


@dataclass
class AdaptiveOptions:
    """When the discriminator's pictures are changed (ADA, arXiv:2006.06676): for sets of less than 50,000 or so."""

    p: float = 0.0  # probability of each change at the beginning
    target: float = 0.6  # of E[sign D(real)], where overfitting begins
    kimg: float = 500.0  # thousands of pictures in which p can go from 0 to 1; 0 keeps p


@dataclass
class ReconstructionOptions:
    """Pictures that an encoder and the generator draw again, beside the samples or alone."""

    batch_size: int = 0  # of a micro-batch's pictures, so many are drawn again and judged in place of samples
    weight: float = 1.0  # of L1 + L2 + lpips * perceptual distance
    lpips: float = 2.0
    w_noise: float = 0.1  # standard deviation of the noise that is added to w, whose mean square is 1
    noise: bool = True  # random noise inputs, as the samples' in `adversarial.noise`
    encoder_lr: float = 1e-3


@dataclass
class GeneratorRun(RunConfig):
    """What both runs share."""

    optimizer: OptimizerOptions = field(default_factory=lambda: OptimizerOptions("adam", 2.5e-3, betas=[0.0, 0.99]))
    output: str = "runs/generator"
    init: str | None = None  # a model whose networks are trained on: built-in model, folder, or repository on the Hub
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    mirror: bool = True  # each picture is mirrored every second time
    perceptual: str = "alex"  # of reconstructions and of the Frechet distance; or vgg
    crop_scale: float | None = None  # of the pipeline that comes out; None: that of `init`, or 1.0, the FFHQ crop
    batch_size: int = 32
    validation_images: int = 10_000

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        at_least("batch_size", self.batch_size, 1)
        if self.crop_scale is not None:
            positive("crop_scale", self.crop_scale)


@dataclass
class GANConfig(GeneratorRun):
    """StyleGAN2's adversarial training."""

    method: str = "gan"
    discriminator: DiscriminatorOptions = field(default_factory=DiscriminatorOptions)
    adversarial: AdversarialOptions = field(default_factory=AdversarialOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    ada: AdaptiveOptions = field(default_factory=AdaptiveOptions)
    reconstruction: ReconstructionOptions = field(default_factory=ReconstructionOptions)

    def __post_init__(self) -> None:
        """Check the values."""
        one_of("method", self.method, ("gan",))
        super().__post_init__()
        one_of("discriminator.kind", self.discriminator.kind, ("stylegan2", "features"))
        if not self.discriminator.networks:
            raise ValueError("`discriminator.networks` must name at least one of 'perceptual' and 'face'.")
        for name in self.discriminator.networks:
            one_of("discriminator.networks", name, ("perceptual", "face"))
        at_least("discriminator.face_resolution", self.discriminator.face_resolution, SMALLEST_FACE)
        at_least("discriminator.width", self.discriminator.width, 1)
        if self.discriminator.lr is not None:
            positive("discriminator.lr", self.discriminator.lr)
        options = self.adversarial
        for name in ("r1", "r1_every", "path_length", "path_length_every"):
            at_least(f"adversarial.{name}", getattr(options, name), 0)
        at_least("adversarial.path_length_shrink", options.path_length_shrink, 1)
        positive("adversarial.ema_kimg", options.ema_kimg)
        if options.ema_rampup is not None:
            positive("adversarial.ema_rampup", options.ema_rampup)
        share("adversarial.style_mixing", options.style_mixing)
        share("adversarial.w_avg_decay", options.w_avg_decay)
        share("ada.p", self.ada.p)
        at_least("ada.kimg", self.ada.kimg, 0)
        if not -1 < self.ada.target < 1:
            raise ValueError(f"`ada.target` must be in (-1, 1), got {self.ada.target}.")
        check_reconstruction(self.reconstruction)
        at_least("reconstruction.batch_size", self.reconstruction.batch_size, 0)
        if self.reconstruction.batch_size >= self.batch_size:
            raise ValueError(
                f"`reconstruction.batch_size` must be less than `batch_size`, {self.batch_size}, to leave room for "
                f"samples, got {self.reconstruction.batch_size}."
            )


@dataclass
class AutoencoderConfig(GeneratorRun):
    """The warm start: the synthesis network as the decoder of an autoencoder, the mapping network fitted to its w."""

    method: str = "autoencoder"
    optimizer: OptimizerOptions = field(
        default_factory=lambda: OptimizerOptions("adam", 1e-2, schedule="cosine", betas=[0.5, 0.99])
    )
    batch_size: int = 8
    input_resolution: int = 64  # side of the encoder's input, a multiple of 16
    components: int = 256  # principal components of the pictures that the encoder begins with
    component_images: int = 6000  # how many pictures they are computed of
    reconstruction: ReconstructionOptions = field(default_factory=ReconstructionOptions)
    ema_decay: float = 0.995  # a step
    prior_images: int = 1000  # pictures to whose w the saved mapping network is fitted; 0 leaves it as it is
    validation_images: int = 500

    def __post_init__(self) -> None:
        """Check the values."""
        one_of("method", self.method, ("autoencoder",))
        super().__post_init__()
        check_reconstruction(self.reconstruction)
        share("ema_decay", self.ema_decay)
        at_least("components", self.components, 0)
        at_least("component_images", self.component_images, 1)
        at_least("prior_images", self.prior_images, 0)
        if self.prior_images == 1:
            raise ValueError("`prior_images` must be 0, to leave the mapping network as it is, or >= 2, got 1.")
        if self.input_resolution < 16 or self.input_resolution % 16:
            raise ValueError(f"`input_resolution` must be a multiple of 16, got {self.input_resolution}.")


def check_reconstruction(options: ReconstructionOptions) -> None:
    """Check the values.

    Raises:
        ValueError: If one is out of range.
    """
    for name in ("weight", "lpips", "w_noise"):
        at_least(f"reconstruction.{name}", getattr(options, name), 0)
    positive("reconstruction.encoder_lr", options.encoder_lr)
