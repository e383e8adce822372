"""The papers' directions for the generators that they were found in: recognised, fetched, and named."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from stylegan_inversion.catalogue import CatalogueEntry, catalogue, fetch
from stylegan_inversion.checkpoints.direction import direction_from_official
from stylegan_inversion.checkpoints.recognise import Part, SingleFile, read_single_file
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.editing.ganspace import name_components
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.remote.integrity import file_sha256

logger = logging.getLogger(__name__)

COMPONENTS = 10  # of GANSpace's, the widest
# Of W's spread: an average of n samples lies 1 / sqrt(n) from the mean, 0.01 for e4e's 10 000; a moving average as
# NVIDIA's 0.015; those of two networks lie about 1 apart.
_NEAR = 0.1
_failed: list[str] = []  # why the first file that could not be fetched was not: this process tries no other


def with_directions(
    file: SingleFile,
    path: Path,
    *,
    entry: CatalogueEntry | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> SingleFile:
    """Add the papers' directions to a file if its generator is one that they were found in.

    A generator is known by its entry in the catalogue, by the training set that a checkpoint of pSp or e4e names, by
    the sha256 of its file, or, one for FFHQ, by its average w. Where the directions cannot be fetched, one warning says
    so, and the file stays as it is.

    Args:
        file: What was read.
        path: Where it is.
        entry: Of the catalogue, if the file was found by its name.
        cache_dir: Where downloads are kept. `None` means the Hub's own cache.
        local_files_only: Never use the network.
    """
    part = file.parts.get("generator")
    if part is None:
        return file
    access: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    name = path.name if entry is None else entry.name
    domain = _domain(file, part.config.resolution, path, entry)
    if domain is None:
        ffhq = f"ffhq-{part.config.resolution}"
        components = [each for each in edits_of(ffhq) if each.kind == "ganspace"]
        if not components:
            return file
        try:
            near = _is_near(part, components[0], access)
        except (ModelNotFoundError, CheckpointError) as e:
            logger.warning(
                "If %s draws FFHQ's faces, its directions are missing (%s): %s They come with it when it is loaded "
                "again with a network.",
                *(name, ", ".join(str(each.edit) for each in edits_of(ffhq)), e),
            )
            return file
        domain = ffhq if near else None
    directions = fetch_directions(name, domain, **access)
    sizes = (part.config.w_dim,), (part.config.num_ws, part.config.w_dim)
    fitting = {key: direction for key, direction in directions.items() if tuple(direction.vector.shape) in sizes}
    return replace(file, directions=fitting)


def edits_of(domain: str | None) -> list[CatalogueEntry]:
    """The files of the catalogue that hold the directions of a domain."""
    return [entry for entry in catalogue() if domain is not None and entry.domain == domain and entry.edit is not None]


def fetch_directions(
    name: str,
    domain: str | None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> dict[str, Direction]:
    """Fetch and read the directions of a domain, all or none: if one is missing, a warning says what, and why.

    Args:
        name: Of the model, for the warning.
        domain: As in the catalogue. `None` has none.
        cache_dir: As in `with_directions`, and so is the next.
        local_files_only: "
    """
    found: dict[str, Direction] = {}
    entries = edits_of(domain)
    try:
        for entry in entries:
            file = read_single_file(_fetch(entry, cache_dir=cache_dir, local_files_only=local_files_only))
            name_of, origin = str(entry.edit), f"({entry.repository}, {entry.licence})"
            if file.components is not None:
                for each in name_components(file.components.first(COMPONENTS), name=name_of):
                    found[each.name] = replace(each, description=f"{each.description} {origin}")
                continue
            (vector,) = file.vectors.values()
            found[name_of] = direction_from_official(
                vector,
                name=name_of,
                description=f"{entry.description} {origin}",
                strength_range=entry.strength_range,
            )
    except (ModelNotFoundError, CheckpointError) as e:
        logger.warning(
            "The directions of %s are missing (%s): %s They come with it when it is loaded again with a network.",
            *(name, ", ".join(str(entry.edit) for entry in entries), e),
        )
        return {}
    return found


def _fetch(entry: CatalogueEntry, *, cache_dir: str | os.PathLike[str] | None, local_files_only: bool) -> Path:
    """Fetch a file that nobody asked for. Where there is no network, a process waits for it once, not at each load."""
    try:
        return fetch(entry, cache_dir=cache_dir, local_files_only=local_files_only or bool(_failed))
    except ModelNotFoundError as e:
        if e.__cause__ is not None:  # it was tried
            _failed.append(f"{e} Only a new process tries again.")
        if _failed and not local_files_only:
            raise ModelNotFoundError(_failed[0]) from e
        raise


def _domain(file: SingleFile, resolution: int, path: Path, entry: CatalogueEntry | None) -> str | None:
    """The domain of a generator, without the network."""
    if entry is not None and entry.domain is not None:
        return entry.domain
    trained = f"{str(file.options.get('dataset_type')).partition('_')[0]}-{resolution}"  # "ffhq_encode" -> "ffhq-1024"
    if edits_of(trained):
        return trained
    size = path.stat().st_size
    same = [known for known in catalogue() if known.domain is not None and known.size == size]
    return next((known.domain for known in same if file_sha256(path) == known.sha256), None)


def _is_near(part: Part, entry: CatalogueEntry, access: dict[str, Any]) -> bool:
    """Whether the average w of a generator is the mean of W that GANSpace's components were found around."""
    components = read_single_file(_fetch(entry, **access)).components
    w_avg = part.state_dict["w_avg"].float()
    if components is None or components.mean.shape != w_avg.shape:
        return False
    return bool((w_avg - components.mean).norm() <= _NEAR * components.std.norm())
