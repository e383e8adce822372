import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.remote import client
from stylegan_inversion.remote.client import DeadlineError, call_hub, report_downloads
from tests.fake_hub import FakeHub


def ask(timeout: float | None = 30.0, **arguments: Any) -> str:
    return call_hub("file_exists", {"repo_id": "org/tiny", "filename": "config.json", **arguments}, timeout=timeout)


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_the_answer_comes_as_text(fake_hub: FakeHub, timeout: float | None) -> None:
    assert ask(timeout) == "True" and ask(timeout, filename="absent") == "False"


def test_the_token_is_on_no_command_line(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[Any, dict[str, Any]]] = []
    popen = subprocess.Popen

    def record(command: Any, **options: Any) -> Any:
        started.append((command, options["env"]))
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", record)
    assert ask(token="hf_secret") == "True"
    ((command, environment),) = started
    assert "hf_secret" not in str(command) and "hf_secret" not in str(environment)


def test_without_an_interpreter_it_is_called_here(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(subprocess, "Popen", None)  # not called
    assert ask() == "True"


def test_retries_are_not_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def absent(**_: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no such host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(ModelNotFoundError, match="'org/tiny' could not be fetched from the Hub: no such host"):
        call_hub("snapshot_download", {"repo_id": "org/tiny"}, timeout=None)
    assert not caplog.text and logging.getLogger("huggingface_hub").level == level


def test_a_process_that_dies(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "client_process.py").write_text("raise SystemExit('\\nout of memory')\n")
    monkeypatch.setattr(client, "__file__", str(tmp_path / "client.py"))
    with pytest.raises(ModelNotFoundError, match="the process of the Hub's client ended with 1: out of memory"):
        ask()
    (tmp_path / "client_process.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(ModelNotFoundError, match="the process of the Hub's client ended with 3: without a word"):
        ask()


def test_a_process_that_is_ended_in_the_middle_of_a_line(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = """'{"done": 2000000, "total": 5000000}\\n{"done": 30'"""
    text = f"import time\nprint({lines}, end='', flush=True)\ntime.sleep(30)\n"
    (tmp_path / "client_process.py").write_text(text)
    monkeypatch.setattr(client, "__file__", str(tmp_path / "client.py"))
    with pytest.raises(DeadlineError, match=r"within 1 s \(2\.0 of 5\.0 MB\)"):
        ask(timeout=1.0)


def test_who_asks_hears_how_far_a_download_is(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [{"done": 2, "total": 0}, {"done": 2, "total": 5}, {"done": 5, "total": 5}, {"result": "there"}]
    (tmp_path / "client_process.py").write_text("".join(f"print({json.dumps(json.dumps(line))})\n" for line in lines))
    monkeypatch.setattr(client, "__file__", str(tmp_path / "client.py"))
    heard: list[tuple[int, int]] = []
    others = threading.Thread(target=ask)  # another thread's downloads are not heard
    with report_downloads(lambda done, total: heard.append((done, total))):
        others.start()
        assert ask() == "there"
        others.join()
    assert heard == [(2, 0), (2, 5), (5, 5)]
    assert ask() == "there" and len(heard) == 3


def test_no_process_outlives_an_interrupt(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def record(*args: Any, **options: Any) -> Any:
        started.append(popen(*args, **options))
        return started[0]

    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", record)
    monkeypatch.setattr(client.json, "loads", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask()
    assert started[0].poll() is not None


def test_the_process_ends_with_its_parent(fake_hub: FakeHub, tmp_path: Path) -> None:
    """Even if the parent is killed, while the Hub hangs."""
    fake_hub.everywhere = "hang"
    code = (
        "import sys\nfrom stylegan_inversion.remote import client\nimport subprocess\npopen = subprocess.Popen\n"
        "def record(*args, **options):\n"
        "    process = popen(*args, **options)\n    print(process.pid, flush=True)\n    return process\n"
        "subprocess.Popen = record\n"
        "client.call_hub('file_exists', {'repo_id': 'org/tiny', 'filename': 'x'}, timeout=60.0)\n"
    )
    root = Path(client.__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        while not fake_hub.log and parent.poll() is None:
            time.sleep(0.05)
        assert is_running(child)
        parent.kill()
    until = time.monotonic() + 5
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
