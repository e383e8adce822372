"""Files from the Hugging Face Hub, each checked against its hash; and uploads to the Hub.

The Hub's client looks at sizes only. The Hub lists the sha256 of each large file and the git sha1 of each other one.
The list of a commit is kept in the cache, so that a damaged file is noticed offline, too.
"""

import errno
import glob
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from stylegan_inversion import __version__
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError
from stylegan_inversion.hub import CONFIG_NAME, Access

logger = logging.getLogger(__name__)

UPLOAD_SILENCE = 120.0  # seconds without an answer that end an upload: the client has no limit of its own there
_LIBRARY: Any = {"library_name": "stylegan-inversion", "library_version": __version__}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_UPLOADED = ["*.json", "*.safetensors", "*README.md", "*LICENSE*"]

_Expected = tuple[str | None, int | None]  # sha256 or git sha1 of a file, and its bytes, where known
_Files = dict[str, _Expected]  # by path, of a commit

_report: ContextVar[Callable[[int, int], object] | None] = ContextVar("report", default=None)


# --- downloads from the Hub


@contextmanager
def report_downloads(report: Callable[[int, int], object]) -> Iterator[None]:
    """Report the downloads that this thread starts within the block: bytes done and in all, of one file at a time.

    An exception that `report` raises ends the download.
    """
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def download(
    repo_id: str, patterns: Sequence[str], access: Access, *, sha256: str | None = None, otherwise: str = ""
) -> tuple[Path, list[str]]:
    """Make sure that the files of a repository that match a pattern are in the cache and intact.

    A commit that is in the cache needs no request, a branch needs one. If the Hub does not answer, a complete copy in
    the cache is used.

    Args:
        repo_id: "organisation/repository".
        patterns: Patterns of paths in the repository.
        access: How to fetch the files.
        sha256: Expected hash of a single file. `None` takes the Hub's.
        otherwise: What else a user without a network can do, for the message.

    Returns:
        The folder in the cache, named by its commit, and the paths of the files in it.

    Raises:
        ModelNotFoundError: If a file cannot be fetched; the message says why, and what to do.
        CheckpointError: If the Hub has another file, or a file is damaged, also after it was fetched again.
    """
    storage, revision = storage_folder(repo_id, access.cache_dir), access.revision or "main"
    if not is_inside(revision):
        raise ValueError(f"`revision` must be a branch, a tag or a commit, got {revision!r}.")
    commit = revision if _COMMIT.fullmatch(revision) else None
    files = None if commit is None else _read_list(storage, commit)
    offline, way = is_offline(access), f"The network may not be used for {repo_id!r}: connect once{otherwise}."
    fault: Exception | None = None
    if files is None and not offline:
        try:
            commit, files = _ask(repo_id, access)
            _note(storage / ".verified" / f"{commit}.json", json.dumps(files))
        except _client_errors() as e:
            offline, way, fault = True, _explain(e, repo_id, revision), e
            if type(e).__name__ == "RevisionNotFoundError":
                raise ModelNotFoundError(way) from e
    if files is None:
        commit = commit or _read_branch(storage, revision) or "none"
        files = _read_list(storage, commit) or _list_cached(storage / "snapshots" / commit)
    folder = storage / "snapshots" / str(commit)
    wanted = sorted(name for name in files if any(fnmatchcase(name, pattern) for pattern in patterns))
    missing = [name for name in wanted if access.force_download or not (folder / name).is_file()]
    if offline and (missing or not files):
        raise ModelNotFoundError(f"{way} The cache lacks {missing[0] if missing else 'it'}.") from fault
    if fault is not None:
        logger.warning("%s The copy in the cache is used.", way)
    for name in wanted:
        known, size = files[name]
        if sha256 is not None and known is not None and len(known) == 64 and known != sha256:
            raise CheckpointError(
                f"{name} of {repo_id!r} is not the file that was asked for: the Hub says its sha256 is {known}, not "
                f"{sha256}. Nothing was removed; give another `revision`, or the sha256 of that file if you trust it."
            )
        _provide(repo_id, folder, name, (sha256 or known, size), access, fetch=name in missing, offline=offline)
    if not offline and commit != revision and _read_branch(storage, revision) != commit:
        _note(storage / "refs" / revision, str(commit))
    return folder, wanted


