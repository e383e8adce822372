"""The first tab: a photo in, the face found, the sliders, the photo out."""

import contextlib
import inspect
import json
import weakref
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from stylegan_inversion.editing.directions import MAX_STRENGTH
from stylegan_inversion.errors import StyleGANInversionError
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PRESETS
from stylegan_inversion.pipelines.receipts import kind_of
from stylegan_inversion.preprocessing.align import around
from stylegan_inversion.webapp.marking import encode
from stylegan_inversion.webapp.models import Model, sentence, words_of
from stylegan_inversion.webapp.photos import EXAMPLES, samples
from stylegan_inversion.webapp.run import Report, status, told
from stylegan_inversion.webapp.studio import SHOWN, Studio, Superseded, Visit, large

TIME_TO_LIVE = 1800  # seconds that a result and its files are kept after their last use
MAIN, MORE = 5, 32  # sliders of the model's own directions, and of those that its weights give
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
SHARPER = """**Sharper**: the model is tuned until it draws this very photo
(<abbr title="Pivotal Tuning Inversion">PTI</abbr>)."""
MORE_WORDS = """More of the model's directions, and changes that nobody named, found in the model's own weights (by
<abbr title="Härkönen et al. 2020: the main ways in which its pictures differ">GANSpace</abbr> and
<abbr title="Shen and Zhou 2021: what its first layers react to most">SeFa</abbr>)."""

RESULT: dict[str, Any] = {"interactive": False, "buttons": ["fullscreen"], "elem_classes": "result"}
CHOICE: dict[str, Any] = {"interactive": False, "buttons": [], "allow_preview": False, "height": "auto"}
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
DIRECT: dict[str, Any] = {"queue": False, **HIDDEN}
QUICK: dict[str, Any] = {"concurrency_id": "quick", "concurrency_limit": 4, **HIDDEN}
TO_RESULT = "() => { if (innerWidth <= 700) document.querySelector('#sticky').scrollIntoView({behavior: 'smooth'}); }"
FETCH = "() => setTimeout(() => document.querySelector('.fetch').click(), 150)"


def lane(name: str) -> dict[str, Any]:
    """Options of a handler that takes long: of each kind so many go on or wait at a time, beside those of others."""
    return {"concurrency_id": name, "concurrency_limit": 12, **HIDDEN}


def visit_state() -> Any:
    """The `gr.State` that keeps a `Visit`; its run ends with it."""
    return gr.State(Visit(), time_to_live=TIME_TO_LIVE, delete_callback=lambda visit: visit.end())


def upload(label: str, **looks: Any) -> Any:
    """A place for a picture, which `photos.py` opens as it was sent, with its metadata."""
    picture: Any = gr.Image(label=label, type="filepath", **looks)
    picture.preprocess = lambda payload: payload and payload.model_dump()
    return picture


def handler(tab: Any, work: Callable[..., Any]) -> Callable[..., Iterator[dict[Any, Any]]]:
    """Show how a work on a visit goes on in a tab, and in the end its page with the words that the work gives.

    A work gives words, at once or as the last of its reports, or what to show; without any, nothing changes. A tab has
    a line for its `status`, a button to `stop`, and tells what to show in the end (`page`) or of an error (`failed`).
    """

    @wraps(work)  # with its arguments, from which Gradio tells an event's data
    def handle(visit: Visit, *values: Any) -> Iterator[dict[Any, Any]]:
        try:
            done = work(visit, *values)
            for said in done if inspect.isgenerator(done) else [done]:
                if isinstance(said, Report):
                    yield {tab.status: status(**vars(said), busy=True), tab.stop: gr.update(visible=True)}
                elif isinstance(said, dict):
                    yield said
                else:  # Gradio empties the outputs of a generator that gives nothing
                    yield tab.page(visit, said) if said else {tab.visit: visit}
        except Superseded:  # a deletion has put another visit there
            yield {tab.status: gr.skip()}
        except Exception as e:
            yield tab.failed(visit, told(e))

    return handle


