"""PTI: a pivot, then a generator tuned around it (Roich et al. 2022, arXiv:2106.05744)."""

import dataclasses
import functools
import itertools
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import Self

from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.inversion.pivotal_tuning import TuningConfig, tune_generator
from stylegan_inversion.inversion.projector import Callback, Projection, ProjectorConfig, project_w
from stylegan_inversion.losses.lpips import PERCEPTUAL_NETWORKS, PerceptualDistance, load_perceptual
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines.base import Detector, ImageLike, InversionPipeline, Inverted
from stylegan_inversion.pipelines.encoder import EncoderPipeline
from stylegan_inversion.pipelines.loading import LoadedModel
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.domain import FACES, Domain
from stylegan_inversion.preprocessing.sources import PhotoSource, to_config

PresetName = Literal["fast", "balanced", "best"]
_PROJECTORS: dict[str, Callable[..., Projection]] = {
    "w": project_w,
    "w_plus": functools.partial(project_w, per_layer=True),
}
PIVOTS = (*_PROJECTORS, *ENCODERS)


class Preset(NamedTuple):
    """How much time a call takes: whether an encoder gives the pivot if the model has one, and the steps at most."""

    encoded: bool
    num_w_steps: int
    num_tuning_steps: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "fast": Preset(True, 100, 50),
        "balanced": Preset(True, 200, 150),
        "best": Preset(False, 450, 350),  # the paper's
    }
)


class Plan(NamedTuple):
    """What a call does: its pivot, the steps of a projection, and those of the tuning at most."""

    pivot: str | InversionOutput
    num_w_steps: int
    num_tuning_steps: int


_Found = tuple[Tensor, Projection, float]
"""A face, (1, 3, R, R), its pivot, and the seconds that took."""


