"""What programs cannot have."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylegan_inversion.pipelines.play import sample_face
from stylegan_inversion.webapp.messages import EXPIRED, FAILED, WRONG_ARGUMENTS
from stylegan_inversion.webapp.models import Model
from tests.webapp.client import refused
from tests.webapp.conftest import Connect

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")


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
    refused(
        client,
        "“Face, by size: 0 is the largest” must be a finite number, got 'first'",
        file,
        "first",
        api_name="/align",
    )
    refused(client, "“Find the face” must be true or false, got 'yes'", file, align="yes", api_name="/align")
    refused(client, "“Method” must be one of the choices, got .*e4e", file, method=["e4e"], api_name="/invert")


def test_a_fault_of_the_server_is_not_the_visitors(
    connect: Connect, file: Any, app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gradio.Textbox, "preprocess", broken)  # Gradio wraps it
        refused(client, FAILED, file, api_name="/align")
    assert "No space left on device" in caplog.text
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(gradio.Blocks, "validate_inputs", broken)
        refused(client, FAILED, file, api_name="/align")
    assert "No space left on device" in caplog.text
    caplog.clear()

    def wrong(*_: Any) -> None:
        raise TypeError("not a text")

    with monkeypatch.context() as patch:
        patch.setattr(gradio.Textbox, "preprocess", wrong)
        refused(client, "An argument is missing or of the wrong kind", file, api_name="/align")
    assert not caplog.text


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


def test_arguments_left_out_have_their_defaults(app: Any, connect: Connect) -> None:
    client = connect()
    token = app.sessions.add(sample_face(app.model.pti), owner=None, model="tiny")
    with httpx.Client(base_url=f"{app.url}/gradio_api/call", timeout=60) as http:

        def call(name: str, *data: Any) -> str:
            event = http.post(f"/{name}", json={"data": data}).json()["event_id"]
            return str(http.get(f"/{name}/{event}").text)

        for name, data in (("edit", [token]), ("animate", [token]), ("random_face", []), ("random_face", [1, None])):
            assert call(name, *data).rpartition("event: ")[2].startswith("complete"), name
        assert "Choose a photo first" in call("faces") and EXPIRED in call("edit")
        assert http.post("/v2/edit", json={"token": token}).status_code == 200
        for name, named in (("edit", {}), ("edit", {"token": token, "nobody": 1}), ("nothing", {})):
            answer = http.post(f"/v2/{name}", json=named)
            assert answer.status_code == 422 and answer.json()["detail"] == WRONG_ARGUMENTS
    assert client.predict(token, api_name="/stop") is False


def test_errors_that_nobody_foresaw(app: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(app.sessions, "stop", lambda *given, **named: broken())
    words = refused(connect(), FAILED, "token", api_name="/stop")
    assert "secret" not in words
