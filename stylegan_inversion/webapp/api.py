"""The named endpoints, for programs: `gradio_client`, plain HTTP, and tools of language models (MCP).

What `/invert` made is kept for the same client (the same `session_hash` of plain HTTP) for half an hour; an inversion
file can be sent instead. Over MCP nothing is kept between two calls, since all its callers share one client.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin

import gradio as gr
from gradio.components.api_component import Api as Value
from gradio.context import LocalContext, get_blocks_context
from gradio.data_classes import FileData, ImageData
from pydantic import BaseModel, Field, TypeAdapter, WithJsonSchema, create_model

from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PIVOTS, PRESETS
from stylegan_inversion.pipelines.receipts import MAX_STEPS, PICTURES, read_receipt
from stylegan_inversion.webapp.marking import encode, encode_picture
from stylegan_inversion.webapp.photos import MAX_PHOTO_BYTES, PHOTOS, read_upload
from stylegan_inversion.webapp.run import Report
from stylegan_inversion.webapp.studio import FRAMES, PLACES, Download, Film, Studio, Visit

MAX_PASSES = 10  # of an encoder
MODEL, OWN = "Name of the model, from /models; nothing means the first.", "nothing means the preset's."
TRANSLATING = {"num_outputs", "mix_alpha", "resize_factor", "align", "seed"}
TUNING = {"preset", "pivot", "num_w_steps", "num_tuning_steps"}
KINDS = """The edited photo ("jpeg", "png"), the face in it, the face as the model draws it, an animation, or
"inversion": a zip that `InversionOutput.load` reads once it is unpacked, and other endpoints take.""".replace(
    "\n", " "
)
_FIRST = next(name for name, each in METHODS.items() if each.encoder and not ENCODERS[each.encoder].needs)


def _file(about: str) -> WithJsonSchema:
    return WithJsonSchema({**ImageData.model_json_schema(), "description": about})


def _choice(about: str, default: str | None, *choices: str | None) -> Any:
    return Field(default, json_schema_extra={"enum": [*choices]}, description=about)


# The arguments; a type says all that a program has to know


class Inverting(BaseModel):
    """How a photo is inverted."""

    face: int = Field(0, ge=0, le=1000, description="Which face, by size: 0 is the largest.")
    align: bool | None = Field(
        None, description="Find the face. False takes the photo as an aligned crop; nothing: as the model is made for."
    )
    method: str = _choice("How to invert, from /models.", _FIRST, *METHODS)
    model: str = Field("", description=MODEL)
    preset: str | None = _choice("How long the tuning of pti may take.", None, *PRESETS, None)
    pivot: str | None = _choice("Where the tuning begins; nothing: the preset's.", None, *PIVOTS, None)
    num_w_steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="Steps of the pivot's projection; " + OWN)
    num_tuning_steps: int | None = Field(None, ge=0, le=MAX_STEPS, description="Steps of the tuning at most; " + OWN)
    others: list[Annotated[Any, _file("A photo, as the first one.")]] = Field(
        [], max_length=7, description="pti: more photos of the person, for all of which the model is tuned together."
    )


class Kept(BaseModel):
    """The inversion that a call goes on with: what /invert made for this client, or a file."""

    inversion: Annotated[Any, _file("A zip from /download to take instead of what /invert made.")] = None
    model: str = Field("", description=MODEL)


class Translating(BaseModel):
    """How a picture is translated."""

    num_outputs: int = Field(4, ge=1, le=16, description="How many faces: each has other random colours.")
    mix_alpha: float | None = Field(
        None, ge=0, le=1, description="How much of what is random; nothing: all, of several faces."
    )
    resize_factor: float | None = Field(None, ge=1, le=64, description="Make a photo so many times smaller first.")
    align: bool | None = Field(
        None, description="Find the face of a photo. False takes it as an aligned crop; nothing: as its task needs it."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same faces.")
    model: str = Field("", description=MODEL)


Photo = Annotated[Any, _file("JPEG, PNG or WebP, up to 20 MB and 40 megapixels, as a file or a `data:` address.")]
Drawing = Annotated[
    Any,
    _file("A sketch, a label map (a grey or palette PNG of label numbers) or a photo, as /models says of the model."),
]
Saved = Annotated[Any, _file("A PNG or JPEG that this app or the package saved, with its metadata.")]
Other = Annotated[Any, _file("A zip from /download: the other face.")]
Strengths = Annotated[
    dict[str, Annotated[float, Field(allow_inf_nan=False)]],
    Field(description='How far to edit, such as {"smile": 2.0}, each within its range from /models.'),
]
Name = Annotated[str, Field(description=MODEL)]
Frames = Annotated[int, Field(ge=2, le=60, description="How many from one end to the other.")]
Format = Annotated[Film, Field(description="The format.")]
Kind = Annotated[Download, Field(description=KINDS)]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="The same seed gives the same face.")]
Truncation = Annotated[float, Field(ge=0, le=2, description="0 is the average face, 1 the generator's own variety.")]
Place = Annotated[str, Field(json_schema_extra={"enum": [*PLACES]}, description="What to take of the other face.")]
Share = Annotated[float, Field(ge=0, le=1, description="How much of it.")]

# The results
Faces = Annotated[list[dict[str, Any]], Field(description="Box (x0, y0, x1, y1) in pixels and score, largest first.")]
Listed = Annotated[
    list[dict[str, Any]],
    Field(description="Name, size and licence; of loaded ones the methods, and the directions with their ranges."),
]
Whole = Annotated[dict[str, Any], _file("The photo with the edited face in place.")]
Part = Annotated[dict[str, Any], _file("The face in it.")]
Read = Annotated[dict[str, Any], _file("What the model reads; of a label map with the names of the labels.")]
Pictures = Annotated[list[dict[str, Any]], Field(description="The faces, as files.")]
Drawn = Annotated[dict[str, Any], _file("The face as the model draws it.")]
File = Annotated[dict[str, Any], _file("The file.")]
Figures = Annotated[
    dict[str, Any],
    Field(description="Mean squared error in [-1, 1], seconds, steps, why the tuning stopped, number of faces."),
]
Comparison = Annotated[
    dict[str, Any], Field(description="Whether the picture is the `same` as the one sent, and `words` about it.")
]
Running = Annotated[bool, Field(description="Whether one was running.")]
Count = Annotated[int, Field(description="How many files there were.")]

_T = TypeVar("_T")
Run = Iterator[Report | _T]  # reports, and at last the result
_UNEDITED = dict[str, float]()


class Api:
    """One method an endpoint; its signature and its docstring are the documentation that programs see."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def models(self, visit: Visit) -> Listed:
        """What models there are, and what each can do."""
        loaded = {model.name: model for model in self.studio.models.loaded()}
        listed: list[dict[str, Any]] = []
        for known in self.studio.models.known():
            about: dict[str, Any] = {key: getattr(known, key) for key in ("name", "about", "where", "size", "licence")}
            if model := loaded.get(known.name):
                ranges = {name: list(model.range_of(name)) for name in model.directions}
                about |= {"methods": list(model.pipelines), "resolution": model.resolution, "directions": ranges}
                about |= {"has_faces": model.has_faces, "draws_from": model.reads}
            listed.append(about)
        return listed

    def faces(self, visit: Visit, photo: Photo) -> Faces:
        """Find the faces in a photo; none if the first model is not one of faces."""
        own = self._own(visit, "")
        self.studio.take(own, photo)
        return [{"box": [round(v, 1) for v in face.box], "score": face.score} for face in own.faces]

    def invert(self, visit: Visit, photo: Photo, how: Inverting) -> Run[tuple[Drawn, Figures]]:
        """Invert the face of a photo: find its place in latent space. The result is kept for this client."""
        out = yield from self._invert(visit, self._own(visit, how.model), photo, how)
        yield self._picture(visit, "drawn", out), _figures(out)

    def edit(self, visit: Visit, strengths: Strengths, how: Kept) -> tuple[Whole, Part, Drawn]:
        """Edit the inverted face. Strengths count from the unedited face, not from the last edit."""
        return self._pictures(visit, self._out(visit, how, strengths))

    def invert_and_edit(
        self, visit: Visit, photo: Photo, strengths: Strengths, how: Inverting
    ) -> Run[tuple[Whole, Part, Drawn, Figures]]:
        """Invert and edit in one call."""
        own = self._own(visit, how.model)
        out = yield from self._invert(visit, own, photo, how, strengths)
        yield *self._pictures(visit, self.studio.edit(own, out, strengths)), _figures(out)

    def random_face(self, visit: Visit, seed: Seed = 0, truncation: Truncation = 0.7, model: Name = "") -> Drawn:
        """Draw a face of nobody, which is kept for this client as an inversion is."""
        own, turn = self._own(visit, model), visit.turn
        own.out = self.studio.random_face(own, seed, truncation)
        visit.keep(own, turn)
        return self._picture(visit, "drawn", own.out, "face")

    def translate(self, visit: Visit, picture: Drawing, how: Translating) -> tuple[Read, Pictures]:
        """Draw faces from a sketch, a label map or a photo, as the model reads; the first is kept for this client."""
        own, turn = self._own(visit, how.model), visit.turn
        shown, out = self.studio.translate(own, picture, **how.model_dump(include=TRANSLATING))
        own.out = out[0]
        visit.keep(own, turn)
        pictures = [self._picture(visit, "drawn", each, f"output_{k}") for k, each in enumerate(out, 1)]
        return _sent(visit.publish(encode(shown, "photo", png=True), "input.png")), pictures

    def mix(self, visit: Visit, how: Kept, other: Other, what: Place = "colours", amount: Share = 1.0) -> Drawn:
        """Give the kept face the pose, the features or the colours of another one."""
        a, own, turn = self._out(visit, how), visit.apart(), visit.turn
        own.out = self.studio.mix(own, a, self.studio.open_inversion(own, other), what, amount)
        visit.keep(own, turn)
        return self._picture(visit, "drawn", own.out, "mix")

    def interpolate(self, visit: Visit, how: Kept, other: Other, frames: Frames = FRAMES, kind: Format = "gif") -> File:
        """Animate the way from the kept face to another one and back."""
        a = self._out(visit, how)
        return _sent(self.studio.between(visit, a, self.studio.open_inversion(visit, other), kind, frames))

    def download(self, visit: Visit, how: Kept, kind: Kind = "png", strengths: Strengths = _UNEDITED) -> File:
        """Write a result to a file."""
        return _sent(self.studio.file(visit, self._out(visit, how, strengths), kind))

    def redraw(self, visit: Visit, picture: Saved, photo: Photo) -> Run[tuple[Whole, Comparison]]:
        """Make a picture again from the receipt in its metadata and the photo that it was made from."""
        data, path = read_upload(picture, max_bytes=MAX_PHOTO_BYTES)
        visit.files |= {str(path)} if path else set()
        receipt = read_receipt(data, PHOTOS)
        receipt.check_repeatable()
        model = yield from self.studio.models.load(receipt.model.name_or_path if receipt.model else visit.model)
        pipeline, own = model.pipelines.get(str(receipt.method)), self._own(visit, model.name)
        most = MAX_STEPS if pipeline is not None and pipeline.optimizes else MAX_PASSES
        numbers = {name: value for name, value in receipt.call.items() if isinstance(value, int) and name != "seed"}
        if pipeline is None or any(value > most for value in numbers.values()):
            raise ValueError(f"The receipt asks for {receipt.method!r} with {numbers}, which this app does not do.")
        self.studio.take(own, photo, align=False)
        assert own.photo is not None
        crop = receipt.crop(pipeline, own.photo.image)
        self.studio.check(own, receipt.edits)
        if pipeline.optimizes:
            out = yield from self.studio.tune(own, crop, **receipt.call)
            if out is None or out.reports[0].get("stopped_by", "callback") == "callback":
                raise ValueError("The run was stopped, so that nothing is compared.")
        else:
            own.out = self.studio.invert(own, crop, str(receipt.method), **receipt.call)
        edited = self.studio.edit(own, own.out, receipt.edits)
        done = receipt.compare(PICTURES[receipt.picture](edited, receipt.detail), data)
        file, suffix = encode_picture(edited, receipt.picture)
        yield _sent(visit.publish(file, f"redrawn{suffix}")), {"same": done.same, "words": done.words}

    def stop(self, visit: Visit) -> Running:
        """End this client's running tuning; its best state so far becomes the result of /invert."""
        return visit.end()

    def delete(self, visit: Visit) -> Count:
        """Delete this client's photo, results and files, which also happens half an hour after their last use."""
        return visit.forget()

    def _invert(
        self, visit: Visit, own: Visit, photo: Any, how: Inverting, strengths: Mapping[str, float] = _UNEDITED
    ) -> Any:
        """Invert apart from the client's other calls, which may go on at the same time; keep the result at the end.

        `strengths` of an edit that follows are checked first.
        """
        turn = visit.turn
        yield from self.studio.models.load(how.model)
        self.studio.check(own, strengths)
        self.studio.take(own, photo, align=how.align)
        own.face = how.face
        crop = self.studio.crop(own, align=how.align)
        if how.method in METHODS and METHODS[how.method].optimizes:
            others = []
            for photo in how.others:
                self.studio.take(more := self._own(visit, how.model), photo, align=how.align)
                others.append(self.studio.crop(more, align=how.align))
            yield from self.studio.tune(own, crop, *others, **how.model_dump(include=TUNING))
        elif how.others:
            raise ValueError(f"`others` are for pti, which tunes the model for all of them, and not for {how.method}.")
        else:
            own.out = self.studio.invert(own, crop, how.method)
        if own.out is None:
            raise ValueError("The run was stopped before it began.")
        visit.keep(own, turn)
        return own.out

    def _own(self, visit: Visit, model: str) -> Visit:
        """A visit for one call, apart from what the client's others do at the same time."""
        return Visit(visit.key, model, files=visit.files, stops=visit.stops)

    def _out(self, visit: Visit, how: Kept, strengths: Mapping[str, float] = _UNEDITED) -> InversionOutput:
        """The kept inversion, or the one in a file, which is kept then, with an edit."""
        own, turn = visit.apart(), visit.turn
        if how.inversion is not None:
            own = self._own(visit, how.model)
            own.out = self.studio.open_inversion(own, how.inversion)
            visit.keep(own, turn)
        return self.studio.edit(own, own.out, strengths)

    def _pictures(self, visit: Visit, out: InversionOutput) -> tuple[Whole, Part, Drawn]:
        photo, face, drawn = (self._picture(visit, picture, out) for picture in PICTURES)
        return photo, face, drawn

    def _picture(self, visit: Visit, picture: str, out: InversionOutput, name: str = "") -> Drawn:
        data, suffix = encode_picture(out, picture)
        return _sent(visit.publish(data, (name or picture) + suffix))


