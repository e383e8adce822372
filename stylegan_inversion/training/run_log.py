"""What a run leaves to look at: `log.jsonl`, grids of pictures, and the trackers (TensorBoard, Weights & Biases)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available
from torch import Tensor

from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.preprocessing.image import save_image, to_pil

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
GRID_COLUMN = 4  # examples one below the other, before the next column starts
MARGIN = 4  # white pixels between the columns


def check_trackers(names: Sequence[str]) -> None:
    """Check that the trackers are known and installed.

    Raises:
        ValueError: If one is unknown.
        MissingDependencyError: If one is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"`trackers` may hold {', '.join(TRACKERS)}, got {name!r}.")
        if not TRACKERS[name]():
            raise MissingDependencyError(f"`trackers` holds {name!r}: pip install {name}, or set trackers=[].")


class RunLog:
    """The log of a run. Only the main process writes."""

    def __init__(self, folder: Path, accelerator: Accelerator, *, trackers: Sequence[str]) -> None:
        self.folder, self.accelerator, self.trackers = folder, accelerator, list(trackers)
        self.path = folder / "log.jsonl"

    def open(self) -> None:
        """Start the trackers: for Weights & Biases a project of this name, for TensorBoard a folder."""
        if self.trackers:
            self.accelerator.init_trackers("stylegan_inversion")

    def close(self) -> None:
        """End the trackers, and the processes' connection."""
        self.accelerator.end_training()

    def cut(self, step: int) -> None:
        """Drop the lines that a killed run wrote after its last checkpoint: they are written again."""
        if self.accelerator.is_main_process and self.path.exists():
            kept = [line for line in self.path.read_text("utf-8").splitlines() if _step_of(line) <= step]
            whole = self.path.with_name(f".{self.path.name}")  # a kill must not cost the log
            whole.write_text("".join(f"{line}\n" for line in kept), "utf-8")
            whole.replace(self.path)

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Write a line, "train" or "validation". What is not finite becomes null, since JSON has no NaN."""
        if not self.accelerator.is_main_process:
            return
        if self.trackers:
            self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)
        with self.path.open("a", encoding="utf-8") as file:
            known = {name: value if math.isfinite(value) else None for name, value in values.items()}
            file.write(json.dumps({"step": step, "kind": kind, **known}, allow_nan=False) + "\n")

    def draw(self, step: int, columns: Sequence[Tensor]) -> None:
        """Save pictures side by side, each column (B, 3, H, W), RGB, in [-1, 1], on the CPU; at the last one's side."""
        if not self.accelerator.is_main_process:
            return
        side = columns[-1].shape[-1]
        same = [x if x.shape[-1] == side else F.interpolate(x, size=side, mode="nearest") for x in columns]
        rows = torch.cat(same, dim=3).clamp(-1, 1)  # (B, 3, H, columns * W)
        rows = F.pad(rows, (0, 0, 0, 0, 0, 0, 0, -len(rows) % GRID_COLUMN), value=1.0)
        stacks = rows.unflatten(0, (-1, GRID_COLUMN)).transpose(1, 2).flatten(2, 3)  # (stacks, 3, 4 H, columns * W)
        grid = torch.cat(list(F.pad(stacks, (0, MARGIN), value=1.0)), dim=2)
        picture = to_pil(grid[None])[0]
        folder = self.folder / "images"
        folder.mkdir(parents=True, exist_ok=True)
        save_image(picture, folder / f"step-{step:08d}.png")
        for tracker in self.accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"pictures": np.asarray(picture)[None]}, step=step, **options)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off by a kill
        return float("inf")