class Editor:
    """The components, and what happens when one is used. A handler gives a dict: component -> its news."""

    tabs: Any
    file: Any  # the hidden button that hands a file over
    delete: Any

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.of_model: dict[Any, Callable[[Model], Any]] = {}  # more components, and how they are with a model
        self.visits: weakref.WeakValueDictionary[str, Visit] = weakref.WeakValueDictionary()  # while a state holds it
        self.visit, self.key = visit_state(), gr.BrowserState("", storage_key="stylegan-inversion")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=250):
                self._lay_out_photos()
            with gr.Column(scale=11, min_width=320, elem_id="sticky"):
                self._lay_out_pictures()
            with gr.Column(scale=7, min_width=280, elem_classes="result"):
                self._lay_out_tools()
        self.pictures = [self.result, self.whole, self.drawn, self.notice]
        self.shown = [self.visit, self.key, self.photo, self.hint, self.status, self.stop, self.note, self.offer]
        self.shown += [*self.pictures, *self.chips, *self.tools]
        self.of_model[self.examples] = lambda model: gr.update(visible=model.has_faces)
        self.of_model[self.close] = lambda model: gr.update(label="Face" if model.has_faces else "Close-up")

    def _lay_out_photos(self) -> None:
        models, found = self.studio.models, self.studio.models.offer()
        self.photo = upload("Your photo", height=230, sources=["upload", "webcam", "clipboard"], elem_id="photos")
        self.hint, self.mark = gr.Markdown(elem_classes="quiet"), gr.HTML(container=False, elem_id="mark")
        shown = [(str(samples() / each.name), each.caption) for each in EXAMPLES]
        looks: dict[str, Any] = {"elem_id": "examples", "columns": 4, "object_fit": "cover", **CHOICE}
        self.examples = gr.Gallery(shown, label="Or one of these", visible=models.first.has_faces, **looks)
        self.offered = found.name if found else ""
        words = f"Use a full-size model: {sentence(found)}" if found else ""
        self.offer = gr.Button(words, visible=bool(words), size="sm", elem_id="offer")
        with gr.Accordion("Model", open=False):
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

    def _lay_out_pictures(self) -> None:
        pair: dict[str, Any] = {"max_height": HEIGHT, "type": "filepath", **RESULT}
        with gr.Tabs(overflow_behavior="wrap") as self.views:
            with gr.Tab("Face" if self.studio.models.first.has_faces else "Close-up", id="face") as self.close:
                self.result = gr.ImageSlider(label="Before | after", elem_id="result", **pair)
            with gr.Tab("Whole photo", id="whole"):
                self.whole = gr.Image(label="The whole photo", height=HEIGHT, elem_id="whole", **RESULT)
            with gr.Tab("What the model draws", id="drawn"):
                self.drawn = gr.ImageSlider(label="Photo | the model's drawing", **pair)
        self.notice = gr.Button(visible=False, size="sm")
        self.status = gr.HTML(status("Opening …", busy=True))
        self.stop = gr.Button("Stop, keep what there is", size="sm", visible=False)

    def _lay_out_tools(self) -> None:
        small: dict[str, Any] = {"size": "sm", "interactive": False}
        slider = partial(gr.Slider, -1, 1, 0, visible=False, buttons=[], elem_classes="slider")
        with gr.Row(elem_classes="chips"):
            self.chips = [gr.Button(size="sm", visible=False) for _ in range(2 * MAIN)]
            self.reset = gr.Button("Reset", **small)
        self.sliders = [slider() for _ in range(MAIN)]
        with gr.Row(elem_classes="chips saves"):
            self.save = {kind: gr.Button(self._label(self.studio.models.first, kind), **small) for kind in LABELS}
        gr.Markdown(SHARPER, elem_classes="quiet")
        with gr.Row(elem_classes="chips"):
            self.sharpen = {name: gr.Button(name.capitalize(), **small) for name in PRESETS}
        with gr.Accordion("More changes", open=False):
            gr.Markdown(MORE_WORDS, elem_classes="quiet")
            self.sliders += [slider() for _ in range(MORE)]
        self.save["jpeg"].variant = "primary"
        self.tools = [self.reset, *self.save.values(), *self.sharpen.values(), *self.sliders]

    def connect(self, demo: Any) -> None:
        """What happens when something is used."""
        visit, show = self.visit, partial(handler, self)
        self.shown += self.of_model
        demo.load(show(lambda visit, key: self._open(key)), [visit, self.key], self.shown, **QUICK)
        new = self.photo.input(self._new, visit, [visit, self.status], **DIRECT)
        chosen = new.then(show(self._take), [visit, self.photo], self.shown, **QUICK)
        example = self.examples.select(show(self._example), visit, self.shown, **QUICK)
        face = gr.on([self.whole.select, self.photo.select], show(self._face), visit, self.shown, **QUICK)
        use = self.use.click(show(self._load), [visit, self.name], self.shown, **lane("load"))
        offer = self.offer.click(show(partial(self._load, name=self.offered)), visit, self.shown, **lane("load"))
        for event in (chosen.success, example.success, self.offer.click, self.use.click):
            event(None, js=TO_RESULT, **HIDDEN)
        tune, firsts = lane("tune"), (chosen, example, face, use, offer)
        runs = [each.success(show(self._tune), visit, self.shown, **tune) for each in firsts]
        for name, button in self.sharpen.items():
            runs.append(button.click(show(partial(self._tune, preset=name)), visit, self.shown, **tune))
        self.stop.click(show(self._stop), visit, self.shown, cancels=[use, offer], **lane("stop"))
        self.photo.clear(show(self._clear), visit, self.shown, **lane("stop"))
        self.delete.click(self._forget, visit, self.shown, cancels=[*runs, use, offer], **DIRECT)
        self.name.change(self._describe, self.name, self.about, **DIRECT)
        self.notice.click(lambda: gr.update(selected="drawn"), None, self.views, **DIRECT)
        editing: dict[str, Any] = {"trigger_mode": "always_last", **QUICK}
        outputs = [visit, self.status, *self.pictures]
        gr.on([each.input for each in self.sliders], self._edit, [visit, *self.sliders], outputs, **editing)
        for k, chip in enumerate([*self.chips, self.reset]):
            chip.click(partial(self._chip, k=k), visit, [*outputs, *self.sliders], **editing)
        for kind, button in self.save.items():
            words = json.dumps(status(f"{LABELS[kind]}: being written …", busy=True))
            writing = button.click(None, None, self.status, js=f"() => {words}", **HIDDEN)
            saved = writing.then(partial(self._save, kind=kind), visit, [visit, self.file, self.status], **QUICK)
            saved.success(None, js=FETCH, **HIDDEN)
            saved.failure(lambda: status("Nothing was saved."), None, self.status, **DIRECT)

    def failed(self, visit: Visit, words: str) -> dict[Any, Any]:
        """What is wrong stays to be read where the result would be."""
        visit.tuned, ready = visit.turn, visit.out is not None
        news: dict[Any, Any] = {} if ready else {part: gr.update(interactive=False) for part in self.tools}
        news |= {self.visit: visit, self.stop: gr.update(visible=False), self.hint: ""}
        return {**news, self.status: status(words, stale=not ready)}

    # Works

    def _new(self, visit: Visit) -> dict[Any, Any]:
        """At once, before anything is computed: the old result is marked as such, and its run ends."""
        visit.begin()
        return {self.visit: visit, self.status: status("Reading the photo …", stale=True, busy=True)}

    def _take(self, visit: Visit, photo: Any) -> str:
        """A new photo."""
        visit.strengths = {}
        return self._invert(visit, photo) if photo else ""

    def _invert(self, visit: Visit, photo: Any = None) -> str:
        """The quick inversion of the chosen face, or of a new photo's."""
        with visit.during(visit.begin()) as turn:
            if photo:
                visit.photo, visit.faces = None, []
                self.studio.take(visit, photo, turn)
            model = self.studio.model(visit)
            out = self.studio.invert(visit, self.studio.crop(visit), model.quick) if model.quick else None
        visit.out = out
        return "Ready to edit. A sharper version is on its way …" if out else "The first version is on its way …"

    def _example(self, visit: Visit, event: gr.SelectData) -> str:
        done = self.studio.example(visit, EXAMPLES[event.index])
        return "An example, edited. A sharper version is on its way …" if done else ""

    def _face(self, visit: Visit, event: gr.SelectData) -> str:
        """A click in the photo chooses the face there."""
        if visit.photo is None or visit.out is None:
            return ""
        is_whole = getattr(event.target, "_id", None) == self.whole._id  # shown smaller than the photo is
        scale = max(max(visit.photo.image.size) / SHOWN, 1.0) if is_whole else 1.0
        found = self.studio.face_at(visit, event.index[0] * scale, event.index[1] * scale)
        if found is None or found == visit.face:
            return ""
        visit.face, visit.strengths = found, {}
        return self._invert(visit)

    def _tune(self, visit: Visit, preset: str = "") -> Iterator[Report | str]:
        """The better method, behind the page: its result in the place of the quick one."""
        if visit.photo is None or (visit.tuned == visit.turn and not preset):
            yield "No photo shows this picture, so that nothing is tuned. Drop one." if preset else ""
            return
        own = visit.out is not None and visit.out.generator is not self.studio.model(visit).tuner.generator
        if own and not preset:  # it draws by more than a code, and the first preset would come no nearer
            yield f"Ready to edit. {MOVE}"
            return
        visit.end()
        turn = visit.tuned = visit.turn
        with visit.during(turn):
            old, crop = visit.out, self.studio.crop(visit)
            out = yield from self.studio.tune(visit, crop, preset=preset or next(iter(PRESETS)))
        if out is None:
            yield "Stopped before it began."
        elif out is old:
            yield f"The earlier result stays: it is nearer to the photo. {MOVE}"
        else:
            yield f"Sharper version ready ({out.reports[0]['seconds']:.0f} s). {MOVE}"

    def _load(self, visit: Visit, name: str) -> Iterator[Report | str]:
        """Another model: the photo is inverted anew with it."""
        visit.end()
        model = yield from self.studio.models.load(str(name or "").strip())
        photo = None if visit.example and not model.has_faces else visit.photo
        turn = visit.begin()  # nothing of the other model is edited with this one
        visit.model, visit.strengths, visit.compared, visit.translated, visit.played = model.name, {}, [], None, {}
        if photo is None:
            yield self._fill(visit)
        else:
            yield "Reading the photo …"  # the page is this model's, whatever comes of it
            with visit.during(turn):
                self.studio.look(visit, photo, turn)
            yield self._invert(visit)

    def _stop(self, visit: Visit) -> str:
        """End the run, whose handler shows what came of it, or the load of a model."""
        return "" if visit.end() else f"The model is still {self.studio.model(visit).name}."

    def _clear(self, visit: Visit) -> str:
        """The photo is taken away: what was made of it is shown as such, and cannot be used."""
        visit.begin()
        visit.photo, visit.faces = None, []
        return "The photo is gone. Drop another one, or take an example."

    # Pages

    def _open(self, key: str) -> dict[Any, Any]:
        """A new page: the last result of this browser, or the first example, edited."""
        old = self.visits.get(key or "")
        if old is not None and old.out is not None:
            with contextlib.suppress(ValueError, StyleGANInversionError):  # it was given up, or its model was
                return self.page(old.apart(), "Your last result is back.")
        words = self._fill(visit := Visit())
        return self.page(visit, f"Your last result has expired. {words}" if key else words)

    def _fill(self, visit: Visit) -> str:
        """Something to see without a photo: an example, edited, or what the model draws."""
        model = self.studio.model(visit)
        if model.has_faces and model.quick:
            self.studio.example(visit, EXAMPLES[0])
            return "An example. Drag the line in the picture, move a slider, or drop a photo of your own."
        with visit.during(visit.begin()) as visit.tuned:
            visit.photo, visit.faces = None, []
            out = self.studio.random_face(visit, 0, 0.5)
        visit.out = out
        hint = "Open the tab Draw: it draws from pictures of its own kind." if model.drawing else "Drop a photo."
        return f"The model drew this at random. Move a slider. {hint}"

    def page(self, visit: Visit, words: str) -> dict[Any, Any]:
        """Everything of a visit, where nothing is stale."""
        model, ready = self.studio.model(visit), visit.out is not None
        several = f"{len(visit.faces)} faces: click one in the photo." if len(visit.faces) > 1 else ""
        is_own = ready and not visit.example
        if is_own:
            self.visits[visit.key] = visit
        news: dict[Any, Any] = {part: gr.update(interactive=ready) for part in self.tools}
        news |= {self.visit: visit, self.key: visit.key if is_own else "", self.stop: gr.update(visible=False)}
        news |= {self.status: status(f"{several} {words}".strip(), stale=not ready), self.hint: several}
        news |= {self.note: model.note, self.offer: gr.update(visible=self.offered not in ("", model.name))}
        for name, button in self.sharpen.items():
            seconds = self.studio.seconds(visit, name)
            label = f"{name.capitalize()} (about {seconds:.0f} s)" if seconds else name.capitalize()
            news[button] = gr.update(value=label, interactive=ready)
        for k, (slider, direction) in enumerate(zip(self.sliders, self._names(model))):
            label, *ends = words_of(direction or "")
            reach = model.range_of(direction)[1] if direction else 1.0
            news[slider] = gr.update(
                visible=direction is not None,
                interactive=ready,
                label=label,
                minimum=-reach,
                maximum=reach,
                value=visit.strengths.get(direction or "", 0),
                step=round(reach / 100, 4),  # a longer number would make its field wide
                info=(model.directions[direction].description or None)
                if direction in model.named and not any(ends)
                else None,
            )
            for chip, end in zip(self.chips[2 * k : 2 * k + 2], ends):
                news[chip] = gr.update(value=end or label, visible=bool(end))
        news |= {part: look(model) for part, look in self.of_model.items()}
        news[self.save["face"]] = gr.update(value=self._label(model, "face"), interactive=ready)
        if visit.example or (ready and visit.photo is None):
            news[self.photo] = None
        return {**news, **self._pictures(visit)} if ready else news

    def adopt(self, visit: Visit, out: InversionOutput, words: str) -> dict[Any, Any]:
        """Go on with a result of another tab."""
        visit.begin()
        visit.out, visit.tuned = out, visit.turn
        # no photo shows it: none is tuned in its place, and no frames are drawn in it
        if visit.photo is not None and out.crops[0].photo is not visit.photo.image:
            visit.photo, visit.faces = None, []
        return {**self.page(visit, words), self.tabs: gr.update(selected="edit")}

    def _forget(self, visit: Visit) -> dict[Any, Any]:
        self.visits.pop(visit.key, None)
        words = f"Deleted: your photo, your results and {visit.forget()} files. Drop a photo, or take an example."
        return {**self.page(Visit(), words), self.result: None, self.whole: None, self.drawn: None, self.photo: None}

    def _edit(self, visit: Visit, *values: float) -> dict[Any, Any]:
        if visit.out is None:
            return {self.status: status("Choose a photo or an example first.", stale=True)}
        names, turn = self._names(self.studio.model(visit)), visit.turn
        visit.strengths = {name: value for name, value in zip(names, values) if name and value}
        pictures = self._pictures(visit)
        return {self.visit: visit, **pictures} if turn == visit.turn else {self.status: gr.skip()}

    def _chip(self, visit: Visit, k: int) -> dict[Any, Any]:
        """Go to one end of a direction; the last chip goes back to the unedited face."""
        model = self.studio.model(visit)
        names = self._names(model)
        values = [visit.strengths.get(name or "", 0.0) if k < 2 * MAIN else 0.0 for name in names]
        if k < 2 * MAIN:
            name = names[k // 2] or ""
            reach = min(CHIP * model.range_of(name)[1], model.directions[name].photo_limit or MAX_STRENGTH)
            values[k // 2] = round(-reach if k % 2 else reach, 2)
        return {**self._edit(visit, *values), **dict(zip(self.sliders, values))}

    def _save(self, visit: Visit, kind: Any) -> tuple[Any, Any, Any]:
        out = self.studio.edit(visit, visit.out, visit.strengths)
        words = f"{self._label(self.studio.model(visit), kind)}: written."
        return visit, self.studio.file(visit, out, kind), status(words)

    def _label(self, model: Model, kind: str) -> str:
        return LABELS[kind] if model.has_faces else LABELS[kind].replace("face", "close-up")

    def _describe(self, name: str) -> str:
        """One sentence about a model that can be chosen, with its size and licence."""
        return next((sentence(each) for each in self.studio.models.known() if each.name == name), "")

    # Pictures

    def _pictures(self, visit: Visit) -> dict[Any, Any]:
        """What the sliders change, as the page shows it."""
        out = self.studio.edit(visit, visit.out, visit.strengths)
        crop, kind, directions = out.crops[0], kind_of(out), self.studio.model(visit).directions
        limits = {name: directions[name].photo_limit or MAX_STRENGTH for name in visit.strengths}
        far = next((limits[name] for name, value in visit.strengths.items() if abs(value) > limits[name]), None)
        words = f"Turns beyond {far or 0:g} bend the nose and the mouth in a photo. See the face the model draws."
        face, whole = around(crop, MARGIN, SHOWN), around(crop, 1e4, SHOWN)
        before: Any = "generated" if kind == "generated" else "photo"
        photo, pasted = self.picture(visit, face.photo, "face-before", before), self.studio.pasted(out, face)
        drawn = self.picture(visit, large(crop.image), "drawn-before", before)
        return {
            self.result: (photo, self.picture(visit, pasted, "face", kind)),
            self.whole: self.picture(visit, self._outlined(visit, self.studio.pasted(out, whole)), "photo", kind),
            self.drawn: (drawn, self.picture(visit, large(out.images[0]), "drawn", kind)),
            self.notice: gr.update(value=words, visible=far is not None),
        }

    def _outlined(self, visit: Visit, photo: Image.Image) -> Image.Image:
        """The photo with a frame around the faces, if there are several."""
        if len(visit.faces) < 2 or visit.photo is None:
            return photo
        draw, scale = ImageDraw.Draw(photo), photo.width / visit.photo.image.width
        for k, face in enumerate(visit.faces):
            box = tuple(v * scale for v in face.box)
            draw.rounded_rectangle(box, 8, outline="#14b8a6" if k == visit.face else "#ffffff", width=3)
        return photo

    def picture(self, visit: Visit, image: Image.Image, name: str, kind: Any) -> str:
        """A file for the page."""
        return visit.publish(encode(image, kind), f"{name}.jpg")

    def _names(self, model: Model) -> list[str | None]:
        """The direction of each slider."""
        own = model.named or [*model.directions]
        found = [name for name in model.directions if name not in own]
        spare = [*own[MAIN:], *found][:MORE]
        return [*own[:MAIN], *[None] * (MAIN - len(own)), *spare, *[None] * (MORE - len(spare))]
