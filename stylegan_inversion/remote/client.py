"""The Hub's own client, in this process: who hears how far a download is, and one message for each fault."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_report: ContextVar[Callable[[int, int], object] | None] = ContextVar("report", default=None)


@contextmanager
def report_downloads(report: Callable[[int, int], object]) -> Iterator[None]:
    """Hear how far the downloads are that this thread starts within the block.

    Args:
        report: Called with the bytes that are done and those there are, 0 while that is not known; of several
            downloads one after the other, each counts by itself. What it raises ends the download.
    """
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def progress_bar(size: int | None) -> Any:
    """A class for the client's `tqdm_class`: its own bar, which also reports, and ends a file that has no end.

    Args:
        size: Bytes that the file should have.
    """
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


class OddAnswerError(ValueError):
    """What answered is not the Hub."""


def faults() -> tuple[type[Exception], ...]:
    """What the client raises."""
    from huggingface_hub import errors

    return errors.HTTPError, OSError, ValueError, RuntimeError  # HTTPError: timeouts are no OSErrors


_NOT_THE_HUB = (
    "Something answered at {hub} that is not the Hub, perhaps a page that asks for a log-in: open it in a browser, "
    "then load {repo!r} again."
)
_UNREACHABLE = "The Hub cannot be reached for {repo!r}: check the connection, and the proxy if there is one."
_READ_ONLY = "{repo!r} could not be kept, since the cache may not be written: give another `cache_dir`."
_MESSAGES = {  # by the name of the error's class or of one it comes from, the Hub's status, or the system's error
    "GatedRepoError": "{repo!r} is gated: accept its terms on the Hub and pass `token`.",
    "RevisionNotFoundError": "{repo!r} has no revision {revision!r}.",
    "RepositoryNotFoundError": "The Hub has no repository {repo!r}, or it is private: pass `token`.",
    "401": "The Hub does not know this token (401) for {repo!r}: log in with `hf auth login`, or pass `token`.",
    "403": "The Hub refuses access to {repo!r} (403): the token lacks the right to it. Pass another `token`.",
    "404": "A file of {repo!r} is listed but not there (404): try again later, or give another `revision`.",
    "429": "The Hub had too many requests from here (429), the last for {repo!r}: wait some minutes, or log in with "
    "`hf auth login`.",
    "5xx": "The Hub is out of order ({status}), so {repo!r} could not be reached: try again in some minutes.",
    "ENOSPC": "The disk is full, so {repo!r} could not be kept: make room, or give another `cache_dir`.",
    "EDQUOT": "The disk is full, so {repo!r} could not be kept: make room, or give another `cache_dir`.",
    "TimeoutException": "The Hub did not answer in time for {repo!r}: try again later.",
    "OddAnswerError": _NOT_THE_HUB,
    "FileMetadataError": _NOT_THE_HUB,
    "TooManyRedirects": _NOT_THE_HUB,
    "ConnectError": _UNREACHABLE,
    "ProxyError": _UNREACHABLE,
    "EACCES": _READ_ONLY,
    "EROFS": _READ_ONLY,
    "TransportError": "The connection to the Hub broke off for {repo!r}: try again.",
    "Exception": "{repo!r} could not be fetched from the Hub: {error}",
}


def explain(error: BaseException, repo_id: str, revision: str | None = None) -> str:
    """What went wrong with a repository, and what to do: by the error and its causes, the first message that fits."""
    from huggingface_hub import constants

    causes: list[Any] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    status = next((each.response.status_code for each in causes if getattr(each, "response", None) is not None), 0)
    found = {cls.__name__ for each in causes for cls in type(each).__mro__}
    found |= {errno.errorcode.get(getattr(each, "errno", None) or 0, "") for each in causes}
    found |= {"5xx" if status >= 500 else str(status)}
    text, said = next(text for key, text in _MESSAGES.items() if key in found), " ".join(str(error).split())
    return text.format(repo=repo_id, revision=revision or "main", status=status, error=said, hub=constants.ENDPOINT)
