"""What a visitor or a program can do with one photo: the work behind the page and the API, without components."""

import dataclasses
import hashlib
import io
import math
import os
import secrets
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from gradio_client.utils import strip_invalid_filename_characters
from PIL import Image

from stylegan_inversion import storage
from stylegan_inversion.errors import StyleGANInversionError
from stylegan_inversion.latents import layer_ranges
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.play import interpolate_outputs, mix_outputs, sample_face
from stylegan_inversion.pipelines.receipts import Kind, kind_of
from stylegan_inversion.preprocessing.align import Crop, around
from stylegan_inversion.preprocessing.landmarks import Face
from stylegan_inversion.preprocessing.sources import LabelSource, Source
from stylegan_inversion.webapp.marking import as_edit, encode_gif, encode_mp4, encode_picture
from stylegan_inversion.webapp.models import DEMONSTRATION, Model, Models
from stylegan_inversion.webapp.photos import NO_PHOTO, Example, Photo, read_photo, unpack_upload
from stylegan_inversion.webapp.run import RUN, Memory, OnStep, Report, Turns, cost_of, in_thread, is_gone, listener
from stylegan_inversion.webapp.zerogpu import BorrowedGPU, in_request

NOTHING = "There is no inversion here, or it has expired. Invert a photo first."
SHOWN, ANIMATED = 1280, 640  # pixels of the longer side, on the page and in an animation
FRAMES = 24  # of an animation, one way
PLACES = {"pose": "coarse", "features": "middle", "colours": "fine"}  # what one face gives another -> its layers

_T = TypeVar("_T")
Film = Literal["mp4", "gif"]
Download = Literal["jpeg", "png", "face", "drawn", "mp4", "gif", "inversion"]


class Superseded(Exception):
    """A newer photo, face or model has begun: nothing of this is shown."""


@dataclass(eq=False)
class Visit:
    """What is kept of one visitor, or of one client of the API, until its time to live is over."""

    _all: ClassVar[weakref.WeakValueDictionary[int, "Visit"]] = weakref.WeakValueDictionary()

    key: str = field(default_factory=lambda: secrets.token_urlsafe(32))  # the visitor's browser keeps it over a reload
    model: str = ""
    photo: Photo | None = None
    faces: list[Face] = field(default_factory=list)  # found in it, the largest first
    face: int = 0  # which of them
    out: InversionOutput | None = None  # unedited; None while there is none of this photo
    strengths: dict[str, float] = field(default_factory=dict)  # where the sliders stand
    stops: set[threading.Event] = field(default_factory=set)  # end the runs that go on
    turn: int = 0  # counts photos, faces and models: what an earlier one began is dropped
    tuned: int = -1  # the turn whose photo was tuned, or is
    example: tuple[str, str] | None = None  # model and photo of an example that is open: its result is kept for others
    compared: list[Any] = field(default_factory=list)  # photo, face and model, and each method's result
    translated: InversionOutput | None = None  # faces that the model drew of a sketch or a label map
    played: dict[int, InversionOutput] = field(default_factory=dict)  # two faces that mix, and the mixture
    files: set[str] = field(default_factory=set)  # sent by it, or written for it

    def __post_init__(self) -> None:
        Visit._all[id(self)] = self

    @classmethod
    def everyone(cls) -> "list[Visit]":
        """All that are kept, whatever other threads begin and end meanwhile."""
        return [visit for ref in cls._all.valuerefs() if (visit := ref())]

    def __deepcopy__(self, memo: Any) -> "Visit":
        """Gradio copies what a state begins with: each session has a visit of its own."""
        return Visit()

    def begin(self) -> int:
        """Drop what is there: something new begins, whose number this is."""
        self.turn += 1
        self.out = self.example = None
        self.end()
        return self.turn

    @contextmanager
    def during(self, turn: int) -> Iterator[int]:
        """What is done in a turn: when something newer has begun, it ends in `Superseded`, whatever comes of it."""
        try:
            yield turn
        except Exception as e:
            if turn == self.turn:
                raise
            raise Superseded from e
        if turn != self.turn:
            raise Superseded

    def end(self) -> bool:
        """End the runs that go on, with the best so far; whether there was one."""
        running = [stop for stop in [*self.stops] if not stop.is_set()]
        for stop in running:
            stop.set()
        return bool(running)

    def apart(self, **changes: Any) -> "Visit":
        """A copy for what is done beside the rest; its files are this visitor's."""
        return dataclasses.replace(self, stops=set(), **changes)

    def keep(self, other: "Visit", turn: int) -> None:
        """Take what was made apart, unless something new has begun since this turn."""
        if turn == self.turn:
            for name in ("model", "photo", "faces", "face", "out"):
                setattr(self, name, getattr(other, name))

    def publish(self, data: bytes, name: str) -> str:
        """Write a file for this visitor alone, where Gradio serves it from; the same file has the same address."""
        folder = Path(os.environ["GRADIO_TEMP_DIR"], hashlib.sha256(self.key.encode() + data).hexdigest()[:32])
        folder.mkdir(exist_ok=True)
        path = folder / strip_invalid_filename_characters(Path(name).name)
        whole = folder / secrets.token_hex(8)  # somebody may read an equal one now
        whole.write_bytes(data)
        whole.replace(path)
        self.files.add(str(path))
        return str(path)

    def forget(self) -> int:
        """Delete everything; how many files there were."""
        self.begin()
        self.photo, self.faces, self.strengths, self.compared, self.played = None, [], {}, [], {}
        self.translated = None
        others = [visit.files for visit in Visit.everyone() if visit.files is not self.files]
        files = self.files.difference(*others)  # Gradio keeps uploads that are equal in one place
        for path in files:
            Path(path).unlink(missing_ok=True)
        self.files.clear()  # the set is shared with what is made apart
        return len(files)


