"""Hostile pickles run nothing; mutated files end in one kind of error; each message."""

import json
import pickle
import random
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stylegan_inversion.checkpoints.allowed import table
from stylegan_inversion.checkpoints.archive import read_container
from stylegan_inversion.checkpoints.reading_process import Describer
from stylegan_inversion.checkpoints.sandbox import read_checkpoint

from stylegan_inversion.checkpoints import archive
from stylegan_inversion.checkpoints.unpickle import Budget, Unpickler
from stylegan_inversion.errors import CheckpointError
from tests.checkpoints.hostile_files import (
    PREAMBLE,
    SENTINEL,
    arguments,
    call,
    named,
    nested,
    payloads,
    persistent_object,
    text,
    whole,
    zipped,
)
from tests.checkpoints.official_files import nvidia, nvidia_pickle, saved

ROOT = Path(__file__).parents[2]


def load(body: bytes, protocol: int = 2) -> Any:
    return read_container(memoryview(whole(body, protocol)))


def describe(data: bytes) -> Any:
    return Describer(len(data)).describe(read_container(memoryview(data)))


def test_hostile_files_run_nothing(tmp_path: Path) -> None:
    """In a process of its own, under an audit hook: no event, no sentinel, and the right message for each."""
    hostile = payloads(tmp_path / SENTINEL)
    assert len(hostile) >= 70
    for name, (data, _) in hostile.items():
        (tmp_path / f"{name}.bin").write_bytes(data)
    script = [sys.executable, "-m", "tests.checkpoints.hostile_files", str(tmp_path)]
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    report = json.loads(ended.stdout)
    assert report["events"] == []
    assert not (tmp_path / SENTINEL).exists()
    assert report["messages"].keys() == hostile.keys()
    for name, (_, pattern) in hostile.items():
        message = report["messages"][name]
        assert re.search(pattern, message) if pattern else message == "", (name, message)


def test_the_payloads_do_run_in_pickle(tmp_path: Path) -> None:
    """Python's own unpickler runs them: the test above would see it."""
    data, _ = payloads(tmp_path / SENTINEL)["posix_system"]
    pickle.loads(data)
    assert (tmp_path / SENTINEL).exists()


def test_hostile_files_through_the_process(tmp_path: Path) -> None:
    hostile = payloads(tmp_path / SENTINEL)
    for name in ("exec", "nested", "zip", "legacy_value", "torchscript"):
        (tmp_path / name).write_bytes(hostile[name][0])
        with pytest.raises(CheckpointError, match=hostile[name][1]):
            read_checkpoint(tmp_path / name)
    (tmp_path / "source").write_bytes(hostile["source_is_kept_unread"][0])
    assert read_checkpoint(tmp_path / "source").state == {}
    assert not (tmp_path / SENTINEL).exists()


def test_python_and_numpy_values_of_every_protocol() -> None:
    value = {
        "numbers": [0, 255, 65535, -1, 2**31, -(2**40), 0.5, True, None],
        "text": ["ä", "x" * 300],
        7: (1, (2, 3), ()),
        "set": {1},
        "scalars": [np.float32(0.5), np.int64(3), np.bool_(True), np.float16(2)],
        "bytes": b"abc",
    }
    expected = {
        "numbers": value["numbers"],
        "text": value["text"],
        7: [1, [2, 3], []],
        "set": [1],
        "scalars": [0.5, 3, True, 2],
        "bytes": "(3 bytes)",
    }

    def plain(described: Any) -> Any:
        if not isinstance(described, list):
            return described
        if described[0] == "list":
            return [plain(item) for item in described[1:]]
        return {key: plain(item) for key, item in described[1:]}

    for protocol in (2, 3, 4, 5):
        assert plain(describe(pickle.dumps(value, protocol))) == expected


