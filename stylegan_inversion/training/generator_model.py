"""The networks that a run of a generator starts from, and the model that it leaves."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from stylegan_inversion import hub
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.losses.identity import DlibEmbedding, load_identity
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.discriminator import Discriminator, DiscriminatorConfig
from stylegan_inversion.models.feature_discriminator import FeatureDiscriminator, FeatureDiscriminatorConfig
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.training.data import FaceFolder
from stylegan_inversion.training.generator_config import DiscriminatorOptions, GeneratorOptions, GeneratorRun
from stylegan_inversion.training.tasks import Pictures

Part = TypeVar("Part", bound=nn.Module)
DEFAULT_RESOLUTION = 256
FITTED, FITTED_AT_ONCE = 256, 8  # pictures that a new discriminator on features is fitted to
OWN_DISCRIMINATOR = "To begin with a new one set discriminator.new=true."
PIPELINE = {"_class_name": "PTIPipeline", "crop_scale": 1.0}  # what needs no encoder; the FFHQ crop


def open_pictures(folder: str | None, config: GeneratorRun, *, side: int, training: bool) -> FaceFolder | None:
    """The pictures of a folder, as "y" of a side; `None` if there is no folder.

    Raises:
        ValueError: If it is missing or holds no picture.
    """
    if folder is None:
        return None
    task = Pictures(mirror=config.mirror)
    return FaceFolder(folder, task, input_resolution=side, output_resolution=side, seed=config.seed, training=training)


def load_part(model: Path | None, name: str, cls: type[Part], config_cls: type[Any]) -> Part | None:
    """Load one network of a model, on the CPU; `None` if there is no model or it has no such network.

    Raises:
        CheckpointError: If a file is damaged.
    """
    if model is None or not (model / name).is_dir():
        return None
    return hub.load_module(cls, config_cls, model / name)


def make_generator(options: GeneratorOptions, model: Path | None) -> Generator:
    """Build a generator, or load that of a model; if a larger resolution is asked for, it grows.

    Args:
        options: Sizes of a new generator.
        model: Folder of a model to start from.

    Raises:
        ModelNotFoundError: If the model has no generator.
        ValueError: If it is larger than what is asked for.
        CheckpointError: If a file is damaged.
    """
    if model is None:
        sizes = {**vars(options), "resolution": options.resolution or DEFAULT_RESOLUTION}
        return Generator(GeneratorConfig(**sizes))
    generator = load_part(model, "generator", Generator, GeneratorConfig)
    if generator is None:
        raise ModelNotFoundError(f"`init`: {model} holds no generator (folder 'generator').")
    there = generator.config.resolution
    if options.resolution is None or options.resolution == there:
        return generator
    if options.resolution < there:
        raise ValueError(
            f"`generator.resolution` is {options.resolution}, but `init` brings a generator of {there} px."
        )
    return grow_generator(generator, options.resolution)


def grow_generator(generator: Generator, resolution: int) -> Generator:
    """Give a generator further blocks, which draw nothing yet: its pictures are the old ones, enlarged.

    Args:
        generator: Left as it is.
        resolution: New side, larger than the old one.
    """
    old = generator.config
    sizes = {name: getattr(old, name) for name in old.__dataclass_fields__}
    grown = Generator(GeneratorConfig(**{**sizes, "resolution": resolution}))
    state = grown.state_dict()
    for side in grown.config.resolutions:
        if side > old.resolution:
            state[f"synthesis.blocks.{side}.to_rgb.weight"].zero_()  # in place: it is the network's own
    grown.load_state_dict(state | generator.state_dict())
    return grown


def make_discriminator(
    options: DiscriminatorOptions,
    sizes: GeneratorConfig,
    model: Path | None,
    *,
    perceptual: PerceptualDistance,
    pictures: FaceFolder | None = None,
) -> Discriminator | FeatureDiscriminator:
    """Build a discriminator for a generator, or load that of a model if it is of the kind that is wanted.

    Args:
        options: Kind and sizes.
        sizes: Of the generator.
        model: Folder of a model to start from.
        perceptual: The perceptual network that the kind "features" judges by. The face network comes on its device.
        pictures: To which a new discriminator of that kind is fitted. `None` leaves the features as they are.

    Raises:
        ValueError: If it judges pictures of another size, or by other networks.
        CheckpointError: If a file is damaged.
    """
    there = None if model is None or options.new or not (model / "discriminator").is_dir() else model / "discriminator"
    kind = None if there is None else hub.read_config(there).get("_class_name")
    if options.kind == "features":
        own = there if kind == FeatureDiscriminator.__name__ else None
        return _make_heads(options, sizes.resolution, own, perceptual=perceptual, pictures=pictures)
    if there is None or kind != Discriminator.__name__:
        return Discriminator(
            DiscriminatorConfig(
                resolution=sizes.resolution,
                channel_base=options.channel_base or sizes.channel_base,
                channel_max=options.channel_max or sizes.channel_max,
                group_size=options.group_size,
            )
        )
    discriminator = hub.load_module(Discriminator, DiscriminatorConfig, there)
    side = discriminator.config.resolution
    if side != sizes.resolution:
        raise ValueError(
            f"`init` brings a discriminator of {side} px; the generator draws {sizes.resolution} px. "
            f"{OWN_DISCRIMINATOR}"
        )
    return discriminator


def _make_heads(
    options: DiscriminatorOptions,
    side: int,
    there: Path | None,
    *,
    perceptual: PerceptualDistance,
    pictures: FaceFolder | None,
) -> FeatureDiscriminator:
    features = judging_features(options, side, perceptual=perceptual)
    device = next(perceptual.parameters()).device
    with torch.no_grad():
        channels = tuple(layer.shape[1] for layer in features(torch.zeros(1, 3, side, side, device=device)))
    if there is None:
        heads = FeatureDiscriminator(FeatureDiscriminatorConfig(channels, options.width), features).to(device)
        if pictures is not None:
            chosen = range(0, len(pictures), max(1, len(pictures) // FITTED))[:FITTED]
            parts = (chosen[first : first + FITTED_AT_ONCE] for first in range(0, len(chosen), FITTED_AT_ONCE))
            heads.fit(torch.stack([pictures[index]["y"] for index in part]).to(device) for part in parts)
        return heads
    heads = hub.load_module(FeatureDiscriminator, FeatureDiscriminatorConfig, there)
    heads.features = features
    if heads.config.channels != channels:
        raise ValueError(
            f"`init` brings a discriminator on features of {heads.config.channels} channels; those of "
            f"discriminator.networks={options.networks} have {channels}. {OWN_DISCRIMINATOR}"
        )
    return heads


def judging_features(
    options: DiscriminatorOptions, side: int, *, perceptual: PerceptualDistance
) -> Callable[[Tensor], list[Tensor]]:
    """Make what computes the features that a discriminator judges by, layer by layer.

    Args:
        options: Which networks.
        side: Of the pictures, in px.
        perceptual: The perceptual network. The face network comes on its device.

    Raises:
        ValueError: If pictures of that side are too small.
    """
    sources: list[Callable[[Tensor], list[Tensor]]] = []
    if "perceptual" in options.networks:
        check_side(perceptual, side, otherwise="discriminator.networks=[face]")
        sources.append(perceptual.features)
    if "face" in options.networks:
        face = load_identity(device=next(perceptual.parameters()).device)
        sources.append(partial(cast(DlibEmbedding, face).network.features, resolution=options.face_resolution))
    return lambda x: [layer for source in sources for layer in source(x)]


def check_groups(discriminator: nn.Module, batch_size: int) -> None:
    """Check that a micro-batch can be divided into the groups of a discriminator, see `append_minibatch_std`.

    Raises:
        ValueError: If not.
    """
    if isinstance(discriminator, Discriminator) and batch_size > (size := discriminator.config.group_size):
        if batch_size % size:
            raise ValueError(
                f"`batch_size` must be a multiple of the discriminator's group size, {size}, or less, got "
                f"{batch_size}. Of a new discriminator it is `discriminator.group_size`."
            )


@torch.no_grad()
def check_side(perceptual: PerceptualDistance, side: int, *, otherwise: str) -> None:
    """Check that pictures are large enough for a perceptual network.

    Args:
        perceptual: The network.
        side: Of the pictures.
        otherwise: What to set to go without it.

    Raises:
        ValueError: If they are too small.
    """
    device = next(perceptual.parameters()).device
    try:
        perceptual.features(torch.zeros(1, 3, min(side, 64), min(side, 64), device=device))
    except (ValueError, RuntimeError) as e:
        raise ValueError(
            f"The perceptual network {perceptual.name!r} does not take pictures of {side} px: {e} "
            f"Draw larger ones, or set {otherwise}."
        ) from e


def export_model(folder: Path, parts: dict[str, nn.Module], *, init: Path | None, crop_scale: float | None) -> None:
    """Write a model that the pipelines read, and that another run can start from.

    Directions and encoders of `init` are left out: they belong to its generator.

    Args:
        folder: Made if needed.
        parts: Networks by the name of their folder.
        init: The model that the run began with: the settings of its pipeline stay.
        crop_scale: Of the pipeline; `None` leaves it.
    """
    config = hub.read_config(init) if init is not None and (init / hub.CONFIG_NAME).exists() else dict(PIPELINE)
    config["_class_name"] = PIPELINE["_class_name"]
    with hub.write_together(folder) as stage:
        for name, module in parts.items():
            hub.save_module(module, stage / name)
        hub.write_config(config if crop_scale is None else {**config, "crop_scale": crop_scale}, stage)
