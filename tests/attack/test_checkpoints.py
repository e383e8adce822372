"""500 hostile checkpoints through the readers: none runs, none is taken for a sound one, none hangs.

A tenth is read in `make test`, all in `make test-slow`; `pytest -rP` shows the figures.
"""

import io
import multiprocessing
import pickle
import random
import re
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save

from stylegan_inversion import E4EPipeline, PTIPipeline
from stylegan_inversion.checkpoints.read import read_checkpoint
from stylegan_inversion.errors import CheckpointError
from tests.checkpoints.hostile_files import (
    LEGACY_MAGIC,
    PREAMBLE,
    SENTINEL,
    named,
    nested,
    npy,
    payloads,
    storage_stream,
    text,
    whole,
    zip_of,
    zipped,
)
from tests.checkpoints.official_files import nvidia, nvidia_pickle, saved

COUNT = 500
HANGS = 60  # seconds after which a file counts as one that hangs
MEMORY = 700  # MB that a small file may take
READERS: list[Callable[[Path], Any]] = [
    *[read_checkpoint] * 3,
    *(PTIPipeline.from_single_file, E4EPipeline.from_single_file),
]


class Hostile(NamedTuple):
    """A file, and whether it may be read as plain values: one that only holds a text of code, or a mutation."""

    name: str
    data: bytes
    may_be_read: bool = False


