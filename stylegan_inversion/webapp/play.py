"""The other tabs: the methods side by side, and faces that mix."""

import random
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import gradio as gr
import torch
from PIL import Image, ImageOps

from stylegan_inversion.losses.identity import IdentityEmbedding, load_identity
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PRESETS
from stylegan_inversion.pipelines.receipts import kind_of
from stylegan_inversion.preprocessing.align import around, crop_quad
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.preprocessing.sources import PHOTO_TASKS
from stylegan_inversion.webapp.api import Api
from stylegan_inversion.webapp.editor import (
    CHOICE,
    DIRECT,
    FETCH,
    HIDDEN,
    MARGIN,
    QUICK,
    RESULT,
    Editor,
    handler,
    lane,
    upload,
)
from stylegan_inversion.webapp.models import DEMONSTRATION
from stylegan_inversion.webapp.photos import MAX_PHOTO_BYTES, read_upload
from stylegan_inversion.webapp.run import Report, status
from stylegan_inversion.webapp.studio import NOTHING, PLACES, Visit, large

COMPARE = """The photo of the first tab with its edit by each method that the model has, and what the model draws."""
ALIKE = """ The percentages say how much that is the same person to a face recognition network: 0 % is how alike
strangers are, 100 % is the photo itself."""
CAPTION, CAPTION_ALIKE = "{} · {:.1f} s", " · same person: {:.0%} in the photo, {:.0%} as drawn"
PLAY = "Draw what does not exist, and give one picture something of another."
REDRAW = (
    """Each saved picture says in its metadata what made it. From that and the photo it is made again, and compared."""
)
READS = {
    "sketch": "This model reads **sketches**: a picture of a face in dark lines on white.",
    "labels": """This model reads **label maps**: a grey or palette PNG with the number of a part of the face in each
pixel.""",
    "super_resolution": "This model makes **small or blurred photos** of a face, cut out as FFHQ's, sharp.",
    "frontalization": "This model turns the face of a **photo** to the front.",
    "toonify": "This model makes a cartoon of the face in a **photo**.",
}
DRAW = " Several pictures have their shape from it and their colours by chance."
OUTPUTS = 8  # at most
FACE_SCALE, FACE_SIDE = 0.74, 150  # of the crops for which the identity network's cosine of strangers is known
DRAWN = 8  # random faces of a small model from which the page takes the most typical one
GONE = "This result is of another photo or model, or another part of the photo, or has expired: compare again."
ENDED = "Ended, since another photo, another part of it, or another model was chosen."


class RunTab:
    """A tab with a button for one work, which can be stopped and which a deletion ends."""

    def __init__(self, editor: Editor) -> None:
        self.editor, self.studio, self.visit = editor, editor.studio, editor.visit

    def _lay_out_run(self, label: str) -> None:
        with gr.Row(elem_classes="chips"):
            self.run = gr.Button(label, variant="primary", size="sm")
            self.stop = gr.Button("Stop", size="sm", visible=False)
        self.status = gr.HTML(status(""))

    def _connect_run(self, work: Callable[..., Any], given: list[Any], result: Any, stopped: str) -> None:
        outputs = [self.visit, self.status, self.stop, result]
        run = self.run.click(handler(self, work), [self.visit, *given], outputs, **lane(work.__name__.strip("_")))
        self.stop.click(partial(self.page, words=stopped), self.visit, outputs, cancels=run, **DIRECT)
        emptied = {**dict.fromkeys([*given, result]), self.status: status(""), self.stop: gr.update(visible=False)}
        self.editor.delete.click(lambda: emptied, None, [*given, *outputs], cancels=run, **DIRECT)

    def page(self, visit: Visit, words: str) -> dict[Any, Any]:
        """The words, and no more to stop."""
        return {self.visit: visit, self.status: status(words), self.stop: gr.update(visible=False)}

    failed = page


