"""PTI: a pivot, then a generator tuned around it (Roich et al. 2022, arXiv:2106.05744)."""

import dataclasses
import logging
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import Self

from stylegan_inversion import hub
from stylegan_inversion.checkpoints.recognise import SingleFile, source_of
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.inversion.pivotal_tuning import TuningConfig, tune_generator
from stylegan_inversion.inversion.projector import Callback, Projection, ProjectorConfig, project_w, project_w_plus
from stylegan_inversion.losses.lpips import PERCEPTUAL_NETWORKS, PerceptualDistance, load_perceptual
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from stylegan_inversion.pipelines.base import ImageLike, InversionPipeline
from stylegan_inversion.pipelines.encoder import E4EPipeline, EncoderPipeline, PSPPipeline
from stylegan_inversion.pipelines.official import build_part
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pretrained import ModuleLoader, ModuleSaver
from stylegan_inversion.preprocessing.align import Crop, recrop
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.preprocessing.sources import PhotoSource, to_config

logger = logging.getLogger(__name__)

Pivot = Literal["w", "w_plus", "e4e", "psp"]
PresetName = Literal["fast", "balanced", "best"]
_PROJECTORS = {"w": project_w, "w_plus": project_w_plus}
_ENCODERS: dict[str, type[EncoderPipeline]] = {"e4e": E4EPipeline, "psp": PSPPipeline}


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much time a call takes.

    Attributes:
        pivots: Of these the first one that the model has.
        num_w_steps: Steps of a projection; an encoder needs none.
        num_tuning_steps: Steps of the tuning at most.
    """

    pivots: tuple[Pivot, ...]
    num_w_steps: int
    num_tuning_steps: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "fast": Preset(("e4e", "psp", "w"), num_w_steps=100, num_tuning_steps=50),
        "balanced": Preset(("e4e", "psp", "w"), num_w_steps=200, num_tuning_steps=150),
        "best": Preset(("w",), num_w_steps=450, num_tuning_steps=350),  # the paper's
    }
)


class Plan(NamedTuple):
    """What a call does: its pivot, the steps of a projection, and those of the tuning at most."""

    pivot: Pivot | InversionOutput
    num_w_steps: int
    num_tuning_steps: int


class _PivotFinder(NamedTuple):
    """Finds the pivots of crops in so many steps; gets the number of the first one, the crops, and their tensors."""

    find: Callable[[int, Sequence[Crop], Tensor, Callback], Projection]
    num_steps: int


class PTIPipeline(InversionPipeline):
    """Inversion by optimisation: a w near the photo, then a copy of the generator tuned to draw the photo at that w.

    Attributes:
        perceptual: Perceptual distance of both stages.
        projector: Settings of the first stage.
        tuning: Settings of the second stage.
        encoders: Encoders that can give the pivot, by name; those of a model are loaded when first needed.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        perceptual: PerceptualDistance,
        projector: ProjectorConfig | None = None,
        tuning: TuningConfig | None = None,
        encoders: Mapping[str, nn.Module] | None = None,
        **parts: Any,
    ) -> None:
        """Put the parts together; `from_pretrained` is the usual way.

        Args:
            generator: The StyleGAN2 generator.
            perceptual: Perceptual distance of both stages.
            projector: Settings of the first stage. `None` means PTI's.
            tuning: Settings of the second stage. `None` means PTI's.
            encoders: Images -> w_plus: an `Encoder4Editing` as "e4e", a `GradualStyleEncoder` as "psp", or neither.
            **parts: See `InversionPipeline`.

        Raises:
            ValueError: If an encoder has another name.
        """
        unknown = [name for name in encoders or {} if name not in _ENCODERS]
        if unknown:
            raise ValueError(f"`encoders` must be named {' or '.join(_ENCODERS)}, got {unknown[0]!r}.")
        super().__init__(generator, **parts)
        self.encoders = {name: encoder.eval().requires_grad_(False) for name, encoder in (encoders or {}).items()}
        self._encoder_folders: dict[str, Path] = {}
        self._load: ModuleLoader = hub.load_module
        self.perceptual = perceptual
        self.projector = projector or ProjectorConfig()
        self.tuning = tuning or TuningConfig()

    @classmethod
    def _from_folder(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        generator: Generator,
        load: ModuleLoader,
        perceptual: PerceptualDistance | str | None,
    ) -> Self:
        settings = config.get("pti", {})
        try:
            projector, tuning = (
                ProjectorConfig(**settings.get("projector", {})),
                TuningConfig(**settings.get("tuning", {})),
            )
            name = settings.get("perceptual", "alex")
            if name == "st-alex" and perceptual is None:
                logger.warning(
                    "%s asks for the perceptual network 'st-alex', which is no longer there; taking 'alex'.", folder
                )
                name = "alex"
            if perceptual is None and name not in PERCEPTUAL_NETWORKS:
                raise ValueError(
                    f"`perceptual` must be one of {', '.join(PERCEPTUAL_NETWORKS)}, got {str(name)[:100]!r}"
                )
        except (TypeError, ValueError, AttributeError) as e:
            raise CheckpointError(f"{folder / 'config.json'}: bad settings under `pti`: {e}") from e
        network = perceptual if isinstance(perceptual, PerceptualDistance) else load_perceptual(perceptual or name)
        network = network.to(generator.w_avg.dtype)
        pipeline = cls(generator, perceptual=network, projector=projector, tuning=tuning)
        if config.get("source") in (None, to_config(PhotoSource())):  # encoders of sketches and labels give no pivot
            folders = {name: folder / kind.encoder_folder for name, kind in _ENCODERS.items()}
            pipeline._load = load
            pipeline._encoder_folders = {name: inside for name, inside in folders.items() if inside.is_dir()}
        return pipeline

    @classmethod
    def _from_file(cls, file: SingleFile, perceptual: PerceptualDistance | str | None) -> Self:
        network = perceptual if isinstance(perceptual, PerceptualDistance) else load_perceptual(perceptual or "alex")
        pipeline = cls(build_part(file, "generator", Generator), perceptual=network)
        for name, kind in _ENCODERS.items():
            if "encoder" in file.parts and file.kind == name:
                encoder = file.parts["encoder"].build()
                if not isinstance(encoder, kind.encoder_class):
                    continue  # pSp's encoder into W: the projection does that
                if isinstance(source_of(encoder), PhotoSource):  # those of sketches and labels give no pivot
                    pipeline.encoders[name] = encoder
        return pipeline

    @property
    def pivots(self) -> tuple[str, ...]:
        """What a call can take as `pivot`: both projections, and the encoders there are."""
        return (*_PROJECTORS, *(name for name in _ENCODERS if name in {**self.encoders, **self._encoder_folders}))

    @torch.inference_mode(False)  # of the caller, if that is on: the encoder stays
    def _encoder(self, name: str) -> nn.Module:
        if name not in self.pivots:
            raise ModelNotFoundError(
                f"The model holds no {_ENCODERS[name].encoder_class.__name__} of photos (folder "
                f"{_ENCODERS[name].encoder_folder!r}) for pivot={name!r}. Take one of {', '.join(self.pivots)}."
            )
        if name not in self.encoders:
            kind, folder = _ENCODERS[name].encoder_class, self._encoder_folders[name]
            encoder = self._load(kind, PyramidEncoderConfig, folder, device=self.device)
            self.encoders[name] = encoder.to(self.dtype)
        return self.encoders[name]

    def plan(
        self,
        preset: PresetName | None = None,
        pivot: Pivot | InversionOutput | None = None,
        num_w_steps: int | None = None,
        num_tuning_steps: int | None = None,
    ) -> Plan:
        """What a call with these arguments does.

        Raises:
            ValueError: If one of them is out of range.
        """
        if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}.")
        chosen = None if preset is None else PRESETS[preset]
        if pivot is None:
            wanted: tuple[Pivot, ...] = ("w",) if chosen is None else chosen.pivots
            pivot = next(name for name in wanted if name in self.pivots)
        named = isinstance(pivot, str) and pivot in get_args(Pivot)
        if not named and not isinstance(pivot, InversionOutput):
            raise ValueError(
                f"`pivot` must be one of {', '.join(get_args(Pivot))}, or an earlier inversion, got {pivot!r}."
            )
        if num_w_steps is None:
            num_w_steps = self.projector.num_steps if chosen is None else chosen.num_w_steps
        if num_tuning_steps is None:
            num_tuning_steps = self.tuning.num_steps if chosen is None else chosen.num_tuning_steps
        num_w_steps, num_tuning_steps = operator.index(num_w_steps), operator.index(num_tuning_steps)
        for name, value, least in (("num_w_steps", num_w_steps, 1), ("num_tuning_steps", num_tuning_steps, 0)):
            if value < least:
                raise ValueError(f"`{name}` must be >= {least}, got {value}.")
        return Plan(cast("Pivot | InversionOutput", pivot), num_w_steps, num_tuning_steps)

    def encoder_pipeline(self, name: str) -> EncoderPipeline:
        """The model's encoder as a pipeline of its own; it shares this one's networks, directions and detector.

        Args:
            name: "e4e" or "psp"; `pivots` says which of them the model holds.

        Raises:
            ValueError: If it is neither.
            ModelNotFoundError: If the model does not hold it.
            CheckpointError: If the encoder's files are damaged.
        """
        if not isinstance(name, str) or name not in _ENCODERS:
            raise ValueError(f"`name` must be {' or '.join(_ENCODERS)}, got {name!r}.")
        encoder = self._encoder(name)
        pipeline = _ENCODERS[name](self.generator, encoder, crop_scale=self.crop_scale, detector=self.detector)
        pipeline.directions = self.directions
        pipeline._name = self._name
        if self.perceptual.name is not None:
            pipeline._kept = {**self._kept, **self._settings()}
        return pipeline

    @classmethod
    def _check_dtype(cls, dtype: torch.dtype | None) -> None:
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                f"`dtype` must be torch.float32 or torch.float64, got {dtype}: tuning needs the precision."
            )

    def _save_parts(self, folder: Path, save: ModuleSaver) -> None:
        for name in self.pivots:
            if name in _ENCODERS:
                save(self._encoder(name), folder / _ENCODERS[name].encoder_folder)

    def _settings(self) -> dict[str, Any]:
        if self.perceptual.name is None:
            raise ValueError("`perceptual` has no name, so it cannot be saved: take one from `load_perceptual`.")
        settings = {"projector": dataclasses.asdict(self.projector), "tuning": dataclasses.asdict(self.tuning)}
        return {"pti": {"perceptual": self.perceptual.name, **settings}}

    def _networks(self) -> list[nn.Module]:
        return [self.generator, self.perceptual, *self.encoders.values()]

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        align: bool = True,
        face: int = 0,
        preset: PresetName | None = None,
        pivot: Pivot | InversionOutput | None = None,
        num_w_steps: int | None = None,
        num_tuning_steps: int | None = None,
        batch_size: int = 1,
        seed: int = 0,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> InversionOutput:
        """Invert one photo, or several; each gets a tuned generator of its own.

        Args:
            image: A photo (path, PIL image, bytes, array), or a list of them.
            align: Find the face and cut it out. False takes the photo as an aligned crop.
            face: Which face of the photo, by size: 0 is the largest.
            preset: How much time to take: "fast" tunes a little around the pivot of an encoder, if the model has one,
                "balanced" does so three times as long, "best" takes the paper's W pivot and steps; see `PRESETS`. The
                next three arguments win over it. `None` means the model's own settings, by default those of "best".
            pivot: Optimise "w", one for all layers, which stays editable, or "w_plus", one a layer; or take the answer
                of the model's encoder "e4e" or "psp", at once. `pivots` names those there are. Or take what an earlier
                call with `num_tuning_steps=0` gave for these photos, to tune around it without optimising again.
                `None` means the preset's, or "w".
            num_w_steps: Steps of the optimisation of w, which an encoder needs none of. `None` means the preset's, or
                the model's setting, by default 450.
            num_tuning_steps: Steps of the second stage at most; 0 leaves the generator as it is. `None` means the
                preset's, or the model's setting, by default 350.
            batch_size: Photos whose pivots are found together: quicker, to the same result but for rounding. The tuning
                always takes one after the other.
            seed: Of all random draws.
            callback: Called after each step with the step and its figures ("stage", "loss", "photo", ...; "photo" is
                the first of those that go together). Returning True stops there and keeps the best state so far; an
                exception ends the call.
            progress: Show a progress bar.

        Returns:
            The inversions; `out.generators` are tuned copies, `pipe.generator` is untouched. `out.reports` say what was
            done: "pivot", "w_steps", "tuning_steps", "perceptual" (the network), "lpips_threshold" (its distance at
            which the tuning ends) and "stopped_by" ("steps", "threshold", "callback" or "nan").

        Raises:
            ValueError: If a number, `preset` or `pivot` is out of range, or `pivot` is of other photos or another
                model.
            InvalidImageError: If a photo cannot be read.
            FaceNotFoundError: If there is no face, or not that many.
            ModelNotFoundError: If `pivot` is an encoder that the model does not hold.
            CheckpointError: If the encoder's files are damaged.
            DivergedError: If the optimisation gives NaN at its first step.
        """
        batch_size, seed = operator.index(batch_size), operator.index(seed)  # of NumPy's integers too
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be >= 1, got {batch_size}.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"`seed` must be in [0, 2**63), got {seed}.")
        pivot, num_w_steps, num_tuning_steps = self.plan(preset, pivot, num_w_steps, num_tuning_steps)
        projector = dataclasses.replace(self.projector, num_steps=num_w_steps)
        tuning = dataclasses.replace(self.tuning, num_steps=num_tuning_steps)
        if isinstance(pivot, InversionOutput):
            crops = self._crops(image, align, face)
            finder = self._given_pivots(pivot, crops)
        else:
            finder = self._pivot_finder(pivot, projector, seed)
            crops = self._crops(image, align, face)
        steps = finder.num_steps + tuning.num_steps
        inverted = []
        with tqdm(total=len(crops) * steps, disable=not progress, unit="step", leave=False) as bar:

            def reporter(done: int, photo: int, together: int = 1) -> Callback:
                def on_step(step: int, info: dict[str, Any]) -> bool | None:
                    bar.n = done + step * together
                    bar.set_postfix_str(f"{info['stage']} {info['loss']:.4f}", refresh=False)
                    bar.update(0)
                    return callback(step, {**info, "photo": photo}) if callback else None

                return on_step

            for first in range(0, len(crops), batch_size):
                start, group = time.perf_counter(), crops[first : first + batch_size]
                target = torch.cat([to_tensor(crop.image) for crop in group]).to(self.device, self.dtype)
                found = finder.find(first, group, target, reporter(first * steps, first, len(group)))
                seconds = (time.perf_counter() - start) / len(group)
                for i in range(len(group)):
                    start, done = (
                        time.perf_counter(),
                        first * steps + len(group) * finder.num_steps + i * tuning.num_steps,
                    )
                    noise = [tensor[i : i + 1] for tensor in found.noise]
                    one = dataclasses.replace(found, w_plus=found.w_plus[i : i + 1], noise=noise)
                    tuned, report = self._tune(target[i : i + 1], one, tuning, seed, reporter(done, first + i))
                    report |= {"pivot": pivot, "seconds": round(seconds + time.perf_counter() - start, 2)}
                    if isinstance(pivot, InversionOutput):
                        report |= {name: pivot.reports[first + i].get(name) for name in ("pivot", "w_steps")}
                    inverted.append((one.w_plus, tuned, report))
        w_plus = torch.cat([w for w, _, _ in inverted])
        return self._output(crops, w_plus, [g for _, g, _ in inverted], [report for _, _, report in inverted])

    def _pivot_finder(self, pivot: Pivot, projector: ProjectorConfig, seed: int) -> _PivotFinder:
        if pivot in _PROJECTORS:

            def project(first: int, crops: Sequence[Crop], target: Tensor, callback: Callback) -> Projection:
                return _PROJECTORS[pivot](
                    self.generator, target, perceptual=self.perceptual, config=projector, seed=seed, callback=callback
                )

            return _PivotFinder(project, projector.num_steps)
        encoder = self._encoder(pivot)
        side = cast(PyramidEncoderConfig, encoder.config).input_resolution

        @torch.no_grad()
        def encode(first: int, crops: Sequence[Crop], target: Tensor, callback: Callback) -> Projection:
            w_plus = encoder(torch.cat([to_tensor(recrop(crop, side)) for crop in crops]).to(target))
            # Encoders are made for the generator as it is, with its own noise.
            noise = [conv.noise_const.expand(len(crops), 1, -1, -1) for conv in self.generator.synthesis.convs]
            return Projection(w_plus, noise)

        return _PivotFinder(encode, 0)

    def _given_pivots(self, out: InversionOutput, crops: Sequence[Crop]) -> _PivotFinder:
        codes = out.w_plus if out.w_inverted is None else out.w_inverted
        noises = [[conv.noise_const for conv in generator.synthesis.convs] for generator in out.generators]
        if not all(generator.has_the_w_of(self.generator) for generator in out.generators):
            raise ValueError("`pivot` is of another model: its generator has other sizes, or another average w.")
        if [crop.image.tobytes() for crop in out.crops] != [crop.image.tobytes() for crop in crops]:
            raise ValueError(
                "`pivot` must be of the photos in `image`, in the same order, and cut out in the same way."
            )

        def look_up(first: int, group: Sequence[Crop], target: Tensor, callback: Callback) -> Projection:
            noise = [torch.stack(each)[:, None].to(target) for each in zip(*noises[first : first + len(group)])]
            return Projection(codes[first : first + len(group)].to(target), noise)

        return _PivotFinder(look_up, 0)

    def _tune(
        self, target: Tensor, found: Projection, tuning: TuningConfig, seed: int, callback: Callback
    ) -> tuple[Generator, dict[str, Any]]:
        with torch.no_grad():
            y_hat = self.generator.synthesis(found.w_plus, noise=found.noise).clamp(-1, 1)
        if found.stopped_by != "steps":  # a stopped projection stops the run
            tuning = dataclasses.replace(tuning, num_steps=0)
        tuned = tune_generator(
            self.generator,
            target,
            found.w_plus,
            perceptual=self.perceptual,
            config=tuning,
            noise=found.noise,
            seed=seed,
            callback=callback,
        )
        return tuned.generator, {
            "l2_pivot": (y_hat - target).square().mean().item(),
            "w_steps": len(found.losses),
            "tuning_steps": len(tuned.losses) - 1,
            "perceptual": self.perceptual.name,
            "lpips_threshold": tuned.lpips_threshold,
            "stopped_by": tuned.stopped_by if found.stopped_by == "steps" else found.stopped_by,
        }
