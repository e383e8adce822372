"""The first tab: a photo in, the face found, the sliders, the photo out."""

import contextlib
import json
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from stylegan_inversion.editing.directions import MAX_STRENGTH
from stylegan_inversion.errors import StyleGANInversionError
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PRESETS
from stylegan_inversion.preprocessing.align import around
from stylegan_inversion.webapp.marking import encode
from stylegan_inversion.webapp.models import OWN, Model, sentence, words_of
from stylegan_inversion.webapp.photos import samples
from stylegan_inversion.webapp.run import status
from stylegan_inversion.webapp.studio import EXAMPLES, SHOWN, Studio, Visit, kind_of, large, range_of, sentences

TIME_TO_LIVE = 1800  # seconds that a result and its files are kept after their last use
MAIN, MORE = 5, 22  # sliders of the model's own directions, and of those that its weights give
MARGIN = 0.3  # of the photo around the face in the large picture, relative to the face
HEIGHT = 560  # of a large picture, in pixels
CHIP = 0.75  # of a direction's range that a chip goes to

LABELS = {
    "jpeg": "Save photo as JPEG",
    "png": "Save photo as PNG",
    "face": "Save face as PNG",
    "mp4": "Save video (MP4)",
    "gif": "Save animation (GIF)",
    "inversion": "Save all (zip)",
}

MOVE = "Move a slider, or tap one of the buttons above them."
SHARPER = """**Sharper**: the model is tuned until it draws this very face
(<abbr title="Pivotal Tuning Inversion">PTI</abbr>)."""
MORE_WORDS = """Changes that nobody named, found in the model's own weights (by
<abbr title="Härkönen et al. 2020: the main ways in which its faces differ">GANSpace</abbr> and
<abbr title="Shen and Zhou 2021: what its first layers react to most">SeFa</abbr>)."""

RESULT: dict[str, Any] = {"interactive": False, "buttons": ["fullscreen"], "elem_classes": "result"}
CHOICE: dict[str, Any] = {"height": None, "allow_preview": False, "interactive": False, "buttons": []}
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
DIRECT: dict[str, Any] = {"queue": False, **HIDDEN}
QUICK: dict[str, Any] = {"concurrency_id": "quick", "concurrency_limit": 4, **HIDDEN}
LONG: dict[str, Any] = {"concurrency_id": "long", "concurrency_limit": 12, **HIDDEN}
TO_RESULT = "() => { if (innerWidth <= 700) document.querySelector('#sticky').scrollIntoView({behavior: 'smooth'}); }"
FETCH = "() => setTimeout(() => document.querySelector('.fetch').click(), 150)"


def visit_state() -> Any:
    """The `gr.State` that keeps a `Visit`; its run ends with it."""
    return gr.State(Visit(), time_to_live=TIME_TO_LIVE, delete_callback=lambda visit: visit.end())


