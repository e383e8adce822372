import dataclasses
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from safetensors import safe_open
from safetensors.torch import load_file

from stylegan_inversion import InversionOutput
from stylegan_inversion.inversion.generator_delta import GeneratorDelta
from stylegan_inversion.pipelines.styles import edit_frames, interpolate_outputs, mix_outputs, sample_face
from stylegan_inversion.webapp.marking import read_mark
from stylegan_inversion.webapp.models import METHODS, Model
from stylegan_inversion.webapp.sessions import Progress
from tests.webapp.conftest import Connect

gradio_client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")
from stylegan_inversion.webapp.api import _show  # noqa: E402

EXPIRED = "This inversion has expired or never existed"
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.fixture
def model(app: Any) -> Model:
    return app.model


def picture(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def same(path: str | Path, expected: Image.Image) -> bool:
    """Whether a file has exactly these pixels."""
    image = picture(path)
    return image.size == expected.size and ImageChops.difference(image, expected).getbbox() is None


def refused(client: Any, match: str, *arguments: Any, **named: Any) -> str:
    with pytest.raises(gradio_client.exceptions.AppError, match=match) as caught:
        client.predict(*arguments, **named)
    words = str(caught.value)
    assert "Traceback" not in words and 'File "' not in words and "/tmp" not in words and "stylegan-inv" not in words
    return words


# The same as in Python


def test_upload_invert_edit_paste_back(connect: Connect, file: Any, photo: Image.Image, model: Model) -> None:
    client = connect()
    pipeline = model.pipelines["e4e"]
    crop, count = client.predict(file, api_name="/align")
    assert count == 2 and same(crop, pipeline.align(photo).image)
    face, pasted, token, figures = client.predict(file, api_name="/invert")
    out = pipeline(photo)
    assert same(face, out.images[0]) and same(pasted, pipeline.paste_back(out, keep_detail=False)[0])
    assert figures["l2"] == out.reports[0]["l2"] and figures["face_count"] == 2
    face, pasted = client.predict(token, {"smile": 3.0, "sefa_2": -1.5}, api_name="/edit")
    edited = pipeline.edit(out, smile=3.0, sefa_2=-1.5)
    assert same(face, edited.images[0]) and not same(face, out.images[0])
    assert same(pasted, pipeline.paste_back(edited, keep_detail=True)[0])
    again, _ = client.predict(token, {"smile": 3.0, "sefa_2": -1.5}, api_name="/edit")
    assert same(again, edited.images[0])  # from the unedited face each time
    _, untouched = client.predict(token, api_name="/edit")
    assert same(untouched, photo)


def test_from_another_process(app: Any, photo: Image.Image, model: Model, tmp_path: Path) -> None:
    photo.save(tmp_path / "photo.png")
    program = f"""
from gradio_client import Client, handle_file
client = Client({app.url!r}, verbose=False, download_files={str(tmp_path / "got")!r})
*_, token, _ = client.predict(handle_file({str(tmp_path / "photo.png")!r}), face=1, method="psp", api_name="/invert")
print(*client.predict(token, {{"smile": 2.0}}, api_name="/edit"), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    face, pasted = done.stdout.split()
    pipeline = model.pipelines["psp"]
    edited = pipeline.edit(pipeline(pipeline.align(photo, face=1)), smile=2.0)
    assert same(face, edited.images[0]) and same(pasted, pipeline.paste_back(edited, keep_detail=True)[0])


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, connect: Connect, file: Any, photo: Image.Image, model: Model, app: Any) -> None:
    pipeline = model.pipelines[method]
    options: dict[str, Any] = {"num_w_steps": 2, "num_tuning_steps": 1} if method == "pti" else {}
    face, _, token, figures = connect().predict(file, face=1, method=method, **options, api_name="/invert")
    out = pipeline(pipeline.align(photo, face=1), **options)
    assert same(face, out.images[0]) and figures["face_index"] == 1
    kept = app.sessions.get(token, owner=None).output
    assert torch.equal(kept.w_plus, out.w_plus)
    assert (kept.generator is model.pti.generator) == (method != "pti")


def test_pivots_and_steps(connect: Connect, file: Any, photo: Image.Image, model: Model) -> None:
    client = connect()
    for pivot, steps in (("w_plus", 2), ("e4e", 0)):
        how: dict[str, Any] = {"method": "pti", "pivot": pivot, "num_w_steps": steps or None, "num_tuning_steps": 0}
        face, _, _, figures = client.predict(file, **how, api_name="/invert")
        out = model.pti(photo, pivot=pivot, num_w_steps=steps or None, num_tuning_steps=0)  # type: ignore[arg-type]
        assert same(face, out.images[0]) and figures["w_steps"] == steps and figures["pivot"] == pivot
    *_, figures = client.predict(file, method="pti", num_w_steps=-5, num_tuning_steps=-5, api_name="/invert")
    assert (figures["w_steps"], figures["tuning_steps"]) == (1, 0)  # clamped


def test_invert_and_edit_keeps_nothing(connect: Connect, file: Any, photo: Image.Image, app: Any) -> None:
    client, before = connect(), len(app.sessions)
    for method in METHODS:
        face, pasted = client.predict(file, {"age": 2.0}, face=1, method=method, api_name="/invert_and_edit")
        pipeline = app.model.pipelines[method]
        edited = pipeline.edit(pipeline(pipeline.align(photo, face=1)), age=2.0)
        assert same(face, edited.images[0]) and same(pasted, pipeline.paste_back(edited, keep_detail=True)[0])
    refused(client, "There is no direction 'beard'", file, {"beard": 1.0}, api_name="/invert_and_edit")
    assert len(app.sessions) == before


def test_an_aligned_photo_and_faces(connect: Connect, file: Any, photo: Image.Image) -> None:
    client = connect()
    faces = client.predict(file, api_name="/faces")
    assert [face["box"] for face in faces] == [[90.0, 90.0, 150.0, 150.0], [235.0, 85.0, 265.0, 115.0]]
    assert [face["score"] for face in faces] == [1.0, 1.0]
    whole, count = client.predict(file, align=False, api_name="/align")
    assert count == 1 and picture(whole).size == (32, 32)
    side, _ = client.predict(file, face=1, api_name="/align")
    assert not same(side, picture(whole))


def test_compare(connect: Connect, file: Any, photo: Image.Image, model: Model) -> None:
    client = connect()
    gallery, rows = client.predict(file, {"smile": 2.0}, api_name="/compare")
    assert [row["method"] for row in rows] == list(METHODS)
    captions = [text for method in METHODS for text in (method, f"{method}, edited")]
    assert [each["caption"] for each in gallery] == captions
    for i, row in enumerate(rows):
        pipeline = model.pipelines[row["method"]]
        out = pipeline(photo)
        assert row["l2"] == out.reports[0]["l2"] and -1 <= row["identity_similarity"] <= 1
        assert same(gallery[2 * i]["image"], out.images[0])
        assert same(gallery[2 * i + 1]["image"], pipeline.edit(out, smile=2.0).images[0])
        _, pasted = client.predict(row["token"], api_name="/edit")
        assert same(pasted, photo)


def test_random_face_mix_and_interpolate(connect: Connect, model: Model, tmp_path: Path) -> None:
    client = connect()
    a_face, a = client.predict(seed=3, truncation=0.5, api_name="/random_face")
    b_face, b = client.predict(seed=4, api_name="/random_face")
    a_out, b_out = sample_face(model.pti, seed=3, truncation=0.5), sample_face(model.pti, seed=4)
    assert same(a_face, a_out.images[0]) and same(b_face, b_out.images[0])
    assert {read_mark(Path(face)) for face in (a_face, b_face)} == {GENERATED}
    mixed, token = client.predict(a, b, 2, 6, 0.5, api_name="/mix")
    expected = mix_outputs(a_out, b_out, layers=(2, 6), alpha=0.5)
    assert same(mixed, expected.images[0])
    whole, _ = client.predict(a, b, api_name="/mix")
    assert same(whole, b_out.images[0])
    edited, _ = client.predict(token, {"smile": 1.0}, api_name="/edit")
    assert same(edited, model.pti.edit(expected, smile=1.0).images[0])

    path = Path(client.predict(a, b, frames=5, api_name="/interpolate"))
    assert_frames(path, interpolate_outputs(a_out, b_out, steps=5))
    path = Path(client.predict(a, {"smile": 4.0}, frames=3, api_name="/animate"))
    assert_frames(path, edit_frames(model.pti, a_out, {"smile": 4.0}, steps=3))
    assert read_mark(path) == GENERATED


def assert_frames(path: Path, expected: list[Image.Image]) -> None:
    """There and back, enlarged, and as near as 256 colours allow."""
    assert read_mark(path) is not None and path.suffix == ".gif"
    with Image.open(path) as gif:
        assert gif.n_frames == 2 * len(expected) - 2
        for i, frame in enumerate(expected):
            gif.seek(i)
            shown = np.asarray(frame.resize((512, 512), Image.Resampling.BICUBIC), np.float32)
            assert np.abs(np.asarray(gif.convert("RGB"), np.float32) - shown).mean() < 8


def test_a_mixture_with_a_photo_is_no_face_of_nobody(connect: Connect, file: Any) -> None:
    client = connect()
    _, nobody = client.predict(seed=1, api_name="/random_face")
    *_, photo, _ = client.predict(file, api_name="/invert")
    for pair in ((nobody, photo), (photo, nobody)):
        mixed, token = client.predict(*pair, 0, 4, api_name="/mix")
        assert read_mark(Path(mixed)) == EDITED
    assert read_mark(Path(client.predict(token, "face", api_name="/download"))) == EDITED
    assert read_mark(Path(client.predict(nobody, photo, frames=2, api_name="/interpolate"))) == EDITED


# Files


def test_downloads(connect: Connect, file: Any, photo: Image.Image, model: Model, tmp_path: Path) -> None:
    client = connect()
    options: dict[str, Any] = {"num_w_steps": 2, "num_tuning_steps": 2}
    *_, token, _ = client.predict(file, method="pti", **options, api_name="/invert")
    out = model.pti(photo, **options)
    edited = model.pti.edit(out, smile=3.0)

    def download(kind: str) -> Path:
        return Path(client.predict(token, kind, {"smile": 3.0}, api_name="/download"))

    face, whole = download("face"), download("photo")
    assert face.name == "edited-face.png" and same(face, edited.images[0])
    assert whole.name == "edited-photo.png" and same(whole, model.pti.paste_back(edited, keep_detail=True)[0])
    assert read_mark(face) == read_mark(whole) == EDITED
    animation = download("animation")
    assert animation.suffix == ".gif" and read_mark(animation) == EDITED
    latents = download("latents")
    assert latents.name == "latents.safetensors" and set(tensors := load_file(latents)) == {"w_plus", "w_inverted"}
    assert torch.equal(tensors["w_plus"], edited.w_plus) and torch.equal(tensors["w_inverted"], out.w_plus)
    with safe_open(latents, "pt") as opened:
        assert opened.metadata() == {"edits": "{'smile': 3.0}"}
    delta = download("delta")
    with safe_open(delta, "pt") as opened:
        tuned = GeneratorDelta.from_tensors(load_file(delta), opened.metadata()).apply(model.pti.generator)
    assert delta.name == "pti-delta.safetensors"
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), out.generator.parameters(), strict=True))
    with zipfile.ZipFile(download("inversion")) as archive:
        assert sorted(archive.namelist())[-2:] == ["config.json", "model.safetensors"]
        archive.extractall(tmp_path / "inversion")
    assert str(tmp_path.parent.parent) not in (tmp_path / "inversion" / "config.json").read_text()
    again = InversionOutput.load(tmp_path / "inversion")
    assert again.edits == {"smile": 3.0} and torch.equal(again.w_plus, edited.w_plus)
    assert again.images[0].tobytes() == edited.images[0].tobytes()
    assert read_mark(Path(client.predict(token, api_name="/download"))) == EDITED  # the photo, by default


def test_latents_of_what_is_not_edited(connect: Connect, file: Any) -> None:
    client = connect()
    *_, token, _ = client.predict(file, api_name="/invert")
    tensors = load_file(client.predict(token, "latents", api_name="/download"))
    assert torch.equal(tensors["w_plus"], tensors["w_inverted"])
    refused(client, "Only PTI tunes the generator", token, "delta", api_name="/download")


# What goes wrong


def test_tokens(connect: Connect, file: Any) -> None:
    client, other = connect(), connect(new=True)
    *_, token, _ = client.predict(file, api_name="/invert")
    assert len(token) >= 43
    other.predict(token, {"smile": 1.0}, api_name="/edit")  # whoever has it can use it
    assert client.predict(token, api_name="/stop") is False
    assert client.predict(token, api_name="/delete") is True
    assert client.predict(token, api_name="/delete") is False
    for wrong in (token, token[:-1], "guess"):
        refused(client, EXPIRED, wrong, {"smile": 1.0}, api_name="/edit")
    for wrong in ("", None):
        refused(client, EXPIRED, wrong, {"smile": 1.0}, api_name="/edit")
        refused(client, EXPIRED, wrong, api_name="/download")
        refused(client, EXPIRED, wrong, {"smile": 1.0}, api_name="/animate")
        refused(client, EXPIRED, wrong, "x", api_name="/mix")
        refused(client, EXPIRED, wrong, wrong, api_name="/interpolate")
        assert client.predict(wrong, api_name="/stop") is False and client.predict(wrong, api_name="/delete") is False


def test_delete_removes_the_files(connect: Connect, file: Any, app: Any) -> None:
    client = connect()
    *_, token, _ = client.predict(file, api_name="/invert")
    _, other = client.predict(seed=1, api_name="/random_face")
    made = app.janitor.folder / "programs"
    before = {path for path in made.rglob("*") if path.is_file()}
    client.predict(token, {"smile": 1.0}, api_name="/edit")
    client.predict(token, "latents", api_name="/download")
    client.predict(token, frames=2, api_name="/animate")
    client.predict(other, token, frames=2, api_name="/interpolate")
    new = {path for path in made.rglob("*") if path.is_file()} - before
    assert {path.name for path in new} == {
        "face.png",
        "photo.png",
        "latents.safetensors",
        "edit.gif",
        "interpolation.gif",
    }
    assert client.predict(token, api_name="/delete") is True
    left = {path for path in made.rglob("*") if path.is_file()}
    assert not left & new and len(before - left) == 2  # those of /invert, and not that of the other face
    assert client.predict(other, api_name="/delete") is True
    assert len(before) - len({path for path in made.rglob("*") if path.is_file()}) == 3


def test_faces_of_nobody_write_one_picture(connect: Connect, app: Any) -> None:
    client, made = connect(), app.janitor.folder / "programs"
    before = len(list(made.rglob("*.png")))
    _, token = client.predict(seed=5, api_name="/random_face")
    client.predict(token, token, api_name="/mix")
    assert len(list(made.rglob("*.png"))) == before + 2


def test_the_page_and_programs_wait_for_nobody_of_the_other(app: Any) -> None:
    named = {fn.api_name: fn for fn in app.demo.fns.values()}
    shared = {named[name[1:]].concurrency_id for name in ENDPOINTS if named[name[1:]].queue}
    assert shared == {"api", "api-slow"}
    assert not shared & {fn.concurrency_id for fn in app.demo.fns.values() if f"/{fn.api_name}" not in ENDPOINTS}


def test_what_is_not_a_photo(connect: Connect, file: Any, tmp_path: Path) -> None:
    client = connect()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.bmp")
    calls: dict[str, Any] = {"/align": {}, "/faces": {}, "/invert": {}, "/invert_and_edit": {}, "/compare": {}}
    for name in calls:
        refused(client, "Choose a photo first", None, api_name=name)
        refused(client, "not an image, or damaged", gradio_client.handle_file(tmp_path / "text.png"), api_name=name)
        empty = gradio_client.handle_file(tmp_path / "empty.png")
        refused(client, "not an image, or damaged|Choose a photo", empty, api_name=name)
    for name in ("/align", "/invert", "/invert_and_edit", "/compare"):
        refused(client, r"`face` must be in \[0, 1\], got 5: 2 found", file, face=5, api_name=name)
    refused(client, "less than minimum value 0", file, face=-1, api_name="/align")


def test_faces_that_are_not_there(connect: Connect, model: Model, tmp_path: Path, monkeypatch: Any) -> None:
    client = connect()
    Image.new("RGB", (100, 90), "green").save(tmp_path / "green.png")
    green = gradio_client.handle_file(tmp_path / "green.png")
    monkeypatch.setattr(model.pti, "_detector", lambda photo: [])
    for name in ("/align", "/invert", "/invert_and_edit", "/compare"):
        refused(client, "No face was found in the photo", green, api_name=name)
    assert client.predict(green, api_name="/faces") == []

    def broken(photo: Image.Image) -> None:
        raise RuntimeError(f"secret {tmp_path}")

    Image.new("RGB", (100, 90), "blue").save(tmp_path / "blue.png")
    monkeypatch.setattr(model.pti, "_detector", broken)
    for name in ("/align", "/faces", "/invert", "/compare"):
        words = refused(
            client,
            "Something went wrong on the server",
            gradio_client.handle_file(tmp_path / "blue.png"),
            api_name=name,
        )
        assert "secret" not in words


@pytest.mark.parametrize(
    ("strengths", "match"),
    [
        ({"smile": "much"}, r"`strengths` must hold numbers, got \{'smile': 'much'\}"),
        ({"smile": None}, "`strengths` must hold numbers"),
        ({"smile": {"age": 1.0}}, "`strengths` must hold numbers"),
        ([1.0], r"`strengths` must be an object such as \{\"smile\": 2.0\}, got \[1.0\]"),
        ("smile", "`strengths` must be an object"),
        (2.0, "`strengths` must be an object"),
        ({"smiel": 1.0}, "There is no direction 'smiel'. Did you mean 'smile'"),
    ],
)
def test_wrong_strengths(strengths: Any, match: str, connect: Connect, app: Any) -> None:
    client = connect()
    token = app.sessions.add(sample_face(app.model.pti), owner=None, model="tiny")
    refused(client, match, token, strengths, api_name="/edit")
    refused(client, match, token, strengths, api_name="/animate")
    refused(client, match, token, "face", strengths, api_name="/download")


def test_wrong_arguments(connect: Connect, file: Any, app: Any) -> None:
    client = connect()
    token = app.sessions.add(sample_face(app.model.pti), owner=None, model="tiny")
    refused(client, "stylegan4 is not in the list of choices", file, method="stylegan4", api_name="/invert")
    refused(client, "stylegan4 is not in the list of choices", file, method="stylegan4", api_name="/invert_and_edit")
    refused(client, "x is not in the list of choices", file, pivot="x", method="pti", api_name="/invert")
    refused(client, "cannot be chosen here. There is tiny and faces64", file, model="/etc", api_name="/invert")
    refused(client, "cannot be chosen here", file, model="org/model", api_name="/align")
    refused(client, "cannot be chosen here", model="../../x", api_name="/random_face")
    refused(client, r"`seed` must be in \[0, 2\*\*63\), got -1", -1, api_name="/random_face")
    refused(client, r"`truncation` must be in \[0, 2\], got 9", 0, 9, api_name="/random_face")
    refused(client, r"`layers` must be .* 0 <= start < stop <= 8, got \(0, 99\)", token, token, 0, 99, api_name="/mix")
    refused(client, r"got \(3, 2\)", token, token, 3, 2, api_name="/mix")
    refused(client, "sheet is not in the list of choices", token, "sheet", api_name="/download")
    for arguments in ((token, ["smile"]), (["token"], {})):
        refused(client, "`strengths` must|has expired", *arguments, api_name="/edit")
    refused(client, "raised an exception", file, face="first", api_name="/align")  # Gradio's own words


def test_faces_of_two_models(connect: Connect, app: Any) -> None:
    out = sample_face(app.model.pti)
    a, b = (app.sessions.add(out, owner=None, model=name) for name in ("tiny", "faces64"))
    for name in ("/mix", "/interpolate"):
        refused(connect(), r"come from two models \(tiny and faces64\)\. Take both from one", a, b, api_name=name)


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_what_is_no_number_at_all(bad: str, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gradio_client` does not send these; others can."""
    token = app.sessions.add(sample_face(app.model.pti), owner=None, model="tiny")
    calls = {
        "edit": f'"{token}", {{"smile": {bad}}}',
        "animate": f'"{token}", {{"smile": 1}}, {bad}',
        "random_face": f'{bad}, {bad}, ""',
        "mix": f'"{token}", "{token}", {bad}, {bad}, {bad}',
        "interpolate": f'"{token}", "{token}", {bad}',
        "stop": bad,
        "delete": bad,
    }
    with httpx.Client(base_url=f"{app.url}/gradio_api/call", timeout=60) as http:
        for name, data in calls.items():
            headers = {"content-type": "application/json"}
            event = http.post(f"/{name}", content=f'{{"data": [{data}]}}', headers=headers).json()["event_id"]
            answer = http.get(f"/{name}/{event}").text
            assert "Traceback" not in answer and "/" not in answer.replace("/gradio_api", "")
            assert answer.startswith("event: complete" if name in ("stop", "delete") else "event: error"), answer
            if name == "edit":
                assert "`strength` of 'smile' must be finite" in answer


def test_files_of_the_server_cannot_be_read(app: Any, connect: Connect) -> None:
    for path in ("/etc/passwd", str(Path(__file__)), str(app.janitor.folder / ".in-use")):
        data = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        answer = httpx.post(f"{app.url}/gradio_api/call/faces", json={"data": [data]}).json()["event_id"]
        text = httpx.get(f"{app.url}/gradio_api/call/faces/{answer}", timeout=30).text
        assert text.startswith("event: error") and "root:" not in text and path not in text
    for path in ("http://127.0.0.1:1/x.png", "https://example.org/x.png"):
        data = {"path": path, "meta": {"_type": "gradio.FileData"}}
        answer = httpx.post(f"{app.url}/gradio_api/call/faces", json={"data": [data]})
        assert answer.status_code == 403 and "fetches nothing from other addresses" in answer.json()["detail"]
    for path in ("/etc/passwd", "../../../etc/passwd", str(Path(__file__))):
        assert httpx.get(f"{app.url}/gradio_api/file={path}").status_code in (403, 404)


# Stop and cancel


def started(job: Any) -> str:
    """The token of a run that has taken a step."""
    deadline = time.monotonic() + 30
    while not (job.outputs() and job.outputs()[-1][2]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return job.outputs()[-1][2]


def wait(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_stop_keeps_the_best(connect: Connect, file: Any, steps: list[float], app: Any) -> None:
    client = connect()
    job = client.submit(file, method="pti", num_w_steps=10**9, num_tuning_steps=10**9, api_name="/invert")
    token = started(job)
    wait(lambda: len(steps) > 2)
    asked = time.monotonic()
    assert client.predict(token, api_name="/stop") is True
    *_, result, figures = job.result(timeout=30)
    assert result == token and figures["stopped_by"] == "callback" and steps[-1] - asked < 1
    assert len(steps) < 2000 and client.predict(token, api_name="/stop") is False
    client.predict(token, {"smile": 1.0}, api_name="/edit")
    assert not app.sessions._running


def test_cancel_ends_the_run(connect: Connect, file: Any, steps: list[float], app: Any) -> None:
    before = len(app.sessions)
    job = connect().submit(file, method="pti", num_w_steps=1000, num_tuning_steps=1000, api_name="/invert")
    token = started(job)
    wait(lambda: len(steps) > 2)
    asked = time.monotonic()
    job.cancel()
    wait(lambda: not app.sessions._running)
    time.sleep(0.5)
    assert steps[-1] - asked < 1.5  # a heartbeat of the app, and of Gradio
    assert len(app.sessions) == before and app.sessions.get(token, owner=None) is None


@pytest.mark.parametrize("name", ["/invert_and_edit", "/compare"])
def test_cancel_ends_the_other_runs(name: str, connect: Connect, file: Any, steps: list[float], app: Any) -> None:
    before = set(app.sessions._entries)
    tuning = app.model.pti.tuning
    app.model.pti.tuning = dataclasses.replace(tuning, num_steps=1000)
    try:
        how: dict[str, Any] = {"method": "pti"} if name == "/invert_and_edit" else {}
        job = connect().submit(file, **how, api_name=name)
        wait(lambda: len(steps) > 8)
        asked = time.monotonic()
        job.cancel()
        wait(lambda: not app.sessions._running and set(app.sessions._entries) <= before)
        time.sleep(0.5)
        assert steps[-1] - asked < 1.5
    finally:
        app.model.pti.tuning = tuning


def test_waiting_is_told() -> None:
    told: list[Any] = []
    for report in (Progress("", "waiting", 2, 6), Progress("t", "tuning", 3, 6)):
        _show(lambda *given, **named: told.append((*given, named["desc"])), report, before="pti: ")
    assert told == [(None, "pti: waiting, 2 before you"), ((3, 6), "pti: tuning")]


def test_the_base_generator_is_never_changed(connect: Connect, file: Any, model: Model) -> None:
    before = {key: value.clone() for key, value in model.pti.generator.state_dict().items()}
    connect().predict(file, method="pti", num_w_steps=2, num_tuning_steps=3, api_name="/invert")
    assert all(torch.equal(value, before[key]) for key, value in model.pti.generator.state_dict().items())


# Documentation


ENDPOINTS = {
    "/models": ([], ["Models"]),
    "/faces": (["photo"], ["Faces"]),
    "/align": (["photo", "face", "align", "model"], ["Aligned face", "Faces found"]),
    "/invert": (
        ["photo", "face", "align", "method", "num_w_steps", "num_tuning_steps", "pivot", "model"],
        ["Face", "Photo", "Token", "Figures"],
    ),
    "/edit": (["token", "strengths"], ["Face", "Photo"]),
    "/invert_and_edit": (["photo", "strengths", "face", "align", "method", "model"], ["Face", "Photo"]),
    "/compare": (["photo", "strengths", "face", "align"], ["Pictures", "Figures"]),
    "/random_face": (["seed", "truncation", "model"], ["Face", "Token"]),
    "/mix": (["token_a", "token_b", "start", "end", "alpha"], ["Face", "Token"]),
    "/interpolate": (["token_a", "token_b", "frames"], ["File"]),
    "/animate": (["token", "strengths", "frames"], ["File"]),
    "/download": (["token", "kind", "strengths"], ["File"]),
    "/stop": (["token"], ["Done"]),
    "/delete": (["token"], ["Done"]),
}


def test_the_api_reads_well(connect: Connect, app: Any) -> None:
    known = connect().view_api(return_format="dict", print_info=False)
    assert not known["unnamed_endpoints"]
    named = known["named_endpoints"]
    assert set(named) == set(ENDPOINTS)  # and nothing of the page's own
    for name, (parameters, returns) in ENDPOINTS.items():
        assert [each["parameter_name"] for each in named[name]["parameters"]] == parameters
        assert [each["label"] for each in named[name]["returns"]] == returns
        assert len(named[name]["description"]) > 20
    defaults = {each["parameter_name"]: each for each in named["/invert"]["parameters"]}
    assert defaults["method"]["type"]["enum"] == list(METHODS) and defaults["method"]["parameter_default"] == "e4e"
    assert not defaults["photo"]["parameter_has_default"] and defaults["face"]["parameter_default"] == 0
    openapi = httpx.get(f"{app.url}/gradio_api/openapi.json", timeout=30).json()
    assert {path.rsplit("/", 1)[-1] for path in openapi["paths"] if "/call/" in path} >= {n[1:] for n in ENDPOINTS}


def test_models(connect: Connect, model: Model) -> None:
    first, *others = connect().predict(api_name="/models")
    assert first["name"] == "tiny" and first["methods"] == list(METHODS) and first["resolution"] == 32
    assert first["directions"]["smile"] == [-5.0, 5.0] and list(first["directions"]) == list(model.directions)
    assert [other["name"] for other in others] == ["faces64"] and "methods" not in others[0]
    json.dumps([first, *others])


def test_outputs_of_the_api_can_be_saved(app: Any, connect: Connect, file: Any, tmp_path: Path) -> None:
    """What is under a token is what Python has: an `InversionOutput`."""
    *_, token, _ = connect().predict(file, api_name="/invert")
    out = app.sessions.get(token, owner=None).output
    assert isinstance(out, InversionOutput) and dataclasses.is_dataclass(out)
    out.save(tmp_path / "out", whole=True)
    assert torch.equal(InversionOutput.load(tmp_path / "out").w_plus, out.w_plus)
