import copy
import dataclasses
import math
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import Tensor

from stylegan_inversion import PTIPipeline, hub
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.models.autoencoder import ImageEncoder, ImageEncoderConfig
from stylegan_inversion.training import mapping
from stylegan_inversion.training.config import OptimizerOptions
from stylegan_inversion.training.generator_config import GeneratorOptions, MappingConfig
from stylegan_inversion.training.mapping import MappingLearner, sliced_wasserstein
from stylegan_inversion.training.trainer import train
from tests.training import children
from tests.training.conftest import MakeMapping, save_pictures, save_warm_model
from tests.training.test_checkpoint import same
from tests.training.test_trainer import elsewhere, read_log, same_runs, saved


def learner_of(config: MappingConfig) -> MappingLearner:
    return MappingLearner(config, Accelerator(cpu=True))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_sliced_wasserstein_is_the_best_assignment_along_each_direction() -> None:
    a, b = normal(20, 3), normal(20, 3, seed=1) * 2 + 1
    directions = normal(3, 7, seed=2)
    directions = directions / directions.norm(dim=0)
    expected = []
    for p, q in zip((a @ directions).T, (b @ directions).T):
        cost = (p[:, None] - q[None]).square().numpy()
        rows, columns = linear_sum_assignment(cost)
        expected.append(cost[rows, columns].mean())
    ours = sliced_wasserstein(a, b, directions)
    assert float(ours) == pytest.approx(sum(expected) / 7, rel=1e-5)
    # Never less than the square of the first Wasserstein distance, and equal for a shift
    first = [wasserstein_distance(p, q) ** 2 for p, q in zip((a @ directions).T.numpy(), (b @ directions).T.numpy())]
    assert float(ours) >= sum(first) / 7
    shifted = sliced_wasserstein(a, a[torch.randperm(20)] + torch.tensor([3.0, 0.0, 0.0]), torch.eye(3))
    assert float(shifted) == pytest.approx(3.0, rel=1e-5)
    assert float(sliced_wasserstein(a, a.flip(0), directions)) == pytest.approx(0, abs=1e-10)


def test_the_gradient_pulls_each_point_to_its_partner() -> None:
    a = torch.tensor([[0.0], [10.0]], requires_grad=True)
    sliced_wasserstein(a, torch.tensor([[12.0], [1.0]]), torch.ones(1, 1)).backward()
    assert a.grad is not None and torch.equal(a.grad, torch.tensor([[-1.0], [-2.0]]))


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_the_mapped_z_come_to_be_distributed_as_the_codes(make_mapping: MakeMapping, adversarial: float) -> None:
    config = make_mapping(
        steps=800,
        batch_size=64,
        components=6,
        adversarial=adversarial,
        ema_decay=0.9,
        optimizer=OptimizerOptions("adam", 1.0, 0.05, "cosine", betas=[0.0, 0.99]),
    )
    learner = learner_of(config)
    z = normal(4000, 8)

    def errors() -> tuple[float, float]:
        with torch.no_grad():
            w = learner.average.mapping(z)
        return float((w.mean(0) - learner.w.mean(0)).norm()), float((w.T.cov() - learner.w.T.cov()).norm())

    mean, cov = errors()
    train(config)
    learner.load_state(saved(config)["learner"])
    new_mean, new_cov = errors()
    assert new_mean < 0.4 * mean and new_cov < 0.55 * cov
    losses = [line["wasserstein"] for line in read_log(config)]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    names = {"step", "kind", "lr", "wasserstein", "loss"}
    names |= {"adversarial", "discriminator"} if adversarial else set()
    assert set(read_log(config)[1]) == names
    assert ("r1" in read_log(config)[0]) == bool(adversarial)


