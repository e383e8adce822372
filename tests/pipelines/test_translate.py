import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import Direction, E4EPipeline, PSPPipeline
from stylegan_inversion.errors import CheckpointError, InvalidImageError
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.align import uncropped
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.preprocessing.sources import LabelSource, PhotoSource, SketchSource, Source

Pipelines = type[PSPPipeline] | type[E4EPipeline]


def build(generator: Generator, source: Source, pipeline_class: Pipelines = PSPPipeline) -> PSPPipeline | E4EPipeline:
    config = PyramidEncoderConfig(
        32, 64, w_dim=16, in_channels=source.in_channels, widths=(4, 4, 8, 8), units=(1, 1, 1, 1), reduction=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = (GradualStyleEncoder if pipeline_class is PSPPipeline else Encoder4Editing)(config)
    return pipeline_class(generator, encoder, source=source, directions={"smile": Direction("smile", torch.eye(16)[0])})


@pytest.fixture
def labels() -> Image.Image:
    return Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40) // 9 % 5)


@pytest.mark.parametrize("pipeline_class", [PSPPipeline, E4EPipeline])
def test_labels_become_a_face(
    pipeline_class: Pipelines, generator: Generator, labels: Image.Image, tmp_path: Path
) -> None:
    pipeline = build(generator, LabelSource(5), pipeline_class)
    before = {key: value.clone() for key, value in pipeline.encoder.state_dict().items()}
    out = pipeline.translate(labels)
    with torch.no_grad():
        expected = pipeline.encoder(LabelSource(5)(labels, 64)[None])
    torch.testing.assert_close(out.w_plus, expected)
    assert len(out) == 1 and out.generator is generator and out.images[0].size == (32, 32)
    assert "l2" not in out.reports[0] and out.reports[0]["seconds"] >= 0
    assert out.crops[0].image.size == (32, 32) and len(out.crops[0].image.getcolors()) == 5
    assert all(torch.equal(value, before[key]) for key, value in pipeline.encoder.state_dict().items())

    # The output is as good as any other: edit, save, load, paste back
    edited = pipeline.edit(out, smile=2.0)
    assert edited.images[0].tobytes() != out.images[0].tobytes()
    assert pipeline.paste_back(out)[0].tobytes() == out.crops[0].photo.tobytes()
    loaded = InversionOutput.load(edited.save(tmp_path / "out"))
    assert torch.equal(loaded.w_plus, edited.w_plus) and loaded.reports == edited.reports

    # and the source comes back with the pipeline
    again = pipeline_class.from_pretrained(pipeline.save_pretrained(tmp_path / "model"))
    assert again.source == LabelSource(5)
    assert torch.equal(again.translate(labels).w_plus, out.w_plus)


def test_a_sketch_from_a_file(generator: Generator, photo: Image.Image, tmp_path: Path) -> None:
    pipeline = build(generator, SketchSource())
    photo.convert("L").save(tmp_path / "sketch.png")
    out = pipeline.translate(tmp_path / "sketch.png")
    with torch.no_grad():
        expected = pipeline.encoder(SketchSource()(photo.convert("L"), 64)[None])
    torch.testing.assert_close(out.w_plus, expected)
    levels = np.asarray(out.crops[0].image)
    assert (levels == levels[..., :1]).all() and levels.std() > 10


def test_a_photo_is_not_aligned(generator: Generator, photo: Image.Image) -> None:
    pipeline = build(generator, PhotoSource())
    out, called = pipeline.translate(photo), pipeline(photo, align=False)
    with torch.no_grad():
        expected = pipeline.encoder(to_tensor(uncropped(photo, 64).image))
    torch.testing.assert_close(out.w_plus, expected)
    assert out.crops[0].photo.size == photo.size
    assert out.crops[0].image.tobytes() == called.crops[0].image.tobytes()
    assert out.reports[0]["l2"] == pytest.approx(called.reports[0]["l2"], rel=0.1)