def test_python_2_and_frozen_values() -> None:
    assert load(b"U\x03abcT\x01\x00\x00\x00d\x86") == ("abc", "d")
    assert load(b"(K\1K\1\x91", 4) == [1, 1]
    assert load(b"K\1K\2(K\x030" + b"1") == 2  # POP, POP_MARK
    assert load(named("pathlib", "PosixPath") + arguments("/", "a") + b"R") == "/a"
    assert load(named("torch", "device") + arguments("cuda", b"K\1") + b"R") == "cuda:1"
    assert load(named("builtins", "bytes") + b")R") == b""
    assert load(named("collections", "OrderedDict") + b"]" + arguments("a", b"K\1") + b"a\x85R") == {"a": 1}


TENSOR = named("torch._utils", "_rebuild_tensor_v2")
DTYPE = named("numpy", "dtype") + arguments("f4") + b"R"
OBJECT = named("torch_utils.persistence", "_reconstruct_persistent_obj")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", r"Its pickle is damaged near byte 3 \(IndexError: pop from empty list\)\. Fetch it again\."),
        (b"h\x05", r"damaged near byte 4 \(KeyError"),
        (b"]K\1K\2\x85s", r"Its pickle fills a int as if it were a dict|fills a"),
        (b"}(K\1u", r"Its pickle has a key without a value"),
        (b"}]K\1s", r"A dict of the file has a key of type list"),
        (b"B\xff\xff\xff\x7f", r"It is cut short: 2147483647 bytes are announced at byte 7 of 8\. Fetch it again"),
        (b"\x8b\xff\xff\xff\x7f", r"an integer of 2147483647 bytes"),
        (b"c" + b"x" * 400, r"a name without an end at byte 3"),
        (b"c\xff\n\n", r"damaged near byte .*UnicodeDecodeError"),
        (b"\x80\x06", r"Its pickle is of protocol 6; 2 to 5 are read\."),
        (
            TENSOR + arguments("x", b"K\0", b")", b")") + b"R",
            r"has a storage, an offset, a shape or strides that are none",
        ),
        (
            named("torch._utils", "_rebuild_parameter") + arguments("x") + b"R",
            r"A parameter of the file holds no tensor",
        ),
        (named("torch._utils", "_rebuild_tensor_v2") + b")R", r"damaged near byte .*TypeError"),
        (OBJECT + b"}\x85R", r"without the name of its class"),
        (OBJECT + b"}" + text("class_name") + text("G") + b"s\x85R", r"a G of NVIDIA's `persistence` without a state"),
        (named("_codecs", "encode") + arguments(b"K\1", "latin1") + b"R", r"encodes something that is no text"),
        (named("_codecs", "encode") + arguments("λ", "latin1") + b"R", r"damaged near byte .*UnicodeEncodeError"),
        (named("pathlib", "PosixPath") + b"K\1\x85R", r"A path of the file is made of something that is no text"),
        (named("numpy", "dtype") + arguments("O8") + b"R", r"a NumPy array of type 'O8'; only numbers are read"),
        (DTYPE + arguments(b"K\3", "<", b"K\1", b"N", b"N") + b"b", r"a NumPy array of records"),
        (DTYPE + arguments(b"K\3", ">", b"N", b"N", b"N") + b"b0" + b"h\0", r"KeyError"),
        (named("numpy.core.multiarray", "scalar") + b"(" + DTYPE + b"C\x08" + bytes(8) + b"tR", r"holds 2 numbers"),
        (named("numpy.core.multiarray", "scalar") + b"(" + DTYPE + b"]tR", r"a NumPy array of Python objects"),
        (named("numpy.core.multiarray", "scalar") + b"(NC\x01atR", r"a type or byte order that is not read"),
        (
            named("numpy._core.numeric", "_frombuffer") + b"(C\x04" + bytes(4) + DTYPE + b"K\2\x85" + text("C") + b"tR",
            r"bey",
        ),
        (
            named("numpy._core.numeric", "_frombuffer") + b"(C\x05" + bytes(5) + DTYPE + b")" + text("C") + b"tR",
            r"5 bytes",
        ),
        (
            named("numpy._core.numeric", "_frombuffer")
            + b"(C\x04"
            + bytes(4)
            + DTYPE
            + b"J"
            + b"\xff" * 4
            + b"\x85"
            + text("C")
            + b"tR",
            r"a shape that is none",
        ),
        (nested(b"\x80\x02K\1."), r"is not stored as PyTorch stores it"),
        (nested(PREAMBLE + whole(b"K\1") + whole(b"]")), r"is not stored as PyTorch stores it"),
        (b"\x95" + bytes(8) + b"0", r"IndexError"),
    ],
)
def test_damaged_pickles(body: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(body)


def test_backward_hooks() -> None:
    hooks = b"}" + text("a") + b"K\1s"
    with pytest.raises(CheckpointError, match=r"carries backward hooks, which are functions; weights have none"):
        load(TENSOR + b"(NK\0))\x89" + hooks + b"tR")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_arrays_and_long_texts(protocol: int, tmp_path: Path) -> None:
    """Bytes of protocol 2 travel as text: beyond 64 kB it is decoded in steps, within a character or not."""
    rng = np.random.default_rng(0)
    value = {"small": np.arange(6.0).reshape(2, 3).T, "large": rng.integers(0, 256, (3, 1_000_000), dtype=np.uint8)}
    (tmp_path / "x").write_bytes(pickle.dumps(value, protocol))
    read = read_checkpoint(tmp_path / "x")
    for name, array in value.items():
        assert torch.equal(read[name], torch.from_numpy(np.ascontiguousarray(array)))


def test_a_long_text_is_encoded_once() -> None:
    twice = (named("_codecs", "encode") + b"h\0" + text("latin1") + b"\x86R") * 2
    first, second = load(text("é" * 70_000) + b"q\0" + twice + b"\x86")
    assert first is second and first == b"\xe9" * 70_000
    assert describe(whole(text("é" * 70_000))) == "(140000 bytes)"


def storage(numel: bytes = b"K\2", key: str = "0", kind: str = "FloatStorage", extra: bytes = b"") -> bytes:
    return arguments("storage", named("torch", kind), key, "cpu", numel + extra) + b"Q"


def tensor(offset: int = 0, shape: bytes = b"K\2\x85", stride: bytes = b"K\1\x85", **changes: Any) -> bytes:
    return TENSOR + b"(" + storage(**changes) + b"K" + bytes([offset]) + shape + stride + b"\x89}tR"


@pytest.mark.parametrize(
    ("body", "members", "message"),
    [
        (tensor(), {}, r"The data of tensor '0' is missing in the file"),
        (tensor(), {"data__0": bytes(12)}, r"12 bytes long, but 2 numbers of F32 were announced"),
        (tensor(offset=1), {"data__0": bytes(8)}, r"shape \(2,\) reaches beyond its storage: to 3 of 2 numbers"),
        (tensor(stride=b"K\7\x85"), {"data__0": bytes(8)}, r"to 8 of 2 numbers"),
        (tensor(stride=b")"), {"data__0": bytes(8)}, r"has 1 sizes and 0 strides"),
        (tensor(shape=b"J\xff\xff\xff\xff\x85"), {"data__0": bytes(8)}, r"a shape or strides that are none"),
        (b"(" + storage() + storage(kind="IntStorage") + b"t", {"data__0": bytes(8)}, r"the same data in two ways"),
        (storage(numel=b"N"), {"data__0": b""}, r"refers to a tensor's data of an unknown kind"),
        (storage(extra=b")"), {"data__0": bytes(8)}, r"saved by PyTorch 0\.3 or older"),
        (arguments("module", "x") + b"Q", {}, r"refers to something that is no tensor's data"),
        (tensor(kind="BoolStorage"), {"data__0": b"\0\x02"}, r"A tensor of booleans holds other values"),
    ],
)
def test_damaged_tensors(body: bytes, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        describe(zipped(whole(body), **members))


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (PREAMBLE[:15] + whole(b"K\7"), r"It is of version 7 of PyTorch's old format"),
        (PREAMBLE[:21] + whole(b"}"), r"saved on a big-endian machine"),
        (PREAMBLE + whole(tensor()) + whole(b"]"), r"Its list of tensors differs from what its pickle describes"),
        (PREAMBLE + whole(tensor()) + whole(b"]X\1\0\0\x000a") + struct.pack("<q", 3), r"2 numbers is stored as 3"),
        (
            PREAMBLE + whole(tensor()) + whole(b"]X\1\0\0\x000a") + struct.pack("<q", 2),
            r"cut short: 8 bytes are announced",
        ),
    ],
)
def test_damaged_streams(stream: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_container(memoryview(stream))


def test_what_is_no_value() -> None:
    with pytest.raises(CheckpointError, match=r"It holds a Storage where a checkpoint holds tensors"):
        describe(zipped(whole(storage()), data__0=bytes(8)))
    with pytest.raises(CheckpointError, match=r"It holds a Array where"):
        describe(whole(call("numpy.core.multiarray", "_reconstruct")))


def test_budget_is_shared_by_nested_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "Budget", lambda: Budget(300))
    inner = PREAMBLE + whole(storage(numel=b"K\0")) + whole(b"]X\1\0\0\x000a") + struct.pack("<q", 0)
    read_container(memoryview(whole(nested(inner) * 3)))
    with pytest.raises(CheckpointError, match=r"takes more than 1000000 operations"):
        read_container(memoryview(whole(nested(inner) * 12)))


