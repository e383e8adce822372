"""Reading foreign files: what is sound is read to the bit, what is hostile runs nothing, what is damaged says so."""

import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from stylegan_inversion.checkpoints import unpickle
from stylegan_inversion.checkpoints.read import read_checkpoint
from stylegan_inversion.checkpoints.unpickle import PickledModule
from stylegan_inversion.errors import CheckpointError
from tests.checkpoints.hostile_files import (
    PREAMBLE,
    SENTINEL,
    arguments,
    call,
    named,
    nested,
    npy,
    payloads,
    persistent_object,
    storage_stream,
    text,
    whole,
    zip_of,
    zipped,
)
from tests.checkpoints.official_files import nvidia, nvidia_pickle, saved

ROOT = Path(__file__).parents[2]


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read_bytes(data: bytes) -> Any:
        (tmp_path / "file").unlink(missing_ok=True)
        (tmp_path / "file").write_bytes(data)
        return read_checkpoint(tmp_path / "file")

    return read_bytes


# Hostile files.


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
    """The positive control: Python's own unpickler runs them, so the test above would see it."""
    data, _ = payloads(tmp_path / SENTINEL)["posix_system"]
    pickle.loads(data)
    assert (tmp_path / SENTINEL).exists()


def test_objects_are_kept_without_their_code(read: Any) -> None:
    assert read(whole(persistent_object("raise SystemExit"))).state == {}
    value = read(nvidia_pickle(nvidia()))
    module, expected = value["G_ema"], nvidia()
    assert module.class_name == "Generator" and value["training_set_kwargs"]["max_size"] == 9
    assert module.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in module.state_dict().items())
    assert dict(module.modules())["mapping.fc0."].state["activation"] == "lrelu"
    state = {"_buffers": {"a": torch.ones(1), "b": torch.zeros(1)}, "_non_persistent_buffers_set": ["b"]}
    assert PickledModule("X", state).state_dict().keys() == {"a"}


# Sound files.


def test_every_kind_of_number(tmp_path: Path) -> None:
    kinds = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    tensors = {kind: torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, kind)) for kind in kinds}
    tensors |= {
        "odd": torch.ones(3, dtype=torch.int8),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.0),
        "noise": torch.ones(1, 1, 1024, 1024),
    }
    views = {"part": tensors["float32"][1:, 1:], "turned": tensors["int64"].t(), "wide": torch.ones(1).expand(4)}
    files = {
        "safetensors": (save({**tensors}), tensors),
        "zip": (saved({**tensors, **views}), {**tensors, **views}),
        "legacy": (saved({**tensors, **views}, legacy=True), {**tensors, **views}),
    }
    for name, (data, expected) in files.items():
        (tmp_path / name).write_bytes(data)
        for _ in range(2):
            read = read_checkpoint(tmp_path / name)
            assert read.keys() == expected.keys()
            for key, tensor in expected.items():
                assert read[key].dtype == tensor.dtype and torch.equal(read[key], tensor), (name, key)
            for tensor in read.values():
                tensor.zero_()  # views of its own: the file stays


@pytest.mark.parametrize("protocol", [2, 4])
def test_values_of_python_and_numpy(protocol: int, read: Any) -> None:
    large = np.random.default_rng(0).integers(0, 256, (3, 1_000_000), dtype=np.uint8)
    value = {
        "numbers": [0, 255, 65535, -1, 2**31, -(2**40), 0.5, True, None],
        "text": ["ä", "x" * 300],
        7: (1, (2, 3), ()),
        "set": {1},
        "scalars": [np.float32(0.5), np.int64(3), np.bool_(True), np.float16(2)],
        "bytes": b"abc",
        "arrays": [np.arange(6.0).reshape(2, 3).T, large],
    }
    found = read(pickle.dumps(value, protocol))
    for array, tensor in zip(value["arrays"], found.pop("arrays")):  # type: ignore[arg-type]
        assert torch.equal(tensor, torch.from_numpy(np.ascontiguousarray(array)))
    assert found == {
        "numbers": value["numbers"],
        "text": value["text"],
        7: [1, [2, 3], []],
        "set": [1],
        "scalars": [0.5, 3, True, 2],
        "bytes": "(3 bytes)",
    }


