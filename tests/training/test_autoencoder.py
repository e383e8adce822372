"""What each step of an autoencoder's run does, and whole runs."""

import copy
import dataclasses
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.training.autoencoder import AutoencoderLearner
from stylegan_inversion.training.generator_config import AutoencoderConfig, GeneratorOptions, ReconstructionOptions
from torch import Tensor

from stylegan_inversion import PTIPipeline, hub, latents
from stylegan_inversion.training import autoencoder, reconstruction
from stylegan_inversion.training.config import OptimizerOptions
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.autoencoder_parts import batches_of, learner_of
from tests.training.conftest import (
    MakeAutoencoder,
    save_model,
    save_pictures,
    save_warm_model,
    tiny_generator,
)
from tests.training.runs import elsewhere, read_log, same_runs, saved
from tests.training.test_checkpoint import same


def parts_of(learner: AutoencoderLearner) -> dict[str, Any]:
    state = copy.deepcopy(learner.state())
    for optimizer in (state["optimizer"], state["reconstruction"]["optimizer"]):
        for group in optimizer["param_groups"]:
            group.pop("lr")  # follows from the step alone
    return {name: state[name] for name in ("generator", "average", "optimizer", "reconstruction")}


def test_a_run(make_autoencoder: MakeAutoencoder, pictures: Path, tmp_path: Path) -> None:
    config = make_autoencoder(
        steps=20,
        optimizer=OptimizerOptions("adam", 1e-2, 0.1, "cosine", betas=[0.5, 0.99]),
        validation_data=str(save_pictures(tmp_path / "held out", 9, seed=1)),
        validate_every=10,
        image_every=10,
        ema_decay=0.9,
        crop_scale=0.7,
    )
    result = train(config)
    losses = [line["loss"] for line in read_log(config)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    scores = read_log(config, "validation")
    assert [line["step"] for line in scores] == [10, 20] and result.best == min(line["loss"] for line in scores)
    assert set(scores[0]) == {"step", "kind", "l1", "l2", "loss"}
    with Image.open(Path(config.output, "images", "step-00000010.png")) as grid:
        assert grid.size == (2 * (2 * 16 + 4), 4 * 16)
    # What is saved draws the pictures again as well as it was judged to
    last = Path(config.output, "last")
    pipeline = PTIPipeline.from_pretrained(last)
    assert pipeline.crop_scale == 0.7
    encoder = hub.load_module(ImageEncoder, ImageEncoderConfig, last / "autoencoder")
    folder = learner_of(config).open_validation_data()
    assert folder is not None and len(folder) == 9
    y = torch.stack([folder[i]["y"] for i in range(9)])
    with torch.no_grad():
        y_hat = pipeline.generator.synthesis(latents.broadcast(encoder(y), 6))
    assert float(F.mse_loss(y_hat, y)) == pytest.approx(scores[-1]["l2"], rel=1e-4)
    assert float((y_hat - y).abs().mean()) == pytest.approx(scores[-1]["l1"], rel=1e-4)
    assert scores[-1]["loss"] == pytest.approx(scores[-1]["l1"] + scores[-1]["l2"])


def test_gradients(make_autoencoder: MakeAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(make_autoencoder(accumulation=2, components=0))
    encoder = learner.reconstruction.encoder
    seen: list[tuple[torch.optim.Optimizer, set[bool]]] = []
    for module in (autoencoder, reconstruction):
        apply = module.apply_gradients

        def note(*args: Any, apply: Any = apply, **options: Any) -> bool:
            seen.append((args[1], {p.grad is not None and bool(p.grad.any()) for p in args[2]}))
            assert all(p.grad is None for p in learner.generator.mapping.parameters())
            return apply(*args, **options)

        monkeypatch.setattr(module, "apply_gradients", note)
    before = copy.deepcopy(learner.generator.mapping.state_dict())
    _, finite = learner.step(batches_of(learner, 2), 0)
    assert finite and seen == [(learner.optimizer, {True}), (learner.reconstruction.optimizer, {True})]
    assert same(dict(learner.generator.mapping.state_dict()), dict(before))
    for network in (learner.generator, encoder, *learner.average):
        assert all(p.grad is None for p in network.parameters())
    assert not any(p.requires_grad for network in learner.average for p in network.parameters())


def test_losses(make_autoencoder: MakeAutoencoder) -> None:
    options = ReconstructionOptions(weight=0.5, lpips=3.0, w_noise=0.0)
    learner = learner_of(make_autoencoder(generator=tiny_generator(32), reconstruction=options, batch_size=2))
    batch = batches_of(learner, 1)
    y, encoder = batch[0]["y"], copy.deepcopy(learner.reconstruction.encoder)
    y_hat = learner.generator.synthesis(latents.broadcast(encoder(y), 8), noise_mode="none").detach()
    terms, _ = learner.step(batch, 0)
    assert set(terms) == {"l1", "l2", "lpips", "loss"}
    assert learner.reconstruction.perceptual is not None
    expected = {
        "l1": (y_hat - y).abs().mean(),
        "l2": (y_hat - y).square().mean(),
        "lpips": learner.reconstruction.perceptual(y_hat, y).mean(),
    }
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-3)
    total = 0.5 * (terms["l1"] + terms["l2"] + 3.0 * terms["lpips"])
    torch.testing.assert_close(terms["loss"], total)
    values, (left, right) = learner.evaluate(iter(batch), score=True)
    assert set(values) == {"l1", "l2", "lpips", "loss"} and left.shape == right.shape == (2, 3, 32, 32)


def test_learning_rates(make_autoencoder: MakeAutoencoder) -> None:
    options = ReconstructionOptions(lpips=0, encoder_lr=4e-3)
    config = make_autoencoder(
        steps=10, optimizer=OptimizerOptions("adam", 1e-2, schedule="cosine", betas=[0.5, 0.9]), reconstruction=options
    )
    learner = learner_of(config)
    learner.step(batches_of(learner, 1), 5)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(5e-3)
    encoders = learner.reconstruction.optimizer.param_groups[0]
    assert encoders["lr"] == pytest.approx(2e-3) and encoders["betas"] == (0.5, 0.9)


def test_averages(make_autoencoder: MakeAutoencoder) -> None:
    learner = learner_of(make_autoencoder(ema_decay=0.6))
    networks = (learner.generator, learner.reconstruction.encoder)
    expected = [[p.detach().clone() for p in network.parameters()] for network in networks]
    for step in range(8):
        learner.step(batches_of(learner, 1, start=step), step)
        decay = min(0.6, (step + 1) / (step + 10))
        for network, average in zip(networks, expected):
            for p, value in zip(network.parameters(), average):
                value.lerp_(p.detach(), 1 - decay)
    for network, ours, average in zip(networks, learner.average, expected):
        for p, value in zip(ours.parameters(), average):
            torch.testing.assert_close(p, value, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), network.buffers()))


