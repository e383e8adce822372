"""The loop: steps, log, pictures, validation, checkpoints, resume. It knows no loss and no network by name."""

import dataclasses
import hashlib
import logging
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from tqdm.auto import tqdm

from stylegan_inversion import hub
from stylegan_inversion.errors import DivergedError
from stylegan_inversion.training.checkpoint import read_latest, write_checkpoint
from stylegan_inversion.training.config import RunConfig, config_dict
from stylegan_inversion.training.data import FaceFolder, PositionSampler, load_batches
from stylegan_inversion.training.learner import Learner
from stylegan_inversion.training.methods import METHODS
from stylegan_inversion.training.run_log import RunLog, check_trackers

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 5
MAX_GRID_ROWS = 16
# What may differ between a run and its continuation: what changes no step, and the ways out of a divergence.
FREE = (
    "optimizer.lr",
    "optimizer.max_grad_norm",
    "mixed_precision",
    "compile",
    "output",
    "num_workers",
    "log_every",
    "image_every",
    "validate_every",
    "checkpoint_every",
    "trackers",
    "cpu",
    "data",  # a folder may move; the names of its pictures are compared
    "sources",
)

Callback = Callable[[int, dict[str, float]], None]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: Steps done.
        best: The best validation loss; `None` without validation.
        interrupted: Whether it was stopped.
        main: Whether this is the process that writes.
    """

    step: int
    best: float | None
    interrupted: bool
    main: bool = True


def train(config: RunConfig, *, callback: Callback | None = None) -> TrainResult:
    """Train an encoder or a generator, or go on with a run that was stopped at any moment.

    Writes to `config.output`: `config.json`, `log.jsonl` (a line each `log_every` steps and each validation),
    `images/` (of held-out pictures or, without, of the first that are trained on), `checkpoints/`, TensorBoard's files,
    and two models that the pipelines read: `best/` (with validation) and `last/`. A run that finds its own checkpoint
    goes on from there, exactly. Ctrl-C and SIGTERM end the step, save and stop; a second Ctrl-C stops at once, which
    costs the steps since the last checkpoint.

    Args:
        config: The run.
        callback: Called after each step with the number of steps done and the terms of the loss.

    Raises:
        ValueError: If the folder holds a run of another config or something else, parts do not fit each other, the
            device does not know the precision, or several processes cannot work together on it.
        DivergedError: After five steps in a row whose loss or gradient is not finite. The last good state is saved.
        CheckpointError: If a checkpoint cannot be written or read. The older ones stay.
        InvalidImageError: If a picture cannot be used.
        ChildProcessError: If a process that loads pictures was killed.
    """
    check_trackers(config.trackers)
    accelerator = _make_accelerator(config)
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would silently train in fp32
        raise ValueError("`mixed_precision` is fp16, which needs a GPU. On the CPU take bf16 or no.")
    learner = METHODS[config.method].learner(config, accelerator)
    try:
        return Trainer(config, accelerator, learner, callback).run()
    except RuntimeError as e:
        if not str(e).startswith("DataLoader worker"):  # raised by PyTorch's handler of SIGCHLD, in whatever runs then
            raise
        raise ChildProcessError(
            f"A process that loads pictures was killed ({' '.join(str(e).split()).rstrip('. ')}), as happens when the "
            "memory is full. Lower `num_workers` or `batch_size` and start the same command again: it resumes."
        ) from e


def _make_accelerator(config: RunConfig) -> Accelerator:
    # Accelerate keeps its state for the whole process and refuses a second run with another precision or device.
    AcceleratorState._reset_state(reset_partial_state=not (dist.is_available() and dist.is_initialized()))
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.cpu or not torch.accelerator.is_available(),  # on CPUs Accelerate connects processes only if told so
        log_with=cast(Any, config.trackers) or None,
        project_dir=config.output,
    )
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started, but on {accelerator.device.type!r} each would train alone, into the "
            "same folder. Start one, or add cpu=true."
        )
    return accelerator


class Trainer:
    """One run."""

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, learner: Learner, callback: Callback | None
    ) -> None:
        """Read the data and the last checkpoint, if there is one."""
        self.config, self.accelerator, self.learner, self.callback = config, accelerator, learner, callback
        self.output = Path(config.output)
        self.log = RunLog(self.output, accelerator, trackers=config.trackers)
        self.step, self.best, self.bad_steps = 0, float("inf"), 0
        self.examples = config.examples * config.accumulation * accelerator.num_processes  # a step
        self.data = learner.open_data()
        self.validation = learner.open_validation_data()
        self.shown = learner.open_data(training=False) if self.validation is None else self.validation
        self._resume()

    def _resume(self) -> None:
        ours = config_dict(self.config)
        state = read_latest(self.output / "checkpoints", sweep=self.accelerator.is_main_process)
        known = (self.output / hub.CONFIG_NAME).exists()
        theirs = hub.read_config(self.output) if known or state is not None else ours
        if "steps" not in theirs:
            raise ValueError(f"{self.output} holds something else than a training run. Give another `output`.")
        if state is not None:
            self._compare(_flat(ours), _flat(theirs))
            if state["data"] != self._fingerprint():
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
            self.step, self.bad_steps = state["step"], state["bad_steps"]
            self.best = float("inf") if state["best"] is None else state["best"]
            logger.info("Going on from step %d of %s.", self.step, self.output)
            if (before := state.get("processes")) != (now := self.accelerator.num_processes):
                logger.warning(
                    "The run had %s processes and now has %d: its batches are others from here on.", before, now
                )
        steps = self.accelerator.gather(torch.tensor([self.step], device=self.accelerator.device))
        if len(set(cast(Tensor, steps).tolist())) > 1:
            raise ValueError(
                f"The processes read different checkpoints: `output`, {self.output}, must be a shared folder."
            )
        if self.accelerator.is_main_process:
            hub.write_config(ours, self.output)
            self.log.cut(self.step)

    def _compare(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        """Refuse to go on with a run of another config; say what else has changed."""
        free = set(FREE)
        if self.config.extendable:
            free.add("steps")
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) == theirs.get(key):
                continue
            if key not in free:
                raise ValueError(
                    f"{self.output} holds a run with {key}={theirs.get(key)!r}, and this one has {ours.get(key)!r}. "
                    "Give this one another `output`, or remove that folder."
                )
            if key in ("optimizer.lr", "optimizer.max_grad_norm", "mixed_precision", "compile"):
                logger.warning("The run goes on with %s=%r instead of %r.", key, ours.get(key), theirs.get(key))

    def _fingerprint(self) -> str:
        """What tells one folder of pictures from another, since their order follows from their names."""
        names = "\n".join([] if self.data is None else [*self.data.names, *self.data.source_names])
        return hashlib.sha256(names.encode()).hexdigest()

    def run(self) -> TrainResult:
        """Train to the end, or until a signal."""
        config, accelerator = self.config, self.accelerator
        interrupted = False
        bar = tqdm(  # counts examples, so that it shows how many a second
            total=config.steps * self.examples,
            initial=self.step * self.examples,
            disable=not accelerator.is_main_process,
            unit="img",
            unit_scale=True,
            mininterval=1,
        )
        with _signals() as stop, bar, closing(self.log), closing(self._batches()) as steps:
            self.log.open()
            for batches in steps:
                terms, finite = self.learner.step(batches, self.step)
                self._count_bad(finite)
                self.step += 1
                self._after_step(terms, bar)
                interrupted = self._any(bool(stop))
                if interrupted or self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    self._save()
                if interrupted:
                    break
        best = None if self.best == float("inf") else self.best
        return TrainResult(self.step, best, interrupted and self.step < config.steps, accelerator.is_main_process)

    def _batches(self) -> Generator[list[dict[str, Tensor]], None, None]:
        """The micro-batches of each step from the present one on."""
        config, accelerator = self.config, self.accelerator
        k = config.accumulation
        if self.data is None:
            for _ in range(self.step, config.steps):
                yield [{} for _ in range(k)]
            return
        sampler = PositionSampler(
            config.batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start=self.step * k,
            end=config.steps * k,
        )
        micro: list[dict[str, Tensor]] = []
        with closing(load_batches(self.data, sampler, num_workers=config.num_workers)) as batches:
            for batch in batches:
                micro.append(self._move(batch))
                if len(micro) == k:
                    yield micro
                    micro = []

    def _move(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.accelerator.device
        return {key: value.to(device) if key in ("x", "y") else value for key, value in batch.items()}

    def _count_bad(self, finite: bool) -> None:
        self.bad_steps = 0 if finite else self.bad_steps + 1
        if finite:
            return
        logger.warning(
            "Step %d: a loss or gradient is not finite. The network that it is of stays as it was.", self.step
        )
        if self.bad_steps >= MAX_BAD_STEPS:
            self._save()
            raise DivergedError(
                f"{MAX_BAD_STEPS} steps in a row were not finite, up to step {self.step}. The last good state is saved "
                f"in {self.output}. Lower `optimizer.lr`, set `optimizer.max_grad_norm`, or take mixed_precision=bf16."
            )

    def _after_step(self, terms: dict[str, Tensor], bar: Any) -> None:
        config = self.config
        bar.update(self.examples)
        if self.step % config.log_every == 0 or self.callback is not None:
            values = {name: float(term) for name, term in self._mean(terms).items()}
            if self.callback is not None:
                self.callback(self.step, values)
            if self.step % config.log_every == 0:
                shown = {"step": str(self.step)} | {name: f"{value:.3g}" for name, value in values.items()}
                bar.set_postfix(shown, refresh=False)
                self.log.write(self.step, "train", values | {"lr": self.learner.optimizer.param_groups[0]["lr"]})
        last = self.step == config.steps
        validates = self.validation is not None and (last or self.step % config.validate_every == 0)
        if self.shown is not None and (validates or last or self.step % config.image_every == 0):
            self._look(self.shown, score=validates)

    def _mean(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over the processes, in one reduction."""
        names = sorted(terms)
        if self.accelerator.num_processes == 1:
            return {name: terms[name] for name in names}
        stacked = torch.stack([terms[name].float() for name in names])
        return dict(zip(names, cast(Tensor, self.accelerator.reduce(stacked, reduction="mean"))))

    def _look(self, pictures: FaceFolder, *, score: bool) -> None:
        """Draw the first pictures of a folder; with `score` judge all of them, and keep the best model."""
        accelerator = self.accelerator
        count = min(len(pictures), self.config.validation_images if score else MAX_GRID_ROWS)
        sampler = PositionSampler(
            max(8, self.config.batch_size),
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            end=count,
            limit=count,
        )
        batches = (self._move(batch) for batch in load_batches(pictures, sampler, num_workers=0))
        values, columns = self.learner.evaluate(batches, score=score)
        if columns:
            self.log.draw(self.step, [column[:MAX_GRID_ROWS].float().cpu() for column in columns])
        if not score:
            return
        self.log.write(self.step, "validation", values)
        if values["loss"] < self.best:
            self.best = values["loss"]
            if accelerator.is_main_process:
                self.learner.export(self.output / "best")

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            best = None if self.best == float("inf") else self.best
            processes = self.accelerator.num_processes
            state = {
                "learner": self.learner.state(),
                "best": best,
                "bad_steps": self.bad_steps % MAX_BAD_STEPS,  # who goes on after a divergence has five again
                "processes": processes,
                "data": self._fingerprint(),
            }
            self.learner.export(self.output / "last")
            write_checkpoint(state, self.output / "checkpoints", step=self.step)  # last: before it, all is done again
        self.accelerator.wait_for_everyone()

    def _any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self.accelerator.num_processes == 1:
            return here
        flag = torch.tensor(float(here), device=self.accelerator.device)
        return bool(cast(Tensor, self.accelerator.reduce(flag)) > 0)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Names as they are typed: `optimizer.lr`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them, where signals can be had: in the main thread."""
    received: list[int] = []
    before = {}

    def note(number: int, _: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
