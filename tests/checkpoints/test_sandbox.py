"""The process that reads: its limits, its guard, and how it can end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from stylegan_inversion.checkpoints.sandbox import PickledModule, read_checkpoint

from stylegan_inversion.checkpoints import sandbox
from stylegan_inversion.errors import CheckpointError
from tests.checkpoints.hostile_files import whole
from tests.checkpoints.official_files import nvidia, nvidia_pickle, saved


def run_in_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that starts as the reading one does, without PyTorch."""
    start = sandbox._START.partition("from stylegan_inversion")[0] + code
    package = str(Path(sandbox.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-B", "-c", start, package, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "x.pt").write_bytes(saved({"a": torch.ones(2, 3), "b": [1, None, "x"]}))
    return tmp_path / "x.pt"


def test_good_file(good: Path) -> None:
    read = read_checkpoint(good)
    assert torch.equal(read["a"], torch.ones(2, 3)) and read["b"] == [1, None, "x"]
    read["a"][0, 0] = 5  # its own memory, writable
    assert torch.equal(read_checkpoint(good)["a"], torch.ones(2, 3))


def test_nothing_is_left_behind(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    read_checkpoint(good)
    good.write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="web page"):
        read_checkpoint(good)
    assert list(folder.iterdir()) == []


def test_files_that_are_none(good: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt: there is no such file\."):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match=r" is a folder\."):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"x\.pt has 0\.0 GB; checkpoints of up to 0\.0 GB are read\."):
        read_checkpoint(good, max_bytes=10)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty: It is empty \(0 bytes\)"):
        read_checkpoint(tmp_path / "empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"there is no such file"):
        read_checkpoint(tmp_path / "pipe")


def test_odd_names(good: Path, tmp_path: Path) -> None:
    for name in ("-c", "a b;$(x)'\".pt", "ä.pt"):
        (tmp_path / name).write_bytes(good.read_bytes())
        assert read_checkpoint(tmp_path / name)["b"][2] == "x"


def test_relative_path(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(good.parent)
    assert read_checkpoint(Path("x.pt"))["b"][2] == "x"


def test_modules_beside_the_file_are_not_imported(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("struct.py", "json.py", "sitecustomize.py", "stylegan_inversion.py"):
        (good.parent / name).write_text("raise SystemExit('imported')")
    monkeypatch.chdir(good.parent)
    monkeypatch.setenv("PYTHONPATH", str(good.parent))
    assert read_checkpoint(good)["b"][2] == "x"


def test_reading_takes_too_long(good: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt: it was not read within 0 s\. Nothing of it was used\."):
        read_checkpoint(good, timeout=1e-3)


def test_the_process_cannot_start(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CheckpointError, match=r"the process that reads foreign files could not start"):
        read_checkpoint(good)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os._exit(77)", r"would have opened or run something else, so it was stopped\. Delete it\."),
        ("import os; os.kill(os.getpid(), 24)", r"took more than 10 s or too much memory"),
        ("raise ValueError('why')", r"reading it failed \(exit 1\): ValueError: why"),
        (
            "open(sys.argv[3] + '/description.json', 'w').write('{\"error\": \"odd\"}')",
            r"x\.pt: odd",
        ),
        (
            "open(sys.argv[3] + '/description.json', 'w').write('{\"value\": [\"tensor\", \"s0\", 0, [9], [1]]}')",
            r"its tensors could not be taken over",
        ),
        (
            "open(sys.argv[3] + '/description.json', 'w').truncate(200 * 2**20)",
            r"it describes more values than a checkpoint holds",
        ),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ends_of_the_process(code: str, message: str, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_START", f"import sys; {code}")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(good)


def test_the_guard_ends_what_it_should_not_do(tmp_path: Path) -> None:
    attempts = {
        "open": f"open({str(tmp_path / 'x')!r}, 'w')",
        "exec": "exec('1')",
        "eval": "eval('1')",
        "import": "import this",
        "system": "posix.system('true')",
        "subprocess": "posix.fork()",
        "pickle": "_pickle.loads(b'cposix\\nsystem\\n.')",
    }
    head = "import posix, _pickle; from stylegan_inversion.checkpoints.reading_process import guard; guard(); "
    for name, attempt in attempts.items():
        assert run_in_process(head + attempt).returncode == 77, name
    assert run_in_process(head + "print([1, {2: 'x'}])").stdout == "[1, {2: 'x'}]\n"
    assert not (tmp_path / "x").exists()


def test_the_process_starts_without_pytorch() -> None:
    code = "import json; import stylegan_inversion.checkpoints.reading_process; print(json.dumps(sorted(sys.modules)))"
    modules = set(json.loads(run_in_process(code).stdout))
    assert not modules & {"torch", "numpy", "safetensors", "pickle", "subprocess", "socket", "ctypes"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on memory are Linux's")
def test_limits(tmp_path: Path) -> None:
    head = f"from stylegan_inversion.checkpoints.reading_process import _limit; _limit({200 * 2**20}, 1, 1000); "
    ended = run_in_process(head + "x = bytearray(400 * 2**20)")
    assert "MemoryError" in ended.stderr
    assert run_in_process(head + "\nwhile True: pass").returncode in (-24, -9)
    ended = run_in_process(
        head + f"file = open({str(tmp_path / 'x')!r}, 'wb'); file.write(bytes(50_000)); file.flush()"
    )
    assert "File too large" in ended.stderr or ended.returncode == -25


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on memory are Linux's")
def test_a_file_that_needs_more_memory_than_it_may(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good.write_bytes(whole(b"](" + (b"X\xff\xff\0\0" + "é".encode() * 32767 + b"x") * 600 + b"e"))
    monkeypatch.setattr(sandbox, "_run", with_memory(60 * 2**20, sandbox._run))
    with pytest.raises(
        CheckpointError, match=r"x\.pt: Reading it takes more than 60 MB, which a sound file does not\."
    ):
        read_checkpoint(good)


def with_memory(memory: int, run: Any) -> Any:
    return lambda path, folder, _, *rest: run(path, folder, memory, *rest)


def test_the_disk_is_full(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = sandbox._START.replace(
        "main(sys.argv[2:])",
        "import stylegan_inversion.checkpoints.reading_process as p\n"
        "def full(*_): raise OSError(28, 'No space left on device')\n"
        "p.write_storages = full\nmain(sys.argv[2:])",
    ).replace("; from", "\nfrom")
    monkeypatch.setattr(sandbox, "_START", start)
    with pytest.raises(CheckpointError, match=r"could not be written to the temporary folder: .*No space left"):
        read_checkpoint(good)


@pytest.mark.parametrize(
    "data",
    [whole(b"]" * 3_000_000), whole(b"Nr\xff\xff\xff\x7f"), whole(b"]q\0" + b"](h\0h\0eq\0" * 60)],
    ids=["operations", "index", "doubling"],
)
def test_bombs_end_soon(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    start = time.monotonic()
    try:
        read_checkpoint(tmp_path / "x")
    except CheckpointError:
        pass
    assert time.monotonic() - start < 20


def test_pickled_module(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(nvidia_pickle(nvidia()))
    read = read_checkpoint(tmp_path / "x.pkl")
    module = read["G_ema"]
    assert isinstance(module, PickledModule) and module.class_name == "Generator"
    assert read["training_set_kwargs"]["max_size"] == 9
    expected = nvidia()
    state_dict = module.state_dict()
    assert state_dict.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state_dict.items())
    assert dict(module.modules())["mapping.fc0."].state["activation"] == "lrelu"


def test_buffers_that_are_not_saved() -> None:
    state = {"_buffers": {"a": torch.ones(1), "b": torch.zeros(1)}, "_non_persistent_buffers_set": ["b"]}
    assert PickledModule("X", state).state_dict().keys() == {"a"}
    assert PickledModule("X", {}).state_dict() == {}


def test_a_crash_of_the_reader_is_no_attack(tmp_path: Path) -> None:
    """Whatever goes wrong inside, the file is called damaged: a traceback would open files, and trip the guard."""
    deep = b"\x80\x02ctorch\ndevice\n(" + b"]" * 3000 + b"a" * 2999 + b"tR."
    path = tmp_path / "deep.pkl"
    path.write_bytes(deep)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "would have opened or run" not in str(caught.value)
