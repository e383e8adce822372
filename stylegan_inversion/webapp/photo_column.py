"""The left column: choose a model and a photo, and which face of it."""

from typing import Any

from PIL import Image, ImageDraw, ImageFont

from stylegan_inversion import hub
from stylegan_inversion.preprocessing.landmarks import Face
from stylegan_inversion.webapp.actions import Actions
from stylegan_inversion.webapp.guard import owner_of
from stylegan_inversion.webapp.messages import gr
from stylegan_inversion.webapp.models import Model
from stylegan_inversion.webapp.photos import Upload, photo_input
from stylegan_inversion.webapp.shown import SHOWN_PHOTO, enlarge

HIDDEN: dict[str, Any] = {"api_visibility": "private"}
SLIDERS: dict[str, Any] = {"concurrency_id": "sliders", "concurrency_limit": 4}  # waits for nothing else
QUICK: dict[str, Any] = {"concurrency_id": "quick", "concurrency_limit": 4}  # faces
WORK: dict[str, Any] = {"concurrency_id": "work", "concurrency_limit": 2}  # files, animations


class PhotoColumn:
    """Photo, faces, the aligned crop."""

    def __init__(self, actions: Actions, model: Model) -> None:
        """Lay it out, within a column."""
        self.actions = actions
        gr.Markdown("## 1. Photo", elem_classes="step")
        self.photo = photo_input(height=300, sources=["upload", "webcam", "clipboard"])
        # not `gr.Examples`: its update of the photo would put a plain `gr.Image` in the place of `photo_input`'s
        samples = [[str(path)] for path in sorted(hub.builtin_path("samples").glob("*.jpg"))]
        self.examples = gr.Dataset(components=[self.photo], samples=samples, label="Examples", type="index")
        self.align = gr.Checkbox(True, label="Find the face", info="Off: the photo is an aligned face already.")
        with gr.Column(visible=False) as self.found:
            gr.Markdown("## 2. Face", elem_classes="step")
            self.count = gr.Markdown("", elem_classes="step")
            with gr.Row():
                self.marked = gr.Image(
                    label="Faces found", interactive=False, height=200, min_width=180, scale=3, buttons=[], format="png"
                )
                self.crop = gr.Image(
                    label="Aligned face",
                    interactive=False,
                    height=200,
                    min_width=120,
                    scale=2,
                    buttons=[],
                    format="png",
                )
            self.face = gr.Radio([("1", 0)], value=0, label="Which face", visible=False)

    def connect(self, model: Any) -> None:
        """What happens when a photo comes or a face is chosen.

        Args:
            model: The component that names the model.
        """
        actions = self.actions
        sources = [self.photo, self.face, self.align, model]
        shown = [self.found, self.count, self.marked, self.crop, self.face]

        def example(index: int) -> str:
            return str(self.examples.samples[index][0]["path"])

        def find(request: gr.Request, photo: Upload | None, align: bool, model: str) -> dict[Any, Any]:
            owner, since = owner_of(request), actions.sessions.now()
            if photo is not None:
                actions.files.remember_upload(photo.path, owner=owner)
            if not photo:
                return {self.found: gr.update(visible=False), self.face: gr.update(choices=[("1", 0)], value=0)}
            crop, found = actions.look(photo, 0, align, model)
            words = {0: "", 1: "One face was found."}.get(len(found), f"{len(found)} faces were found: click on one.")
            choices = [(f"Face {i + 1}", i) for i in range(max(len(found), 1))]
            marked = actions.files.original(_mark(crop.photo, found, 0), owner=owner, since=since) if found else None
            return {
                self.found: gr.update(visible=True),
                self.count: words,
                self.marked: gr.update(visible=bool(found), value=marked),
                self.crop: actions.files.original(enlarge(crop.image), owner=owner, since=since),
                self.face: gr.update(choices=choices, value=0, visible=len(found) > 1),
            }

        def choose(request: gr.Request, photo: bytes | None, face: int, align: bool, model: str) -> dict[Any, Any]:
            whose: dict[str, Any] = {"owner": owner_of(request), "since": actions.sessions.now()}
            crop, found = actions.look(photo, face, align, model)
            marked = actions.files.original(_mark(crop.photo, found, face), **whose)
            return {self.marked: marked, self.crop: actions.files.original(enlarge(crop.image), **whose)}

        def click(photo: bytes | None, face: int, model: str, event: gr.SelectData) -> int:
            image, found = actions.faces(photo, model)
            scale = max(image.size) / min(SHOWN_PHOTO, max(image.size))
            x, y = event.index[0] * scale, event.index[1] * scale
            inside = [
                i for i, one in enumerate(found) if one.box[0] <= x <= one.box[2] and one.box[1] <= y <= one.box[3]
            ]
            return inside[0] if inside else face

        self.examples.click(example, self.examples, self.photo, show_progress="hidden", queue=False, **HIDDEN)
        finding: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": [self.photo], **QUICK, **HIDDEN}
        gr.on([self.photo.change, self.align.input], find, [self.photo, self.align, model], shown, **finding)
        self.face.input(choose, sources, [self.marked, self.crop], show_progress="hidden", **QUICK, **HIDDEN)
        self.marked.select(
            click, [self.photo, self.face, model], self.face, show_progress="hidden", **QUICK, **HIDDEN
        ).then(choose, sources, [self.marked, self.crop], show_progress="hidden", **QUICK, **HIDDEN)
        self.find, self.shown = find, shown


def _mark(photo: Image.Image, faces: list[Face], chosen: int) -> Image.Image:
    """The photo, small, with a numbered box around each face."""
    scale = min(SHOWN_PHOTO / max(photo.size), 1.0)
    shown = photo.resize((round(photo.width * scale), round(photo.height * scale)), reducing_gap=2.0)
    draw = ImageDraw.Draw(shown)
    font = ImageFont.load_default(size=max(shown.width // 24, 14))
    width = max(shown.width // 160, 2)
    for i, face in enumerate(faces):
        x0, y0, x1, y1 = (v * scale for v in face.box)
        box = (max(x0, 0), max(y0, 0), min(x1, shown.width - 1), min(y1, shown.height - 1))
        colour = "#0d9488" if i == chosen else "#ffffff"
        draw.rectangle(box, outline="#000000", width=width + 2)
        draw.rectangle(box, outline=colour, width=width)
        label = draw.textbbox((box[0] + 4, box[1] + 2), str(i + 1), font=font)
        draw.rectangle((label[0] - 4, label[1] - 3, label[2] + 4, label[3] + 3), fill=colour)
        draw.text((box[0] + 4, box[1] + 2), str(i + 1), fill="#ffffff" if i == chosen else "#000000", font=font)
    return shown
