"""Containers: zip, NumPy, safetensors, and what is no checkpoint at all; each message."""

import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from stylegan_inversion.checkpoints.archive import read_container
from stylegan_inversion.checkpoints.reading_process import Describer
from stylegan_inversion.checkpoints.sandbox import read_checkpoint

from stylegan_inversion.checkpoints import archive
from stylegan_inversion.checkpoints.unpickle import Budget
from stylegan_inversion.errors import CheckpointError
from tests.checkpoints.hostile_files import nested, storage_stream, text, whole, zipped
from tests.checkpoints.official_files import saved


def describe(data: bytes) -> Any:
    return Describer(len(data)).describe(read_container(memoryview(data)))


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("x.pt"))
    return buffer.getvalue()


def zip_of(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


QUOTA = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>Sorry</body></html>"
GOOD = saved({"a": torch.ones(2, 3)})
HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def safetensors(header: Any, body: bytes = bytes(8)) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"It is empty \(0 bytes\)\. The download did not begin"),
        (
            QUOTA,
            r"It is a web page \(HTML\) titled 'Google Drive - Quota exceeded', not a checkpoint\. .*quota is spent",
        ),
        (b"\xef\xbb\xbf\n <HTML><body>", r"It is a web page \(HTML\), not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", r"It is a pointer of Git LFS.*git lfs pull"),
        (tar(), r"It is a tar archive\. Unpack it and give the checkpoint inside\."),
        (b"\x1f\x8b\x08\0rest", r"It is a gzip archive"),
        (b"\x89HDF\r\n\x1a\n", r"It is an HDF5 file, which is not read\. Expected a PyTorch \.pt or \.pth"),
        (b'{"error": "not found"}', r"It is a text that begins '\{\"error\": \"not found\"\}'"),
        (bytes(5000), r"begins with thousands of zeros.*fetch it again"),
        (b"\x01\x02\x03\x04\xff\xfe", r"begins with the bytes 01 02 03 04 ff fe, which is no known format"),
        (b"\x80\x01K\x01.", r"It is a pickle of protocol 1, which is not read"),
        (GOOD[: len(GOOD) // 2], r"a zip archive without its end: the download did not finish"),
        (zip_of(x=b"1", y=b"2"), r"not one of PyTorch's: it holds x, y\. Unpack it"),
        (zip_of(zipfile.ZIP_DEFLATED, archive__data=b"0" * 99), r"Its member 'archive/data' is compressed"),
        (replaced(GOOD, b"archive/data/0", b"archive/data/\xff"), r"is missing in the file"),
        (
            replaced(zipped(whole(b"}"), data__0=b"", data__1=b""), b"/data/1", b"/data/0"),
            r"two members named '.*data/0'",
        ),
        (zip_of(a__data__pkl=b""), r"not one of PyTorch's"),
        (zip_of(**{"a__data.pkl": whole(b"}"), "a__byteorder": b"big"}), r"saved on a big-endian machine"),
        (zip_of(**{"a__data.pkl": whole(b"}"), "b__data.pkl": whole(b"}")}), r"not one of PyTorch's"),
        (replaced(GOOD, b"PK\1\2", b"PK\1\3"), r"Its list of members is damaged \(zip\)"),
        (b"PK\3\4" + b"PK\5\6" + b"\xff" * 18, r"damaged|zip archive of"),
        (b"\x93NUMPY\x09\0", r"NumPy file of an unknown version, or cut short"),
        (safetensors(HEADER)[:50], r"It is a safetensors file cut short"),
        (struct.pack("<Q", 2**30) + b"{", r"Its header would be 1073741824 bytes long"),
        (safetensors(b"{" * 20), r"The header of its safetensors is damaged: "),
        (safetensors({f"t{i}": 0 for i in range(20_001)}), r"lists no tensors, or more than 20000"),
        (safetensors({"a": {"dtype": "F32"}}), r"damaged at 'a': 'shape'"),
        (safetensors({"a": HEADER["a"] | {"dtype": "F8"}}), r"damaged at 'a': F8 at \[0, 8\] of 8 bytes"),
        (safetensors({"a": HEADER["a"] | {"data_offsets": [0, 99]}}), r"F32 at \[0, 99\] of 8 bytes"),
        (safetensors({"a": HEADER["a"] | {"shape": [1]}}), r"shape \[1\] of 2 numbers"),
        (safetensors({"a": HEADER["a"] | {"shape": [2**61, 8]}}), r"reaches beyond its storage"),
        (safetensors({"a": HEADER["a"] | {"shape": [-1]}}), r"a shape that is none"),
        (safetensors(HEADER, bytes(16)), r"a safetensors file of 16 bytes of data, but describes 8: damaged"),
    ],
)
def test_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        describe(data)


