"""A checkpoint of the catalogue by its name: fetched, verified and converted into the cache, each of them once.

Importing this file tells `hub.find_model` of it, so the names work wherever a model is named.
"""

import difflib
import os
import tempfile
from pathlib import Path

from stylegan_inversion import hub
from stylegan_inversion.catalogue import CatalogueEntry, catalogue, fetch
from stylegan_inversion.convert.encoder_file import EncoderKind
from stylegan_inversion.convert.model_folder import write_model
from stylegan_inversion.convert.single_file import read_single_file
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.remote.integrity import cache_root, file_sha256

CONVERTED = 1  # number of the format in the cache: another one converts again
_ENCODERS: dict[str, EncoderKind] = {"psp": "psp", "e4e": "e4e"}
_NO_FOLDER = ("direction", "ganspace")  # their files are read where they are
_CLOSE = 0.8  # how much a name must be like one of the catalogue to be taken for a slip


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
        if close := difflib.get_close_matches(name, [known.name for known in catalogue()], n=1, cutoff=_CLOSE):
            raise ModelNotFoundError(
                f"No model {name!r}: it is not a folder. Did you mean {close[0]!r}? `stylegan-inversion models` lists "
                "what there is."
            )
        return None
    if revision is not None:
        raise ValueError(f"`revision` is for repositories; {name!r} of the catalogue is always the same file.")
    if entry.kind == "unread":
        raise ModelNotFoundError(f"{name!r} is listed, but not supported: {entry.note}")
    if entry.kind in _NO_FOLDER:
        raise ModelNotFoundError(
            f"{name!r} is no model: {entry.description}. A pipeline's `load_direction` and `load_components` take "
            "such files."
        )
    path = fetch(
        entry,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    storage = cache_root(cache_dir) / "converted--stylegan-inversion"
    folder = storage / f"{entry.sha256 or file_sha256(path)}-{CONVERTED}"
    if (folder / hub.CONFIG_NAME).is_file():
        return folder
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage) as scratch:
        made = write_model(read_single_file(path, encoder=_ENCODERS.get(entry.kind)), Path(scratch) / "model")
        if not folder.exists():  # another process may have been faster
            made.rename(folder)
    return folder


hub.know(find_known_model)
