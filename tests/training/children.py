"""Runs in processes of their own, to be killed. They are forked from a server that has only imported PyTorch: quick."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers import it, and it takes seconds: better once, in the server
import torch.multiprocessing
from accelerate import debug_launcher
from PIL import Image

from stylegan_inversion import storage
from stylegan_inversion.training import trainer
from stylegan_inversion.training.config import RunConfig
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.gan import GANLearner

Image.init()
CRASHED = 9
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__])


def start(function: Callable[..., None], *args: Any) -> Any:
    """Start a process that calls a function of this module."""
    process = _server.Process(target=_quietly, args=(function, args))
    process.start()
    return process


def run(function: Callable[..., None], *args: Any, timeout: float = 120) -> int:
    """Call a function of this module in a process of its own, and give the exit code."""
    process = start(function, *args)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def _quietly(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(*args)


def train(config: RunConfig) -> None:
    """Train, as the head of a group of processes of its own, to which a signal can be sent."""
    os.setpgid(0, 0)
    trainer.train(config)


def train_twofold(config: RunConfig) -> None:
    """The same run in two processes that exchange gradients."""
    debug_launcher(trainer.train, (config,), num_processes=2)


def train_and_crash(config: Any, where: str) -> None:
    """Die of a power cut, so to speak, at a place in a checkpoint."""
    learner: Any = GANLearner if config.method == "gan" else EncoderLearner
    save_file, export, unlink = storage.save_file, learner.export, Path.unlink

    def halve(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def writes_half(tensors: Any, path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        if path.name.startswith(".step-"):
            halve(path)
            os._exit(CRASHED)

    def keeps_the_old(self: Path, *args: Any, **options: Any) -> None:
        if self.name.startswith("step-"):
            os._exit(CRASHED)
        unlink(self, *args, **options)

    def exports_half(self: Any, folder: Path) -> None:
        export(self, folder)
        for path in folder.rglob("*.safetensors"):
            halve(path)
        os._exit(CRASHED)

    if where == "half written":
        storage.save_file = writes_half  # type: ignore[assignment]
    elif where == "in place":  # the third checkpoint is the first that has an old one to remove
        Path.unlink = keeps_the_old  # type: ignore[method-assign]
    elif where == "half exported":
        learner.export = exports_half
    trainer.train(config)


def kill_at(process: Any, log: Path, step: int, delay: float) -> None:
    """Kill a run with no warning, a moment after it has logged a step."""
    wait_for(process, log, step)
    time.sleep(delay)
    process.kill()
    process.join()


def wait_for(process: Any, log: Path, step: int) -> None:
    """Until a run has logged a step, or has ended."""
    end = time.monotonic() + 60
    while last_step(log) < step and process.is_alive() and time.monotonic() < end:
        time.sleep(0.001)


def last_step(log: Path) -> int:
    return log.read_text().count('"kind": "train"') if log.exists() else 0
