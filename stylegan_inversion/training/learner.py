"""What the trainer asks of whatever is trained."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stylegan_inversion.training.data import FaceFolder


class Learner(Protocol):
    """The networks of a run, and what a step does to them."""

    optimizer: torch.optim.Optimizer  # the one whose learning rate is logged

    def open_data(self, *, training: bool = True) -> FaceFolder | None:
        """The pictures that are trained on, augmented if for `training`; `None` if the run needs none."""
        ...

    def open_validation_data(self) -> FaceFolder | None:
        """The pictures that are held out; `None` if there are none."""
        ...

    def step(self, batches: Sequence[dict[str, Tensor]], step: int) -> tuple[dict[str, Tensor], bool]:
        """Train for one step.

        Args:
            batches: The micro-batches of this process, as the data give them; empty dicts if the run needs none.
            step: Number of the step, from 0. All random draws follow from it and from the places in the run.

        Returns:
            The terms of the loss, means over this process, and whether the step was finite; a network whose part was
            not has not changed.
        """
        ...

    def evaluate(self, batches: Iterator[dict[str, Tensor]], *, score: bool) -> tuple[dict[str, float], list[Tensor]]:
        """Judge what would be saved.

        Args:
            batches: Held-out pictures; each process may get its own share.
            score: False asks for pictures only, of the first few.

        Returns:
            Figures, the same in all processes, and the lower the better in "loss", which chooses the best model; and
            columns of pictures, each (B, 3, r, r), RGB, in [-1, 1], to be shown side by side.
        """
        ...

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        ...

    def export(self, folder: Path) -> None:
        """Write a model that others read."""
        ...


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move an exponential moving average of a network's parameters; its buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for buffer, now in zip(average.buffers(), network.buffers()):
        buffer.copy_(now)
