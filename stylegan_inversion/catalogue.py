"""The known checkpoints of the field, by name, and the table of the models there are.

The facts are data: `builtin/catalogue.json`. Checkpoints of which no copy is known that a program may fetch are listed
with their source.
"""

import difflib
import json
import os
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from stylegan_inversion import storage
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.hub import cache_root, storage_folder

CONVERTED = 3  # number of the format of converted models in the cache: another one fetches and converts again
_WIDTH, _NAME, _LICENCE = 100, 27, 14  # columns of the table in text, and of the names and licences in it


@dataclass(frozen=True)
class CatalogueEntry:
    """One file of the field."""

    name: str  # what users type
    # a key of `ENCODERS`, "generator", "identity", "moco", "direction", "ganspace", or "unread": not read here
    kind: str
    description: str
    licence: str  # what the copy and its origin say, in words; no legal advice
    source: str  # where it was published first
    host: Literal["hub", "github"] = "hub"  # the Hugging Face Hub, or raw files of a commit, with their sha256
    repository: str | None = None  # None: no public copy is known
    file: str | None = None  # its path in the repository
    revision: str | None = None  # the commit, if known
    size: int | None = None  # in bytes, if exactly known
    about: str | None = None  # the size in words
    sha256: str | None = None  # of the file, if known
    # what its generator draws, and how large: "ffhq-1024"; directions are for such generators
    domain: str | None = None
    # what it is used with and does not hold: the folder in a model, and the entry that has it
    parts: tuple[tuple[str, str], ...] = ()
    edit: str | None = None  # every generator of the domain gets this direction by this name; None: only if asked for
    strength_range: tuple[float, float] | None = None  # of a direction, in the unit of its file
    note: str | None = None  # what else to know

    @property
    def fetchable(self) -> bool:
        """Whether a copy is known that can be fetched."""
        return self.kind != "unread" and None not in (self.repository, self.file)


@dataclass(frozen=True)
class KnownModel:
    """A model that there is: built in, in the cache, or in the catalogue."""

    name: str  # what users type
    where: str  # "built in"; "cached", on this disk; "to fetch", by its name; "by hand"; or "not read", by this package
    size: int | None  # bytes on this disk, or to fetch; None: unknown
    licence: str  # in words
    detail: str  # the folder, or where the file is
    about: str = ""  # what it is, in words


@cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """Read all entries, in the order of the table. Raises `CheckpointError` if it is damaged."""
    path = storage.builtin_path("catalogue.json")
    try:
        table: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["entries"]
        for fields in table:
            if "strength_range" in fields:
                fields["strength_range"] = tuple(map(float, fields["strength_range"]))
            if "parts" in fields:
                fields["parts"] = tuple(fields["parts"].items())
        return tuple(CatalogueEntry(**fields) for fields in table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path} is damaged: {e}. Install the package again.") from e


def suggest(name: str) -> str | None:
    """Ask "Did you mean ...?" with the names that begin with a name, or the most similar one; `None` without any."""
    names = [*storage.builtin_models(), *(entry.name for entry in catalogue())]
    close = [known for known in names if name and known.startswith(name)][:6]
    close = close or difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else None


