"""A model from a folder, the Hub or an official file, and back: a folder, the Hub, and the card.

`save_pretrained`, `push_to_hub`, `load_direction` and `load_components` are methods of `InversionPipeline`.
"""

import functools
import logging
import operator
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from stylegan_inversion import hub, storage
from stylegan_inversion.checkpoints.direction import style_directions, vector_from_official
from stylegan_inversion.checkpoints.find import find_file, find_folder, known_entry, with_directions, with_parts
from stylegan_inversion.checkpoints.recognise import read_single_file, source_of
from stylegan_inversion.editing.directions import Direction, layer_slice, save_directions
from stylegan_inversion.editing.ganspace import name_components
from stylegan_inversion.editing.text_directions import Relevance
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.hub import upload_folder
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines.card import CARD_NAME, GALLERY, directions_in, draw_gallery, load_call, write_card
from stylegan_inversion.pipelines.output import BaseName
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.preprocessing.sources import to_config

if TYPE_CHECKING:
    from stylegan_inversion.pipelines.base import InversionPipeline

logger = logging.getLogger(__name__)

_PIPELINE_KINDS = ("generator", *ENCODERS, "unread")  # of the catalogue; fetching an unread one says why it is not read
_VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def find_device(name: torch.device | str | int | None) -> torch.device:
    """Check a device. "auto" is the best there is, `None` the CPU. Raises `ValueError` if there is no such device."""
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


# --- from a folder, the Hub or an official file


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """The parts of a model that a pipeline is made of, wherever they came from: in float32, on the CPU."""

    where: Path  # for messages
    generator: Generator
    encoders: Mapping[str, Callable[[], nn.Module]]  # by the names of `ENCODERS`; each loads its network
    directions: Mapping[str, Direction]
    config: Mapping[str, Any]  # as in `config.json`
    domain: Domain
    base_name: BaseName | None = None  # where the generator came from, if that has the same numbers
    relevance: Relevance | None = None


def read_model(name_or_path: str | os.PathLike[str], access: hub.Access, *, variant: str | None) -> LoadedModel:
    """Find a model and read it; see `InversionPipeline.from_pretrained`. Any pipeline takes any model."""
    from stylegan_inversion.pipelines.methods import METHODS  # it imports this file

    entry = known_entry(name_or_path)
    if entry is not None and entry.kind not in _PIPELINE_KINDS:  # before it is fetched
        raise ModelNotFoundError(f"{entry.name!r} is no model that a pipeline can be built of: {entry.description}.")
    folder = find_folder(name_or_path, access, variant=variant)
    config, path = storage.read_config(folder), folder / storage.CONFIG_NAME
    found, ours = config.get("_class_name"), [method.pipeline.__name__ for method in METHODS.values()]
    if found is not None and found not in (*ours, "InversionPipeline", *storage.builtin_models()):
        raise CheckpointError(f"{path} is of a {str(found)[:100]!r}, not of a pipeline of this package.")
    load = functools.partial(storage.load_module, variant=variant)
    encoders = {
        name: functools.partial(load, kind.network, kind.config, folder / kind.folder)
        for name, kind in ENCODERS.items()
        if (folder / kind.folder).is_dir()
    }
    generator = load(Generator, GeneratorConfig, folder / "generator")
    name = BaseName.of(name_or_path, folder, subfolder=access.subfolder) if variant is None else None
    directions = style_directions(config.get("dataset"), generator.config) | directions_in(folder)
    relevance = Relevance.of_model(folder, generator)
    return LoadedModel(path, generator, encoders, directions, config, Domain.of_config(config, path), name, relevance)