def _figures(out: InversionOutput) -> dict[str, Any]:
    return {name: value for name, value in out.reports[0].items() if name != "made"}  # which the pictures say


def _sent(path: str) -> dict[str, Any]:
    return FileData(path=path).model_dump()


def name_endpoints(api: Api, visit: Any) -> None:
    """Name the endpoints, within `gr.Blocks`; `visit` is the `gr.State` of what is kept."""
    config: Any = get_blocks_context()
    for name, method in inspect.getmembers(api, inspect.ismethod):
        if name.startswith("_"):
            continue
        runs, returned = inspect.isgeneratorfunction(method), inspect.signature(method).return_annotation
        returned = get_args(get_args(returned)[0])[1] if runs else returned
        results = get_args(returned) if get_origin(returned) is tuple else [returned]
        results = [TypeAdapter(each).json_schema() for each in results]
        function, schemas = _endpoint(method, [each["description"] for each in results], runs)
        config.set_event_trigger(
            [],
            function,
            [*(Value(schema.get("default"), schema, key) for key, schema in schemas.items()), visit],
            [*(Value(None, each, f"Output {k + 1}") for k, each in enumerate(results)), visit],
            preprocess=False,
            postprocess=False,
            api_name=name,
            queue=name not in ("stop", "delete"),
            concurrency_id="api-slow" if runs else "api",
            concurrency_limit=12 if runs else 2,
        )