class CompareTab(RunTab):
    """The photo of the first tab by each method, side by side."""

    def __init__(self, editor: Editor) -> None:
        super().__init__(editor)
        about = gr.Markdown(COMPARE, elem_classes="quiet")
        editor.of_model[about] = lambda model: COMPARE + ALIKE * model.has_faces
        self._lay_out_run("Compare")
        looks: dict[str, Any] = {"elem_id": "compared", "columns": 2, "object_fit": "contain", **CHOICE}
        self.gallery = gr.Gallery(label="Choose one to go on with it", **looks)

    def connect(self) -> None:
        """What happens when something is used."""
        self._connect_run(self._compare, [], self.gallery, "Stopped. Choose one of the results to go on with it.")
        self.gallery.select(self._adopt, self.visit, [*self.editor.shown, self.editor.tabs], **QUICK)

    def _adopt(self, visit: Visit, event: gr.SelectData) -> dict[Any, Any]:
        of, *outs = visit.compared or [None]
        if of != (visit.photo, visit.face, visit.model):
            raise ValueError(GONE)
        return self.editor.adopt(visit, outs[event.index], "This method's result.")

    @cached_property
    def _identity(self) -> IdentityEmbedding:
        return load_identity()

    def _likeness(self, visit: Visit, out: InversionOutput) -> list[float]:
        """How much the face in the photo, and the drawn one, look like the person: 0 as strangers, 1 as the photo."""
        tuner, (crop,) = self.studio.model(visit).tuner, out.crops
        if crop.quad is None:
            return [0.0, 0.0]
        centre = crop.quad.mean(axis=0)
        quad = centre + FACE_SCALE / tuner.crop_scale * (crop.quad - centre)
        photos = [crop.photo, *(tuner.paste_back(out, detail=detail)[0] for detail in ("move", "none"))]
        faces = [to_tensor(crop_quad(photo, quad, FACE_SIDE)) for photo in photos]
        with torch.no_grad():
            photo, *others = self._identity.embed(torch.cat(faces))
        strangers = self._identity.strangers
        return [max((float(other @ photo) - strangers) / (1 - strangers), 0.0) for other in others]

    def _compare(self, visit: Visit) -> Iterator[Report | dict[Any, Any] | str]:
        if visit.photo is None:
            raise ValueError("Choose a photo or an example in the first tab.")
        crop, model, turn = self.studio.crop(visit), self.studio.model(visit), visit.turn
        visit.compared = [(visit.photo, visit.face, visit.model)]
        pictures: list[tuple[str, str]] = []
        yield Report("Beginning …")
        for name, pipeline in model.pipelines.items():
            other = visit.apart(out=None)
            if pipeline.optimizes:
                for report in self.studio.tune(other, crop, preset=next(iter(PRESETS))):
                    if turn != visit.turn:
                        break
                    yield report
            else:
                other.out = self.studio.invert(other, crop, name)
            if other.out is None or turn != visit.turn:  # another photo, or all was deleted
                yield ENDED
                return
            visit.compared.append(other.out)
            edited = self.studio.edit(visit, other.out, visit.strengths)
            both = Image.new("RGB", (1032, 512), "white")
            for k, picture in enumerate((self.studio.pasted(edited, around(crop, MARGIN, 640)), edited.images[0])):
                both.paste(ImageOps.pad(picture, (512, 512), color="white"), (520 * k, 0))
            words = CAPTION.format(METHODS[name].title, other.out.reports[0]["seconds"])
            if model.has_faces:
                words += CAPTION_ALIKE.format(*self._likeness(visit, edited))
            pictures.append((self.editor.picture(visit, both, name, kind_of(edited)), words))
            yield {self.visit: visit, self.gallery: list(pictures)}
        yield "Done. Choose one of the results to go on with it."


