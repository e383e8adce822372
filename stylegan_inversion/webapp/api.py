"""The named endpoints, for programs: `gradio_client`, plain HTTP, and tools of language models (MCP).

What `/invert` made is kept for the same client (the same `session_hash` of plain HTTP) for half an hour; an inversion
file can be sent instead. Over MCP nothing is kept between two calls, since all its callers share one client.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

import gradio as gr
from gradio.components.api_component import Api as Value
from gradio.context import get_blocks_context
from gradio.data_classes import FileData, ImageData
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError, WithJsonSchema

from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PIVOTS, PRESETS
from stylegan_inversion.preprocessing.align import around
from stylegan_inversion.webapp import marking
from stylegan_inversion.webapp.studio import PLACES, Download, Studio, Visit, kind_of, range_of, sentences

MAX_STEPS = 1000  # of each stage


def _file_schema(about: str) -> WithJsonSchema:
    return WithJsonSchema({**ImageData.model_json_schema(), "description": about})


# The arguments; a type says all that a program has to know
Photo = Annotated[
    Any, _file_schema("JPEG, PNG or WebP, up to 20 MB and 40 megapixels, as a file or a `data:` address.")
]
Face = Annotated[int, Field(ge=0, le=1000, description="Which face, by size: 0 is the largest.")]
Align = Annotated[bool, Field(description="Find the face. False takes the photo as an aligned crop.")]
Name = Annotated[str, Field(description="Name of the model, from /models; nothing means the first.")]
Strength = Annotated[float, Field(allow_inf_nan=False)]
Strengths = Annotated[
    dict[str, Strength],
    Field(description='How far to edit, such as {"smile": 2.0}, each within its range from /models.'),
]
Inversion = Annotated[Any, _file_schema("A zip from /download to take instead of what /invert made.")]
Other = Annotated[Any, _file_schema("A zip from /download: the other face.")]
Method = Annotated[str, Field(json_schema_extra={"enum": list(METHODS)}, description="How to invert, from /models.")]
Preset = Annotated[
    str | None, Field(json_schema_extra={"enum": [*PRESETS, None]}, description="How long the tuning of pti may take.")
]
Pivot = Annotated[
    str | None,
    Field(json_schema_extra={"enum": [*PIVOTS, None]}, description="Where the tuning begins; nothing: the preset's."),
]
WSteps = Annotated[
    int | None, Field(ge=1, le=MAX_STEPS, description="Steps of the pivot's projection; nothing means the preset's.")
]
TuningSteps = Annotated[
    int | None, Field(ge=0, le=MAX_STEPS, description="Steps of the tuning at most; nothing means the preset's.")
]
Frames = Annotated[int, Field(ge=2, le=60, description="How many from one end to the other.")]
Film = Annotated[Literal["gif", "mp4"], Field(description="The format.")]
Kind = Annotated[
    Download,
    Field(
        description='The edited photo ("jpeg", "png"), the face in it, the face as the model draws it, an animation, '
        'or "inversion": a zip that `InversionOutput.load` reads once it is unpacked, and other endpoints take.'
    ),
]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="The same seed gives the same face.")]
Truncation = Annotated[
    float, Field(ge=0, le=2, description="0 is the average face, 1 the generator's own variety; up to 2.")
]
Place = Annotated[str, Field(json_schema_extra={"enum": list(PLACES)}, description="What to take of the other face.")]
Share = Annotated[float, Field(ge=0, le=1, description="How much of it.")]
Picture = Annotated[dict[str, Any], _file_schema("A picture.")]
File = Annotated[dict[str, Any], _file_schema("A file.")]

_FIRST = next(name for name, each in METHODS.items() if each.encoder and not ENCODERS[each.encoder].needs)
_UNEDITED = dict[str, float]()


class Api:
    """One method an endpoint; its docstring is the documentation that programs see."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def models(self, visit: Visit) -> list[dict[str, Any]]:
        """What models there are, and what each can do.

        Returns:
            Name, size and licence of each, and of those that are loaded the methods and the directions with their
            ranges
        """
        loaded = {model.name: model for model in self.studio.models.loaded()}
        listed: list[dict[str, Any]] = []
        for known in self.studio.models.known():
            about: dict[str, Any] = {key: getattr(known, key) for key in ("name", "about", "where", "size", "licence")}
            if known.name in loaded:
                model = loaded[known.name]
                ranges = {name: list(range_of(model, name)) for name in model.directions}
                about |= {"methods": list(model.pipelines), "resolution": model.resolution, "directions": ranges}
            listed.append(about)
        return listed

    def faces(self, visit: Visit, photo: Photo) -> list[dict[str, Any]]:
        """Find the faces in a photo.

        Returns:
            Box (x0, y0, x1, y1) in pixels and score of each face, the largest first
        """
        own = self._own(visit, "")
        self.studio.take(own, photo)
        return [{"box": [round(v, 1) for v in face.box], "score": face.score} for face in own.faces]

    def invert(self, visit: Visit, photo: Photo, **others: Any) -> Iterator[tuple[Picture, dict[str, Any]] | None]:
        """Invert the face of a photo: find its place in latent space. The result is kept for this client.

        Returns:
            The face as the model draws it
            Figures: mean squared error in [-1, 1], seconds, steps, why the tuning stopped, number of faces
        """
        for out in self._invert(visit, photo, **others):
            drawn = out and self._picture(visit, out.images[0], "drawn", kind_of(out))
            yield (drawn, out.reports[0]) if out and drawn else None

    def edit(self, visit: Visit, strengths: Strengths, **kept: Any) -> tuple[Picture, Picture, Picture]:
        """Edit the inverted face. Strengths count from the unedited face, not from the last edit.

        Returns:
            The photo with the edited face in place
            The face in it
            The face as the model draws it
        """
        return self._pictures(visit, self._out(visit, strengths=strengths, **kept))

    def invert_and_edit(
        self, visit: Visit, photo: Photo, strengths: Strengths, **others: Any
    ) -> Iterator[tuple[Picture, Picture, Picture, dict[str, Any]] | None]:
        """Invert and edit in one call.

        Returns:
            The photo with the edited face in place
            The face in it
            The face as the model draws it
            Figures, as of /invert
        """
        own = self._own(visit, others["model"])
        for out in self._invert(visit, photo, strengths=strengths, **others):
            pictures = out and self._pictures(visit, self.studio.edit(own, out, strengths))
            yield (*pictures, out.reports[0]) if out and pictures else None

    def random_face(self, visit: Visit, seed: Seed = 0, truncation: Truncation = 0.7, model: Name = "") -> Picture:
        """Draw a face of nobody, which is kept for this client as an inversion is.

        Returns:
            The face
        """
        own, turn = self._own(visit, model), visit.turn
        own.out = self.studio.random_face(own, seed, truncation)
        self._keep(visit, own, turn)
        return self._picture(visit, own.out.images[0], "face", "generated")

    def mix(self, visit: Visit, other: Other, what: Place = "colours", amount: Share = 1.0, **kept: Any) -> Picture:
        """Give the kept face the pose, the features or the colours of another one.

        Returns:
            The new face, as the model draws it
        """
        a, own, turn = self._out(visit, **kept), visit.apart(), visit.turn
        own.out = self.studio.mix(own, a, self.studio.open_inversion(own, other), what, amount)
        self._keep(visit, own, turn)
        return self._picture(visit, own.out.images[0], "mix", kind_of(own.out))

    def interpolate(self, visit: Visit, other: Other, frames: Frames = 24, kind: Film = "gif", **kept: Any) -> File:
        """Animate the way from the kept face to another one and back.

        Returns:
            The animation
        """
        a = self._out(visit, **kept)
        return _file(self.studio.between(visit, a, self.studio.open_inversion(visit, other), kind, frames))

    def animate(self, visit: Visit, strengths: Strengths, frames: Frames = 24, kind: Film = "gif", **kept: Any) -> File:
        """Animate an edit in the photo: from the unedited face to the edited one and back.

        Returns:
            The animation
        """
        return _file(self.studio.animation(visit, self._out(visit, strengths=strengths, **kept), kind, frames))

    def download(self, visit: Visit, kind: Kind = "png", strengths: Strengths = _UNEDITED, **kept: Any) -> File:
        """Write a result to a file.

        Returns:
            The file
        """
        return _file(self.studio.file(visit, self._out(visit, strengths=strengths, **kept), kind))

    def stop(self, visit: Visit) -> bool:
        """End this client's running tuning; its best state so far becomes the result of /invert.

        Returns:
            Whether one was running
        """
        return visit.end()

    def delete(self, visit: Visit) -> int:
        """Delete this client's photo, results and files, which also happens half an hour after their last use.

        Returns:
            How many files there were
        """
        return visit.forget()

    def _invert(
        self,
        visit: Visit,
        photo: Any,
        face: Face = 0,
        align: Align = True,
        method: Method = _FIRST,
        model: Name = "",
        preset: Preset = None,
        pivot: Pivot = None,
        num_w_steps: WSteps = None,
        num_tuning_steps: TuningSteps = None,
        progress: Any = gr.Progress(),  # noqa: B008
        *,
        strengths: Mapping[str, float] = _UNEDITED,
    ) -> Iterator[InversionOutput | None]:
        """Invert apart from the client's other calls, which may go on at the same time; keep the result at the end.

        `strengths` of an edit that follows are checked first.
        """
        own, turn = self._own(visit, model), visit.turn
        for loading in self.studio.models.load(model):
            if loading.model is None:
                progress(0.0, desc=loading.text)
                yield None
        self.studio.check(own, {name: value for name, value in strengths.items() if value})
        self.studio.take(own, photo, align=align)
        own.face = face
        crop = self.studio.crop(own, align=align)
        if method in METHODS and METHODS[method].optimizes:
            steps = {"num_w_steps": num_w_steps, "num_tuning_steps": num_tuning_steps}
            for report in self.studio.tune(own, crop, preset=preset, pivot=pivot, **steps):
                visit.stops |= own.stops  # for /stop
                progress((report.step, report.total), desc=report.words, unit="steps")
                yield None
        else:
            own.out = self.studio.invert(own, crop, method)
        if own.out is None:
            raise ValueError("The run was stopped before it began.")
        self._keep(visit, own, turn)
        yield own.out

    def _own(self, visit: Visit, model: str) -> Visit:
        """A visit for one call, apart from what the client's others do at the same time."""
        return Visit(visit.key, model, files=visit.files)

    def _keep(self, visit: Visit, own: Visit, turn: int) -> None:
        if turn == visit.turn:  # nothing was deleted meanwhile
            for name in ("model", "photo", "faces", "face", "out"):
                setattr(visit, name, getattr(own, name))

    def _out(
        self, visit: Visit, inversion: Inversion = None, model: Name = "", *, strengths: Mapping[str, float] = _UNEDITED
    ) -> InversionOutput:
        own = visit.apart()
        if inversion is not None:
            own, turn = self._own(visit, model), visit.turn
            own.out = self.studio.open_inversion(own, inversion)
            self._keep(visit, own, turn)
        return self.studio.edit(own, own.out, strengths)

    def _pictures(self, visit: Visit, out: InversionOutput) -> tuple[Picture, Picture, Picture]:
        face = self.studio.pasted(out, around(out.crops[0], 0.25))
        pictures = {"photo": self.studio.pasted(out), "face": face, "drawn": out.images[0]}
        photo, face_, drawn = (self._picture(visit, each, name, kind_of(out)) for name, each in pictures.items())
        return photo, face_, drawn

    def _picture(self, visit: Visit, image: Image.Image, name: str, kind: marking.Kind) -> Picture:
        is_large = image.width * image.height > 1_000_000  # a photo's PNG is many times its JPEG
        return _file(
            visit.publish(marking.encode(image, kind, png=not is_large), f"{name}.{'jpg' if is_large else 'png'}")
        )