def test_style_mixing(generator: Generator, labels: Image.Image) -> None:
    pipeline = build(generator, LabelSource(5))
    plain = pipeline.translate(labels).w_plus
    state = torch.get_rng_state()
    out = pipeline.translate(labels, num_outputs=4, latent_mask=range(5, 8), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(out) == 4 and torch.equal(out.w_plus[:, :5], plain[:, :5].expand(4, -1, -1))
    mixed = out.w_plus[:, 5:]
    assert torch.equal(mixed, mixed[:, :1].expand(-1, 3, -1))  # one w in all of them
    assert (torch.pdist(mixed[:, 0]) > 0.01).all() and (mixed[:, 0] - plain[:, 5]).abs().max() > 0.01
    assert len({image.tobytes() for image in out.images}) == 4
    # It is a w of the mapping network
    z = torch.randn(generator.config.z_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(mixed[0, 0], generator.mapping(z[None])[0])

    fewer = pipeline.translate(labels, num_outputs=2, latent_mask=[7, 5, 6], seed=3)
    torch.testing.assert_close(fewer.w_plus, out.w_plus[:2])
    other = pipeline.translate(labels, latent_mask=[5, 6, 7], seed=4)
    assert (other.w_plus - out.w_plus[:1]).abs().max() > 0.01
    for alpha in (0.0, 0.25, 1.0):
        blended = pipeline.translate(labels, num_outputs=4, latent_mask=[5, 6, 7], mix_alpha=alpha, seed=3).w_plus
        torch.testing.assert_close(blended, alpha * out.w_plus + (1 - alpha) * plain)


def test_bad_arguments(generator: Generator, labels: Image.Image) -> None:
    pipeline = build(generator, LabelSource(5))
    with pytest.raises(ValueError, match="`num_outputs` must be at least 1, got 0"):
        pipeline.translate(labels, num_outputs=0)
    with pytest.raises(ValueError, match=r"`num_outputs` is 2, but without `latent_mask` .*latent_mask=range\(4, 8\)"):
        pipeline.translate(labels, num_outputs=2)
    with pytest.raises(ValueError, match=r"`mix_alpha` is 0\.5, but there is no `latent_mask`"):
        pipeline.translate(labels, mix_alpha=0.5)
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"`mix_alpha` must be in \[0, 1\], got {bad}"):
            pipeline.translate(labels, latent_mask=[0], mix_alpha=bad)
    for layers in ([], [8], [-1]):
        with pytest.raises(ValueError, match=r"`latent_mask` must name layers in \[0, 7\], at least one, got \["):
            pipeline.translate(labels, latent_mask=layers)
    with pytest.raises(InvalidImageError, match=r"labels must be in \[0, 2\]"):
        build(generator, LabelSource(3)).translate(labels)
    with pytest.raises(ValueError, match=r"This encoder reads LabelSource\(num_labels=5\).*use `translate\(image\)`"):
        pipeline(labels)


def test_source_and_encoder_must_fit(generator: Generator, tmp_path: Path) -> None:
    pipeline = build(generator, LabelSource(5))
    with pytest.raises(ValueError, match=r"`source` has 3 channels .*, but the encoder reads 5"):
        PSPPipeline(generator, pipeline.encoder)
    folder = pipeline.save_pretrained(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["source"] == {"kind": "labels", "num_labels": 5}
    for bad in ({"kind": "labels", "num_labels": 4}, {"kind": "video"}, 3):
        (folder / "config.json").write_text(json.dumps({**config, "source": bad}))
        with pytest.raises(CheckpointError, match="bad settings under `source`"):
            PSPPipeline.from_pretrained(folder)


def test_models_without_a_source_read_photos(generator: Generator, tmp_path: Path) -> None:
    folder = build(generator, PhotoSource()).save_pretrained(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["source"]
    (folder / "config.json").write_text(json.dumps(config))
    assert PSPPipeline.from_pretrained(folder).source == PhotoSource()