def test_values_of_python_2_and_classes(read: Any) -> None:
    items = b"]" + arguments("a", b"K\1") + b"a\x85R"
    for body, expected in (
        (b"U\x03abcT\x01\x00\x00\x00d\x86", ["abc", "d"]),
        (named("pathlib", "PosixPath") + arguments("/", "a") + b"R", "/a"),
        (named("torch", "device") + arguments("cuda", b"K\1") + b"R", "cuda:1"),
        (named("torch", "float32"), "torch.float32"),
        (named("collections", "OrderedDict") + items, {"a": 1}),
        (b"Nr\xff\xff\xff\x7f", None),  # a large index of the memo
        (call("numpy.core.multiarray", "_reconstruct"), "(_NumPy)"),
    ):
        assert read(whole(body)) == expected
    assert len(read(many_views(10))) == 10


@pytest.mark.parametrize("dtype", ["f8", "u1", "?"])
def test_npy(dtype: str, tmp_path: Path) -> None:
    for array in (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.asarray(1)):
        np.save(tmp_path / "x.npy", array.astype(dtype))
        expected = torch.from_numpy(np.array(array.astype(dtype), order="C"))
        assert torch.equal(read_checkpoint(tmp_path / "x.npy"), expected)


def test_a_zip_without_checksums_and_an_odd_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(2)}, "-c ä;$(x)'\".pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(Path("-c ä;$(x)'\".pt"))["a"], torch.ones(2))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_memory_that_reading_takes(tmp_path: Path) -> None:
    """Only the pages that are looked at: an optimiser's state in the file takes none."""
    torch.save({"g_ema": {}, "g_optim": {"state": {0: torch.ones(20_000_000)}}}, tmp_path / "x.pt")  # 80 MB

    def held() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    before = held()
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    assert held() - before < 50e6 and checkpoint["g_optim"]["state"][0].shape == (20_000_000,)


# What is refused.


def safetensors(**entry: Any) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


def storage(numel: bytes = b"K\2", key: str = "0", kind: str = "FloatStorage", extra: bytes = b"") -> bytes:
    return arguments("storage", named("torch", kind), key, "cpu", numel + extra) + b"Q"


DTYPE = named("numpy", "dtype") + arguments("f4") + b"R"
TENSOR = named("torch._utils", "_rebuild_tensor_v2")


def tensor(offset: int = 0, shape: bytes = b"K\2\x85", stride: bytes = b"K\1\x85", **changes: Any) -> bytes:
    return TENSOR + b"(" + storage(**changes) + b"K" + bytes([offset]) + shape + stride + b"\x89}tR"


def in_zip(**changes: Any) -> bytes:
    return zipped(whole(tensor(**changes)), data__0=bytes(8))


def from_buffer(size: int, shape: bytes) -> bytes:
    data = b"C" + bytes([size]) + bytes(size)
    return whole(named("numpy._core.numeric", "_frombuffer") + b"(" + data + DTYPE + shape + text("C") + b"tR")


def overlapping() -> bytes:
    data = bytearray(zipped(whole(b"}"), data__0=bytes(3000), data__1=bytes(3000)))
    first, second = (data.rfind(b"archive/data/%d" % k) - 46 for k in (0, 1))
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    struct.pack_into("<2L", data, second + 20, 6000, 6000)
    return bytes(data)


def many_views(count: int) -> bytes:
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(h\0K\0M\x88\x13\x85K\1\x85\x89}tR"
    return whole(nested(storage_stream(5_000)) + b"q\0](" + view * count + b"e")


