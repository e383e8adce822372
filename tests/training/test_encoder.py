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

from stylegan_inversion import E4EPipeline, PSPPipeline, storage
from stylegan_inversion.editing.text_directions import Relevance
from stylegan_inversion.losses.identity import IdentityLoss, inner_face, load_moco
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.models.resnet import ResNet, ResNetConfig
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.preprocessing.sources import LabelSource, SketchSource
from stylegan_inversion.training.config import E4EOptions, LossOptions, OptimizerOptions, TaskOptions
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.trainer import train
from tests.training.conftest import SIZES, SIZES_16, MakeConfig, MakeLearner, batches_of, same, save_model

SPREAD = E4EOptions(open_from=0.2, open_until=0.8, pool_size=6)  # stages over the whole of a short run


def frozen(learner: EncoderLearner) -> list[nn.Module]:
    """Every network of the run but the encoder."""
    compared = [part for part in learner.objective.compare.values() if isinstance(part, nn.Module)]
    adversary = None if learner.adversary is None else learner.adversary.network
    others = (learner.generator, adversary, learner.ema, learner.objective.perceptual, *compared)
    return [network for network in others if network is not None]


def takes_part(name: str, stage: int) -> bool:
    """Whether a parameter of the encoder has a gradient at a stage of e4e: of 6 styles, 0 and 1 read c3, 2 and 3 read
    p2, 4 and 5 read p1."""
    if ".styles." in name:
        return int(name.split(".styles.")[1].split(".")[0]) <= stage
    return stage >= (2 if ".lateral2." in name else 4 if ".lateral1." in name else 0)


