"""What a visitor or a program can do: the work behind the page and the API, without components.

Results are kept in `Sessions` under a token. Pictures that leave here are files, marked as AI-edited, in a folder of
their owner.
"""

import dataclasses
import hashlib
import math
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, cast

import torch
from PIL import Image
from safetensors.torch import save_file

from stylegan_inversion.inversion.generator_delta import GeneratorDelta
from stylegan_inversion.losses.identity import IdentityEmbedding, load_identity
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.play import edit_frames, interpolate_outputs, mix_outputs, sample_face
from stylegan_inversion.preprocessing.align import Crop, align_face, uncropped
from stylegan_inversion.preprocessing.image import ImageLimits, load_image, to_tensor
from stylegan_inversion.preprocessing.landmarks import Face
from stylegan_inversion.preprocessing.paste import Detail
from stylegan_inversion.webapp.janitor import Janitor
from stylegan_inversion.webapp.memory import give_back
from stylegan_inversion.webapp.messages import EXPIRED, gr, messages
from stylegan_inversion.webapp.models import Model, Models
from stylegan_inversion.webapp.running import OnStep
from stylegan_inversion.webapp.sessions import Kept, Progress, Sessions
from stylegan_inversion.webapp.shown import is_tuned, kind_of, shown_crop
from stylegan_inversion.webapp.turns import Turns
from stylegan_inversion.webapp.visitor_files import Owner, VisitorFiles
from stylegan_inversion.webapp.zerogpu import find_gpu

PHOTOS = ImageLimits(  # of visitors: none takes more than 300 MB and 3 seconds
    ("JPEG", "PNG", "WEBP"), max_pixels=40_000_000, max_memory=300_000_000, max_table_pixels=20_000_000
)
MAX_STEPS = 1000  # of each stage; what a visitor asks for is clamped to it
MAX_FRAMES = 60  # of an animation
REMEMBERED_SECONDS = 1800.0  # how long a photo's faces are known at most
REMEMBERED_PHOTOS = 16  # whose faces need not be found again


