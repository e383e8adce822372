"""What the web app does on a click or a call: the functions behind its page and its named API.

Values in, values out; no components. Results live in `Sessions`, a visitor holds a token.
"""

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, no_type_check

from PIL import Image

from stylegan_inversion.errors import DivergedError, FaceNotFoundError, InvalidImageError, MissingDependencyError
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.webapp.sessions import Progress, Sessions

try:
    import gradio as gr
except ImportError as e:
    raise MissingDependencyError('The web app needs Gradio: pip install "stylegan-inversion[app]".') from e

logger = logging.getLogger(__name__)

MAX_STEPS = 1000  # of each stage; what a visitor asks for is clamped to it
EXPIRED = "This inversion has expired or never existed. Invert the photo again."


class Endpoints:
    """The functions that the page and the API share. Every error they raise is a `gr.Error` that a visitor can read."""

    def __init__(self, pipeline: PTIPipeline, sessions: Sessions) -> None:
        self.pipeline = pipeline
        self.sessions = sessions

    def align(self, photo: bytes | None, face: int = 0, align: bool = True) -> tuple[Image.Image, int]:
        """Find the faces in a photo and cut one out, the way the model's training photos were cut.

        Args:
            photo: JPEG, PNG, WebP, BMP, GIF or TIFF, up to 20 MB and 64 megapixels.
            face: Which face, by size: 0 is the largest.
            align: Find the face. False takes the photo as an aligned crop.

        Returns:
            Aligned face
            How many faces were found
        """
        crop = self.crop(photo, face, align)
        return crop.image, crop.face_count

    def crop(self, photo: bytes | None, face: int, align: bool) -> Crop:
        """Align, with messages for people."""
        if not photo:
            raise gr.Error("Upload a photo first.", print_exception=False)
        with _messages():
            return self.pipeline.align(photo, align=align, face=int(face))

    @no_type_check  # Gradio must see a generator function, which run-time type checks would hide
    def invert(self, photo, face=0, align=True, num_w_steps=None, num_tuning_steps=None, progress=gr.Progress()):  # noqa: B008
        """Invert the face of a photo: find its place in latent space, and tune a copy of the generator to draw it.

        The token comes with the first message, so that `/stop` can end the run early; the best state is kept.

        Args:
            photo: JPEG, PNG, WebP, BMP, GIF or TIFF, up to 20 MB and 64 megapixels.
            face: Which face, by size: 0 is the largest.
            align: Find the face. False takes the photo as an aligned crop.
            num_w_steps: Steps of the projection, 1 to 1000.
            num_tuning_steps: Steps of the tuning at most, 1 to 1000.
            progress: Gradio's own.

        Returns:
            The face as the tuned generator draws it
            The photo with that face in place
            Token for /edit and /stop, valid for 30 minutes after its last use; whoever has it can edit the result
        """
        for report in self.run(self.crop(photo, face, align), num_w_steps, num_tuning_steps):
            progress((report.step, report.total), desc=report.stage, unit="steps")
            if report.output is None:
                yield gr.skip(), gr.skip(), report.token
            else:
                yield *self.pictures(report.output, keep_detail=False), report.token

    def run(self, crop: Crop, num_w_steps: float | None, num_tuning_steps: float | None) -> Iterator[Progress]:
        """Run PTI, with the steps clamped."""
        with _messages():
            yield from self.sessions.invert(
                crop,
                num_w_steps=_clamp(num_w_steps, self.pipeline.projector.num_steps),
                num_tuning_steps=_clamp(num_tuning_steps, self.pipeline.tuning.num_steps),
            )

    def edit(self, token: str, **strengths: float) -> tuple[Image.Image, Image.Image]:
        """Edit an inverted face. Strengths count from the unedited face, not from the last edit.

        Args:
            token: From /invert.
            **strengths: How far to go along each direction, in units of the unit-norm direction.

        Returns:
            The edited face
            The photo with the edited face in place
        """
        return self.pictures(self.edited(token, **strengths))

    @no_type_check
    def invert_and_edit(self, photo, face=0, align=True, num_w_steps=None, num_tuning_steps=None, **strengths):
        """Invert and edit in one call; nothing is kept.

        Args:
            photo: JPEG, PNG, WebP, BMP, GIF or TIFF, up to 20 MB and 64 megapixels.
            face: Which face, by size: 0 is the largest.
            align: Find the face. False takes the photo as an aligned crop.
            num_w_steps: Steps of the projection, 1 to 1000.
            num_tuning_steps: Steps of the tuning at most, 1 to 1000.
            **strengths: How far to go along each direction, in units of the unit-norm direction.

        Returns:
            The edited face
            The photo with the edited face in place
        """
        for report in self.run(self.crop(photo, face, align), num_w_steps, num_tuning_steps):
            if report.output is None:
                yield gr.skip(), gr.skip()
            else:
                edited = self.edit(report.token, **strengths)
                self.sessions.drop(report.token)
                yield edited

    def stop(self, token: str) -> bool:
        """End a running inversion; its best state so far becomes the result of /invert.

        Args:
            token: From the first message of /invert.

        Returns:
            Whether an inversion with this token was running
        """
        return self.sessions.stop(token or "")

    def edited(self, token: str, **strengths: float) -> InversionOutput:
        """The edited result behind a token."""
        out = self.sessions.output(token or "")
        if out is None:
            raise gr.Error(EXPIRED, print_exception=False)
        with _messages():
            return self.pipeline.edit(out, **strengths)

    def pictures(self, out: InversionOutput, *, keep_detail: bool = True) -> tuple[Image.Image, Image.Image]:
        """The face, and the photo with it."""
        return out.images[0], self.pipeline.paste_back(out, keep_detail=keep_detail)[0]

    def write(self, kind: str, folder: Path, token: str, **strengths: float) -> str:
        """Write "face", "photo" or "inversion" into a new folder, for download."""
        out = self.edited(token, **strengths)
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(dir=folder))
        if kind == "inversion":
            with tempfile.TemporaryDirectory() as scratch:
                name = None if out.base is None else out.base.name
                out.save(scratch, whole=name is None or name.is_local)  # the server's folders are not the visitor's
                return shutil.make_archive(str(target / "inversion"), "zip", scratch)
        face, photo = self.pictures(out)
        path = target / f"edited-{kind}.png"
        (face if kind == "face" else photo).save(path)
        return str(path)


