"""A pipeline from a folder, the Hub or an official file, and back: functions of its class, or of the pipeline."""

import functools
import logging
import operator
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from stylegan_inversion import hub
from stylegan_inversion.checkpoints.direction import direction_from_official
from stylegan_inversion.checkpoints.find import find_file, find_folder, known_entry, with_directions
from stylegan_inversion.checkpoints.recognise import read_single_file
from stylegan_inversion.editing.directions import Direction, layer_slice, save_directions
from stylegan_inversion.editing.ganspace import name_components
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines import publish
from stylegan_inversion.pipelines.output import BaseName

if TYPE_CHECKING:
    from stylegan_inversion.pipelines.base import InversionPipeline

logger = logging.getLogger(__name__)

Pipeline = TypeVar("Pipeline", bound="InversionPipeline")

_PIPELINE_KINDS = ("generator", *ENCODERS, "unread")  # of the catalogue; of what is unread, fetching says why
_OWN_SETTINGS = ("crop_scale", "source")  # of a model's config, which each pipeline writes itself
_VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def find_device(name: torch.device | str | int | None) -> torch.device:
    """Check a device. "auto" is the best there is, `None` the CPU.

    Raises:
        ValueError: If this machine, or this build of PyTorch, has no such device.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in here.items() if available)
    try:
        device = torch.device("cpu" if name is None else name)
    except RuntimeError as e:
        raise ValueError(f"`device` must be auto, {', '.join(here)} or such as cuda:1, got {name!r}.") from e
    if not here.get(device.type, True):
        raise ValueError(f"`device` is {name!r}, which this machine or this build of PyTorch lacks. Take 'cpu'.")
    return device


def from_pretrained(
    cls: type[Pipeline],
    name_or_path: str | os.PathLike[str],
    access: hub.Access,
    *,
    dtype: torch.dtype | None,
    variant: str | None,
    device: torch.device | str | None,
    perceptual: PerceptualDistance | str | None,
) -> Pipeline:
    """Load a pipeline; see `InversionPipeline.from_pretrained`."""
    cls.check_dtype(dtype)
    device, entry = find_device(device), known_entry(name_or_path)
    if entry is not None and entry.kind not in _PIPELINE_KINDS:  # before it is fetched
        raise ModelNotFoundError(f"{entry.name!r} is no model that a pipeline can be built of: {entry.description}.")
    folder = find_folder(name_or_path, access, variant=variant)
    config = hub.read_config(folder)
    scale = _check_root(config, folder)
    load = functools.partial(hub.load_module, dtype=dtype, variant=variant)
    generator = load(Generator, GeneratorConfig, folder / "generator", device=device)
    directions = publish.directions_in(folder)
    pipeline = cls._from_folder(folder, config, generator, load, perceptual)
    pipeline.directions, pipeline.crop_scale = directions, scale
    pipeline.other_settings = {k: v for k, v in config.items() if k not in _OWN_SETTINGS and not k.startswith("_")}
    if dtype in (None, torch.float32, torch.float64) and variant is None:  # else the name gives other numbers
        pipeline.base_name = BaseName.of(name_or_path, folder, subfolder=access.subfolder)
    return pipeline.to(device)


def _check_root(config: Mapping[str, Any], folder: Path) -> float:
    """Check that a model's config is one of ours; returns its `crop_scale`. Any pipeline takes any model's."""
    from stylegan_inversion.pipelines.methods import METHODS  # it imports this file

    found, path = config.get("_class_name"), folder / hub.CONFIG_NAME
    ours = [method.pipeline.__name__ for method in METHODS.values()]
    if found is not None and found not in (*ours, "InversionPipeline", *hub.builtin_models()):
        raise CheckpointError(f"{path} is of a {str(found)[:100]!r}, not of a pipeline of this package.")
    scale = config.get("crop_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 100:
        raise CheckpointError(f"{path}: `crop_scale` must be a number in (0, 100), got {str(scale)[:100]!r}.")
    return float(scale)


def from_single_file(
    cls: type[Pipeline],
    source: str | os.PathLike[str],
    access: hub.Access,
    *,
    sha256: str | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    perceptual: PerceptualDistance | str | None,
) -> Pipeline:
    """Load a pipeline from a foreign file; see `InversionPipeline.from_single_file`."""
    cls.check_dtype(dtype)
    device = find_device(device)
    path = find_file(source, access, sha256=sha256)
    file = read_single_file(path, encoder=cls.encoder_kind)
    if file.kind in ("direction", "ganspace"):
        way = "`pipeline.load_direction` or `pipeline.load_components` reads it"
        raise CheckpointError(f"{path} holds a {file.kind}, of which no pipeline can be built: {way}.")
    for part, needed in (("generator", True), ("encoder", cls.encoder_kind is not None)):
        if needed and part not in file.parts:
            raise CheckpointError(
                f"{path} holds no {part} (found: {file.kind}; {', '.join(file.parts) or 'nothing'})."
                + (" PTIPipeline needs the generator alone." if part == "encoder" else "")
            )
    file = with_directions(file, path, access, source=source)
    for note in file.notes:
        logger.warning("%s: %s", path.name, note)
    generator = file.parts["generator"].build()
    assert isinstance(generator, Generator)
    pipeline = cls._from_file(file, generator, perceptual)
    pipeline.directions = dict(file.directions)
    return pipeline.to(device, dtype)


def load_direction(
    pipeline: "InversionPipeline",
    path: str | os.PathLike[str],
    name: str,
    *,
    description: str = "",
    unit: float | None = None,
) -> Direction:
    """Add a direction from a `.npy` or `.pt` file of InterFaceGAN, e4e, PTI and others. Nothing is executed.

    The file may hold one vector for all layers, or one a layer, in one row too, of any norm; also in a dictionary.

    Args:
        pipeline: Gets the direction.
        path: The file: a path, an hf:// address, or a name of the catalogue.
        name: What changes, as a Python identifier: `edit` knows it by this. It also picks one of several in a
            dictionary.
        description: Where it comes from.
        unit: How far strength 1 goes in W, > 0. `None` means the norm of the file: a strength is then the factor of the
            papers' code, which adds factor times what the file holds.

    Raises:
        ModelNotFoundError: If there is no such file.
        CheckpointError: If it is no direction, or none of this generator's W.
        ValueError: If `name` is no identifier, or `unit` is not positive.
    """
    file = read_single_file(find_file(path))
    vectors = {name: file.vectors[name]} if name in file.vectors else file.vectors
    if file.kind != "direction" or len(vectors) != 1:
        way = " `load_components` takes GANSpace's files." if file.kind == "ganspace" else ""
        if vectors:
            way = f" It holds {', '.join(vectors)}: say which by `name`."
        raise CheckpointError(f"{path} holds no single direction (found: {file.kind}).{way}")
    (vector,) = vectors.values()
    w_dim, entry = pipeline.generator.config.w_dim, known_entry(path)
    direction = direction_from_official(
        vector,
        name=name,
        description=description or (entry.description if entry is not None else ""),
        strength_range=entry.strength_range if entry is not None and unit is None else None,
        unit=unit,
        w_dim=w_dim,
    )
    one, all_layers = (w_dim,), (pipeline.generator.num_ws, w_dim)
    if tuple(direction.vector.shape) not in (one, all_layers):
        found = tuple(direction.vector.shape)
        raise CheckpointError(f"{path} holds a direction of shape {found}; it must be {one} or {all_layers}.")
    pipeline.directions[name] = direction
    return direction


def load_components(
    pipeline: "InversionPipeline",
    path: str | os.PathLike[str],
    *,
    count: int = 10,
    name: str = "ganspace",
    layers: tuple[int, int] | None = None,
) -> list[Direction]:
    """Add GANSpace's components from a `.pt` file, as e4e and PTI ship them, as directions. Nothing in it is executed.

    `edit(out, ganspace_1=...)` steps along one, in units of the unit-norm direction, and its range is two standard
    deviations.

    Args:
        pipeline: Gets the directions.
        path: As in `load_direction`.
        count: How many at most, the widest first.
        name: Their name: name_1, name_2, and so on; a Python identifier.
        layers: Half-open range of the style layers that they move. `None` moves all.

    Raises:
        ModelNotFoundError: If there is no such file.
        CheckpointError: If it holds no components, or none of this generator's W.
        ValueError: If `count`, `name` or `layers` is out of range.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    if layers is not None:
        layer_slice(layers, pipeline.generator.num_ws)
    file, w_dim = read_single_file(find_file(path)), pipeline.generator.config.w_dim
    if file.components is None:
        raise CheckpointError(f"{path} holds no components of GANSpace (found: {file.kind}).")
    if (found := file.components.components.shape[1]) != w_dim:
        raise CheckpointError(f"{path} holds components of {found} numbers; this generator's w have {w_dim}.")
    directions = name_components(file.components.first(operator.index(count)), name=name, layers=layers)
    pipeline.directions |= {direction.name: direction for direction in directions}
    return directions


