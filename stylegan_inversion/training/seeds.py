"""Random sources that follow from numbers, so that a resumed run needs no saved random state."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seeded(seed: int, purpose: str, number: int, *, device: torch.device | str | None = None) -> torch.Generator:
    """Give a random source.

    Args:
        seed: Seed of the run, >= 0.
        purpose: What it is for: two purposes share no draws.
        number: Step, or serial number of a sample, >= 0.
        device: Where it draws; another kind of device draws other numbers. `None` means the CPU.
    """
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number]).generate_state(2, np.uint32)
    return torch.Generator(device or "cpu").manual_seed((int(words[0]) << 31) ^ int(words[1]))


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Inside, the weights of new networks follow from a seed; afterwards PyTorch's own random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
