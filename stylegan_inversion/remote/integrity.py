"""Whether a file in the Hub's cache is the one that the Hub has.

The Hub's client looks at the size only. The name that the cache gives to the content of a large file is its sha256.
"""

import hashlib
import json
import logging
import os
import re
import time
from pathlib import Path

logger = logging.getLogger(__name__)

_OLD = 3600.0  # seconds after which an unfinished download is taken for one that was killed
_SHA256 = re.compile(r"[0-9a-f]{64}")


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


def is_intact(path: Path, sha256: str, storage: Path) -> bool:
    """Whether a file has this sha256. It is read once: a stamp in `storage` says in which state it was read."""
    status, stamp = path.stat(), storage / ".verified" / sha256
    state = f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
    if stamp.is_file() and stamp.read_text() == state:
        return True
    if file_sha256(path) != sha256:
        return False
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(state)
    except OSError:  # a cache that may only be read: the file is read again next time
        logger.debug("No stamp for %s", path, exc_info=True)
    return True


def expected_sha256(folder: Path, path: Path, storage: Path) -> str | None:
    """The Hub's sha256 of a file, which the cache knows.

    Args:
        folder: The snapshot, named by its commit.
        path: The file in it.
        storage: The repository's folder in the cache.

    Returns:
        The sha256; `None` for small files, which have none on the Hub, or where nothing is known.
    """
    if (folder / path).is_symlink():  # to a file that is named by its etag; that may be a link of other names
        name = Path(os.readlink(folder / path)).name
        return name if _SHA256.fullmatch(name) else None
    # A cache without links, as on Windows. Clients from 1.18 on keep the Hub's list of the files.
    try:
        listing = json.loads((storage / "trees" / f"{folder.name}.json").read_text("utf-8"))
        found = listing["files"][path.as_posix()].get("lfs_sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if isinstance(found, str) and _SHA256.fullmatch(found) else None


def remove(path: Path) -> None:
    """Remove a file from the cache: its name in the snapshot, and its content."""
    content = path.parent / os.readlink(path) if path.is_symlink() else path
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def unfinished(storage: Path) -> set[Path]:
    """Downloads of a repository that are under way, or were killed."""
    return set((storage / "blobs").glob("*.incomplete"))


def sweep(storage: Path, before: set[Path]) -> None:
    """Remove what killed downloads left: those that began after `before`, and old ones; not those of others at work."""
    from filelock import FileLock, Timeout

    for path in unfinished(storage):
        try:
            if path in before and time.time() - path.stat().st_mtime < _OLD:
                continue
            lock = storage.parent / ".locks" / storage.name / f"{path.name.partition('.')[0]}.lock"
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock, timeout=0):
                path.unlink(missing_ok=True)
        except (Timeout, OSError):  # another process is at it
            logger.debug("%s is left alone", path, exc_info=True)


def cached_snapshots(cache_dir: str | os.PathLike[str] | None = None) -> list[tuple[str, Path]]:
    """Models in the cache, each with the folder of its newest revision there."""
    found = []
    for storage in sorted(storage_folder("*/*", cache_dir).parent.glob("models--*--*")):
        snapshots = [path for path in storage.glob("snapshots/*") if path.is_dir()]
        if snapshots:
            repo_id = storage.name.removeprefix("models--").replace("--", "/", 1)
            found.append((repo_id, max(snapshots, key=lambda path: path.stat().st_mtime)))
    return found
