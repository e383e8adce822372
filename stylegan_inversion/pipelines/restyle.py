"""ReStyle: a few passes through an encoder that sees its own last result (arXiv:2104.02699)."""

import functools
from collections.abc import Sequence
from typing import cast

import torch

from stylegan_inversion.models.restyle_encoder import ReStyleConfig, ReStyleEncoder
from stylegan_inversion.pipelines.base import ImageLike
from stylegan_inversion.pipelines.encoder import EncoderPipeline
from stylegan_inversion.pipelines.output import InversionOutput


class ReStylePipeline(EncoderPipeline):
    """ReStyle of pSp or of e4e: nearer to the photo than one pass, for as many times the work."""

    encoder_class = ReStyleEncoder
    encoder_config = ReStyleConfig
    encoder_folder = "restyle_encoder"
    _encoder_kind = "restyle"

    def encode(self, x: torch.Tensor, *, num_iterations: int | None = None) -> torch.Tensor:
        """Images of the encoder's side, (B, 3, S, S), in [-1, 1] -> w_plus, (B, num_ws, w_dim)."""
        return cast(ReStyleEncoder, self.encoder).refine(x, self.generator, iterations=num_iterations)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        align: bool = True,
        face: int = 0,
        progress: bool = False,
        num_iterations: int | None = None,
    ) -> InversionOutput:
        """Invert one photo or a list of them.

        Args:
            image: A photo (path, PIL image, bytes, array), or a list of them.
            align: Find the face and cut it out. False takes the photo as an aligned crop.
            face: Which face of the photo, by size: 0 is the largest.
            progress: Show a progress bar.
            num_iterations: How many passes, at least 1. `None` takes those of the encoder's config, usually 5.

        Returns:
            The inversions; `out.generator` is the pipeline's own.

        Raises:
            InvalidImageError: If a photo cannot be read.
            FaceNotFoundError: If there is no face, or not that many.
            ValueError: If `num_iterations` is below 1.
        """
        if num_iterations is not None and num_iterations < 1:
            raise ValueError(f"`num_iterations` must be at least 1, got {num_iterations}.")
        encode = functools.partial(self.encode, num_iterations=num_iterations)
        return self._invert(image, encode, align=align, face=face, progress=progress)
