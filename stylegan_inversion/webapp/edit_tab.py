"""The tab for one photo: invert, move the sliders, download."""

import secrets
from collections.abc import Iterator
from typing import Any

from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.webapp.actions import MAX_STEPS, Actions, methods_of
from stylegan_inversion.webapp.guard import owner_of
from stylegan_inversion.webapp.messages import gr
from stylegan_inversion.webapp.models import Model
from stylegan_inversion.webapp.photo_column import HIDDEN, SLIDERS, WORK, PhotoColumn
from stylegan_inversion.webapp.shown import enlarge, is_drawn, is_tuned, kind_of, shown_crop
from stylegan_inversion.webapp.sliders import Sliders
from stylegan_inversion.webapp.words import HOW_TO, note_html, status_html

PIVOTS = {
    "w": "W, optimised: one w for all layers, which stays editable",
    "w_plus": "W+, optimised: one w a layer, nearer",
    **{row.encoder: f"{row.label}'s answer: no steps needed" for row in METHODS.values() if row.encoder is not None},
}
DOWNLOADS = {
    "photo": "Photo",
    "face": "Face",
    "latents": "Latents",
    "delta": "PTI's delta",
    "animation": "Animation",
    "inversion": "Everything (zip)",
}
CLICK_DOWNLOAD = "() => setTimeout(() => document.querySelector('.download-link').click(), 200)"


