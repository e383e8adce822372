"""The named endpoints, for programs: `gradio_client`, plain HTTP, and tools of language models (MCP).

What `/invert` made is kept for the same client (the same `session_hash` of plain HTTP) for half an hour; an inversion
file can be sent instead. Over MCP nothing is kept between two calls, since all its callers share one client.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin

import gradio as gr
from gradio.components.api_component import Api as Value
from gradio.context import LocalContext, get_blocks_context
from gradio.data_classes import FileData, ImageData
from PIL import Image
from pydantic import BaseModel, Field, TypeAdapter, WithJsonSchema, create_model

from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PIVOTS, PRESETS
from stylegan_inversion.preprocessing.align import around
from stylegan_inversion.webapp.marking import encode
from stylegan_inversion.webapp.run import Report
from stylegan_inversion.webapp.studio import FRAMES, PLACES, Download, Film, Studio, Visit, kind_of

MAX_STEPS = 1000  # of each stage


def _file(about: str) -> WithJsonSchema:
    return WithJsonSchema({**ImageData.model_json_schema(), "description": about})


def _choice(about: str, *choices: str | None) -> Any:
    return Field(json_schema_extra={"enum": [*choices]}, description=about)


# The arguments; a type says all that a program has to know
Photo = Annotated[Any, _file("JPEG, PNG or WebP, up to 20 MB and 40 megapixels, as a file or a `data:` address.")]
Face = Annotated[int, Field(ge=0, le=1000, description="Which face, by size: 0 is the largest.")]
Align = Annotated[bool, Field(description="Find the face. False takes the photo as an aligned crop.")]
Name = Annotated[str, Field(description="Name of the model, from /models; nothing means the first.")]
Strengths = Annotated[
    dict[str, Annotated[float, Field(allow_inf_nan=False)]],
    Field(description='How far to edit, such as {"smile": 2.0}, each within its range from /models.'),
]
Inversion = Annotated[Any, _file("A zip from /download to take instead of what /invert made.")]
Other = Annotated[Any, _file("A zip from /download: the other face.")]
Method = Annotated[str, _choice("How to invert, from /models.", *METHODS)]
Preset = Annotated[str | None, _choice("How long the tuning of pti may take.", *PRESETS, None)]
Pivot = Annotated[str | None, _choice("Where the tuning begins; nothing: the preset's.", *PIVOTS, None)]
WSteps = Annotated[
    int | None, Field(ge=1, le=MAX_STEPS, description="Steps of the pivot's projection; nothing means the preset's.")
]
TuningSteps = Annotated[
    int | None, Field(ge=0, le=MAX_STEPS, description="Steps of the tuning at most; nothing means the preset's.")
]
Frames = Annotated[int, Field(ge=2, le=60, description="How many from one end to the other.")]
Format = Annotated[Film, Field(description="The format.")]
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
Place = Annotated[str, _choice("What to take of the other face.", *PLACES)]
Share = Annotated[float, Field(ge=0, le=1, description="How much of it.")]
Picture = Annotated[dict[str, Any], _file("A picture.")]
File = Annotated[dict[str, Any], _file("A file.")]
Figures = dict[str, Any]

_T = TypeVar("_T")
Run = Iterator[Report | _T]  # reports, and at last the result
_FIRST = next(name for name, each in METHODS.items() if each.encoder and not ENCODERS[each.encoder].needs)
_UNEDITED = dict[str, float]()


class Api:
    """One method an endpoint; its signature and its docstring are the documentation that programs see."""

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
            if model := loaded.get(known.name):
                ranges = {name: list(model.range_of(name)) for name in model.directions}
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

    def invert(self, visit: Visit, photo: Photo, **others: Any) -> Run[tuple[Picture, Figures]]:
        """Invert the face of a photo: find its place in latent space. The result is kept for this client.

        Returns:
            The face as the model draws it
            Figures: mean squared error in [-1, 1], seconds, steps, why the tuning stopped, number of faces
        """
        out = yield from self._invert(visit, self._own(visit, others["model"]), photo, **others)
        yield self._picture(visit, out.images[0], "drawn", out), out.reports[0]

    def edit(self, visit: Visit, strengths: Strengths, **kept: Any) -> tuple[Picture, Picture, Picture]:
        """Edit the inverted face. Strengths count from the unedited face, not from the last edit.

        Returns:
            The photo with the edited face in place
            The face in it
            The face as the model draws it
        """
        return self._pictures(visit, self._out(visit, **kept, strengths=strengths))

    def invert_and_edit(
        self, visit: Visit, photo: Photo, strengths: Strengths, **others: Any
    ) -> Run[tuple[Picture, Picture, Picture, Figures]]:
        """Invert and edit in one call.

        Returns:
            The photo with the edited face in place
            The face in it
            The face as the model draws it
            Figures, as of /invert
        """
        own = self._own(visit, others["model"])
        out = yield from self._invert(visit, own, photo, **others, strengths=strengths)
        yield *self._pictures(visit, self.studio.edit(own, out, strengths)), out.reports[0]

    def random_face(self, visit: Visit, seed: Seed = 0, truncation: Truncation = 0.7, model: Name = "") -> Picture:
        """Draw a face of nobody, which is kept for this client as an inversion is.

        Returns:
            The face
        """
        own, turn = self._own(visit, model), visit.turn
        own.out = self.studio.random_face(own, seed, truncation)
        visit.keep(own, turn)
        return self._picture(visit, own.out.images[0], "face", own.out)

    def mix(self, visit: Visit, other: Other, what: Place = "colours", amount: Share = 1.0, **kept: Any) -> Picture:
        """Give the kept face the pose, the features or the colours of another one.

        Returns:
            The new face, as the model draws it
        """
        a, own, turn = self._out(visit, **kept), visit.apart(), visit.turn
        own.out = self.studio.mix(own, a, self.studio.open_inversion(own, other), what, amount)
        visit.keep(own, turn)
        return self._picture(visit, own.out.images[0], "mix", own.out)

    def interpolate(
        self, visit: Visit, other: Other, frames: Frames = FRAMES, kind: Format = "gif", **kept: Any
    ) -> File:
        """Animate the way from the kept face to another one and back.

        Returns:
            The animation
        """
        a = self._out(visit, **kept)
        return _sent(self.studio.between(visit, a, self.studio.open_inversion(visit, other), kind, frames))

    def download(self, visit: Visit, kind: Kind = "png", strengths: Strengths = _UNEDITED, **kept: Any) -> File:
        """Write a result to a file.

        Returns:
            The file
        """
        return _sent(self.studio.file(visit, self._out(visit, **kept, strengths=strengths), kind))

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
        own: Visit,
        photo: Any,
        *,
        strengths: dict[str, float] = _UNEDITED,
        face: Face = 0,
        align: Align = True,
        method: Method = _FIRST,
        model: Name = "",
        preset: Preset = None,
        pivot: Pivot = None,
        num_w_steps: WSteps = None,
        num_tuning_steps: TuningSteps = None,
    ) -> Any:
        """Invert apart from the client's other calls, which may go on at the same time; keep the result at the end.

        `strengths` of an edit that follows are checked first.
        """
        turn = visit.turn
        yield from self.studio.models.load(model)
        self.studio.check(own, strengths)
        self.studio.take(own, photo, align=align)
        own.face = face
        crop = self.studio.crop(own, align=align)
        if method in METHODS and METHODS[method].optimizes:
            steps = {"num_w_steps": num_w_steps, "num_tuning_steps": num_tuning_steps}
            for report in self.studio.tune(own, crop, preset=preset, pivot=pivot, **steps):
                visit.stops |= own.stops  # for /stop
                yield report
        else:
            own.out = self.studio.invert(own, crop, method)
        if own.out is None:
            raise ValueError("The run was stopped before it began.")
        visit.keep(own, turn)
        return own.out

    def _own(self, visit: Visit, model: str) -> Visit:
        """A visit for one call, apart from what the client's others do at the same time."""
        return Visit(visit.key, model, files=visit.files)

    def _out(
        self, visit: Visit, *, strengths: dict[str, float] = _UNEDITED, inversion: Inversion = None, model: Name = ""
    ) -> InversionOutput:
        """The kept inversion, or the one in a file, which is kept then, with an edit."""
        own, turn = visit.apart(), visit.turn
        if inversion is not None:
            own = self._own(visit, model)
            own.out = self.studio.open_inversion(own, inversion)
            visit.keep(own, turn)
        return self.studio.edit(own, own.out, strengths)

    def _pictures(self, visit: Visit, out: InversionOutput) -> tuple[Picture, Picture, Picture]:
        face = self.studio.pasted(out, around(out.crops[0], 0.25))
        pictures = {"photo": self.studio.pasted(out), "face": face, "drawn": out.images[0]}
        photo, face_, drawn = (self._picture(visit, each, name, out) for name, each in pictures.items())
        return photo, face_, drawn

    def _picture(self, visit: Visit, image: Image.Image, name: str, out: InversionOutput) -> Picture:
        is_large = image.width * image.height > 1_000_000  # a photo's PNG is many times its JPEG
        data = encode(image, kind_of(out), png=not is_large)
        return _sent(visit.publish(data, f"{name}.{'jpg' if is_large else 'png'}"))