def save_pretrained(
    pipeline: "InversionPipeline",
    folder: str | os.PathLike[str],
    *,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    overwrite_card: bool = False,
) -> Path:
    """Write the pipeline, and a card that says what it is, to a folder that `from_pretrained` reads.

    Args:
        pipeline: What to write.
        folder: Made if needed. It changes as a whole or not at all. Other variants and encoders of a model that it
            holds stay if they belong to the same generator.
        variant: Word in the names of the weights: "fp16" writes `model.fp16.safetensors`, in float16.
        dtype: Floating-point type in the files. `None` means that of a variant "fp16", "bf16" or "fp32", or else the
            networks' own.
        metrics: Measured figures for the card, by name.
        license: Licence of the weights for the card: an identifier of the Hub's such as "cc-by-nc-4.0".
        overwrite_card: Also replace a README.md that is there.

    Raises:
        ValueError: If `variant` is no word, or `dtype` cannot hold the weights.
        CheckpointError: If a file cannot be written.
    """
    folder = Path(folder)
    with hub.write_together(folder) as stage:
        _write(pipeline, stage, variant, dtype)
    publish.write_card(folder, metrics=metrics, license=license, overwrite=overwrite_card)
    return folder


def _write(pipeline: "InversionPipeline", folder: Path, variant: str | None, dtype: torch.dtype | None) -> None:
    config = pipeline.config
    for name, network in pipeline.saved_networks().items():
        hub.save_module(network, folder / name, dtype=dtype or _VARIANTS.get(variant or ""), variant=variant)
    if pipeline.directions:
        save_directions(pipeline.directions, folder / "directions")
    hub.write_config(config, folder)


def push_to_hub(
    pipeline: "InversionPipeline",
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    overwrite_card: bool = False,
) -> str:
    """Save the pipeline and upload it to the Hugging Face Hub, in one commit.

    Args:
        pipeline: What to upload.
        repo_id: "organisation/repository"; created if it is not there.
        private: Create the repository as private. `None` means the organisation's default.
        token: Access token with the right to write. `None` takes the one that is logged in.
        revision: Branch, created if needed. `None` means the default branch.
        commit_message: Message of the commit.
        variant: As in `save_pretrained`.
        dtype: As in `save_pretrained`.
        metrics: As in `save_pretrained`.
        license: As in `save_pretrained`.
        overwrite_card: Also replace a README.md that is in the repository.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If an argument is out of range.
        UploadError: If the Hub refuses, or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _write(pipeline, Path(scratch), variant, dtype)
        return publish.push_folder(
            Path(scratch),
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            metrics=metrics,
            license=license,
            overwrite_card=overwrite_card,
        )
