"""Configs, weights and networks in files, sound and damaged."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stylegan_inversion import storage
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from tests.conftest import state

CONFIG = GeneratorConfig(16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=4)


@dataclass(frozen=True)
class TinyConfig:
    width: int = 4
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"`width` must be >= 1, got {self.width}.")


class Tiny(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, len(config.sizes))
        self.norm = nn.BatchNorm1d(config.width)  # brings an int64 tensor


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and all(torch.equal(tensor, b[key]) for key, tensor in a.items())


# --- files


def test_round_trips(tmp_path: Path) -> None:
    config = {"a": 1, "b": [1.5, "ü"], "c": None}
    storage.write_config(config, tmp_path / "new" / "folder")
    assert storage.read_config(tmp_path / "new" / "folder") == config
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3), "c": torch.ones(2, requires_grad=True)}
    storage.write_tensors(tensors, tmp_path / "x.safetensors", metadata={"text": "ü"})
    assert_same(
        storage.read_tensors(tmp_path / "x.safetensors"), {key: tensor.detach() for key, tensor in tensors.items()}
    )
    assert storage.read_header(tmp_path / "x.safetensors")[1]["text"] == "ü"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config.json cannot be read as JSON: .*No such file"),
        (b"{", r"config.json cannot be read as JSON: "),
        (b"\xff\xfe{}", r"config.json cannot be read as JSON: .*utf-8"),
        (b"[" * 100_000, r"config.json cannot be read as JSON: "),
        (b"[1]", r"config.json cannot be read as JSON: it must hold a JSON object, got list\. Fetch or save it again"),
        (b"{}" + b" " * 1_000_000, r"config.json cannot be read as JSON: it is larger than 1000000 bytes"),
    ],
    ids=["missing", "cut", "not UTF-8", "deep", "list", "large"],
)
def test_a_config_that_cannot_be_read(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        storage.read_config(tmp_path)


def raw_tensors(dtype: str, size: int, shape: list[int]) -> bytes:
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 2 * size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(2 * size)


def saved(tensors: dict[str, Tensor], folder: Path) -> bytes:
    save_file(tensors, folder / "saved")
    return (folder / "saved").read_bytes()


UNREADABLE: dict[str, tuple[Callable[[Path], bytes | None], str]] = {
    "missing": (lambda _: None, "cannot be read as safetensors: .*No such file"),
    "empty": (lambda _: b"", "cannot be read as safetensors: "),
    "cut": (lambda folder: saved({"a": torch.ones(100)}, folder)[:-10], "cannot be read as safetensors: "),
    "pickle": (
        lambda _: b"\x80\2}q\0.    ",
        r"header would have .* Perhaps it is a .pt or .pkl file, which `from_single",
    ),
    "page": (lambda _: b"<!DOCTYPE html><title>Quota exceeded</title>", "or a web page. Fetch or save it again"),
    "minutes": (
        lambda folder: saved({f"a{i}": torch.zeros(0) for i in range(40_000)}, folder),
        r"its header would have \d+ bytes, and at most 2000000 are read",
    ),
    "NaN": (lambda folder: saved({"a": torch.full((2,), float("nan"))}, folder), "'a' holds NaN or infinity"),
    "dtype": (lambda _: raw_tensors("F8_E4M3", 1, [2]), r"tensor 'a' is torch\.float8_e4m3fn with 1 axes, which no"),
    "axes": (lambda _: raw_tensors("F32", 4, [1] * 65 + [2]), r"tensor 'a' is torch\.float32 with 66 axes"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    make, message = UNREADABLE[kind]
    content = make(tmp_path)
    if content is not None:
        (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors.*{message}"):
        storage.read_tensors(tmp_path / "x.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / storage.CONFIG_NAME)
    (tmp_path / "x.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON: it is a folder or a device"):
        storage.read_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"read as safetensors: it is a folder or a device"):
        storage.read_tensors(tmp_path / "x.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_config({"a": 1}, tmp_path)
    storage.write_tensors({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(path: Path, *_: Any, **_kwargs: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(storage, "save_file", lambda _, path, **__: half(path))
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(CheckpointError, match=r"could not be written: No space left.*before is untouched; make room"):
        storage.write_tensors({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config.json could not be written: No space left"):
        storage.write_config({"a": 2}, tmp_path)
    with pytest.raises(TypeError, match=r"<object object at .*> is no(t a)? number\."):
        storage.write_config({"a": object()}, tmp_path)
    with pytest.raises(CheckpointError, match=r"could not be written: "):
        storage.write_tensors({}, tmp_path / "config.json" / "below a file")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_program_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (storage.CONFIG_NAME, ".env.template", ".vimrc.partial", ".x.0123abcg.partial")]
    left = [tmp_path / ".files.89abcdef.partial", tmp_path / ".config.json.0123abcd.partial"]
    (left[0] / "generator").mkdir(parents=True)
    for path in [*kept, left[1]]:
        path.write_text("x")
    storage.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, *left]), "another program may be writing them"
    for path in [*kept, *left]:
        os.utime(path, (0, 0))
    storage.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    storage.sweep(tmp_path / "nothing")


@pytest.mark.skipif(os.name == "nt", reason="there is no umask")
def test_files_are_as_private_as_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        storage.write_tensors({"a": torch.ones(1)}, tmp_path / "x.safetensors")
        storage.write_config({}, tmp_path)
    finally:
        os.umask(before)
    storage.write_config({}, tmp_path, name="open.json")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"x.safetensors": 0o600, "config.json": 0o600, "open.json": 0o666 & ~before}


# --- networks


def test_a_network_comes_back(tmp_path: Path) -> None:
    generator = Generator(CONFIG)
    before = state(generator)
    storage.save_module(generator, tmp_path / "generator")
    assert_same(state(generator), before)
    assert generator.training and all(parameter.requires_grad for parameter in generator.parameters())
    assert sorted(path.name for path in (tmp_path / "generator").iterdir()) == ["config.json", "model.safetensors"]
    random_state = torch.get_rng_state()
    loaded = storage.load_module(Generator, GeneratorConfig, tmp_path / "generator")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loaded.config == CONFIG
    assert_same(state(loaded), before)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    w_plus = torch.zeros(1, generator.num_ws, 8)
    frozen = generator.requires_grad_(False)  # one with gradients keeps its channels in another order
    assert torch.equal(loaded.synthesis(w_plus), frozen.synthesis(w_plus))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear.bias": None, "extra": torch.ones(1)}, r"^the file does not fit Tiny: missing linear.bias; unexpec"),
        ({"linear.bias": torch.ones(1)}, r"linear.bias is \(1,\), not \(2,\)\.$"),  # would broadcast
        ({"linear.bias": torch.ones(2, dtype=torch.int64)}, r"linear.bias is torch.int64, not torch.float32\.$"),
        ({f"extra{i}": torch.ones(1) for i in range(8)}, r"unexpected extra3; unexpected extra4 and 3 more\.$"),
    ],
)
def test_weights_that_do_not_fit_leave_the_network_as_it_was(change: dict[str, Any], message: str) -> None:
    module, other = Tiny(TinyConfig()), Tiny(TinyConfig())
    before = state(module)
    weights = {key: tensor for key, tensor in {**state(other), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        storage.fill_module(module, weights, source="the file")
    assert_same(state(module), before)
    assert module.training and all(parameter.requires_grad for parameter in module.parameters())
    storage.fill_module(module, state(other), source="the file")
    assert_same(state(module), state(other))
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
