"""A program that is killed while it writes: what it leaves is the old or the new, never a mixture or half a picture."""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from stylegan_inversion import InversionOutput, PTIPipeline, storage
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from tests.attack.models import hidden, make_model, owners

KILLED = 9
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


def deadly(function: Callable[..., Any], left: Iterator[int], *arguments: Any, **options: Any) -> Any:
    if next(left, None) is None:
        os._exit(KILLED)
    return function(*arguments, **options)


def killed_before_each_operation(work: Callable[[], object], *, reset: Callable[[], object]) -> Iterator[int]:
    """Run `work` in children that die before their 1st, 2nd, ... change of the disk; yields after each death."""
    for count in range(1, 1000):
        reset()
        if (child := os.fork()) == 0:
            left = iter(range(count - 1))
            for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
                setattr(os, name, functools.partial(deadly, getattr(os, name), left))
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, KILLED)
        yield count
        if status == 0:
            assert count > 5
            return
    raise AssertionError("the work never ends")


@FORKS
def test_save_pretrained_over_another_model(tmp_path: Path) -> None:
    folder, old, new = tmp_path / "model", make_model(1.0), make_model(2.0)
    old.save_pretrained(tmp_path / "old")
    found, refused = list[set[float]](), 0

    def reset() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "old", folder)

    for _ in killed_before_each_operation(lambda: new.save_pretrained(folder), reset=reset):
        try:
            found.append(owners(folder))
        except ModelNotFoundError as e:
            assert "or its saving was interrupted: save it again." in str(e)
            refused += 1
            make_model(3.0).save_pretrained(folder)
            assert owners(folder) == {3.0} and hidden(folder) == []
    assert set(map(frozenset, found)) == {frozenset({1.0}), frozenset({2.0})}, "0 mixtures, and both ends were seen"
    assert found[-1] == {2.0} and refused > 0


@FORKS
def test_out_save_over_another_inversion(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    old = pti(photo, num_w_steps=1, num_tuning_steps=1)
    new = pti.edit(old, smile=3.0)
    pixels = {out.edits.get("smile"): out.images[0].tobytes() for out in (old, new)}
    folder = tmp_path / "out"

    def reset() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        old.save(folder)

    for _ in killed_before_each_operation(lambda: new.save(folder), reset=reset):
        try:
            loaded = InversionOutput.load(folder)
            assert loaded.images[0].tobytes() == pixels[loaded.edits.get("smile")]
        except CheckpointError as e:
            assert "config.json cannot be read as JSON" in str(e) and "save it again" in str(e)
        new.save(folder)
        assert InversionOutput.load(folder).edits == {"smile": 3.0} and hidden(folder) == []


def test_a_model_takes_no_parts_of_another_generator_along(tmp_path: Path, pti: PTIPipeline) -> None:
    folder = make_model(1.0).save_pretrained(tmp_path / "model")
    (folder / "relevance").mkdir()
    make_model(5.0).save_pretrained(folder / "church")  # a model of the user's, inside
    (folder / "notes.txt").write_text("mine")
    same = PTIPipeline.from_pretrained(folder)
    same.encoders.clear()
    for options in ({"variant": "fp16"}, {"dtype": torch.float16}, {"dtype": torch.bfloat16}, {}):  # all stays
        same.save_pretrained(folder, **options)  # type: ignore[arg-type]
        assert owners(folder) == {1.0}, options
    assert (folder / "generator" / "model.fp16.safetensors").is_file()
    assert "Licence" in (folder / "README.md").read_text() and not (folder / "README.old.md").exists()

    other = PTIPipeline(make_model(3.0).generator, perceptual=same.perceptual)
    other.save_pretrained(folder, variant="fp16")  # of another generator
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "README.old.md", "church", "config.json", "generator", "notes.txt")
    ]
    assert [path.name for path in (folder / "generator").glob("model*")] == ["model.fp16.safetensors"]
    assert owners(folder / "church") == {5.0} and (folder / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="there are no links here")
def test_a_strangers_folder_that_is_saved_to_harms_nothing_else(tmp_path: Path) -> None:
    """What earlier versions or attackers may have left in it names nothing that is deleted or written."""
    folder = make_model(1.0).save_pretrained(tmp_path / "model")
    outside = tmp_path / "outside"
    make_model(4.0).save_pretrained(outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    shutil.rmtree(folder / "e4e_encoder")
    (folder / "e4e_encoder").symlink_to(outside / "e4e_encoder")
    (folder / ".files.0123abcd.partial").symlink_to(outside)
    make_model(2.0).save_pretrained(folder)
    assert owners(folder) == {2.0} and hidden(folder) == []
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


def test_a_failed_saving_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(1.0).save_pretrained(tmp_path / "model")

    monkeypatch.setattr(storage, "save_file", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match=r"model/generator/model\.safetensors could not be written: .*No space"):
        make_model(2.0).save_pretrained(folder)
    monkeypatch.undo()
    assert owners(folder) == {1.0} and hidden(folder) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"file could not be written: .*\. Save it again\."):
        make_model(2.0).save_pretrained(tmp_path / "file")


def whole_pictures(folder: Path) -> int:
    """How many pictures there are under their final names; each must open."""
    paths = [path for path in folder.rglob("*.png") if not path.name.startswith(".")]
    for path in paths:
        with Image.open(path) as image:
            image.load()
    return len(paths)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_25_random_kills_of_the_invert_command(tmp_path: Path) -> None:
    rng, photos = random.Random(1), tmp_path / "photos"
    photos.mkdir()
    noise = torch.randint(0, 256, (2400, 1800, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for k in range(3):
        Image.fromarray(noise.numpy()).save(photos / f"{k}.png", compress_level=1)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "stylegan_inversion", "invert", *map(str, sorted(photos.iterdir()))]
    command += ["--method", "e4e", "--no-align", "--edit", "smile=1", "--output", str(output), "--device", "cpu"]
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    whole = time.perf_counter() - start
    shutil.rmtree(output)
    seen = loaded = 0
    for _ in range(25):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.4, 1.0) * whole)  # before that Python starts
        child.send_signal(signal.SIGKILL)
        child.wait()
        seen += whole_pictures(output)
        for folder in output.glob("*/inversion"):
            try:
                InversionOutput.load(folder)
                loaded += 1
            except CheckpointError as e:
                assert not (folder / storage.CONFIG_NAME).exists(), e
    print(f"25 kills: {seen} pictures, all whole, {loaded} inversions")
    assert seen > 0 and loaded > 0
    for path in hidden(output):
        os.utime(path, (0, 0))  # what is younger than an hour may be another program's
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "3 of 3 photos done" in done.stdout and whole_pictures(output) == 12 and hidden(output) == []
