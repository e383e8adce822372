"""Configs and weights in files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError
from tests.hub_parts import assert_same


def test_config_round_trip(tmp_path: Path) -> None:
    config = {"a": 1, "b": [1.5, "ü"], "c": None}
    hub.write_config(config, tmp_path / "new" / "folder")
    assert hub.read_config(tmp_path / "new" / "folder") == config
    hub.write_config({"a": 2}, tmp_path, name="other.json")
    assert json.loads((tmp_path / "other.json").read_text()) == {"a": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config.json cannot be read as JSON: .*No such file"),
        (b"{", r"config.json cannot be read as JSON: "),
        (b"\xff\xfe{}", r"config.json cannot be read as JSON: .*utf-8"),
        (b"[" * 100_000, r"config.json cannot be read as JSON: "),
        (b"[1]", r"config.json must hold a JSON object, got list\."),
        (b"null", r"config.json must hold a JSON object, got NoneType\."),
        (b"{}" + b" " * 1_000_000, r"config.json is larger than 1000000 bytes, so it is not a config\."),
    ],
    ids=["missing", "cut", "not UTF-8", "deep", "list", "null", "large"],
)
def test_bad_config(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        hub.read_config(tmp_path)


def test_tensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3), "c": torch.ones(2, requires_grad=True)}
    hub.write_tensors(tensors, path)
    assert_same(hub.read_tensors(path), {key: tensor.detach() for key, tensor in tensors.items()})


@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "other", "folder"])
def test_damaged_tensors(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    content = path.read_bytes()
    path.unlink()
    if fault == "folder":
        path.mkdir()
    elif fault != "missing":
        path.write_bytes({"empty": b"", "cut": content[:-10], "other": b"PK\x03\x04" * 20}[fault])
    with pytest.raises(CheckpointError, match=r"x.safetensors cannot be read as safetensors: "):
        hub.read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4" + b"\0" * 90, "it is a zip archive, perhaps PyTorch's .pt, which `from_single_file` reads. Fetch"),
        (b"\x80\2}q\0.", "it is a pickle, which `from_single_file` reads"),
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "it is a web page. Fetch or save it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "it is a pointer of Git LFS; `git lfs pull` fetches the file",
        ),
    ],
)
def test_files_that_were_only_renamed(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors cannot be read as safetensors: {message}"):
        hub.read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("start", [0x80, ord("P"), ord("<"), 0x4B50])
def test_a_header_whose_length_looks_like_another_format(start: int, tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "x").write_bytes(start.to_bytes(8, "little") + text.ljust(start) + b"\0\0\x80?")
    assert hub.read_tensors(tmp_path / "x")["a"].tolist() == [1.0]


def test_a_header_that_would_take_minutes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"a{i}": torch.zeros(0) for i in range(40_000)}, path)
    with pytest.raises(CheckpointError, match=r"its header would have \d+ bytes, and at most 2000000 are read"):
        hub.read_tensors(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensors_that_are_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"good": torch.ones(3), "bad": torch.tensor([0.0, value], dtype=dtype)}, path)
    with pytest.raises(CheckpointError, match=r"x.safetensors: tensor 'bad' holds NaN or infinity\."):
        hub.read_tensors(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.write_config({"a": 1}, tmp_path)
    hub.write_tensors({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(_tensors: dict[str, Tensor], path: Path, **_kwargs: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(hub, "save_file", half)
    with pytest.raises(CheckpointError, match=r"could not be written: No space left.*before is untouched"):
        hub.write_tensors({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(TypeError, match=r"<object object at .*> is not a number\."):
        hub.write_config({"a": object()}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_copy_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"new")
    hub.copy_file(tmp_path / "a", tmp_path / "folder" / "b")
    assert (tmp_path / "folder" / "b").read_bytes() == b"new"
    before = (tmp_path / "folder" / "b").stat()
    hub.copy_file(tmp_path / "a", tmp_path / "folder" / "b")
    assert (tmp_path / "folder" / "b").stat() == before  # the same already: left alone

    def half(_source: Path, path: Path) -> None:
        path.write_bytes(b"ha")
        raise OSError("No space left on device")

    monkeypatch.setattr(hub.shutil, "copyfile", half)
    (tmp_path / "a").write_bytes(b"newer")
    with pytest.raises(CheckpointError, match="could not be written: No space left"):
        hub.copy_file(tmp_path / "a", tmp_path / "folder" / "b")
    assert [path.read_bytes() for path in (tmp_path / "folder").iterdir()] == [b"new"]

    monkeypatch.setattr(Path, "write_text", lambda *_: half(tmp_path, _[0]))
    with pytest.raises(CheckpointError, match=r"config.json could not be written: No space left"):
        hub.write_config({"a": 2}, tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["b"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / hub.CONFIG_NAME)
    (tmp_path / "x.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON: it is a folder or a device"):
        hub.read_config(tmp_path)
    for read in (hub.read_tensors, hub.read_metadata):
        with pytest.raises(CheckpointError, match=r"read as safetensors: it is a folder or a device"):
            read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("dtype", "size", "shape", "found"),
    [
        ("F8_E4M3", 1, [2], r"torch\.float8_e4m3fn with 1 axes"),
        ("C64", 8, [2], r"torch\.complex64 with 1 axes"),
        ("F32", 4, [1] * 65 + [2], r"torch\.float32 with 66 axes"),
    ],
)
def test_tensors_that_no_network_has(dtype: str, size: int, shape: list[int], found: str, tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 2 * size]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2 * size))
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: tensor 'a' is {found}, which no network here has\."):
        hub.read_tensors(tmp_path / "x.safetensors")


def test_sweep(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    foreign = [".env.template", ".vimrc.original", ".tmpabcdef", f".config.json.{os.getppid()}.0123abcd.partial"]
    kept = [tmp_path / name for name in (hub.CONFIG_NAME, *foreign)]
    (tmp_path / ".git.old_copy").mkdir()
    orphans = [tmp_path / f".{hub.CONFIG_NAME}.{dead.pid}.0123abcd.partial"]
    for path in kept + orphans:
        path.write_text("x")
    stage = tmp_path / f".files.{dead.pid}.89abcdef.partial"
    (stage / "generator").mkdir(parents=True)
    hub.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / ".git.old_copy"])
    hub.sweep(tmp_path / "nothing")


@pytest.mark.skipif(os.name == "nt", reason="there is no umask")
def test_files_are_as_private_as_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        hub.write_tensors({"a": torch.ones(1)}, tmp_path / "x.safetensors")
        hub.write_config({}, tmp_path)
    finally:
        os.umask(before)
    hub.write_config({}, tmp_path, name="open.json")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"x.safetensors": 0o600, "config.json": 0o600, "open.json": 0o666 & ~before}
