"""Folders from strangers, mutated by the thousand: each gives a model or one of our errors, in little memory."""

import copy
import json
import os
import random
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylegan_inversion import E4EPipeline, InversionOutput, PTIPipeline
from stylegan_inversion.errors import CheckpointError, StyleGANInversionError
from tests.attack.models import make_model

VALUES: list[Any] = [
    *(-1, 0, 1, 2, 3, 5, 16, 64, 100, 4096, 10**9, 2**31, 2**63, 2**64, 10**30, -(10**30)),
    *(0.5, -0.5, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"), True, False, None),
    *("", "x", "1", "../../x", "/dev/zero", "a" * 5000, "\x00", "é", "NaN", "fp16", "vgg"),
    *([], [1], [1, 1, 1, 2**31], [1] * 10_000, [[]], [float("nan")] * 4),
    *({}, {"a": 1}, {"kind": "labels", "num_labels": 256}),
]
FIFOS = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
DTYPES = ["F8_E4M3", "F8_E5M2", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F4", "C64", "X", "", 7]


def any_value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))  # which later changes of the tree may change


def walk(tree: Any) -> list[tuple[Any, Any]]:
    """Each place in a JSON tree, as the container and the key."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in [(tree, key), *walk(value)]]


def mutate_tree(tree: Any, rng: random.Random) -> None:
    """Change one to three places of a JSON tree."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = walk(tree)
        if not places:
            return
        container, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[rng.choice(["x", "_x", "resolution", "units", "config", "", "__class__"])] = any_value(rng)
        elif kind == 2 and isinstance(container, dict):
            container[key] = copy.deepcopy(container[rng.choice(list(container))])
        else:
            container[key] = any_value(rng)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert or repeat bytes."""
    place, changed = rng.randrange(len(data) + 1), bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    inserted = data[:place] + rng.randbytes(rng.randint(1, 8)) + data[place:]
    return rng.choice([data[:place], inserted, data + data[: rng.randint(0, 100)], bytes(changed), bytes(changed)])


def mutate_text(text: str, rng: random.Random) -> bytes:
    """Change JSON as text: numbers and nestings that a tree cannot hold."""
    deep = "[" * rng.choice([10, 100_000]) + text
    long = text.replace("1", "1" * rng.choice([20, 5000]), 1)
    endless = text.replace("{", '{"resolution": 1e999, ', 1)
    flipped = mutate_bytes(text.encode(), rng)
    return rng.choice([deep.encode(), long.encode(), endless.encode(), text.encode("utf-16"), flipped, flipped])


def mutate_weights(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, or its bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry, kind = header[name], rng.randrange(9)
    shapes: list[Any] = [[], [0], [1] * 65, [2**62, 4], [-1], ["4"], [1, *entry["shape"]], entry["shape"][::-1]]
    texts: list[Any] = [{}, {"format": "x"}, {"a": 1}, [], "x", {"generator.0.errors": "[" * 5000}]
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        entry["shape"] = rng.choice(shapes)
    elif kind == 2:
        entry["data_offsets"] = rng.choice([[0, 0], [0, 2**63], [-4, 4], [4, 0], [0], "x"])
    elif kind == 3:
        header[rng.choice([f"{name}x", "", "x" * 5000, name.replace("0", "9"), "generator.9.x"])] = header.pop(name)
    elif kind == 4:
        mutate_tree(header, rng)
    elif kind == 5:
        header["__metadata__"] = rng.choice(texts)
    elif kind == 6:
        return struct.pack("<Q", rng.choice([0, 1, length + 1, 2**31, 2**63, 2**64 - 1])) + data[8:]
    else:
        return mutate_bytes(data, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def mutate_place(path: Path, rng: random.Random) -> None:
    """Put something else than a file where a file belongs, or nothing."""
    path.unlink()
    targets = {0: "/dev/zero", 1: path.name, 2: "nowhere"}
    kind = rng.randrange(7)
    if kind in targets:
        path.symlink_to(targets[kind])
    elif kind < 6:
        [os.mkfifo, os.mkdir, Path.touch][kind - 3](path)


def restore(path: Path, data: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(data)


def attack(folder: Path, loads: list[Callable[[], Any]], count: int, seed: int) -> Counter[str]:
    """Load a folder with `count` mutations of it, one after the other."""
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    for load in loads:
        load()  # sound until then
    rng, seen, slowest = random.Random(seed), Counter[str](), (0.0, "")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        path = rng.choice(list(files))
        data, is_json = files[path], path.suffix == ".json"
        kind = rng.randrange(20)
        if kind == 0:
            mutate_place(path, rng)
        elif is_json and kind < 4:
            path.write_bytes(mutate_text(data.decode(), rng))
        elif is_json:
            tree = json.loads(data)
            mutate_tree(tree, rng)
            path.write_text(json.dumps(tree))
        else:
            path.write_bytes(mutate_weights(data, rng))
        start = time.process_time()
        try:
            rng.choice(loads)()
            seen["loaded"] += 1
        except StyleGANInversionError:
            seen["refused"] += 1
        except BaseException as e:
            raise AssertionError(f"mutation {number} of {path.name}: {type(e).__name__}: {str(e)[:300]}") from e
        finally:
            restore(path, data)
        slowest = max(slowest, (time.process_time() - start, f"mutation {number} of {path.name}"))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1000
    print(f"{folder.name}: {dict(seen)}, {grown:.0f} MB more at the peak; slowest {slowest[0]:.1f} s, {slowest[1]}")
    assert grown < 500
    return seen


@FIFOS
def test_other_errors_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": [1, 2, 3]}')
    errors = iter([None, *[CheckpointError("refused")] * 3, MemoryError("odd")])

    def load() -> None:
        if (e := next(errors)) is not None:
            raise e

    with pytest.raises(AssertionError, match=r"mutation 3 of config\.json: MemoryError: odd"):
        attack(tmp_path, [load], 100, seed=0)
    assert attack(tmp_path, [lambda: None], 100, seed=0) == {"loaded": 100}  # and no others


COUNTS = [
    pytest.param(400, id="short"),
    pytest.param(10_000, id="full", marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
]


@FIFOS
@pytest.mark.filterwarnings("ignore")  # of the damaged files' numbers
@pytest.mark.parametrize("count", COUNTS)
def test_model_folders(count: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_model(1.0).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["pti"] = {
        "perceptual": "alex",
        "projector": {"num_steps": 10, "num_w_samples": 600, "ramp_up": 0.05},
        "tuning": {"num_steps": 5, "learning_rate": 3e-4, "use_locality": False},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "README.md").unlink()
    loads: list[Callable[[], Any]] = [lambda: E4EPipeline.from_pretrained(folder)] * 9
    seen = attack(folder, [*loads, lambda: PTIPipeline.from_pretrained(folder)], count, seed=0)
    assert seen["loaded"] > count / 100 and seen["refused"] > count / 2


@FIFOS
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", COUNTS)
def test_saved_inversions(count: int, pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    model = pti.save_pretrained(tmp_path / "model")
    named = PTIPipeline.from_pretrained(model, detector=pti.detector)
    out = named.edit(named(photo, num_w_steps=1, num_tuning_steps=1), smile=1.0)
    folder = out.save(tmp_path / "out", rank=2)
    seen = attack(folder, [lambda: InversionOutput.load(folder, base=named.generator)], count, seed=1)
    assert seen["loaded"] > count / 100 and seen["refused"] > count / 2
