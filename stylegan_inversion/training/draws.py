"""What a training step draws at random: codes, noise, samples of the generator. All follow from seed and place.

The n-th example of a run gets the same draws however many processes share the work, so nothing random has to be saved.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.training.seeds import seeded


class Draws:
    """The random draws of one process of a run, made on its device: a CPU and a GPU draw different numbers."""

    def __init__(self, generator: Generator, accelerator: Accelerator, *, seed: int) -> None:
        """Bind them to a generator.

        Args:
            generator: Whose codes, noise and samples are drawn.
            accelerator: Device and processes.
            seed: Seed of the run, >= 0.
        """
        self.generator, self.seed = generator, seed
        self.device, self.rank, self.world = accelerator.device, accelerator.process_index, accelerator.num_processes

    def w(self, step: int, count: int) -> tuple[Tensor, torch.Generator]:
        """Codes of the mapping network, (count, w_dim), and their source, to go on with; the same in each process."""
        rng = seeded(self.seed, "w", step)
        z = torch.randn(count, self.generator.config.z_dim, generator=rng, device="cpu", dtype=torch.float32)
        with torch.no_grad():
            return self.generator.mapping(z.to(self.device)), rng

    def noise(self, serial: int, count: int, *, purpose: str = "noise") -> list[Tensor]:
        """Noise for the pictures of a micro-batch, (count, 1, r, r) a layer: the papers train with random noise.

        Args:
            serial: Number of the micro-batch in this process.
            count: Pictures in it.
            purpose: Two purposes share no draws.
        """
        return self._noise(self.sources(purpose, serial, count, device=self.device))

    def normal(self, purpose: str, serial: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers of a shape, whose first axis counts the examples of a micro-batch."""
        sources = self.sources(purpose, serial, shape[0], device=self.device)
        return torch.stack(
            [torch.randn(shape[1:], generator=rng, device=self.device, dtype=torch.float32) for rng in sources]
        )

    def numbered(self, purpose: str, numbers: Sequence[int], size: int) -> Tensor:
        """Standard normal vectors, (len(numbers), size), that belong to numbers, whoever asks for them."""
        rows = [
            torch.randn(size, generator=seeded(self.seed, purpose, number), device="cpu", dtype=torch.float32)
            for number in numbers
        ]
        return torch.stack(rows).to(self.device)

    def styles(self, purpose: str, serial: int, count: int, *, mixing: float) -> tuple[Tensor, Tensor]:
        """Codes of samples, with gradients into the mapping network; some mix two w (StyleGAN, arXiv:1812.04948).

        Args:
            purpose: Two purposes share no draws.
            serial: Number of the micro-batch in this process.
            count: How many.
            mixing: Share of the samples whose layers from a random one on take a second w.

        Returns:
            `w_plus`, (count, num_ws, w_dim), and the first w of each, (count, w_dim).
        """
        num_ws, z_dim = self.generator.num_ws, self.generator.config.z_dim
        z, cutoffs = [], []
        for rng in self.sources(purpose, serial, count):
            z.append(torch.randn(2, z_dim, generator=rng, device="cpu", dtype=torch.float32))
            mixes = float(torch.rand((), generator=rng, device="cpu", dtype=torch.float32)) < mixing
            cutoffs.append(int(torch.randint(1, num_ws, (), generator=rng, device="cpu")) if mixes else num_ws)
        first, second = torch.stack(z, dim=1).to(self.device)  # (count, z_dim) each
        w = self.generator.mapping(first)
        if min(cutoffs) == num_ws:
            return latents.broadcast(w, num_ws), w
        later = torch.arange(num_ws, device="cpu") >= torch.tensor(cutoffs, device="cpu")[:, None]  # (count, num_ws)
        other = self.generator.mapping(second)
        return torch.where(later.to(self.device)[..., None], other[:, None], w[:, None]), w

    @torch.no_grad()
    def synthesize(self, serial: int, count: int, *, side: int) -> tuple[Tensor, Tensor]:
        """Samples of the generator.

        Args:
            serial: Number of the micro-batch in this process.
            count: How many.
            side: Side of the pictures.

        Returns:
            Pictures, (count, 3, side, side), RGB, in [-1, 1], and their codes, (count, w_dim).
        """
        sizes = self.generator.config
        if count == 0:
            return torch.empty(0, 3, side, side, device=self.device), torch.empty(0, sizes.w_dim, device=self.device)
        sources = self.sources("synthetic", serial, count, device=self.device)
        z = torch.cat(
            [torch.randn(1, sizes.z_dim, generator=rng, device=self.device, dtype=torch.float32) for rng in sources]
        )
        w = self.generator.mapping(z)
        w_plus = latents.broadcast(w, self.generator.num_ws)
        images = self.generator.synthesis(w_plus, noise=self._noise(sources))
        if side != sizes.resolution:
            images = F.interpolate(images, size=side, mode="bilinear", antialias=True, align_corners=False)
        return images.clamp(-1, 1), w

    def sources(
        self, purpose: str, serial: int, count: int, *, device: torch.device | None = None
    ) -> list[torch.Generator]:
        """A random source for each example of a micro-batch, by its place among those of all processes.

        Args:
            purpose: Two purposes share no draws.
            serial: Number of the micro-batch in this process.
            count: Examples in it.
            device: Where they draw. `None` means the CPU.
        """
        first = (serial * self.world + self.rank) * count
        return [seeded(self.seed, purpose, first + i, device=device) for i in range(count)]

    def _noise(self, sources: list[torch.Generator]) -> list[Tensor]:
        sides = [conv.noise_const.shape for conv in self.generator.synthesis.convs]
        sizes = [side.numel() for side in sides]
        flat = torch.stack(
            [torch.randn(sum(sizes), generator=rng, device=self.device, dtype=torch.float32) for rng in sources]
        )
        return [part.view(len(sources), 1, *side) for part, side in zip(flat.split(sizes, dim=1), sides)]
