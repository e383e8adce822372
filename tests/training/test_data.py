import itertools
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import storage
from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.align import uncropped
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.training.config import TaskOptions
from stylegan_inversion.training.data import FaceFolder, SeededDraws, load_batches, positions
from stylegan_inversion.training.tasks import Task, make_task

NAMES = ["a.png", "b/c.d.png", "b/e.PNG", "f.jpg", "g.webp", "h.bmp", "i.png"]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    (folder / "b").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "._a.png").write_bytes(b"what macOS leaves")
    (folder / ".trash").mkdir()
    (folder / ".trash" / "z.png").write_bytes(b"hidden")
    return folder


def open_folder(folder: Path, task: Task | None = None, *, seed: int = 0, training: bool = True) -> FaceFolder:
    task = task or make_task("inversion")
    return FaceFolder(folder, task, input_resolution=16, output_resolution=32, seed=seed, training=training)


def test_an_example_depends_on_seed_and_position_alone(faces: Path) -> None:
    state = torch.get_rng_state()
    dataset = open_folder(faces, make_task("frontalization"))
    forward = [dataset[position] for position in range(40)]
    again = pickle.loads(pickle.dumps(open_folder(faces, make_task("frontalization"))))
    for position in reversed(range(40)):
        example = again[position]
        assert example["index"] == forward[position]["index"]
        assert torch.equal(example["x"], forward[position]["x"])
        assert torch.equal(example["y"], forward[position]["y"])
    assert torch.equal(torch.get_rng_state(), state)
    changed = FaceFolder(**dataset.sides, targets=faces, task=dataset.task, seed=0, training=True, other_cameras=0.5)
    assert sum(not torch.equal(changed[p]["y"], dataset[p]["y"]) for p in range(7)) > 3
    # The same picture is mirrored in one epoch and not in another
    looks = {i: {e["x"].numpy().tobytes() for e in forward if e["index"] == i} for i in range(7)}
    assert all(len(seen) <= 2 for seen in looks.values()) and sum(len(seen) == 2 for seen in looks.values()) >= 4


def test_pairs_are_matched_by_name(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    for k, name in enumerate(NAMES):
        path = (folder / name).with_suffix(".png" if k % 2 else ".bmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((18, 18), k, np.uint8)).save(path)
    (folder / "stranger.png").write_bytes(b"never opened")
    task = make_task("labels_to_face", TaskOptions(num_labels=7))
    dataset = FaceFolder(faces, task, input_resolution=16, output_resolution=32, seed=0, training=True, sources=folder)
    for position in range(7):
        example = dataset[position]
        assert (example["x"].argmax(0) == example["index"]).all()
        with Image.open(faces / NAMES[example["index"]]) as image:
            torch.testing.assert_close(example["y"], to_tensor(uncropped(image.convert("RGB"), 32).image)[0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_picture_is_named(faces: Path, num_workers: int) -> None:
    (faces / "i.png").write_bytes((faces / "i.png").read_bytes()[:200])
    with pytest.raises(InvalidImageError, match=r"^/.*/i\.png: `i\.png` is damaged.*Replace the file, then resume\.$"):
        for _ in load_batches(open_folder(faces), positions(3, end=3), num_workers=num_workers):
            pass


@pytest.mark.parametrize("limit", [0, 3, 8, 25])
def test_the_tail_is_not_dropped(limit: int) -> None:
    batches = [list(positions(4, rank=rank, world_size=2, end=3, limit=limit)) for rank in range(2)]
    assert sorted(itertools.chain(*batches[0], *batches[1])) == list(range(min(limit, 24)))
    assert all(batch for part in batches for batch in part)


def test_batches_do_not_depend_on_the_workers(faces: Path) -> None:
    state = torch.get_rng_state()
    dataset = open_folder(faces, make_task("frontalization"))
    plain, parallel = (list(load_batches(dataset, positions(3, start=2, end=8), num_workers=n)) for n in (0, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(plain) == len(parallel) == 6
    for step, (a, b) in enumerate(zip(plain, parallel), 2):
        assert a["x"].shape == (3, 3, 16, 16) and a["y"].shape == (3, 3, 32, 32)
        assert all(torch.equal(a[key], b[key]) for key in ("x", "y", "index"))
        assert a["index"].tolist() == [dataset[position]["index"] for position in range(3 * step, 3 * step + 3)]


def test_style_mixing(model: Path) -> None:
    tiny = storage.load_module(Generator, GeneratorConfig, model / "generator")
    process: Any = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)
    draws, num_ws = SeededDraws(tiny, process, seed=0), tiny.num_ws
    with torch.no_grad():
        w_plus, first = draws.styles("generator", 3, 1200, mixing=0.9)
        same_w, w = draws.styles("generator", 3, 100, mixing=0.0)
        all_mixed, _ = draws.styles("generator", 3, 100, mixing=1.0)
    assert torch.equal(w_plus[:, 0], first)
    assert torch.equal(same_w, w[:, None].expand(-1, num_ws, -1))
    own = (w_plus == first[:, None]).all(dim=2)  # (samples, num_ws): layers with the first w
    cutoffs = own.sum(dim=1)
    assert bool((own == (torch.arange(num_ws) < cutoffs[:, None])).all())  # one change, none back
    for sample, cutoff in zip(w_plus, cutoffs.tolist()):
        if cutoff < num_ws:
            assert torch.equal(sample[cutoff:], sample[cutoff].expand(num_ws - cutoff, -1))
    counts = torch.bincount(cutoffs, minlength=num_ws + 1)
    assert counts[0] == 0 and counts[num_ws].item() == pytest.approx(120, abs=35)  # 3 sigma and a bit
    for cutoff in range(1, num_ws):
        assert counts[cutoff].item() == pytest.approx(1080 / (num_ws - 1), abs=50)
    assert bool((all_mixed[:, -1] != all_mixed[:, 0]).any(dim=1).all())
    assert len({tuple(row) for row in first.tolist()}) == 1200
    other, _ = draws.styles("discriminator", 3, 4, mixing=0.9)
    assert not torch.equal(other[:, 0], draws.styles("generator", 3, 4, mixing=0.9)[1])