class DrawTab:
    """Faces from a sketch, a label map or a photo, where the model makes such."""

    def __init__(self, editor: Editor) -> None:
        self.editor, self.studio, of_model = editor, editor.studio, editor.of_model
        about = gr.Markdown(elem_classes="quiet")
        with gr.Row():
            with gr.Column(min_width=300):
                self.given = upload("Your picture", sources=["upload", "clipboard"], height=300)
                self.count = gr.Slider(1, OUTPUTS, 4, step=1, label="How many")
                self.draw = gr.Button("Draw", variant="primary", size="sm")
            with gr.Column(min_width=300):
                self.read = gr.Image(label="What the model reads", **{**RESULT, "elem_classes": "drawn"})  # never stale
                looks: dict[str, Any] = {"elem_id": "translated", "columns": 4, "object_fit": "contain", **CHOICE}
                self.gallery = gr.Gallery(label="Choose one to edit and save it", **looks)
        of_model[editor.mark] = lambda model: '<i class="draws"></i>' * bool(model.reads)  # style.css shows the tab
        of_model[about] = lambda model: READS.get(model.reads or "", "") + DRAW
        of_model[self.count] = lambda model: gr.update(value=1 if model.reads in PHOTO_TASKS else 4)

    def connect(self) -> None:
        """What happens when something is used."""
        editor, visit, shown = self.editor, self.editor.visit, [self.editor.visit, self.read, self.gallery]
        options: dict[str, Any] = {**QUICK, "show_progress": "minimal"}
        self.given.input(self._given, [visit, self.given], None, **DIRECT)
        self.draw.click(self._draw, [visit, self.given, self.count], shown, **options)
        self.gallery.select(self._adopt, visit, [*editor.shown, editor.tabs], **QUICK)
        editor.delete.click(lambda: (None, None, None), None, [self.given, *shown[1:]], **DIRECT)

    def _given(self, visit: Visit, picture: Any) -> None:
        """A picture is deleted with the rest, also if nothing was drawn of it."""
        if picture:
            visit.files.add(str(read_upload(picture, max_bytes=MAX_PHOTO_BYTES)[1]))

    def _draw(self, visit: Visit, picture: Any, count: float) -> tuple[Visit, str, list[str]]:
        turn, options = visit.turn, {"num_outputs": int(count), "seed": random.randrange(2**31)}
        shown, out = self.studio.translate(visit, picture, **options)
        if turn != visit.turn:
            raise ValueError(ENDED)
        visit.translated = out
        pictures = [self.editor.picture(visit, large(each), "face", kind_of(out)) for each in out.images]
        return visit, self.editor.picture(visit, shown, "input", "photo"), pictures

    def _adopt(self, visit: Visit, event: gr.SelectData) -> dict[Any, Any]:
        if visit.translated is None:
            raise ValueError("These faces are of another model, or have expired: draw again.")
        visit.strengths = {}
        return self.editor.adopt(visit, visit.translated[event.index], "The face that you drew, to be edited.")


class RedrawTab(RunTab):
    """A saved picture, made again from its receipt and the photo."""

    def __init__(self, editor: Editor) -> None:
        super().__init__(editor)
        gr.Markdown(REDRAW, elem_classes="quiet")
        with gr.Row():
            labels, looks = ("The saved picture", "The photo it was made from"), {"height": 300, "min_width": 240}
            self.given = [upload(label, sources=["upload"], **looks) for label in labels]
            self.result = gr.Image(label="Drawn again", **{**RESULT, "elem_classes": "drawn"}, height=300)
        self._lay_out_run("Draw it again")

    def connect(self) -> None:
        """What happens when something is used."""
        self._connect_run(self._redraw, self.given, self.result, "Stopped.")

    def _redraw(self, visit: Visit, picture: Any, photo: Any) -> Iterator[Report | dict[Any, Any]]:
        yield {self.result: None}
        if not picture or not photo:
            raise ValueError("Drop both: a picture that was saved here, and the photo that it was made from.")
        for done in Api(self.studio).redraw(visit.apart(), picture, photo):
            yield (
                done
                if isinstance(done, Report)
                else self.page(visit, done[1]["words"]) | {self.result: done[0]["path"]}
            )


