"""The tab that puts one photo through all methods: their errors, and the same edit on each."""

import secrets
import time
from collections.abc import Iterator
from typing import Any

from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.webapp.actions import Actions, methods_of
from stylegan_inversion.webapp.guard import owner_of
from stylegan_inversion.webapp.messages import gr
from stylegan_inversion.webapp.models import Model
from stylegan_inversion.webapp.photo_column import HIDDEN, SLIDERS, PhotoColumn
from stylegan_inversion.webapp.shown import enlarge
from stylegan_inversion.webapp.sliders import STRENGTH_RANGE
from stylegan_inversion.webapp.words import note_html, pretty, status_html, table

ABOUT = """One photo through every method: how near does each come, and how well does it survive the same edit? e4e
is made to give up some likeness for edits that work; pSp to come nearer to the photo; PTI tunes the generator to get
both, for time. See what comes out here."""


class CompareTab:
    """Reconstructions in one row, edits in the other, figures below."""

    def __init__(self, actions: Actions, model: Model) -> None:
        """Lay it out, within a tab."""
        self.actions = actions
        self.tokens = gr.State({})
        self.order = gr.State("")  # of what was asked for last, to call it off
        gr.Markdown(ABOUT)
        with gr.Row():
            self.compare = gr.Button("Compare", variant="primary", min_width=180, scale=0)
            self.cancel = gr.Button("Cancel", variant="stop", visible=False, min_width=120, scale=0)
            self.with_pti = gr.Checkbox(True, label="With PTI, which takes a while", min_width=220)
        self.status = gr.HTML(note_html(""))
        with gr.Column(visible=False) as self.results:
            self.faces, self.edits = {}, {}
            self.columns: dict[str, list[Any]] = {method: [] for method in METHODS}  # keep the place of what is to come
            with gr.Row(elem_classes="compared"):
                with gr.Column(min_width=150, scale=1):
                    self.photo = _picture("Photo")
                for method in METHODS:
                    with gr.Column(min_width=150, scale=1) as column:
                        self.faces[method] = _picture(METHODS[method].label)
                    self.columns[method].append(column)
            with gr.Row(elem_classes="compared"):
                with gr.Column(min_width=150, scale=1):
                    self.direction = gr.Dropdown(**_directions(model), label="The same edit on each")
                    self.strength = gr.Slider(**_range(model, _first(model)), label="Strength")
                for method in METHODS:
                    with gr.Column(min_width=150, scale=1) as column:
                        self.edits[method] = _picture(f"{METHODS[method].label}, edited")
                    self.columns[method].append(column)
            self.figures = gr.Markdown("", elem_classes="figures")
        self.pictures = [self.photo, *self.faces.values(), *self.edits.values()]

    def take(self, model: Model) -> dict[Any, Any]:
        """Updates for another model."""
        return {
            self.results: gr.update(visible=False),
            self.tokens: {},
            self.direction: gr.update(**_directions(model)),
            self.strength: gr.update(**_range(model, _first(model))),
            self.status: note_html(""),
            **self._ready(),
        }

    @property
    def takes(self) -> list[Any]:
        """What `take` updates."""
        return [self.results, self.tokens, self.direction, self.strength, self.status, self.compare, self.cancel]

    def connect(self, column: PhotoColumn, model: Any) -> None:
        """What the button and the slider do.

        Args:
            column: Has the photo.
            model: The component that names the model.
        """
        actions = self.actions

        def waiting(request: gr.Request, tokens: dict[str, str]) -> dict[Any, Any]:
            for token in tokens.values():
                actions.sessions.drop(token, owner=owner_of(request))
            return {
                self.status: note_html("Aligning the face …"),
                self.compare: gr.update(interactive=False),
                self.cancel: gr.update(visible=True, interactive=True),
                self.order: secrets.token_urlsafe(32),
                self.tokens: {},
                self.results: gr.update(visible=False),
            }

        def compare(
            request: gr.Request,
            order: str,
            photo: bytes | None,
            face: int,
            align: bool,
            name: str,
            with_pti: bool,
            direction: str,
            strength: float,
        ) -> Iterator[dict[Any, Any]]:
            owner, since, chosen = owner_of(request), actions.sessions.now(), actions.model(name)
            crop = actions.crop(photo, face, align, name)
            tokens: dict[str, str] = {}
            rows: list[dict[str, Any]] = []
            methods = [m for m in methods_of(chosen) if with_pti or chosen.pipelines[m] is not chosen.pti]
            news: dict[Any, Any] = {picture: gr.update(value=None, visible=False) for picture in self.pictures}
            news |= {each: gr.update(visible=m in methods) for m, both in self.columns.items() for each in both}
            news |= {self.results: gr.update(visible=True), self.figures: ""}
            with actions.until_forgotten(owner, since):
                news[self.photo] = _appear(actions.files.original(enlarge(crop.image), owner=owner, since=since))
                for method in methods:
                    if chosen.pipelines[method] is chosen.pti:
                        yield news  # the encoders' together: of two updates in a frame that show more, one is lost
                        news = {}
                    began = time.perf_counter()
                    for report in actions.run(crop, method, owner=owner, model=name, order=order, since=since):
                        if report.output is None:
                            yield {self.status: note_html(f"{METHODS[method].label} …") + status_html(report)}
                            continue
                        tokens[method] = report.token
                        rows.append(self._row(method, report.output, time.perf_counter() - began))
                        news[self.faces[method]] = _appear(self._shown(report.output, owner, since))
                        news[self.edits[method]] = _appear(self._edit(report.token, direction, strength, owner, since))
                        news |= {self.figures: table(rows), self.tokens: dict(tokens)}
                    if method not in tokens:
                        break
                else:
                    done = note_html("Done. Move the slider to edit all of them.")
                    yield {**news, **self._ready(), self.status: done}
                    return
            yield failed()  # called off, or forgotten

        def edit(request: gr.Request, tokens: dict[str, str], direction: str, strength: float) -> dict[Any, Any]:
            owner, since = owner_of(request), actions.sessions.now()
            return {self.edits[m]: self._edit(token, direction, strength, owner, since) for m, token in tokens.items()}

        def choose(name: str, direction: str) -> dict[str, Any]:
            return gr.update(**_range(actions.model(name), direction))

        def failed() -> dict[Any, Any]:
            return {**self._ready(), self.status: note_html("")}

        def call_off(order: str) -> Any:
            actions.sessions.call_off(order)
            return gr.update(interactive=False)  # until `compare` has ended, a moment later

        outputs = [self.status, self.compare, self.cancel, self.results, self.figures, self.tokens, self.order]
        outputs += [*self.pictures, *(each for columns in self.columns.values() for each in columns)]
        direct: dict[str, Any] = {"queue": False, "show_progress": "hidden", **HIDDEN}
        asked = [
            self.order,
            column.photo,
            column.face,
            column.align,
            model,
            self.with_pti,
            self.direction,
            self.strength,
        ]
        running = self.compare.click(waiting, self.tokens, outputs, **direct).then(
            compare,
            asked,
            outputs,
            concurrency_id="invert",
            concurrency_limit=12,
            trigger_mode="multiple",  # a click right after the end would be lost: the page hears of that a little later
            show_progress="hidden",
            **HIDDEN,
        )
        running.failure(failed, None, outputs, **direct)
        self.cancel.click(call_off, self.order, self.cancel, **direct)
        self.running = running
        changed = self.direction.input(choose, [model, self.direction], self.strength, **direct)
        editing: dict[str, Any] = {"show_progress": "hidden", **SLIDERS, **HIDDEN}
        what = [self.tokens, self.direction, self.strength]
        changed.then(edit, what, list(self.edits.values()), **editing)
        self.strength.input(edit, what, list(self.edits.values()), trigger_mode="always_last", **editing)

    def _ready(self) -> dict[Any, Any]:
        return {self.compare: gr.update(interactive=True), self.cancel: gr.update(visible=False)}

    def _shown(self, out: InversionOutput, owner: str | None, since: int) -> str:
        return self.actions.files.picture(enlarge(out.images[0]), owner=owner, name="face", shown=True, since=since)

    def _edit(self, token: str, direction: str | None, strength: float, owner: str | None, since: int) -> str:
        strengths = {direction: strength} if direction else {}
        return self._shown(self.actions.edited(token, strengths, owner=owner), owner, since)

    def _row(self, method: str, out: InversionOutput, seconds: float) -> dict[str, Any]:
        similarity = self.actions.similarity(out)
        return {
            "Method": METHODS[method].label,
            "Mean squared error": f"{out.reports[0]['l2']:.4f}",
            "Identity similarity": f"{similarity:.2f}",
            "Seconds": f"{seconds:.1f}",
        }


def _picture(label: str) -> Any:
    # not visible before it has a value: Gradio sets what a component held when it appeared once more, a frame later; a
    # value that came in between would be lost
    return gr.Image(label=label, interactive=False, height=220, min_width=150, buttons=[], format="png", visible=False)


def _appear(path: str) -> dict[str, Any]:
    return gr.update(value=path, visible=True)


def _first(model: Model) -> str | None:
    return next(iter(model.directions), None)


def _directions(model: Model) -> dict[str, Any]:
    return {"choices": [(pretty(name), name) for name in model.directions], "value": _first(model)}


def _range(model: Model, name: str | None) -> dict[str, Any]:
    known = model.directions[name].strength_range if name in model.directions else None
    low, high = known or STRENGTH_RANGE
    return {"minimum": min(low, 0.0), "maximum": max(high, 0.0), "value": round(high * 0.75, 2), "step": 0.05}