def tar(data: bytes) -> bytes:
    """The first format of PyTorch, each of whose members is a pickle."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("pickle", "storages", "tensors", "sys_info"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def deflated(**members: bytes) -> bytes:
    return zip_of(zipfile.ZIP_DEFLATED, **members)


def bombs() -> dict[str, bytes]:
    """Small files that ask for much memory or time."""
    thousand = b"".join(text("x" * 200) + b"q" + bytes([i]) + b"0" for i in range(250))
    tuples = b"N\x85q\0" + b"h\0h\0\x86q\0" * 100 + b"0"  # whose hash takes 2 ** 100 steps
    many = b"](" + b"K\1K\2\x86" * 100_000 + b"eq\0"
    multiples = [(k * (2**61 - 1)).to_bytes(10, "little") for k in range(1, 200_000)]  # whose hashes are all the same
    encode = named("_codecs", "encode") + b"h\0" + text("latin1") + b"\x86R0"
    tensor = named("torch._utils", "_rebuild_tensor_v2")
    wide = tensor + b"(h\0K\0J\0\0\0\x40\x85K\0\x85\x89NtR"  # a billion times the same number
    huge = b"(" + b"J\0\0\0\x40" * 4 + b"t(" + b"K\0" * 4 + b"t"
    return {
        "hash_of_a_key": whole(tuples + b"}h\0Ns"),
        "hash_in_a_set": whole(tuples + b"(h\0\x91", 4),
        "hash_of_a_dtype": whole(tuples + named("numpy", "dtype") + b"h\0\x85R"),
        "hash_in_a_namespace": whole(tuples + named("argparse", "Namespace") + b"](h\0NeR"),
        "equal_hashes": whole(b"}(" + b"".join(b"\x8a\x0a" + multiple + b"N" for multiple in multiples) + b"u"),
        "copied_lists": whole(many + (named("collections", "OrderedDict") + b"h\0\x85R0") * 100_000 + b"N"),
        "copied_sets": whole(many + (named("builtins", "set") + b"h\0\x85R0") * 100_000 + b"N"),
        "copied_texts": whole(text("x" * 1_000_000) + b"q\0" + encode * 10_000 + b"N"),
        "long_shape": whole(many + (tensor + b"(NK\0h\0h\0\x89NtR0") * 1_000 + b"N"),
        "tensor_as_shape": whole(nested(storage_stream(5)) + b"q\0" + tensor + b"(h\0K\0" + wide + b"h\0\x89NtR"),
        "huge_product": whole(nested(storage_stream(5)) + b"q\0" + tensor + b"(h\0K\0" + huge + b"\x89NtR"),
        "keys_of_tuples": PREAMBLE + whole(b"}") + whole(tuples + b"]h\0a"),
        "bools_in_a_stream": whole(nested(storage_stream(4).replace(b"Float", b"Bool", 1))),
        "deep_lists": whole(b"]" * 3_000 + b"a" * 2_999),
        "operations": whole(b"]" * 3_000_000),
        "memo_index": whole(b"Nr\xff\xff\xff\x7f"),
        "doubling": whole(b"]q\0" + b"](h\0h\0eq\0" * 60),
        "depth": whole(b"(" * 100_000 + b"t" * 100_000),
        "long_number": whole(b"\x8b" + struct.pack("<i", 2**31 - 1)),
        "long_text": whole(b"X" + struct.pack("<I", 2**32 - 1)),
        "long_bytes": whole(b"\x8e" + struct.pack("<Q", 2**62), 4),
        "frame": whole(b"\x95" + struct.pack("<Q", 2**62), 4),
        "many_texts": whole(thousand * 200 + b"N"),
        "zipped_zeros": deflated(archive__data__0=bytes(2**28), **{"archive__data.pkl": whole(b"}")}),
        "zipped_pickle": deflated(**{"archive__data.pkl": whole(b"]" + b"N0" * 2**26)}),
        "npy_shape": npy("'<f4'", "(1000000, 1000000, 1000)"),
        "npy_ranks": npy("'<f4'", "(" + "1, " * 30 + ")"),
        "npz_shape": deflated(**{"a.npy": npy("'<f4'", "(100000000000,)")}),
        "safetensors_header": struct.pack("<Q", 2**60) + b"{" * 1000,
        "safetensors_offsets": struct.pack("<Q", 64)
        + b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4]}}'.ljust(64),
    }


def build(sentinel: Path) -> list[Hostile]:
    """The files, in an order that mixes their kinds; the same ones each time."""
    rng, files = random.Random(0), list[Hostile]()
    plain = payloads(sentinel)
    code, shell = f"open({str(sentinel)!r}, 'w').close()", f"touch {sentinel}"
    for name, (data, pattern) in plain.items():
        files.append(Hostile(name, data, not pattern))
        if data.startswith(b"\x80") and not data.startswith(LEGACY_MAGIC):  # whose first pickle is a number
            files.append(Hostile(f"{name} in a zip", zipped(data), not pattern))
            files.append(Hostile(f"{name} in a legacy file", PREAMBLE + data, not pattern))
            files.append(Hostile(f"{name} in a storage", whole(nested(data)), not pattern))
    for name in ("posix_system", "exec", "popen", "new_object", "inst", "nested"):
        data = plain[name][0]
        files.append(Hostile(f"{name} in a tar", tar(data)))
        files.append(Hostile(f"{name} in an npy", npy("'|O'", "(1,)", data)))
        files.append(Hostile(f"{name} in an npz", deflated(**{"a.npy": npy("'|O'", "(1,)", data)})))
        files.append(Hostile(f"{name} in a deflated zip", deflated(**{"archive__data.pkl": data})))
    for name, words in (
        ("apply", f"!!python/object/apply:os.system [{shell!r}]"),
        ("new", f"!!python/object/new:os.system [{shell!r}]"),
        ("eval", f"a: !!python/object/apply:builtins.exec [{code!r}]"),
        ("json", f'{{"py/reduce": [{{"py/function": "os.system"}}, {{"py/tuple": [{shell!r}]}}]}}'),
        ("python", f"import os\nos.system({shell!r})\n"),
        ("html", "<html><script>x</script></html>"),
    ):
        files.append(Hostile(f"text: {name}", words.encode()))
    files += [Hostile(f"bomb: {name}", data, may_be_read=True) for name, data in bombs().items()]
    weights = {"a": torch.ones(3, 4), "b": [torch.arange(5), "x"], "c": {"d": torch.zeros(2).half()}}
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    originals = [
        saved(weights),
        saved(weights, legacy=True),
        nvidia_pickle(nvidia(), source=code),
        buffer.getvalue(),
        save({"a": torch.ones(3, 4)}),
        *(data for data, _ in plain.values()),
    ]
    while len(files) < COUNT:
        original = rng.choice(originals[:5] if len(files) % 2 else originals)  # half of them sound
        files.append(Hostile(f"mutation {len(files)}", mutate(original, rng), may_be_read=True))
    rng.shuffle(files)
    return files


def mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place, how, long = rng.randrange(len(changed)), rng.randrange(5), len(changed) > 20
        if how == 0:
            changed[place] = rng.randrange(256)
        elif how == 1:
            changed[place:place] = rng.randbytes(rng.randint(1, 8))
        elif how == 2 and long:
            del changed[place : place + rng.randint(1, 8)]
        elif how == 3 and long:
            del changed[max(place, 10) :]
        else:
            changed[place : place + 8] = struct.pack("<q", rng.choice((-1, 2**31, 2**62, 0)))
    return bytes(changed)


def peak_memory() -> float:
    """Of this process, in MB; `getrusage` would count its parent's too. 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.is_file() else None
    return int(found[1]) / 1e3 if found else 0.0


