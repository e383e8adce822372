"""The other tabs: the methods side by side, and faces that mix."""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import gradio as gr

from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.webapp.editor import DIRECT, FETCH, HIDDEN, LONG, MARGIN, QUICK, TIME_TO_LIVE, Editor
from stylegan_inversion.webapp.run import status
from stylegan_inversion.webapp.studio import NOTHING, PLACES, Visit, around, kind_of, large, sentences


class CompareTab:
    """The photo of the first tab by each method, side by side."""

    def __init__(self, editor: Editor) -> None:
        self.editor, self.studio = editor, editor.studio
        gr.Markdown("The photo of the first tab, with its edit, by each method the model has.", elem_classes="quiet")
        self.compare = gr.Button("Compare", variant="primary", size="sm", min_width=160)
        self.compared = gr.HTML(status(""))
        self.columns: dict[str, tuple[Any, Any]] = {}
        self.takers: dict[str, Any] = {}
        self.outs = gr.State({}, time_to_live=TIME_TO_LIVE)
        first = self.studio.models.first
        self.places: dict[str, Any] = {}
        with gr.Row():
            for name, method in METHODS.items():
                with gr.Column(min_width=240, visible=name in first.pipelines) as column:
                    shown: dict[str, Any] = {"height": 300, "interactive": False, "buttons": ["fullscreen"]}
                    self.columns[name] = gr.Image(label=method.title, **shown), gr.Markdown(elem_classes="quiet")
                    self.places[name] = column
                    self.takers[name] = gr.Button("Use this one", size="sm", interactive=False)

    def connect(self, delete: Any) -> None:
        """What happens when something is used."""
        parts = [each for pair in self.columns.values() for each in pair]
        outputs = [self.compared, self.outs, *parts, *self.takers.values(), *self.places.values()]
        compared = self.compare.click(self._compare, [self.editor.visit, self.editor.effort], outputs, **LONG)
        delete.click(self._empty, None, outputs, cancels=compared, **DIRECT)
        for name, button in self.takers.items():
            button.click(
                lambda visit, outs, name=name: self._adopt(visit, outs, name),
                [self.editor.visit, self.outs],
                [*self.editor.shown, self.editor.tabs],
                **QUICK,
            )

    def _empty(self) -> dict[Any, Any]:
        news: dict[Any, Any] = {each: gr.update(interactive=False) for each in self.takers.values()}
        for picture, words in self.columns.values():
            news |= {picture: None, words: ""}
        return {**news, self.outs: {}, self.compared: status("")}

    def _adopt(self, visit: Visit | None, outs: dict[Any, Any] | None, name: str) -> dict[Any, Any]:
        with sentences():
            if visit is None or not outs or outs.get("of") != (visit.photo, visit.face, visit.model):
                raise ValueError("This result is of another photo, face or model, or has expired: compare again.")
            return self.editor.adopt(visit, outs[name], "This method's result.")

    def _compare(self, visit: Visit | None, preset: str) -> Iterator[dict[Any, Any]]:
        with sentences():
            if visit is None or visit.photo is None:
                raise ValueError("Choose a photo or an example in the first tab.")
            crop, model = self.studio.crop(visit), self.studio.model(visit)
            turn = visit.turn
            outs: dict[str, Any] = {"of": (visit.photo, visit.face, visit.model)}
            other = dataclasses.replace(visit, stop=None, files=visit.files)
            yield {self.places[name]: gr.update(visible=name in model.pipelines) for name in METHODS}
            for name in model.pipelines:
                other.out = None
                if METHODS[name].optimizes:
                    for report in self.studio.tune(other, crop, preset=preset):
                        if turn != visit.turn:  # another photo, or all was deleted
                            return
                        share = report.step / max(report.total, 1)
                        yield {self.compared: status(report.words, share=share, preview=report.preview)}
                else:
                    self.studio.invert(other, crop, name)
                if other.out is None or turn != visit.turn:
                    return
                outs[name] = out = other.out
                face = around(crop, MARGIN, 640)
                picture, words = self.columns[name]
                edited = self.studio.edit(visit, out, visit.strengths)
                report_ = out.reports[0]
                yield {
                    self.outs: dict(outs),
                    picture: self.editor.picture(visit, self.studio.pasted(edited, face), f"{name}", kind_of(out)),
                    words: f"{report_['seconds']:.1f} s · difference to the photo {report_['l2']:.3f} (0 is none)",
                    self.takers[name]: gr.update(interactive=True),
                    self.compared: status("Done." if len(outs) > len(model.pipelines) else "Going on …"),
                }


