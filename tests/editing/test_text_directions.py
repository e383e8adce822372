"""Directions from texts, against a transcription of StyleCLIP's formulas; and with a real CLIP in another process."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stylegan_inversion import cli
from stylegan_inversion.editing import text_directions
from stylegan_inversion.editing.text_directions import Relevance, measure_relevance, name_of
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator, GeneratorConfig

ROOT = Path(__file__).parents[2]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@torch.no_grad()
def test_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A style of an image at a time, as the original code has it; styles of blocks beyond the limit are left alone."""
    generator = Generator(GeneratorConfig(16, z_dim=8, w_dim=16, mapping_layers=2, channel_base=64, channel_max=4))
    mix = torch.randn(3 * 16, 8, generator=torch.Generator().manual_seed(1))

    def clip(x: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.avg_pool2d(x, 4).flatten(1) @ mix, dim=1)

    w: list[torch.Tensor] = []
    generator.mapping.register_forward_hook(lambda module, given, out: w.append(out))
    monkeypatch.setattr(text_directions, "_MAX_SIDE", 8)
    found = measure_relevance(generator, clip, num_images=3, batch_size=2, seed=5)
    styles = generator.styles_of(torch.cat(w)[:, None].repeat(1, generator.num_ws, 1))
    torch.testing.assert_close(found.deviation, styles.std(dim=0))
    assert len(styles) == 4096 and found.rows.shape == (20, 8) and not found.rows[12:].any()  # 4 + 4 + 4 of 20
    for channel in (0, 5, 11):
        rows = []
        for i in range(3):
            ends = []
            for alpha in (-5, 5):
                offset = torch.zeros(20)
                offset[channel] = (styles.mean(dim=0) + alpha * styles.std(dim=0) - styles[i])[channel]
                image = generator.with_styles(offset).synthesis(w[0][i][None, None].repeat(1, generator.num_ws, 1))
                ends.append(clip(image.clamp(-1, 1)).numpy()[0])
            rows.append(unit(ends[1] - ends[0]))
        np.testing.assert_allclose(found.rows[channel].numpy(), unit(np.mean(rows, axis=0)), atol=2e-4)
    change = clip(torch.ones(1, 3, 16, 16))[0]
    relevance = found.rows.numpy() @ change.numpy()
    beta = float(np.sort(np.abs(relevance))[-6]) - 1e-6
    expected = np.where(np.abs(relevance) < beta, 0, relevance) / np.abs(relevance).max() * found.deviation.numpy()
    np.testing.assert_allclose(found.step(change, beta=beta).numpy(), expected, atol=1e-6)
    assert np.count_nonzero(expected) == 6


def test_what_is_refused(generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert name_of("a face", "a smiling face") == "smiling" and name_of("face", "face") == "to_"
    with pytest.raises(ValueError, match=r"`num_images` must be >= 1, got 0"):
        measure_relevance(generator, lambda x: x.flatten(1), num_images=0)
    relevance, change = Relevance(torch.eye(56, 8), torch.ones(56), "x"), torch.full((8,), 8**-0.5)
    with pytest.raises(ValueError, match=r"`beta` must be in \[0, 1\), got 1"):
        relevance.step(change, beta=1.0)
    with pytest.raises(
        ValueError, match=r"No channel has a relevance of 0\.9 for this change of text: the largest is 0\.354"
    ):
        relevance.step(change, beta=0.9)
    Relevance(torch.eye(5), torch.ones(5), "x").save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="is not of this generator, which has 56 styles: remove it"):
        Relevance.load(tmp_path / "other", generator)
    both = [
        "find-directions",
        "faces64",
        "--text",
        "face",
        "smiling face",
        "--space",
        "w",
        "--output",
        str(tmp_path / "new"),
    ]
    assert cli.main(both) == 2 and "--text finds channels of S by itself" in capsys.readouterr().err


@pytest.mark.slow
def test_with_a_real_clip() -> None:
    if any(importlib.util.find_spec(each) is None for each in ("open_clip", "torchvision")):
        pytest.skip("needs open_clip and torchvision")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/editing/with_clip.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr
