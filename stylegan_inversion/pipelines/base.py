"""Photo in, inversion out, edited and pasted back: what all pipelines share. A subclass fills in `invert`."""

import abc
import dataclasses
import logging
import operator
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from stylegan_inversion import __version__, hub, storage
from stylegan_inversion.editing.directions import Direction, apply_directions, restyle_generators
from stylegan_inversion.editing.text_directions import Relevance
from stylegan_inversion.errors import FaceNotFoundError, InvalidImageError
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines import loading
from stylegan_inversion.pipelines.output import Base, BaseName, InversionOutput, draw
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.domain import FACES, Domain
from stylegan_inversion.preprocessing.image import load_image, to_pil, to_tensor
from stylegan_inversion.preprocessing.landmarks import FacexlibLandmarkDetector, LandmarkDetector, get_landmark_detector
from stylegan_inversion.preprocessing.paste import Detail, paste_back

logger = logging.getLogger(__name__)

ImageLike = Any
"""A path, a PIL image, bytes or an array, see `preprocessing.image.load_image`; or a `Crop` that `align` gave."""

Detector = LandmarkDetector | Literal["auto", "builtin", "facexlib"]
"""What finds faces: a callable, or the name of one."""

Inverted = tuple[Tensor, list[Generator], list[dict[str, Any]]]
"""w_plus, (B, num_ws, w_dim); the generator that draws each photo; and the figures of each photo."""


class InversionPipeline(abc.ABC):
    """Photo in, `InversionOutput` out. A call never changes the state of the pipeline's parts.

    `from_pretrained` is the usual way to one; the constructor puts parts together.

    Args:
        generator: The StyleGAN2 generator; it is frozen and put in eval mode.
        directions: What `edit` can change, by name.
        domain: What the generator was trained to draw, and so what a photo is cut to.
        detector: Finds faces: a callable, or the name of one (`preprocessing.landmarks`).

    Attributes:
        base_name: Where the generator came from; `None` if it has no name, or other numbers than what is there.
        other_settings: Settings of the model for other pipelines, which are saved with it.
        relevance: What `find-directions --text` measured of the generator, if it was; it is saved with it.
    """

    encoder_kind: ClassVar[str | None] = None  # a key of `models.encoders.ENCODERS`; None: it needs a generator only
    optimizes: ClassVar[bool] = False  # for each photo, which takes a while; its callback may stop it
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

    def __init__(
        self,
        generator: Generator,
        *,
        directions: Mapping[str, Direction] | None = None,
        domain: Domain = FACES,
        detector: Detector = "auto",
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.directions = dict(directions or {})
        self.domain = domain
        self.base_name: BaseName | None = None
        self.other_settings: Mapping[str, Any] = {}
        self.relevance: Relevance | None = None
        self._detector = detector

    @torch.no_grad()
    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        align: bool | None = None,
        face: int = 0,
        progress: bool = False,
    ) -> InversionOutput:
        """Invert one photo or a list of them.

        Args:
            image: A photo (path, PIL image, bytes, array), or a list of them.
            align: Find the face and cut it out. False takes the photo as an aligned crop: its largest central part in
                the shape of the model's pictures. `None` finds a face if the model is one of faces.
            face: Which face of the photo, by size: 0 is the largest. It must be below the number of faces found.
            progress: Show a progress bar.

        Raises:
            ValueError: If the list is empty, a crop was made for another resolution, or a model without faces is asked
                to find one.
            InvalidImageError: If a photo cannot be read; `OSError` if there is no such file.
            FaceNotFoundError: If there is no face, or not that many.
        """
        return self._output(crops := self._crops(image, align, face), self.invert(crops, progress=progress), {})

    @abc.abstractmethod
    def invert(self, crops: Sequence[Crop], *, progress: bool = False) -> Inverted:
        """Find codes, and the generators that draw them, for aligned faces.

        Args:
            crops: Aligned faces at the generator's resolution, as `align` gives them.
            progress: Show a progress bar.
        """

    def align(self, image: ImageLike, *, align: bool | None = None, face: int = 0) -> Crop:
        """Load one photo and cut the face, or the part that the model takes, out of it.

        Args:
            image: The photo. A crop is given back as it is.
            align: As in a call.
            face: As in a call.

        Raises:
            InvalidImageError: If the photo cannot be read.
            FaceNotFoundError: If there is no face, or not that many.
            ValueError: If a crop was made for another resolution, or a model without faces is asked to find one.
        """
        resolution, finds_faces = self.generator.config.resolution, self.finds_faces(align)
        if isinstance(image, Crop):
            if image.image.size != (expected := self.domain.size(resolution)):
                size, fits = (f"{width} x {height}" for width, height in (image.image.size, expected))
                raise ValueError(f"The crop is {size}, but this model draws {fits}: cut it out with its `align`.")
            return image
        photo = load_image(image)
        landmarks = [found.landmarks for found in self.detector(photo)] if finds_faces else None
        return self.domain.crop(photo, resolution, landmarks, face=operator.index(face))

    def finds_faces(self, align: bool | None) -> bool:
        """Whether a call with this `align` looks for faces. Raises `ValueError` if the model is not one of faces."""
        if not align or self.domain.has_faces:
            return self.domain.has_faces if align is None else align
        raise ValueError("`align` is True, but this model draws no faces: leave it out, and whole photos are taken.")

    def _crops(self, image: ImageLike | Sequence[ImageLike], align: bool | None, face: int) -> list[Crop]:
        images = image if isinstance(image, (list, tuple)) else [image]
        if not images:
            raise ValueError("`image` must be a photo or a list of at least one photo, got an empty list.")
        crops = []
        for number, one in enumerate(images, 1):
            try:
                crops.append(self.align(one, align=align, face=face))
            except (InvalidImageError, FaceNotFoundError) as e:
                which = f"Photo {number} of {len(images)}: " if len(images) > 1 else ""
                raise type(e)(f"{which}{e}") from e
        return crops

    def crop_sizes(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Sides at which a call with these options looks at a face: the generator's, then its encoder's."""
        return (self.generator.config.resolution,)

    def _output(self, crops: list[Crop], found: Inverted, call: dict[str, Any] | None = None) -> InversionOutput:
        """Draw what was found. `call` are the arguments with which a call finds it again, if there is such a call."""
        w_plus, generators, reports = found
        made = {} if call is None else {"made": [type(self).__name__, call, self.settings]}
        drawn = self.domain.without_bars(draw(generators, w_plus))
        targets = torch.cat([to_tensor(crop.image) for crop in crops])
        l2 = (drawn.clamp(-1, 1) - targets).square().mean(dim=(1, 2, 3)).tolist()
        full = [
            {"l2": error, "face_count": crop.face_count, "face_index": crop.face_index, **report, **made}
            for error, crop, report in zip(l2, crops, reports, strict=True)
        ]
        images, base = to_pil(drawn), Base(self.generator, self.base_name)
        return InversionOutput(images, images, w_plus.cpu().float(), generators, crops, {}, full, base)

    # Edited, and back in the photo

    def edit(self, out: InversionOutput, /, **strengths: float) -> InversionOutput:
        """Move along one or more directions: gives a new output, drawn by the same generators. Edits add up.

        A direction in S moves the generators' styles: what draws is then a light copy that shares all their weights.

        Args:
            out: An inversion, edited or not.
            **strengths: Strength by direction, each in its unit: `edit(out, smile=2.0, age=-1.0)`.

        Raises:
            ValueError: If a direction is unknown (the message names the known ones), or a strength is not finite.
        """
        strengths = {name: float(strength) for name, strength in strengths.items()}
        w_plus = apply_directions(out.w_plus, self.directions, strengths=strengths)
        generators = restyle_generators(out.generators, self.directions, strengths=strengths)
        edits = {name: out.edits.get(name, 0.0) + strengths.get(name, 0.0) for name in {**out.edits, **strengths}}
        for name in strengths:
            limits = self.directions[name].strength_range
            if limits and not limits[0] <= edits[name] <= limits[1]:
                logger.warning("%s=%g is outside its calibrated range [%g, %g].", name, edits[name], *limits)
        images = to_pil(self.domain.without_bars(draw(generators, w_plus)))
        moved = dataclasses.replace(out, images=images, w_plus=w_plus, w_inverted=out.w_unedited, edits=edits)
        return dataclasses.replace(moved, generators=generators)

    def paste_back(
        self, out: InversionOutput, *, detail: Detail = "move", feather: float = 0.08, keep_detail: bool | None = None
    ) -> list[Image.Image]:
        """Put the faces back into their photos, at their own sizes; nothing outside the crop changes.

        Args:
            out: An inversion, usually edited.
            detail: What becomes of the photo's own detail, which the generator cannot draw: `"move"` lets it follow the
                motion of the edit, `"add"` leaves it where it is; either way an unedited face gives the photo itself.
                `"none"` replaces the face by the generator's picture.
            feather: Width of the soft seam inside the crop, relative to its side, in [0, 0.5].
            keep_detail: Deprecated: True is `detail="move"`, False is `detail="none"`.

        Raises:
            ValueError: If `detail` or `feather` is out of range.
            MissingDependencyError: If OpenCV cannot be imported.
        """
        if keep_detail is not None:
            detail = "move" if keep_detail else "none"
            warnings.warn(f"`keep_detail` is deprecated: use `detail={detail!r}`.", DeprecationWarning, stacklevel=2)
        return [
            paste_back(crop, image, reference=reference, detail=detail, feather=feather)
            for crop, image, reference in zip(out.crops, out.images, out.reconstructions)
        ]

    # The parts

    @property
    def generator(self) -> Generator:
        """The StyleGAN2 generator. `pipe.generator.synthesis = torch.compile(pipe.generator.synthesis)` compiles it."""
        return self._generator

    @generator.setter
    def generator(self, generator: Generator) -> None:
        self._generator = storage.uncompiled(generator)  # pipelines call its parts, which the wrapper does not compile

    @property
    def detector(self) -> LandmarkDetector:
        """Finds faces; loaded when first needed."""
        if isinstance(self._detector, str):
            self._detector = get_landmark_detector(self._detector, device=self.device)
        return self._detector

    @property
    def components(self) -> dict[str, Any]:
        """The parts by the constructor's names: `type(pipe)(**pipe.components)` shares them."""
        settings = {"directions": self.directions, "domain": self.domain, "detector": self._detector}
        return {"generator": self.generator, **settings}

    @property
    def networks(self) -> list[nn.Module]:
        """Every network that is loaded."""
        components = self.components
        parts = (*components.values(), *components.get("encoders", {}).values())
        return [part for part in parts if isinstance(part, nn.Module)]

    @property
    def crop_scale(self) -> float:
        """Side of the face crop relative to FFHQ's."""
        return self.domain.crop_scale

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on beside the networks, the crop and the arguments of a call."""
        return {}

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` of the saved model says."""
        root = {"_class_name": type(self).__name__, "_library_version": __version__}
        return {**root, "domain": dataclasses.asdict(self.domain), **self.other_settings, **self.settings}

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the networks."""
        return self.generator.w_avg.dtype

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs."""
        return self.generator.w_avg.device

    def __repr__(self) -> str:
        size, names = self.generator.config.resolution, [type(network).__name__ for network in self.networks]
        directions = ", ".join(self.directions) or "none"
        place = f"{str(self.dtype).removeprefix('torch.')} on {self.device}"
        return f"{type(self).__name__}({', '.join(names)}; {size} x {size} px; directions: {directions}; {place})"

    def to(
        self,
        *args: torch.device | torch.dtype | str | int | None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Move every network to a device, a floating-point type or both, and return the pipeline itself.

        Args:
            *args: A device, a dtype, or both: `to("cuda")`, `to(torch.float64)`, `to("cuda", torch.float64)`.
            device: Where to put them: "cpu", "cuda", "mps", or "auto" for the best there is. `None` leaves them.
            dtype: As in `from_pretrained`. `None` leaves it.

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
        self.check_dtype(dtype)
        place = None if device is None else loading.find_device(device)
        for network in self.networks:
            network.to(device=place, dtype=dtype)
        if place is not None and isinstance(self._detector, FacexlibLandmarkDetector):
            self._detector.to(place)
        if dtype in (torch.float16, torch.bfloat16):
            self.base_name = None  # the name gives other numbers
        return self

    @classmethod
    def check_dtype(cls, dtype: torch.dtype | None) -> None:
        """Check that the pipeline runs in a floating-point type. Raises `ValueError` if it does not."""
        if dtype is not None and dtype not in cls.dtypes:
            known = ", ".join(map(str, cls.dtypes))
            raise ValueError(f"`dtype` of {cls.__name__} must be one of {known}, got {dtype}.")

    # From a model, and back

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        device: torch.device | str | None = None,
        detector: Detector = "auto",
        perceptual: PerceptualDistance | str | None = None,
    ) -> Self:
        """Load a pipeline from a folder, a built-in model ("faces64"), the Hugging Face Hub, or the catalogue.

        Args:
            pretrained_model_name_or_path: A folder, a built-in model, "organisation/repository", or a checkpoint of the
                catalogue: one on the Hub is fetched, verified and converted once; of others the error says where it is.
            revision: Branch, tag or commit on the Hub.
            subfolder: Folder inside the model.
            token: Access token for the Hub.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.
            force_download: Download again.
            dtype: Floating-point type of the networks, such as `torch.bfloat16`. `None` means float32.
            variant: Which weights, such as "fp16" for the files `model.fp16.safetensors`.
            device: Where to put it: "cpu", "cuda", "mps", or "auto" for the best there is. `None` means the CPU.
            detector: Finds faces: "auto", "builtin", "facexlib", or a callable.
            perceptual: Perceptual network of a pipeline that optimises, such as PTI: "alex", "vgg", or one of your own.
                `None` means the model's, by default "alex".

        Raises:
            ModelNotFoundError: If there is no such model, or it lacks what this pipeline needs.
            CheckpointError: If a file is damaged or does not fit.
            MissingDependencyError: If `perceptual` is "vgg" and the package `lpips` cannot be imported.
            ValueError: If this machine has no such device, `dtype` or `variant` is out of range, or `perceptual` is
                unknown, or given to a pipeline that does not optimise.
        """
        cls.check_dtype(dtype)
        device = loading.find_device(device)
        access = hub.Access(revision, subfolder, token, cache_dir, local_files_only, force_download)
        model = loading.read_model(pretrained_model_name_or_path, access, variant=variant)
        return cls._of(model, detector, perceptual).to(device, dtype or torch.float32)

    @classmethod
    def from_single_file(
        cls,
        source: str | os.PathLike[str],
        *,
        sha256: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: torch.dtype | None = None,
        domain: Domain | None = None,
        device: torch.device | str | None = None,
        detector: Detector = "auto",
        perceptual: PerceptualDistance | str | None = None,
    ) -> Self:
        """Load a pipeline from one official checkpoint: pSp's, e4e's, rosinality's, NVIDIA's, PTI's.

        Nothing in the file is executed. Sizes are read from the tensors. `save_pretrained` then writes safetensors. A
        generator for FFHQ at 1024 px brings the papers' directions, which are fetched once (0.2 MB).

        Args:
            source: A path; "hf://organisation/repository/file"; or an "https://" address, with its `sha256`.
            sha256: Expected hash of the file.
            token: As in `from_pretrained`, and so are all that follow but `domain`.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.
            force_download: Download again.
            dtype: Floating-point type of the networks.
            domain: What the model takes. `None` follows from the data set that the file names, by default FFHQ's faces.
            device: Where to put it.
            detector: Finds faces.
            perceptual: Perceptual network of a pipeline that optimises.

        Raises:
            ModelNotFoundError: If there is no such file, or it cannot be fetched.
            CheckpointError: If it cannot be read, is not supported, or lacks what this pipeline needs.
            MissingDependencyError: As in `from_pretrained`.
            ValueError: If the address, the device, the dtype or the perceptual network is invalid.
        """
        cls.check_dtype(dtype)
        device = loading.find_device(device)
        access = hub.Access(None, None, token, cache_dir, local_files_only, force_download)
        model = loading.read_file(source, access, sha256=sha256, encoder=cls.encoder_kind, domain=domain)
        return cls._of(model, detector, perceptual).to(device, dtype or torch.float32)

    @classmethod
    def _of(cls, model: loading.LoadedModel, detector: Detector, perceptual: PerceptualDistance | str | None) -> Self:
        pipeline = cls._build(model, perceptual)
        settings, own = model.config, ("crop_scale", "domain", "source")  # `config` writes its own anew
        pipeline.other_settings = {k: v for k, v in settings.items() if k not in own and not k.startswith("_")}
        pipeline.directions, pipeline.domain = dict(model.directions), model.domain
        pipeline.base_name, pipeline.relevance, pipeline._detector = model.base_name, model.relevance, detector
        return pipeline

    @classmethod
    @abc.abstractmethod
    def _build(cls, model: loading.LoadedModel, perceptual: PerceptualDistance | str | None) -> Self:
        """Put a pipeline together from the networks and the settings of a model."""

    @abc.abstractmethod
    def saved_networks(self) -> dict[str, nn.Module]:
        """The networks of a saved model, by folder."""

    save_pretrained = loading.save_pretrained
    push_to_hub = loading.push_to_hub
    load_direction = loading.load_direction
    load_components = loading.load_components