class PlayTab:
    """Random faces, and two that mix."""

    def __init__(self, editor: Editor) -> None:
        self.editor, self.studio = editor, editor.studio
        gr.Markdown("Draw people who do not exist, and give one face something of another.", elem_classes="quiet")
        self.a, self.b, self.m = (gr.State(None, time_to_live=TIME_TO_LIVE) for _ in range(3))
        with gr.Row():
            self.played = [
                gr.Image(label=label, height=300, interactive=False, buttons=["fullscreen"])
                for label in ("This face", "gets something of this one", "Result")
            ]
        with gr.Row(elem_classes="chips"):
            self.take = gr.Button("This face: the one of the first tab", size="sm")
            self.draw_a = gr.Button("This face: a random one", size="sm")
            self.draw_b = gr.Button("The other: a random one", size="sm")
        with gr.Row():
            self.what = gr.Radio(
                [({"pose": "Pose and shape"}.get(name, name.capitalize()), name) for name in PLACES],
                value=[*PLACES][-1],
                label="What to take",
                info="Style mixing: the coarse, middle or fine layers.",
            )
            self.amount = gr.Slider(0, 1, 1, step=0.05, label="How much")
        with gr.Row(elem_classes="chips"):
            self.mix = gr.Button("Mix", variant="primary", size="sm", interactive=False)
            self.morph = gr.Button("Video from one to the other", size="sm", interactive=False)
            self.reopen = gr.Button("Edit the result", size="sm", interactive=False)

    def connect(self, delete: Any) -> None:
        """What happens when something is used."""
        both = [self.mix, self.morph, self.reopen]
        filled = [self.editor.visit, self.a, self.b, self.m, *self.played, *both]
        state = [self.editor.visit, self.a, self.b]
        self.take.click(lambda *given: self._fill(*given, place=0, source="photo"), state, filled, **QUICK)
        self.draw_a.click(lambda *given: self._fill(*given, place=0, source="random"), state, filled, **QUICK)
        self.draw_b.click(lambda *given: self._fill(*given, place=1, source="random"), state, filled, **QUICK)
        self.mix.click(self._mix, [*state, self.what, self.amount], filled, **QUICK)
        self.morph.click(self._morph, state, self.editor.file, **QUICK).success(None, js=FETCH, **HIDDEN)
        emptied = [self.a, self.b, self.m, *self.played, *both]
        delete.click(lambda: [None] * 6 + [gr.update(interactive=False)] * 3, None, emptied, **DIRECT)
        self.reopen.click(self._use_mix, [self.editor.visit, self.m], [*self.editor.shown, self.editor.tabs], **QUICK)

    def _fill(self, visit: Visit | None, a: Any, b: Any, *, place: int, source: str) -> dict[Any, Any]:
        visit = visit or Visit()
        with sentences():
            if source == "photo":
                out = self.studio.edit(visit, visit.out, visit.strengths)
            else:
                out = self.studio.random_face(visit, random.randrange(2**31), 0.6)
        faces = [out, b] if place == 0 else [a, out]
        ready = None not in faces
        news: dict[Any, Any] = {self.mix: gr.update(interactive=ready), self.morph: gr.update(interactive=ready)}
        news |= {self.played[place]: self.editor.picture(visit, large(out.images[0]), "face", kind_of(out))}
        return {**news, self.editor.visit: visit, (self.a, self.b)[place]: out}

    def _mix(self, visit: Visit | None, a: Any, b: Any, what: str, amount: float) -> dict[Any, Any]:
        with sentences():
            if visit is None or a is None or b is None:
                raise ValueError(NOTHING)
            out = self.studio.mix(visit, a, b, what, float(amount))
        picture = self.editor.picture(visit, large(out.images[0]), "mix", kind_of(out))
        return {
            self.editor.visit: visit,
            self.m: out,
            self.played[2]: picture,
            self.reopen: gr.update(interactive=True),
        }

    def _morph(self, visit: Visit | None, a: Any, b: Any) -> str:
        with sentences():
            if visit is None or a is None or b is None:
                raise ValueError(NOTHING)
            return self.studio.between(visit, a, b, "mp4", 24)

    def _use_mix(self, visit: Visit | None, out: InversionOutput | None) -> dict[Any, Any]:
        with sentences():
            if visit is None or out is None:
                raise ValueError(NOTHING)
        visit.strengths = {}
        return self.editor.adopt(visit, out, "The mixture, to be edited.")
