"""pSp, e4e and ReStyle: photos, and what other encoders read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import InversionOutput, PTIPipeline, storage
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.receipts import kind_of
from stylegan_inversion.preprocessing.align import crop_quad, uncropped
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.preprocessing.sources import LabelSource, PhotoSource
from tests.pipelines.conftest import small_pipeline


@pytest.fixture
def labels() -> Image.Image:
    return Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40) // 9 % 5)


@pytest.mark.parametrize("kind", [kind for kind, row in ENCODERS.items() if not row.needs])
def test_a_photo(kind: str, generator: Generator, photo: Image.Image, detector: Any, tmp_path: Path) -> None:
    pipeline = small_pipeline(kind, generator, detector=detector)
    before = {key: value.clone() for network in pipeline.networks for key, value in network.state_dict().items()}
    out = pipeline([photo, photo], progress=True)
    assert out.generator is generator and out.w_plus.shape == (2, 8, 16)
    with torch.no_grad():
        crop = out.crops[0]
        expected = pipeline.encode(to_tensor(crop_quad(crop.photo, crop.quad, 64)))
    torch.testing.assert_close(out.w_plus[:1], expected)
    after = {key: value for network in pipeline.networks for key, value in network.state_dict().items()}
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert not any(p.requires_grad for network in pipeline.networks for p in network.parameters())

    folder = pipeline.save_pretrained(tmp_path / "model")
    assert torch.equal(type(pipeline).from_pretrained(folder, detector=detector)(photo).w_plus, pipeline(photo).w_plus)
    other: Any = METHODS["psp" if kind == "e4e" else "e4e"].pipeline
    with pytest.raises(ModelNotFoundError, match=f"holds no {ENCODERS[other.encoder_kind].network.__name__}"):
        other.from_pretrained(folder)
    as_pivot = PTIPipeline.from_pretrained(folder, detector=detector)(photo, pivot=kind, num_tuning_steps=0)
    assert torch.equal(as_pivot.w_plus, pipeline(photo).w_plus)


@pytest.mark.parametrize("kind", ["psp", "e4e"])
def test_labels_become_a_face(kind: str, generator: Generator, labels: Image.Image, tmp_path: Path) -> None:
    pipeline = small_pipeline(kind, generator, LabelSource(5))
    out = pipeline.translate(labels)
    with torch.no_grad():
        torch.testing.assert_close(out.w_plus, pipeline.encoder(LabelSource(5)(labels, 64)[None]))
    assert len(out) == 1 and out.generator is generator and out.images[0].size == (32, 32)
    assert "l2" not in out.reports[0] and kind_of(out) == "generated" and out.reports[0]["seconds"] >= 0
    assert out.crops[0].image.size == (32, 32) and len(out.crops[0].image.getcolors()) == 5
    edited = pipeline.edit(out, smile=2.0)
    assert edited.images[0].tobytes() != out.images[0].tobytes()
    assert pipeline.paste_back(out)[0].tobytes() == out.crops[0].photo.tobytes()
    loaded = InversionOutput.load(edited.save(tmp_path / "out"))
    assert torch.equal(loaded.w_plus, edited.w_plus) and loaded.reports == edited.reports
    again = type(pipeline).from_pretrained(pipeline.save_pretrained(tmp_path / "model"))
    assert again.source == LabelSource(5) and torch.equal(again.translate(labels).w_plus, out.w_plus)


def test_a_photo_that_is_translated_is_not_aligned(generator: Generator, photo: Image.Image) -> None:
    pipeline = small_pipeline("psp", generator)
    out, called = pipeline.translate(photo), pipeline(photo, align=False)
    with torch.no_grad():
        torch.testing.assert_close(out.w_plus, pipeline.encoder(to_tensor(uncropped(photo, 64).image)))
    assert out.crops[0].photo.size == photo.size
    assert out.crops[0].image.tobytes() == called.crops[0].image.tobytes()
    assert out.reports[0]["l2"] == pytest.approx(called.reports[0]["l2"], rel=0.1)


def test_style_mixing(generator: Generator, labels: Image.Image) -> None:
    pipeline = small_pipeline("psp", generator, LabelSource(5))
    plain = pipeline.translate(labels).w_plus
    state = torch.get_rng_state()
    out = pipeline.translate(labels, num_outputs=4, latent_mask=range(5, 8), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(out) == 4 and torch.equal(out.w_plus[:, :5], plain[:, :5].expand(4, -1, -1))
    mixed = out.w_plus[:, 5:]
    assert torch.equal(mixed, mixed[:, :1].expand(-1, 3, -1))  # one w in all of them
    assert (torch.pdist(mixed[:, 0]) > 0.01).all() and (mixed[:, 0] - plain[:, 5]).abs().max() > 0.01
    z = torch.randn(generator.config.z_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(mixed[0, 0], generator.mapping(z[None])[0])
    fewer = pipeline.translate(labels, num_outputs=2, latent_mask=[7, 5, 6], seed=3)
    torch.testing.assert_close(fewer.w_plus, out.w_plus[:2])
    blended = pipeline.translate(labels, num_outputs=4, latent_mask=[5, 6, 7], mix_alpha=0.25, seed=3).w_plus
    torch.testing.assert_close(blended, 0.25 * out.w_plus + 0.75 * plain)


def test_models_without_a_source_read_photos(generator: Generator, tmp_path: Path) -> None:
    pipeline = small_pipeline("psp", generator)
    folder = pipeline.save_pretrained(tmp_path / "model")
    config = storage.read_config(folder)
    assert config.pop("source") == {"kind": "photo"}
    storage.write_config(config, folder)
    assert type(pipeline).from_pretrained(folder).source == PhotoSource()
    assert PTIPipeline.from_pretrained(folder).pivots == ("w", "w_plus", "psp")
    storage.write_config({**config, "source": {"kind": "sketch"}}, folder)  # whose encoders give no pivot
    assert PTIPipeline.from_pretrained(folder).pivots == ("w", "w_plus")