def test_arguments_are_counted() -> None:
    """A short pickle cannot have a long list copied again and again."""
    machine = Unpickler(
        memoryview(whole(b"](" + b"N" * 500 + b"eq\0" + (named("builtins", "set") + b"h\0\x85R") * 3)),
        known=table(None),
        budget=Budget(2_000),
    )
    with pytest.raises(CheckpointError, match=r"operations"):
        machine.load()


GOOD = {
    "zip": saved({"a": torch.arange(6.0).reshape(2, 3), "b": [1, "x", torch.ones(2, dtype=torch.int64)]}),
    "legacy": saved({"a": torch.arange(6.0).reshape(2, 3), "b": {"c": 1.5}}, legacy=True),
    "nvidia": nvidia_pickle({key: nvidia()[key] for key in ("mapping.fc0.weight", "mapping.w_avg")}),
    "protocol_2": nvidia_pickle({key: nvidia()[key] for key in ("mapping.fc0.weight",)}, protocol=2),
    "protocol_5": pickle.dumps({"a": np.arange(6.0), "b": {1, 2}}, 5),
    "source": whole(persistent_object("x")),
}


@pytest.mark.parametrize("kind", GOOD)
@settings(max_examples=150)
@given(st.data())
def test_mutated_files_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    mutated = bytearray(GOOD[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        action = data.draw(st.sampled_from(["flip", "cut", "drop", "insert"]))
        if action == "flip":
            mutated[at] ^= data.draw(st.integers(1, 255))
        elif action == "drop":
            del mutated[at : at + data.draw(st.integers(1, 8))]
        elif action == "insert":
            mutated[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            del mutated[max(at, 1) :]
        mutated = mutated or bytearray(b"x")
    try:
        describe(bytes(mutated))
    except CheckpointError as e:
        assert 10 < len(str(e)) < 600


def test_a_flipped_bit_of_a_zip_is_found() -> None:
    """Where members have a checksum, every flipped bit of the numbers is found."""
    rng = random.Random(0)
    numbers = GOOD["zip"].index(np.arange(6, dtype=np.float32).tobytes())
    for _ in range(24):
        mutated = bytearray(GOOD["zip"])
        mutated[numbers + rng.randrange(24)] ^= 1 << rng.randrange(8)
        with pytest.raises(CheckpointError, match=r"Its member 'archive/data/\d' is damaged: its checksum differs"):
            describe(bytes(mutated))