SLOW = ("invert", "invert_and_edit")
UNQUEUED = ("stop", "delete")


def name_endpoints(api: Api, visit: Any) -> None:
    """Name the endpoints, within `gr.Blocks`; `visit` is the `gr.State` of what is kept."""
    config: Any = get_blocks_context()
    for name, method in inspect.getmembers(api, inspect.ismethod):
        if name.startswith("_"):
            continue
        given = _given(method)
        inputs = [
            Value(None if each.default is each.empty else each.default, _schema(each.annotation), key)
            for key, each in given.items()
        ]
        outputs = [Value(None, _schema(each), f"Output {k + 1}") for k, each in enumerate(_returned(method))]
        config.set_event_trigger(
            [],
            _endpoint(method, given, len(outputs)),
            [*inputs, visit],
            [*outputs, visit],
            preprocess=False,
            postprocess=False,
            api_name=name,
            queue=name not in UNQUEUED,
            concurrency_id="api-slow" if name in SLOW else "api",
            concurrency_limit=12 if name in SLOW else 2,
        )


def _schema(hint: Any) -> dict[str, Any]:
    return TypeAdapter(hint).json_schema()


def _returned(method: Callable[..., Any]) -> list[Any]:
    """The types of what an endpoint gives back, one by one."""
    hint = inspect.signature(method).return_annotation
    if inspect.isgeneratorfunction(method):
        hint = get_args(get_args(hint)[0])[0]
    return list(get_args(hint)) if getattr(hint, "__origin__", None) is tuple else [hint]