class PlayTab:
    """Random faces, and two that mix."""

    def __init__(self, editor: Editor) -> None:
        self.editor, self.studio = editor, editor.studio
        gr.Markdown(PLAY, elem_classes="quiet")
        with gr.Row():
            self.shown = [
                gr.Image(label=label, height=300, interactive=False, buttons=["fullscreen"], min_width=150)
                for label in ("One", "Another", "The first with something of the other")
            ]
        with gr.Row(elem_classes="chips"):
            self.take = gr.Button("One from my photo", size="sm", interactive=False)
            self.draw = [gr.Button(f"{label} at random", size="sm") for label in ("One", "Another")]
        with gr.Row():
            names = {"Pose and shape": "pose"} | {name.capitalize(): name for name in PLACES if name != "pose"}
            self.what = gr.Radio([*names.items()], value=[*PLACES][-1], label="What to take from the other")
            self.amount = gr.Slider(0, 1, 1, step=0.05, label="How much")
        with gr.Row(elem_classes="chips"):
            self.mix = gr.Button("Mix", variant="primary", size="sm", interactive=False)
            self.morph = gr.Button("Save video from one to the other (MP4)", size="sm", interactive=False)
            self.reopen = gr.Button("Edit the result", size="sm", interactive=False)

    def connect(self) -> None:
        """What happens when something is used."""
        editor, visit = self.editor, self.editor.visit
        buttons = [self.mix, self.morph, self.reopen]
        drawing: dict[str, Any] = {"inputs": visit, "outputs": [visit, *self.shown, *buttons], **QUICK}
        drawing["show_progress"] = "minimal"
        self.take.click(partial(self._put, self._mine, 0), **drawing)
        for place, button in enumerate(self.draw):
            button.click(partial(self._put, self._nice, place), **drawing)
        self.mix.click(partial(self._put, self._mixed, 2), **{**drawing, "inputs": [visit, self.what, self.amount]})
        morphed = self.morph.click(self._morph, visit, editor.file, **QUICK)
        morphed.success(None, js=FETCH, **HIDDEN)
        self.reopen.click(self._reopen, visit, [*editor.shown, editor.tabs], **QUICK)
        emptied = [None] * 3 + [gr.update(interactive=False)] * 3
        editor.delete.click(lambda: emptied, None, [*self.shown, *buttons], **DIRECT)
        ready = lambda visit: gr.update(interactive=visit.out is not None)  # noqa: E731
        editor.tabs.select(ready, visit, self.take, **DIRECT)

    def _put(self, draw: Callable[..., InversionOutput], place: int, visit: Visit, *values: Any) -> dict[Any, Any]:
        """Draw a face for a place."""
        turn, out = visit.turn, draw(visit, *values)
        if turn != visit.turn:
            raise ValueError(ENDED)
        visit.played[place] = out
        picture = self.editor.picture(visit, large(out.images[0]), "face", kind_of(out))
        ready, done = (gr.update(interactive={*places} <= {*visit.played}) for places in ((0, 1), (2,)))
        news = {self.mix: ready, self.morph: ready, self.reopen: done}
        return {self.editor.visit: visit, self.shown[place]: picture, **news}

    def _mine(self, visit: Visit) -> InversionOutput:
        return self.studio.edit(visit, visit.out, visit.strengths)

    def _nice(self, visit: Visit) -> InversionOutput:
        """A face of nobody that looks good: the most typical of a few, with a smile if the model knows one."""
        model = self.studio.model(visit)
        count, w_avg = DRAWN if model.resolution <= DEMONSTRATION else 1, model.tuner.generator.w_avg.cpu()
        drawn = [self.studio.random_face(visit, random.randrange(2**31), 0.45) for _ in range(count)]
        best = min(drawn, key=lambda out: float((out.w_plus - w_avg).norm()))
        smile = {"smile": 0.5 * model.range_of("smile")[1]} if "smile" in model.directions else {}
        return self.studio.edit(visit, best, smile)

    def _mixed(self, visit: Visit, what: str, amount: float) -> InversionOutput:
        a, b = _faces(visit, 0, 1)
        return self.studio.mix(visit, a, b, what, float(amount))

    def _morph(self, visit: Visit) -> str:
        a, b = _faces(visit, 0, 1)
        return self.studio.between(visit, a, b, "mp4")

    def _reopen(self, visit: Visit) -> dict[Any, Any]:
        (out,) = _faces(visit, 2)
        visit.strengths = {}
        return self.editor.adopt(visit, out, "The mixture, to be edited.")


def _faces(visit: Visit, *places: int) -> Any:
    if not {*places} <= {*visit.played}:
        raise ValueError(NOTHING)
    return [visit.played[place] for place in places]
