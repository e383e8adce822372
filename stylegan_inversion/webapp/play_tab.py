"""The tab to play: faces of nobody, mixing two people's styles, and the way from one face to another."""

from pathlib import Path
from typing import Any

from stylegan_inversion.webapp.actions import Actions
from stylegan_inversion.webapp.edit_tab import CLICK_DOWNLOAD, EditTab
from stylegan_inversion.webapp.guard import owner_of
from stylegan_inversion.webapp.messages import gr
from stylegan_inversion.webapp.models import Model
from stylegan_inversion.webapp.photo_column import HIDDEN, WORK
from stylegan_inversion.webapp.shown import enlarge, kind_of
from stylegan_inversion.webapp.words import note_html

ABOUT = """Fill both places: with the face from *Edit a photo*, as its sliders stand, or with a face that belongs to
nobody. *Mix* gives A the styles of B in some layers: the first ones hold pose and shape, the middle ones features, the
last ones colours."""


class PlayTab:
    """Two people, their mixture, and an animation between them."""

    def __init__(self, actions: Actions, model: Model) -> None:
        """Lay it out, within a tab."""
        self.actions = actions
        self.tokens = {"A": gr.State(""), "B": gr.State(""), "mix": gr.State("")}
        self.written = gr.State("")  # the animation's path, which no visitor can name
        num_ws = model.pti.generator.num_ws
        gr.Markdown(ABOUT)
        self.faces, self.take_edit, self.take_random = {}, {}, {}
        with gr.Row():
            for place in ("A", "B"):
                with gr.Column(min_width=220):
                    self.faces[place] = _picture(f"Face {place}")
                    with gr.Row():
                        self.take_edit[place] = gr.Button("Take the edited face", size="md", min_width=120)
                        self.take_random[place] = gr.Button("Random face", size="md", min_width=120)
            with gr.Column(min_width=220):
                self.mixed = _picture("A with styles of B")
                self.open = gr.Button("Open in “Edit a photo”", size="md", min_width=120)
        with gr.Row():
            self.truncation = gr.Slider(
                0,
                1.2,
                0.7,
                step=0.05,
                label="Truncation",
                info="Of random faces: 0 is the average face.",
                min_width=200,
            )
            self.seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="Counts on by itself.", min_width=120)
        with gr.Row():
            self.start = gr.Slider(0, num_ws - 1, num_ws // 2, step=1, label="From layer", min_width=160)
            self.end = gr.Slider(1, num_ws, num_ws, step=1, label="to layer, exclusive", min_width=160)
            self.alpha = gr.Slider(0, 1, 1, step=0.05, label="How much of B", min_width=160)
        with gr.Row():
            self.mix = gr.Button("Mix", variant="primary", min_width=180, scale=0)
            self.morph = gr.Button("Animate from A to B", min_width=220, scale=0)
            self.download = gr.Button("Download the animation", min_width=280, scale=0, interactive=False)
        self.animation = gr.Image(
            label="From A to B and back", interactive=False, height=320, buttons=[], visible=False, type="filepath"
        )
        self.file = gr.DownloadButton("Download", elem_classes="play-link download-link")

    def take(self, model: Model) -> dict[Any, Any]:
        """Updates for another model."""
        num_ws = model.pti.generator.num_ws
        return {
            **{token: "" for token in self.tokens.values()},
            **{face: None for face in self.faces.values()},
            self.mixed: None,
            self.start: gr.update(maximum=num_ws - 1, value=num_ws // 2),
            self.end: gr.update(maximum=num_ws, value=num_ws),
            self.animation: gr.update(value=None, visible=False),
            self.download: gr.update(interactive=False),
        }

    @property
    def takes(self) -> list[Any]:
        """What `take` updates."""
        places = [*self.tokens.values(), *self.faces.values()]
        return [*places, self.mixed, self.start, self.end, self.animation, self.download]

    def connect(self, edit_tab: EditTab, model: Any, tabs: Any) -> None:
        """What the buttons do.

        Args:
            edit_tab: Has the inversion and the sliders.
            model: The component that names the model.
            tabs: The tabs, to go from one to another.
        """
        actions = self.actions

        def drop(old: str, owner: str | None) -> None:
            """Forget what filled a place before."""
            if old:
                actions.sessions.drop(old, owner=owner)

        def take(request: gr.Request, old: str, token: str, *values: float) -> tuple[str, str]:
            if not token:
                raise gr.Error("Invert a photo first, under “Edit a photo”.", print_exception=False)
            owner, since = owner_of(request), actions.sessions.now()
            name = actions.kept(token, owner=owner).model
            strengths = edit_tab.sliders.strengths(actions.model(name), values)
            out = actions.edited(token, strengths, owner=owner)
            drop(old, owner)
            return actions.sessions.add(out, owner=owner, model=name, since=since), show(out, owner, since)

        def draw(request: gr.Request, old: str, name: str, seed: float, truncation: float) -> tuple[str, str, float]:
            owner, since = owner_of(request), actions.sessions.now()
            token = actions.random_face(owner=owner, model=name, seed=seed, truncation=truncation)
            drop(old, owner)
            return token, show(actions.kept(token, owner=owner).output, owner, since), (seed or 0) + 1

        def show(out: Any, owner: str | None, since: int) -> str:
            about: dict[str, Any] = {"owner": owner, "kind": kind_of(out), "since": since}
            return actions.files.picture(enlarge(out.images[0]), name="face", shown=True, **about)

        def mix(
            request: gr.Request, old: str, a: str, b: str, start: float, end: float, alpha: float
        ) -> tuple[str, str]:
            owner, since = owner_of(request), actions.sessions.now()
            _both(a, b)
            if start >= end:
                raise gr.Error("“From layer” has to be below “to layer”.", print_exception=False)
            token = actions.mix(a, b, owner=owner, layers=(start, end), alpha=alpha)
            drop(old, owner)
            return token, show(actions.kept(token, owner=owner).output, owner, since)

        def morph(request: gr.Request, a: str, b: str) -> tuple[Any, Any, str]:
            _both(a, b)
            path = actions.interpolate(a, b, owner=owner_of(request))
            return gr.update(value=path, visible=True), gr.update(interactive=True), path

        def download(path: str) -> str:
            if not Path(path).is_file():
                raise gr.Error("The animation has expired. Animate the two faces again.", print_exception=False)
            return path

        def reopen(request: gr.Request, token: str) -> dict[Any, Any]:
            if not token:
                raise gr.Error("Mix two faces first.", print_exception=False)
            owner, since = owner_of(request), actions.sessions.now()
            kept = actions.kept(token, owner=owner)
            # under a token of its own: each tab drops what it has shown
            opened = actions.sessions.add(kept.output, owner=owner, model=kept.model, since=since)
            words = note_html("A mixture of two faces, ready to be edited")
            return {**edit_tab.opened(kept.output, opened, owner, since, words), tabs: gr.update(selected="edit")}

        quick: dict[str, Any] = {"show_progress": "minimal", **WORK, **HIDDEN}
        for place in ("A", "B"):
            filled = [self.tokens[place], self.faces[place]]
            state = [self.tokens[place], edit_tab.token, *edit_tab.sliders.components]
            self.take_edit[place].click(take, state, filled, **quick)
            self.take_random[place].click(
                draw, [self.tokens[place], model, self.seed, self.truncation], [*filled, self.seed], **quick
            )
        both = [self.tokens["A"], self.tokens["B"]]
        mixed = [self.tokens["mix"], *both, self.start, self.end, self.alpha]
        self.mix.click(mix, mixed, [self.tokens["mix"], self.mixed], **quick)
        self.morph.click(morph, both, [self.animation, self.download, self.written], **quick)
        self.open.click(reopen, self.tokens["mix"], [*dict.fromkeys(edit_tab.opens), tabs], **quick)
        self.download.click(download, self.written, self.file, **quick).success(
            None, js=CLICK_DOWNLOAD.replace(".download-link", ".play-link"), **HIDDEN
        )


def _both(a: str, b: str) -> None:
    for place, token in (("A", a), ("B", b)):
        if not token:
            raise gr.Error(f"Fill place {place} first: take the edited face, or a random one.", print_exception=False)


def _picture(label: str) -> Any:
    return gr.Image(
        label=label, interactive=False, height=240, min_width=200, buttons=[], format="png", type="filepath"
    )
