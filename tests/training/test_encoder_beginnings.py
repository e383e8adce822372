"""What a run of an encoder begins with, and the models that it leaves."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_inversion import E4EPipeline, PSPPipeline, hub
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.training.config import EncoderOptions
from tests.training.conftest import MakeConfig, MakeLearner, save_model
from tests.training.encoder_parts import SPREAD, batches_of
from tests.training.test_checkpoint import same


def test_a_psp_encoder_becomes_an_e4e_encoder(
    make_config: MakeConfig, make_learner: MakeLearner, tmp_path: Path
) -> None:
    psp = make_learner()
    psp.export(tmp_path / "psp")
    learner = make_learner(method="e4e", init=str(tmp_path / "psp"))
    x = batches_of(learner, 1)[0]["x"]
    w_plus, theirs = learner.encoder.eval()(x), psp.encoder.eval()(x)
    for i in range(6):
        torch.testing.assert_close(w_plus[:, i], theirs[:, 0])
    learner.encoder.train()
    learner.step(batches_of(learner, 1), 3)
    assert learner.stage(3) == 5 and not torch.equal(*learner.encoder.eval()(x)[:, 4:].unbind(1))


def test_fine_tuning_starts_from_the_encoder(make_learner: MakeLearner, tmp_path: Path) -> None:
    first = make_learner(method="e4e")
    first.step(batches_of(first, 1), 3)
    first.export(tmp_path / "first")
    second = make_learner(method="e4e", init=str(tmp_path / "first"), seed=5)
    assert same(dict(second.encoder.state_dict()), dict(first.encoder.state_dict()))
    assert second.encoder.training and all(p.requires_grad for p in second.encoder.parameters())


def test_another_generator_brings_its_own_average(make_learner: MakeLearner, tmp_path: Path) -> None:
    first = make_learner()
    first.export(tmp_path / "first")
    toons = save_model(tmp_path / "toons", seed=9)
    learner = make_learner(
        model=str(toons), task="toonify", init=str(tmp_path / "first"), loss={"lpips": 0, "identity": 0}
    )
    assert learner.weights.w_norm == 0.025
    assert not torch.equal(learner.generator.w_avg, first.generator.w_avg)
    assert torch.equal(learner.encoder.w_avg, learner.generator.w_avg.expand(6, -1))
    assert all(torch.equal(a, b) for a, b in zip(learner.encoder.parameters(), first.encoder.parameters()))
    assert learner.step(batches_of(learner, 1), 0)[1]


def test_bad_beginnings(make_config: MakeConfig, make_learner: MakeLearner, model: Path, tmp_path: Path) -> None:
    make_learner().export(tmp_path / "psp")
    init = str(tmp_path / "psp")
    with pytest.raises(ModelNotFoundError, match=r"`init`: .* holds no Encoder4Editing .folder 'e4e_encoder'"):
        make_learner(method="e4e", init=str(model))
    with pytest.raises(ModelNotFoundError, match=r"`init`: .* holds no GradualStyleEncoder"):
        make_learner(init=str(model))
    with pytest.raises(ValueError, match="generator of 16 px and w_dim 16; `model` has 32 px and w_dim 16"):
        make_learner(init=init, model=str(save_model(tmp_path / "large", resolution=32)))
    with pytest.raises(ValueError, match="generator of 16 px and w_dim 16; `model` has 16 px and w_dim 8"):
        make_learner(init=init, model=str(save_model(tmp_path / "narrow", w_dim=8)))
    with pytest.raises(ValueError, match="takes 3 channels; `task` SketchToFace gives 1"):
        make_learner(init=init, task="sketch_to_face")
    with pytest.raises(
        ValueError, match=r"encoder with units=.1, 1, 1, 1., `encoder.units` is .1, 1, 1, 2.: leave it out"
    ):
        make_learner(init=init, encoder=dataclasses.replace(make_config().encoder, units=[1, 1, 1, 2]))
    with pytest.raises(ValueError, match="`synthetic_batch_size` is 2, but `task` SketchToFace does not read pictures"):
        make_learner(task="sketch_to_face", synthetic_batch_size=2)
    with pytest.raises(ValueError, match=r"`loss\.moco` is 0\.5, but there is no network for it"):
        make_learner(loss={"lpips": 0.0, "identity": 0.0, "moco": 0.5})
    with pytest.raises(ValueError, match=r"`moco` is 'moco', but `loss\.moco` is 0"):
        make_learner(moco="moco")
    with pytest.raises(ValueError, match=r"does not take pictures of 12 px.*set loss\.lpips_crop=0"):
        make_learner(loss={"lpips": 0.0, "identity": 0.0, "lpips_crop": 1.0})


def test_a_weight_that_hardly_counts_is_said(
    make_learner: MakeLearner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_learner(loss={"lpips": 0.0, "identity": 1.0})
    assert not caplog.text
    make_learner(loss={"lpips": 0.0, "identity": 0.1})
    assert "`loss.identity` is 0.1 with the built-in network" in caplog.text
    caplog.clear()
    make_learner(model=str(save_model(tmp_path / "32", resolution=32)), task="toonify", loss={})
    assert "`loss.identity` is 1 with the built-in network" in caplog.text  # the task's, for ArcFace


def save_arcface(folder: Path, *, in_channels: int = 3, widths: tuple[int, ...] = (8, 8, 8, 8)) -> Path:
    arcface = ArcFace(ArcFaceConfig(in_channels, widths, (1, 1, 1, 1), 4, resolution=32, embedding_dim=4))
    for p in arcface.parameters():
        p.data.uniform_(0.1, 0.2)
    hub.save_module(arcface, folder)
    return folder


def test_backbone_of_a_face_recognition_network(make_learner: MakeLearner, tmp_path: Path) -> None:
    folder = save_arcface(tmp_path / "arcface")
    sizes = EncoderOptions(32, [8, 8, 8, 8], [1, 1, 1, 1], 4, 8, 2, 4, backbone=str(folder))
    learner = make_learner(encoder=sizes)
    theirs = hub.read_tensors(folder / hub.WEIGHTS_NAME)
    ours = learner.encoder.pyramid.backbone.state_dict()
    assert all(torch.equal(tensor, theirs[f"backbone.{name}"]) for name, tensor in ours.items())
    assert learner.encoder.training and all(p.requires_grad for p in learner.encoder.parameters())
    # A sketch has one channel: all but the stem is taken over
    learner = make_learner(encoder=sizes, task="sketch_to_face", loss={"lpips": 0.0})
    ours = learner.encoder.pyramid.backbone.state_dict()
    assert ours["stem.0.weight"].shape[1] == 1
    for name, tensor in ours.items():
        if not name.startswith("stem."):
            assert torch.equal(tensor, theirs[f"backbone.{name}"])
    wide = save_arcface(tmp_path / "wide", widths=(8, 8, 8, 12))
    with pytest.raises(CheckpointError, match="does not fit IRSEBackbone"):
        make_learner(encoder=dataclasses.replace(sizes, backbone=str(wide)))


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
@pytest.mark.parametrize(("method", "cls"), [("psp", PSPPipeline), ("e4e", E4EPipeline)])
def test_export(make_learner: MakeLearner, tmp_path: Path, method: str, cls: Any, ema_decay: float) -> None:
    learner = make_learner(method=method, e4e=SPREAD, steps=10, ema_decay=ema_decay)
    folder = tmp_path / "export"
    orphan = folder / f".files.{2**22 + 1}.abcd1234.partial"  # of a process that cannot be
    (orphan / "e4e_encoder").mkdir(parents=True)
    for step in (5, 9):  # of e4e three offsets are open, then all
        learner.step(batches_of(learner, 1), step)
        learner.export(folder)
        assert not orphan.exists()
        pipeline = cls.from_pretrained(folder, device="cpu")
        x = batches_of(learner, 1)[0]["x"]
        best = learner.encoder if learner.ema is None else learner.ema
        training = best.training
        with torch.no_grad():
            torch.testing.assert_close(pipeline.encoder(x), best.eval()(x), rtol=0, atol=0)
        best.train(training)
        assert pipeline.directions.keys() == {"smile"} and pipeline.crop_scale == 0.9
        assert same(dict(pipeline.generator.state_dict()), dict(learner.generator.state_dict()))
        assert not any(tensor.dtype != torch.float32 for tensor in pipeline.encoder.parameters())
    assert (learner.stage(5), learner.stage(9)) == ((3, 5) if method == "e4e" else (5, 5))
