"""pSp, e4e and ReStyle: an encoder gives the code, the generator is shared (arXiv:2008.00951, 2102.02766)."""

import functools
import logging
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import Self

from stylegan_inversion import latents
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.editing.mixing import mix_styles
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import EncoderConfig
from stylegan_inversion.models.restyle_encoder import ReStyleEncoder
from stylegan_inversion.pipelines.base import Detector, ImageLike, InversionPipeline, Inverted
from stylegan_inversion.pipelines.loading import LoadedModel
from stylegan_inversion.pipelines.onnx_folder import export_onnx
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.align import Crop, uncropped
from stylegan_inversion.preprocessing.domain import FACES, Domain
from stylegan_inversion.preprocessing.image import to_pil, to_tensor
from stylegan_inversion.preprocessing.sources import PhotoSource, Source, reduced, source_from_config, to_config

logger = logging.getLogger(__name__)
FIRST_MIXED = 8 / 18  # where the layers of pSp's style mixing begin, as a share of all: they draw from 64 px on at 1024
BATCH_SIZE = 16  # photos that go through an encoder at once
_PHOTO = to_config(PhotoSource())


class EncoderPipeline(InversionPipeline):
    """The encoder gives w_plus, the pipeline's own generator draws it.

    Args:
        generator: The StyleGAN2 generator.
        encoder: Images -> w_plus.
        source: What the encoder reads: photos, sketches or label maps. `None` means photos.
        directions: As in `InversionPipeline`.
        domain: As in `InversionPipeline`.
        detector: As in `InversionPipeline`.

    Raises:
        ValueError: If the encoder reads another number of channels than the source has.
    """

    encoder_kind: ClassVar[str]

    def __init__(
        self,
        generator: Generator,
        encoder: nn.Module,
        *,
        source: Source | None = None,
        directions: Mapping[str, Direction] | None = None,
        domain: Domain = FACES,
        detector: Detector = "auto",
    ) -> None:
        super().__init__(generator, directions=directions, domain=domain, detector=detector)
        self.source = source or PhotoSource()
        self.encoder = encoder.eval().requires_grad_(False)
        if (found := self._sizes.in_channels) != self.source.in_channels:
            wanted = f"`source` has {self.source.in_channels} channels ({self.source})"
            raise ValueError(f"{wanted}, but the encoder reads {found}; give the source that it was trained on.")

    @property
    def _sizes(self) -> EncoderConfig:
        return cast(EncoderConfig, self.encoder.config)

    def encode(self, x: Tensor) -> Tensor:
        """Images of the encoder's side, (B, C, H, S), in the range of `source` -> w_plus, (B, num_ws, w_dim)."""
        return self.encoder(x)

    @property
    def side(self) -> int:
        """Side of the images for `encode` and `find`."""
        return self._sizes.input_resolution

    def inputs(self, crops: Sequence[Crop]) -> Tensor:
        """Crops as the encoder reads them, (B, 3, H, S), in [-1, 1]; H is S for faces."""
        return torch.cat([to_tensor(self.domain.recrop(crop, self.side)) for crop in crops])

    def find(self, x: Tensor, encode: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, list[Generator]]:
        """Find the codes of images, by `self.encode` or `encode`, and name the generators that draw them."""
        return (encode or self.encode)(x), [self.generator] * len(x)

    def crop_sizes(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Sides at which a call looks at a face: the generator's, and the encoder's if it is another."""
        return tuple(dict.fromkeys((*super().crop_sizes(options), self.side)))

    @torch.no_grad()
    def invert(
        self, crops: Sequence[Crop], *, progress: bool = False, encode: Callable[[Tensor], Tensor] | None = None
    ) -> Inverted:
        """Find the codes of aligned faces, by `self.encode` or `encode`, and the generators that draw them."""
        start = time.perf_counter()
        batches = self.inputs(crops).split(BATCH_SIZE)
        bar = tqdm(batches, disable=not progress, unit="batch", leave=False)
        codes, generators = zip(*(self.find(x.to(self.device, self.dtype), encode) for x in bar))
        seconds = round((time.perf_counter() - start) / len(crops), 4)
        return torch.cat(codes), [each for batch in generators for each in batch], [{"seconds": seconds} for _ in crops]

    def align(self, image: ImageLike, *, align: bool | None = None, face: int = 0) -> Crop:
        """Cut a face out, as `InversionPipeline.align`; a `ValueError` if the encoder reads sketches or label maps."""
        if not isinstance(self.source, PhotoSource):
            what = f"This encoder reads {self.source}, in which no face can be found"
            raise ValueError(f"{what}; use `translate(image)` instead (`stylegan-inversion translate`).")
        return super().align(image, align=align, face=face)

    @torch.no_grad()
    def translate(
        self,
        image: ImageLike,
        *,
        num_outputs: int = 1,
        latent_mask: Sequence[int] | None = None,
        mix_alpha: float | None = None,
        resize_factor: float | None = None,
        align: bool | None = None,
        seed: int = 0,
    ) -> InversionOutput:
        """Turn a picture of the kind the encoder was trained on into one or more faces (pSp, section 4).

        Args:
            image: A photo that is an aligned crop, a sketch, or a label map (path, PIL image, bytes, array). Of a
                picture that is not square the central square is taken.
            num_outputs: How many faces: each has another random w in the layers of `latent_mask`.
            latent_mask: The layers that get a random w, each in [0, num_ws - 1]. `None` means pSp's if there are
                several outputs or `mix_alpha` is given, 8 to 17 at 1024 px, and otherwise none.
            mix_alpha: Weight of the random w in these layers, in [0, 1]; the rest is the picture's. `None` means 1.
            resize_factor: Make a photo so many times smaller first, at least 1, for super-resolution: the official
                `--resize_factors`. `None` takes it as it is.
            align: Find the face of a photo and cut it out. `None` does so for frontalisation and toonify.
            seed: Seed of the random w. Output i does not depend on `num_outputs`.

        Returns:
            The faces. Their crops show the picture, a label map in one colour a label. Only the reports of a photo have
            an "l2": a face is not compared with a drawing; those of other pictures have its "source".

        Raises:
            InvalidImageError: If the picture cannot be read, or a label map holds a number that is no label.
            FaceNotFoundError: If a face is looked for and there is none.
            ValueError: If an argument is out of range, or is for photos and the encoder reads others.
        """
        num_ws, resolution = self._sizes.num_ws, self.generator.config.resolution
        if latent_mask is None and (num_outputs > 1 or mix_alpha is not None):
            latent_mask = range(round(num_ws * FIRST_MIXED), num_ws)
        layers = None if latent_mask is None else list(latent_mask)
        alpha = 1.0 if mix_alpha is None else mix_alpha
        if num_outputs < 1:
            raise ValueError(f"`num_outputs` must be at least 1, got {num_outputs}.")
        if layers is not None and not (layers and all(0 <= layer < num_ws for layer in layers)):
            raise ValueError(f"`latent_mask` must name layers in [0, {num_ws - 1}], at least one, got {layers}.")
        if not 0 <= alpha <= 1:  # NaN is not
            raise ValueError(f"`mix_alpha` must be in [0, 1], got {mix_alpha}.")
        if resize_factor is not None and not 1 <= resize_factor <= self.side:
            raise ValueError(f"`resize_factor` must be in [1, {self.side}], got {resize_factor}.")
        is_photo = isinstance(self.source, PhotoSource)
        if align is None:
            align = isinstance(self.source, PhotoSource) and self.source.takes_faces and self.domain.has_faces
        if not is_photo and (resize_factor is not None or align):
            raise ValueError(f"`resize_factor` and `align` are for photos, and this encoder reads {self.source}.")
        if is_photo:
            crop = self.align(image, align=align)
            if not align and self.domain.has_faces and crop.photo.width != crop.photo.height:
                logger.warning("The picture is no square crop of a face: its middle is taken. `align` finds the face.")
            if resize_factor is not None:
                crop = self.domain.crop(reduced(self.domain.recrop(crop, self.side), resize_factor), resolution)
            x = self.inputs([crop])
        else:
            picture = self.source.load(image)
            crop = uncropped(to_pil(self.source.preview(self.source(picture, resolution)[None]))[0], resolution)
            x = self.source(picture, self.side)[None]
        start = time.perf_counter()
        w_plus, generators = self.find(x.to(self.device, self.dtype))
        w_plus = w_plus.repeat(num_outputs, 1, 1)
        if layers is not None:
            rng = latents.random_source(seed)
            z = latents.seeded_normal([rng] * num_outputs, self.generator.config.z_dim)
            w = self.generator.mapping(z.to(self.device, self.dtype))
            mask = torch.zeros(num_ws, device="cpu", dtype=torch.bool)
            mask[layers] = True
            w_plus = mix_styles(w_plus, latents.broadcast(w, num_ws), layers=mask, alpha=alpha)
        report: dict[str, Any] = {"seconds": round((time.perf_counter() - start) / num_outputs, 4)}
        report |= {} if is_photo else {"source": self.source.kind}  # no photo shows what is drawn
        out = self._output([crop] * num_outputs, (w_plus, generators * num_outputs, [report] * num_outputs))
        for full in out.reports if not is_photo else []:
            del full["l2"]
        return out

    @classmethod
    def _build(cls, model: LoadedModel, perceptual: PerceptualDistance | str | None) -> Self:
        if perceptual is not None:
            raise ValueError(f"`perceptual` is for PTI; {cls.__name__} optimises nothing. Leave it out.")
        names = (cls.encoder_kind, *ENCODERS[cls.encoder_kind].needs)
        for kind in (ENCODERS[name] for name in names if name not in model.encoders):
            from stylegan_inversion.pipelines.methods import ANY_GENERATOR  # it imports this file

            raise ModelNotFoundError(
                f"{model.where.parent.name!r} holds no {kind.network.__name__} (folder {kind.folder!r}): take a model "
                f"that `stylegan-inversion models` lists with it, or {ANY_GENERATOR}, which needs only the generator."
            )
        encoder, *others = (model.encoders[name]() for name in names)
        parts: dict[str, Any] = dict(zip(names[1:], others))
        try:
            return cls(model.generator, encoder, source=source_from_config(model.config.get("source", _PHOTO)), **parts)
        except (TypeError, ValueError) as e:
            what = "networks of different models" if parts else "bad settings under `source`"
            raise CheckpointError(f"{model.where}: {what}: {e}") from e

    def saved_networks(self) -> dict[str, nn.Module]:
        """The networks of a saved model, by folder."""
        return {"generator": self.generator, ENCODERS[self.encoder_kind].folder: self.encoder}

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on beside the networks, the crop and the arguments of a call."""
        return {"source": to_config(self.source)}

    @property
    def components(self) -> dict[str, Any]:
        """The parts by the constructor's names."""
        return {**super().components, "encoder": self.encoder, "source": self.source}


class PSPPipeline(EncoderPipeline):
    """pSp: every style from its own level of a feature pyramid. Nearer to the photo than e4e, less editable."""

    encoder_kind = "psp"
    export_onnx = export_onnx


class E4EPipeline(EncoderPipeline):
    """e4e: one w and small offsets. Further from the photo than pSp, more editable."""

    encoder_kind = "e4e"
    export_onnx = export_onnx


class ReStylePipeline(EncoderPipeline):
    """ReStyle (arXiv:2104.02699): an encoder that corrects its own last result. Nearer to the photo, more work."""

    encoder_kind = "restyle"

    def encode(self, x: Tensor, *, num_iterations: int | None = None) -> Tensor:
        """Images of the encoder's side, (B, 3, S, S), in [-1, 1] -> w_plus, (B, num_ws, w_dim)."""
        return cast(ReStyleEncoder, self.encoder).refine(x, self.generator, iterations=num_iterations)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        align: bool | None = None,
        face: int = 0,
        progress: bool = False,
        num_iterations: int | None = None,
    ) -> InversionOutput:
        """Invert one photo or a list of them, as `InversionPipeline` does.

        Args:
            image: A photo (path, PIL image, bytes, array), or a list of them.
            align: As in `InversionPipeline`.
            face: Which face of the photo, by size: 0 is the largest.
            progress: Show a progress bar.
            num_iterations: How many passes, at least 1. `None` takes those of the encoder's config, usually 5.

        Raises:
            ValueError: If `num_iterations` is below 1.
        """
        usual = cast(ReStyleEncoder, self.encoder).config.iterations
        passes = operator.index(usual if num_iterations is None else num_iterations)
        if passes < 1:
            raise ValueError(f"`num_iterations` must be at least 1, got {passes}.")
        crops = self._crops(image, align, face)
        encode = functools.partial(self.encode, num_iterations=passes)
        return self._output(crops, self.invert(crops, progress=progress, encode=encode), {"num_iterations": passes})
