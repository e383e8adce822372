"""What a training step draws at random: codes, noise, samples of the generator. All follow from seed and place.

The n-th example of a run gets the same draws however many processes share the work, so nothing random has to be saved.
"""

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
        z = torch.randn(count, self.generator.config.z_dim, generator=rng)
        with torch.no_grad():
            return self.generator.mapping(z.to(self.device)), rng

    def noise(self, serial: int, count: int) -> list[Tensor]:
        """Noise for the pictures of a micro-batch, (count, 1, r, r) a layer: the papers train with random noise.

        Args:
            serial: Number of the micro-batch in this process.
            count: Pictures in it.
        """
        return self._noise(self._sources("noise", serial, count))

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
        sources = self._sources("synthetic", serial, count)
        z = torch.cat([torch.randn(1, sizes.z_dim, generator=rng, device=self.device) for rng in sources])
        w = self.generator.mapping(z)
        w_plus = latents.broadcast(w, self.generator.num_ws)
        images = self.generator.synthesis(w_plus, noise=self._noise(sources))
        if side != sizes.resolution:
            images = F.interpolate(images, size=side, mode="bilinear", antialias=True, align_corners=False)
        return images.clamp(-1, 1), w

    def _sources(self, purpose: str, serial: int, count: int) -> list[torch.Generator]:
        """A random source for each example of a micro-batch, by its place among those of all processes."""
        first = (serial * self.world + self.rank) * count
        return [seeded(self.seed, purpose, first + i, device=self.device) for i in range(count)]

    def _noise(self, sources: list[torch.Generator]) -> list[Tensor]:
        sides = [conv.noise_const.shape for conv in self.generator.synthesis.convs]
        return [
            torch.cat([torch.randn(1, 1, *side, generator=rng, device=self.device) for rng in sources])
            for side in sides
        ]
