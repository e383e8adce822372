"""Downloads that are verified, and uploads. The Hub's own client does both, in this process."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError
from stylegan_inversion.remote.client import OddAnswerError, explain, faults, progress_bar
from stylegan_inversion.remote.integrity import (
    COMMIT,
    Listing,
    check_listing,
    is_intact,
    list_cached,
    read_listing,
    read_ref,
    remove,
    storage_folder,
    write_listing,
    write_ref,
)

logger = logging.getLogger(__name__)

UPLOAD_SILENCE = 120.0  # seconds without an answer that end an upload
_UPLOADED = ["*.json", "*.safetensors", "*README.md", "*LICENSE*"]


class _Access(NamedTuple):
    """How to reach a repository: the arguments of `download_snapshot`."""

    repo_id: str
    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    force_download: bool

    @property
    def storage(self) -> Path:
        return storage_folder(self.repo_id, self.cache_dir)

    @property
    def offline(self) -> bool:
        return is_offline(self.local_files_only)


def is_offline(local_files_only: bool) -> bool:
    """Whether the network may not be used: asked so, or by the Hub's `HF_HUB_OFFLINE`."""
    from huggingface_hub import constants

    return local_files_only or constants.HF_HUB_OFFLINE


def download_snapshot(
    repo_id: str,
    *,
    patterns: Sequence[str],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    otherwise: str = "and try again",
) -> Path:
    """Fetch the files of a repository that match a pattern, and check their hashes against the Hub's.

    Of a commit that is in the cache nothing is asked, of a branch which commit it is at. If the Hub does not answer, a
    complete copy in the cache will do.

    Args:
        repo_id: "organisation/repository".
        patterns: Of paths in the repository.
        revision: Branch, tag or commit.
        token: Access token.
        cache_dir: Where downloads are kept.
        local_files_only: Never use the network.
        force_download: Fetch what is in the cache again.
        otherwise: What else the user can do where the network may not be used.

    Returns:
        The folder in the cache, named by its commit.

    Raises:
        ModelNotFoundError: If it cannot be fetched; the message says why, and what to do.
        CheckpointError: If a file is damaged, and still is when it was fetched again.
    """
    access = _Access(repo_id, revision, token, cache_dir, local_files_only, force_download)
    folder, _ = _download(access, lambda name: any(fnmatch(name, pattern) for pattern in patterns), otherwise=otherwise)
    return folder


