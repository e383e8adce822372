"""The named endpoints, for programs: `gradio_client`, plain HTTP, and tools of language models (MCP).

A result lives under a token that the program is given and gives back; whoever has it can use it, nobody can guess it.
"""

import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from PIL import Image

from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PIVOTS, PRESETS
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.paste import Detail
from stylegan_inversion.webapp.actions import Actions, methods_of
from stylegan_inversion.webapp.messages import gr
from stylegan_inversion.webapp.photos import photo_input
from stylegan_inversion.webapp.running import Progress
from stylegan_inversion.webapp.shown import kind_of

REMEMBERED_TOKENS = 1000  # whose files can be deleted at once


class Api:
    """One method an endpoint; its docstring is the documentation that programs see."""

    def __init__(self, actions: Actions) -> None:
        self.actions = actions
        self._files: OrderedDict[str, list[str]] = OrderedDict()  # what was drawn of each token's result
        self._lock = threading.Lock()

    def models(self) -> list[dict[str, Any]]:
        """What models there are, and what each can do.

        Returns:
            Name and label of each, and of those that are loaded the methods, the resolution and the directions with
            their ranges
        """
        loaded = {model.name: model for model in self.actions.models.loaded()}
        listed: list[dict[str, Any]] = []
        for label, name in self.actions.models.choices():
            about: dict[str, Any] = {"label": label}
            if name in loaded:
                model = loaded[name]
                directions = {key: one.strength_range for key, one in model.directions.items()}
                about |= {"methods": methods_of(model), "resolution": model.resolution, "directions": directions}
            listed.append({"name": name, **about})
        return listed

    def faces(self, photo: bytes | None) -> list[dict[str, Any]]:
        """Find the faces in a photo.

        Args:
            photo: Up to 20 MB; JPEG or PNG 40 megapixels, progressive 25, WebP 15, lossless or transparent 0.38.

        Returns:
            Box (x0, y0, x1, y1) in pixels and score of each face, the largest first
        """
        return [{"box": [round(v, 1) for v in one.box], "score": one.score} for one in self.actions.faces(photo)[1]]

    def align(
        self, photo: bytes | None, face: float = 0, align: bool = True, model: str = ""
    ) -> tuple[Image.Image, int]:
        """Find the faces in a photo and cut one out, the way the model's training photos were cut.

        Args:
            photo: Up to 20 MB; JPEG or PNG 40 megapixels, progressive 25, WebP 15, lossless or transparent 0.38.
            face: Which face, by size: 0 is the largest.
            align: Find the face. False takes the photo as an aligned crop.
            model: From /models; nothing means the first.

        Returns:
            Aligned face
            How many faces were found
        """
        crop = self.actions.crop(photo, face, align, model)
        return crop.image, crop.face_count

    def invert(
        self,
        photo: bytes | None,
        face: float = 0,
        align: bool = True,
        method: str = "e4e",
        num_w_steps: float | None = None,
        num_tuning_steps: float | None = None,
        pivot: str | None = None,
        model: str = "",
        preset: str | None = None,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Invert the face of a photo: find its place in latent space. PTI also tunes a copy of the generator.

        For PTI the token comes with an early message, so that `/stop` can end the run; the best state is kept.

        Args:
            photo: Up to 20 MB; JPEG or PNG 40 megapixels, progressive 25, WebP 15, lossless or transparent 0.38.
            face: Which face, by size: 0 is the largest.
            align: Find the face. False takes the photo as an aligned crop.
            method: "e4e", "psp", "restyle" or "pti".
            num_w_steps: Of PTI: steps of the projection, 1 to 1000.
            num_tuning_steps: Of PTI: steps of the tuning at most, 0 to 1000.
            pivot: Of PTI: "w", "w_plus", "e4e", "psp" or "restyle"; nothing means the preset's, or "w".
            model: From /models; nothing means the first.
            preset: Of PTI: "fast", "balanced" or "best"; the steps and the pivot win over it.
            progress: Gradio's own.

        Returns:
            The face as the generator draws it
            The photo with that face in place
            Token for the other endpoints, valid for 30 minutes after its last use; whoever has it can use the result
            Figures: mean squared error in [-1, 1], seconds, steps, why PTI stopped, number of faces
        """
        crop = self.actions.crop(photo, face, align, model)
        steps: dict[str, Any] = {"num_w_steps": num_w_steps, "num_tuning_steps": num_tuning_steps}
        steps |= {"pivot": pivot, "preset": preset}
        for report in self.actions.run(crop, method, owner=None, model=model, **steps):
            _show(progress, report)
            if report.output is None:
                yield gr.skip(), gr.skip(), report.token or gr.skip(), gr.skip()
            else:
                pictures = self._pictures(report.output, report.token, detail="none")
                yield *pictures, report.token, report.output.reports[0]

    def edit(self, token: str, strengths: dict[str, float] | None = None) -> tuple[str, str]:
        """Edit an inverted face. Strengths count from the unedited face, not from the last edit.

        Args:
            token: From /invert, /random_face or /mix.
            strengths: How far to go, such as {"smile": 2.0}, each in its direction's unit.

        Returns:
            The edited face
            The photo with the edited face in place
        """
        return self._pictures(self.actions.edited(token, strengths, owner=None), token)

    def invert_and_edit(
        self,
        photo: bytes | None,
        strengths: dict[str, float] | None = None,
        face: float = 0,
        align: bool = True,
        method: str = "e4e",
        model: str = "",
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Iterator[Any]:
        """Invert and edit in one call; nothing is kept.

        Args:
            photo: Up to 20 MB; JPEG or PNG 40 megapixels, progressive 25, WebP 15, lossless or transparent 0.38.
            strengths: How far to go, such as {"smile": 2.0}, each in its direction's unit.
            face: Which face, by size: 0 is the largest.
            align: Find the face. False takes the photo as an aligned crop.
            method: "e4e", "psp", "restyle" or "pti".
            model: From /models; nothing means the first.
            progress: Gradio's own.

        Returns:
            The edited face
            The photo with the edited face in place
        """
        crop = self.actions.crop(photo, face, align, model)
        token = ""
        try:
            with closing(self._reports(crop, method, model)) as reports:
                for report in reports:  # whoever cancels ends it at one of these
                    token = report.token
                    _show(progress, report)
                    if report.output is None:
                        yield gr.skip(), gr.skip()
            yield self.edit(token, strengths)
        finally:
            self.actions.sessions.drop(token, owner=None)

    def compare(
        self,
        photo: bytes | None,
        strengths: dict[str, float] | None = None,
        face: float = 0,
        align: bool = True,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Iterator[Any]:
        """Put one photo through all methods of the first model, with the same edit on each. PTI takes a while.

        Args:
            photo: Up to 20 MB; JPEG or PNG 40 megapixels, progressive 25, WebP 15, lossless or transparent 0.38.
            strengths: The edit, such as {"smile": 2.0}.
            face: Which face, by size: 0 is the largest.
            align: Find the face. False takes the photo as an aligned crop.
            progress: Gradio's own.

        Returns:
            Pictures of each method: the inversion and its edit
            Method, mean squared error, identity similarity, seconds and token of each
        """
        crop = self.actions.crop(photo, face, align)
        gallery: list[tuple[str, str]] = []
        rows: list[dict[str, Any]] = []
        is_done = False
        try:
            for method in methods_of(self.actions.models.first):
                with closing(self._reports(crop, method, "")) as reports:
                    for report in reports:
                        _show(progress, report, before=f"{method}: ")
                        if report.output is None:
                            yield gr.skip(), gr.skip()
                out = report.output
                assert out is not None  # the last report has it
                figures = {"l2": out.reports[0]["l2"], "identity_similarity": self.actions.similarity(out)}
                seconds = out.reports[0]["seconds"]
                rows.append({"method": method, **figures, "seconds": seconds, "token": report.token})
                edited = self.actions.edited(report.token, strengths, owner=None)
                gallery += [
                    (self._face(out, report.token), method),
                    (self._face(edited, report.token), f"{method}, edited"),
                ]
            is_done = True
            yield gallery, rows
        finally:
            for row in rows if not is_done else []:
                self.actions.sessions.drop(row["token"], owner=None)

    def random_face(self, seed: float = 0, truncation: float | None = 0.7, model: str = "") -> tuple[str, str]:
        """Draw a face of nobody.

        Args:
            seed: The same seed gives the same face.
            truncation: 0 is the average face, 1 the generator's own variety; up to 2.
            model: From /models; nothing means the first.

        Returns:
            The face
            Its token
        """
        truncation = 0.7 if truncation is None else truncation
        token = self.actions.random_face(owner=None, model=model, seed=seed, truncation=truncation)
        return self._face(self.actions.kept(token, owner=None).output, token), token

    def mix(
        self, token_a: str, token_b: str, start: float = 0, end: float | None = None, alpha: float | None = 1.0
    ) -> tuple[str, str]:
        """Give one face the styles of another in some layers.

        Args:
            token_a: The face that keeps the other layers; its generator draws.
            token_b: The face that gives styles.
            start: First layer; coarse layers, for pose and shape, come first.
            end: The layer after the last; nothing means to the end.
            alpha: How much of the other, in [0, 1].

        Returns:
            The new face
            Its token
        """
        num_ws = self.actions.kept(token_a, owner=None).output.w_plus.shape[1]
        layers = (start or 0, num_ws if end is None else end)
        token = self.actions.mix(token_a, token_b, owner=None, layers=layers, alpha=1.0 if alpha is None else alpha)
        return self._face(self.actions.kept(token, owner=None).output, token), token

    def interpolate(self, token_a: str, token_b: str, frames: float = 24) -> str:
        """Animate the way from one face to another and back.

        Args:
            token_a: The first face.
            token_b: The last face.
            frames: How many from one to the other, 2 to 60.

        Returns:
            An animated GIF
        """
        path = self.actions.interpolate(token_a, token_b, owner=None, frames=frames)
        return self._note(token_b, self._note(token_a, path))

    def animate(self, token: str, strengths: dict[str, float] | None = None, frames: float = 24) -> str:
        """Animate an edit: from the unedited face to the edited one and back.

        Args:
            token: From /invert.
            strengths: Where to go, such as {"smile": 2.0}.
            frames: How many from one to the other, 2 to 60.

        Returns:
            An animated GIF
        """
        return self._note(token, self.actions.animate(token, strengths, owner=None, frames=frames))

    def download(self, token: str, kind: str = "photo", strengths: dict[str, float] | None = None) -> str:
        """Write a result to a file.

        Args:
            token: From /invert.
            kind: "photo" or "face" (PNG), "latents" or PTI's "delta" (safetensors), "animation" (GIF), or "inversion"
                (a zip that `InversionOutput.load` reads, with all of it).
            strengths: The edit, such as {"smile": 2.0}.

        Returns:
            The file
        """
        return self._note(token, self.actions.download(kind, token, strengths, owner=None))

    def stop(self, token: str) -> bool:
        """End a running PTI inversion; its best state so far becomes the result of /invert.

        Args:
            token: From an early message of /invert.

        Returns:
            Whether an inversion with this token was running
        """
        return self.actions.sessions.stop(token or "", owner=None)

    def delete(self, token: str) -> bool:
        """Delete a result and its files, which also happens 30 minutes after their last use.

        Args:
            token: From /invert.

        Returns:
            Whether there was one
        """
        there = self.actions.sessions.get(token or "", owner=None) is not None
        self.actions.sessions.drop(token or "", owner=None)
        with self._lock:
            paths = self._files.pop(token, []) if there else []
        self.actions.janitor.forget(paths)
        return there

    def _reports(self, crop: Crop, method: str, model: str) -> Generator[Progress, None, None]:
        yield from self.actions.run(crop, method, owner=None, model=model)

    def _pictures(self, out: InversionOutput, token: str, *, detail: Detail = "move") -> tuple[str, str]:
        photo = self.actions.photo_of(out, detail=detail)
        path = self.actions.files.picture(photo, owner=None, name="photo", kind=kind_of(out))
        return self._face(out, token), self._note(token, path)

    def _face(self, out: InversionOutput, token: str) -> str:
        return self._note(token, self.actions.files.picture(out.images[0], owner=None, name="face", kind=kind_of(out)))

    def _note(self, token: str, path: str) -> str:
        """Remember what `delete` has to remove; what is forgotten here goes after 30 minutes."""
        with self._lock:
            self._files.setdefault(token, []).append(path)
            self._files.move_to_end(token)
            while len(self._files) > REMEMBERED_TOKENS:
                self._files.popitem(last=False)
        return path


def _show(progress: Any, report: Progress, *, before: str = "") -> None:
    """Tell a program how far a run is; while it waits, `step` is how many are ahead."""
    if report.stage == "waiting":
        progress(None, desc=f"{before}waiting, {report.step} before you")
    else:
        progress((report.step, report.total), desc=f"{before}{report.stage}", unit="steps")


def name_endpoints(api: Api) -> None:
    """Name the endpoints, within `gr.Blocks`; hidden components say what goes in and out."""
    first = api.actions.models.first
    with gr.Row(visible=False):
        photo = photo_input()
        face = gr.Number(0, label="Face, by size: 0 is the largest", precision=0, minimum=0)
        align = gr.Checkbox(True, label="Find the face")
        method = gr.Dropdown(list(METHODS), value=methods_of(first)[0], label="Method")
        preset = gr.Dropdown(list(PRESETS), value=None, label="Preset")
        pivot = gr.Dropdown(list(PIVOTS), value=None, label="Pivot")
        model = gr.Textbox("", label="Model")
        w_steps = gr.Number(None, label="Projection steps", precision=0)  # nothing: the preset's or the model's
        tuning_steps = gr.Number(None, label="Tuning steps", precision=0)
        strengths = gr.JSON({}, label="Strengths")
        token, token_b, token_out = (gr.Textbox(label=label) for label in ("Token", "Token of B", "Token"))
        seed = gr.Number(0, label="Seed", precision=0)
        truncation = gr.Number(0.7, label="Truncation")
        start, end = gr.Number(0, label="From layer", precision=0), gr.Number(None, label="To layer", precision=0)
        alpha = gr.Number(1.0, label="How much of B")
        frames = gr.Number(24, label="Frames", precision=0)
        kind = gr.Dropdown(["photo", "face", "latents", "delta", "animation", "inversion"], value="photo", label="Kind")
        aligned = gr.Image(label="Aligned face", format="png")
        count = gr.Number(label="Faces found", precision=0)
        face_out, photo_out = gr.Image(label="Face", format="png"), gr.Image(label="Photo", format="png")
        listed, rows, figures = gr.JSON(label="Models"), gr.JSON(label="Faces"), gr.JSON(label="Figures")
        gallery, file, done = gr.Gallery(label="Pictures"), gr.File(label="File"), gr.Checkbox(label="Done")
    go = gr.Button(visible=False)
    quick: dict[str, Any] = {"concurrency_id": "api", "concurrency_limit": 2}
    slow: dict[str, Any] = {"concurrency_id": "api-slow", "concurrency_limit": 12}
    source = [photo, face, align]
    steps = [w_steps, tuning_steps, pivot]
    go.click(api.models, None, listed, api_name="models", **quick)
    go.click(api.faces, photo, rows, api_name="faces", **quick)
    go.click(api.align, [*source, model], [aligned, count], api_name="align", **quick)
    go.click(
        api.invert,
        [*source, method, *steps, model, preset],
        [face_out, photo_out, token_out, figures],
        api_name="invert",
        **slow,
    )
    go.click(api.edit, [token, strengths], [face_out, photo_out], api_name="edit", **quick)
    one_call = [photo, strengths, face, align, method, model]
    go.click(api.invert_and_edit, one_call, [face_out, photo_out], api_name="invert_and_edit", **slow)
    go.click(api.compare, [photo, strengths, face, align], [gallery, figures], api_name="compare", **slow)
    go.click(api.random_face, [seed, truncation, model], [face_out, token_out], api_name="random_face", **quick)
    go.click(api.mix, [token, token_b, start, end, alpha], [face_out, token_out], api_name="mix", **quick)
    go.click(api.interpolate, [token, token_b, frames], file, api_name="interpolate", **quick)
    go.click(api.animate, [token, strengths, frames], file, api_name="animate", **quick)
    go.click(api.download, [token, kind, strengths], file, api_name="download", **quick)
    go.click(api.stop, token, done, api_name="stop", queue=False)
    go.click(api.delete, token, done, api_name="delete", queue=False)
