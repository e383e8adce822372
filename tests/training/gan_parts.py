"""The parts of an adversarial run, and what a step does to each."""

import copy
from typing import Any

import pytest
from stylegan_inversion.training.generator_config import (
    ReconstructionOptions,
)
from torch import Tensor, nn

from stylegan_inversion.training import gan
from stylegan_inversion.training.data import PositionSampler, load_batches
from stylegan_inversion.training.gan import GANLearner
from tests.training.test_checkpoint import same

AGAIN = ReconstructionOptions(batch_size=2, lpips=0)


def batches_of(learner: GANLearner, count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """The first micro-batches of the run."""
    folder = learner.open_data()
    assert folder is not None
    sampler = PositionSampler(learner.config.batch_size, start=start, end=start + count)
    return list(load_batches(folder, sampler, num_workers=0))


def networks(learner: GANLearner) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {
        "generator": learner.generator,
        "discriminator": learner.discriminator,
        "average": learner.average,
        "perceptual": learner.progress.perceptual,
    }
    return parts if learner.reconstruction is None else parts | {"encoder": learner.reconstruction.encoder}


def part_of(learner: GANLearner, name: str) -> Any:
    """All that belongs to a network: its weights and statistics, and its optimizer."""
    state = learner.state()
    if name == "encoder":
        return state["reconstruction"]
    optimizer = copy.deepcopy(state["optimizer" if name == "generator" else "discriminator_optimizer"])
    for group in optimizer["param_groups"]:
        group.pop("lr")  # follows from the step alone
    w_avg = {key: value for key, value in state[name].items() if key != "w_avg"}
    return [w_avg, optimizer]


class Phases:
    """Watches the parts of a step: what each has gradients for, and what it changes."""

    def __init__(self, learner: GANLearner, patch: pytest.MonkeyPatch) -> None:
        self.learner, self.names = learner, list[str]()
        self.gradients: list[dict[str, dict[str, Tensor | None]]] = []
        self.before: list[dict[str, Any]] = []
        self.after: list[dict[str, Any]] = []
        apply = gan.apply_gradients

        def note(accelerator: Any, optimizer: Any, *args: Any, **options: Any) -> bool:
            self.gradients.append(
                {
                    name: {key: None if p.grad is None else p.grad.clone() for key, p in network.named_parameters()}
                    for name, network in networks(learner).items()
                }
            )
            return apply(accelerator, optimizer, *args, **options)

        patch.setattr(gan, "apply_gradients", note)
        for phase in ("generator", "path_length", "discriminator", "r1"):
            self._watch(phase, patch)

    def _watch(self, phase: str, patch: pytest.MonkeyPatch) -> None:
        real = getattr(self.learner, f"_{phase}_step")

        def watched(*args: Any) -> Any:
            self.names.append(phase)
            self.before.append(copy.deepcopy(self._state()))
            result = real(*args)
            self.after.append(copy.deepcopy(self._state()))
            return result

        patch.setattr(self.learner, f"_{phase}_step", watched)

    def _state(self) -> dict[str, Any]:
        parts = {name: part_of(self.learner, name) for name in ("generator", "discriminator")}
        if self.learner.reconstruction is not None:
            parts["encoder"] = part_of(self.learner, "encoder")
        state = self.learner.state()
        more = {name: state[name] for name in ("average", "mean_length", "ada")}
        return parts | more | {"w_avg": self.learner.generator.w_avg}

    def changed(self, index: int) -> set[str]:
        before, after = self.before[index], self.after[index]
        return {name for name in before if not same(before[name], after[name])}
