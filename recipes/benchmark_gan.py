# /// script
# requires-python = ">=3.10"
# dependencies = ["stylegan-inversion[train]"]
# ///
"""Where a step of StyleGAN2's training spends its time: its four phases, and images a second.

usage: python recipes/benchmark_gan.py [--resolution 64] [--batch 8] [--steps 4] [--threads N] [--cpu] [OPTION ...]

Networks have the sizes of faces64 at 64 px, of the released ones above; weights are random, as are the pictures.
OPTION is one of `stylegan-inversion train --method gan`, such as --adversarial.reuse-samples. Settings separated
by `/` are timed in turn in one process, so that their ratio means something on a busy machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from stylegan_inversion.training.config import load_config
from stylegan_inversion.training.gan import GANLearner

PHASES = ("_generator_step", "_path_length_step", "_discriminator_step", "_r1_step")


def build(args: argparse.Namespace, overrides: list[str], data: Path) -> GANLearner:
    """A learner of one setting."""
    base, limit = (4096, 192) if args.resolution <= 64 else (32768, 512)
    sizes = {"resolution": args.resolution, "channel-base": base, "channel-max": limit}
    config = load_config(
        [
            *("--method=gan", f"--data={data}", f"--batch-size={args.batch}", "--cpu" if args.cpu else "--no-cpu"),
            *(f"--generator.{name}={size}" for name, size in sizes.items()),
            *overrides,
        ]
    )
    return GANLearner(config, Accelerator(cpu=args.cpu, mixed_precision=config.mixed_precision))  # type: ignore[arg-type]


def timed(function: Callable[..., Any], times: list[float], device: torch.device) -> Callable[..., Any]:
    """The same function, which notes how long it takes."""

    def wrapped(*args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        return result

    return wrapped


def main() -> None:
    """Time all settings in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="rounds; each times every phase once")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu", action="store_true")
    args, rest = parser.parse_known_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    settings: list[list[str]] = [[]]
    for item in rest:
        settings = [*settings, []] if item == "/" else [*settings[:-1], [*settings[-1], item]]

    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.default_rng(0).integers(0, 256, (args.batch, args.resolution, args.resolution, 3), np.uint8)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(Path(folder) / f"{i}.png")
        learners = [build(args, setting, Path(folder)) for setting in settings]
    real = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    times: list[dict[str, list[float]]] = [{phase: [] for phase in PHASES} for _ in learners]
    for learner, noted in zip(learners, times):
        for phase in PHASES:
            setattr(learner, phase, timed(getattr(learner, phase), noted[phase], learner.accelerator.device))
    for _ in range(args.steps + 1):
        for learner in learners:
            learner.step([{"y": real.to(learner.accelerator.device)}], 0)  # step 0 has all four phases

    for setting, learner, noted in zip(settings, learners, times):
        options = learner.config.adversarial
        every = dict(zip(PHASES, (1, options.path_length_every, 1, options.r1_every)))
        print(" ".join(setting) or "defaults")
        total = 0.0
        for phase in PHASES:
            if not noted[phase]:
                continue
            seconds = statistics.median(noted[phase][1:])
            total += seconds / every[phase]
            name = phase.strip("_").removesuffix("_step").replace("_", " ")
            print(f"  {name:14} {1000 * seconds:8.0f} ms, every {every[phase]:2} steps")
        print(f"  a step on average {1000 * total:.0f} ms: {args.batch / total:.1f} images a second")


if __name__ == "__main__":
    main()
