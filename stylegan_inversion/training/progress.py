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
from stylegan_inversion.training.data import FaceFolder
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.generator_config import GeneratorRun
from stylegan_inversion.training.generator_model import check_side, open_pictures

AT_ONCE = 64  # pictures that go through the networks: the batch of a run may be far larger


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

    def open_pictures(self, config: GeneratorRun, *, side: int) -> FaceFolder | None:
        """The held-out pictures of a run; `None` if there are none.

        Raises:
            ValueError: If the folder is missing, there are fewer than two pictures, or they are too small for the
                perceptual network.
        """
        folder = open_pictures(config.validation_data, config, side=side, training=False)
        if folder is None:
            return None
        if (count := min(len(folder), config.validation_images)) < 2:
            raise ValueError(
                f"A Frechet distance needs at least 2 pictures in `validation_data`, and `validation_images` >= 2, "
                f"got {count}."
            )
        check_side(self.perceptual, side, otherwise="no validation_data")
        return folder

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
        for y, index in _pieces(batches):
            w = generator.mapping(draws.numbered("progress", index.tolist(), generator.config.z_dim))
            w_plus = latents.broadcast(w, generator.num_ws)
            images = generator.synthesis(w_plus).clamp(-1, 1)
            if not shown:
                truncated = latents.truncate(w_plus, generator.w_avg, truncation_psi=0.7)
                shown = [y, images, generator.synthesis(truncated).clamp(-1, 1)]
            if not score:
                break
            for statistics, pictures in ((real, y), (fake, images)):
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


def _pieces(batches: Iterator[dict[str, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures and their numbers, a few at once."""
    for batch in batches:
        yield from zip(batch["y"].split(AT_ONCE), batch["index"].split(AT_ONCE))