def test_a_npy_of_another_kind() -> None:
    for array, message in (
        (np.zeros(2, ">f4"), r"a NumPy file of type '>f4'; little-endian numbers are read"),
        (np.zeros(2, "u4"), r"a NumPy file of type '<u4'"),
        (np.zeros(2, "<U3"), r"a NumPy file of type '<U3'"),
        (np.array([{}]), r"holds Python objects, which it stores as a pickle"),
        (np.zeros(2, [("a", "f4")]), r"should hold an array of numbers, but holds something else"),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        with pytest.raises(CheckpointError, match=message):
            describe(buffer.getvalue())


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?"])
def test_numpy_arrays(dtype: str, tmp_path: Path) -> None:
    for array in (
        np.arange(6).reshape(2, 3).astype(dtype),
        np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
    ):
        np.save(tmp_path / "x.npy", array)
        assert torch.equal(read_checkpoint(tmp_path / "x.npy"), torch.from_numpy(np.ascontiguousarray(array)))
    np.save(tmp_path / "scalar.npy", np.asarray(1, dtype))
    assert read_checkpoint(tmp_path / "scalar.npy").shape == ()


def test_every_kind_of_number(tmp_path: Path) -> None:
    kinds = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
    tensors = {kind: torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, kind)) for kind in kinds}
    tensors |= {"odd": torch.ones(3, dtype=torch.int8), "none": torch.zeros(0, 3), "scalar": torch.tensor(2.0)}
    views = {"part": tensors["float32"][1:, 1:], "turned": tensors["int64"].t(), "wide": torch.ones(1).expand(4)}
    (tmp_path / "safetensors").write_bytes(save({**tensors}))
    (tmp_path / "zip").write_bytes(saved({**tensors, **views}))
    (tmp_path / "legacy").write_bytes(saved({**tensors, **views}, legacy=True))
    for name, expected in (("safetensors", tensors), ("zip", {**tensors, **views}), ("legacy", {**tensors, **views})):
        read = read_checkpoint(tmp_path / name)
        assert read.keys() == expected.keys()
        for key, tensor in expected.items():
            assert read[key].dtype == tensor.dtype and torch.equal(read[key], tensor), (name, key)
            assert read[key].is_contiguous()


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / "x.pt")["a"], torch.ones(2))


def test_zip64(tmp_path: Path) -> None:
    """Sizes and places of 64 bits, as a file beyond 4 GB has them."""
    data = bytearray(zipped(whole(b"}" + text("a") + b"K\1s")))
    end = data.rfind(b"PK\5\6")
    count, _, offset = struct.unpack_from("<H2L", data, end + 10)
    entry = offset  # the first member: move its sizes and place into an extra field
    name_size = struct.unpack_from("<H", data, entry + 28)[0]
    packed, unpacked = struct.unpack_from("<2L", data, entry + 20)
    begin = struct.unpack_from("<L", data, entry + 42)[0]
    extra = struct.pack("<2H3Q", 1, 24, unpacked, packed, begin)
    struct.pack_into("<2L", data, entry + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<L", data, entry + 42, 0xFFFFFFFF)
    struct.pack_into("<H", data, entry + 30, len(extra))
    directory = data[offset : entry + 46 + name_size] + extra + data[entry + 46 + name_size : end]
    z64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, offset + len(directory), 1)
    close = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    whole_file = bytes(data[:offset] + directory + z64 + locator + close)
    assert describe(whole_file) == ["dict", ["a", 1]]


def bomb(name: str) -> bytes:
    return {
        "operations": whole(b"]" * 2_000),
        "depth": whole(b"]" * 100 + b"a" * 99),
        "laughs": whole(
            b"]q\0" + b"".join(b"](" + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(30))
        ),
        "texts": whole(text("x" * 60_000) + b"q\0](" + b"h\0" * 900 + b"e"),
        "pickle": zipped(whole(b"]" * 65_000_000)),
        "index": whole(b"Nr\xff\xff\xff\x7f)"),
    }[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("operations", r"Its pickle takes more than 1000000 operations"),
        ("depth", r"nested deeper than 64 or more than 500000"),
        ("laughs", r"nested deeper than 64 or more than 500000"),
        ("texts", r"Its texts are longer than 16000000 characters"),
        ("pickle", r"Its pickle is 65000003 bytes long; a checkpoint's is at most 64000000"),
    ],
)
def test_bombs(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "Budget", lambda: Budget(1_990))
    monkeypatch.setattr("stylegan_inversion.checkpoints.reading_process.MAX_NODES", 500_000)
    data = bomb(name)
    describer = Describer(len(data))
    describer._nodes, describer._text = (20_000, 5_000_000) if name != "texts" else (20_000, 1_000_000)
    with pytest.raises(CheckpointError, match=message):
        describer.describe(read_container(memoryview(data)))


def test_a_large_index_costs_nothing() -> None:
    assert describe(bomb("index")) == ["list"]


def test_many_members() -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 9, 1, *[0] * 6) + b"a"
    data = (
        b"PK\3\4" + entry * 20_001 + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 20_001, 20_001, len(entry) * 20_001, 4, 0)
    )
    with pytest.raises(CheckpointError, match=r"a zip archive of 20001 members; a checkpoint has at most 20000"):
        describe(data)


def test_overlapping_members() -> None:
    data = bytearray(zipped(whole(b"}"), data__0=bytes(3000), data__1=bytes(3000)))
    at = data.rfind(b"archive/data/1") - 46
    first = data.rfind(b"archive/data/0") - 46
    data[at + 42 : at + 46] = data[first + 42 : first + 46]
    struct.pack_into("<2L", data, at + 20, 6000, 6000)
    with pytest.raises(CheckpointError, match=r"Its member 'archive/data/1' (reaches beyond the file|is damaged)"):
        describe(bytes(data))


def test_tensors_larger_than_the_file() -> None:
    stream = storage_stream(5_000)
    views = nested(stream) + b"q\0]("
    view = b"ctorch._utils\n_rebuild_tensor_v2\n(h\0K\0M\x88\x13\x85K\1\x85\x89}tR"
    assert len(describe(whole(views + view * 10 + b"e"))) == 11
    with pytest.raises(CheckpointError, match=r"Its tensors are many times larger than the file"):
        describe(whole(views + view * 1_000 + b"e"))


@settings(max_examples=200)
@given(st.data())
def test_mutated_safetensors_and_npy(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(6.0))
    mutated = bytearray(data.draw(st.sampled_from([save({"a": torch.ones(2, 3)}), buffer.getvalue()])))
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    del mutated[data.draw(st.integers(1, len(mutated))) :]
    try:
        describe(bytes(mutated))
    except CheckpointError as e:
        assert 10 < len(str(e)) < 600
