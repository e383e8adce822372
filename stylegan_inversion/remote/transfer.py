"""Downloads that are verified, and uploads."""

import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError
from stylegan_inversion.remote.client import DeadlineError, call_hub
from stylegan_inversion.remote.integrity import expected_sha256, is_intact, remove, storage_folder

logger = logging.getLogger(__name__)

TIMEOUT = 1800.0  # seconds, where nobody says otherwise
_UPLOADED = ["*.json", "*.safetensors", "*README.md", "*LICENSE*"]


def download_snapshot(
    repo_id: str,
    *,
    patterns: Sequence[str],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    timeout: float | None = None,
    otherwise: str = "and try again",
) -> Path:
    """Fetch the files of a repository that match a pattern, and check their sha256 against the Hub's.

    Args:
        repo_id: "organisation/repository".
        patterns: Of paths in the repository.
        revision: Branch, tag or commit.
        token: Access token.
        cache_dir: Where downloads are kept.
        local_files_only: Never use the network.
        force_download: Fetch what is in the cache again.
        timeout: Seconds for everything together; see `call_hub`. When they are over, a copy in the cache will do.
        otherwise: What else the user can do if the Hub cannot be reached.

    Returns:
        The folder in the cache, named by its commit.

    Raises:
        ModelNotFoundError: If it cannot be fetched, for whatever reason.
        CheckpointError: If a file is damaged, and still is when it was fetched again.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    arguments: dict[str, Any] = {
        "repo_id": repo_id,
        "revision": revision,
        "token": token,
        "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
        "local_files_only": local_files_only,
        "force_download": force_download,
        "library_name": "stylegan_inversion",
    }
    storage, wanted = storage_folder(repo_id, cache_dir), {**arguments, "allow_patterns": list(patterns)}
    try:
        folder = Path(call_hub("snapshot_download", wanted, timeout=timeout, storage=storage, otherwise=otherwise))
    except DeadlineError as e:
        if force_download:
            raise
        try:
            folder = Path(call_hub("snapshot_download", {**wanted, "local_files_only": True}, timeout=None))
        except ModelNotFoundError:
            raise e from None
        logger.warning("%s The copy in the cache is used.", e)
    for path in (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()):
        if any(fnmatch(path.as_posix(), pattern) for pattern in patterns):
            expected = expected_sha256(folder, path, storage)
            if expected is not None and not is_intact(folder / path, expected, storage):
                again = {**arguments, "filename": path.as_posix(), "revision": folder.name}
                _fetch_again(folder / path, expected, again, storage, deadline)
    return folder


def download_file(
    repo_id: str,
    filename: str,
    *,
    sha256: str | None,
    size: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    timeout: float | None = None,
) -> Path:
    """Fetch one file, and check its sha256.

    Args:
        repo_id: "organisation/repository".
        filename: Path in the repository.
        sha256: Of the file. `None` takes what the Hub says of it.
        size: Bytes of the file; without that much room on the disk, nothing is fetched.
        revision: As in `download_snapshot`, and so are all the others.
        token: "
        cache_dir: "
        local_files_only: "
        force_download: "
        timeout: "

    Returns:
        The file in the cache.

    Raises:
        ModelNotFoundError: If it cannot be fetched, for whatever reason.
        CheckpointError: If it is not the file that was asked for, and still is not when it was fetched again.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    arguments: dict[str, Any] = {
        "repo_id": repo_id,
        "filename": filename,
        "revision": revision,
        "token": token,
        "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
        "local_files_only": local_files_only,
        "force_download": force_download,
        "library_name": "stylegan_inversion",
    }
    storage = storage_folder(repo_id, cache_dir)
    if (
        size is not None
        and sha256 is not None
        and not local_files_only
        and not (storage / ".verified" / sha256).is_file()
    ):
        _check_room(storage, size)
    path = Path(call_hub("hf_hub_download", arguments, timeout=timeout, storage=storage))
    snapshot = storage / "snapshots" / path.relative_to(storage / "snapshots").parts[0]
    hubs = expected_sha256(snapshot, path.relative_to(snapshot), storage)
    if sha256 is not None and hubs is not None and hubs != sha256:
        raise CheckpointError(
            f"{filename} of {repo_id!r} is not the file that was asked for: the Hub says its sha256 is {hubs}, not "
            f"{sha256}. Nothing was removed; give another `revision`, or the sha256 of that file if you trust it."
        )
    sha256 = sha256 or hubs
    if sha256 is None or is_intact(path, sha256, storage):
        return path
    return _fetch_again(path, sha256, arguments, storage, deadline)


def _check_room(storage: Path, size: int) -> None:
    there = next(folder for folder in (storage, *storage.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < size:
        raise ModelNotFoundError(
            f"The file has {size / 1e6:.0f} MB, but {there} has room for {free / 1e6:.0f} MB: make room, or give "
            "another `cache_dir`."
        )


def _fetch_again(path: Path, sha256: str, arguments: dict[str, Any], storage: Path, deadline: float | None) -> Path:
    """Fetch a damaged file again, once. What stays damaged does not stay in the cache."""
    from huggingface_hub import constants

    what = f"{arguments['filename']} of {arguments['repo_id']!r}"
    fault = f"{what} is damaged in the cache: its sha256 is not {sha256[:12]}... as it should be"
    if arguments["local_files_only"] or constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{fault}. Connect and load it again: it is then fetched anew.")
    logger.warning("%s. It is fetched again.", fault)
    left = None if deadline is None else max(deadline - time.monotonic(), 0.1)
    remove(path)
    try:
        again = Path(call_hub("hf_hub_download", {**arguments, "force_download": True}, timeout=left, storage=storage))
    except ModelNotFoundError as e:
        raise CheckpointError(f"{fault}, and it could not be fetched again: {e}") from e
    if not is_intact(again, sha256, storage):
        size = again.stat().st_size
        remove(again)
        raise CheckpointError(
            f"{what} was fetched twice ({size} bytes) and is not the file with the sha256 {sha256[:12]}...: it was "
            "damaged on the way, or replaced at its source. Nothing of it is kept."
        )
    return again


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    overwrite_card: bool = False,
    timeout: float | None = None,
) -> str:
    """Upload a model's folder in one commit: JSON, safetensors, cards and licences, and nothing else.

    Args:
        folder: Holds `config.json`.
        repo_id: "organisation/repository"; made if it is not there.
        private: Of a new repository. `None` means the organisation's default.
        token: Access token with the right to write.
        revision: Branch, made if needed. `None` means the default branch.
        commit_message: Of the commit.
        overwrite_card: Also replace a README.md that is in the repository.
        timeout: Seconds for everything together; see `call_hub`.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If `repo_id` is not of that form.
        ModelNotFoundError: If the folder is no model.
        UploadError: If the Hub refuses, or cannot be reached. Whatever files the repository has are as they were.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"`repo_id` must be organisation/repository, got {repo_id!r}.")
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} holds no config.json, so it is not a model saved by this package.")
    deadline = None if timeout is None else time.monotonic() + timeout

    def call(function: str, **arguments: Any) -> str:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.1)
        return call_hub(function, {"repo_id": repo_id, "token": token, **arguments}, timeout=left)

    try:
        call("create_repo", private=private, exist_ok=True)
        if revision is not None:
            call("create_branch", branch=revision, exist_ok=True)
        kept = not overwrite_card and call("file_exists", filename="README.md", revision=revision) == "True"
        return call(
            "upload_folder",
            folder_path=str(folder),
            revision=revision,
            commit_message=commit_message or "Upload with stylegan_inversion",
            allow_patterns=_UPLOADED,
            ignore_patterns=["README.md"] if kept else [],
        )
    except ModelNotFoundError as e:
        detail = str(e).replace(f"{repo_id!r} could not be fetched from the Hub: ", "the Hub's client says: ")
        raise UploadError(f"{repo_id!r} could not be uploaded, its files are as they were: {detail}") from e