class Editor:
    """The components, and what happens when one is used. A handler gives a dict: component -> its news."""

    file: Any  # the hidden button that hands a file over
    tabs: Any

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.visits: weakref.WeakValueDictionary[str, Visit] = weakref.WeakValueDictionary()  # while a state holds it
        self.visit, self.key = visit_state(), gr.BrowserState("", storage_key="stylegan-inversion")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=250):
                self._lay_out_photos()
                with gr.Accordion("Model", open=False):
                    self._lay_out_models()
            with gr.Column(scale=11, min_width=320, elem_id="sticky"):
                self._lay_out_pictures()
            with gr.Column(scale=7, min_width=280, elem_classes="result"):
                self._lay_out_tools()
        self.pictures = [self.result, self.whole, self.drawn, self.notice]
        self.shown = [self.visit, self.key, self.status, *self.pictures, self.hint, self.stop, *self.tools]
        self.model_parts = [self.note, self.name, self.about, self.offer, self.leave, *self.chips]

    def _lay_out_photos(self) -> None:
        photo = gr.Image(
            label="Your photo", type="filepath", height=230, sources=["upload", "webcam", "clipboard"], elem_id="photos"
        )
        self.photo = _raw(photo, lambda payload: payload and payload.model_dump())  # `photos.py` opens it
        self.hint = gr.Markdown(elem_classes="quiet")
        self.examples = gr.Gallery(
            [(str(samples() / each.name), each.caption) for each in EXAMPLES],
            label="Or one of these",
            elem_id="examples",
            columns=4,
            object_fit="cover",
            **CHOICE,
        )
        found = self.studio.models.offer()
        self.offered = found.name if found else ""
        words = f"Use a full-size model: {sentence(found)}" if found else ""
        self.offer = gr.Button(words, visible=bool(words), size="sm", elem_id="offer")

    def _lay_out_models(self) -> None:
        models = self.studio.models
        self.note = gr.Markdown(models.first.note, elem_classes="quiet")
        self.name = gr.Dropdown(
            [each.name for each in models.known()],
            value=models.first.name,
            label="Another model",
            allow_custom_value=models.open,
            info="Or organisation/repository of the Hub." if models.open else None,
        )
        self.about = gr.Markdown(elem_classes="quiet")
        self.use = gr.Button("Use this model", size="sm")
        folder = gr.File(
            label="Or upload a zip of a folder that `save_pretrained` wrote", file_types=[".zip"], visible=models.open
        )
        self.folder = _raw(folder, lambda payload: payload and payload.path)

    def _lay_out_pictures(self) -> None:
        pair: dict[str, Any] = {"max_height": HEIGHT, "type": "filepath", **RESULT}
        with gr.Tabs(overflow_behavior="wrap") as self.views:
            with gr.Tab("Face", id="face"):
                self.result = gr.ImageSlider(label="Before | after", elem_id="result", **pair)
            with gr.Tab("Whole photo", id="whole"):
                self.whole = gr.Image(label="The whole photo", height=HEIGHT, elem_id="whole", **RESULT)
            with gr.Tab("What the model draws", id="drawn"):
                self.drawn = gr.ImageSlider(label="Photo | the model's drawing", **pair)
        self.notice = gr.Button(visible=False, size="sm")
        self.status = gr.HTML(status("Opening an example …", busy=True))
        self.stop = gr.Button("Stop, keep the best so far", size="sm", visible=False)
        self.leave = gr.Button("Cancel", size="sm", visible=False)

    def _lay_out_tools(self) -> None:
        small: dict[str, Any] = {"size": "sm", "interactive": False}
        with gr.Row(elem_classes="chips"):
            self.chips = [gr.Button(size="sm", visible=False) for _ in range(2 * MAIN)]
            self.reset = gr.Button("Reset", **small)
        self.sliders = [_slider() for _ in range(MAIN)]
        with gr.Row(elem_classes="chips saves"):
            self.save = {
                kind: gr.Button(words, variant="primary" if kind == "jpeg" else "secondary", **small)
                for kind, words in LABELS.items()
            }
        gr.Markdown(SHARPER, elem_classes="quiet")
        with gr.Row(elem_classes="chips"):
            self.sharpen = {name: gr.Button(name.capitalize(), **small) for name in PRESETS}
        with gr.Accordion("More changes", open=False):
            gr.Markdown(MORE_WORDS, elem_classes="quiet")
            self.sliders += [_slider() for _ in range(MORE)]
        self.tools = [self.reset, *self.save.values(), *self.sharpen.values(), *self.sliders]

    def connect(self, demo: Any, delete: Any) -> None:
        """What happens when something is used."""
        fresh = [*self.shown, *self.model_parts, self.photo]
        demo.load(self._open, self.key, fresh, **QUICK)
        tuned: dict[str, Any] = {"fn": self._tune, "inputs": self.visit, "outputs": self.shown, **LONG}
        new = self.photo.input(self._new, self.visit, [self.visit, self.status], **DIRECT)
        chosen = new.then(self._take, [self.visit, self.photo], self.shown, **QUICK)
        example = self.examples.select(self._example, self.visit, [*self.shown, self.photo], **QUICK)
        face = gr.on([self.whole.select, self.photo.select], self._face, self.visit, self.shown, **QUICK)
        use = self.use.click(self._load, [self.visit, self.name], fresh, **LONG)
        offer = self.offer.click(partial(self._load, name=self.offered), self.visit, fresh, **LONG)
        folder = self.folder.upload(self._upload, [self.visit, self.folder], fresh, **LONG)
        for event in (chosen.success, example.success, self.offer.click, self.use.click):
            event(None, js=TO_RESULT, **HIDDEN)
        for loading in (use, offer):
            loading.failure(self._left, self.visit, [self.leave, self.status], **DIRECT)
        runs = [each.success(**tuned) for each in (chosen, example, face, use, offer, folder)]
        for name, button in self.sharpen.items():
            runs.append(button.click(**{**tuned, "fn": partial(self._tune, preset=name)}))
        self.photo.clear(self._clear, self.visit, fresh, **DIRECT)
        self.stop.click(lambda visit: visit.end() and None, self.visit, None, **DIRECT)
        self.leave.click(self._left, self.visit, [self.leave, self.status], cancels=[use, offer], **DIRECT)
        self.name.change(self._describe, self.name, self.about, **DIRECT)
        self.notice.click(lambda: gr.update(selected="drawn"), None, self.views, **DIRECT)
        editing: dict[str, Any] = {"trigger_mode": "always_last", **QUICK}
        outputs = [self.visit, self.status, *self.pictures]
        gr.on([each.input for each in self.sliders], self._edit, [self.visit, *self.sliders], outputs, **editing)
        for k, chip in enumerate([*self.chips, self.reset]):
            chip.click(partial(self._chip, k=k), self.visit, [*outputs, *self.sliders], **editing)
        for kind, button in self.save.items():
            words = json.dumps(status(f"{LABELS[kind]}: being written …", busy=True))
            writing = button.click(None, None, self.status, js=f"() => {words}", **HIDDEN)
            written = [self.visit, self.file, self.status]
            saved = writing.then(partial(self._save, kind=kind), self.visit, written, **QUICK)
            saved.success(None, js=FETCH, **HIDDEN)
            saved.failure(lambda: status("Nothing was saved."), None, self.status, **DIRECT)
        delete.click(self._forget, self.visit, fresh, cancels=runs, **DIRECT)

    def _open(self, key: str) -> dict[Any, Any]:
        """A new page: the last result of this browser, or the first example, edited."""
        old = self.visits.get(key or "")
        if old is not None and old.out is not None:
            with contextlib.suppress(ValueError, StyleGANInversionError):  # it was given up, or its model was
                return {**self._whole(old.apart(), "Your last result is back."), self.key: key}
        visit = Visit()
        with sentences():
            self.studio.example(visit, EXAMPLES[0])
        words = "An example. Drag the line in the picture, move a slider, or drop a photo of your own."
        return {**self._whole(visit, f"Your last result has expired. {words}" if key else words), self.key: ""}

    def _whole(self, visit: Visit, words: str) -> dict[Any, Any]:
        news = {**self.show(visit, words), **self.modelled(self.studio.model(visit), visit)}
        self.visits[visit.key] = visit
        return news

    def _new(self, visit: Visit) -> dict[Any, Any]:
        """At once, before anything is computed: the old result is marked as such, and its run ends."""
        visit.begin()
        return {self.visit: visit, self.status: status("Finding the face …", stale=True, busy=True)}

    def _take(self, visit: Visit, photo: Any) -> dict[Any, Any]:
        """A new photo; what is wrong with it stays to be read where the result would be."""
        if not photo:
            return {self.visit: visit}
        visit.strengths = {}
        return self._invert(visit, photo)

    def _invert(self, visit: Visit, photo: Any = None) -> dict[Any, Any]:
        """The quick inversion of the chosen face, or of a new photo's; what is wrong is said where it would be."""
        turn = visit.begin()
        try:
            with sentences():
                if photo:
                    visit.photo, visit.faces = None, []
                    self.studio.take(visit, photo, turn)
                model = self.studio.model(visit)
                out = self.studio.invert(visit, self.studio.crop(visit), model.quick) if model.quick else None
                if turn == visit.turn:
                    visit.out = out
                    self.visits[visit.key] = visit
                    news = self.show(visit, "Ready to edit. A sharper version is on its way …")
                    return {**news, self.key: visit.key}
        except gr.Error as e:
            if turn == visit.turn:
                visit.out, visit.tuned = None, turn
                news = {part: gr.update(interactive=False) for part in self.tools}
                news |= {self.stop: gr.update(visible=False), self.hint: ""}
                return {**news, self.visit: visit, self.status: status(str(e.message), stale=True)}
        return {self.visit: visit}  # a newer photo, face or model has begun

    def _example(self, visit: Visit, event: gr.SelectData) -> dict[Any, Any]:
        with sentences():
            if not self.studio.example(visit, EXAMPLES[event.index]):
                return {self.visit: visit}
            return {**self.show(visit, "An example, edited. A sharper version is on its way …"), self.photo: None}

    def _face(self, visit: Visit, event: gr.SelectData) -> dict[Any, Any]:
        """A click in the photo chooses the face there."""
        if visit.photo is None or visit.out is None:
            return {self.visit: visit}
        is_whole = getattr(event.target, "_id", None) == self.whole._id  # shown smaller than the photo is
        scale = max(max(visit.photo.image.size) / SHOWN, 1.0) if is_whole else 1.0
        found = self.studio.face_at(visit, event.index[0] * scale, event.index[1] * scale)
        if found is None or found == visit.face:
            return {self.visit: visit}
        visit.face, visit.strengths = found, {}
        return self._invert(visit)

    def _tune(self, visit: Visit, preset: str = "") -> Iterator[dict[Any, Any]]:
        """The better method, behind the page: previews, then its result in the place of the quick one."""
        if visit.photo is None or (visit.tuned == visit.turn and not preset):
            yield {self.visit: visit}  # Gradio empties the outputs of a generator that gives nothing
            return
        turn, old, words = visit.turn, visit.out, "Stopped before it began."
        visit.tuned = turn
        preset = preset or next(iter(PRESETS))
        try:
            with (
                sentences(),
                contextlib.closing(self.studio.tune(visit, self.studio.crop(visit), turn, preset=preset)) as reports,
            ):
                for report in reports:
                    if report.output is None:
                        old, share = visit.out, report.step / max(report.total, 1)
                        line = status(report.words, share=share, preview=report.preview)
                        yield {self.status: line, self.stop: gr.update(visible=True)}
                    elif report.output is old:
                        words = f"The earlier result stays: it is nearer to the photo. {MOVE}"
                    else:
                        words = f"Sharper version ready ({report.output.reports[0]['seconds']:.0f} s). {MOVE}"
                if turn == visit.turn:
                    yield self.show(visit, words) | {
                        button: f"{name.capitalize()} (about {seconds:.0f} s)"
                        for name, button in self.sharpen.items()
                        if (seconds := self.studio.seconds(visit, name))
                    }
        except gr.Error as e:
            if turn == visit.turn:
                yield {
                    self.status: status(str(e.message), stale=visit.out is None),
                    self.stop: gr.update(visible=False),
                }

    def _edit(self, visit: Visit, *values: float) -> dict[Any, Any]:
        if visit.out is None:
            return {self.status: status("Choose a photo or an example first.", stale=True)}
        names = self._names(self.studio.model(visit))
        visit.strengths = {name: value for name, value in zip(names, values) if name and value}
        with sentences():
            return {self.visit: visit, **self._pictures(visit)}

    def _chip(self, visit: Visit, k: int) -> dict[Any, Any]:
        """Go to one end of a direction; the last chip goes back to the unedited face."""
        model = self.studio.model(visit)
        names = self._names(model)
        values = [visit.strengths.get(name or "", 0.0) if k < 2 * MAIN else 0.0 for name in names]
        if k < 2 * MAIN:
            name = names[k // 2] or ""
            reach = min(CHIP * range_of(model, name)[1], model.directions[name].photo_limit or MAX_STRENGTH)
            values[k // 2] = round(-reach if k % 2 else reach, 2)
        return {**self._edit(visit, *values), **dict(zip(self.sliders, values))}

    def _pictures(self, visit: Visit) -> dict[Any, Any]:
        """What the sliders change, as the page shows it."""
        out = self.studio.edit(visit, visit.out, visit.strengths)
        crop = out.crops[0]
        far = self.studio.too_far(visit)
        face, whole = around(crop, MARGIN, SHOWN), around(crop, 1e4, SHOWN)
        return {
            self.result: self._pair(visit, out, face.photo, self.studio.pasted(out, face), "face"),
            self.whole: self.picture(
                visit, self._outlined(visit, self.studio.pasted(out, whole)), "photo", kind_of(out)
            ),
            self.drawn: self._pair(visit, out, large(crop.image), large(out.images[0]), "drawn"),
            self.notice: gr.update(value=far, visible=bool(far)),
        }

    def show(self, visit: Visit, words: str) -> dict[Any, Any]:
        """Everything of a visit, on a page where nothing is stale."""
        ready, names = visit.out is not None, self._names(self.studio.model(visit))
        several = f"{len(visit.faces)} faces: click one in the photo." if len(visit.faces) > 1 else ""
        news: dict[Any, Any] = {part: gr.update(interactive=ready) for part in self.tools}
        news |= {part: visit.strengths.get(name or "", 0) for part, name in zip(self.sliders, names)}
        news |= {self.visit: visit, self.stop: gr.update(visible=False), self.hint: several}
        news |= {self.status: status(f"{several} {words}".strip(), stale=not ready)}
        return {**news, **self._pictures(visit)} if ready else news

    def adopt(self, visit: Visit, out: InversionOutput, words: str) -> dict[Any, Any]:
        """Go on with a result of another tab."""
        visit.begin()
        visit.out, visit.tuned = out, visit.turn
        return {**self.show(visit, words), self.tabs: gr.update(selected="edit")}

    def _outlined(self, visit: Visit, photo: Image.Image) -> Image.Image:
        """The photo with a frame around the other faces, if there are several."""
        if len(visit.faces) < 2 or visit.photo is None:
            return photo
        draw, scale = ImageDraw.Draw(photo), photo.width / visit.photo.image.width
        for k, face in enumerate(visit.faces):
            box = tuple(v * scale for v in face.box)
            draw.rounded_rectangle(box, 8, outline="#14b8a6" if k == visit.face else "#ffffff", width=3)
        return photo

    def _pair(self, visit: Visit, out: InversionOutput, before: Image.Image, after: Image.Image, name: str) -> Any:
        mark = "generated" if kind_of(out) == "generated" else "photo"
        return self.picture(visit, before, f"{name}-before", mark), self.picture(visit, after, name, kind_of(out))

    def picture(self, visit: Visit, image: Image.Image, name: str, kind: Any) -> str:
        """A file for the page."""
        return visit.publish(encode(image, kind), f"{name}.jpg")

    def _names(self, model: Model) -> list[str | None]:
        """The direction of each slider."""
        own = model.groups.get(OWN, [])
        found = [name for title, group in model.groups.items() if title != OWN for name in group]
        spare = [*own[MAIN:], *found][:MORE]
        return [*own[:MAIN], *[None] * (MAIN - len(own)), *spare, *[None] * (MORE - len(spare))]

    def modelled(self, model: Model, visit: Visit) -> dict[Any, Any]:
        """Sliders and chips of a model."""
        offered = gr.update(visible=self.offered not in ("", model.name))
        news: dict[Any, Any] = {self.note: model.note, self.leave: gr.update(visible=False), self.offer: offered}
        own = model.groups.get(OWN, [])
        for k, (part, name) in enumerate(zip(self.sliders, self._names(model))):
            label, *ends = words_of(name or "")
            reach = range_of(model, name)[1] if name else 1.0
            news[part] = gr.update(
                visible=name is not None,
                label=label,
                minimum=-reach,
                maximum=reach,
                value=visit.strengths.get(name or "", 0),
                step=reach / 100,
                info=(model.directions[name].description or None) if name in own and not any(ends) else None,
            )
            if k < MAIN:
                for chip, end in zip(self.chips[2 * k : 2 * k + 2], ends):
                    news[chip] = gr.update(value=end or label, visible=bool(end))
        return news

    def _describe(self, name: str) -> str:
        """One sentence about a model that can be chosen, with its size and licence."""
        return next((sentence(each) for each in self.studio.models.known() if each.name == name), "")

    def _load(self, visit: Visit, name: str) -> Iterator[dict[Any, Any]]:
        """Another model: the photo is inverted anew with it."""
        visit.end()
        with sentences():
            for report in self.studio.models.load(str(name or "").strip()):
                if report.model is None:
                    yield {self.status: status(report.text, busy=True), self.leave: gr.update(visible=True)}
                else:
                    yield self._changed(visit, report.model)

    def _left(self, visit: Visit) -> dict[Any, Any]:
        """No other model was loaded."""
        words = f"The model is still {self.studio.model(visit).name}."
        return {self.leave: gr.update(visible=False), self.status: status(words, stale=visit.out is None)}

    def _changed(self, visit: Visit, model: Model) -> dict[Any, Any]:
        visit.begin()
        visit.model, visit.strengths = model.name, {}
        news = self._invert(visit) if visit.photo is not None else self.show(visit, "Choose a photo or an example.")
        return {**news, **self.modelled(model, visit)}

    def _upload(self, visit: Visit, path: str | None) -> dict[Any, Any]:
        with sentences():
            name = self.studio.models.add_zip(path)
            return self._changed(visit, self.studio.models.get(name))

    def _save(self, visit: Visit, kind: Any) -> tuple[Any, Any, Any]:
        with sentences():
            out = self.studio.edit(visit, visit.out, visit.strengths)
            return visit, self.studio.file(visit, out, kind), status(f"{LABELS[kind]}: written.")

    def _clear(self, visit: Visit) -> dict[Any, Any]:
        """The photo is taken away: what was made of it is shown as such, and cannot be used."""
        visit.begin()
        visit.photo, visit.faces = None, []
        return self.show(visit, "The photo is gone. Drop another one, or take an example.")

    def _forget(self, visit: Visit) -> dict[Any, Any]:
        self.visits.pop(visit.key, None)
        words = f"Deleted: your photo, your results and {visit.forget()} files. Drop a photo, or take an example."
        gone = {self.result: None, self.whole: None, self.drawn: None, self.photo: None, self.key: ""}
        return {**self.show(Visit(), words), **gone}


def _raw(component: Any, read: Callable[[Any], Any]) -> Any:
    """A component whose handler gets what `read` makes of the request."""
    component.preprocess = read
    return component


def _slider() -> Any:
    return gr.Slider(-1, 1, 0, visible=False, buttons=[], elem_classes="slider")
