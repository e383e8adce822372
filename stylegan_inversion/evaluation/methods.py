"""The methods that are compared: what each is called, which pipeline it is, and what identifies its results."""

import dataclasses
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan_inversion.bounds import plain_number
from stylegan_inversion.hub import plain_state_dict
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.encoder import E4EPipeline, EncoderPipeline, PSPPipeline
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.preprocessing.align import Crop, recrop
from stylegan_inversion.preprocessing.image import to_tensor

PIXELS_TOGETHER = 16 * 128**2  # that a projection draws at once at most: gradients of a 1024 px picture take gigabytes
_OURS = ("image", "align", "face")  # arguments of a pipeline's call that are the same for all methods


@dataclass(frozen=True)
class Method:
    """One way to invert a photo.

    Attributes:
        pipeline: Inverts it.
        options: Arguments of the pipeline's call.
        label: What tables and pictures call it. Empty takes the name it is given.
        limit: How many images, the first by name, it is tried on at most. `None` means all.
        parts: Attributes of the pipeline that its results depend on: another value of one makes old records void. A
            point goes into a mapping: "encoders.e4e". `None` means all.
    """

    pipeline: InversionPipeline
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    limit: int | None = None
    parts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        known = [name for name in inspect.signature(self.pipeline.__call__).parameters if name not in _OURS]
        unknown = [name for name in self.options if name not in known]
        if unknown:
            raise ValueError(f"{type(self.pipeline).__name__} has no option {unknown[0]!r}; it has {', '.join(known)}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"`limit` must be >= 1, got {self.limit}.")

    @property
    def pivot(self) -> dict[str, Any] | None:
        """The options that say how PTI finds its pivots; `None` for another pipeline."""
        if not isinstance(self.pipeline, PTIPipeline):
            return None
        return {name: value for name, value in self.options.items() if name not in ("num_tuning_steps", "batch_size")}


@dataclass(frozen=True)
class Recipe:
    """How to make a `Method` of a model.

    Attributes:
        label: As in `Method`.
        pipeline: Class of the pipeline.
        options: Arguments of its call that belong to the method.
        parts: As in `Method`.
        pivots: Encoders that the pipeline takes pivots from, by name.
    """

    label: str
    pipeline: type[InversionPipeline]
    options: Mapping[str, Any]
    parts: tuple[str, ...]
    pivots: Mapping[str, type[EncoderPipeline]] = field(default_factory=dict)


_PROJECTED = ("generator", "perceptual", "projector")
_TUNED = ("generator", "perceptual", "tuning")

METHODS: Mapping[str, Recipe] = MappingProxyType(
    {
        "w": Recipe("W optimisation", PTIPipeline, {"pivot": "w", "num_tuning_steps": 0}, _PROJECTED),
        "w_plus": Recipe("W+ optimisation", PTIPipeline, {"pivot": "w_plus", "num_tuning_steps": 0}, _PROJECTED),
        "e4e": Recipe("e4e", E4EPipeline, {}, ("generator", "encoder")),
        "psp": Recipe("pSp", PSPPipeline, {}, ("generator", "encoder")),
        "pti": Recipe("PTI (W pivot)", PTIPipeline, {"pivot": "w"}, (*_PROJECTED, "tuning")),
        "pti-e4e": Recipe(
            "PTI (e4e pivot)", PTIPipeline, {"pivot": "e4e"}, (*_TUNED, "encoders.e4e"), {"e4e": E4EPipeline}
        ),
        "pti-psp": Recipe(
            "PTI (pSp pivot)", PTIPipeline, {"pivot": "psp"}, (*_TUNED, "encoders.psp"), {"psp": PSPPipeline}
        ),
    }
)


def load_methods(
    names: Sequence[str],
    model: str,
    *,
    device: torch.device | str | None = None,
    detector: Any = "auto",
    options: Mapping[str, Any] | None = None,
    limits: Mapping[str, int] | None = None,
) -> dict[str, Method]:
    """Load methods of one model by their names in `METHODS`.

    Args:
        names: What to compare; the order is kept.
        model: Built-in model, folder, or organisation/repository.
        device: See `InversionPipeline.from_pretrained`.
        detector: See `InversionPipeline.from_pretrained`.
        options: Arguments such as `num_w_steps` for the pipelines whose call takes them; `None` counts as not given.
            What `METHODS` says goes first.
        limits: How many images at most, by name.

    Raises:
        ValueError: If a name is unknown, or `limits` names a method that is not compared.
        ModelNotFoundError: If the model lacks what a method needs.
    """
    for name in names:
        if name not in METHODS:
            raise ValueError(f"There is no method {name!r}; there are {', '.join(METHODS)}.")
    for name in limits or {}:
        if name not in names:
            raise ValueError(f"`limits` names {name!r}, which is not compared; compared are {', '.join(names)}.")
    pipelines: dict[type[InversionPipeline], InversionPipeline] = {}

    def load(kind: type[InversionPipeline]) -> InversionPipeline:
        if kind not in pipelines:
            pipelines[kind] = kind.from_pretrained(model, device=device, detector=detector)
        return pipelines[kind]

    methods = {}
    for name in names:
        recipe = METHODS[name]
        pipeline = load(recipe.pipeline)
        for pivot, kind in recipe.pivots.items():
            cast(PTIPipeline, pipeline).encoders[pivot] = cast(EncoderPipeline, load(kind)).encoder
        taken = inspect.signature(recipe.pipeline.__call__).parameters
        given = {k: v for k, v in (options or {}).items() if v is not None and k in taken}
        limit = (limits or {}).get(name)
        methods[name] = Method(pipeline, {**given, **recipe.options}, recipe.label, limit, recipe.parts)
    return methods


@dataclass(frozen=True, eq=False)
class Inversion:
    """Photos that one generator draws.

    Attributes:
        w_plus: Codes, (n, num_ws, w_dim), on the generator's device.
        generator: Who draws them.
        seconds: Time an image, from the loaded crop to the codes (and the tuned generator).
        report: What the pipeline says of it; empty for an encoder.
        encode: Images, (B, 3, R, R), in [-1, 1] -> w_plus; `None` for a method without an encoder.
    """

    w_plus: Tensor
    generator: Generator
    seconds: float
    report: Mapping[str, Any]
    encode: Callable[[Tensor], Tensor] | None


class Pivots:
    """The last pivots that were found for a batch of photos, for methods that differ in the tuning only."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._found: InversionOutput | None = None

    def find(self, method: Method, photos: Sequence[Path], *, align: bool) -> InversionOutput:
        """What PTI gives without tuning, new or remembered."""
        key = (method.pipeline, method.pivot, list(photos), align)
        if self._found is None or key != self._key:
            self._found = None  # the generators in it take memory
            pipeline = cast(PTIPipeline, method.pipeline)
            together = max(1, min(len(photos), PIXELS_TOGETHER // pipeline.generator.config.resolution**2))
            options = {**method.options, "num_tuning_steps": 0, "batch_size": together}
            self._key, self._found = key, pipeline(list(photos), align=align, **options)
        return self._found


def invert(
    method: Method, photos: Sequence[Path], crops: Sequence[Crop], *, align: bool, pivots: Pivots | None = None
) -> Iterator[Inversion]:
    """Invert photos: a whole batch through an encoder, or through an optimisation of codes and then one by one.

    Args:
        method: How.
        photos: Paths.
        crops: What the pipeline's `align` gives for them.
        align: Whether faces are looked for in the photos.
        pivots: Pivots of earlier calls: methods that share a pipeline and differ in the tuning only find them once.

    Yields:
        One for all photos from an encoder, else one for each.
    """
    pipeline = method.pipeline
    if isinstance(pipeline, PTIPipeline):
        for photo, found in zip(photos, (pivots or Pivots()).find(method, photos, align=align)):
            out, seconds = found, float(found.reports[0]["seconds"])
            if method.options.get("num_tuning_steps") != 0:
                out = pipeline(photo, align=align, **{**method.options, "pivot": found})
                seconds += out.reports[0]["seconds"]
            yield Inversion(out.w_plus.to(out.generator.w_avg), out.generator, seconds, out.reports[0], None)
        return

    encoder = cast(EncoderPipeline, pipeline).encoder
    side = cast(PyramidEncoderConfig, encoder.config).input_resolution
    x = torch.cat([to_tensor(recrop(crop, side)) for crop in crops])
    start = time.perf_counter()
    with torch.no_grad():
        codes = encoder(x.to(pipeline.device)).cpu()  # the copy waits for the device
    took = (time.perf_counter() - start) / len(crops)
    codes = codes.to(pipeline.device)
    yield Inversion(codes, pipeline.generator, took, {}, lambda images: encoder(resize(images, side)))


def resize(images: Tensor, side: int) -> Tensor:
    """Images, (B, 3, R, R), at another size: averaged over areas downwards, as pSp and e4e do, bicubic upwards."""
    if images.shape[-1] == side:
        return images
    if images.shape[-1] > side:
        return F.interpolate(images, size=(side, side), mode="area")
    return F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)


def describe(method: Method) -> dict[str, Any]:
    """Say in JSON what a method's results depend on: class, options, settings, and a sha256 of each network."""
    attributes = vars(method.pipeline)
    names = method.parts or sorted(name for name in attributes if not name.startswith("_") and name != "directions")
    parts = {}
    for name in names:
        attribute, _, key = name.partition(".")
        parts[name] = _describe(attributes[attribute][key] if key else attributes[attribute])
    return {"pipeline": type(method.pipeline).__name__, "options": dict(method.options), "parts": parts}


def _describe(part: Any) -> Any:
    if isinstance(part, nn.Module):
        return hash_tensors(plain_state_dict(part))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return dataclasses.asdict(part)
    if isinstance(part, Mapping):
        return {str(name): _describe(value) for name, value in part.items()}
    return part if isinstance(part, (str, int, float, bool, type(None))) else repr(type(part))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of named tensors: names, shapes, kinds and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """The sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain_number).encode()).hexdigest()