def _given(method: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of an endpoint, with those that `others` and `kept` stand for."""
    given = dict(inspect.signature(method).parameters)
    for name, whole in (("others", Api._invert), ("kept", Api._out)):
        if given.pop(name, None):
            more = inspect.signature(whole).parameters.values()
            given |= {each.name: each for each in more if each.name not in given and each.kind is not each.KEYWORD_ONLY}
    return {key: each for key, each in given.items() if key not in ("self", "visit", "progress")}


def _endpoint(method: Callable[..., Any], given: dict[str, inspect.Parameter], count: int) -> Callable[..., Any]:
    """The function that Gradio calls: it checks the arguments, and puts what is kept in and out."""
    adapters = {key: TypeAdapter(each.annotation) for key, each in given.items()}
    has_progress = method.__name__ in SLOW

    def checked(values: tuple[Any, ...]) -> tuple[dict[str, Any], Visit]:
        arguments: dict[str, Any] = {}
        for (key, adapter), value in zip(adapters.items(), values):
            try:
                arguments[key] = adapter.validate_python(value)
            except ValidationError as e:
                fault = e.errors(include_url=False)[0]
                raise ValueError(f"`{key}`: {fault['msg']}, got {str(value)[:80]!r}.") from e
        if has_progress:
            arguments["progress"] = values[-1]
        return arguments, values[len(adapters)]

    def stream(*values: Any) -> Iterator[tuple[Any, ...]]:
        with sentences():
            arguments, visit = checked(values)
            for done in method(visit, **arguments):
                yield (*(done or [None] * count), visit)

    def call(*values: Any) -> tuple[Any, ...]:
        with sentences():
            arguments, visit = checked(values)
            done = method(visit, **arguments)
        return (*(done if count > 1 else [done]), visit)

    function: Any = stream if inspect.isgeneratorfunction(method) else call
    about, returns = str(inspect.getdoc(method)).split("\n\nReturns:")
    arguments = "".join(f"\n    {key}: {_schema(each.annotation)['description']}" for key, each in given.items())
    function.__name__ = method.__name__
    function.__doc__ = f"{about}\n\nArgs:{arguments}\n\nReturns:{returns}"
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = [inspect.Parameter("visit", kind, default=None)]
    own += [inspect.Parameter("progress", kind, default=gr.Progress())] if has_progress else []
    function.__signature__ = inspect.Signature([*given.values(), *own])
    return function


def _file(path: str) -> dict[str, Any]:
    return FileData(path=path).model_dump()