def list_models(cache_dir: str | os.PathLike[str] | None = None) -> list[KnownModel]:
    """List the built-in models, the models in the Hub's cache, and the catalogue. Uses no network."""
    models = []
    for name in storage.builtin_models():
        folder = storage.builtin_path(name)
        size, licence = _bytes(folder), read_licence(folder)
        models.append(KnownModel(name, "built in", size, licence, "nothing to fetch", "faces at 64 px"))
    for repository in sorted(cache_root(cache_dir).glob("models--*--*")):
        newest = max(repository.glob("snapshots/*/"), key=lambda path: path.stat().st_mtime, default=None)
        ours = (storage.CONFIG_NAME, f"generator/{storage.CONFIG_NAME}")
        if newest is not None and all((newest / name).is_file() for name in ours):
            name = repository.name.removeprefix("models--").replace("--", "/", 1)
            models.append(KnownModel(name, "cached", _bytes(newest), read_licence(newest), str(newest)))
    files = {entry.name: entry for entry in catalogue()}
    for entry in files.values():
        there = converted_folder(entry, cache_dir)
        to_fetch = [entry]
        found = there if (there / storage.CONFIG_NAME).is_file() else cached_file(entry, cache_dir)
        if entry.kind == "unread":
            where, detail = "not read", entry.note or ""
        elif found is not None:
            where, detail = "cached", str(found)
        elif entry.fetchable:
            where, detail = "to fetch", f"{entry.repository}: {entry.file}"
            to_fetch += [files[name] for _, name in entry.parts if cached_file(files[name], cache_dir) is None]
        else:
            where, detail = "by hand", entry.source
        sizes = [each.size for each in to_fetch if each.size is not None]
        needed = sum(sizes) if len(sizes) == len(to_fetch) else None
        models.append(KnownModel(entry.name, where, needed, entry.licence, detail, entry.description))
    return models


def cached_file(entry: CatalogueEntry, cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Find the file of an entry in the cache, unchecked; `None` if it is not there."""
    if entry.file is None or entry.repository is None:
        return None
    found = [cached_url(entry.file, str(entry.sha256), cache_dir)]
    if entry.host == "hub":
        found = [*storage_folder(entry.repository, cache_dir).glob(f"snapshots/{entry.revision or '*'}/{entry.file}")]
    return next((path for path in found if path.is_file()), None)


def cached_url(url: str, sha256: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Name the file where the cache keeps what an address gives."""
    return cache_root(cache_dir) / "files--https" / sha256 / (Path(urlsplit(url).path).name or "file")


def converted_folder(entry: CatalogueEntry, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Name the folder of the model converted from an entry. The name changes with the file and our format."""
    identity = json.dumps([entry.repository, entry.file, entry.revision, entry.sha256])
    digest = sha256(identity.encode()).hexdigest()[:12]
    return cache_root(cache_dir) / "converted--stylegan-inversion" / f"{entry.name}-{digest}-{CONVERTED}"


def describe_models(cache_dir: str | os.PathLike[str] | None = None) -> str:
    """Write `list_models` as a text table, 100 columns wide, with where to find what cannot be fetched, or why not."""
    about = {entry.name: entry.about for entry in catalogue()}
    lines = [_row("NAME", "SIZE", "WHERE", "LICENCE", "WHAT")]
    for model in list_models(cache_dir):
        size = _in_words(model.size) if model.size is not None else about.get(model.name) or "?"
        licence = textwrap.shorten(model.licence.partition(":")[0], 40, placeholder="...")
        lines.append(_row(model.name, size, model.where, licence, model.about))
        if model.where in ("by hand", "not read"):
            wrapped = textwrap.wrap(model.detail, _WIDTH - 4, break_long_words=False, break_on_hyphens=False)
            lines += [f"    {line}" for line in wrapped]  # an address stays whole
    return "\n".join(lines)


def _row(name: str, size: str, where: str, licence: str, what: str) -> str:
    """Write a line of the table. A name that is too long stands above it, the rest of a long licence below."""
    licence, *more = textwrap.wrap(licence, _LICENCE, break_on_hyphens=False) or [""]
    left = f"{size:7}  {where:8}"
    above, name = ([], name) if len(name) <= _NAME else (textwrap.wrap(name, _WIDTH), "")
    row = f"{name:{_NAME}}  {left}  {licence:{_LICENCE}}  {what}".rstrip()
    return "\n".join([*above, row, *(f"{'':{_NAME}}  {'':{len(left)}}  {line}" for line in more)])


def read_licence(folder: Path) -> str:
    """Read the licence of a model's weights from the header of its card."""
    card = folder / "README.md"
    if not card.is_file():
        return "see its page"
    header = card.read_text("utf-8", errors="replace").partition("---\n")[2].partition("\n---")[0]
    found = dict(re.findall(r"^(license\w*): *\"?([^\"\n]+)\"?$", header, flags=re.MULTILINE))
    return found.get("license_name") or found.get("license") or "not stated"


def _in_words(size: int) -> str:
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