def name_api(endpoints: Endpoints, strengths: Mapping[str, Any]) -> None:
    """Name the endpoints for programs, within `gr.Blocks`; hidden components say what goes in and out.

    Args:
        endpoints: The functions.
        strengths: The slider of each direction, by name.
    """
    pipeline = endpoints.pipeline
    with gr.Row(visible=False):
        photo = photo_input()
        face = gr.Number(0, label="Face, by size: 0 is the largest", precision=0, minimum=0)
        align = gr.Checkbox(True, label="Find the face")
        w_steps = gr.Number(pipeline.projector.num_steps, label="Projection steps", precision=0)
        tuning_steps = gr.Number(pipeline.tuning.num_steps, label="Tuning steps", precision=0)
        token = gr.Textbox(label="Token")
        aligned = gr.Image(label="Aligned face", format="png")
        count = gr.Number(label="Faces found", precision=0)
        face_out = gr.Image(label="Face", format="png")
        photo_out = gr.Image(label="Photo", format="png")
        stopped = gr.Checkbox(label="Was running")
    go = gr.Button(visible=False)
    once = [photo, face, align, w_steps, tuning_steps]
    editable: dict[str, Any] = {"inputs_kwargs": dict(strengths)} if strengths else {}
    inverting: dict[str, Any] = {"concurrency_id": "invert"}
    editing: dict[str, Any] = {"concurrency_id": "edit", "concurrency_limit": 2}
    go.click(endpoints.align, [photo, face, align], [aligned, count], api_name="align", concurrency_id="align")
    go.click(endpoints.invert, once, [face_out, photo_out, token], api_name="invert", **inverting)
    go.click(endpoints.edit, [token], [face_out, photo_out], api_name="edit", **editable, **editing)
    go.click(
        endpoints.invert_and_edit, once, [face_out, photo_out], api_name="invert_and_edit", **editable, **inverting
    )
    go.click(endpoints.stop, [token], [stopped], api_name="stop", queue=False)


def photo_input(**settings: Any) -> Any:
    """A `gr.Image` that gives the file as it came: `load_image` knows more formats, limits and ways out than Gradio."""

    def read(payload: Any) -> bytes | None:
        return Path(payload.path).read_bytes() if payload is not None and payload.path else None

    photo: Any = gr.Image(label="Photo", type="filepath", format="png", **settings)
    photo.preprocess = read
    return photo


@contextmanager
def _messages() -> Iterator[None]:
    """Errors a visitor can act on are shown in their own words; of others only the log knows more."""
    try:
        yield
    except (InvalidImageError, FaceNotFoundError, DivergedError, ValueError) as e:
        raise gr.Error(str(e), print_exception=False) from e
    except gr.Error:
        raise
    except Exception as e:
        logger.exception("The web app failed.")
        raise gr.Error("Something went wrong on the server. Try again, or another photo.", print_exception=False) from e


def _clamp(steps: float | None, default: int) -> int:
    return default if steps is None or not math.isfinite(steps) else int(min(max(steps, 1), MAX_STEPS))