QUOTA = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>Sorry</body></html>"
GOOD = saved({"a": torch.ones(2, 3)})
OBJECT = named("torch_utils.persistence", "_reconstruct_persistent_obj")
STREAM = PREAMBLE + whole(tensor()) + whole(b"]X\1\0\0\x000a")
REFUSED = [
    # other kinds of file
    (b"", r"It is empty \(0 bytes\)\. The download did not begin"),
    (QUOTA, r"It is a web page \(HTML\), not a checkpoint\. .*quota is spent"),
    (b"version https://git-lfs.github.com/spec/v1\noid", r"It is a pointer of Git LFS.*git lfs pull"),
    (bytes(257) + b"ustar", r"It is an archive .*\. Unpack it and give the checkpoint inside\."),
    (b"\x1f\x8b\x08\0rest", r"It is an archive \(gzip"),
    (b'{"error": "not found"}', r"It is a text that begins '\{\"error\": \"not found\"\}'"),
    (bytes(5000), r"begins with thousands of zeros.*fetch it again"),
    (b"\x01\x02\x03\x04\xff\xfe", r"begins with the bytes 01 02 .* no known format\. Expected a PyTorch"),
    (b"\x80\x01K\x01.", r"It is a pickle of protocol 0 or 1, which is not read"),
    # zip
    (GOOD[: len(GOOD) // 2], r"cannot be read \(BadZipFile: .*Fetch it again"),
    (zip_of(x=b"1", y=b"2"), r"none of PyTorch's\. Unpack it and give a file inside: x, y\."),
    (zip_of(**{"a__data.pkl": whole(b"}"), "b__data.pkl": whole(b"}")}), r"none of PyTorch's"),
    (zip_of(zipfile.ZIP_DEFLATED, archive__data=b"0" * 99), r"Its member 'archive/data' is compressed"),
    (
        zipped(whole(b"}"), data__0=b"", data__1=b"").replace(b"/data/1", b"/data/0"),
        r"Its member 'archive/data/0' is damaged",
    ),
    (overlapping(), r"Its member 'archive/data/1' is damaged: its size or checksum differs"),
    (zip_of(**{"a__data.pkl": whole(b"}"), "a__byteorder": b"big"}), r"saved on a big-endian machine"),
    (GOOD.replace(b"PK\1\2", b"PK\1\3"), r"cannot be read \(BadZipFile: .*Fetch it again"),
    # NumPy and safetensors
    (b"\x93NUMPY\x09\0" + bytes(20), r"cannot be read \(ValueError: "),
    (npy("'>f4'", "(2,)", bytes(8)), r"NumPy file of >f4; only little-endian numbers"),
    (npy("'<U3'", "(2,)", bytes(24)), r"NumPy file of <U3; only little-endian numbers"),
    (npy("'|O'", "(1,)"), r"Python objects in dtype"),
    (npy("'<f4'", "(99,)", bytes(40)), r"mmap length is greater than file size"),
    (safetensors()[:50], r"cannot be read as safetensors"),
    (safetensors(data_offsets=[0, 99]), r"cannot be read as safetensors"),
    (safetensors(shape=[2**61, 8]), r"cannot be read as safetensors"),
    # pickles
    (whole(b""), r"damaged or made to do harm near byte 3: IndexError"),
    (whole(b"}(K\1u"), r"damaged or made to do harm near byte 7: a key without a value"),
    (whole(b"}]K\1s"), r"a key of a dict that is a list"),
    (whole(b"B\xff\xff\xff\x7f"), r"cut short: 2147483647 bytes are announced at byte 7 of 8\. Fetch it"),
    (whole(b"\x8a\xff" + bytes(255)), r"an integer of 255 bytes"),
    (whole(b"c" + b"x" * 400), r"a name without an end"),
    (whole(b"\x80\x06"), r"unsupported pickle protocol: 6"),
    (whole(TENSOR + arguments("x", b"K\0", b")", b")") + b"R"), r"a tensor with an invalid storage"),
    (whole(OBJECT + b"}\x85R"), r"without the name of its class, or a state"),
    (whole(named("_codecs", "encode") + arguments("λ", "latin1") + b"R"), r"UnicodeEncodeError"),
    (whole(named("numpy", "dtype") + arguments("O8") + b"R"), r"an array of NumPy of type O8"),
    (whole(DTYPE + arguments(b"K\3", "<", b"K\1", b"N", b"N") + b"b"), r"big-endian numbers, or of records"),
    (
        whole(named("numpy.core.multiarray", "scalar") + b"(" + DTYPE + b"C\x08" + bytes(8) + b"tR"),
        r"a Tensor with 2 elements",
    ),
    (from_buffer(4, b"K\2\x85"), r"reaches to 2 of 1 numbers"),
    (from_buffer(5, b")"), r"5 bytes that are no numbers of type torch.float32"),
    (whole(nested(b"\x80\x02K\1.")), r"not stored as PyTorch stores it"),
    (whole(TENSOR + b"(NK\0))\x89}" + text("a") + b"K\1stR"), r"a tensor with backward hooks"),
    # tensors in a zip
    (zipped(whole(tensor())), r"KeyError: 'archive/data/0'"),
    (zipped(whole(tensor()), data__0=bytes(12)), r"2 numbers of type torch.float32 where there are 3"),
    (in_zip(offset=1), r"shape \(2,\) that reaches to 3 of 2 numbers"),
    (in_zip(stride=b"K\7\x85"), r"reaches to 8 of 2 numbers"),
    (in_zip(shape=b"J\xff\xff\xff\xff\x85"), r"an invalid size or stride"),
    (in_zip(shape=b"J\0\0\0\x40\x85", stride=b"K\0\x85"), r"many times the bytes of a checkpoint of its size"),
    (
        zipped(whole(storage() + storage(kind="IntStorage") + b"\x86"), data__0=bytes(8)),
        r"torch.int32 where there are 2 of type torch.float32",
    ),
    (zipped(whole(storage(extra=b")")), data__0=bytes(8)), r"a tensor of PyTorch 0\.3 or older"),
    (zipped(whole(tensor(kind="BoolStorage")), data__0=b"\0\x02"), r"no numbers of type torch.bool"),
    # streams of old PyTorch
    (PREAMBLE[:15] + whole(b"K\7") + whole(b"}"), r"an unknown version of PyTorch's old format"),
    (PREAMBLE + whole(tensor()) + whole(b"]"), r"list of tensors differs from what its pickle describes"),
    (STREAM + struct.pack("<q", 3), r"A tensor of 2 numbers is stored as 3"),
    (STREAM + struct.pack("<q", 2), r"cut short: 8 bytes are announced"),
    # bombs; more of them are in tests/attack
    (whole(b"]" * 200_000), r"many times the steps of a checkpoint"),
    (whole(b"]" * 100 + b"a" * 99), r"nested deeper than 64"),
    (
        whole(b"]q\0" + b"".join(b"](" + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(30))),
        r"many times the values of a checkpoint",
    ),
    (many_views(1_000), r"many times the bytes of a checkpoint"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(data: bytes, message: str, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MAX_STEPS", 100_000)  # so that bombs end at once
    monkeypatch.setattr(unpickle, "MAX_VALUES", 20_000)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(data)
    assert "file" in str(caught.value).split(":")[0] and len(str(caught.value)) < 700


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pt: there is no such file\."):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match=r" is a folder\."):
        read_checkpoint(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match=r"there is no such file"):
            read_checkpoint(tmp_path / "pipe")


def test_a_flipped_bit_of_a_zip_is_found(read: Any) -> None:
    """Where members have a checksum, every flipped bit of the numbers is found."""
    rng, sound = random.Random(0), saved({"a": torch.arange(6.0).reshape(2, 3), "b": [1, "x"]})
    numbers = sound.index(np.arange(6, dtype=np.float32).tobytes())
    for _ in range(24):
        mutated = bytearray(sound)
        mutated[numbers + rng.randrange(24)] ^= 1 << rng.randrange(8)
        with pytest.raises(CheckpointError, match=r"Its member 'archive/data/\d' is damaged: its size or checksum"):
            read(bytes(mutated))
