"""How far a generator has come: samples of the same z each time, and their Frechet distance to held-out pictures."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.losses.distribution import FeatureStatistics, frechet_distance, pool_features
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.training.draws import Draws


class SampleProgress:
    """Judges generators. The distance is in the features of a perceptual network: it is no FID."""

    def __init__(self, perceptual: PerceptualDistance, accelerator: Accelerator, *, seed: int) -> None:
        """Remember what to judge by.

        Args:
            perceptual: Its features are compared.
            accelerator: Processes, among which the pictures are shared out.
            seed: Of the samples, >= 0.
        """
        self.perceptual, self.accelerator, self.seed = perceptual, accelerator, seed
        self.name = f"fd ({perceptual.name})"

    @torch.no_grad()
    def evaluate(
        self, generator: Generator, batches: Iterator[dict[str, Tensor]], *, score: bool
    ) -> tuple[dict[str, float], list[Tensor]]:
        """Draw as many samples as there are pictures.

        Args:
            generator: Whose samples.
            batches: "y" and "index" of held-out pictures; each process gets its own share.
            score: Compute the distance, of all of them.

        Returns:
            The distance under its name and as "loss", or nothing; and pictures of the first batch: real, samples, and
            the same samples truncated to 0.7.
        """
        draws = Draws(generator, self.accelerator, seed=self.seed)
        real, fake = FeatureStatistics(), FeatureStatistics()
        shown: list[Tensor] = []
        for batch in batches:
            w = generator.mapping(draws.numbered("progress", batch["index"].tolist(), generator.config.z_dim))
            w_plus = latents.broadcast(w, generator.num_ws)
            images = generator.synthesis(w_plus).clamp(-1, 1)
            if not shown:
                truncated = latents.truncate(w_plus, generator.w_avg, truncation_psi=0.7)
                shown = [batch["y"], images, generator.synthesis(truncated).clamp(-1, 1)]
            if not score:
                break
            for statistics, pictures in ((real, batch["y"]), (fake, images)):
                statistics.update(pool_features(self.perceptual.features(pictures)))
        if not score:
            return {}, shown
        real, fake = self._everyone(real), self._everyone(fake)
        distance = frechet_distance(real.mean, real.cov, fake.mean, fake.cov)
        return {self.name: distance, "loss": distance}, shown

    def _everyone(self, statistics: FeatureStatistics) -> FeatureStatistics:
        """Those of all processes, in their order."""
        total = FeatureStatistics()
        for other in gather_object([statistics]):
            total.merge(other)
        return total