class PTIPipeline(InversionPipeline):
    """Inversion by optimisation: a w near the photo, then a copy of the generator tuned to draw the photo at that w.

    Args:
        generator: The StyleGAN2 generator.
        perceptual: Perceptual distance of both stages.
        projector: Settings of the first stage. `None` means PTI's.
        tuning: Settings of the second stage. `None` means PTI's.
        encoders: Encoders that can give the pivot, by the names of `models.encoders.ENCODERS`. Those of a model that
            `from_pretrained` finds are loaded when first needed.
        directions: As in `InversionPipeline`.
        domain: As in `InversionPipeline`.
        detector: As in `InversionPipeline`.

    Raises:
        ValueError: If an encoder has another name.
    """

    dtypes = (torch.float32, torch.float64)
    optimizes = True

    def __init__(
        self,
        generator: Generator,
        *,
        perceptual: PerceptualDistance,
        projector: ProjectorConfig | None = None,
        tuning: TuningConfig | None = None,
        encoders: Mapping[str, nn.Module] | None = None,
        directions: Mapping[str, Direction] | None = None,
        domain: Domain = FACES,
        detector: Detector = "auto",
    ) -> None:
        super().__init__(generator, directions=directions, domain=domain, detector=detector)
        unknown = [name for name in encoders or {} if name not in ENCODERS]
        if unknown:
            raise ValueError(f"`encoders` must be named {', '.join(ENCODERS)}, got {unknown[0]!r}.")
        self.encoders = {name: encoder.eval().requires_grad_(False) for name, encoder in (encoders or {}).items()}
        self._loaders: Mapping[str, Callable[[], nn.Module]] = {}  # of the model's encoders
        self.perceptual = perceptual
        self.projector = projector or ProjectorConfig()
        self.tuning = tuning or TuningConfig()

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        *,
        align: bool | None = None,
        face: int = 0,
        preset: PresetName | None = None,
        pivot: str | InversionOutput | None = None,
        num_w_steps: int | None = None,
        num_tuning_steps: int | None = None,
        together: bool = False,
        batch_size: int = 1,
        seed: int = 0,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> InversionOutput:
        """Invert one photo, or several; each gets a tuned generator of its own, or all share one.

        Args:
            image: A photo (path, PIL image, bytes, array), or a list of them.
            align: As in `InversionPipeline`.
            face: Which face of the photo, by size: 0 is the largest.
            preset: How much time to take: "fast" tunes a little around the pivot of an encoder, if the model has one,
                "balanced" does so three times as long, "best" takes the paper's W pivot and steps; see `PRESETS`. The
                next three arguments win over it. `None` means the model's own settings, by default those of "best".
            pivot: Optimise "w", one for all layers, which stays editable, or "w_plus", one a layer; or take the code
                that the model's encoder gives at once: "e4e", "psp", "restyle" or "sfe". `pivots` names what there is.
                Or give the output of an earlier call with `num_tuning_steps=0` for these photos, to tune around it
                without optimising again. `None` means the preset's, or "w".
            num_w_steps: Steps of the optimisation of w; an encoder takes none. `None` means the preset's, or the
                model's setting, by default 450.
            num_tuning_steps: Steps of the second stage at most; 0 leaves the generator as it is. `None` means the
                preset's, or the model's setting, by default 350.
            together: Tune one generator for all photos, such as some dozens of one person: `out.generator` draws them
                all and what lies between them. In each step every photo has a turn, until all are near enough.
            batch_size: Photos whose pivots are found together: quicker, to the same result but for rounding. The tuning
                always takes one after the other.
            seed: Seed of all random draws.
            callback: Called after each step with the step and its figures ("stage", "loss", "photo", ...; "photo" is
                the first of those that go together). Returning True stops there and keeps the best state so far; an
                exception ends the call.
            progress: Show a progress bar.

        Returns:
            The inversions; `out.generators` are tuned copies, `pipe.generator` is untouched. `out.reports` say what was
            done: "pivot", "w_steps", "tuning_steps", "perceptual" (the network), "lpips_threshold" (its distance at
            which the tuning ends) and "stopped_by" ("steps", "threshold", "callback" or "nan").

        Raises:
            ValueError: If a number, `preset` or `pivot` is out of range, or `pivot` belongs to other photos or
                another model.
            InvalidImageError: If a photo cannot be read.
            FaceNotFoundError: If there is no face, or not that many.
            ModelNotFoundError: If `pivot` is an encoder that the model does not hold.
            CheckpointError: If the encoder's files are damaged.
            DivergedError: If the optimisation gives NaN at its first step.
        """
        batch_size, seed = operator.index(batch_size), operator.index(seed)  # NumPy's integers too
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be >= 1, got {batch_size}.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"`seed` must be in [0, 2**63), got {seed}.")
        plan = self.plan(preset, pivot, num_w_steps, num_tuning_steps)
        if plan.pivot in ENCODERS:
            self._encoder(plan.pivot)  # an error comes before the search for faces
        crops = self._crops(image, align, face)
        options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "callback": callback, "progress": progress}
        found = self.invert(crops, plan=plan, together=together, **options)
        once = (together and len(crops) > 1) or any(report["stopped_by"] == "callback" for report in found[2])
        named = isinstance(plan.pivot, str) and self.perceptual.name is not None
        return self._output(crops, found, {**plan._asdict(), "seed": seed} if named and not once else None)

    def plan(
        self,
        preset: PresetName | None = None,
        pivot: str | InversionOutput | None = None,
        num_w_steps: int | None = None,
        num_tuning_steps: int | None = None,
    ) -> Plan:
        """Say what a call with these arguments does. Raises `ValueError` if one of them is out of range."""
        if preset not in (None, *PRESETS):
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}.")
        chosen = Preset(False, self.projector.num_steps, self.tuning.num_steps) if preset is None else PRESETS[preset]
        if pivot is None:
            pivot = next((name for name in self.pivots if name in ENCODERS and chosen.encoded), "w")
        if not isinstance(pivot, InversionOutput) and pivot not in PIVOTS:
            raise ValueError(f"`pivot` must be one of {', '.join(PIVOTS)}, or an earlier inversion, got {pivot!r}.")
        w_steps = operator.index(chosen.num_w_steps if num_w_steps is None else num_w_steps)
        tuning_steps = operator.index(chosen.num_tuning_steps if num_tuning_steps is None else num_tuning_steps)
        if w_steps < 1:
            raise ValueError(f"`num_w_steps` must be >= 1, got {w_steps}.")
        if tuning_steps < 0:
            raise ValueError(f"`num_tuning_steps` must be >= 0, got {tuning_steps}.")
        return Plan(pivot, w_steps, tuning_steps)

    def invert(
        self,
        crops: Sequence[Crop],
        *,
        progress: bool = False,
        plan: Plan | None = None,
        together: bool = False,
        batch_size: int = 1,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> Inverted:
        """Find the pivots of aligned faces, some at a time, and tune a copy of the generator around each, or all."""
        pivot, num_w_steps, num_tuning_steps = plan or self.plan()
        projector = dataclasses.replace(self.projector, num_steps=num_w_steps)
        tuning = dataclasses.replace(self.tuning, num_steps=num_tuning_steps)
        w_steps = num_w_steps if isinstance(pivot, str) and pivot in _PROJECTORS else 0
        if isinstance(pivot, InversionOutput):
            if not all(generator.has_the_w_of(self.generator) for generator in pivot.generators):
                raise ValueError("`pivot` is of another model: its generator has other sizes, or another average w.")
            if [crop.image.tobytes() for crop in pivot.crops] != [crop.image.tobytes() for crop in crops]:
                raise ValueError("`pivot` must be of the photos in `image`, in the same order and cut out alike.")
        total = len(crops) * (w_steps + tuning.num_steps)
        codes, generators, reports = list[Tensor](), list[Generator](), list[dict[str, Any]]()
        with tqdm(total=total, disable=not progress, unit="step", leave=False) as bar:
            tell = functools.partial(_on_step, bar, callback)
            found = self._find_pivots(crops, pivot, projector, batch_size=batch_size, seed=seed, tell=tell)
            while some := list(itertools.islice(found, len(crops) if together else 1)):
                on_step = functools.partial(tell, len(codes), len(some))
                tuned, figures = self._tune(some, tuning, seed, on_step)
                codes += [each.w_plus for _, each, _ in some]
                generators += [tuned] * len(some)
                reports += figures
        for i, report in enumerate(reports):
            report["pivot"] = pivot
            if isinstance(pivot, InversionOutput):
                report |= {name: pivot.reports[i].get(name) for name in ("pivot", "w_steps")}
        return torch.cat(codes), generators, reports

    def _find_pivots(
        self,
        crops: Sequence[Crop],
        pivot: str | InversionOutput,
        projector: ProjectorConfig,
        *,
        batch_size: int,
        seed: int,
        tell: Callable[..., bool | None],
    ) -> Iterator[_Found]:
        """Find the pivots of aligned faces, some at a time."""
        for first in range(0, len(crops), batch_size):
            start, group = time.perf_counter(), crops[first : first + batch_size]
            target = torch.cat([self.domain.with_bars(crop.image) for crop in group]).to(self.device, self.dtype)
            on_step = functools.partial(tell, first, len(group))
            if isinstance(pivot, InversionOutput):
                found = _given_pivots(pivot, first, target)
            elif pivot in _PROJECTORS:
                options: dict[str, Any] = {"config": projector, "seed": seed, "callback": on_step}
                found = _PROJECTORS[pivot](self.generator, target, perceptual=self.perceptual, **options)
            else:
                found = _encoded_pivots(self._encoder_pipeline(pivot), group, target)
            seconds = (time.perf_counter() - start) / len(group)
            for i in range(len(group)):
                one, noise = slice(i, i + 1), [tensor[i : i + 1] for tensor in found.noise]
                yield target[one], dataclasses.replace(found, w_plus=found.w_plus[one], noise=noise), seconds

    def _tune(
        self, some: Sequence[_Found], tuning: TuningConfig, seed: int, callback: Callback
    ) -> tuple[Generator, list[dict[str, Any]]]:
        """Tune one generator for all of them, and report on each."""
        start = time.perf_counter()
        targets, pivots, _ = zip(*some)
        with torch.no_grad():
            drawn = [self.generator.synthesis(each.w_plus, noise=each.noise).clamp(-1, 1) for each in pivots]
        stops = [each.stopped_by for each in pivots if each.stopped_by != "steps"]
        if stops:  # a stopped projection stops the run
            tuning = dataclasses.replace(tuning, num_steps=0)
        # a generator has one constant noise: that of its one projection, or else its own
        options: dict[str, Any] = {"noise": pivots[0].noise if len(some) == 1 else None, "seed": seed}
        w_plus = torch.cat([each.w_plus for each in pivots])
        options |= {"perceptual": self.perceptual, "config": tuning, "callback": callback}
        tuned = tune_generator(self.generator, torch.cat(targets), w_plus, **options)
        seconds = (time.perf_counter() - start) / len(some)
        return tuned.generator, [
            {
                "l2_pivot": self.domain.without_bars(y_hat - target).square().mean().item(),
                "w_steps": len(each.losses),
                "tuning_steps": len(tuned.losses) - 1,
                "perceptual": self.perceptual.name,
                "lpips_threshold": tuned.lpips_threshold,
                "stopped_by": stops[0] if stops else tuned.stopped_by,
                "seconds": round(before + seconds, 2),
            }
            for y_hat, (target, each, before) in zip(drawn, some)
        ]

    def crop_sizes(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Sides at which a call looks at a face, as `InversionPipeline`; an option out of range raises `ValueError`."""
        names = ("preset", "pivot", "num_w_steps", "num_tuning_steps")
        pivot = self.plan(**{name: options.get(name) for name in names}).pivot
        return self.encoder_pipeline(pivot).crop_sizes({}) if pivot in ENCODERS else super().crop_sizes(options)

    # The encoders that give pivots

    @property
    def pivots(self) -> tuple[str, ...]:
        """What a call can take as `pivot`: both projections, and the encoders that the model has."""
        there = {*self.encoders, *self._loaders}
        return (*_PROJECTORS, *(name for name, row in ENCODERS.items() if there >= {name, *row.needs}))

    @torch.inference_mode(False)  # an encoder that is loaded in a caller's inference mode is used outside it too
    def _encoder(self, name: str) -> nn.Module:
        if name not in self.pivots:
            raise ModelNotFoundError(
                f"The model holds no {ENCODERS[name].network.__name__} of photos (folder {ENCODERS[name].folder!r}) "
                f"for pivot={name!r}. Take one of {', '.join(self.pivots)}."
            )
        if name not in self.encoders:
            self.encoders[name] = self._loaders[name]().to(self.device, self.dtype)
        return self.encoders[name]

    def _encoder_pipeline(self, name: str) -> EncoderPipeline:
        from stylegan_inversion.pipelines.methods import METHODS  # it imports this file

        cls = next(cast(type[EncoderPipeline], row.pipeline) for row in METHODS.values() if row.encoder == name)
        others: dict[str, Any] = {other: self._encoder(other) for other in ENCODERS[name].needs}
        return cls(self.generator, self._encoder(name), domain=self.domain, **others)

    def encoder_pipeline(self, name: str) -> EncoderPipeline:
        """The model's encoder as a pipeline of its own; it shares this one's networks, directions and detector.

        Args:
            name: A name of `models.encoders.ENCODERS` such as "e4e"; `pivots` says which of them the model holds.

        Raises:
            ValueError: If it has another name.
            ModelNotFoundError: If the model does not hold it.
            CheckpointError: If the encoder's files are damaged.
        """
        if not isinstance(name, str) or name not in ENCODERS:
            raise ValueError(f"`name` must be one of {', '.join(ENCODERS)}, got {name!r}.")
        pipeline = self._encoder_pipeline(name)
        pipeline._detector = self.detector
        pipeline.directions, pipeline.base_name, pipeline.relevance = self.directions, self.base_name, self.relevance
        if self.perceptual.name is not None:
            pipeline.other_settings = {**self.other_settings, **self.settings}
        return pipeline

    # From a model, and back

    @classmethod
    def _build(cls, model: LoadedModel, perceptual: PerceptualDistance | str | None) -> Self:
        settings = model.config.get("pti", {})
        try:
            projector = ProjectorConfig(**settings.get("projector", {}))
            tuning = TuningConfig(**settings.get("tuning", {}))
            name = settings.get("perceptual", "alex")
            if perceptual is None and name not in PERCEPTUAL_NETWORKS:
                names = ", ".join(PERCEPTUAL_NETWORKS)
                raise ValueError(f"`perceptual` must be one of {names}, got {str(name)[:100]!r}")
        except (TypeError, ValueError, AttributeError) as e:
            raise CheckpointError(f"{model.where}: bad settings under `pti`: {e}") from e
        network = perceptual if isinstance(perceptual, PerceptualDistance) else load_perceptual(perceptual or name)
        pipeline = cls(model.generator, perceptual=network, projector=projector, tuning=tuning)
        if model.config.get("source") in (None, to_config(PhotoSource())):
            pipeline._loaders = model.encoders  # encoders of sketches and label maps give no pivots
        return pipeline

    def saved_networks(self) -> dict[str, nn.Module]:
        """The networks of a saved model, by folder."""
        encoders = {kind.folder: self._encoder(name) for name, kind in ENCODERS.items() if name in self.pivots}
        return {"generator": self.generator, **encoders}

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on beside the networks, the crop and the arguments of a call."""
        if self.perceptual.name is None:
            raise ValueError("`perceptual` has no name, so it cannot be saved: take one from `load_perceptual`.")
        settings = {"projector": dataclasses.asdict(self.projector), "tuning": dataclasses.asdict(self.tuning)}
        return {"pti": {"perceptual": self.perceptual.name, **settings}}

    @property
    def components(self) -> dict[str, Any]:
        """The parts by the constructor's names."""
        settings = {"projector": self.projector, "tuning": self.tuning}
        return {**super().components, "perceptual": self.perceptual, **settings, "encoders": self.encoders}


def _on_step(
    bar: tqdm, callback: Callback | None, photo: int, together: int, step: int, info: dict[str, Any]
) -> bool | None:
    """Move the bar by a step of as many photos, and tell the caller."""
    bar.set_postfix_str(f"{info['stage']} {info['loss']:.4f}", refresh=False)
    bar.update(together)
    return callback(step, {**info, "photo": photo}) if callback else None


@torch.no_grad()
def _encoded_pivots(pipeline: EncoderPipeline, crops: Sequence[Crop], target: Tensor) -> Projection:
    """What an encoder gives. Encoders are made for the generator as it is, with its own noise."""
    noise = [conv.noise_const.expand(len(crops), 1, -1, -1) for conv in pipeline.generator.synthesis.convs]
    return Projection(pipeline.encode(pipeline.inputs(crops).to(target)), noise)


def _given_pivots(out: InversionOutput, first: int, target: Tensor) -> Projection:
    """What an earlier inversion found for the photos from `first` on, as many as there are targets."""
    these = slice(first, first + len(target))
    noises = [[conv.noise_const for conv in generator.synthesis.convs] for generator in out.generators[these]]
    noise = [torch.stack(layer)[:, None].to(target) for layer in zip(*noises)]
    return Projection(out.w_unedited[these].to(target), noise)