def read_all(orders: Connection) -> None:
    """The worker: read what is ordered, by its reader; answer how it went, and the peak of memory in MB."""
    before = peak_memory()
    while True:
        path, reader = orders.recv()
        try:
            reader(path)
            outcome = "read"
        except CheckpointError:
            outcome = "refused"
        except BaseException as e:
            outcome = f"{type(e).__name__}: {str(e)[:200]}"
        orders.send((outcome, peak_memory() - before))


def attack(files: list[Hostile], folder: Path, sentinel: Path) -> dict[str, Any]:
    """Read each file, in turn by each reader, in a worker; the counts, which must be 0."""
    counts: dict[str, Any] = {"executed": [], "wrongly accepted": [], "untyped errors": [], "hangs": [], "memory": []}
    peak, worker = 0.0, None
    for i, (name, data, may_be_read) in enumerate(files):
        if worker is None:
            ours, theirs = multiprocessing.Pipe()
            worker = multiprocessing.get_context("spawn").Process(target=read_all, args=(theirs,), daemon=True)
            worker.start()
        path = folder / f"{i}.pt"
        path.write_bytes(data)
        ours.send((path, READERS[i % len(READERS)]))
        if ours.poll(HANGS):
            outcome, memory = ours.recv()
            if memory > peak + MEMORY + 8 * len(data) / 1e6:
                counts["memory"].append(f"{name}: {memory - peak:.0f} MB")
            peak = max(peak, memory)
            if outcome == "read" and not may_be_read:
                counts["wrongly accepted"].append(name)
            elif outcome not in ("read", "refused"):
                counts["untyped errors"].append(f"{name}: {outcome}")
        else:
            counts["hangs"].append(name)
            worker.kill()
            worker = None
        path.unlink()
        if sentinel.exists():
            counts["executed"].append(name)
            sentinel.unlink()
    if worker is not None:
        worker.kill()
        worker.join()
    print(
        f"{len(files)} hostile checkpoints: {', '.join(f'{key} {len(found)}' for key, found in counts.items())}; peak "
        f"memory {peak:.0f} MB more than before"
    )
    return counts


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_hostile_checkpoints(every: int, tmp_path: Path) -> None:
    sentinel = tmp_path / SENTINEL
    files = build(sentinel)
    assert len(files) == COUNT and len({data for _, data, _ in files}) > COUNT - 20
    counts = attack(files[::every], tmp_path, sentinel)
    assert not any(counts.values()), counts


def run_by_pickle(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def test_the_count_would_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control of the counts: a reader that runs files, hangs, or has no errors of ours, is found out."""
    sentinel = tmp_path / SENTINEL
    files = [Hostile("runs", payloads(sentinel)["posix_system"][0]), Hostile("breaks", b"\x80\x02c")]
    monkeypatch.setattr(sys.modules[__name__], "READERS", [run_by_pickle])
    counts = attack(files, tmp_path, sentinel)
    assert counts["executed"] == counts["wrongly accepted"] == ["runs"] and len(counts["untyped errors"]) == 1
    monkeypatch.setattr(sys.modules[__name__], "HANGS", 0)
    assert attack(files[1:], tmp_path, sentinel)["hangs"] == ["breaks"]