def _sent(path: str) -> dict[str, Any]:
    return FileData(path=path).model_dump()


def name_endpoints(api: Api, visit: Any) -> None:
    """Name the endpoints, within `gr.Blocks`; `visit` is the `gr.State` of what is kept."""
    config: Any = get_blocks_context()
    for name, method in inspect.getmembers(api, inspect.ismethod):
        if name.startswith("_"):
            continue
        given, runs = dict(inspect.signature(method).parameters), inspect.isgeneratorfunction(method)
        for others, shared in (("others", Api._invert), ("kept", Api._out)):  # what these stand for
            if given.pop(others, None):
                given |= {key: each for key, each in inspect.signature(shared).parameters.items() if key not in given}
        fields = {key: each for key, each in given.items() if get_origin(each.annotation) is Annotated}
        defaults = {key: None if each.default is each.empty else each.default for key, each in fields.items()}
        model: Any = {key: (fields[key].annotation, value) for key, value in defaults.items()}
        arguments = create_model(name, **model)
        returned = inspect.signature(method).return_annotation
        returned = get_args(get_args(returned)[0])[1] if runs else returned
        results = get_args(returned) if get_origin(returned) is tuple else [returned]
        schemas = {key: TypeAdapter(each.annotation).json_schema() for key, each in fields.items()}
        outputs = [Value(None, TypeAdapter(each).json_schema(), f"Output {k + 1}") for k, each in enumerate(results)]
        config.set_event_trigger(
            [],
            _endpoint(method, arguments, schemas, len(results)),
            [*(Value(value, schemas[key], key) for key, value in defaults.items()), visit],
            [*outputs, visit],
            preprocess=False,
            postprocess=False,
            api_name=name,
            queue=name not in ("stop", "delete"),
            concurrency_id="api-slow" if runs else "api",
            concurrency_limit=12 if runs else 2,
        )