def download_file(repo_id: str, filename: str, access: Access, *, sha256: str | None = None) -> Path:
    """Fetch one file as `download` does, and give its path in the cache."""
    folder, names = download(repo_id, [glob.escape(filename)], access, sha256=sha256)
    if not names:
        raise ModelNotFoundError(f"{repo_id!r} has no file {filename!r}.")
    return folder / filename


def is_inside(path: str) -> bool:
    """Tell whether a relative path stays in the folder that it is joined to."""
    windows = PureWindowsPath(path)  # knows both separators, and drives
    return not windows.anchor and ".." not in windows.parts


def _ask(repo_id: str, access: Access) -> tuple[str, _Files]:
    """Ask the Hub, once, for the commit of a revision and the files in it."""
    from huggingface_hub import HfApi, constants

    api, timeout = HfApi(**_LIBRARY, token=access.token), constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = api.model_info(repo_id, revision=access.revision, files_metadata=True, timeout=timeout)
        commit = str(info.sha)
        files = {f.rfilename: (f.blob_id if f.lfs is None else f.lfs.sha256, f.size) for f in info.siblings or []}
        if not _COMMIT.fullmatch(commit) or not all(map(is_inside, files)):
            raise ValueError(f"it has the commit {commit!r} with {len(files)} files")
        return commit, files
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        if type(e).__name__ == "HFValidationError" or getattr(e, "response", None) is not None:
            raise
        raise _OddAnswerError(f"the answer to a question for {repo_id!r} is odd: {e}") from e


def _provide(
    repo_id: str, folder: Path, name: str, expected: _Expected, access: Access, *, fetch: bool, offline: bool
) -> None:
    """Fetch a file if need be, and check it. A damaged one is fetched again, once; what stays damaged is not kept."""
    from huggingface_hub import constants, hf_hub_download

    (known, size), path, what = expected, folder / name, f"{name} of {repo_id!r}"
    for again in (False, True):
        if fetch or again:
            try:
                hf_hub_download(
                    repo_id,
                    name,
                    revision=folder.name,
                    token=access.token,
                    cache_dir=None if access.cache_dir is None else Path(access.cache_dir),
                    force_download=again or access.force_download,
                    etag_timeout=constants.HF_HUB_ETAG_TIMEOUT,
                    tqdm_class=_progress_bar(size),
                    **_LIBRARY,
                )
            except _client_errors() as e:
                raise ModelNotFoundError(f"{_explain(e, repo_id)} The cache lacks {name}.") from e
        if known is None or not _HASH.fullmatch(known):
            logger.warning("%s cannot be checked: the Hub gives no hash of it.", what)
            return
        if _is_intact(path, known):
            return
        fault = f"{what} is damaged in the cache: its hash is not {known[:12]}... as it should be"
        if offline:
            raise CheckpointError(f"{fault}. Connect and load it again: it is then fetched anew.")
        remove(path)
        if again:
            raise CheckpointError(
                f"{fault}, also after it was fetched again: it was damaged on the way, or replaced at its source. "
                "Nothing of it is kept."
            )
        logger.warning("%s. It is fetched again.", fault)


def _progress_bar(size: int | None) -> Any:
    """A class for the client's `tqdm_class`: its own bar, which also reports, and ends a file that has no end."""
    from huggingface_hub.utils import tqdm

    report = _report.get()  # here, since the client may count in another thread

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # Beside the bar of what is written there may be one of what is received, which would count twice.
            self.counts = not str(options.get("desc")).startswith("Downloading bytes")
            self.done = 0
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> bool | None:
            if self.counts:
                self.done += int(n or 0)
                if size is not None and self.done > size:
                    raise OSError(f"more bytes came than the {size} that the file has.")
                if report is not None:
                    report(self.done, size or 0)
            return super().update(n)

    return Bar