def test_the_encoder_sees_more_than_the_generator_draws(make_autoencoder: MakeAutoencoder) -> None:
    learner = learner_of(make_autoencoder(input_resolution=32, components=0))
    batch = batches_of(learner, 1)
    assert batch[0]["y"].shape == (4, 3, 32, 32)
    _, (y, y_hat) = learner.evaluate(iter(batch), score=False)
    torch.testing.assert_close(y, F.avg_pool2d(batch[0]["y"], 2))
    assert y_hat.shape == (4, 3, 16, 16)
    other = learner_of(make_autoencoder(input_resolution=16, generator=tiny_generator(32)))
    assert batches_of(other, 1)[0]["y"].shape == (4, 3, 32, 32)
    assert other.step(batches_of(other, 1), 0)[1]


def test_it_begins_with_the_components_of_the_pictures(make_autoencoder: MakeAutoencoder) -> None:
    learner = learner_of(make_autoencoder(components=3))
    weight = learner.reconstruction.encoder.linear.weight
    assert bool(weight[:3].any(dim=1).all()) and not weight[3:].any()
    folder = learner.open_data()
    assert folder is not None
    pixels = torch.stack([folder[i]["y"] for i in range(10)]).flatten(1)
    torch.testing.assert_close(learner.reconstruction.encoder.mean, pixels.mean(dim=0))
    few = learner_of(make_autoencoder(components=3, component_images=4)).reconstruction.encoder
    torch.testing.assert_close(few.mean, pixels[:4].mean(dim=0))
    without = learner_of(make_autoencoder(components=0)).reconstruction.encoder
    assert bool(without.linear.weight.any(dim=1).all()) and not without.mean.any()