class Actions:
    """The work. Every error it raises for a visitor is a `gr.Error` with a sentence that can be read."""

    def __init__(self, models: Models, sessions: Sessions, janitor: Janitor, *, tuning_slots: int = 1) -> None:
        """Share models among all visitors; nothing here changes them.

        Args:
            models: What can be run.
            sessions: Keeps the results.
            janitor: Has the folder for visitors' files.
            tuning_slots: How many generators are tuned at the same time.
        """
        self.models, self.sessions, self.janitor = models, sessions, janitor
        self.turns = Turns(tuning_slots)
        self.files = VisitorFiles(janitor, sessions)
        self.gpu = find_gpu(janitor.folder)
        self._identity: IdentityEmbedding | None = None
        self._faces: OrderedDict[str, tuple[float, list[Face]]] = OrderedDict()  # with the time they were found
        self._lock = threading.Lock()
        self._decoding = threading.Lock()  # many photos take the memory of one

    # Photos

    def model(self, name: str | None) -> Model:
        """The model of a name, loaded if needed; the first one for `None` or nothing."""
        with messages():
            return self.models.get(name) if name else self.models.first

    def faces(self, photo: bytes | None, model: str | None = None) -> tuple[Image.Image, list[Face]]:
        """The photo, upright, and its faces, the largest first."""
        if not photo:
            raise gr.Error("Choose a photo first.", print_exception=False)
        with messages():
            image, key = self._decode(photo), hashlib.sha256(photo).hexdigest()
            with self._lock:
                while self._faces and next(iter(self._faces.values()))[0] < time.monotonic() - REMEMBERED_SECONDS:
                    self._faces.popitem(last=False)
                known = self._faces.get(key)
            if known is not None:
                return image, known[1]
            found = self.model(model).pti.detector(image)
            with self._lock:
                self._faces[key] = (time.monotonic(), found)
                while len(self._faces) > REMEMBERED_PHOTOS:
                    self._faces.popitem(last=False)
            return image, found

    def look(
        self, photo: bytes | None, face: float = 0, align: bool = True, model: str | None = None
    ) -> tuple[Crop, list[Face]]:
        """The face, cut out as the model wants it, and all faces that were found."""
        if not photo:
            raise gr.Error("Choose a photo first.", print_exception=False)
        pipeline = self.model(model).pti
        size = pipeline.generator.config.resolution
        with messages():
            if not align:
                return uncropped(self._decode(photo), size), []
            image, found = self.faces(photo, model)
            landmarks = [one.landmarks for one in found]
            return align_face(image, landmarks, size=size, scale=pipeline.crop_scale, face=int(face or 0)), found

    def crop(self, photo: bytes | None, face: float = 0, align: bool = True, model: str | None = None) -> Crop:
        """The face, cut out as the model wants it."""
        return self.look(photo, face, align, model)[0]

    def _decode(self, photo: bytes) -> Image.Image:
        with self._decoding:
            give_back()  # what the photo before left
            return load_image(photo, limits=PHOTOS)

    # Inversions

    def run(
        self,
        crop: Crop,
        method: str,
        *,
        owner: Owner,
        model: str | None = None,
        preset: str | None = None,
        pivot: str | None = None,
        num_w_steps: float | None = None,
        num_tuning_steps: float | None = None,
        order: str = "",
        since: int | None = None,
    ) -> Iterator[Progress]:
        """Invert: at once with an encoder; for PTI wait for a turn first. The last report has the output.

        Steps are clamped to [1, 1000], those of the tuning to [0, 1000]. If `order` is called off, or the owner is
        forgotten after `since` (from `sessions.now`; `None` is now), the reports end without an output, and nothing is
        kept.
        """
        since = self.sessions.now() if since is None else since
        chosen = self.model(model)
        if method not in chosen.pipelines:
            there = ", ".join(chosen.pipelines)
            raise gr.Error(f"This model has no {method!r}; it has {there}.", print_exception=False)
        if METHODS[method].encoder is not None:
            with messages():
                out = chosen.pipelines[method](crop)
            if not self._is_unwanted(order, owner, since):
                token = self.sessions.add(out, owner=owner, model=chosen.name, since=since)
                yield Progress(token, "done", 1, 1, seconds=out.reports[0]["seconds"], output=out)
            return
        pipeline = chosen.pti
        with messages():
            plan = pipeline.plan(cast(Any, preset or None), cast(Any, pivot or None))
        w_steps = _clamp(num_w_steps, plan.num_w_steps, 1) if plan.pivot in ("w", "w_plus") else 0
        tuning_steps = _clamp(num_tuning_steps, plan.num_tuning_steps, 0)

        total = w_steps + tuning_steps
        options: dict[str, Any] = {"num_w_steps": w_steps or None, "num_tuning_steps": tuning_steps}
        options["pivot"] = plan.pivot

        def here(on_step: OnStep) -> InversionOutput:
            return pipeline(crop, callback=on_step, **options)

        work = self.gpu.work(pipeline, crop, steps=total, **options) if self.gpu else here
        about: dict[str, Any] = {"owner": owner, "model": chosen.name, "since": since}
        with messages(), self.turns.join(owner) as turn:
            for ahead in turn:
                if self._is_unwanted(order, owner, since):
                    return
                yield Progress("", "waiting", ahead, total)
            reports = self.sessions.run(turn.holding(work), total=total, first_stage_steps=w_steps, **about)
            with closing(reports):  # which ends the run
                for report in reports:
                    if self._is_unwanted(order, owner, since):
                        self.sessions.drop(report.token, owner=owner)
                        return
                    yield report

    @contextmanager
    def until_forgotten(self, owner: Owner, since: int) -> Iterator[None]:
        """End without an error where the owner wished to be forgotten after `since`, from `sessions.now`."""
        try:
            yield
        except gr.Error:
            if not self.sessions.is_forgotten(owner, since):
                raise

    def _is_unwanted(self, order: str, owner: Owner, since: int) -> bool:
        return self.sessions.is_called_off(order) or self.sessions.is_forgotten(owner, since)

    def random_face(self, *, owner: Owner, model: str | None = None, seed: float = 0, truncation: float = 0.7) -> str:
        """Draw a face of nobody; the token of the result."""
        chosen, since = self.model(model), self.sessions.now()
        with messages():
            out = sample_face(chosen.pti, seed=int(seed or 0), truncation=float(truncation))
        return self.sessions.add(out, owner=owner, model=chosen.name, since=since)

    def kept(self, token: str | None, *, owner: Owner) -> Kept:
        """The result behind a token."""
        kept = self.sessions.get(token or "", owner=owner)
        if kept is None:
            raise gr.Error(EXPIRED, print_exception=False)
        return kept

    def edited(self, token: str | None, strengths: Mapping[str, float] | None, *, owner: Owner) -> InversionOutput:
        """The result behind a token, edited."""
        kept = self.kept(token, owner=owner)
        with messages():
            return self.model(kept.model).pti.edit(kept.output, **_numbers(strengths))

    def mix(
        self, token_a: str, token_b: str, *, owner: Owner, layers: tuple[float, float] | None = None, alpha: float = 1.0
    ) -> str:
        """Mix the styles of two results; the token of the new one, which is drawn by a's generator."""
        since = self.sessions.now()
        a, b = self._pair(token_a, token_b, owner)
        with messages():
            chosen = None if layers is None else (int(layers[0]), int(layers[1]))
            out = mix_outputs(a.output, b.output, layers=chosen, alpha=float(alpha))
            if kind_of(a.output) != kind_of(b.output):  # no longer a face of nobody
                report = {key: value for key, value in out.reports[0].items() if key != "truncation"}
                out = dataclasses.replace(out, reports=[report])
        return self.sessions.add(out, owner=owner, model=a.model, since=since)

    def _pair(self, token_a: str, token_b: str, owner: Owner) -> tuple[Kept, Kept]:
        a, b = self.kept(token_a, owner=owner), self.kept(token_b, owner=owner)
        if a.model != b.model:
            raise gr.Error(
                f"The two faces come from two models ({a.model} and {b.model}). Take both from one.",
                print_exception=False,
            )
        return a, b

    def similarity(self, out: InversionOutput) -> float:
        """Identity similarity of the picture to the photo's face, by the built-in network, in [-1, 1]."""
        with self._lock, torch.no_grad():
            self._identity = self._identity or load_identity("builtin")
            return float(self._identity.similarity(to_tensor(out.images[0]), to_tensor(out.crops[0].image)))

    # Files

    def photo_of(self, out: InversionOutput, *, detail: Detail = "move") -> Image.Image:
        """The photo with the face in place, at full size."""
        return self.models.first.pti.paste_back(out, detail=detail)[0]

    def shown_photos(self, out: InversionOutput) -> tuple[Image.Image, Image.Image]:
        """Before and after, small enough for a page."""
        crop = shown_crop(out.crops[0])
        return crop.photo, self.photo_of(dataclasses.replace(out, crops=[crop]))

    def animate(
        self,
        token: str,
        strengths: Mapping[str, float] | None,
        *,
        owner: Owner,
        frames: float = 24,
    ) -> str:
        """The way from the inverted face to its edit, and back, as a GIF."""
        since, kept = self.sessions.now(), self.kept(token, owner=owner)
        with messages():
            pictures = edit_frames(
                self.model(kept.model).pti, kept.output, _numbers(strengths), steps=_clamp(frames, 24, 2, MAX_FRAMES)
            )
        return self.files.animation(pictures, owner, since, name="edit", kind=kind_of(kept.output))

    def interpolate(self, token_a: str, token_b: str, *, owner: Owner, frames: float = 24) -> str:
        """The way from one result to another, and back, as a GIF."""
        since = self.sessions.now()
        a, b = self._pair(token_a, token_b, owner)
        with messages():
            pictures = interpolate_outputs(a.output, b.output, steps=_clamp(frames, 24, 2, MAX_FRAMES))
        kind = kind_of(a.output) if kind_of(a.output) == kind_of(b.output) else "edited"
        return self.files.animation(pictures, owner, since, name="interpolation", kind=kind)

    def download(self, kind: str, token: str, strengths: Mapping[str, float] | None, *, owner: Owner) -> str:
        """Write "face", "photo", "latents", "delta" (what PTI tuned), "inversion" (a zip of all) or "animation"."""
        if kind == "animation":
            return self.animate(token, strengths, owner=owner)
        since = self.sessions.now()
        out = self.edited(token, strengths, owner=owner)
        about: dict[str, Any] = {"owner": owner, "kind": kind_of(out), "since": since}
        if kind == "face":
            return self.files.picture(out.images[0], name="edited-face", **about)
        if kind == "photo":
            return self.files.picture(self.photo_of(out), name="edited-photo", **about)
        target = self.files.new_folder(owner)
        if kind == "latents":
            path = target / "latents.safetensors"
            tensors = {"w_plus": out.w_plus.contiguous()}
            if out.w_inverted is not None:
                tensors["w_inverted"] = out.w_inverted.contiguous()
            save_file(tensors, path, metadata={"edits": repr(out.edits)})
            return self.files.written(path, owner, since)
        if kind == "delta":
            if not is_tuned(out):
                raise gr.Error("Only PTI tunes the generator, so there is no delta here.", print_exception=False)
            assert out.base is not None  # as `is_tuned` has seen
            parts, texts = GeneratorDelta.between(out.base.generator, out.generator).to_tensors()
            save_file(parts, target / "pti-delta.safetensors", metadata=texts)
            return self.files.written(target / "pti-delta.safetensors", owner, since)
        if kind != "inversion":
            raise gr.Error(
                f"`kind` must be one of face, photo, latents, delta, inversion, animation, got {kind!r}.",
                print_exception=False,
            )
        with messages(), tempfile.TemporaryDirectory(dir=self.janitor.folder) as scratch:
            name = None if out.base is None else out.base.name
            out.save(scratch, whole=name is None or name.is_local)  # the server's folders are not the visitor's
            return self.files.written(shutil.make_archive(str(target / "inversion"), "zip", scratch), owner, since)

    def forget(self, owner: Owner) -> int:
        """Delete all that is there of an owner: results, running work, files; how many results there were."""
        if owner is None:
            return 0
        with self._lock:
            self._faces.clear()
        count = self.sessions.forget(owner)  # first: what is written after it, its writer deletes
        self.files.forget(owner)
        return count


def methods_of(model: Model) -> list[str]:
    """The methods that a model has, in the order of the page."""
    return [method for method in METHODS if method in model.pipelines]


def _numbers(strengths: Mapping[str, float] | None) -> dict[str, float]:
    if strengths is None:
        return {}
    if not isinstance(strengths, Mapping):
        raise ValueError(f'`strengths` must be an object such as {{"smile": 2.0}}, got {strengths!r}.')
    try:
        return {str(name): float(value) for name, value in strengths.items()}
    except (TypeError, ValueError) as e:
        raise ValueError(f"`strengths` must hold numbers, got {dict(strengths)!r}.") from e


def _clamp(value: float | None, default: int, low: int, high: int = MAX_STEPS) -> int:
    return default if value is None or not math.isfinite(value) else int(min(max(value, low), high))
