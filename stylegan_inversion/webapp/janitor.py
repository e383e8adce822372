"""The app's own folder for what passes through the disk, where no face stays longer than said.

Gradio writes uploads and pictures to a folder that it tidies in part: what is left of an upload that broke off stays.
"""

import atexit
import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, where a folder that is in use cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_PREFIX = "stylegan-inversion-app-"
_LOCK = ".in-use"
_PARTIAL_SECONDS = (
    120.0  # an upload lies directly in the folder until it is whole; this long without a byte, it is dead
)


class Janitor:
    """Owns a new private folder, makes it Gradio's, and empties it: old files now and then, everything at the end.

    The folder is removed by `close` or when the interpreter exits; what a killed app left behind, the next one removes.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        time_to_live: float = 1800.0,
        every: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the folder, with access for this user only, and name it in the environment as `GRADIO_TEMP_DIR`.

        Must come before any component of the app is built. Ends with `close`, which also puts the environment back.

        Args:
            folder: Where to make it. `None` is `GRADIO_TEMP_DIR`, or else the system's folder for temporary files.
                Nothing else in there is touched.
            time_to_live: Seconds that a file stays after it was last written or handed out again.
            every: Seconds between two rounds.
            clock: Seconds since the epoch.

        Raises:
            ValueError: If `time_to_live` or `every` is not positive.
        """
        if not time_to_live > 0:
            raise ValueError(f"`time_to_live` must be positive, got {time_to_live}.")
        if not every > 0:
            raise ValueError(f"`every` must be positive, got {every}.")
        self.time_to_live = time_to_live
        self._clock = clock
        self._before = os.environ.get("GRADIO_TEMP_DIR")
        parent = Path(folder or self._before or tempfile.gettempdir()).resolve()
        if (parent / _LOCK).exists():  # another janitor's: lie beside it, not within
            parent = parent.parent
        parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(parent)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = _hold(self.folder / _LOCK)
        self._kept: set[Path] = set()
        self._others: list[Callable[[], object]] = []
        self._process = os.getpid()
        self._end = threading.Event()
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder)
        self._thread = threading.Thread(target=self._rounds, args=(every,), name="janitor", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def keep(self) -> None:
        """What lies in the folder now belongs to the page, such as examples, and stays until the end."""
        self._kept.update(self._files())

    def also(self, work: Callable[[], object]) -> None:
        """Do something more at the end of each round, in the janitor's thread."""
        self._others.append(work)

    def tidy(self) -> int:
        """Delete what is too old, and folders that are empty; returns how many files went."""
        count = 0
        for path in self._files():
            is_partial = path.parent == self.folder
            allowed = min(_PARTIAL_SECONDS, self.time_to_live) if is_partial else self.time_to_live
            if path not in self._kept and self._age(path) > allowed:
                count += _delete(path)
        for root, _, _ in os.walk(self.folder, topdown=False):
            if Path(root) != self.folder and self._age(Path(root)) > _PARTIAL_SECONDS:  # nobody is about to write there
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(root)
        for work in self._others:
            work()
        return count

    def forget(self, paths: Iterable[str | Path]) -> int:
        """Delete files now.

        Args:
            paths: Files in the folder. Others are left alone, and so is what a link points to.

        Returns:
            How many were there.
        """
        count = 0
        for path in map(Path, paths):
            path = path.parent.resolve() / path.name
            if path.is_relative_to(self.folder) and path not in self._kept and path != self.folder / _LOCK:
                count += _delete(path)
        return count

    def close(self) -> None:
        """Remove the folder with everything in it and end the thread. May be called again."""
        if os.getpid() != self._process:  # a forked child's exit is not the app's
            return
        atexit.unregister(self.close)
        self._end.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        if os.environ.get("GRADIO_TEMP_DIR") == str(self.folder):
            os.environ.pop("GRADIO_TEMP_DIR")
            if self._before is not None:
                os.environ["GRADIO_TEMP_DIR"] = self._before
        shutil.rmtree(self.folder, ignore_errors=True)  # follows no links
        self._lock.close()

    def __enter__(self) -> "Janitor":
        """For a `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The same as `close`."""
        self.close()

    def _rounds(self, every: float) -> None:
        while not self._end.wait(every):
            try:
                self.tidy()
            except OSError:
                logger.exception(
                    "Some temporary files of the web app could not be deleted; the next round tries again."
                )

    def _files(self) -> list[Path]:
        """Files and links; `os.walk` goes through no link."""
        walk = os.walk(self.folder)
        found = [Path(root, name) for root, folders, names in walk for name in (*names, *_links(root, folders))]
        return [path for path in found if path != self.folder / _LOCK]

    def _age(self, path: Path) -> float:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return 0.0
        return self._clock() - max(status.st_mtime, status.st_ctime)  # a copy brings its old `st_mtime` along


def forget_lost(known: Iterable[set[str]]) -> None:
    """Drop paths of files that are gone from sets, such as those that Gradio would remember forever."""
    for paths in known:
        paths -= {path for path in list(paths) if not os.path.lexists(path)}


def _links(root: str, folders: list[str]) -> list[str]:
    return [name for name in folders if os.path.islink(os.path.join(root, name))]


def _delete(path: Path) -> bool:
    try:
        path.unlink()
    except (FileNotFoundError, IsADirectoryError, PermissionError):  # the second as Linux says it, the third as others
        return False
    return True


def _hold(path: Path) -> IO[Any]:
    """Make a file and lock it, until it is closed or the process ends in whatever way."""
    if fcntl is None:
        return path.open("w")
    new = path.with_suffix(".new")
    file = new.open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(path)  # only now can another app try to lock it
    return file


def _remove_left_behind(parent: Path) -> None:
    """Remove this user's folders of apps that are dead: nobody holds their lock."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{_PREFIX}*"):
        lock = folder / _LOCK
        try:
            if folder.is_symlink() or lock.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, or gone by now
            continue
