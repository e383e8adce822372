import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.preprocessing.sources import LabelSource, PhotoSource, SketchSource
from stylegan_inversion.training.config import TaskOptions
from stylegan_inversion.training.tasks import TASKS, Task, make_task
from tests.conftest import rng

# name: l2, lpips, identity, w_norm, l2_crop, lpips_crop, source, paired: pSp's README and options
TABLE = {
    "inversion": (1.0, 0.8, 0.1, 0.0, 0.0, 0.0, PhotoSource(), False),
    "frontalization": (0.001, 0.08, 1.0, 0.005, 0.01, 0.8, PhotoSource("frontalization"), False),
    "super_resolution": (1.0, 0.8, 0.1, 0.005, 0.0, 0.0, PhotoSource("super_resolution"), False),
    "labels_to_face": (1.0, 0.8, 0.0, 0.005, 0.0, 0.0, LabelSource(19), True),
    "sketch_to_face": (1.0, 0.8, 0.0, 0.005, 0.0, 0.0, SketchSource(), True),
    "toonify": (1.0, 0.8, 1.0, 0.025, 0.0, 0.0, PhotoSource("toonify"), False),
}


@pytest.fixture
def face() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pairs(task: Task, face: Image.Image, count: int = 64) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [task.pair(face, face, input_resolution=32, output_resolution=64, rng=rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("name", TASKS)
def test_the_papers_settings(name: str) -> None:
    task = make_task(name)
    terms = ("l2", "lpips", "identity", "w_norm", "l2_crop", "lpips_crop")
    assert (*(task.loss.get(term, 0.0) for term in terms), task.source, task.paired) == TABLE[name]
    assert set(task.loss) <= set(terms)


def sides(task: Task, face: Image.Image) -> set[tuple[bool, bool]]:
    """Whether source and target were mirrored, in many draws."""
    x, y = task.pair(face, face, input_resolution=32, output_resolution=64, rng=None)
    found = set()
    for a, b in pairs(task, face):
        assert torch.equal(a, x) or torch.equal(a, x.flip(-1))
        assert torch.equal(b, y) or torch.equal(b, y.flip(-1))
        found.add((not torch.equal(a, x), not torch.equal(b, y)))
    return found


def test_mirroring(face: Image.Image) -> None:
    assert sides(make_task("inversion"), face) == {(False, False), (True, True)}
    assert sides(make_task("frontalization"), face) == {(a, b) for a in (False, True) for b in (False, True)}


@pytest.mark.parametrize("name", ["labels_to_face", "sketch_to_face"])
def test_paired_tasks_mirror_nothing(name: str, face: Image.Image) -> None:
    task = make_task(name)
    source = Image.fromarray(np.arange(48 * 48, dtype=np.uint8).reshape(48, 48) % 19)
    for seed in range(16):
        x, y = task.pair(source, face, input_resolution=32, output_resolution=64, rng=rng(seed))
        torch.testing.assert_close(x, task.source(source, 32))
        torch.testing.assert_close(y, to_tensor(face)[0])


def test_super_resolution_draws_its_factors(face: Image.Image) -> None:
    def super_resolution(*factors: int) -> Task:
        return make_task("super_resolution", TaskOptions(factors=factors))

    by_factor = {}
    for factor in (1, 2, 4, 32, 1000):
        x, y = super_resolution(factor).pair(face, face, input_resolution=64, output_resolution=64, rng=None)
        torch.testing.assert_close(y, to_tensor(face)[0])
        by_factor[factor] = x
    torch.testing.assert_close(by_factor[1], to_tensor(face)[0])
    detail = [by_factor[factor].diff(dim=-1).abs().mean().item() for factor in (1, 2, 4, 32)]
    assert detail == sorted(detail, reverse=True) and detail[-1] < 0.1 * detail[0]
    assert by_factor[1000].std(dim=(1, 2)).max() == 0  # one pixel
    small = face.resize((16, 16), Image.Resampling.BICUBIC).resize((64, 64), Image.Resampling.BILINEAR)
    torch.testing.assert_close(by_factor[4], to_tensor(small)[0])

    task = super_resolution(1, 4, 2)
    drawn = [task.pair(face, face, input_resolution=64, output_resolution=64, rng=rng(seed))[0] for seed in range(60)]
    counts = [sum(torch.equal(x, by_factor[factor]) for x in drawn) for factor in (1, 2, 4)]
    assert sum(counts) == 60 and min(counts) >= 10
    middle = task.pair(face, face, input_resolution=64, output_resolution=64, rng=None)[0]
    torch.testing.assert_close(middle, by_factor[2])