class EditTab:
    """Method, progress, pictures, sliders, downloads."""

    def __init__(self, actions: Actions, model: Model, *, open_choice: bool) -> None:
        """Lay it out, within a tab."""
        self.actions = actions
        self.token = gr.State("")  # of the result that is shown
        self.job = gr.State("")  # of the run, to stop it
        self.order = gr.State("")  # of what was asked for last, to call it off
        picture: dict[str, Any] = {"format": "png", "interactive": False, "buttons": ["fullscreen"]}
        gr.Markdown("## 3. Invert", elem_classes="step")
        pti = model.pti
        self.method = gr.Radio(**_method_choices(model), label="Method")
        with gr.Accordion("PTI's settings", open=False, visible=_first(model) == "pti") as self.settings:
            self.pivot = gr.Dropdown(**_pivot_choices(model), label="Pivot", info="Where PTI begins to tune.")
            with gr.Row():
                self.w_steps = _steps("Steps of the pivot", 1, pti.projector.num_steps)
                self.tuning_steps = _steps("Steps of the tuning", 0, pti.tuning.num_steps)
        with gr.Row():
            self.invert = gr.Button("Invert", variant="primary", min_width=180, scale=0)
            self.stop = gr.Button("Stop, keep the best", visible=False, min_width=220, scale=0)
            self.cancel = gr.Button("Cancel", variant="stop", visible=False, min_width=120, scale=0)
        self.status = gr.HTML(note_html(""))
        self.how_to = gr.Markdown(HOW_TO, container=True)
        with gr.Row(visible=False) as self.pictures:
            self.faces = gr.ImageSlider(label="Face: before | after", height=340, min_width=280, scale=4, **picture)
            self.photos = gr.ImageSlider(label="Photo: before | after", height=340, min_width=300, scale=6, **picture)
        with gr.Column(visible=False) as self.editing:
            gr.Markdown("## 4. Edit", elem_classes="step")
            self.sliders = Sliders(model, open_choice=open_choice)
            with gr.Row():
                self.reset = gr.Button("Reset the sliders", size="md", min_width=180, scale=0)
            gr.Markdown("## 5. Download", elem_classes="step")
            with gr.Row():
                self.downloads = {
                    kind: gr.Button(label, size="md", min_width=110, interactive=kind != "delta")
                    for kind, label in DOWNLOADS.items()
                }
        self.file = gr.DownloadButton("Download", elem_classes="download-link")
        self.parts = [self.status, self.invert, self.stop, self.cancel, self.how_to, self.pictures, self.editing]

    def pair(self, out: InversionOutput, owner: str | None, since: int) -> tuple[Any, Any]:
        """Face and photo, before and after, as the page shows them; `since` as in `VisitorFiles.original`."""
        actions, crop = self.actions, out.crops[0]
        before, after = actions.shown_photos(out)
        whose: dict[str, Any] = {"owner": owner, "since": since}
        how: dict[str, Any] = {"kind": kind_of(out), "shown": True, **whose}
        return (
            (
                actions.files.original(enlarge(crop.image), drawn=is_drawn(out), **whose),
                actions.files.picture(enlarge(out.images[0]), name="face", **how),
            ),
            (
                actions.files.original(before, drawn=is_drawn(out), **whose),
                actions.files.picture(after, name="photo", **how),
            ),
        )

    def opened(self, out: InversionOutput, token: str, owner: str | None, since: int, words: str) -> dict[Any, Any]:
        """Updates that show a result, ready to be edited; `since` as in `VisitorFiles.original`."""
        faces, photos = self.pair(out, owner, since)
        shown = {part: gr.update(visible=True) for part in (self.pictures, self.editing)}
        hidden = {part: gr.update(visible=False) for part in (self.how_to, self.stop, self.cancel)}
        values = {self.token: token, self.faces: faces, self.photos: photos, self.status: words}
        shown[self.downloads["delta"]] = gr.update(interactive=is_tuned(out))
        return {**shown, **hidden, **values, **self.sliders.zeros(), self.invert: gr.update(interactive=True)}

    @property
    def opens(self) -> list[Any]:
        """What `opened` updates."""
        pictures = [self.faces, self.photos]
        return [
            *self.parts,
            self.token,
            self.job,
            self.order,
            *pictures,
            self.downloads["delta"],
            *self.sliders.components,
        ]

    def closed(self) -> dict[Any, Any]:
        """Updates that show the tab as it was at first."""
        hidden = {part: gr.update(visible=False) for part in (self.pictures, self.editing, self.stop, self.cancel)}
        shown = {self.how_to: gr.update(visible=True), self.invert: gr.update(interactive=True)}
        return {**hidden, **shown, self.status: note_html(""), self.token: "", self.job: ""}

    def take(self, model: Model) -> dict[Any, Any]:
        """Updates for another model."""
        pti = model.pti
        return {
            **self.closed(),
            **self.sliders.deal(model),
            self.method: gr.update(**_method_choices(model)),
            self.settings: gr.update(visible=_first(model) == "pti"),
            self.pivot: gr.update(**_pivot_choices(model)),
            self.w_steps: min(pti.projector.num_steps, MAX_STEPS),
            self.tuning_steps: min(pti.tuning.num_steps, MAX_STEPS),
        }

    @property
    def takes(self) -> list[Any]:
        """What `take` updates."""
        settings = [self.method, self.settings, self.pivot, self.w_steps, self.tuning_steps]
        return [*self.parts, self.token, self.job, *self.sliders.components, *self.sliders.boxes, *settings]

    def connect(self, column: PhotoColumn, model: Any) -> None:
        """What the buttons and sliders do.

        Args:
            column: Has the photo.
            model: The component that names the model.
        """
        actions, sliders = self.actions, self.sliders

        def waiting() -> dict[Any, Any]:
            hidden = {part: gr.update(visible=False) for part in (self.pictures, self.editing, self.how_to)}
            return {
                **hidden,
                self.status: note_html("Aligning the face …"),
                self.invert: gr.update(interactive=False),
                self.cancel: gr.update(visible=True, interactive=True),
                self.job: "",
                self.order: secrets.token_urlsafe(32),
            }

        def back(token: str, request: gr.Request) -> dict[Any, Any]:
            """Nothing came of it: show the last result again, if there is one."""
            owner, since = owner_of(request), actions.sessions.now()
            kept = actions.sessions.get(token or "", owner=owner)
            return self.closed() if kept is None else self.opened(kept.output, token, owner, since, note_html(""))

        def invert(
            order: str,
            old: str,
            photo: bytes | None,
            face: int,
            align: bool,
            model: str,
            method: str,
            pivot: str,
            w_steps: float,
            tuning_steps: float,
            request: gr.Request,
        ) -> Iterator[dict[Any, Any]]:
            owner, since = owner_of(request), actions.sessions.now()
            whose: dict[str, Any] = {"owner": owner, "since": since}
            with actions.until_forgotten(owner, since):
                crop = actions.crop(photo, face, align, model)
                before = actions.files.original(enlarge(crop.image), **whose)
                shown = None
                steps: dict[str, Any] = {"pivot": pivot, "num_w_steps": w_steps, "num_tuning_steps": tuning_steps}
                for report in actions.run(crop, method, model=model, order=order, **whose, **steps):
                    if report.output is not None:
                        actions.sessions.drop(old, owner=owner)
                        yield self.opened(report.output, report.token, owner, since, status_html(report))
                        return
                    changes: dict[Any, Any] = {self.status: status_html(report)}
                    if report.token:
                        changes |= {self.job: report.token, self.stop: gr.update(visible=True)}
                    if report.preview is not None and report.preview is not shown:
                        shown = report.preview
                        preview = actions.files.picture(enlarge(shown), name="preview", shown=True, **whose)
                        photo_shown = actions.files.original(shown_crop(crop).photo, **whose)
                        changes |= {self.faces: (before, preview), self.pictures: gr.update(visible=True)}
                        changes |= {self.photos: (photo_shown, photo_shown)}
                    yield changes
            yield back(old, request)  # called off, or forgotten

        def call_off(order: str) -> Any:
            actions.sessions.call_off(order)
            return gr.update(interactive=False)  # until `invert` has ended, a moment later

        def strengths_of(token: str, values: tuple[float, ...], owner: str | None) -> dict[str, float]:
            return sliders.strengths(actions.model(actions.kept(token, owner=owner).model), values)

        def redraw(request: gr.Request, token: str, *values: float) -> tuple[Any, Any]:
            owner, since = owner_of(request), actions.sessions.now()
            strengths = strengths_of(token, values, owner)
            return self.pair(actions.edited(token, strengths, owner=owner), owner, since)

        def reset(token: str, request: gr.Request) -> dict[Any, Any]:
            owner, since = owner_of(request), actions.sessions.now()
            faces, photos = self.pair(actions.edited(token, {}, owner=owner), owner, since)
            return {**sliders.zeros(), self.faces: faces, self.photos: photos}

        def stop(token: str, request: gr.Request) -> None:
            actions.sessions.stop(token, owner=owner_of(request))

        def downloader(kind: str) -> Any:
            def download(request: gr.Request, token: str, *values: float) -> str:
                owner = owner_of(request)
                return actions.download(kind, token, strengths_of(token, values, owner), owner=owner)

            return download

        direct: dict[str, Any] = {"queue": False, "show_progress": "hidden", **HIDDEN}
        settings = [model, self.method, self.pivot, self.w_steps, self.tuning_steps]
        outputs = list(dict.fromkeys(self.opens))
        running = self.invert.click(waiting, None, outputs, **direct).then(
            invert,
            [self.order, self.token, column.photo, column.face, column.align, *settings],
            outputs,
            concurrency_id="invert",
            concurrency_limit=12,
            trigger_mode="multiple",  # a click right after the end would be lost: the page hears of that a little later
            show_progress="hidden",
            **HIDDEN,
        )
        running.failure(back, self.token, outputs, **direct)
        self.stop.click(stop, self.job, None, **direct)
        # no `cancels`: until the page has dealt with it, it would not hear of a new inversion
        self.cancel.click(call_off, self.order, self.cancel, **direct)
        self.running = running
        self.method.change(lambda method: gr.update(visible=method == "pti"), self.method, self.settings, **direct)
        state = [self.token, *sliders.components]
        gr.on(
            [slider.input for slider in sliders.components],
            redraw,
            state,
            [self.faces, self.photos],
            trigger_mode="always_last",
            show_progress="hidden",
            **SLIDERS,
            **HIDDEN,
        )
        self.reset.click(
            reset,
            self.token,
            [*sliders.components, self.faces, self.photos],
            show_progress="hidden",
            **SLIDERS,
            **HIDDEN,
        )
        for kind, button in self.downloads.items():
            button.click(downloader(kind), state, self.file, show_progress="minimal", **WORK, **HIDDEN).success(
                None, js=CLICK_DOWNLOAD, **HIDDEN
            )


def _first(model: Model) -> str:
    return methods_of(model)[0]


def _method_choices(model: Model) -> dict[str, Any]:
    return {"choices": [(METHODS[name].title, name) for name in methods_of(model)], "value": _first(model)}


def _pivot_choices(model: Model) -> dict[str, Any]:
    here = [name for name in PIVOTS if name in model.pti.pivots]
    return {"choices": [(PIVOTS[name], name) for name in here], "value": "w"}


def _steps(label: str, least: int, default: int) -> Any:
    return gr.Slider(least, MAX_STEPS, value=min(default, MAX_STEPS), step=1, label=label, min_width=160)
