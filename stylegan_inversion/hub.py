"""Files from the Hugging Face Hub, each checked against the hash that the Hub gives; and uploads to the Hub."""

import dataclasses
import errno
import glob
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PureWindowsPath
from typing import Any

from stylegan_inversion import __version__
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, UploadError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 30
UPLOAD_SILENCE = 120.0  # seconds without an answer that end an upload: the client has no limit of its own there
_LIBRARY: Any = {"library_name": "stylegan-inversion", "library_version": __version__}
_UPLOADED = ["*.json", "*.safetensors", "*README.md", "*LICENSE*", "gallery.jpg"]

_report: ContextVar[Callable[[int, int], object] | None] = ContextVar("report", default=None)


@dataclasses.dataclass(frozen=True)
class Access:
    """How a model is fetched.

    Attributes:
        revision: Branch, tag or commit on the Hub. `None` means the default branch.
        subfolder: Folder inside the model.
        token: Access token for the Hub. `None` takes the one that is logged in.
        cache_dir: Where downloads are kept. `None` means the Hub's own cache.
        local_files_only: Never use the network.
        force_download: Download again what the cache holds.
    """

    revision: str | None = None
    subfolder: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False


@contextmanager
def report_downloads(report: Callable[[int, int], object]) -> Iterator[None]:
    """Report the downloads that this thread starts within the block: bytes done, and in all as far as is known.

    An exception that `report` raises ends the download.
    """
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def download(
    repo_id: str, patterns: Sequence[str], access: Access, *, sha256: str | None = None, otherwise: str = ""
) -> Path:
    """Make sure that the files of a repository that match a pattern are in the cache and intact.

    A whole copy of a commit in the cache is taken as it is, without a request. If the Hub does not answer, the copy in
    the cache is used.

    Args:
        repo_id: "organisation/repository".
        patterns: Patterns of paths in the repository.
        access: How to fetch the files.
        sha256: Expected hash of each file. `None` takes the Hub's.
        otherwise: What else a user without a network can do, for the message.

    Returns:
        The folder in the cache.

    Raises:
        ModelNotFoundError: If a file cannot be fetched; the message says why, and what to do.
        CheckpointError: If a file is not that of `sha256`, or is damaged, also after it was fetched again.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    where: dict[str, Any] = {"revision": access.revision or "main", "cache_dir": cache_root(access.cache_dir)}
    if not is_inside(where["revision"]):
        raise ValueError(f"`revision` must be a branch, a tag or a commit, got {access.revision!r}.")
    if (found := _cached_commit(repo_id, patterns, access)) is not None:
        return _check_sha256(*found, sha256, repo_id)
    offline, why = is_offline(access), f"The network may not be used for {repo_id!r}: connect once{otherwise}."
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    odd: tuple[type[Exception], ...] = (*_client_errors(), LookupError, TypeError, AttributeError)  # of other JSON
    if not offline:
        try:  # `snapshot_download` would wait for its own first answer without a limit
            HfApi(**_LIBRARY, token=access.token).model_info(repo_id, revision=access.revision, timeout=timeout)
        except odd as e:
            offline, why = True, _explain(e, repo_id, access.revision)
            if access.force_download or type(e).__name__ == "RevisionNotFoundError":
                raise ModelNotFoundError(why) from e
    options = where | _LIBRARY | {"etag_timeout": timeout, "token": access.token, "allow_patterns": list(patterns)}
    options |= {"local_files_only": offline, "force_download": access.force_download, "tqdm_class": _progress_bar()}
    for again in (False, True):
        try:
            folder = Path(snapshot_download(repo_id, **options))
        except _client_errors() as e:
            raise ModelNotFoundError(why if offline else _explain(e, repo_id)) from e
        there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        asked = list(filter_repo_objects(there, allow_patterns=options["allow_patterns"]))
        if offline and (access.force_download or not asked):
            raise ModelNotFoundError(why)
        if offline and not is_offline(access):
            logger.warning("%s The copy in the cache is used.", why)
        damaged = [name for name in asked if not _is_intact(folder / name)]
        if not damaged:
            return _check_sha256(folder, asked, sha256, repo_id)
        text = f"{damaged[0]} of {repo_id!r} is damaged"
        if offline:
            raise CheckpointError(f"{text}. Connect and load it again: it is then fetched anew.")
        for name in damaged:
            remove(folder / name)
        if not again:
            logger.warning("%s. It is fetched again.", text)
    raise CheckpointError(f"{text}, also after it was fetched again. Nothing of it is kept.")


def _cached_commit(repo_id: str, patterns: Sequence[str], access: Access) -> tuple[Path, list[str]] | None:
    """Find a commit whose files are all in the cache, at the sizes that the Hub gave; they were checked when they came.

    Returns its folder and the files; `None` for a branch, and where the Hub has to be asked.
    """
    if access.force_download or not re.fullmatch(r"[0-9a-f]{40}", access.revision or ""):
        return None
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.utils import filter_repo_objects

        tree = get_cached_repo_tree(repo_id, revision=access.revision, cache_dir=cache_root(access.cache_dir))
        asked = list(filter_repo_objects(tree, allow_patterns=list(patterns), key=lambda file: file.path))
        folder = storage_folder(repo_id, access.cache_dir) / "snapshots" / str(access.revision)
        whole = asked and all((folder / file.path).stat().st_size == file.size for file in asked)
    except Exception:  # an older client, which keeps no list of files; no list; or a file is missing
        return None
    return (folder, [file.path for file in asked]) if whole else None


def _check_sha256(folder: Path, names: Sequence[str], sha256: str | None, repo_id: str) -> Path:
    """Check the hash that the caller expects of each file, which the cache may have named by it."""
    for name in names if sha256 is not None else ():
        if (folder / name).resolve().name != sha256 and file_sha256(folder / name) != sha256:
            raise CheckpointError(f"{name} of {repo_id!r} is another file: its sha256 is not {sha256}.")
    return folder


def download_file(repo_id: str, filename: str, access: Access, *, sha256: str | None = None) -> Path:
    """Fetch one file as `download` does, and give its path in the cache."""
    path = download(repo_id, [glob.escape(filename)], access, sha256=sha256) / filename
    if not path.is_file():
        raise ModelNotFoundError(f"{repo_id!r} has no file {filename!r}, or the cache lacks it.")
    return path


def is_inside(path: str) -> bool:
    """Tell whether a relative path stays in the folder that it is joined to."""
    windows = PureWindowsPath(path)  # knows both separators, and drives
    return not windows.anchor and ".." not in windows.parts


def _is_intact(path: Path) -> bool:
    """Check the hash of a file. The client names the content of a large file by its sha256, others by the git sha1."""
    known = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", known):
        return file_sha256(path) == known
    if not re.fullmatch(r"[0-9a-f]{40}", known):  # a cache without links
        return True
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == known


def _progress_bar() -> Any:
    """Make a class for the client's `tqdm_class`: its own bar, which also reports, and ends a file without an end."""
    from huggingface_hub.utils import tqdm

    report = _report.get()  # here, since the client may count in another thread

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # Others count files, or what is received beside what is written.
            self.counts = options.get("unit") == "B" and options.get("desc") != "Downloading bytes"
            self.done = 0
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            if self.done > MAX_FILE_BYTES:
                raise OSError(f"more than {MAX_FILE_BYTES >> 30} GiB came.")
            if self.counts and report is not None:
                report(self.done, int(self.total or 0))
            return super().update(n)

    return Bar


