import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import stylegan_inversion.webapp.janitor as janitor_module
from stylegan_inversion.webapp.janitor import Janitor, forget_lost

START = """
import os, runpy, signal, sys
janitor = runpy.run_path(sys.argv[3])["Janitor"](sys.argv[1])  # without the package, which takes seconds to import
(janitor.folder / "face.png").write_text("face")
print(janitor.folder, flush=True)
sys.argv[2] == "kill" and os.kill(os.getpid(), signal.SIGKILL)
sys.argv[2] == "wait" and sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)


@pytest.fixture
def janitor(tmp_path: Path) -> Iterator[Janitor]:
    """Its clock stands at `time.time() + ahead`."""
    with Janitor(tmp_path / "cache", every=3600.0, clock=lambda: time.time() + ahead[0]) as each:
        yield each


ahead = [0.0]


@pytest.fixture(autouse=True)
def now() -> Iterator[None]:
    yield
    ahead[0] = 0.0


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("face")
    return path


def test_the_folder_is_private_and_gradios(tmp_path: Path) -> None:
    foreign = write(tmp_path / "photo.png")
    with Janitor(tmp_path) as janitor:
        assert os.environ["GRADIO_TEMP_DIR"] == str(janitor.folder) and janitor.folder.parent == tmp_path
        assert stat.S_IMODE(janitor.folder.stat().st_mode) == 0o700
        write(janitor.folder / "a" / "face.png")
    assert "GRADIO_TEMP_DIR" not in os.environ
    assert list(tmp_path.iterdir()) == [foreign]  # wiped, and nothing else
    janitor.close()
    assert "janitor" not in {thread.name for thread in threading.enumerate()}


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "named"))
    first = Janitor()
    assert first.folder.parent == tmp_path / "named"
    second = Janitor()
    assert second.folder.parent == tmp_path / "named" and second.folder != first.folder
    kept = write(first.folder / "face.png")
    second.close()
    assert kept.exists() and os.environ["GRADIO_TEMP_DIR"] == str(first.folder)
    first.close()
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "named") and not any((tmp_path / "named").iterdir())


def test_old_files_go(janitor: Janitor) -> None:
    old = write(janitor.folder / "a" / "face.png")
    os.utime(old, (0, 0))  # as `shutil.copy2` leaves it: the age counts from when it came here
    ahead[0] = 1790.0
    assert janitor.tidy() == 0 and old.exists()
    ahead[0] = 1810.0
    assert janitor.tidy() == 1 and not old.exists()
    assert not (janitor.folder / "a").exists() or janitor.tidy() == 0
    ahead[0] = 3700.0
    janitor.tidy()
    assert list(janitor.folder.iterdir()) == [janitor.folder / ".in-use"]


def test_what_is_left_of_an_upload_goes_sooner(janitor: Janitor) -> None:
    partial, whole = write(janitor.folder / "tmp1234"), write(janitor.folder / "a" / "photo.png")
    ahead[0] = 110.0
    assert janitor.tidy() == 0
    ahead[0] = 130.0
    assert janitor.tidy() == 1 and not partial.exists() and whole.exists()


def test_an_empty_folder_stays_while_somebody_may_write_there(janitor: Janitor) -> None:
    (janitor.folder / "a").mkdir()
    ahead[0] = 60.0
    janitor.tidy()
    assert (janitor.folder / "a").exists()
    ahead[0] = 130.0
    janitor.tidy()
    assert not (janitor.folder / "a").exists()


def test_what_belongs_to_the_page_stays(janitor: Janitor) -> None:
    example = write(janitor.folder / "a" / "example.png")
    janitor.keep()
    write(janitor.folder / "b" / "face.png")
    ahead[0] = 1e6
    assert janitor.tidy() == 1 and example.exists()
    assert janitor.forget([example]) == 0 and example.exists()


def test_forget(janitor: Janitor, tmp_path: Path) -> None:
    mine, foreign = write(janitor.folder / "a" / "face.png"), write(tmp_path / "foreign.png")
    sneaky = [janitor.folder / ".." / ".." / "foreign.png", janitor.folder / ".in-use", janitor.folder, foreign]
    assert janitor.forget([mine, str(mine), *sneaky]) == 1
    assert not mine.exists() and foreign.exists() and (janitor.folder / ".in-use").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    foreign = write(tmp_path / "foreign" / "photo.png")
    janitor = Janitor(tmp_path / "cache", every=3600.0, clock=lambda: time.time() + 1e6)
    (janitor.folder / "link").symlink_to(foreign.parent)
    (janitor.folder / "file").symlink_to(foreign)
    assert janitor.forget([janitor.folder / "link" / "photo.png"]) == 0  # lies elsewhere
    assert janitor.forget([janitor.folder / "file"]) == 1 and janitor.tidy() == 1
    assert not (janitor.folder / "link").is_symlink() and foreign.exists()
    (janitor.folder / "link").symlink_to(foreign.parent)
    janitor.close()
    assert foreign.exists() and not janitor.folder.exists()

    trap = tmp_path / "cache" / "stylegan-inversion-app-trap"
    write(foreign.parent / ".in-use")
    trap.symlink_to(foreign.parent)
    Janitor(tmp_path / "cache").close()
    assert foreign.exists()


def test_rounds(tmp_path: Path) -> None:
    with Janitor(tmp_path, time_to_live=0.1, every=0.05) as janitor:
        old = write(janitor.folder / "a" / "face.png")
        deadline = time.monotonic() + 5
        while old.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not old.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks that outlive nobody")
def test_what_a_killed_app_left_behind(tmp_path: Path) -> None:
    def start(how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", START, str(tmp_path), how, janitor_module.__file__]
        return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    killed = start("kill")
    left = Path(killed.communicate()[0].strip())
    assert (left / "face.png").exists()
    living = start("wait")
    assert living.stdout is not None
    kept = Path(living.stdout.readline().strip())
    assert not left.exists()  # wiped at the start of the next one
    Janitor(tmp_path).close()
    assert (kept / "face.png").exists()  # but not what is in use
    living.communicate("")
    assert living.returncode == 0 and not kept.exists()  # wiped at the exit


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_exit_of_a_child_is_not_the_apps(janitor: Janitor) -> None:
    face = write(janitor.folder / "a" / "face.png")
    child = os.fork()
    if child == 0:
        janitor.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert face.exists()


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`time_to_live` must be positive, got nan"):
        Janitor(tmp_path, time_to_live=float("nan"))
    with pytest.raises(ValueError, match=r"`every` must be positive, got 0"):
        Janitor(tmp_path, every=0)
    assert not any(tmp_path.iterdir())


def test_more_is_done_in_each_round(tmp_path: Path) -> None:
    rounds: list[int] = []
    with Janitor(tmp_path, every=0.05) as janitor:
        janitor.also(lambda: rounds.append(1))
        deadline = time.monotonic() + 10
        while len(rounds) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert len(rounds) >= 2


def test_lost_files_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "there.png").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    known = [{str(tmp_path / name) for name in ("there.png", "link", "gone.png")}, set[str]()]
    there = known[0]
    forget_lost(known)
    assert known[0] is there and {Path(path).name for path in there} == {"there.png", "link"} and not known[1]
