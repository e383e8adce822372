"""The same from a program as in Python."""

import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from stylegan_inversion import InversionOutput
from stylegan_inversion.inversion.generator_delta import GeneratorDelta
from stylegan_inversion.pipelines.play import edit_frames, interpolate_outputs, mix_outputs, sample_face
from stylegan_inversion.webapp.marking import read_mark
from stylegan_inversion.webapp.models import Model
from tests.webapp.client import EDITED, EXPIRED, GENERATED, picture, refused, same
from tests.webapp.conftest import Connect

METHODS = ("e4e", "psp", "pti")  # of the tiny model

gradio_client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")


def test_upload_invert_edit_paste_back(connect: Connect, file: Any, photo: Image.Image, model: Model) -> None:
    client = connect()
    pipeline = model.pipelines["e4e"]
    crop, count = client.predict(file, api_name="/align")
    assert count == 2 and same(crop, pipeline.align(photo).image)
    face, pasted, token, figures = client.predict(file, api_name="/invert")
    out = pipeline(photo)
    assert same(face, out.images[0]) and same(pasted, pipeline.paste_back(out, detail="none")[0])
    assert figures["l2"] == out.reports[0]["l2"] and figures["face_count"] == 2
    face, pasted = client.predict(token, {"smile": 3.0, "sefa_2": -1.5}, api_name="/edit")
    edited = pipeline.edit(out, smile=3.0, sefa_2=-1.5)
    assert same(face, edited.images[0]) and not same(face, out.images[0])
    assert same(pasted, pipeline.paste_back(edited)[0])
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
    assert same(face, edited.images[0]) and same(pasted, pipeline.paste_back(edited)[0])


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
    *_, figures = client.predict(file, method="pti", preset="fast", num_tuning_steps=1, api_name="/invert")
    assert (figures["pivot"], figures["w_steps"], figures["tuning_steps"]) == ("e4e", 0, 1)
    assert figures["perceptual"] == "alex" and figures["stopped_by"] == "steps"
    *_, figures = client.predict(file, method="pti", num_w_steps=-5, num_tuning_steps=-5, api_name="/invert")
    assert (figures["w_steps"], figures["tuning_steps"]) == (1, 0)  # clamped


def test_invert_and_edit_keeps_nothing(connect: Connect, file: Any, photo: Image.Image, app: Any) -> None:
    client, before = connect(), len(app.sessions)
    for method in METHODS:
        face, pasted = client.predict(file, {"age": 2.0}, face=1, method=method, api_name="/invert_and_edit")
        pipeline = app.model.pipelines[method]
        edited = pipeline.edit(pipeline(pipeline.align(photo, face=1)), age=2.0)
        assert same(face, edited.images[0]) and same(pasted, pipeline.paste_back(edited)[0])
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
    assert whole.name == "edited-photo.png" and same(whole, model.pti.paste_back(edited)[0])
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


ENDPOINTS = {
    "/models": ([], ["Models"]),
    "/faces": (["photo"], ["Faces"]),
    "/align": (["photo", "face", "align", "model"], ["Aligned face", "Faces found"]),
    "/invert": (
        ["photo", "face", "align", "method", "num_w_steps", "num_tuning_steps", "pivot", "model", "preset"],
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
    assert (
        defaults["method"]["type"]["enum"] == ["e4e", "psp", "restyle", "pti"]
        and defaults["method"]["parameter_default"] == "e4e"
    )
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
