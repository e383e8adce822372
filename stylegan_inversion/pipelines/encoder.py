"""pSp and e4e: one pass through an encoder (arXiv:2008.00951, arXiv:2102.02766); the generator is shared."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from tqdm.auto import tqdm
from typing_extensions import Self

from stylegan_inversion import hub
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.pipelines.base import ImageLike, InversionPipeline
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.align import recrop
from stylegan_inversion.preprocessing.image import to_tensor


class EncoderPipeline(InversionPipeline):
    """What pSp and e4e share: the encoder gives w_plus, the pipeline's own generator draws it."""

    encoder_class: ClassVar[type[nn.Module]]
    encoder_folder: ClassVar[str]

    def __init__(self, generator: Generator, encoder: nn.Module, **parts: Any) -> None:
        """Put the parts together; `from_pretrained` is the usual way.

        Args:
            generator: The StyleGAN2 generator.
            encoder: Images -> w_plus.
            **parts: See `InversionPipeline`.
        """
        super().__init__(generator, **parts)
        self.encoder = encoder.eval().requires_grad_(False)

    @classmethod
    def _from_folder(cls, folder: Path, config: Mapping[str, Any], generator: Generator) -> Self:
        if not (folder / cls.encoder_folder).is_dir():
            raise ModelNotFoundError(
                f"{folder.name!r} holds no {cls.encoder_class.__name__} (folder {cls.encoder_folder!r}). "
                "PTIPipeline needs only the generator."
            )
        encoder = hub.load_module(cls.encoder_class, PyramidEncoderConfig, folder / cls.encoder_folder)
        return cls(generator, encoder)

    def _save_parts(self, folder: Path) -> None:
        hub.save_module(self.encoder, folder / self.encoder_folder)

    def to(self, device: torch.device | str) -> Self:
        """Move every network to a device, in place, and return the pipeline."""
        self.generator.to(device)
        self.encoder.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self, image: ImageLike | Sequence[ImageLike], *, align: bool = True, face: int = 0, progress: bool = False
    ) -> InversionOutput:
        """Invert one photo or a list of them.

        Args:
            image: A photo (path, PIL image, bytes, array), or a list of them.
            align: Find the face and cut it out. False takes the photo as an aligned crop.
            face: Which face of the photo, by size: 0 is the largest.
            progress: Show a progress bar.

        Returns:
            The inversions; `out.generator` is the pipeline's own.

        Raises:
            InvalidImageError: If a photo cannot be read.
            FaceNotFoundError: If there is no face, or not that many.
        """
        crops = self._crops(image, align, face)
        start = time.perf_counter()
        side = cast(PyramidEncoderConfig, self.encoder.config).input_resolution
        inputs = (to_tensor(recrop(crop, side)).to(self.device) for crop in crops)
        bar = tqdm(inputs, total=len(crops), disable=not progress, unit="photo", leave=False)
        w_plus = torch.cat([self.encoder(x) for x in bar])
        seconds = round((time.perf_counter() - start) / len(crops), 4)
        return self._output(crops, w_plus, [self.generator] * len(crops), [{"seconds": seconds}] * len(crops))


class PSPPipeline(EncoderPipeline):
    """pSp: every style from its own level of a feature pyramid. Nearer to the photo than e4e, less editable."""

    encoder_class = GradualStyleEncoder
    encoder_folder = "psp_encoder"


class E4EPipeline(EncoderPipeline):
    """e4e: one w and small offsets. Further from the photo than pSp, more editable."""

    encoder_class = Encoder4Editing
    encoder_folder = "e4e_encoder"
