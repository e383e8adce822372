"""What all pipelines share: loading, aligning, editing, pasting back. A subclass fills in the inversion."""

import abc
import dataclasses
import logging
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from stylegan_inversion import hub
from stylegan_inversion.editing.directions import Direction, apply_directions
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pretrained import PretrainedPipeline
from stylegan_inversion.pipelines.pretrained import find_device as find_device
from stylegan_inversion.pipelines.saving import Base
from stylegan_inversion.preprocessing.align import Crop, align_face, uncropped
from stylegan_inversion.preprocessing.image import load_image, to_pil, to_tensor
from stylegan_inversion.preprocessing.landmarks import FacexlibLandmarkDetector, LandmarkDetector, get_landmark_detector
from stylegan_inversion.preprocessing.paste import paste_back

logger = logging.getLogger(__name__)

ImageLike = Any
"""A path, a PIL image, bytes or an array, see `preprocessing.image.load_image`; or a `Crop` that `align` gave."""


class InversionPipeline(PretrainedPipeline):
    """Photo in, `InversionOutput` out. A call never changes the state of the pipeline's parts."""

    def __init__(
        self,
        generator: Generator,
        *,
        directions: Mapping[str, Direction] | None = None,
        crop_scale: float = 1.0,
        detector: LandmarkDetector | Literal["auto", "builtin", "facexlib"] = "auto",
    ) -> None:
        """Put the parts together; `from_pretrained` is the usual way.

        Args:
            generator: The StyleGAN2 generator; it is frozen and put in eval mode.
            directions: What can be edited, by name.
            crop_scale: Side of the face crop relative to FFHQ's; the generator was trained on such crops.
            detector: Finds faces: a callable, or the name of one (`preprocessing.landmarks`).
        """
        self.generator = generator.eval().requires_grad_(False)
        self.directions = dict(directions or {})
        self.crop_scale = crop_scale
        self._detector = detector

    @property
    def generator(self) -> Generator:
        """The StyleGAN2 generator.

        One in the wrapper of `torch.compile` is taken out of it, since pipelines call its parts, which the wrapper does
        not compile: `pipe.generator.synthesis = torch.compile(pipe.generator.synthesis)` does.
        """
        return cast(Generator, vars(self)["generator"])

    @generator.setter
    def generator(self, generator: Generator) -> None:
        vars(self)["generator"] = hub.uncompiled(generator)  # among the others, as a plain attribute would be

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the networks."""
        return self.generator.w_avg.dtype

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs."""
        return self.generator.w_avg.device

    @abc.abstractmethod
    def _networks(self) -> list[nn.Module]:
        """Every network that is loaded."""

    def to(
        self,
        *args: torch.device | torch.dtype | str | int | None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Move every network to a device, a floating-point type or both, in place.

        Args:
            *args: A device, a dtype, or both: `to("cuda")`, `to(torch.float64)`, `to("cuda", torch.float64)`.
            device: Where to put them: "cpu", "cuda", "mps", or "auto" for the best there is. `None` leaves them.
            dtype: As in `from_pretrained`. `None` leaves it.

        Returns:
            The pipeline itself.

        Raises:
            TypeError: If an argument is neither a device nor a dtype, or one is given twice.
            ValueError: If this machine has no such device, or the pipeline does not take the dtype.
        """
        for given in args:
            if isinstance(given, torch.dtype) and dtype is None:
                dtype = given
            elif given is not None and not isinstance(given, torch.dtype) and device is None:
                device = given
            elif given is not None:
                raise TypeError(f"`to` takes one device and one dtype, got {given!r} as well.")
        if isinstance(device, bool) or not isinstance(device, (torch.device, str, int, type(None))):
            raise TypeError(f'`to` takes a device such as "cuda" and a dtype such as torch.float64, got {device!r}.')
        self._check_dtype(dtype)
        place = None if device is None else find_device(device)
        for network in self._networks():
            network.to(device=place, dtype=dtype)
        if place is not None and isinstance(self._detector, FacexlibLandmarkDetector):
            self._detector.to(place)
        if dtype in (torch.float16, torch.bfloat16):
            self._name = None  # the name gives other numbers
        return self

    @abc.abstractmethod
    def __call__(
        self, image: ImageLike | Sequence[ImageLike], *, align: bool = True, face: int = 0, progress: bool = False
    ) -> InversionOutput:
        """Invert one photo or a list of them."""

    @property
    def detector(self) -> LandmarkDetector:
        """Finds faces; loaded when first needed."""
        if isinstance(self._detector, str):
            self._detector = get_landmark_detector(self._detector, device=self.device)
        return self._detector

    def align(self, image: ImageLike, *, align: bool = True, face: int = 0) -> Crop:
        """Load one photo and cut the face out of it.

        Args:
            image: The photo. A crop is given back as it is.
            align: Find the face and cut it out. False takes the photo as an aligned crop.
            face: Which face, by size: 0 is the largest.

        Raises:
            InvalidImageError: If the photo cannot be read.
            FaceNotFoundError: If there is no face, or not that many.
            ValueError: If a crop was made for another resolution.
        """
        resolution = self.generator.config.resolution
        if isinstance(image, Crop):
            if image.image.size != (resolution, resolution):
                raise ValueError(
                    f"The crop is {image.image.width} x {image.image.height}, but this model draws {resolution} x "
                    f"{resolution}: cut it out with this pipeline's `align`."
                )
            return image
        photo = load_image(image)
        if not align:
            return uncropped(photo, resolution)
        landmarks = [found.landmarks for found in self.detector(photo)]
        return align_face(photo, landmarks, size=resolution, scale=self.crop_scale, face=operator.index(face))

    def _crops(self, image: ImageLike | Sequence[ImageLike], align: bool, face: int) -> list[Crop]:
        images = image if isinstance(image, (list, tuple)) else [image]
        if not images:
            raise ValueError("`image` must be a photo or a list of at least one photo, got an empty list.")
        return [self.align(one, align=align, face=face) for one in images]

    @torch.no_grad()
    def _output(
        self,
        crops: list[Crop],
        w_plus: Tensor,
        generators: Sequence[Generator],
        reports: Iterable[Mapping[str, Any]],
    ) -> InversionOutput:
        drawn = self._draw(generators, w_plus)
        targets = torch.cat([to_tensor(crop.image) for crop in crops])
        l2 = (drawn.clamp(-1, 1) - targets).square().mean(dim=(1, 2, 3)).tolist()
        full = [
            {"l2": error, "face_count": crop.face_count, "face_index": crop.face_index, **report}
            for error, crop, report in zip(l2, crops, reports, strict=True)
        ]
        images = to_pil(drawn)
        base = Base(self.generator, self._name)
        return InversionOutput(images, images, w_plus.cpu().float(), list(generators), crops, {}, full, base)

    @torch.no_grad()
    def _draw(self, generators: Sequence[Generator], w_plus: Tensor) -> Tensor:
        """Images, (B, 3, R, R), on the CPU."""
        pairs = zip(generators, w_plus, strict=True)
        return torch.cat([generator.synthesis(w[None].to(generator.w_avg)).cpu().float() for generator, w in pairs])

    def edit(self, out: InversionOutput, /, **strengths: float) -> InversionOutput:
        """Move along one or more directions; edits add up.

        Args:
            out: An inversion, edited or not.
            **strengths: Strength by direction, each in its unit: `edit(out, smile=2.0, age=-1.0)`.

        Returns:
            A new output, drawn by the same generators.

        Raises:
            ValueError: If a direction is unknown (the known ones are named), or a strength is not finite.
        """
        strengths = {name: float(strength) for name, strength in strengths.items()}
        w_plus = apply_directions(out.w_plus, self.directions, strengths=strengths)
        edits = {name: out.edits.get(name, 0.0) + strengths.get(name, 0.0) for name in {**out.edits, **strengths}}
        for name in strengths:
            limits = self.directions[name].strength_range
            if limits and not limits[0] <= edits[name] <= limits[1]:
                logger.warning("%s=%g is outside its calibrated range [%g, %g].", name, edits[name], *limits)
        images = to_pil(self._draw(out.generators, w_plus))
        w_inverted = out.w_plus if out.w_inverted is None else out.w_inverted
        return dataclasses.replace(out, images=images, w_plus=w_plus, w_inverted=w_inverted, edits=edits)

    def paste_back(self, out: InversionOutput, *, keep_detail: bool = True, feather: float = 0.08) -> list[Image.Image]:
        """Put the faces back into their photos; nothing outside the crop changes.

        Args:
            out: An inversion, usually edited.
            keep_detail: Add only what the edit changed, so the photo keeps detail that the generator cannot draw; an
                unedited face gives the photo itself. False replaces the face by the generator's picture.
            feather: Width of the soft seam inside the crop, relative to its side.

        Returns:
            One photo for each photo, at its own size.
        """
        return [
            paste_back(crop, image, reference=reference if keep_detail else None, feather=feather)
            for crop, image, reference in zip(out.crops, out.images, out.reconstructions)
        ]