def _endpoint(method: Callable[..., Any], arguments: type[BaseModel], schemas: dict[str, Any], count: int) -> Any:
    """The function that Gradio calls: it checks the arguments, and puts what is kept in and out."""

    def begin(values: Sequence[Any], visit: Visit, request: gr.Request) -> Any:
        if (
            getattr(request, "session_hash", None) in (None, LocalContext.event_id.get())
            or "x-gradio-user" in request.headers
        ):
            visit.key = f"address {request.client.host}"  # those whose calls share nothing wait as one client
        return method(visit, **dict(arguments(**dict(zip(schemas, values)))))

    def stream(*values: Any) -> Iterator[tuple[Any, ...]]:
        *given, visit, request, progress = values
        for done in begin(given, visit, request):
            if isinstance(done, Report):
                progress(done.share or 0.0, desc=done.words)
            yield (*((None,) * count if isinstance(done, Report) else done), visit)

    def call(*values: Any) -> tuple[Any, ...]:
        *given, visit, request = values
        done = begin(given, visit, request)
        return (*(done if count > 1 else [done]), visit)

    function: Any = stream if inspect.isgeneratorfunction(method) else call
    about, returns = str(inspect.getdoc(method)).split("\n\nReturns:")
    told = "".join(f"\n    {key}: {schema['description']}" for key, schema in schemas.items())
    function.__name__, function.__doc__ = method.__name__, f"{about}\n\nArgs:{told}\n\nReturns:{returns}"
    extra = [("visit", None), ("request", None)] + ([("progress", gr.Progress())] if function is stream else [])
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [*((key, None) for key in schemas), *extra]
    function.__signature__ = inspect.Signature([inspect.Parameter(key, kind, default=d) for key, d in parameters])
    function.__annotations__ = {"request": gr.Request}
    return function