def read_file(
    source: str | os.PathLike[str],
    access: hub.Access,
    *,
    sha256: str | None,
    encoder: str | None,
    domain: Domain | None,
) -> LoadedModel:
    """Find a foreign file and read it; see `InversionPipeline.from_single_file`. `encoder` is the one that it needs."""
    from stylegan_inversion.pipelines.methods import ANY_GENERATOR  # it imports this file

    path = find_file(source, access, sha256=sha256)
    file = with_parts(read_single_file(path, encoder=encoder), access)
    if file.vectors or file.components is not None:
        way = "`pipeline.load_direction` or `pipeline.load_components` reads it"
        raise CheckpointError(f"{path} holds a {file.kind}, of which no pipeline can be built: {way}.")
    missing = [part for part in ("generator", "encoder" if encoder else "generator") if part not in file.parts]
    if missing:
        found = f"found: {file.kind}; {', '.join(file.parts) or 'nothing'}"
        raise CheckpointError(f"{path} holds no {missing[0]} ({found}). {ANY_GENERATOR} needs the generator alone.")
    file = with_directions(file, path, access, source=source)
    for note in file.notes:
        logger.warning("%s: %s", path.name, note)
    encoders, config = {}, dict[str, Any](dataset=file.dataset) if file.dataset else {}
    if "encoder" in file.parts:
        encoders = {name: file.parts[row.folder].build for name, row in ENCODERS.items() if row.folder in file.parts}
        encoders[file.kind] = file.parts["encoder"].build
        config["source"] = to_config(source_of(file.parts["encoder"], file.task))
    generator = cast(Generator, file.parts["generator"].build())
    return LoadedModel(path, generator, encoders, file.directions, config, domain or file.domain)


# --- directions of the field


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
    file, entry = read_single_file(find_file(path)), known_entry(path)
    vectors = {name: file.vectors[name]} if name in file.vectors else file.vectors
    if len(vectors) != 1:
        way = f"It holds {', '.join(vectors)}: say which by `name`." if vectors else "Is it for `load_components`?"
        raise CheckpointError(f"{path} holds no single direction (found: {file.kind}). {way}")
    w_dim, limits = pipeline.generator.config.w_dim, None
    if entry is not None:
        description, limits = description or entry.description, entry.strength_range if unit is None else None
    vector = vector_from_official(*vectors.values(), w_dim=w_dim)
    direction = Direction.from_vector(name, vector, strength_range=limits, description=description, unit=unit)
    one, all_layers, found = (w_dim,), (pipeline.generator.num_ws, w_dim), tuple(direction.vector.shape)
    if found not in (one, all_layers):
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


# --- to a folder and the Hub


def save_pretrained(
    pipeline: "InversionPipeline",
    folder: str | os.PathLike[str],
    *,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    card: Mapping[str, Any] | None = None,
    overwrite_card: bool = False,
) -> Path:
    """Write the pipeline, and a card that says what it is, to a folder that `from_pretrained` reads.

    Args:
        pipeline: What to write.
        folder: Made if needed. It changes as a whole or not at all. If it holds a model of another generator, that
            model's networks and directions are deleted; otherwise its other variants and encoders stay.
        variant: Word in the names of the weights: "fp16" writes `model.fp16.safetensors`, in float16.
        dtype: Floating-point type in the files. `None` means that of a variant "fp16", "bf16" or "fp32", or else the
            networks' own.
        metrics: Measured figures for the card, by name.
        license: Licence of the weights for the card: an identifier of the Hub's such as "cc-by-nc-4.0".
        card: More of the card's header that the Hub reads: `{"base_model": "org/repo", "datasets": ["org/data"]}`; also
            `license_name` and `license_link` of a licence "other", which is "LICENSE" if the folder holds that.
        overwrite_card: Also replace a README.md that is there.

    Raises:
        ValueError: If `variant` is no word, or `dtype` cannot hold the weights.
        CheckpointError: If a file cannot be written.
    """
    folder = Path(folder)
    with storage.write_together(folder) as stage:
        _write(pipeline, stage, variant, dtype)
    write_card(folder, metrics=metrics, license=license, card=card, overwrite=overwrite_card)
    return folder


def _write(pipeline: "InversionPipeline", folder: Path, variant: str | None, dtype: torch.dtype | None) -> None:
    config = pipeline.config
    for name, network in pipeline.saved_networks().items():
        storage.save_module(network, folder / name, dtype=dtype or _VARIANTS.get(variant or ""), variant=variant)
    if pipeline.directions:
        save_directions(pipeline.directions, folder / "directions")
    if pipeline.relevance is not None:
        pipeline.relevance.save(folder / "relevance")
    storage.write_config(config, folder)


