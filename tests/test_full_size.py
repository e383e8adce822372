"""The README's block of a full-size model, word for word: an official file by its name in the catalogue, a photo, an
edit, PTI, and back from the disk. The file is made by a rule and served on loopback; at 1024 px the test is slow.
"""

import hashlib
import re
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from stylegan_inversion import E4EPipeline, InversionOutput, catalogue
from stylegan_inversion.checkpoints.export import write_official
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.storage import builtin_path
from tests.checkpoints.public_directions import make_direction, publish
from tests.fake_hub import hub_client, serve

NAME = "e4e-ffhq-1024"
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
(BLOCK,) = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if NAME in block]


def make_checkpoint(resolution: int, folder: Path) -> bytes:
    """An `e4e_ffhq_encode.pt` in the official layout: the built-in model at 64 px, else weights drawn from a seed."""
    model = builtin_path("faces64")
    if resolution != 64:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            generator = Generator(GeneratorConfig(resolution))
            generator.w_avg.normal_(0, 0.1)
            encoder = Encoder4Editing(PyramidEncoderConfig(resolution))
        model = E4EPipeline(generator, encoder).save_pretrained(folder / "model")
        del generator, encoder
    path = write_official(model, folder / "e4e_ffhq_encode.pt", layout="e4e")
    shutil.rmtree(folder / "model", ignore_errors=True)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize(
    "resolution", [64, pytest.param(1024, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])], ids=str
)
def test_the_readme_runs(resolution: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_checkpoint(resolution, tmp_path)
    num_ws = 2 * resolution.bit_length() - 4
    sizes: dict[str, tuple[int, ...]] = {"age": (1, 512), "smile": (1, 512), "pose": (1, num_ws, 512)}
    files = {
        f"direction-ffhq-{name}": make_direction(shape, "one" if len(shape) == 2 else "own", 1.0, seed=k).float()
        for k, (name, shape) in enumerate(sizes.items())
    }
    files["ganspace-ffhq"] = {"mean": torch.zeros(1, 512), "comp": torch.eye(512)[:80, None], "std": torch.ones(80)}
    entry = replace(
        next(each for each in catalogue.catalogue() if each.name == NAME),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        domain=f"ffhq-{resolution}",
    )
    github = publish(monkeypatch, files, models=(entry,), resolution=resolution)
    block = BLOCK
    for words, here in (('device="cuda"', 'device="cpu"'), ('preset="fast"', 'preset="fast", num_tuning_steps=3')):
        assert words in block
        block = block.replace(words, here)
    shutil.copy(sample_photos()[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with serve() as server, hub_client(server, tmp_path / "cache"):
        for limit in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
            monkeypatch.setattr(constants, limit, 300)  # the fake Hub hashes what it serves
        server.repositories["public-data/e4e"] = {str(entry.file): content}
        start = time.perf_counter()
        exec(block, names)
        seconds = time.perf_counter() - start
        asked = len(server.log) + len(github.asked)
        again = E4EPipeline.from_pretrained(NAME)
        assert len(server.log) + len(github.asked) == asked, "the second time nothing is asked"
        loaded = InversionOutput.load("inversion")
    photo, edited = load_image("photo.jpg"), load_image("edited.png")
    assert edited.size == photo.size and edited.tobytes() != photo.tobytes()
    assert {"age", "smile", "pose", "ganspace_1", "ganspace_10"} <= set(again.directions)
    assert again.directions["age"].strength_range == (-10.0, 10.0)
    tuned = names["tuned"]
    assert isinstance(tuned, InversionOutput) and tuned.images[0].size == (resolution, resolution)
    (report,) = tuned.reports
    assert report["tuning_steps"] > 1 and report["l2"] < report["l2_pivot"] and report["pivot"] == "e4e"
    assert report["perceptual"] == "alex" and report["lpips_threshold"] == 0.06
    assert np.array_equal(np.asarray(loaded.images[0]), np.asarray(tuned.images[0]))
    drawn = loaded.generator.synthesis(loaded.w_plus)
    assert torch.equal(drawn, tuned.generator.synthesis(tuned.w_plus)), "the same picture from the disk"
    kept = [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > len(content) / 2
    ]
    assert not [path for path in kept if path.suffix != ".safetensors"], "the checkpoint is not kept beside the model"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{resolution} px: {len(content) / 1e6:.0f} MB, the block took {seconds:.0f} s, peak {peak:.1f} GB")
