"""What a run of an encoder begins with, what each step does, its evaluation, and whole runs of other tasks."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stylegan_inversion import E4EPipeline, PSPPipeline, hub
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.losses.identity import inner_face
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.models.resnet import ResNet, ResNetConfig
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.preprocessing.sources import LabelSource, SketchSource
from stylegan_inversion.training.config import E4EOptions, LossOptions, OptimizerOptions, TaskOptions
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.trainer import train
from tests.training.conftest import SIZES, MakeConfig, MakeLearner, batches_of, save_model, save_pictures
from tests.training.test_checkpoint import same

SPREAD = E4EOptions(open_from=0.2, open_until=0.8, pool_size=6)  # stages over the whole of a short run


def frozen(learner: EncoderLearner) -> list[nn.Module]:
    """Every network of the run but the encoder."""
    networks: list[nn.Module] = [learner.generator]
    networks += [] if learner.adversary is None else [learner.adversary.network]
    networks += [] if learner.ema is None else [learner.ema]
    objective = learner.objective
    for part in (objective.perceptual, objective.identity, objective.moco):
        networks += [] if part is None else [part]
    return networks


def expected_styles(name: str, stage: int) -> bool:
    """Whether a parameter of the encoder of the tiny runs takes part at a stage of e4e: of 6 styles, 0 and 1 read c3,
    2 and 3 read p2, 4 and 5 read p1."""
    if ".styles." in name:
        return int(name.split(".styles.")[1].split(".")[0]) <= stage
    if ".lateral2." in name:
        return stage >= 2
    if ".lateral1." in name:
        return stage >= 4
    return True


def check_gradients(learner: EncoderLearner, stage: int) -> None:
    for name, p in learner.encoder.named_parameters():
        if expected_styles(name, stage):
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, (name, stage)
        else:
            assert p.grad is None, (name, stage)
    for network in frozen(learner):
        assert all(not p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("stage", [0, 1, 3, 5])
def test_gradients_at_each_stage_of_e4e(make_learner: MakeLearner, stage: int) -> None:
    learner = make_learner(method="e4e", steps=100, e4e=SPREAD, synthetic_batch_size=2, ema_decay=0.9)
    step = next(step for step in range(101) if learner.stage(step) == stage)
    generator, others = copy.deepcopy(learner.generator.state_dict()), copy.deepcopy(learner.encoder.state_dict())
    _, finite = learner.step(batches_of(learner, 1), step)
    assert finite
    check_gradients(learner, stage)
    assert same(dict(learner.generator.state_dict()), dict(generator))
    changed = {name for name, p in learner.encoder.named_parameters() if not torch.equal(p, others[name])}
    assert changed == {name for name, _ in learner.encoder.named_parameters() if expected_styles(name, stage)}
    assert torch.equal(learner.encoder.w_avg, learner.generator.w_avg.expand(6, -1))
    # The next step, at another stage, starts afresh
    learner.step(batches_of(learner, 1), 0)
    check_gradients(learner, 0)


def test_gradients_of_psp_with_every_loss(make_learner: MakeLearner, tmp_path: Path) -> None:
    loss = {"lpips": 0.8, "identity": 0.1, "w_norm": 0.005, "l2_crop": 0.1, "w_distance": 1.0}
    learner = make_learner(
        model=str(save_model(tmp_path / "32", resolution=32)),
        loss=LossOptions(**loss, delta=1e-4),
        synthetic_batch_size=2,
        batch_size=2,
        encoder=SIZES,
        accumulation=2,
    )
    check_steps(learner, {"l2", "delta", *loss}, networks=3)


def test_gradients_of_the_losses_of_other_tasks(make_learner: MakeLearner, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hub.save_module(ResNet(ResNetConfig((4, 4, 4, 4), (1, 1, 1, 1))), tmp_path / "moco")
    loss = {"l2": 0.01, "lpips": 0.8, "identity": 0.0, "moco": 0.5, "l2_crop": 0.1, "lpips_crop": 8.0, "w_norm": 0.005}
    learner = make_learner(
        model=str(save_model(tmp_path / "64", resolution=64)),
        task="frontalization",
        moco=str(tmp_path / "moco"),
        loss=LossOptions(**loss),
        batch_size=2,
        encoder=SIZES,
        accumulation=2,
    )
    check_steps(learner, {name for name, weight in loss.items() if weight}, networks=3)


def check_steps(learner: EncoderLearner, names: set[str], *, networks: int) -> None:
    """Two steps have these terms, summed by their weights; they reach all of the encoder and none of the others."""
    states = [copy.deepcopy(network.state_dict()) for network in frozen(learner)]
    assert len(states) == networks
    for step in range(2):
        terms, finite = learner.step(batches_of(learner, 2, start=2 * step), step)
        assert finite and set(terms) == {"loss", *names}
    check_gradients(learner, learner.generator.num_ws - 1)
    assert all(same(dict(n.state_dict()), dict(s)) for n, s in zip(frozen(learner), states))
    weights = learner.weights
    assert float(terms["loss"]) == pytest.approx(sum(weights[k] * float(v) for k, v in terms.items() if k != "loss"))
    with torch.no_grad():  # each compares what its name says
        batch = batches_of(learner, 1)[0]
        y_hat, y = learner.generator.synthesis(learner.encoder(batch["x"])), batch["y"]
        found = learner.objective.images(y_hat, y)
    perceptual, moco = learner.objective.perceptual, learner.objective.moco
    assert perceptual is not None
    assert torch.equal(found["lpips"], perceptual(y_hat, y).mean())
    if moco is not None:
        assert torch.equal(found["moco"], moco(y_hat, y))
        assert torch.equal(found["lpips_crop"], perceptual(inner_face(y_hat), inner_face(y)).mean())


def test_terms_of_e4e(make_learner: MakeLearner) -> None:
    learner = make_learner(method="e4e", steps=100, e4e=SPREAD)
    for step, names in (
        (0, {"l2", "adversarial", "discriminator", "r1"}),
        (99, {"l2", "adversarial", "discriminator"}),
    ):
        terms, _ = learner.step(batches_of(learner, 1), step)
        assert set(terms) == names | {"loss"} | ({"delta"} if step else set())
    without = make_learner(method="e4e", loss=LossOptions(lpips=0.0, identity=0.0, adversarial=0.0))
    assert without.adversary is None and "adversarial" not in without.step(batches_of(without, 1), 0)[0]


def test_a_teacher_knows_the_w_of_pictures(make_learner: MakeLearner) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 16)).eval().requires_grad_(False)
    learner = make_learner(
        teacher=teacher,
        synthetic_batch_size=2,
        loss=LossOptions(0.0, 0.0, 0.0, w_distance=1.0),
        optimizer=OptimizerOptions("adam", 1e-2),
    )
    batches = batches_of(learner, 1)
    samples, true_w = learner.draws.synthesize(0, 2, side=learner.input_resolution)
    with torch.no_grad():
        w_plus = copy.deepcopy(learner.encoder)(torch.cat([batches[0]["x"], samples]))
        wanted = torch.cat([teacher(batches[0]["y"]), true_w])
    losses = [float(learner.step(batches, 0)[0]["w_distance"]) for _ in range(60)]  # always the same
    assert losses[0] == pytest.approx(float((w_plus - wanted[:, None]).square().mean()), rel=1e-5)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_labels_to_face(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    sources = tmp_path / "labels"
    sources.mkdir()
    for i, path in enumerate(sorted(pictures.iterdir())):
        labels = np.random.default_rng(i).integers(0, 4, (24, 24), dtype=np.uint8)
        Image.fromarray(labels).save(sources / path.name)
    config = make_config(
        task="labels_to_face",
        task_options=TaskOptions(num_labels=4),
        sources=str(sources),
        validation_data=str(pictures),
        validation_sources=str(sources),
        loss=LossOptions(lpips=0.0),
        steps=2,
    )
    assert train(config).step == 2
    pipeline = PSPPipeline.from_pretrained(tmp_path / "run" / "best", device="cpu")
    assert pipeline.source == LabelSource(4)
    out = pipeline.translate(sources / "00.png", num_outputs=2, latent_mask=[4, 5])
    assert len(out.images) == 2
    assert load_image(tmp_path / "run" / "images" / "step-00000002.png").width > 3 * 16


def test_sketch_to_face(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    sources = save_pictures(tmp_path / "sketches", 10, seed=5)
    config = make_config(
        method="e4e",
        task="sketch_to_face",
        sources=str(sources),
        validation_data=None,
        loss=LossOptions(lpips=0.0),
        steps=2,
    )
    assert train(config).best is None
    grid = load_image(tmp_path / "run" / "images" / "step-00000002.png")  # of pictures that are trained on
    assert grid.size == (2 * (3 * 16 + 4), 4 * 16)
    pipeline = E4EPipeline.from_pretrained(tmp_path / "run" / "last", device="cpu")
    assert pipeline.source == SketchSource() and len(pipeline.translate(sources / "00.png").images) == 1


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
    with pytest.raises(ValueError, match="takes 3 channels; `task` sketch_to_face gives 1"):
        make_learner(init=init, task="sketch_to_face")
    with pytest.raises(
        ValueError, match=r"encoder with units=.1, 1, 1, 1., but `encoder.units` is .1, 1, 1, 2.: leave it out"
    ):
        make_learner(init=init, encoder=dataclasses.replace(make_config().encoder, units=(1, 1, 1, 2)))
    with pytest.raises(ValueError, match="`synthetic_batch_size` is 2, but `task` sketch_to_face does not read"):
        make_learner(task="sketch_to_face", synthetic_batch_size=2)
    with pytest.raises(ValueError, match=r"does not take pictures of 12 px.*set --loss\.lpips-crop 0"):
        make_learner(loss=LossOptions(lpips=0.0, identity=0.0, lpips_crop=1.0))


def test_a_weight_that_hardly_counts_is_said(
    make_learner: MakeLearner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_learner(loss=LossOptions(lpips=0.0, identity=1.0))
    assert not caplog.text
    make_learner(loss=LossOptions(lpips=0.0, identity=0.1))
    assert "`loss.identity` is 0.1 with the built-in network" in caplog.text
    caplog.clear()
    make_learner(model=str(save_model(tmp_path / "32", resolution=32)), task="toonify", loss=LossOptions())
    assert "`loss.identity` is 1 with the built-in network" in caplog.text  # the task's, for ArcFace


def save_arcface(folder: Path, *, in_channels: int = 3, widths: tuple[int, ...] = (8, 8, 8, 8)) -> Path:
    arcface = ArcFace(ArcFaceConfig(in_channels, widths, (1, 1, 1, 1), 4, resolution=32, embedding_dim=4))
    for p in arcface.parameters():
        p.data.uniform_(0.1, 0.2)
    hub.save_module(arcface, folder)
    return folder


def test_backbone_of_a_face_recognition_network(make_learner: MakeLearner, tmp_path: Path) -> None:
    folder = save_arcface(tmp_path / "arcface")
    sizes = dataclasses.replace(SIZES, coarse_end=2, middle_end=4, backbone=str(folder))
    learner = make_learner(encoder=sizes)
    theirs = hub.read_tensors(folder / hub.WEIGHTS_NAME)
    ours = learner.encoder.pyramid.backbone.state_dict()
    assert all(torch.equal(tensor, theirs[f"backbone.{name}"]) for name, tensor in ours.items())
    assert learner.encoder.training and all(p.requires_grad for p in learner.encoder.parameters())
    # A sketch has one channel: all but the stem is taken over
    learner = make_learner(encoder=sizes, task="sketch_to_face", loss=LossOptions(lpips=0.0))
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
