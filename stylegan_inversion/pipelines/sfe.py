"""StyleFeatureEditor: an encoder gives the code and the photo's own features, which follow edits (arXiv:2406.10601)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.feature_generator import FeatureGenerator
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.sfe_encoder import StyleFeatureEncoder
from stylegan_inversion.pipelines.base import Detector, ImageLike
from stylegan_inversion.pipelines.encoder import EncoderPipeline
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.domain import FACES, Domain
from stylegan_inversion.preprocessing.image import load_image, to_tensor
from stylegan_inversion.preprocessing.sources import Source


class SFEPipeline(EncoderPipeline):
    """StyleFeatureEditor: the details of the photo at an encoder's speed.

    Each photo gets a `FeatureGenerator` of its own, which holds the photo's features and shares all weights.

    Args:
        generator: The StyleGAN2 generator.
        encoder: Images -> w_plus and features, with the Feature Editor in it.
        e4e: An e4e encoder for the same generator: how an edit changes the features is measured at its code.
        source: As in `EncoderPipeline`; only photos.
        directions: As in `InversionPipeline`.
        domain: As in `InversionPipeline`.
        detector: As in `InversionPipeline`.

    Raises:
        ValueError: If the two encoders or the generator do not fit each other.
    """

    encoder_kind = "sfe"

    def __init__(
        self,
        generator: Generator,
        encoder: nn.Module,
        *,
        e4e: nn.Module,
        source: Source | None = None,
        directions: Mapping[str, Direction] | None = None,
        domain: Domain = FACES,
        detector: Detector = "auto",
    ) -> None:
        super().__init__(generator, encoder, source=source, directions=directions, domain=domain, detector=detector)
        self.e4e = e4e.eval().requires_grad_(False)
        made, second, drawn = self._network.config, cast(Any, e4e).config, generator.config
        side = made.feature_resolution
        sizes = {
            "resolution": (made.output_resolution, second.output_resolution, drawn.resolution),
            "w_dim": (made.w_dim, second.w_dim, drawn.w_dim),
            "input_resolution": (made.input_resolution, second.input_resolution),
            f"channels at {side} px": (made.channels, drawn.channels(side)),
        }
        for name, values in sizes.items():
            if len(set(values)) > 1:
                raise ValueError(f"The encoder, e4e's and the generator must have the same {name}, got {values}.")

    @property
    def _network(self) -> StyleFeatureEncoder:
        return cast(StyleFeatureEncoder, self.encoder)

    @property
    def side(self) -> int:
        """Side of the images for `encode` and `find`: the generator's, since the network shrinks them itself."""
        return self.generator.config.resolution

    def encode(self, x: Tensor) -> Tensor:
        """Images, (B, 3, S, S), in [-1, 1], of any side -> w_plus, (B, num_ws, w_dim), without the features."""
        return self._network.backbone(self._network.shrink(x))[0] + self.generator.w_avg

    def inputs(self, crops: Sequence[Crop]) -> Tensor:
        """Aligned faces as the encoder reads them, (B, 3, S, S), in [-1, 1]."""
        return torch.cat([self._network.shrink(to_tensor(crop.image)) for crop in crops])

    def find(self, x: Tensor, encode: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, list[Generator]]:
        """Find the codes of images, and make the generators that draw them on their features.

        e4e, which a picture needs from its first edit on only, runs then, for all of the images at once.
        """
        e4e, shrunk = cast(Encoder4Editing, self.e4e), self._network.shrink(x)
        w_plus, features, coarse = self._network(x, self.generator)

        @functools.cache
        @torch.no_grad()
        def w_edits() -> Tensor:
            return e4e(shrunk.to(e4e.w_avg)) - e4e.w_avg + self.generator.w_avg.to(e4e.w_avg)

        def w_edit(i: int) -> Tensor:
            return w_edits()[i : i + 1].clone()

        generators: list[Generator] = [
            FeatureGenerator(
                self.generator,
                self._network.editor,
                features=features[i : i + 1].clone(),
                w_inverted=w_plus[i : i + 1].clone(),
                w_edit=functools.partial(w_edit, i),
                coarse=coarse[i : i + 1].clone(),
            )
            for i in range(len(x))
        ]
        return w_plus, generators

    @torch.no_grad()
    def keep(self, out: InversionOutput, mask: ImageLike | Sequence[ImageLike]) -> InversionOutput:
        """Protect a part of the photos from the edits that follow: `edit(keep(out, mask), smile=2.0)`.

        The photo's features stay there. The edit of the code still changes what is coarser and finer than they are, so
        what is kept comes near to the inversion, and is not exactly it.

        Args:
            out: Inversions of this pipeline.
            mask: A picture of the crop's shape, and of any size: white keeps, black does not, grey keeps a part. Or a
                list of them, one for each photo.

        Raises:
            ValueError: If there is not one mask for each photo, one is not square, or another method made `out`.
            InvalidImageError: If a mask cannot be read.
        """
        masks = list(mask) if isinstance(mask, (list, tuple)) else [mask] * len(out)
        if len(masks) != len(out):
            raise ValueError(f"`mask` must be one picture or {len(out)}, one for each photo, got {len(masks)}.")
        generators = list[Generator]()
        for picture, generator in zip(map(load_image, masks), out.generators):
            if not isinstance(generator, FeatureGenerator):
                raise ValueError("`out` must be of an SFEPipeline: other inversions have no features to keep.")
            if picture.width != picture.height:
                raise ValueError(f"`mask` must be square, as the crop is, got {picture.width} x {picture.height}.")
            generators.append(generator.keeping((to_tensor(picture)[:, :1] + 1) / 2))
        return dataclasses.replace(out.unrepeatable, generators=generators)

    def saved_networks(self) -> dict[str, nn.Module]:
        """The networks of a saved model, by folder."""
        return {**super().saved_networks(), "e4e_encoder": self.e4e}

    @property
    def components(self) -> dict[str, Any]:
        """The parts by the constructor's names."""
        return {**super().components, "e4e": self.e4e}