class Studio:
    """The work. Models are shared by all visitors and never changed."""

    def __init__(self, models: Models, *, tuning_slots: int = 1, gpu: BorrowedGPU | None = None) -> None:
        """Share models; `tuning_slots` generators are tuned at a time, on the borrowed GPU if there is one."""
        self.models = models
        self.gpu = gpu
        self._turns, self._memory = Turns(tuning_slots), Memory()
        self._pace: dict[str, float] = {}  # seconds of a step of the projection, by model
        self._examples: dict[Any, InversionOutput] = {}  # by model and photo
        self._edited: dict[Any, tuple[InversionOutput, dict[str, float], InversionOutput]] = {}  # as they open
        self._decoding = threading.Lock()  # many photos take the memory of one

    def close(self) -> None:
        """End all runs: a thread that still computes when Python ends would abort it."""
        for visit in Visit.everyone():
            visit.end()
        for thread in threading.enumerate():
            if thread.name == RUN:
                thread.join(60)

    def model(self, visit: Visit) -> Model:
        """The visitor's model, loaded if needed."""
        return self.models.get(visit.model)

    def _do(self, model: Model, work: Callable[[], _T], on_step: OnStep | None = None, *, steps: int = 0) -> _T:
        """Do it here, or what is too slow for the CPU on the borrowed GPU."""
        if self.gpu and (on_step or model.resolution > DEMONSTRATION):
            return self.gpu.run(model, work, on_step, steps=steps)
        return work()

    # A photo, and the face in it

    def take(self, visit: Visit, value: Any, turn: int = 0, *, align: bool | None = None) -> None:
        """Take a photo and find its faces, unless something newer than this turn has begun; the largest is chosen."""
        photo = self._read(visit, value)
        self._memory.hold(photo.image)
        self.look(visit, photo, turn, align=align)

    def _read(self, visit: Visit, value: Any, source: Source | None = None) -> Photo:
        with self._decoding:
            photo = read_photo(value, source)
        visit.files |= {str(photo.path)} if photo.path else set()
        return photo

    def look(self, visit: Visit, photo: Photo, turn: int, *, align: bool | None = None) -> None:
        """Find the faces of a photo if the visitor's model takes faces, or `align` says so."""
        finds = self.model(visit).tuner.finds_faces(align)
        faces = self.models.first.tuner.detector(photo.image) if finds else []
        if turn == visit.turn:
            visit.face = visit.face if photo is visit.photo else 0
            visit.photo, visit.faces = photo, faces

    def crop(self, visit: Visit, *, align: bool | None = None) -> Crop:
        """The chosen face, or the part of the photo that the model takes, cut out as it wants it."""
        if visit.photo is None:
            raise ValueError(NO_PHOTO)
        tuner = self.model(visit).tuner
        landmarks = [face.landmarks for face in visit.faces] if tuner.finds_faces(align) else None
        return tuner.domain.crop(visit.photo.image, tuner.generator.config.resolution, landmarks, face=visit.face)

    def face_at(self, visit: Visit, x: float, y: float) -> int | None:
        """The face at a place of the photo, in pixels: the one whose box is nearest, not farther than its size."""

        def distance(face: Face) -> float:
            x0, y0, x1, y1 = face.box
            return max(abs(x - (x0 + x1) / 2) / (x1 - x0), abs(y - (y0 + y1) / 2) / (y1 - y0))

        near = {distance(face): k for k, face in enumerate(visit.faces)}
        return near[min(near)] if near and min(near) <= 1 else None

    def example(self, visit: Visit, example: Example) -> bool:
        """Open a photo of the package, whose inversion is kept for the next visitor; whether nothing newer began."""
        turn, model = visit.begin(), self.model(visit)
        path = storage.builtin_path(f"samples/{example.name}")
        with Image.open(path) as image:
            self.look(visit, Photo(image.convert("RGB"), path.stem), turn)
        key = (model.name, example.name)
        found = self._examples.get(key)
        if (found is None or is_gone(found.generator)) and model.quick and turn == visit.turn:
            found = self.invert(visit, self.crop(visit), model.quick)
            if model is self.models.first:  # others would stay in memory with it
                self._examples[key] = found
        if turn != visit.turn:
            return False
        edit = {name: share for name, share in example.edit.items() if name in model.directions}
        visit.strengths = {name: round(share * model.range_of(name)[1], 2) for name, share in edit.items()}
        visit.out, visit.example = found, key
        if found is not None and found is self._examples.get(key):
            self._edited[key] = found, visit.strengths, self.edit(visit, found, visit.strengths)
        if found is not None and "tuning_steps" in found.reports[0]:
            visit.tuned = turn  # by an earlier visitor
        return True

    # Inversions

    def invert(self, visit: Visit, crop: Crop, method: str, **options: Any) -> InversionOutput:
        """Invert with an encoder, at once."""
        model = self.model(visit)
        if method not in model.pipelines:
            raise ValueError(f"This model has no {method[:80]!r}; it has {', '.join(model.pipelines)}.")
        out = self._do(model, partial(model.pipelines[method], crop, **options))
        self._hold(model, out)
        return out

    def _hold(self, model: Model, out: InversionOutput) -> None:
        plain = out.generator.unstyled  # whose weights the other shares, which goes when it goes
        own = {id(each): each for each in (out.generator, plain, getattr(plain, "base", None)) if each is not None}
        self._memory.hold(*(each for each in own.values() if each is not model.tuner.generator))

    def tune(
        self, visit: Visit, crop: Crop, *others: Crop, **options: Any
    ) -> Generator[Report, None, InversionOutput | None]:
        """Invert by optimisation; what is worse than what is there already, as after a stop, does not replace it.

        The model is tuned for the others, too.

        Nothing comes out if something newer began, or it was stopped before its turn came. Closing the iterator ends
        the run in a step.
        """
        model, turn = self.model(visit), visit.turn
        steps = _steps(model, **options)
        stop = threading.Event()
        visit.stops.add(stop)

        def tuned(on_step: OnStep) -> InversionOutput:
            crops = [crop, *others]
            tuning = partial(model.tuner, crops, together=len(crops) > 1, callback=on_step, **options)
            after, before = self._do(model, tuning, on_step, steps=sum(steps) * len(crops))[0], visit.out
            figures = after.reports[0]
            done = figures["w_steps"] + figures["tuning_steps"]
            self._pace[model.name] = figures["seconds"] / max(cost_of(done, steps), 1)
            if before is None and model.quick and figures["stopped_by"] == "callback":
                before = self._do(model, partial(model.pipelines[model.quick], crop))
            if before is not None and before.reports[0].get("l2", math.inf) < figures["l2"]:
                return before
            self._hold(model, after)
            return after

        invert = in_request(tuned)

        def work(send: Callable[[Report], None]) -> InversionOutput:
            try:
                return invert(listener(steps, stop, send))
            finally:
                self._turns.leave(stop)

        try:
            if not (yield from self._turns.wait(visit.key, stop)):
                return None
            out = yield from in_thread(work, RUN, Report(f"Sharpening: step 0 of {sum(steps)}", 0.0))
        finally:
            stop.set()
            visit.stops.discard(stop)
        if turn != visit.turn:
            return None
        visit.out = out
        if visit.example and model is self.models.first:
            self._examples[visit.example] = out
        return out

    def seconds(self, visit: Visit, preset: str) -> float:
        """How long a run takes here, as the last one of this model did; 0 before it."""
        steps = _steps(self.model(visit), preset=preset)
        return self._pace.get(self.model(visit).name, 0.0) * cost_of(sum(steps), steps)

    def edit(self, visit: Visit, out: InversionOutput | None, strengths: Mapping[str, float]) -> InversionOutput:
        """Edit an inversion; strengths count from the unedited face."""
        model = self.model(visit)
        strengths = {name: value for name, value in strengths.items() if value}
        self.check(visit, strengths)
        if out is None:
            raise ValueError(NOTHING)
        if not strengths:
            return out
        before, known, edited = self._edited.get(visit.example, (None, {}, out))
        if out is before and strengths == known and not is_gone(edited.generator):
            return edited
        edited = self._do(model, partial(model.tuner.edit, _bare(out), **strengths))
        self._hold(model, edited)
        return dataclasses.replace(edited, crops=out.crops)

    def check(self, visit: Visit, strengths: Mapping[str, float]) -> None:
        """Check strengths against the ranges of a visit's model."""
        for name, value in strengths.items():
            low, high = self.model(visit).range_of(name)
            if value and not low <= value <= high:
                raise ValueError(f"{name!r} must be in [{low:g}, {high:g}], got {value:g}.")

    def random_face(self, visit: Visit, seed: int, truncation: float) -> InversionOutput:
        """Draw a face of nobody."""
        model = self.model(visit)
        return self._do(model, partial(sample_face, model.tuner, seed=seed, truncation=truncation))

    def mix(self, visit: Visit, a: InversionOutput, b: InversionOutput, what: str, amount: float) -> InversionOutput:
        """Give face a the pose, the features or the colours of face b."""
        if what not in PLACES:
            raise ValueError(f"`what` must be one of {', '.join(PLACES)}, got {what[:80]!r}.")
        layers = layer_ranges(a.generator.config.resolution)[PLACES[what]]
        mixing = partial(mix_outputs, _bare(a), _bare(b), layers=layers, alpha=amount)
        out = dataclasses.replace(self._do(self.model(visit), mixing), crops=a.crops)
        return out if kind_of(a) == kind_of(b) else as_edit(out)  # no longer a face of nobody

    def translate(self, visit: Visit, value: Any, **options: Any) -> tuple[Image.Image, InversionOutput]:
        """Draw pictures of a sketch, a label map or a photo, as the model's encoder reads: what it read, and they."""
        model = self.model(visit)
        reader, source = model.translator, model.translator.source
        photo = self._read(visit, value, source)
        out = self._do(model, partial(reader.translate, photo.image, **options))
        self._memory.hold(*out.images)
        shown = source.with_legend(out.crops[0].image) if isinstance(source, LabelSource) else out.crops[0].image
        crops = [model.tuner.domain.crop(image, image.width) for image in out.images]  # not the drawing, to be edited
        return large(shown), dataclasses.replace(out, crops=crops)

    # Pictures and files

    def pasted(self, out: InversionOutput, crop: Crop | None = None) -> Image.Image:
        """The photo, or a part of it that `around` cut out, with the face in place."""
        out = out if crop is None else dataclasses.replace(out, crops=[crop])
        return self.models.first.tuner.paste_back(out)[0]

    def file(self, visit: Visit, out: InversionOutput, kind: Download) -> str:
        """Write a result to a file."""
        if kind in ("mp4", "gif"):
            return self.animation(visit, out, kind)
        name = f"{visit.photo.name if visit.photo else 'face'}-edited"
        if kind == "inversion":
            return visit.publish(self._inversion(out), f"{name}.zip")
        if kind in ("jpeg", "png"):
            data, suffix = encode_picture(out, "photo", png=kind == "png")
            return visit.publish(data, name + suffix)
        return visit.publish(encode_picture(out, kind, png=True)[0], f"{name}-{kind}.png")

    def animation(self, visit: Visit, out: InversionOutput, kind: Film, frames: int = FRAMES) -> str:
        """Write the photo around the face, from the unedited face to the edited one and back."""
        crop = around(out.crops[0], 1.0, ANIMATED)
        whole = [dataclasses.replace(out, images=[each]) for each in self._between(visit, out.unedited, out, frames)]
        return self._animated(visit, [self.pasted(each, crop) for each in whole], kind, kind_of(out))

    def between(self, visit: Visit, a: InversionOutput, b: InversionOutput, kind: Film, frames: int = FRAMES) -> str:
        """Write the way from one face to another and back, as the generator draws it."""
        mark: Kind = "generated" if kind_of(a) == kind_of(b) == "generated" else "edited"
        return self._animated(visit, [large(each) for each in self._between(visit, a, b, frames)], kind, mark)

    def _between(self, visit: Visit, a: InversionOutput, b: InversionOutput, frames: int) -> list[Image.Image]:
        return self._do(self.model(visit), partial(interpolate_outputs, _bare(a), _bare(b), steps=frames))

    def _animated(self, visit: Visit, pictures: list[Image.Image], kind: Film, mark: Kind) -> str:
        data = (encode_mp4 if kind == "mp4" else encode_gif)(pictures, mark)
        return visit.publish(data, f"{visit.photo.name if visit.photo else 'face'}-animated.{kind}")

    def _inversion(self, out: InversionOutput) -> bytes:
        """A zip that `InversionOutput.load` reads once it is unpacked, with pictures to look at."""
        buffer, name = io.BytesIO(), None if out.base is None else out.base.name
        with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(buffer, "w") as archive:
            out.save(scratch, whole=name is None or name.is_local)  # the server's folders are not the visitor's
            for path in sorted(Path(scratch).iterdir()):
                archive.write(path, path.name)
            archive.writestr("photo.jpg", encode_picture(out, "photo", png=False)[0])
            archive.writestr("drawn.png", encode_picture(out, "drawn", png=True)[0])
        return buffer.getvalue()

    def open_inversion(self, visit: Visit, value: Any) -> InversionOutput:
        """Read such a zip that a program sends back."""
        tuner = self.model(visit).tuner
        with tempfile.TemporaryDirectory() as scratch:
            unpack_upload(value, Path(scratch))
            try:
                out = InversionOutput.load(scratch, base=tuner.generator, networks=tuner.networks)[0]
            except (StyleGANInversionError, ValueError, LookupError) as e:
                raise ValueError(f"The inversion cannot be read: {str(e).replace(scratch, 'it')}") from e
        self._memory.hold(out.crops[0].photo)
        self._hold(self.model(visit), out)
        return as_edit(out)  # whatever the file says of itself


def _bare(out: InversionOutput) -> InversionOutput:
    """Without its photo, which need not be sent where there is a GPU."""
    return dataclasses.replace(out, crops=[])


def _steps(model: Model, *, seed: int = 0, **options: Any) -> tuple[int, int]:
    """The steps of the projection and of the tuning, at most."""
    plan = model.tuner.plan(**options)
    return 0 if plan.pivot in METHODS else plan.num_w_steps, plan.num_tuning_steps


def large(image: Image.Image) -> Image.Image:
    """A small face as large as the page shows it."""
    shape = (512, round(512 * image.height / image.width))
    return image if image.width >= 512 else image.resize(shape, Image.Resampling.BICUBIC)
