"""The loop: steps, log, pictures, validation, checkpoints, resume. It knows no loss and no network by name."""

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from stylegan_inversion import storage
from stylegan_inversion.errors import DivergedError, MissingDependencyError

try:
    from accelerate import Accelerator
    from accelerate.utils import is_tensorboard_available, is_wandb_available
except ImportError as e:
    raise MissingDependencyError.of_extra(f"Training needs Accelerate, which cannot be imported ({e}).", "train") from e

from stylegan_inversion.preprocessing.image import save_image, to_pil
from stylegan_inversion.training.checkpoint import compare_configs, read_latest, write_checkpoint
from stylegan_inversion.training.config import RunConfig, config_dict, default_dict
from stylegan_inversion.training.data import FaceFolder, load_batches, positions
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.gan import GANLearner
from stylegan_inversion.training.sfe import SFELearner

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 5
MAX_GRID_ROWS = 16  # pictures that are drawn
GRID_COLUMN = 4  # of them one below the other, before the next column starts
MARGIN = 4  # white pixels between the columns
TRACKERS = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "trackio": lambda: find_spec("trackio") is not None,
}
COMPILERS = ("g++", "c++", "clang++", "cl")

Callback = Callable[[int, dict[str, float]], None]


class Learner(Protocol):
    """What the trainer asks of what it trains: the networks of a run, and what a step does to them.

    A batch holds "x" and "y" as `FaceFolder` gives them, or nothing if the run needs no pictures. Steps count from 0;
    all random draws follow from the step and from the places in the run.
    """

    optimizer: torch.optim.Optimizer  # the one whose learning rate is logged

    def open_data(self, *, held_out: bool = False, training: bool = True) -> FaceFolder | None:
        """The pictures that are trained on or held out, augmented if for `training`; `None` if there are none."""
        ...

    def step(self, batches: Sequence[dict[str, Tensor]], step: int) -> tuple[dict[str, Tensor], bool]:
        """Train on the micro-batches of this process: the terms of the loss, and whether the step was finite.

        The terms are means over this process. A network whose part was not finite has not changed.
        """
        ...

    def evaluate(self, batches: Iterator[dict[str, Tensor]], *, score: bool) -> tuple[dict[str, float], list[Tensor]]:
        """Judge what would be saved, on this process's share of held-out pictures.

        Returns figures, the same in all processes, the lower "loss" the better; and columns of pictures, each
        (B, 3, r, r), RGB, in [-1, 1], to be shown side by side. Without `score` only the pictures are asked for.
        """
        ...

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, beside the step."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        ...

    def export(self, folder: Path) -> None:
        """Write a model that the pipelines read."""
        ...


