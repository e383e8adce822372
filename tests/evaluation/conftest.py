from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import E4EPipeline, PSPPipeline, PTIPipeline, ReStylePipeline, SFEPipeline
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig, ReStyleEncoder
from stylegan_inversion.models.sfe_encoder import StyleFeatureConfig, StyleFeatureEncoder

SIZES: dict[str, Any] = {"w_dim": 16, "widths": (4, 4, 8, 8), "units": (1, 1, 1, 1), "reduction": 2}


@pytest.fixture
def model(pti: PTIPipeline, tmp_path: Path) -> str:
    """A folder with a tiny model of random weights for every method."""
    folder = tmp_path / "model"
    generator, config = pti.generator, PyramidEncoderConfig(32, 32, **SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipelines = [
            E4EPipeline(generator, Encoder4Editing(config)),
            PSPPipeline(generator, GradualStyleEncoder(config)),
        ]
        pipelines.append(ReStylePipeline(generator, ReStyleEncoder(ReStyleConfig(32, 32, **SIZES))))
        features = StyleFeatureEncoder(StyleFeatureConfig(32, 32, channels=8, **{**SIZES, "reduction": 1}))
        pipelines.append(SFEPipeline(generator, features, e4e=pipelines[0].encoder))
    for pipeline in (*pipelines, pti):
        pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder with five crops, one in a folder of its own, whose names are not in the order they were written."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "faces"
    (folder / "more").mkdir(parents=True)
    for name in ("b.png", "a.png", "c.jpg", "more/a.png", "d.PNG"):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((40, 40), Image.Resampling.BICUBIC).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


class StubIdentity(torch.nn.Module):
    """A smooth embedding of unit norm: the picture itself, 4 x 4."""

    name = "stub"

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) + 1
        return torch.nn.functional.normalize(small, dim=1)


def stub_attributes(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"smile": x.mean(dim=(1, 2, 3)), "age": x[:, 0].mean(dim=(1, 2))}


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the networks that measure faces tiny."""
    benchmark = "stylegan_inversion.evaluation.benchmark"
    monkeypatch.setattr(f"{benchmark}.load_identity", lambda name, folder=None, device=None: StubIdentity())
    monkeypatch.setattr(f"{benchmark}.load_face_scorer", lambda device=None: stub_attributes)