def download_file(
    repo_id: str,
    filename: str,
    *,
    sha256: str | None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Fetch one file, and check its sha256.

    Args:
        repo_id: "organisation/repository".
        filename: Path in the repository.
        sha256: Of the file. `None` takes what the Hub says of it.
        revision: As in `download_snapshot`, and so are all the others.
        token: "
        cache_dir: "
        local_files_only: "
        force_download: "

    Returns:
        The file in the cache.

    Raises:
        ModelNotFoundError: If it cannot be fetched; the message says why, and what to do.
        CheckpointError: If it is not the file that was asked for, or is damaged and still is when it was fetched again.
    """
    access = _Access(repo_id, revision, token, cache_dir, local_files_only, force_download)
    folder, files = _download(access, lambda name: name == filename, sha256=sha256)
    if not files:
        raise ModelNotFoundError(f"{repo_id!r} has no file {filename!r}.")
    return folder / filename


def _download(
    access: _Access, wants: Callable[[str], bool], *, sha256: str | None = None, otherwise: str = "and try again"
) -> tuple[Path, list[str]]:
    """Make sure that the wanted files are in the cache and intact; the snapshot's folder, and their paths in it."""
    storage, revision, fault, said = access.storage, access.revision or "main", None, ""
    commit = revision if COMMIT.fullmatch(revision) else None
    files = None if commit is None else read_listing(storage, commit)
    if files is None and not access.offline:
        try:
            commit, files = _ask(access)
            write_listing(storage, commit, files)
        except faults() as e:
            fault, said = e, explain(e, access.repo_id, access.revision)
            if type(e).__name__ == "RevisionNotFoundError":
                raise ModelNotFoundError(said) from e
    if files is None:
        commit = commit or read_ref(storage, revision)
        files = {} if commit is None else read_listing(storage, commit) or list_cached(storage, commit)
    alone = access.offline or fault is not None
    way = f"the network may not be used. Connect once, {otherwise}."
    if commit is None or (alone and not files):
        raise ModelNotFoundError(said or f"{access.repo_id!r} is not in the cache, and {way}") from fault
    folder = storage / "snapshots" / commit
    wanted = sorted(filter(wants, files))
    missing = [name for name in wanted if access.force_download or not (folder / name).is_file()]
    if missing and alone:
        lacks = f"The cache lacks {missing[0]} of {access.repo_id!r}"
        raise ModelNotFoundError(f"{said} {lacks}." if said else f"{lacks}, and {way}") from fault
    if said:
        logger.warning("%s The copy in the cache is used.", said)
    if missing:
        _make_ready(access, commit, sum(files[name][1] or 0 for name in missing))
    for name in wanted:
        _provide(access, commit, name, files, sha256, fetch=name in missing)
    write_ref(storage, revision, commit)
    return folder, wanted


def _ask(access: _Access) -> tuple[str, Listing]:
    """Ask the Hub, once, for the commit of a revision and the files in it."""
    from huggingface_hub import HfApi, constants

    api = HfApi(library_name="stylegan_inversion", token=access.token)
    try:
        info = api.model_info(
            access.repo_id, revision=access.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        commit, siblings = info.sha, info.siblings or []
        files = {s.rfilename: (s.lfs.sha256 if s.lfs is not None else s.blob_id, s.size) for s in siblings}
        if commit is None or not COMMIT.fullmatch(commit):
            raise ValueError(f"it gives the commit {commit!r}")
        return commit, check_listing(files)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        if type(e).__name__ == "HFValidationError" or getattr(e, "response", None) is not None:
            raise
        raise OddAnswerError(f"the answer to a question for {access.repo_id!r} is odd: {e}") from e


def _make_ready(access: _Access, commit: str, size: int) -> None:
    """Before a download: room, and a name for the commit if there is none yet, so that what is missing can be told."""
    storage = access.storage
    there = next(folder for folder in (storage, *storage.absolute().parents) if folder.is_dir())
    if (free := shutil.disk_usage(there).free) < size:
        raise ModelNotFoundError(
            f"{access.repo_id!r} needs {size / 1e6:.0f} MB, but {there} has room for {free / 1e6:.0f} MB: make room, "
            "or give another `cache_dir`."
        )
    if read_ref(storage, access.revision or "main") is None:
        write_ref(storage, access.revision or "main", commit)


def _provide(access: _Access, commit: str, name: str, files: Listing, sha256: str | None, *, fetch: bool) -> None:
    """Fetch a file if need be and check it. A damaged one is fetched again, once; what stays damaged is not kept."""
    path, what = access.storage / "snapshots" / commit / name, f"{name} of {access.repo_id!r}"
    hubs, size = files[name]
    if sha256 is not None and hubs is not None and len(hubs) == 64 and hubs != sha256:
        raise CheckpointError(
            f"{what} is not the file that was asked for: the Hub says its sha256 is {hubs}, not {sha256}. Nothing was "
            "removed; give another `revision`, or the sha256 of that file if you trust it."
        )
    if fetch:
        try:
            _fetch(access, commit, name, size)
        except faults() as e:
            raise ModelNotFoundError(f"{explain(e, access.repo_id)} It lacks {name}.") from e
    expected = sha256 or hubs
    if expected is None:
        logger.warning("%s cannot be checked: the Hub gives no hash of it.", what)
        return
    if is_intact(path, expected, access.storage):
        return
    fault = f"{what} is damaged in the cache: its hash is not {expected[:12]}... as it should be"
    if access.offline:
        raise CheckpointError(f"{fault}. Connect and load it again: it is then fetched anew.")
    logger.warning("%s. It is fetched again.", fault)
    remove(path)
    try:
        _fetch(access, commit, name, size, force=True)
    except faults() as e:
        raise CheckpointError(f"{fault}, and it could not be fetched again: {explain(e, access.repo_id)}") from e
    if not is_intact(path, expected, access.storage):
        size = path.stat().st_size
        remove(path)
        raise CheckpointError(
            f"{what} was fetched twice ({size} bytes) and does not have the hash {expected[:12]}...: it was damaged on "
            "the way, or replaced at its source. Nothing of it is kept."
        )


def _fetch(access: _Access, commit: str, name: str, size: int | None, *, force: bool = False) -> None:
    from huggingface_hub import constants, hf_hub_download

    hf_hub_download(
        access.repo_id,
        name,
        revision=commit,
        token=access.token,
        cache_dir=None if access.cache_dir is None else Path(access.cache_dir),
        force_download=force or access.force_download,
        etag_timeout=constants.HF_HUB_ETAG_TIMEOUT,
        library_name="stylegan_inversion",
        tqdm_class=progress_bar(size),
    )


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    overwrite_card: bool = False,
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

    Returns:
        Address of the commit.

    Raises:
        ValueError: If `repo_id` is not of that form.
        ModelNotFoundError: If the folder is no model.
        UploadError: If the Hub refuses, or cannot be reached. Whatever files the repository has are as they were.
    """
    from huggingface_hub import HfApi, get_session

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"`repo_id` must be organisation/repository, got {repo_id!r}.")
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} holds no config.json, so it is not a model saved by this package.")
    api, session = HfApi(library_name="stylegan_inversion", token=token), get_session()
    before = session.timeout
    session.timeout = UPLOAD_SILENCE  # the client has no limit of its own here
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        kept = not overwrite_card and api.file_exists(repo_id, "README.md", revision=revision)
        commit: Any = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            revision=revision,
            commit_message=commit_message or "Upload with stylegan_inversion",
            allow_patterns=_UPLOADED,
            ignore_patterns=["README.md"] if kept else [],
        )
        return str(commit)
    except faults() as e:
        detail = explain(e, repo_id, revision)
        raise UploadError(f"{repo_id!r} could not be uploaded, its files are as they were: {detail}") from e
    finally:
        session.timeout = before
