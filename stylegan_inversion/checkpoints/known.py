"""A checkpoint of the catalogue by its name: fetched, verified and converted into the cache, each of them once.

Of a model that was converted the cache keeps the folder, with the papers' directions for it, and not the file: another
format of ours fetches it again. A file that was in the cache before, for another reason, stays there.

Importing this file tells `hub.find_model` of it, so the names work wherever a model is named.
"""

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock

from stylegan_inversion import hub
from stylegan_inversion.catalogue import CatalogueEntry, cached_file, catalogue, converted_folder, fetch, suggest
from stylegan_inversion.checkpoints.export import write_model
from stylegan_inversion.checkpoints.papers import edits_of, fetch_directions, with_directions
from stylegan_inversion.checkpoints.recognise import read_single_file
from stylegan_inversion.editing.directions import Direction, save_directions
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.remote.integrity import is_shared, remove

logger = logging.getLogger(__name__)

_ENCODERS: dict[str, str] = {"psp": "psp", "e4e": "e4e"}
_NO_FOLDER = ("direction", "ganspace")  # their files are read where they are
_NO_LOCK = (OSError, NotImplementedError)  # what a cache raises that may only be read, or knows no locks


def known_entry(name: str | os.PathLike[str]) -> CatalogueEntry | None:
    """The entry of a name in the catalogue; `None` if there is none, or a folder here is called so."""
    found = next((entry for entry in catalogue() if entry.name == str(name)), None)
    return None if Path(name).is_dir() else found


def is_known(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a checkpoint in the catalogue, and of no folder here."""
    return known_entry(name) is not None


def find_known_model(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path | None:
    """The folder of a checkpoint of the catalogue.

    Args:
        name: In the catalogue.
        revision: Only `None` will do: an entry says which file it means.
        token: As in `catalogue.fetch`, and so are the others.
        cache_dir: "
        local_files_only: "
        force_download: "

    Returns:
        The folder; `None` if the catalogue has no such name, nor one much like it.

    Raises:
        ValueError: If there is a `revision`.
        ModelNotFoundError: If it is no model, cannot be fetched, or the name is a slip.
        CheckpointError: If another file came, or it cannot be converted.
    """
    entry = known_entry(name)
    if entry is None:
        if "/" in name:  # a repository
            return None
        if hint := suggest(name):
            raise ModelNotFoundError(
                f"No model {name!r}: it is not a folder. {hint} `stylegan-inversion models` lists what there is."
            )
        return None
    if revision is not None:
        raise ValueError(f"`revision` is for repositories; {name!r} of the catalogue is always the same file.")
    if entry.kind in _NO_FOLDER:
        raise ModelNotFoundError(
            f"{name!r} is no model: {entry.description}. A pipeline's `load_direction` and `load_components` take "
            "such files."
        )
    access: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = converted_folder(entry, cache_dir)
    if force_download or not (folder / hub.CONFIG_NAME).is_file():
        try:
            lock = _lock(folder)
        except _NO_LOCK as e:
            return _convert_elsewhere(entry, folder, access, token=token, force_download=force_download, why=e)
        with lock:  # one process converts, the others wait and find the folder
            if force_download or not (folder / hub.CONFIG_NAME).is_file():
                _convert(entry, folder, access, token=token, force_download=force_download)
    elif edits_of(entry.domain) and not (folder / "directions").is_dir():  # there was no network
        if directions := fetch_directions(entry.name, entry.domain, **access):
            return _add_directions(entry, folder, directions)
    return folder


def _lock(folder: Path) -> AcquireReturnProxy:
    """Wait until no other process writes the folder. Raises one of `_NO_LOCK` where nothing can be locked."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    locks = folder.parents[1] / ".locks"  # where the Hub's client has its own
    locks.mkdir(exist_ok=True)
    return FileLock(locks / f"{folder.name}.lock").acquire()


def _add_directions(entry: CatalogueEntry, folder: Path, directions: dict[str, Direction]) -> Path:
    """Add directions to a converted model; where it may only be read, to a folder of this process that links to it."""
    try:
        with _lock(folder):
            if not (folder / "directions").is_dir():  # another process may have been first
                with hub.write_together(folder) as stage:
                    save_directions(directions, stage / "directions")
        return folder
    except (*_NO_LOCK, CheckpointError) as e:
        other = _scratch() / folder.name
        if not (other / "directions").is_dir():
            logger.warning("The directions of %s could not be kept, and are for this process alone: %s", entry.name, e)
            if not other.is_dir():
                _link_files(folder.resolve(), other)
            save_directions(directions, other / "directions")
        return other


def _link_files(folder: Path, other: Path) -> None:
    """Link to all files of a folder from another, which may be written; copy where a user may make no links."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        target = other / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.symlink_to(path)
        except OSError:
            shutil.copyfile(path, target)


def _convert(
    entry: CatalogueEntry, folder: Path, access: dict[str, Any], *, token: str | bool | None, force_download: bool
) -> None:
    """Fetch and convert the file of an entry. A file that was fetched for this is not kept beside the folder."""
    cache_dir = access["cache_dir"]
    kept = cached_file(entry, cache_dir) is not None
    path = fetch(entry, token=token, force_download=force_download, **access)
    file = with_directions(read_single_file(path, encoder=_ENCODERS.get(entry.kind)), path, entry=entry, **access)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = write_model(file, Path(scratch) / "model")
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        made.rename(folder)
    if not kept and not is_shared(path):
        remove(path)


@cache
def _scratch() -> Path:
    """A folder of this process, which goes when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="stylegan-inversion-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _convert_elsewhere(
    entry: CatalogueEntry,
    folder: Path,
    access: dict[str, Any],
    *,
    token: str | bool | None,
    force_download: bool,
    why: OSError | NotImplementedError,
) -> Path:
    """Convert into a folder of this process, where the cache may only be read."""
    other = _scratch() / folder.name
    if force_download or not (other / hub.CONFIG_NAME).is_file():
        logger.warning(
            "%s cannot be written or locked (%s), so %s is converted for this process alone, in %s: give another "
            "`cache_dir`.",
            *(folder.parent, getattr(why, "strerror", why), entry.name, other.parent),
        )
        _convert(entry, other, access, token=token, force_download=force_download)
    return other


hub.know(find_known_model)
