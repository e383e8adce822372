"""The latent spaces: how many w there are, and how they are repeated, truncated and grouped."""

import operator
import zlib
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def num_ws(resolution: int) -> int:
    """Count the w that a StyleGAN2 of this resolution takes: 2 log2(resolution) - 2.

    Raises:
        ValueError: If `resolution` is not a power of two from 4 to 2048.
    """
    if resolution not in {2**k for k in range(2, 12)}:
        raise ValueError(f"`resolution` must be a power of two from 4 to 2048, got {resolution}.")
    return 2 * (resolution.bit_length() - 1) - 2


def random_source(seed: SupportsIndex) -> torch.Generator:
    """Make a source of z and noise on the CPU, so that a seed means the same on every device; see `normal`."""
    return torch.Generator("cpu").manual_seed(operator.index(seed))


def seeded(seed: int, purpose: str, number: int, *, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a random source for a purpose and a number, such as a step: two purposes share no draws.

    `seed` and `number` are >= 0. `device` is where it draws; another kind of device draws other numbers.
    """
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number]).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed((int(words[0]) << 31) ^ int(words[1]))


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    """Draw standard normal numbers in float32, on the device of the source: a caller's defaults change nothing."""
    return torch.randn(shape, generator=rng, device=rng.device, dtype=torch.float32)


def seeded_normal(sources: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Draw standard normal numbers, (B, *shape), each sample from its own source."""
    return torch.stack([normal(rng, *shape) for rng in sources])


def seeded_noise(shapes: Sequence[torch.Size], sources: Sequence[torch.Generator]) -> list[Tensor]:
    """Draw the noise inputs of layers of these shapes, (r, r) each: (B, 1, r, r), each sample from its own source."""
    sizes = [shape.numel() for shape in shapes]
    drawn = seeded_normal(sources, sum(sizes)).split(sizes, dim=1)
    return [part.view(len(sources), 1, *shape) for part, shape in zip(drawn, shapes)]


def broadcast(w: Float[Tensor, "batch w_dim"], num_ws: int) -> Float[Tensor, "batch num_ws w_dim"]:
    """Repeat one w for every layer: the embedding of W in W+."""
    return w.unsqueeze(1).repeat(1, num_ws, 1)


def truncate(
    w_plus: Float[Tensor, "batch num_ws w_dim"],
    w_avg: Float[Tensor, " w_dim"],
    *,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
) -> Float[Tensor, "batch num_ws w_dim"]:
    """Pull w towards the average: w_avg + psi (w - w_avg), the truncation trick (StyleGAN, arXiv:1812.04948, B).

    Args:
        w_plus: Style codes, one a layer.
        w_avg: The average of w over z.
        truncation_psi: 1 changes nothing, 0 gives the average.
        truncation_cutoff: How many layers are truncated, counted from the coarsest. `None` truncates all.
    """
    truncated = w_plus.clone()
    truncated[:, :truncation_cutoff] = w_avg.lerp(w_plus[:, :truncation_cutoff], truncation_psi)
    return truncated


def layer_ranges(resolution: int) -> dict[str, tuple[int, int]]:
    """Group the layers by what they draw, as half-open ranges: coarse (4-8 px), middle (16-32 px), fine (64 px and up).

    The grouping of StyleGAN (arXiv:1812.04948, 3.1). At 1024: coarse (0, 4), middle (4, 8), fine (8, 18).
    """
    n = num_ws(resolution)
    return {"coarse": (0, min(4, n)), "middle": (min(4, n), min(8, n)), "fine": (min(8, n), n)}