def check_gradients(learner: EncoderLearner, stage: int) -> None:
    for name, p in learner.encoder.named_parameters():
        if takes_part(name, stage):
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, (name, stage)
        else:
            assert p.grad is None, (name, stage)
    for network in frozen(learner):
        assert all(not p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("stage", [0, 1, 3, 5])
def test_a_step_at_each_stage_of_e4e(make_learner: MakeLearner, stage: int) -> None:
    learner = make_learner(method="e4e", steps=100, e4e=SPREAD, synthetic_batch_size=2, ema_decay=0.9)
    step = next(step for step in range(101) if learner.stage(step) == stage)
    generator, others = copy.deepcopy(learner.generator.state_dict()), copy.deepcopy(learner.encoder.state_dict())
    terms, finite = learner.step(batches_of(learner, 1), step)
    names = {"loss", "l2", "adversarial", "discriminator"} | ({"delta"} if stage else set())
    assert finite and set(terms) - {"r1"} == names and ("r1" in terms) == (step % 16 == 0)
    check_gradients(learner, stage)
    assert same(dict(learner.generator.state_dict()), dict(generator))
    changed = {name for name, p in learner.encoder.named_parameters() if not torch.equal(p, others[name])}
    assert changed == {name for name, _ in learner.encoder.named_parameters() if takes_part(name, stage)}
    assert torch.equal(learner.encoder.w_avg, learner.generator.w_avg.expand(6, -1))
    # The next step, at another stage, starts afresh
    learner.step(batches_of(learner, 1), 0)
    check_gradients(learner, 0)


@pytest.mark.parametrize("moco", [False, True])
def test_steps_of_psp_with_every_loss(make_learner: MakeLearner, tmp_path: Path, moco: bool) -> None:
    """Two steps have these terms, summed by their weights; they reach all of the encoder and none of the others."""
    loss = {"l2": 1.0, "lpips": 0.8, "identity": 0.1, "w_norm": 0.005, "l2_crop": 0.1, "w_distance": 1.0, "delta": 1e-4}
    options: dict[str, Any] = {"synthetic_batch_size": 2}
    if moco:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            storage.save_module(ResNet(ResNetConfig((4, 4, 4, 4), (1, 1, 1, 1))), tmp_path / "moco")
        loss = {"l2": 0.01, "lpips": 0.8, "moco": 0.5, "l2_crop": 0.1, "lpips_crop": 8.0, "w_norm": 0.005}
        options = {"task": "frontalization", "moco": str(tmp_path / "moco")}
    learner = make_learner(
        model=str(save_model(tmp_path / "64", resolution=64)),
        loss=LossOptions(**{"identity": 0.0} | loss),
        batch_size=2,
        encoder=SIZES,
        accumulation=2,
        **options,
    )
    states = [copy.deepcopy(network.state_dict()) for network in frozen(learner)]
    assert len(states) == 3
    for step in range(2):
        terms, finite = learner.step(batches_of(learner, 2, start=2 * step), step)
        assert finite and set(terms) == {"loss", *loss}
    check_gradients(learner, learner.generator.num_ws - 1)
    assert all(same(dict(n.state_dict()), dict(s)) for n, s in zip(frozen(learner), states))
    assert float(terms["loss"]) == pytest.approx(sum(loss[k] * float(v) for k, v in terms.items() if k != "loss"))
    with torch.no_grad():  # each compares what its name says
        batch = batches_of(learner, 1)[0]
        y_hat, y = learner.generator.synthesis(learner.encoder(batch["x"])), batch["y"]
        found, perceptual = learner.objective.images(y_hat, y), load_perceptual()
        assert torch.equal(found["lpips"], perceptual(y_hat, y).mean())
        if moco:
            assert torch.equal(found["moco"], IdentityLoss(load_moco(tmp_path / "moco"))(y_hat, y))
            assert torch.equal(found["lpips_crop"], perceptual(inner_face(y_hat), inner_face(y)).mean())


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


@pytest.mark.parametrize(
    ("method", "task", "cls", "source"),
    [("psp", "labels_to_face", PSPPipeline, LabelSource(4)), ("e4e", "sketch_to_face", E4EPipeline, SketchSource())],
)
def test_a_run_of_a_paired_task(
    make_config: MakeConfig, pictures: Path, tmp_path: Path, method: str, task: str, cls: Any, source: Any
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for i, path in enumerate(sorted(pictures.iterdir())):
        labels = np.random.default_rng(i).integers(0, 4, (24, 24), dtype=np.uint8)
        Image.fromarray(labels).save(sources / path.name)
    held_out = {"validation_data": str(pictures), "validation_sources": str(sources)} if method == "psp" else {}
    config = make_config(
        **{"method": method, "task": task, "sources": str(sources), "loss": LossOptions(lpips=0.0), "steps": 2},
        task_options=TaskOptions(num_labels=4 if method == "psp" else None),
        **held_out,
    )
    assert (train(config).best is None) == (not held_out)
    grid = load_image(tmp_path / "run" / "images" / "step-00000002.png")  # without held-out ones, of those trained on
    assert grid.size == (2 * (3 * 16 + 4), 4 * 16)
    pipeline = cls.from_pretrained(tmp_path / "run" / ("best" if held_out else "last"), device="cpu")
    assert pipeline.source == source
    assert len(pipeline.translate(sources / "00.png", num_outputs=2, latent_mask=[4, 5]).images) == 2


def test_a_psp_encoder_becomes_an_e4e_encoder(make_learner: MakeLearner, tmp_path: Path) -> None:
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


def test_backbone_of_a_face_recognition_network(make_learner: MakeLearner, tmp_path: Path) -> None:
    """All of it is taken over; but for the stem, if a sketch has one channel."""
    arcface = ArcFace(ArcFaceConfig(3, (8, 8, 8, 8), (1, 1, 1, 1), 4, resolution=32, embedding_dim=4))
    for p in arcface.parameters():
        p.data.uniform_(0.1, 0.2)
    storage.save_module(arcface, tmp_path / "arcface")
    sizes = dataclasses.replace(SIZES_16, backbone=str(tmp_path / "arcface"))
    theirs = arcface.backbone.state_dict()
    for task, channels in (("inversion", 3), ("sketch_to_face", 1)):
        learner = make_learner(encoder=sizes, task=task, loss=LossOptions(lpips=0.0))
        ours = learner.encoder.pyramid.backbone.state_dict()
        assert ours["stem.0.weight"].shape[1] == channels
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]) or (channels == 1 and name.startswith("stem."))
        assert learner.encoder.training and all(p.requires_grad for p in learner.encoder.parameters())


@pytest.mark.parametrize(("method", "cls", "ema_decay"), [("psp", PSPPipeline, 0.0), ("e4e", E4EPipeline, 0.5)])
def test_export(make_learner: MakeLearner, tmp_path: Path, method: str, cls: Any, ema_decay: float) -> None:
    learner = make_learner(method=method, e4e=SPREAD, steps=10, ema_decay=ema_decay)
    count = sum(learner.generator.config.style_sizes)
    Relevance(torch.eye(count, 2), torch.ones(count), "x").save(learner.model_folder / "relevance")
    for step in (5, 9):  # of e4e three offsets are open, then all
        learner.step(batches_of(learner, 1), step)
        learner.export(tmp_path / "export")
        pipeline = cls.from_pretrained(tmp_path / "export", device="cpu")
        x = batches_of(learner, 1)[0]["x"]
        best = copy.deepcopy(learner.encoder if learner.ema is None else learner.ema).eval()
        with torch.no_grad():
            torch.testing.assert_close(pipeline.encoder(x), best(x), rtol=0, atol=0)
        assert pipeline.directions.keys() == {"smile"} and pipeline.crop_scale == 0.9
        assert pipeline.relevance is not None
        assert same(dict(pipeline.generator.state_dict()), dict(learner.generator.state_dict()))
    assert (learner.stage(5), learner.stage(9)) == ((3, 5) if method == "e4e" else (5, 5))
