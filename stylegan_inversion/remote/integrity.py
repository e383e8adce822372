"""Whether a file in the Hub's cache is the one that the Hub has.

The Hub's client looks at the size only. The Hub lists the sha256 of each large file and the git sha1 of each other one.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from pathlib import Path, PureWindowsPath

logger = logging.getLogger(__name__)

_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
COMMIT = re.compile(r"[0-9a-f]{40}")

Listing = dict[str, tuple[str | None, int | None]]
"""The files of a commit: by path the sha256, or the git sha1 of small files, and the bytes. `None` if not known."""


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the cache: the one that is named, or the Hub's own."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()


def storage_folder(repo_id: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the cache keeps a repository."""
    return cache_root(cache_dir) / f"models--{repo_id.replace('/', '--')}"


def file_sha256(path: Path) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def is_intact(path: Path, expected: str, storage: Path) -> bool:
    """Whether a file has this sha256 or git sha1. A large one is read once: a stamp says in which state it was read."""
    if len(expected) == 40:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == expected
    status, stamp = path.stat(), storage / ".verified" / expected
    state = f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
    if stamp.is_file() and stamp.read_text() == state:
        return True
    if file_sha256(path) != expected:
        return False
    _note(stamp, state)
    return True


def write_listing(storage: Path, commit: str, files: Listing) -> None:
    """Keep what the Hub lists of a commit, which never changes."""
    _note(storage / ".verified" / f"{commit}.json", json.dumps(files))


def read_listing(storage: Path, commit: str) -> Listing | None:
    """What the Hub lists of a commit, if it was asked before."""
    try:
        found = json.loads((storage / ".verified" / f"{commit}.json").read_text("utf-8"))
        return check_listing({name: (known, size) for name, (known, size) in found.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def check_listing(files: Listing) -> Listing:
    """Refuse paths that leave the folder; drop invalid hashes.

    Raises:
        ValueError: If there is such a path.
    """
    for name in files:
        if not _stays_inside(name):
            raise ValueError(f"{name!r} is no path inside a repository")
    return {
        name: (known if isinstance(known, str) and _HASH.fullmatch(known) else None, size)
        for name, (known, size) in files.items()
    }


def _stays_inside(name: str) -> bool:
    """Whether a path or the name of a branch, joined to a folder, lies in it."""
    path = PureWindowsPath(name)  # knows both separators, and drives
    return not path.anchor and ".." not in path.parts


def list_cached(storage: Path, commit: str) -> Listing:
    """The files of a commit that are there, where the Hub was never asked; links are named by the hash."""
    folder = storage / "snapshots" / commit
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return check_listing(
        {name: (Path(os.readlink(path)).name if path.is_symlink() else None, None) for name, path in names.items()}
    )


def read_ref(storage: Path, revision: str) -> str | None:
    """The commit that a branch or tag had when it was last fetched."""
    if COMMIT.fullmatch(revision):
        return revision
    if not _stays_inside(revision):
        return None
    try:
        commit = (storage / "refs" / revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


def write_ref(storage: Path, revision: str, commit: str) -> None:
    """Keep the commit of a branch or tag, as the Hub's client does."""
    if not COMMIT.fullmatch(revision) and _stays_inside(revision) and read_ref(storage, revision) != commit:
        _note(storage / "refs" / revision, commit)


def _note(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:  # a cache that may only be read: it is found out again next time
        logger.debug("%s is not written", path, exc_info=True)


def remove(path: Path) -> None:
    """Remove a file from the cache: its name in the snapshot, and its content."""
    content = path.parent / os.readlink(path) if path.is_symlink() else path
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def is_shared(path: Path) -> bool:
    """Whether another name in the snapshots of the cache links to the content of this one."""
    if not path.is_symlink():
        return False
    content = path.resolve()
    return sum(other.resolve() == content for other in content.parents[1].glob("snapshots/*/**/*")) > 1


def cached_snapshots(cache_dir: str | os.PathLike[str] | None = None) -> list[tuple[str, Path]]:
    """Models in the cache, each with the folder of its newest revision there."""
    found = []
    for storage in sorted(storage_folder("*/*", cache_dir).parent.glob("models--*--*")):
        snapshots = [path for path in storage.glob("snapshots/*") if path.is_dir()]
        if snapshots:
            repo_id = storage.name.removeprefix("models--").replace("--", "/", 1)
            found.append((repo_id, max(snapshots, key=lambda path: path.stat().st_mtime)))
    return found
