"""Random sources that follow from numbers, so that a resumed run needs no saved random state."""

import zlib

import numpy as np
import torch


def seeded(seed: int, purpose: str, number: int) -> torch.Generator:
    """Give a random source on the CPU.

    Args:
        seed: Seed of the run, >= 0.
        purpose: What it is for: two purposes share no draws.
        number: Step, or serial number of a sample, >= 0.
    """
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed((int(words[0]) << 31) ^ int(words[1]))
