"""One call of the Hub's client within a deadline, with one message for each fault."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.remote.integrity import sweep, unfinished

_report: ContextVar[Callable[[int, int], object] | None] = ContextVar("report", default=None)


@contextmanager
def report_downloads(report: Callable[[int, int], object]) -> Iterator[None]:
    """Hear how far the downloads are that this thread starts within the block, if they run under a timeout.

    Args:
        report: Called with the bytes that are done and those there are, 0 while that is not known; of several
            downloads one after the other, each counts by itself. What it raises ends the download.
    """
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


class DeadlineError(ModelNotFoundError):
    """The Hub took too long."""


def call_hub(
    function: str,
    arguments: dict[str, Any],
    *,
    timeout: float | None,
    storage: Path | None = None,
    otherwise: str = "and try again",
) -> str:
    """Call a function of `huggingface_hub`.

    Args:
        function: Its name.
        arguments: Its arguments, "repo_id" among them, as JSON can say them.
        timeout: Seconds; the call then runs in a process of its own, which is ended when they are over. `None` calls
            it here, with no limits but those that the client sets each request.
        storage: The repository's folder in the cache, from which unfinished downloads of that process are removed.
        otherwise: What else the user can do if the Hub cannot be reached.

    Returns:
        The result, as text.

    Raises:
        DeadlineError: If the time is over.
        ModelNotFoundError: For every other fault.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    repo_id, revision = arguments["repo_id"], arguments.get("revision")
    offline = arguments.get("local_files_only") or constants.HF_HUB_OFFLINE
    if timeout is None or offline or not sys.executable:  # a Python that is part of another program cannot be started
        try:
            with _quiet_client():
                return str(getattr(huggingface_hub, function)(**arguments))
        except (errors.HTTPError, OSError, ValueError, RuntimeError) as e:  # HTTPError: timeouts are no OSErrors
            names = [cls.__name__ for cls in type(e).__mro__]
            raise ModelNotFoundError(_explain(names, str(e), repo_id, revision, otherwise)) from e
    answer = _in_process(function, arguments, timeout, storage)
    if "result" in answer:
        return str(answer["result"])
    if "error" in answer:
        raise ModelNotFoundError(_explain(answer["error"], answer["message"], repo_id, revision, otherwise))
    raise DeadlineError(
        f"The Hub was not done with {repo_id!r} within {timeout:.4g} s "
        f"({answer['done'] / 1e6:.1f} of {answer['total'] / 1e6:.1f} MB). Try again, or give more time with `timeout`."
    )


@contextmanager
def _quiet_client() -> Iterator[None]:
    """The client's warnings of each retry are left out: what comes of it is said once, by the error."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(level)


def _explain(names: Sequence[str], message: str, repo_id: str, revision: str | None, otherwise: str) -> str:
    """One message for an error of the Hub's client, known by the names of its classes."""
    if "LocalEntryNotFoundError" in names:
        return f"{repo_id!r} is not in the cache and the Hub cannot be reached. Connect once, {otherwise}."
    if "GatedRepoError" in names:
        return f"{repo_id!r} is gated: accept its terms on the Hub and pass `token`."
    if "RevisionNotFoundError" in names:
        return f"{repo_id!r} has no revision {revision or 'main'!r}."
    if "RepositoryNotFoundError" in names:
        return f"The Hub has no repository {repo_id!r}, or it is private: pass `token`."
    return f"{repo_id!r} could not be fetched from the Hub: {' '.join(message.split())}"


def _in_process(function: str, arguments: dict[str, Any], timeout: float, storage: Path | None) -> dict[str, Any]:
    """Run `client_process.py`; its last answer, or {"done", "total"} if it was ended at the deadline."""
    from huggingface_hub import constants

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
    }
    before = set() if storage is None else unfinished(storage)
    answer: dict[str, Any] = {"done": 0, "total": 0}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("client_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
        )
        assert process.stdin is not None and process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()  # before the end, which the loop below may see first
            process.kill()

        timer = threading.Timer(timeout, expire)
        timer.start()
        try:
            os.write(process.stdin.fileno(), json.dumps([function, arguments]).encode() + b"\n")
            with tqdm(desc=arguments["repo_id"], unit="B", unit_scale=True, disable=None, leave=False) as bar:
                for line in process.stdout:
                    if line.endswith(b"\n"):  # it may be ended in the middle of one
                        answer = json.loads(line)
                    if "done" in answer:
                        bar.total, bar.n = answer["total"], answer["done"]
                        bar.refresh()
                        if (report := _report.get()) is not None:
                            report(answer["done"], answer["total"])
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
            if storage is not None:
                sweep(storage, before)
        if "done" in answer and not expired.is_set():  # it died
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or ["without a word"])[-1]
            answer = {
                "error": [],
                "message": f"the process of the Hub's client ended with {process.returncode}: {last}",
            }
    return answer