class _OddAnswerError(ValueError):
    """What answered is not the Hub."""


def _client_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    return errors.HTTPError, OSError, ValueError, RuntimeError  # HTTPError: timeouts are no OSErrors


_MESSAGES = {  # by the name of the error's class or of a base of it, the Hub's status, or the system's error
    "GatedRepoError": "{repo!r} is gated: accept its terms on the Hub and pass `token`.",
    "RevisionNotFoundError": "{repo!r} has no revision {revision!r}.",
    "RepositoryNotFoundError": "The Hub has no repository {repo!r}, or it is private: pass `token`.",
    "401": "The Hub does not know this token (401) for {repo!r}: log in with `hf auth login`, or pass `token`.",
    "403": "The Hub refuses access to {repo!r} (403): the token lacks the right to it. Pass another `token`.",
    "404": "A file of {repo!r} is listed but not there (404): try again later, or give another `revision`.",
    "429": "The Hub had too many requests from here (429), the last for {repo!r}: wait some minutes, or log in with "
    "`hf auth login`.",
    "5xx": "The Hub is out of order ({status}), so {repo!r} could not be reached: try again in some minutes.",
    "ENOSPC EDQUOT": "The disk is full, so {repo!r} could not be kept: make room, or give another `cache_dir`.",
    "TimeoutException": "The Hub did not answer in time for {repo!r}: try again later.",
    "_OddAnswerError FileMetadataError TooManyRedirects": "Something answered at {hub} that is not the Hub, perhaps a "
    "page that asks for a log-in: open it in a browser, then load {repo!r} again.",
    "ConnectError ProxyError": "The Hub cannot be reached for {repo!r}: check the connection, and the proxy if there "
    "is one.",
    "EACCES EROFS": "{repo!r} could not be kept, since the cache may not be written: give another `cache_dir`.",
    "TransportError": "The connection to the Hub broke off for {repo!r}: try again.",
    "Exception": "{repo!r} could not be fetched from the Hub: {error}",
}


def _explain(error: BaseException, repo_id: str, revision: str | None = None) -> str:
    """Say what went wrong and what to do: the first message that fits the error or one of its causes."""
    from huggingface_hub import constants

    causes: list[Any] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    status = next((each.response.status_code for each in causes if getattr(each, "response", None) is not None), 0)
    found = {cls.__name__ for each in causes for cls in type(each).__mro__}
    found |= {errno.errorcode.get(getattr(each, "errno", None) or 0, "") for each in causes}
    found |= {"5xx" if status >= 500 else str(status)}
    text, said = (
        next(text for names, text in _MESSAGES.items() if found & set(names.split())),
        " ".join(str(error).split()),
    )
    return text.format(repo=repo_id, revision=revision, status=status, error=said, hub=constants.ENDPOINT)


# --- the Hub's cache


def is_offline(access: Access) -> bool:
    """Tell whether the network may not be used, because of `local_files_only` or the Hub's `HF_HUB_OFFLINE`."""
    from huggingface_hub import constants

    return access.local_files_only or constants.HF_HUB_OFFLINE


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Give the folder of the cache: `cache_dir`, or the Hub's own."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()


