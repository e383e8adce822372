import logging
from pathlib import Path

import pytest
import torch

from stylegan_inversion import storage
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.training.checkpoint import read_checkpoint, read_latest, write_checkpoint
from tests.training.conftest import same


def test_round_trip(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {
        "network": {"a.weight": shared, "a.alias": shared, "view": shared[::2], "half": torch.ones(3).bfloat16()},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}, 12: {"step": torch.tensor(4)}},
            "groups": [[1, 2], [], (0.9, 0.999)],
        },
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
        "best": 0.1 + 0.2,
        "none": None,
        "yes": True,
        "text": "Größe",
        "nothing": {},
        "tensor": {"tensor": torch.tensor(1, dtype=torch.int32), "dict": 3},
    }
    path = write_checkpoint(state, tmp_path / "checkpoints", step=7)
    assert path.name == "step-00000007.safetensors"
    assert same(read_checkpoint(path), {"step": 7, **state})
    assert same(read_latest(tmp_path / "checkpoints"), {"step": 7, **state})


def test_orphans_are_removed(tmp_path: Path) -> None:
    write_checkpoint({"x": torch.ones(1)}, tmp_path, step=1)
    names = ".step-00000002.safetensors.ab12cd34.partial", ".tmpKvrlkD"  # the second one is of safetensors
    orphans = [tmp_path / name for name in names]
    for orphan in orphans:
        orphan.write_bytes(b"half")
    (tmp_path / ".keep").touch()
    assert read_latest(tmp_path, sweep=False) is not None and all(orphan.exists() for orphan in orphans)
    assert read_latest(tmp_path) is not None
    assert not any(orphan.exists() for orphan in orphans) and (tmp_path / ".keep").exists()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        newest = write_checkpoint({"x": torch.full((100,), step)}, tmp_path, step=step)
    whole = newest.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        newest.write_bytes(whole[:length])
        with caplog.at_level(logging.WARNING):
            latest = read_latest(tmp_path)
        assert latest is not None and latest["step"] == 1
        assert "step-00000002.safetensors cannot be read" in caplog.text and "taking the one before" in caplog.text
        caplog.clear()
    for path in tmp_path.glob("step-*"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"None of the 2 checkpoints in .* can be read\. Remove them"):
        read_latest(tmp_path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        read_checkpoint(path)
    for tree in (None, '{"dict": [["x", {"tensor": "y"}]]}', "not JSON", '{"list": 1}', '{"dict": 3}', "3"):
        storage.write_tensors({"x": torch.ones(1)}, path, metadata={} if tree is None else {"state": tree})
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a checkpoint of a training run, or"):
            read_checkpoint(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_not_saved(tmp_path: Path, bad: float) -> None:
    good = write_checkpoint({"x": torch.ones(2)}, tmp_path, step=1).read_bytes()
    with pytest.raises(CheckpointError, match="The state at step 2 is not saved: net/w holds NaN or infinity"):
        write_checkpoint({"net": {"w": torch.tensor([1.0, bad])}}, tmp_path, step=2)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [good]
