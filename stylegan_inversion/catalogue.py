"""The known checkpoints of the field, by name. The facts are data: `builtin/catalogue.json`.

A file is checked against its sha256 here if that is known, else against the Hub's own, with a warning. Those of which
no copy on the Hub is known are listed with where they are.
"""

import difflib
import json
import logging
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.remote.integrity import cached_snapshots, file_sha256
from stylegan_inversion.remote.transfer import download_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogueEntry:
    """One file of the field.

    Attributes:
        name: What users type.
        kind: "psp", "e4e", "restyle", "generator", "identity", "moco", "direction", "ganspace", or "unread": not by us.
        description: What it is.
        licence: What the copy and its origin say, in words. No legal advice.
        source: Where it was published first.
        repository: On the Hugging Face Hub; `None` if no public copy there is known.
        file: Its path there.
        revision: Commit, if one is known.
        size: Bytes, if exactly known.
        about: The size in words, as a page shows it.
        sha256: If known.
        note: What else to know.
    """

    name: str
    kind: str
    description: str
    licence: str
    source: str
    repository: str | None = None
    file: str | None = None
    revision: str | None = None
    size: int | None = None
    about: str | None = None
    sha256: str | None = None
    note: str | None = None

    @property
    def fetchable(self) -> bool:
        """Whether a copy on the Hub is known."""
        return None not in (self.repository, self.file)


@dataclass(frozen=True)
class KnownModel:
    """A model that there is: built in, in the cache, or in the catalogue.

    Attributes:
        name: What users type.
        where: "built in", "cached", or "catalogue".
        size: Bytes on this disk, or of the file; `None` if unknown.
        licence: In words.
        detail: The folder, or where the file is and whether it can be fetched.
    """

    name: str
    where: str
    size: int | None
    licence: str
    detail: str


@cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """All entries, in the order of the table.

    Raises:
        CheckpointError: If the table is damaged.
    """
    path = hub.builtin_path("catalogue.json")
    try:
        entries = tuple(CatalogueEntry(**entry) for entry in json.loads(path.read_text("utf-8"))["entries"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} is damaged: {e}. Install the package again.") from e
    for entry in entries:
        if entry.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise CheckpointError(f"{path}: the sha256 of {entry.name!r} is not one.")
    return entries


def find_entry(name: str) -> CatalogueEntry:
    """The entry of a name.

    Raises:
        ModelNotFoundError: If there is none; the message names the nearest, or all.
    """
    entries = {entry.name: entry for entry in catalogue()}
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(entries)}."
        raise ModelNotFoundError(f"The catalogue has no {name!r}. {hint}")
    return entries[name]


def fetch(
    entry: CatalogueEntry,
    *,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Fetch the file of an entry into the Hub's cache, and check its size and sha256. Nothing in it is run.

    Where no sha256 is known, a warning says so, and which one the file has: then the Hub is trusted to give what its
    owner put there, and the owner to have put there what the name says.

    Args:
        entry: What to fetch.
        token: Access token for the Hub.
        cache_dir: Where downloads are kept. `None` means the Hub's own cache.
        local_files_only: Never use the network.
        force_download: Fetch it again.

    Returns:
        The file; the same at once if it is in the cache already.

    Raises:
        ModelNotFoundError: If no copy on the Hub is known, or it cannot be fetched.
        CheckpointError: If what came is another file; nothing of it is kept.
    """
    if entry.repository is None or entry.file is None:
        raise ModelNotFoundError(
            f"{entry.name!r} cannot be fetched by its name, since no copy of it on the Hub is known. Get it from "
            f"{entry.source} and take the file with `from_single_file` or `load_direction`."
        )
    path = download_file(
        entry.repository,
        entry.file,
        sha256=entry.sha256,
        revision=entry.revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    if entry.sha256 is None:
        logger.warning(
            "No sha256 of %s is known in advance: %s of %s was checked against the Hub's own, %s.",
            entry.name,
            entry.file,
            entry.repository,
            file_sha256(path),
        )
    return path


def list_models(cache_dir: str | os.PathLike[str] | None = None) -> list[KnownModel]:
    """What there is: built-in models, models in the Hub's cache, and the catalogue. Uses no network."""
    models = [
        KnownModel(
            name, "built in", _bytes(hub.builtin_path(name)), read_licence(hub.builtin_path(name)), "nothing to fetch"
        )
        for name in hub.builtin_models()
    ]
    cached = cached_snapshots(cache_dir)
    for repo_id, folder in cached:
        if _is_ours(folder):
            models.append(KnownModel(repo_id, "cached", _bytes(folder), read_licence(folder), str(folder)))
    folders = dict(cached)
    for entry in catalogue():
        there = folders.get(entry.repository or "")
        if entry.kind == "unread":
            detail = f"not supported: {entry.note}"
        elif there is not None and entry.file is not None and (there / entry.file).is_file():
            detail = f"in the cache: {there / entry.file}"
        elif entry.fetchable:
            detail = f"{entry.repository}: {entry.file}"
        else:
            detail = f"by hand: {entry.source}"
        models.append(KnownModel(entry.name, "catalogue", entry.size, entry.licence, detail))
    return models


def describe_models(cache_dir: str | os.PathLike[str] | None = None) -> str:
    """`list_models` as a table in text."""
    about = {entry.name: entry.about for entry in catalogue()}
    rows = [
        (
            model.where,
            model.name,
            _in_words(model.size) if model.size is not None else about.get(model.name) or "?",
            model.licence,
            model.detail,
        )
        for model in list_models(cache_dir)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[4]]) for row in rows]
    return "\n".join(lines)


def read_licence(folder: Path) -> str:
    """The licence of a model's weights, as the header of its card names it."""
    card = folder / "README.md"
    if not card.is_file():
        return "see its page"
    header = card.read_text("utf-8", errors="replace").partition("---\n")[2].partition("\n---")[0]
    found = dict(re.findall(r"^(license\w*): *\"?([^\"\n]+)\"?$", header, flags=re.MULTILINE))
    return found.get("license_name") or found.get("license") or "not stated"


def _is_ours(folder: Path) -> bool:
    try:
        config = hub.read_config(folder)
    except CheckpointError:
        return False
    return "_class_name" in config and (folder / "generator" / hub.CONFIG_NAME).is_file()


def _in_words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