MakeLearner = Callable[[Any, Accelerator], Learner]
LEARNERS: dict[str, MakeLearner] = {"gan": GANLearner, "sfe": SFELearner}  # by method; the others have EncoderLearner


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended; `best` is the best validation loss, and `main` says whether this is the process that writes."""

    step: int
    best: float | None
    interrupted: bool
    main: bool = True


def train_main(config: RunConfig, make_learner: MakeLearner | None = None) -> int:
    """Train as a command: print how it ended, and return the exit code."""
    logging.getLogger("stylegan_inversion").setLevel(logging.INFO)
    result = train(config, make_learner=make_learner)
    if result.interrupted:
        print(f"Stopped after step {result.step}; the same command goes on from there.")
        return 130
    models = "last/" if result.best is None else "best/ and last/"
    if result.main:
        print(f"{result.step} steps done. Look at {models} in {config.output}.")
    return 0


def train(
    config: RunConfig, *, callback: Callback | None = None, make_learner: MakeLearner | None = None
) -> TrainResult:
    """Train an encoder or a generator, or go on with a run that was stopped at any moment.

    Writes to `config.output`: `config.json`, `log.jsonl` (a line each `log_every` steps and each validation),
    `images/` (of held-out pictures or, without, of the first that are trained on), `checkpoints/`, TensorBoard's files,
    and two models that the pipelines read: `best/` (with validation) and `last/`. A run that finds its own checkpoint
    goes on from there, exactly. Ctrl-C and SIGTERM end the step, save and stop; a second Ctrl-C stops at once, which
    costs the steps since the last checkpoint.

    Args:
        config: The run.
        callback: Called after each step with the number of steps done and the terms of the loss.
        make_learner: Builds what is trained; `None` takes that of the config's method.

    Raises:
        ValueError: If the folder holds another run or something else, parts do not fit each other, the device does not
            know the precision, or several processes cannot work together on it.
        DivergedError: After five steps in a row whose loss or gradient is not finite. The last good state is saved.
        CheckpointError: If a checkpoint cannot be written or read. The older ones stay.
        InvalidImageError: If a picture cannot be used.
        ChildProcessError: If a process that loads pictures was killed.
    """
    for name in config.trackers:
        if name not in TRACKERS:
            raise ValueError(f"`trackers` may hold {', '.join(TRACKERS)}, got {name!r}.")
        if not TRACKERS[name]():
            raise MissingDependencyError(f"`trackers` holds {name!r}: pip install {name}, or leave it out.")
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.cpu or not torch.accelerator.is_available(),  # on CPUs Accelerate connects processes only if told so
        log_with=cast(Any, list(config.trackers)) or None,
        project_dir=config.output,
    )
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, but on {accelerator.device.type!r} each would train alone, into the "
            "same folder. Start one, or add --cpu."
        )
    on_cpu = accelerator.device.type == "cpu"
    if config.mixed_precision == "fp16" and on_cpu:  # Accelerate would silently train in fp32
        raise ValueError("`mixed_precision` is fp16, which needs a GPU. On the CPU take bf16 or no.")
    if config.compile and on_cpu and not any(map(shutil.which, (os.environ.get("CXX", "g++"), *COMPILERS))):
        raise ValueError("`compile` needs a C++ compiler on a CPU, such as g++. Install one, or add --no-compile.")
    make: MakeLearner = make_learner or LEARNERS.get(getattr(config, "method", ""), EncoderLearner)
    learner = make(config, accelerator)
    try:
        return Trainer(config, accelerator, learner, callback).run()
    except (RuntimeError, EOFError, ConnectionError) as e:
        # PyTorch's handler of SIGCHLD raises the first anywhere; the others come from its queue, if there is one
        if not config.num_workers or (isinstance(e, RuntimeError) and not str(e).startswith("DataLoader worker")):
            raise
        reason = " ".join(f"{type(e).__name__}: {e}".split()).rstrip(". ")
        raise ChildProcessError(
            f"A process that loads pictures was killed ({reason}), as happens when the memory is full. Lower "
            "`num_workers` or `batch_size` and start the same command again: it resumes."
        ) from e
    finally:
        accelerator.end_training()


class Trainer:
    """One run."""

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, learner: Learner, callback: Callback | None
    ) -> None:
        """Read the data and the last checkpoint, if there is one."""
        self.config, self.accelerator, self.learner, self.callback = config, accelerator, learner, callback
        self.output = Path(config.output)
        self.log_path = self.output / "log.jsonl"
        self.step, self.bad_steps = 0, 0
        self.best: float | None = None
        self.examples = config.examples * config.accumulation * accelerator.num_processes  # a step
        self.data = learner.open_data()
        self.validation = learner.open_data(held_out=True)
        self.pictures = self.validation or learner.open_data(training=False)
        names = [] if self.data is None else [*self.data.names, *self.data.source_names]
        self.fingerprint = hashlib.sha256("\n".join(names).encode()).hexdigest()  # the order follows from the names
        self._resume()

    def _resume(self) -> None:
        """Go on from the last checkpoint of the folder; refuse the folder of another run."""
        ours = config_dict(self.config)
        state = read_latest(self.output / "checkpoints", sweep=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            storage.sweep(self.output / "images", older_than=0)
        begun = state is not None or (self.output / storage.CONFIG_NAME).exists()
        theirs = storage.read_config(self.output) if begun else ours
        if "steps" not in theirs:
            raise ValueError(f"{self.output} holds something other than a training run. Give another `output`.")
        if state is not None:
            defaults, extendable = default_dict(type(self.config)), self.config.extendable
            compare_configs(self.output, ours, theirs, defaults=defaults, extendable=extendable)
            if state["data"] != self.fingerprint:
                raise ValueError(
                    f"The pictures in {self.config.data} are not those that the run in {self.output} began with: their "
                    "names differ. Put them back, or begin another run (another `output`, with `init` if you like)."
                )
            if state["step"] > self.config.steps:
                raise ValueError(
                    f"The run in {self.output} has done {state['step']} steps; `steps` must be at least as many, got "
                    f"{self.config.steps}."
                )
            self.learner.load_state(state["learner"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.bad_steps, self.best = state["step"], state["bad_steps"], state["best"]
            logger.info("Going on from step %d of %s.", self.step, self.output)
            if (before := state.get("processes")) != (now := self.accelerator.num_processes):
                logger.warning("The run had %s processes and now has %d: its batches differ from here on.", before, now)
        steps = self.accelerator.gather(torch.tensor([self.step], device=self.accelerator.device))
        if len(set(cast(Tensor, steps).tolist())) > 1:
            raise ValueError(
                f"The processes read different checkpoints: `output`, {self.output}, must be a shared folder."
            )
        if self.accelerator.is_main_process:
            storage.write_config(ours, self.output)
            self._cut_log()

    def run(self) -> TrainResult:
        """Train to the end, or until a signal."""
        config = self.config
        interrupted = False
        bar = tqdm(  # counts examples, so that it shows how many a second
            total=config.steps * self.examples,
            initial=self.step * self.examples,
            disable=not self.accelerator.is_main_process,
            unit="img",
            unit_scale=True,
            mininterval=1,
        )
        if config.trackers:
            self.accelerator.init_trackers("stylegan_inversion")
        with _signals() as stop, bar, closing(self._batches()) as steps:
            for batches in steps:
                terms, finite = self.learner.step(batches, self.step)
                self._count_bad(finite)
                self.step += 1
                last = self.step == config.steps
                bar.update(self.examples)
                self._report(terms, bar)
                self._look(score=last or self.step % config.validate_every == 0, show=last)
                flag = torch.tensor(float(bool(stop)), device=self.accelerator.device)
                interrupted = bool(cast(Tensor, self.accelerator.reduce(flag)) > 0)  # in any process
                if interrupted or last or self.step % config.checkpoint_every == 0:
                    self._save()
                if interrupted:
                    break
        return TrainResult(
            self.step, self.best, interrupted and self.step < config.steps, self.accelerator.is_main_process
        )

    def _batches(self) -> Generator[list[dict[str, Tensor]], None, None]:
        """The micro-batches of each step from the present one on."""
        config, k = self.config, self.config.accumulation
        if self.data is None:
            for _ in range(self.step, config.steps):
                yield [{} for _ in range(k)]
            return
        numbers = self._positions(config.batch_size, start=self.step * k, end=config.steps * k)
        with closing(load_batches(self.data, numbers, num_workers=config.num_workers)) as batches:
            while micro := [self._move(batch) for batch in itertools.islice(batches, k)]:
                yield micro

    def _positions(self, batch_size: int, **options: Any) -> Iterator[list[int]]:
        accelerator = self.accelerator
        return positions(batch_size, rank=accelerator.process_index, world_size=accelerator.num_processes, **options)

    def _move(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.accelerator.device) if key in ("x", "y") else value for key, value in batch.items()}

    def _count_bad(self, finite: bool) -> None:
        """Warn of a step that was not finite, and end the run after some of them in a row."""
        self.bad_steps = 0 if finite else self.bad_steps + 1
        if finite:
            return
        logger.warning(
            "Step %d: a loss or gradient is not finite. The network that it belongs to stays as it was.", self.step
        )
        if self.bad_steps >= MAX_BAD_STEPS:
            self._save()
            raise DivergedError(
                f"{MAX_BAD_STEPS} steps in a row were not finite, up to step {self.step}. The last good state is saved "
                f"in {self.output}. Lower `optimizer.lr`, set `optimizer.max_grad_norm`, or add "
                "--mixed-precision bf16."
            )

    def _report(self, terms: dict[str, Tensor], bar: Any) -> None:
        """Log the terms of a step, as means over the processes, when it is time, and hand them to the callback."""
        due = self.step % self.config.log_every == 0
        if not due and self.callback is None:
            return
        names = sorted(terms)
        stacked = torch.stack([terms[name].float() for name in names])
        values = dict(zip(names, cast(Tensor, self.accelerator.reduce(stacked, reduction="mean")).tolist()))
        if self.callback is not None:
            self.callback(self.step, values)
        if due:
            texts = {"step": str(self.step)} | {name: f"{value:.3g}" for name, value in values.items()}
            bar.set_postfix(texts, refresh=False)
            self._write("train", values | {"lr": self.learner.optimizer.param_groups[0]["lr"]})

    def _look(self, *, score: bool, show: bool) -> None:
        """Draw the first pictures when it is time; with `score` judge all held-out ones, and keep the best model."""
        config, pictures = self.config, self.pictures
        score = score and self.validation is not None
        if pictures is None or not (score or show or self.step % config.image_every == 0):
            return
        count = min(len(pictures), config.validation_images if score else MAX_GRID_ROWS)
        numbers = self._positions(max(8, config.batch_size), end=count, limit=count)
        batches = (self._move(batch) for batch in load_batches(pictures, numbers, num_workers=0))
        values, columns = self.learner.evaluate(batches, score=score)
        if columns:
            self._draw([column[:MAX_GRID_ROWS].float().cpu() for column in columns])
        if not score:
            return
        self._write("validation", values)
        if values["loss"] < (math.inf if self.best is None else self.best):
            self.best = values["loss"]
            if self.accelerator.is_main_process:
                self.learner.export(self.output / "best")

    def _cut_log(self) -> None:
        """Drop the lines that a killed run wrote after its last checkpoint: they are written again."""
        if not self.log_path.exists():
            return
        kept = []
        for line in self.log_path.read_text("utf-8").splitlines():
            with suppress(ValueError):  # cut off by the kill
                if json.loads(line)["step"] <= self.step:
                    kept.append(line)
        storage.write_text("".join(f"{line}\n" for line in kept), self.log_path)

    def _write(self, kind: str, values: dict[str, float]) -> None:
        """Log a line, "train" or "validation". What is not finite becomes null, since JSON has no NaN."""
        if not self.accelerator.is_main_process:
            return
        if self.config.trackers:
            self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=self.step)
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "kind": kind, **finite}, allow_nan=False) + "\n")

    def _draw(self, columns: Sequence[Tensor]) -> None:
        """Save pictures side by side, each column (B, 3, H, W), RGB, in [-1, 1], on the CPU; at the last one's size."""
        if not self.accelerator.is_main_process:
            return
        size = columns[-1].shape[-2:]
        same = [x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="nearest") for x in columns]
        rows = torch.cat(same, dim=3).clamp(-1, 1)  # (B, 3, H, columns * W)
        rows = F.pad(rows, (0, 0, 0, 0, 0, 0, 0, -len(rows) % GRID_COLUMN), value=1.0)
        stacks = rows.unflatten(0, (-1, GRID_COLUMN)).transpose(1, 2).flatten(2, 3)  # (stacks, 3, 4 H, columns * W)
        grid = torch.cat(list(F.pad(stacks, (0, MARGIN), value=1.0)), dim=2)
        picture = to_pil(grid[None])[0]
        folder = self.output / "images"
        folder.mkdir(parents=True, exist_ok=True)
        save_image(picture, folder / f"step-{self.step:08d}.png")
        for tracker in self.accelerator.trackers:
            if not hasattr(tracker, "log_images"):  # Accelerate's of trackio takes numbers only
                continue
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"pictures": np.asarray(picture)[None]}, step=self.step, **options)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "learner": self.learner.state(),
                "best": self.best,
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                "bad_steps": self.bad_steps % MAX_BAD_STEPS,  # a run that goes on after a divergence has five again
                "processes": self.accelerator.num_processes,
                "data": self.fingerprint,
            }
            self.learner.export(self.output / "last")
            # The checkpoint is last: a kill before it costs steps only
            write_checkpoint(state, self.output / "checkpoints", step=self.step)
        self.accelerator.wait_for_everyone()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying from them. Other threads than the main one get none."""
    received: list[int] = []
    before = {}

    def note(number: int, _: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    with suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
