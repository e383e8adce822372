import importlib
import io
import runpy
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

import stylegan_inversion.webapp.app as app
from stylegan_inversion import InversionOutput, PTIPipeline
from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.webapp.endpoints import MAX_STEPS, Endpoints, gr
from stylegan_inversion.webapp.sessions import Sessions

gradio_client = pytest.importorskip("gradio_client")
Connect = Callable[[], Any]


@pytest.fixture
def sessions(pti: PTIPipeline) -> Sessions:
    return Sessions(pti)


@pytest.fixture
def connect(pti: PTIPipeline, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Each call is another visitor of one server."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    demo = app.build_app(pti, sessions=sessions)
    options = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True, **app.launch_options()}
    _, url, _ = demo.launch(**options)
    clients = []

    def client() -> Any:
        clients.append(gradio_client.Client(url, verbose=False, download_files=tmp_path / "client"))
        return clients[-1]

    yield client
    for each in clients:
        each.close()
    demo.close(verbose=False)


@pytest.fixture
def file(photo: Image.Image, tmp_path: Path) -> Any:
    photo.save(tmp_path / "photo.png")
    return gradio_client.handle_file(tmp_path / "photo.png")


def picture(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def differ(a: str | Image.Image, b: str | Image.Image) -> bool:
    a, b = (picture(each) if isinstance(each, str) else each for each in (a, b))
    assert a.size == b.size
    return ImageChops.difference(a, b).getbbox() is not None


def test_align_invert_edit(connect: Connect, file: Any, photo: Image.Image, pti: PTIPipeline) -> None:
    client = connect()
    crop, count = client.predict(file, api_name="/align")
    assert count == 2 and not differ(crop, pti.align(photo).image)
    other, _ = client.predict(file, face=1, api_name="/align")
    assert not differ(other, pti.align(photo, face=1).image)
    whole, count = client.predict(file, align=False, api_name="/align")
    assert count == 1 and differ(whole, pti.align(photo).image)

    face, pasted, token = client.predict(file, face=1, num_w_steps=2, num_tuning_steps=2, api_name="/invert")
    assert picture(face).size == (32, 32) and differ(pasted, photo)
    same, untouched = client.predict(token, api_name="/edit")
    assert not differ(same, face) and not differ(untouched, photo)
    edited, changed = client.predict(token, smile=3.0, age=-1.0, api_name="/edit")
    assert differ(edited, face) and differ(changed, photo)
    again, _ = client.predict(token, smile=3.0, age=-1.0, api_name="/edit")
    assert not differ(again, edited)  # from the unedited face each time

    once = {"num_w_steps": 2, "num_tuning_steps": 2, "smile": 3.0, "age": -1.0, "api_name": "/invert_and_edit"}
    face, whole = client.predict(file, face=1, **once)
    assert not differ(face, edited) and not differ(whole, changed)


def test_the_api_reads_well(connect: Connect, sessions: Sessions, file: Any) -> None:
    client = connect()
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/align", "/invert", "/edit", "/invert_and_edit", "/stop"}
    names = {name: [each["parameter_name"] for each in endpoint["parameters"]] for name, endpoint in endpoints.items()}
    assert names["/invert"] == ["photo", "face", "align", "num_w_steps", "num_tuning_steps"]
    assert names["/edit"] == ["token", "smile", "age"]
    assert names["/invert_and_edit"] == [*names["/invert"], "smile", "age"]
    assert all(endpoint["description"] for endpoint in endpoints.values())
    client.predict(file, num_w_steps=1, num_tuning_steps=1, api_name="/invert_and_edit")
    assert len(sessions) == 0


def test_a_visitor_sees_what_is_wrong(
    connect: Connect, file: Any, pti: PTIPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()

    def says(match: str, *arguments: Any, **named: Any) -> None:
        with pytest.raises(gradio_client.exceptions.AppError, match=match) as caught:
            client.predict(*arguments, **named)
        assert "Traceback" not in str(caught.value) and str(tmp_path) not in str(caught.value)

    says("has expired or never existed", "guess", api_name="/edit")
    says("has expired or never existed", "", smile=1.0, api_name="/edit")
    says(r"`face` must be in \[0, 1\], got 5: 2 found", file, face=5, api_name="/align")
    says("greater than maximum value 5", "guess", smile=7.0, api_name="/edit")
    (tmp_path / "text.png").write_text("not an image")
    says("not an image, or damaged", gradio_client.handle_file(tmp_path / "text.png"), api_name="/align")
    says("Upload a photo first", None, api_name="/invert")
    monkeypatch.setattr(pti, "_detector", lambda photo: [])
    says("No face was found in the photo", file, api_name="/align")
    says("No face was found in the photo", file, api_name="/invert")

    def broken(photo: Image.Image) -> None:
        raise RuntimeError(f"secret {tmp_path}")

    monkeypatch.setattr(pti, "_detector", broken)
    says("Something went wrong on the server", file, api_name="/align")


def test_visitors_do_not_see_each_other(connect: Connect, tmp_path: Path) -> None:
    results = []
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
        client = connect()
        job = client.submit(
            gradio_client.handle_file(tmp_path / f"{colour}.png"),
            align=False,
            num_w_steps=2,
            num_tuning_steps=2,
            api_name="/invert",
        )
        results.append((client, colour, job))
    tokens = set()
    for client, colour, job in results:
        token = job.result(timeout=60)[2]
        tokens.add(token)
        _, pasted = client.predict(token, api_name="/edit")
        assert picture(pasted).getpixel((0, 0)) == ((255, 0, 0) if colour == "red" else (0, 0, 255))
    assert len(tokens) == 2


@pytest.fixture
def steps(pti: PTIPipeline, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each step was taken."""
    taken: list[float] = []
    distance = pti.perceptual.distance

    def counted(*features: Any) -> Any:
        taken.append(time.monotonic())
        return distance(*features)

    monkeypatch.setattr(pti.perceptual, "distance", counted)
    return taken


def started(job: Any) -> str:
    """The token of a run that has begun."""
    deadline = time.monotonic() + 30
    while not job.outputs() and time.monotonic() < deadline:
        time.sleep(0.05)
    return job.outputs()[-1][2]


def test_stop_keeps_the_result_and_cancel_ends_the_run(
    connect: Connect, file: Any, steps: list[float], sessions: Sessions
) -> None:
    client = connect()
    long = {"num_w_steps": 10**9, "num_tuning_steps": 10**9, "api_name": "/invert"}
    job = client.submit(file, **long)
    token = started(job)
    asked = time.monotonic()
    assert client.predict(token, api_name="/stop") is True
    _, _, result = job.result(timeout=30)
    assert result == token and steps[-1] - asked < 1 and len(steps) < MAX_STEPS
    output = sessions.output(token)
    assert output is not None and output.reports[0]["stopped_by"] == "callback"
    assert client.predict(token, api_name="/stop") is False

    job = client.submit(file, **long)
    started(job)
    while len(sessions._running) == 0:
        time.sleep(0.02)
    asked = time.monotonic()
    job.cancel()
    time.sleep(2)
    assert steps[-1] - asked < 1.5 and len(sessions) == 1 and not sessions._running


def test_steps_are_clamped(pti: PTIPipeline, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int]] = []

    class Recording(Sessions):
        def invert(self, crop: Any, **steps: int) -> Any:
            asked.append(steps)
            return iter(())

    endpoints = Endpoints(pti, Recording(pti))
    for steps in (10.0**9, 0, -3.0, None, float("nan"), 7.0):
        assert list(endpoints.run(pti.align(photo), steps, steps)) == []
    assert [each["num_w_steps"] for each in asked] == [MAX_STEPS, 1, 1, 3, 3, 7]
    assert [each["num_tuning_steps"] for each in asked] == [MAX_STEPS, 1, 1, 3, 3, 7]


def test_downloads(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    endpoints = Endpoints(pti, Sessions(pti))
    report = list(endpoints.sessions.invert(pti.align(photo), num_w_steps=1, num_tuning_steps=1))[-1]
    folder = tmp_path / "new"
    face, whole = endpoints.edit(report.token, smile=4.0)
    paths = {kind: endpoints.write(kind, folder, report.token, smile=4.0) for kind in ("face", "photo", "inversion")}
    assert len({Path(path).parent for path in paths.values()}) == 3  # nobody's file is overwritten
    assert Path(paths["face"]).name == "edited-face.png" and not differ(paths["face"], face)
    assert Path(paths["photo"]).name == "edited-photo.png" and not differ(paths["photo"], whole)
    assert Path(paths["inversion"]).name == "inversion.zip"
    with zipfile.ZipFile(paths["inversion"]) as archive:
        archive.extractall(tmp_path / "inversion")
    assert InversionOutput.load(tmp_path / "inversion").edits == {"smile": 4.0}
    with pytest.raises(gr.Error, match="has expired or never existed"):
        endpoints.write("face", folder, "guess")


def visible_events(demo: Any) -> dict[str, Any]:
    return {str(fn.api_name): fn for fn in demo.fns.values()}


def test_the_page(pti: PTIPipeline, photo: Image.Image) -> None:
    """The events behind the buttons, without a browser."""
    demo = app.build_app(pti)
    events = visible_events(demo)
    assert events["edit"].concurrency_limit == 2
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    labels = {getattr(block, "label", None): block for block in reversed(demo.blocks.values())}  # the API's are last
    shown = events["show_face"].fn(buffer.getvalue(), 1, False)
    assert shown[labels["Aligned face"]].size == (512, 512)
    (radio,) = [value for block, value in shown.items() if isinstance(block, gr.Radio)]
    assert radio["visible"] and radio["value"] == 1 and radio["choices"] == [("1", 0), ("2", 1)]

    first, *_, last = list(events["invert_1"].fn(buffer.getvalue(), 0, False, 2, 2))
    assert first[labels["Photo with the edited face"]].size == photo.size
    (token,) = [value for block, value in last.items() if isinstance(block, gr.State)]
    (status,) = [value for block, value in last.items() if isinstance(block, gr.HTML)]
    assert "Done · 2 + 2 steps" in status and last[labels["Smile"]] == 0.0
    before, after = last[labels["Face: before | after"]]
    (_, edited), whole = events["show_edit"].fn(token, 4.0, 0.0)
    assert differ(edited, after) and differ(whole, photo)
    *zeros, (_, reset), whole = events["reset"].fn(token)
    assert zeros == [0.0, 0.0] and not differ(reset, after) and not differ(whole, photo)
    assert differ(before, after)
    slider = labels["Smile"]
    assert (slider.minimum, slider.maximum, slider.value) == (-5.0, 5.0, 0.0)


def test_a_model_without_directions(pti: PTIPipeline) -> None:
    pti.directions = {}
    assert {"align", "invert", "edit", "stop"} <= set(visible_events(app.build_app(pti)))


def test_launch(pti: PTIPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}
    monkeypatch.setattr(app.PTIPipeline, "from_pretrained", lambda name, device: called.update(name=name) or pti)
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: called.update(options))
    app.launch("folder", port=1234)
    assert called["name"] == "folder" and called["server_name"] == "127.0.0.1" and called["server_port"] == 1234
    assert called["share"] is False and called["show_error"] is False and called["max_file_size"] == "20mb"
    fonts = called["theme"].font + called["theme"].font_mono
    assert "fonts.googleapis" not in fonts

    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    runpy.run_path(str(Path(__file__).parents[2] / "app.py"), run_name="__main__")
    assert called["name"] == "faces64" and called["server_name"] == "0.0.0.0"


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "stylegan_inversion.webapp.endpoints")
    with pytest.raises(MissingDependencyError, match=r'pip install "stylegan-inversion\[app\]"'):
        importlib.import_module("stylegan_inversion.webapp.endpoints")
