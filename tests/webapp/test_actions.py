import io
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion.errors import FaceNotFoundError, InvalidImageError
from stylegan_inversion.preprocessing.image import open_image
from stylegan_inversion.webapp.sessions import Progress
from tests.attack.pictures import encode, jpeg, png, webp
from tests.webapp.checks import differ, until

gr = pytest.importorskip("gradio")
from stylegan_inversion.webapp import actions as module  # noqa: E402
from stylegan_inversion.webapp.actions import MAX_STEPS, Actions  # noqa: E402
from stylegan_inversion.webapp.api import Api  # noqa: E402
from stylegan_inversion.webapp.messages import messages  # noqa: E402
from stylegan_inversion.webapp.shown import shown_crop  # noqa: E402


def test_steps_are_clamped(actions: Actions, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def run(work: Any, *, total: int, first_stage_steps: int, **names: Any) -> Iterator[Progress]:
        asked.append((first_stage_steps, total - first_stage_steps))
        yield from ()

    monkeypatch.setattr(actions.sessions, "run", run)
    crop = actions.models.first.pti.align(photo)
    for steps in (10.0**9, 0, -3.0, None, float("nan"), 7.0):
        assert list(actions.run(crop, "pti", owner=None, num_w_steps=steps, num_tuning_steps=steps)) == []
    assert asked == [(MAX_STEPS, MAX_STEPS), (1, 0), (1, 0), (3, 3), (3, 3), (7, 7)]
    list(actions.run(crop, "pti", owner=None, pivot="e4e", num_w_steps=50, num_tuning_steps=4))
    assert asked[-1] == (0, 4)
    with pytest.raises(gr.Error, match="This model has no 'restyle'; it has e4e, psp, pti"):
        list(actions.run(crop, "restyle", owner=None))
    assert len(actions.turns) == 0


def sized(data: bytes, width: int, height: int) -> bytes:
    """A small JPEG or WebP, and the size that its header gives."""
    if data[:4] == b"RIFF":
        return data[:26] + width.to_bytes(2, "little") + height.to_bytes(2, "little") + data[30:]
    frame = data.index(b"\xff\xc2" if b"\xff\xc2" in data else b"\xff\xc0")
    return data[: frame + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[frame + 9 :]


def test_photos_of_the_size_that_the_api_names_are_read() -> None:
    said = {
        gr.utils.get_function_description(way)[1]["photo"] for way in (Api.faces, Api.align, Api.invert, Api.compare)
    }
    (words,) = said
    found = re.fullmatch(
        r"Up to 20 MB; JPEG or PNG (\S+) megapixels, progressive (\S+), WebP (\S+), lossless or transparent (\S+)\.",
        words,
    )
    assert found is not None
    usual, progressive, lossy, lossless = (float(number) for number in found.groups())
    small = Image.new("RGB", (16, 16))
    kinds = [(usual, jpeg(16, 16, subsampling=0)), (lossy, encode(small, "WEBP"))]
    kinds += [(progressive, jpeg(16, 16, mode, progressive=True, subsampling=0)) for mode in ("RGB", "CMYK", "L")]
    refused = []
    for megapixels, data in kinds:
        side = int((megapixels * 1e6) ** 0.5)
        open_image(io.BytesIO(sized(data, side, side)), "x", module.PHOTOS).close()
        refused.append((megapixels, sized(data, int(side * 1.02), int(side * 1.02))))
    side = int((lossless * 1e6) ** 0.5)
    open_image(io.BytesIO(webp(side, side)), "x", module.PHOTOS).close()
    refused = [*refused[:2], refused[3], (lossless, webp(int(side * 1.02), int(side * 1.02)))]  # each kind's dearest
    for megapixels, data in refused:
        with pytest.raises(InvalidImageError, match=r"too large|which may take"):
            open_image(io.BytesIO(data), f"{megapixels}", module.PHOTOS)


def test_photos_are_decoded_one_by_one(actions: Actions, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, seen = [0], []

    def slow(photo: bytes, *, limits: Any) -> Image.Image:
        at_once[0] += 1
        seen.append(at_once[0])
        time.sleep(0.02)
        at_once[0] -= 1
        if photo == b"broken":
            raise InvalidImageError("The file is damaged.")
        return Image.new("RGB", (32, 32))

    monkeypatch.setattr(module, "load_image", slow)
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(actions.crop, photo, align=False) for photo in [b"sound", b"broken"] * 8]
    assert [one.exception() is None for one in done] == [True, False] * 8
    assert seen == [1] * 16


def test_photos_of_visitors_are_jpeg_png_or_webp(actions: Actions) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        assert actions.crop(encode(Image.new("RGB", (32, 32)), kind), align=False)
    for kind in ("GIF", "TIFF", "BMP"):
        with pytest.raises(gr.Error, match=f"is a {kind} image; convert it to JPEG or PNG first"):
            actions.crop(encode(Image.new("RGB", (32, 32)), kind), align=False)
    with pytest.raises(gr.Error, match="too large: 8000 x 5001 pixels, at most 16384 a side and 40 megapixels"):
        actions.faces(png(8000, 5001, 0, 1))


@pytest.mark.parametrize("method", ["e4e", "pti"])
def test_what_is_called_off_leaves_nothing(method: str, actions: Actions, photo: Image.Image) -> None:
    crop = actions.models.first.pti.align(photo)
    actions.sessions.call_off("")  # from a page that asked for nothing: other work without an order goes on
    assert list(actions.run(crop, method, owner="anna", num_w_steps=1, num_tuning_steps=1))[-1].output is not None
    actions.sessions.call_off("before")
    assert not list(actions.run(crop, method, owner="anna", order="before"))
    if method == "pti":
        reports = actions.run(crop, method, owner="anna", order="while", num_w_steps=1000)
        assert next(report for report in reports if report.stage != "waiting").stage == "start"
        actions.sessions.call_off("while")
        assert not list(reports)
    assert len(actions.sessions) == 1
    until(lambda: len(actions.turns) == 0)  # the thread ends a step later


def test_who_waits_is_called_off(actions: Actions, photo: Image.Image) -> None:
    crop = actions.models.first.pti.align(photo)
    with actions.turns.join("bert"):
        reports = actions.run(crop, "pti", owner="anna", order="hers")
        assert next(reports).stage == "waiting"
        actions.sessions.call_off("hers")
        assert not list(reports) and len(actions.turns) == 1


def test_frames_are_clamped(actions: Actions, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def frames(*given: Any, steps: int) -> list[Image.Image]:
        asked.append(steps)
        return [Image.new("RGB", (4, 4))] * 2

    for name in ("edit_frames", "interpolate_outputs"):
        monkeypatch.setattr(module, name, frames)
    token = actions.random_face(owner="anna")
    for count in (10**9, 1, -5, None, float("inf"), 7):
        actions.animate(token, {}, owner="anna", frames=count)  # type: ignore[arg-type]
        actions.interpolate(token, token, owner="anna", frames=count)  # type: ignore[arg-type]
    assert asked[::2] == asked[1::2] == [60, 2, 2, 24, 24, 7]
    with pytest.raises(gr.Error, match="has expired or never existed"):
        actions.animate(token, {}, owner="bert")


def test_faces_are_found_once_for_a_photo(
    actions: Actions, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    pti = actions.models.first.pti
    detector = pti.detector
    monkeypatch.setattr(pti, "_detector", lambda photo: found.append(1) or detector(photo))
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    for face in (0, 1, 0):
        actions.crop(buffer.getvalue(), face)
    assert len(found) == 1
    monkeypatch.setattr(module, "REMEMBERED_PHOTOS", 1)
    photo.rotate(180).save(buffer, "PNG")
    actions.crop(buffer.getvalue())
    assert len(actions._faces) == 1
    for nothing in (None, b""):
        with pytest.raises(gr.Error, match="Choose a photo first"):
            actions.crop(nothing)
        with pytest.raises(gr.Error, match="Choose a photo first"):
            actions.faces(nothing)


def test_large_photos_are_shown_small(actions: Actions, photo: Image.Image) -> None:
    pti = actions.models.first.pti
    crop = pti.align(photo.resize((3200, 2400)))
    small = shown_crop(crop)
    assert small.photo.size == (1024, 768) and small.image is crop.image
    assert shown_crop(pti.align(photo)).photo.size == photo.size
    out = actions.kept(
        actions.sessions.add(pti(crop, num_w_steps=1, num_tuning_steps=0), owner=None, model="tiny"), owner=None
    )
    edited = pti.edit(out.output, smile=5.0)
    before, after = actions.shown_photos(edited)
    whole = actions.photo_of(edited)
    assert whole.size == (3200, 2400) and before.size == after.size == (1024, 768)
    centre = (20, 20, 60, 60)  # within the face
    assert differ(after.crop(centre), whole.resize((1024, 768)).crop(centre)) < differ(
        after.crop(centre), before.crop(centre)
    )


def test_sentences_are_for_visitors() -> None:
    for error, expected in (
        (FaceNotFoundError("No face; if it is an aligned crop already, pass `align=False` (`--no-align`)."), "untick"),
        (InvalidImageError("HEIC is not read. In Python: the package `pillow-heif`."), "HEIC is not read"),
        (torch.OutOfMemoryError("CUDA"), "no memory left"),
    ):
        with pytest.raises(gr.Error, match=expected) as caught, messages():
            raise error
        assert "--no-align" not in str(caught.value) and "pillow" not in str(caught.value)


def test_errors_become_sentences(caplog: pytest.LogCaptureFixture) -> None:
    for error in (ValueError("say this"), FaceNotFoundError("say this"), gr.Error("say this")):
        with pytest.raises(gr.Error, match="say this"), messages():
            raise error
    assert not caplog.records
    with pytest.raises(gr.Error, match="Something went wrong on the server"), messages():
        raise RuntimeError("secret")
    assert "secret" in caplog.text