def _endpoint(method: Callable[..., Any], results: list[str], runs: bool) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function that Gradio calls, which checks the arguments and keeps the visit, and their JSON Schemas."""
    own = {key: each for key, each in inspect.signature(method).parameters.items() if key != "visit"}
    how = own.pop("how", None)
    fields: Any = {
        key: (each.annotation, ... if each.default is each.empty else each.default) for key, each in own.items()
    }
    arguments: Any = create_model(method.__name__, __base__=how.annotation if how else BaseModel, **fields)
    schemas = arguments.model_json_schema()["properties"]
    schemas = {key: schemas[key] for key in [*own, *schemas]}  # its own come first

    def begin(values: Sequence[Any], visit: Visit, request: gr.Request) -> Any:
        session = getattr(request, "session_hash", None)
        if session in (None, LocalContext.event_id.get()) or "x-gradio-user" in request.headers:
            came = request.headers.get("x-forwarded-for", "").split(",")[-1].strip()  # the nearest proxy's word
            visit.key = f"address {came or getattr(request.client, 'host', '')}"  # who shares nothing waits as one
        given = arguments(**dict(zip(schemas, values)))
        return method(visit, **{key: getattr(given, key) for key in own}, **({"how": given} if how else {}))

    def stream(*values: Any) -> Iterator[tuple[Any, ...]]:
        *given, visit, request, progress = values
        for done in begin(given, visit, request):
            if isinstance(done, Report):
                progress(done.share or 0.0, desc=done.words)
            yield (*((None,) * len(results) if isinstance(done, Report) else done), visit)

    def call(*values: Any) -> tuple[Any, ...]:
        *given, visit, request = values
        done = begin(given, visit, request)
        return (*(done if len(results) > 1 else [done]), visit)

    function: Any = stream if runs else call
    told = "\n    ".join(f"{key}: {schema['description']}" for key, schema in schemas.items())
    returned = "\n    ".join(results)
    function.__name__ = method.__name__
    function.__doc__ = f"{inspect.getdoc(method)}\n\nArgs:\n    {told}\n\nReturns:\n    {returned}"
    named = {**dict.fromkeys([*schemas, "visit", "request"]), **({"progress": gr.Progress()} if runs else {})}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature([inspect.Parameter(key, kind, default=d) for key, d in named.items()])
    function.__annotations__ = {"request": gr.Request}
    return function, schemas