def push_to_hub(
    pipeline: "InversionPipeline | Path",
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    card: Mapping[str, Any] | None = None,
    overwrite_card: bool = False,
) -> str:
    """Save the pipeline and upload it to the Hugging Face Hub, in one commit. A new card shows what it draws.

    Args:
        pipeline: What to upload: a pipeline; or the folder of a model, which is checked, and stays as it is.
        repo_id: "organisation/repository"; created if it is not there.
        private: Create the repository as private. `None` means the organisation's default.
        token: Access token with the right to write. `None` takes the one that is logged in.
        revision: Branch, created if needed. `None` means the default branch.
        commit_message: Message of the commit.
        create_pr: Open a pull request with the commit, as is done in a repository of others.
        variant: As in `save_pretrained`, and so are the next four.
        dtype: Type in the files.
        metrics: Figures for the card.
        license: For the card.
        card: For its header.
        overwrite_card: Also replace a README.md that is in the folder or the repository.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        ValueError: If an argument is out of range.
        CheckpointError: If a part of the folder is missing, damaged or does not fit; then nothing is sent.
        UploadError: If the Hub refuses, or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "model"
        if isinstance(pipeline, Path):
            check_folder(pipeline)
            link: Any = shutil.copyfile if os.name == "nt" else os.symlink  # which takes no room
            shutil.copytree(pipeline.resolve(), copy, copy_function=link, ignore=shutil.ignore_patterns(".*"))
        else:
            _write(pipeline, copy, variant, dtype)
        path = copy / CARD_NAME
        if path.is_file() and not overwrite_card:
            storage.write_text(_renamed(path.read_text("utf-8", errors="replace"), cast(Path, pipeline), repo_id), path)
        else:
            if not (copy / GALLERY).is_file():
                draw_gallery(_any_pipeline(copy) if isinstance(pipeline, Path) else pipeline, copy / GALLERY)
            write_card(copy, name=repo_id, metrics=metrics, license=license, card=card, overwrite=True)
        how: dict[str, Any] = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
        how |= {"commit_message": commit_message, "overwrite_card": overwrite_card}
        return upload_folder(copy, repo_id, **how)


def _any_pipeline(folder: Path) -> "InversionPipeline":
    """Load a pipeline that any model gives."""
    from stylegan_inversion.pipelines.methods import METHODS  # it imports this file

    cls = next(row.pipeline for row in METHODS.values() if row.encoder is None)
    (*_, file) = sorted((folder / "generator").glob("model*.safetensors"))  # model.safetensors, if it is there
    return cls.from_pretrained(folder, variant=_variant(file), perceptual="alex")


def _variant(file: Path) -> str | None:
    return ".".join(file.name.split(".")[1:-1]) or None  # model.safetensors, model.fp16.safetensors


def _renamed(card: str, folder: Path, repo_id: str) -> str:
    """A card that says how to load the folder must say how to load the repository."""
    for name in (str(folder), str(folder.resolve()), os.path.relpath(folder)):
        card = card.replace(load_call(name), load_call(repo_id))
    return card


def check_folder(folder: Path) -> None:
    """Load every part of a model's folder, each variant of it, as a user of it would."""
    storage.read_config(folder)
    networks: dict[str, tuple[type[nn.Module], type[Any]]] = {"generator": (Generator, GeneratorConfig)}
    networks |= {k.folder: (k.network, k.config) for k in ENCODERS.values() if (folder / k.folder).is_dir()}
    for name, (cls, config_cls) in networks.items():
        files = sorted((folder / name).glob("model*.safetensors")) or [folder / name / storage.WEIGHTS_NAME]
        for file in files:
            network = storage.load_module(cls, config_cls, folder / name, variant=_variant(file))
            if isinstance(network, Generator):
                Relevance.of_model(folder, network)
    directions_in(folder)