def _client_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    return errors.HTTPError, OSError, ValueError, RuntimeError  # HTTPError: timeouts are no OSErrors


_MESSAGES = {  # by the name of the error's class or of a base of it, the Hub's status, or the system's error
    "GatedRepoError": "{repo!r} is gated: accept its terms on the Hub and pass `token`.",
    "RevisionNotFoundError": "{repo!r} has no revision {revision!r}.",
    "RepositoryNotFoundError": "The Hub has no repository {repo!r}, or it is private: pass `token`.",
    "401 403": "The Hub refuses access to {repo!r} ({status}): log in with `hf auth login`, or pass a `token` that has "
    "the right to it.",
    "429 5xx": "The Hub is out of order or had too many requests ({status}), so {repo!r} could not be reached: try "
    "again in some minutes, or log in with `hf auth login`.",
    "ENOSPC EDQUOT": "The disk is full, so {repo!r} could not be kept: make room, or give another `cache_dir`.",
    "EACCES EROFS": "{repo!r} could not be kept, since the cache may not be written: give another `cache_dir`.",
    "ConnectError ProxyError": "The Hub cannot be reached for {repo!r}: check the connection, and the proxy if there "
    "is one.",
    "FileMetadataError TooManyRedirects JSONDecodeError LookupError TypeError AttributeError": "Something answered at "
    "{hub} that is not the Hub, perhaps a page that asks for a log-in: open it in a browser, then load {repo!r} again.",
    "TimeoutException TransportError": "The Hub did not answer in time for {repo!r}, or the connection broke off: try "
    "again later.",
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
    message = next(text for names, text in _MESSAGES.items() if found & set(names.split()))
    said = " ".join(str(error).split())
    return message.format(repo=repo_id, revision=revision, status=status, error=said, hub=constants.ENDPOINT)


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
    content = path.resolve()
    path.unlink(missing_ok=True)
    if not any(other.resolve() == content for other in content.parents[1].glob("snapshots/*/**/*")):
        content.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Compute the sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# --- uploads


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    overwrite_card: bool = False,
) -> str:
    """Upload the folder of a model in one commit, as `push_to_hub` does: JSON, safetensors, cards and licences only.

    Returns the address of the commit or the pull request. After an `UploadError` the repository's files are the same.
    """
    from huggingface_hub import HfApi, get_session

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"`repo_id` must be organisation/repository, got {repo_id!r}.")
    api, session = HfApi(**_LIBRARY, token=token), get_session()
    before, session.timeout = session.timeout, UPLOAD_SILENCE
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        kept = not overwrite_card and api.file_exists(repo_id, "README.md", revision=revision)
        commit: Any = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            revision=revision,
            commit_message=commit_message or "Upload with stylegan-inversion",
            create_pr=create_pr,
            allow_patterns=_UPLOADED,
            ignore_patterns=["README.md"] if kept else [],
        )
        return str(commit.pr_url or commit)
    except _client_errors() as e:
        detail = _explain(e, repo_id, revision)
        raise UploadError(f"{repo_id!r} could not be uploaded, its files are as they were: {detail}") from e
    finally:
        session.timeout = before


def card_header(**fields: Any) -> str:
    """Write the header of a model card that the Hub reads, by the fields of `huggingface_hub.ModelCardData`."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [EvalResult(**each) for each in fields.pop("eval_results", None) or []]
    header = ModelCardData(library_name="stylegan-inversion", eval_results=results or None, **fields)
    return f"---\n{header.to_yaml()}\n---\n"