@pytest.mark.parametrize("where", ["generator", "encoder", "loss"])
def test_a_bad_step_changes_nothing(
    make_autoencoder: MakeAutoencoder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    learner = learner_of(make_autoencoder())
    batch = batches_of(learner, 1)
    assert learner.step(batch, 0)[1]

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * torch.nan

    if where == "generator":
        learner.generator.synthesis.const.register_hook(spoil)
    elif where == "encoder":
        learner.reconstruction.encoder.head.bias.register_hook(spoil)
    else:
        monkeypatch.setattr(reconstruction, "l2_loss", lambda y_hat, y: (y_hat - y).square().mean() * torch.nan)
    before = parts_of(learner)
    _, finite = learner.step(batch, 1)
    after = parts_of(learner)
    assert not finite
    kept = {"average", *{"generator": ["generator", "optimizer"], "encoder": ["reconstruction"]}.get(where, before)}
    unchanged = {name for name in before if same(before[name], after[name])}
    assert kept <= unchanged
    statistics = [name for name, _ in learner.reconstruction.encoder.named_buffers()]
    encoders = [parts["reconstruction"]["encoder"] for parts in (before, after)]
    assert all(torch.equal(encoders[0][name], encoders[1][name]) for name in statistics)
    assert (where == "loss") == (unchanged == set(before))


def test_bad_beginnings(make_autoencoder: MakeAutoencoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not take pictures of 16 px: .* or set reconstruction\.lpips=0"):
        learner_of(make_autoencoder(reconstruction=ReconstructionOptions()))
    init = save_model(tmp_path / "narrow", w_dim=8)
    hub.save_module(ImageEncoder(ImageEncoderConfig(16, 16, (2, 2, 2, 2))), init / "autoencoder")
    with pytest.raises(ValueError, match="`init` brings an encoder with a w of 16; the generator has 8"):
        learner_of(make_autoencoder(init=str(init)))
    for count in (10, 256):
        with pytest.raises(ValueError, match=rf"must be in \[0, 9\], for 10 pictures and a w of 16, got {count}"):
            learner_of(make_autoencoder(components=count))
    with pytest.raises(ValueError, match=r"`components` must be in \[0, 3\], for 4 pictures"):
        learner_of(make_autoencoder(component_images=4))
    with pytest.raises(ValueError, match="nowhere"):
        learner_of(make_autoencoder(data="nowhere"))
    shallow = dataclasses.replace(tiny_generator(), mapping_layers=1)
    with pytest.raises(ValueError, match=r"`generator\.mapping_layers` of at least 2, got 1\. Or set prior_images=0"):
        learner_of(make_autoencoder(generator=shallow))
    one = str(save_pictures(tmp_path / "one", 1))
    with pytest.raises(ValueError, match=r"`prior_images` needs at least 2 pictures in .*one, got 1\. Or set prior_i"):
        learner_of(make_autoencoder(data=one, components=0))
    learner_of(make_autoencoder(generator=shallow, data=one, components=0, prior_images=0)).export(tmp_path / "export")


def test_an_encoder_of_init_keeps_its_size(make_autoencoder: MakeAutoencoder, tmp_path: Path) -> None:
    init = save_warm_model(tmp_path / "warm32", resolution=32)
    learner = learner_of(make_autoencoder(init=str(init), input_resolution=64, generator=GeneratorOptions()))
    assert learner.reconstruction.encoder.config.input_resolution == 32


def test_weights_follow_from_the_seed_alone(make_autoencoder: MakeAutoencoder) -> None:
    state = torch.get_rng_state()
    first = learner_of(make_autoencoder()).state()
    assert torch.equal(torch.get_rng_state(), state)
    assert same(learner_of(make_autoencoder()).state(), first)
    other = learner_of(make_autoencoder(seed=1)).state()
    assert not same(dict(other["generator"]), dict(first["generator"]))


def everything(make_autoencoder: MakeAutoencoder, pictures: Path, **overrides: Any) -> AutoencoderConfig:
    options: dict[str, Any] = {
        "steps": 8,
        "validation_data": str(pictures),
        "validate_every": 5,
        "checkpoint_every": 2,
        "optimizer": OptimizerOptions("adam", 1e-2, 0.2, "cosine", betas=[0.5, 0.99], max_grad_norm=5.0),
    }
    return make_autoencoder(**(options | overrides))


def test_killed_and_still_the_same(make_autoencoder: MakeAutoencoder, pictures: Path, tmp_path: Path) -> None:
    config = everything(make_autoencoder, pictures, accumulation=2)
    other = elsewhere(config, tmp_path, "killed")
    assert children.run(children.train, config) == 0
    log, delays = Path(other.output, "log.jsonl"), random.Random(0)
    for kill in ("half written", 3, "half exported"):
        if isinstance(kill, str):
            assert children.run(children.train_and_crash, other, kill) == children.CRASHED
        else:
            child = children.start(children.train, other)
            children.kill_at(child, log, kill, delays.uniform(0, 0.03))
            assert child.exitcode == -signal.SIGKILL
    assert children.run(children.train, other) == 0
    same_runs(config, other)


def test_two_processes_train_as_one_with_both_batches(
    make_autoencoder: MakeAutoencoder, pictures: Path, tmp_path: Path
) -> None:
    """Batch norm is over the pictures of both: unlike with `accumulation`, whose micro-batches are apart."""
    one = everything(make_autoencoder, pictures, steps=5, batch_size=8, validate_every=3)
    two = elsewhere(one, tmp_path, "two", batch_size=4)
    train(one)
    assert children.run(children.train_twofold, two) == 0
    for kind, count in (("train", 5), ("validation", 2)):
        ours, theirs = read_log(one, kind), read_log(two, kind)
        assert len(ours) == count
        for a, b in zip(ours, theirs, strict=True):
            assert b == {k: v if k == "kind" else pytest.approx(v, rel=1e-4) for k, v in a.items()}
    a, b = saved(one)["learner"], saved(two)["learner"]
    for x, y in ((a["generator"], b["generator"]), (a["reconstruction"]["encoder"], b["reconstruction"]["encoder"])):
        for name in x:
            torch.testing.assert_close(y[name], x[name], rtol=1e-3, atol=1e-3)  # a tenth of a step of Adam


def test_mixed_precision(make_autoencoder: MakeAutoencoder, tmp_path: Path) -> None:
    full = make_autoencoder(batch_size=8, steps=2)
    half = elsewhere(full, tmp_path, "half", mixed_precision="bf16")
    train(full)
    train(half)
    for a, b in zip(read_log(full), read_log(half), strict=True):
        assert a["loss"] != b["loss"] and b["loss"] == pytest.approx(a["loss"], rel=0.1)
    assert all(t.dtype != torch.bfloat16 for t in saved(half)["learner"]["reconstruction"]["encoder"].values())


def test_the_length_of_a_run_is_fixed(make_autoencoder: MakeAutoencoder) -> None:
    config = make_autoencoder(steps=2, optimizer=OptimizerOptions("adam", 1e-2, schedule="cosine"))
    train(config)
    with pytest.raises(ValueError, match="holds a run with steps=2, and this one has 3"):
        train(dataclasses.replace(config, steps=3))