def storage_folder(repo_id: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Give the folder where the cache keeps a repository."""
    return cache_root(cache_dir) / f"models--{repo_id.replace('/', '--')}"


def remove(path: Path) -> None:
    """Remove a file from the cache, and its content unless another snapshot there links to that."""
    content = _content(path)
    path.unlink(missing_ok=True)
    if not any(_content(other) == content for other in content.parents[1].glob("snapshots/*/**/*")):
        content.unlink(missing_ok=True)


def _content(path: Path) -> Path:
    """Give the file that a name in a snapshot links to; without links, the file itself."""
    return Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else path


def cached_url(url: str, sha256: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Give the path where the cache keeps a file of this address and sha256."""
    return cache_root(cache_dir) / "files--https" / sha256 / (Path(urlsplit(url).path).name or "file")


def file_sha256(path: Path) -> str:
    """Compute the sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _is_intact(path: Path, known: str) -> bool:
    """Check the hash of a file in a snapshot. A large file is read once: a stamp keeps the state it was read in."""
    if len(known) == 40:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == known
    status, stamp = path.stat(), next(p for p in path.parents if p.name == "snapshots").parent / ".verified" / known
    state = f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
    if stamp.is_file() and stamp.read_text() == state:
        return True
    if file_sha256(path) != known:
        return False
    _note(stamp, state)
    return True


def _read_list(storage: Path, commit: str) -> _Files | None:
    """Read what the Hub lists of a commit, if it was asked before."""
    try:
        found = json.loads((storage / ".verified" / f"{commit}.json").read_text("utf-8"))
        return {str(name): (known, size) for name, (known, size) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _list_cached(folder: Path) -> _Files:
    """List the files of a snapshot without the Hub's list; what they link to is named by the hash."""
    there = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (_content(path).name, None) for path in there}


def _read_branch(storage: Path, revision: str) -> str | None:
    """Read which commit a branch or tag was at when it was last fetched."""
    try:
        commit = (storage / "refs" / revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _note(path: Path, text: str) -> None:
    """Write a small file into the cache, whole or, where it may only be read, not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        logger.debug("%s is not written", path, exc_info=True)


# --- uploads


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
    """Upload the folder of a model in one commit: JSON, safetensors, cards and licences, and nothing else.

    The repository and the branch `revision` are created if needed. The arguments are those of `push_to_hub`.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If `repo_id` is not "organisation/repository".
        ModelNotFoundError: If the folder is not a model.
        UploadError: If the Hub refuses, or cannot be reached. The files of the repository are as they were.
    """
    from huggingface_hub import HfApi, get_session

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"`repo_id` must be organisation/repository, got {repo_id!r}.")
    if not (folder / CONFIG_NAME).is_file():
        raise ModelNotFoundError(f"{folder} holds no {CONFIG_NAME}, so it is not a model saved by this package.")
    api, session = HfApi(**_LIBRARY, token=token), get_session()
    before, session.timeout = session.timeout, UPLOAD_SILENCE
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        kept = not overwrite_card and api.file_exists(repo_id, "README.md", revision=revision)
        commit: Any = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            revision=revision,
            commit_message=commit_message or "Upload with stylegan-inversion",
            allow_patterns=_UPLOADED,
            ignore_patterns=["README.md"] if kept else [],
        )
        return str(commit)
    except _client_errors() as e:
        detail = _explain(e, repo_id, revision)
        raise UploadError(f"{repo_id!r} could not be uploaded, its files are as they were: {detail}") from e
    finally:
        session.timeout = before


def model_card(
    body: str, *, title: str, tags: list[str], license: str | None = None, metrics: Mapping[str, float] | None = None
) -> str:
    """Put the header that the Hub reads on top of a model card's Markdown. No `license` means that it is not stated."""
    from huggingface_hub import EvalResult, ModelCardData

    where: dict[str, Any] = {"task_type": "image-to-image", "task_name": "GAN inversion"}
    where |= {"dataset_type": "custom", "dataset_name": "the author's"}
    results = [
        EvalResult(**where, metric_type=name, metric_name=name, metric_value=float(value))
        for name, value in (metrics or {}).items()
    ]
    header = ModelCardData(
        library_name="stylegan-inversion",
        pipeline_tag="image-to-image",
        tags=tags,
        license=license or "other",
        license_name=None if license else "not-stated",
        metrics=list(metrics) if metrics else None,
        model_name=title if metrics else None,
        eval_results=results or None,
    )
    return f"---\n{header.to_yaml()}\n---\n\n{body}"