def test_gradients(make_mapping: MakeMapping, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(make_mapping())
    assert learner.adversary is not None
    seen = []
    apply = mapping.apply_gradients

    def note(*args: Any, **options: Any) -> bool:
        assert learner.adversary is not None
        assert all(p.grad is None for p in learner.adversary.network.parameters())
        seen.append(
            {name: p.grad is not None and bool(p.grad.any()) for name, p in learner.generator.named_parameters()}
        )
        return apply(*args, **options)

    monkeypatch.setattr(mapping, "apply_gradients", note)
    before = copy.deepcopy(learner.generator.state_dict())
    adversary = copy.deepcopy(learner.adversary.network.state_dict())
    _, finite = learner.step([{}], 0)
    assert finite and seen == [{name: name.startswith("mapping.") for name in seen[0]}]
    changed = {name for name, tensor in learner.generator.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("mapping.")}
    assert not same(dict(learner.adversary.network.state_dict()), dict(adversary))
    assert all(p.grad is None for p in learner.generator.parameters())


def test_terms(make_mapping: MakeMapping) -> None:
    learner = learner_of(make_mapping(adversarial=0.5))
    terms, _ = learner.step([{}], 0)
    assert set(terms) == {"wasserstein", "adversarial", "loss", "discriminator", "r1"}
    torch.testing.assert_close(terms["loss"], terms["wasserstein"] + 0.5 * terms["adversarial"])
    assert "r1" not in learner.step([{}], 1)[0]


def test_averages(make_mapping: MakeMapping) -> None:
    learner = learner_of(make_mapping(ema_decay=0.6))
    expected = [p.detach().clone() for p in learner.generator.mapping.parameters()]
    for step in range(8):
        learner.step([{}], step)
        decay = min(0.6, (step + 1) / (step + 10))
        for p, value in zip(learner.generator.mapping.parameters(), expected):
            value.lerp_(p.detach(), 1 - decay)
    for p, value in zip(learner.average.mapping.parameters(), expected):
        torch.testing.assert_close(p, value)


def test_codes_of_all_pictures(make_mapping: MakeMapping, warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "ENCODED_AT_ONCE", 4)
    monkeypatch.setattr(MappingLearner, "_main_components", lambda self, w: w)
    encoder = hub.load_module(ImageEncoder, ImageEncoderConfig, warm / "autoencoder")
    for mirror in (False, True):
        learner = learner_of(make_mapping(mirror=mirror))
        folder = mapping.open_pictures(learner.config.data, learner.config, side=16, training=False)
        assert folder is not None
        y = torch.stack([folder[i]["y"] for i in range(10)])
        expected = torch.cat([encoder(y), encoder(y.flip(-1))]) if mirror else encoder(y)
        order = sorted(range(len(expected)), key=lambda i: learner.w[i].tolist())
        other = sorted(range(len(expected)), key=lambda i: expected[i].tolist())
        torch.testing.assert_close(learner.w[order], expected[other])


def test_the_codes_keep_their_main_components(make_mapping: MakeMapping) -> None:
    learner = learner_of(make_mapping(components=5))
    w = normal(40, 16) * torch.linspace(2, 0.1, 16)
    kept = learner._main_components(w)
    torch.testing.assert_close(kept.mean(dim=0), w.mean(dim=0), rtol=1e-4, atol=1e-5)
    centred = (w - w.mean(dim=0)).double()
    values, others = torch.linalg.svd(centred)[1], torch.linalg.svdvals((kept - kept.mean(dim=0)).double())
    torch.testing.assert_close(others[:5], values[:5], rtol=1e-4, atol=1e-4)
    assert float(others[5:].max()) < 1e-4
    assert float((kept - w).square().sum()) == pytest.approx(float(values[5:].square().sum()), rel=1e-3)


def test_bad_beginnings(make_mapping: MakeMapping, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`init`: .* holds no encoder: give the model of an autoencoder run"):
        learner_of(make_mapping(init=str(model)))
    for count in (16, 20):
        with pytest.raises(ValueError, match=rf"`components` must be less than .* pictures, 16, got {count}"):
            learner_of(make_mapping(components=count))
    few = save_pictures(tmp_path / "few", 3)
    with pytest.raises(ValueError, match=r"`components` must be less than .*, 3, got 4"):
        learner_of(make_mapping(data=str(few), mirror=False))
    with pytest.raises(ValueError, match="nowhere"):
        learner_of(make_mapping(data="nowhere"))
    with pytest.raises(ModelNotFoundError):
        learner_of(make_mapping(init=str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match=r"does not take pictures of 16 px: .* or set no validation_data"):
        learner_of(make_mapping(validation_data=str(few))).open_validation_data()


def test_a_bad_step_changes_nothing(make_mapping: MakeMapping, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(make_mapping())
    assert learner.step([{}], 0)[1]
    before = copy.deepcopy(learner.state())
    with monkeypatch.context() as patch:
        patch.setattr(mapping, "sliced_wasserstein", lambda *args: sliced_wasserstein(*args) * math.nan)
        assert not learner.step([{}], 1)[1]
    after = learner.state()
    for state in (before, after):
        state["optimizer"]["param_groups"][0].pop("lr")  # follows from the step alone
    assert same(after, before)
    # The discriminator's part alone
    assert learner.adversary is not None
    monkeypatch.setattr(learner.adversary, "_descend", lambda loss_of: (torch.tensor(math.nan), False))
    mapping_before = copy.deepcopy(learner.generator.mapping.state_dict())
    terms, finite = learner.step([{}], 2)
    assert not finite and math.isnan(float(terms["discriminator"]))
    assert not same(dict(learner.generator.mapping.state_dict()), dict(mapping_before))


def test_what_is_saved(make_mapping: MakeMapping, warm: Path, tmp_path: Path) -> None:
    config = make_mapping(crop_scale=0.6)
    train(config)
    folder = Path(config.output, "last")
    assert sorted(path.name for path in folder.iterdir()) == ["autoencoder", "config.json", "generator"]
    for name in (hub.CONFIG_NAME, hub.WEIGHTS_NAME):
        assert (folder / "autoencoder" / name).read_bytes() == (warm / "autoencoder" / name).read_bytes()
    pipeline = PTIPipeline.from_pretrained(folder)
    assert pipeline.crop_scale == 0.6
    learner = learner_of(config)
    learner.load_state(saved(config)["learner"])
    for name, tensor in pipeline.generator.synthesis.state_dict().items():
        assert torch.equal(tensor, learner.generator.synthesis.state_dict()[name])
    assert same(dict(pipeline.generator.mapping.state_dict()), dict(learner.average.mapping.state_dict()))
    with torch.no_grad():
        w = pipeline.generator.mapping(normal(20_000, 8))
    assert float((w.mean(dim=0) - pipeline.generator.w_avg).norm()) < 0.03 * float(w.norm(dim=1).mean())


def test_a_generator_that_grows_follows_from_the_seed(make_mapping: MakeMapping) -> None:
    options = GeneratorOptions(32)
    torch.rand(3)
    first = learner_of(make_mapping(generator=options)).generator.state_dict()
    torch.rand(5)
    assert same(dict(learner_of(make_mapping(generator=options)).generator.state_dict()), dict(first))


def test_killed_and_still_the_same(make_mapping: MakeMapping, tmp_path: Path) -> None:
    config = make_mapping(
        steps=40, checkpoint_every=7, optimizer=OptimizerOptions("adam", 1e-2, 0.1, "cosine", betas=[0.0, 0.99])
    )
    other = elsewhere(config, tmp_path, "killed")
    assert children.run(children.train, config) == 0
    log, delays = Path(other.output, "log.jsonl"), random.Random(0)
    for kill in ("half written", 10, "half exported"):
        if isinstance(kill, str):
            assert children.run(children.train_and_crash, other, kill) == children.CRASHED
        else:
            child = children.start(children.train, other)
            children.kill_at(child, log, kill, delays.uniform(0, 0.01))
            assert child.exitcode == -signal.SIGKILL
    assert children.run(children.train, other) == 0
    same_runs(config, other)


def test_two_processes_train_as_one(make_mapping: MakeMapping, tmp_path: Path) -> None:
    """Each does the whole of a step."""
    one = make_mapping(
        init=str(save_warm_model(tmp_path / "warm32", resolution=32)),
        steps=5,
        validation_data=str(save_pictures(tmp_path / "held out", 11, seed=1, side=32)),
    )
    two = elsewhere(one, tmp_path, "two")
    train(one)
    assert children.run(children.train_twofold, two) == 0
    for kind, count in (("train", 5), ("validation", 1)):
        ours, theirs = read_log(one, kind), read_log(two, kind)
        assert len(ours) == count
        for a, b in zip(ours, theirs, strict=True):
            assert b == {k: v if k == "kind" else pytest.approx(v, rel=1e-4) for k, v in a.items()}
    a, b = saved(one)["learner"], saved(two)["learner"]
    for name in a["mapping"]:
        torch.testing.assert_close(b["mapping"][name], a["mapping"][name], rtol=1e-4, atol=1e-5)


def test_the_length_of_a_run_is_fixed(make_mapping: MakeMapping) -> None:
    config = make_mapping(steps=2, optimizer=OptimizerOptions("adam", 1e-2, schedule="cosine"))
    train(config)
    with pytest.raises(ValueError, match="holds a run with steps=2, and this one has 3"):
        train(dataclasses.replace(config, steps=3))


def test_a_run_of_other_pictures(make_mapping: MakeMapping) -> None:
    config = make_mapping(steps=1)
    train(config)
    state = saved(config)["learner"]
    state["w_mean"] = state["w_mean"] + 0.1
    with pytest.raises(ValueError, match=r"The pictures in .* are not those that the run began with"):
        learner_of(config).load_state(state)
