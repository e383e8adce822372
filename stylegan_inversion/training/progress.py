"""How far a generator has come: samples of the same z each time, and their Frechet distance to held-out pictures."""

import math
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.evaluation.distribution import frechet_distance, pool_features
from stylegan_inversion.losses.identity import IdentityEmbedding
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.training.data import FaceFolder
from stylegan_inversion.training.draws import Draws
from stylegan_inversion.training.generator_config import GeneratorRun
from stylegan_inversion.training.generator_model import check_side, open_pictures

AT_ONCE = 64  # pictures that go through the networks: the batch of a run may be far larger


class SampleProgress:
    """Judges generators. The distances are in the features of other networks than Inception: they are no FID."""

    def __init__(
        self,
        perceptual: PerceptualDistance,
        accelerator: Accelerator,
        *,
        seed: int,
        face: IdentityEmbedding | None = None,
    ) -> None:
        """Remember what to judge by.

        Args:
            perceptual: Its features are compared.
            accelerator: Processes, among which the pictures are shared out.
            seed: Of the samples, >= 0.
            face: The built-in face network, whose embeddings are compared, too.
        """
        self.perceptual, self.accelerator, self.seed = perceptual, accelerator, seed
        self.networks: dict[str, Callable[[Tensor], list[Tensor]]] = {f"fd ({perceptual.name})": perceptual.features}
        if face is not None:
            self.networks["fd (dlib faces)"] = lambda images: [face.embed(images)]

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
            score: Compute the distances, of all of them.

        Returns:
            The distances under their names and their geometric mean, in which the same share of each counts the same,
            as "loss", or nothing; and pictures of the first batch: real, samples, and the same samples truncated to
            0.7.
        """
        draws = Draws(generator, self.accelerator, seed=self.seed)
        both: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in self.networks}
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
            for name, features in self.networks.items():
                for rows, pictures in zip(both[name], (y, images)):
                    rows.append(pool_features(features(pictures)).cpu())
        if not score:
            return {}, shown
        distances: dict[str, float] = {}
        for name, (real, fake) in both.items():
            distances[name] = frechet_distance(self._everyone(real), self._everyone(fake))
        return {**distances, "loss": math.prod(distances.values()) ** (1 / len(distances))}, shown

    def _everyone(self, rows: list[Tensor]) -> Tensor:
        """Those of all processes, in their order."""
        return torch.cat(gather_object(rows))


def _pieces(batches: Iterator[dict[str, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures and their numbers, a few at once."""
    for batch in batches:
        yield from zip(batch["y"].split(AT_ONCE), batch["index"].split(AT_ONCE))
