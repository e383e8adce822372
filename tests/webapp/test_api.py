"""What programs get from the app, by `gradio_client` and by plain HTTP."""

import base64
import concurrent.futures
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageChops

import stylegan_inversion
from stylegan_inversion import InversionOutput
from tests.webapp.conftest import until
from tests.webapp.marks import EDITED, GENERATED, damaged_zips, read_mark
from tests.webapp.tiny_app import Served

gradio_client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")
HEIC, AVIF = (base64.b64encode(b"\0\0\0\x1cftyp" + kind).decode() for kind in (b"heic" * 4, b"avif" * 4))
Connect = Callable[[], Any]


def picture(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


def receipt(model: str = "", **call: int) -> str:
    """A stranger's receipt, as an address."""
    name, sha = {"name_or_path": model, "revision": "1" * 40, "subfolder": None} if model else None, "0" * 64
    facts = {"model": name, "generator": sha, "photo": sha, "pixels": sha, "method": "pti", "call": call, "edits": {}}
    facts |= {"picture": "photo", "detail": "move", "quad": None, "settings": {}, "version": "1", "torch": "1"}
    data = json.dumps({**facts, "device": "cpu", "dtype": "float32", "threads": 1}).encode()
    return f"data:application/json;base64,{base64.b64encode(data).decode()}"


def test_every_endpoint(connect: Connect, file: Any, photo: Image.Image, app: Served, tmp_path: Path) -> None:
    client = connect()
    called = {name: 0 for name in client.view_api(return_format="dict")["named_endpoints"]}

    def ask(name: str, **arguments: Any) -> Any:
        called[name] += 1
        return client.predict(**arguments, api_name=name)

    (model,) = [each for each in ask("/models") if each["name"] == "tiny"]
    assert model["methods"] == list(app.model.pipelines) and model["directions"]["smile"][1] > 0
    assert len(ask("/faces", photo=file)) == 2
    drawn, report = ask("/invert", photo=file)
    assert picture(drawn).size == (32, 32) and report["l2"] > 0
    whole, face, edited = ask("/edit", strengths={"smile": 2.0})
    assert picture(whole).size == photo.size and not same(picture(whole), photo)
    assert not same(picture(edited), picture(drawn)) and picture(face).width < photo.width
    assert [read_mark(Path(each)) for each in (drawn, whole, face, edited)] == [EDITED] * 4
    assert same(picture(ask("/edit", strengths={})[0]), photo)  # pixel for pixel

    files = {kind: Path(ask("/download", kind=kind, strengths={"smile": 2.0})) for kind in ("jpeg", "face", "drawn")}
    assert files["jpeg"].name == "my_photo-edited.jpg" and read_mark(files["jpeg"]) == EDITED
    archive = ask("/download", kind="inversion", strengths={"smile": 2.0})
    with zipfile.ZipFile(archive) as parts:
        parts.extractall(tmp_path / "inversion")
    assert {"photo.jpg", "drawn.png"} <= {each.name for each in (tmp_path / "inversion").iterdir()}
    assert InversionOutput.load(tmp_path / "inversion").edits == {"smile": 2.0}

    once = ask("/invert_and_edit", photo=file, strengths={"smile": 2.0})
    assert same(picture(once[0]), picture(whole)) and once[3]["l2"] == report["l2"]
    gif = Path(ask("/download", kind="gif", strengths={"smile": 2.0}))
    with Image.open(gif) as image:
        assert image.n_frames > 24 and read_mark(gif) == EDITED  # there and back

    for kept in (files["jpeg"], Path(whole), Path(edited)):
        redrawn, compared = ask("/redraw", picture=gradio_client.handle_file(kept), photo=file)
        assert compared == {"same": True, "words": "It is the same picture, pixel for pixel."}
    assert same(picture(redrawn), picture(edited))

    nobody = ask("/random_face", seed=7)
    assert read_mark(Path(nobody)) == GENERATED and picture(nobody).size == (32, 32)
    photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    sent, sent_photo = (gradio_client.handle_file(each) for each in (archive, tmp_path / "mirrored.png"))
    read, translated = ask("/translate", picture=file, num_outputs=3, align=True, seed=1)
    assert len({picture(each).tobytes() for each in translated}) == 3 and picture(read).size[0] == 512
    assert same(picture(ask("/edit", strengths={})[2]), picture(translated[0]))
    mixed = ask("/mix", other=sent, what="features")
    assert not same(picture(mixed), picture(nobody)) and read_mark(Path(mixed)) == EDITED
    assert Path(ask("/interpolate", other=sent, frames=3)).suffix == ".gif"
    other = connect()  # needs no state: the file has it
    assert same(picture(other.predict(strengths={}, inversion=sent, api_name="/edit")[2]), picture(edited))
    ask("/random_face", seed=7)  # a file may say of itself what it likes
    sent = gradio_client.handle_file(ask("/download", kind="inversion"))
    assert read_mark(Path(other.predict(strengths={}, inversion=sent, api_name="/edit")[2])) == EDITED
    steps: dict[str, Any] = {"num_w_steps": 2, "num_tuning_steps": 3}
    _, alone = ask("/invert", photo=file, method="pti", **steps)
    together, figures = ask("/invert", photo=file, others=[file, sent_photo], method="pti", **steps)
    assert figures["tuning_steps"] == alone["tuning_steps"] == 3 and figures["l2"] != alone["l2"]
    assert same(picture(ask("/edit", strengths={})[2]), picture(together))
    with pytest.raises(gradio_client.exceptions.AppError, match=r"`others` are for pti, .* and not for e4e"):
        ask("/invert", photo=file, others=[file], method="e4e")
    assert ask("/stop") is False
    assert ask("/delete") > 5
    with pytest.raises(gradio_client.exceptions.AppError, match="There is no inversion here"):
        ask("/edit", strengths={})
    assert all(called.values()), called


def test_calls_of_one_client_at_the_same_time(connect: Connect, photo: Image.Image, tmp_path: Path) -> None:
    client, files, expected = connect(), [], []
    for k, place in enumerate((Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180)):
        photo.transpose(place).save(tmp_path / f"{k}.png")
        files.append(gradio_client.handle_file(tmp_path / f"{k}.png"))
        about = {"strengths": {"smile": 2.0}, "api_name": "/invert_and_edit"}
        expected.append(picture(client.predict(photo=files[-1], **about)[2]))
    assert not same(*expected)
    jobs = [(k, client.submit(photo=files[k], **about)) for k in (0, 1, 0, 1, 0, 1)]
    assert all(same(picture(job.result(60)[2]), expected[k]) for k, job in jobs)


def test_calls_beside_a_run_leave_it_alone_and_a_stop_ends_all(connect: Connect, file: Any) -> None:
    client = connect()
    client.predict(photo=file, api_name="/invert")
    endless = {"method": "pti", "num_tuning_steps": 1000, "pivot": "e4e"}
    jobs = [client.submit(photo=file, **endless, api_name="/invert") for _ in range(2)]
    until(lambda: all(job.status().progress_data for job in jobs))  # one runs, one waits
    assert len(client.predict(photo=file, api_name="/faces")) == 2
    assert client.predict(strengths={}, api_name="/edit")  # what was inverted is still there
    client.predict(seed=1, api_name="/random_face")
    assert not any(job.done() for job in jobs)
    assert client.predict(api_name="/stop") and not client.predict(api_name="/stop")
    ended = {str(job.exception(60) or job.result()[1]["stopped_by"]) for job in jobs}
    assert "callback" in ended <= {"callback", "The run was stopped before it began."}  # or just when its turn came


def test_a_deletion_takes_earlier_photos_too(connect: Connect, photo: Image.Image, app: Served, tmp_path: Path) -> None:
    client = connect()
    for k in range(2):
        photo.rotate(k).save(tmp_path / f"mine{k}.png")
        client.predict(photo=gradio_client.handle_file(tmp_path / f"mine{k}.png"), api_name="/invert")
    assert len([*app.folder.rglob("mine?.png")]) == 2
    client.predict(api_name="/delete")
    assert not [*app.folder.rglob("mine?.png")]


def test_a_deletion_leaves_the_equal_photo_of_another_client(
    connect: Connect, photo: Image.Image, app: Served, tmp_path: Path
) -> None:
    photo.rotate(5).save(tmp_path / "ours.png")
    clients = [connect() for _ in range(2)]
    for client in clients:
        client.predict(photo=gradio_client.handle_file(tmp_path / "ours.png"), api_name="/invert")
    for client, left in zip(clients, (1, 0)):
        assert len([*app.folder.rglob("ours.png")]) == 1  # Gradio keeps equal uploads in one place
        client.predict(api_name="/delete")
        assert len([*app.folder.rglob("ours.png")]) == left


def test_calls_without_a_session_wait_as_one_client(app: Served, path: Path) -> None:
    address = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    tuning = {"photo": address, "method": "pti", "pivot": "e4e", "num_tuning_steps": 100}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = sorted(pool.map(lambda _: http(app.url, "/invert", tuning), range(3)))
    assert [answer.partition("\n")[0] for answer in answers] == ["event: complete"] * 2 + ["event: error"]
    assert "A photo of yours waits to be sharpened already" in answers[2]
    from gradio.context import LocalContext

    from stylegan_inversion.webapp.studio import Visit

    LocalContext.event_id.set("one")
    visit, (draw,) = Visit(), [each.fn for each in app.demo.fns.values() if each.api_name == "random_face"]
    came = {"session_hash": None, "client": SimpleNamespace(host="10.0.0.1")}  # a proxy's, as on a Space
    draw(7, 0.7, "", visit, SimpleNamespace(headers={"x-forwarded-for": "203.0.113.7"}, **came))
    assert visit.key == "address 203.0.113.7"
    lanes = {each.concurrency_id for each in app.demo.fns.values() if each.concurrency_limit == 12}
    assert lanes == {"tune", "compare", "load", "stop", "redraw", "api-slow"}  # none waits behind those of another kind
    ended = {key for each in app.demo.fns.values() if each.concurrency_limit != 12 for key in each.cancels}
    runs = [key for key, each in app.demo.fns.items() if each.concurrency_id in {"tune", "compare", "load", "redraw"}]
    assert {*runs} <= ended  # by a deletion


def test_calls_without_a_session_push_no_visitor_out(
    connect: Connect, file: Any, app: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.demo.state_holder.session_data.clear()
    client = connect()
    client.predict(photo=file, api_name="/invert")
    monkeypatch.setattr(app.demo.state_holder, "capacity", 2)
    for _ in range(3):
        assert "event: complete" in http(app.url, "/random_face", {})
    client.predict(strengths={}, api_name="/edit")
    assert len(app.demo.state_holder.session_data) == 1


@pytest.mark.parametrize("data", [b"PK", *damaged_zips()])
def test_a_damaged_zip(data: bytes, connect: Connect, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(gradio_client.exceptions.AppError, match="`inversion` must be a zip that /download gave"):
        connect().predict(strengths={}, inversion=gradio_client.handle_file(tmp_path / "x.zip"), api_name="/edit")
    assert not [record for record in caplog.records if record.exc_info]


def test_what_is_deleted_while_a_call_goes_on_does_not_come_back(connect: Connect, file: Any) -> None:
    client = connect()
    client.predict(photo=file, api_name="/invert")
    endless = {"method": "pti", "num_tuning_steps": 1000, "pivot": "e4e"}
    job = client.submit(photo=file, **endless, api_name="/invert")
    until(lambda: job.status().progress_data)
    client.predict(api_name="/delete")
    job.result(60)  # the deletion has ended it
    with pytest.raises(gradio_client.exceptions.AppError, match="There is no inversion here"):
        client.predict(strengths={}, api_name="/edit")


def test_tuning_by_a_program(connect: Connect, file: Any, app: Served) -> None:
    client = connect()
    about = {"photo": file, "method": "pti", "pivot": "w", "num_w_steps": 2, "num_tuning_steps": 3}
    _, report = client.predict(**about, api_name="/invert")
    assert (report["w_steps"], report["tuning_steps"], report["pivot"]) == (2, 3, "w")
    saved = gradio_client.handle_file(client.predict(kind="png", strengths={"sefa_1": 1.0}, api_name="/download"))
    assert client.predict(picture=saved, photo=file, api_name="/redraw")[1]["same"]
    endless = {**about, "num_tuning_steps": 1000, "pivot": "e4e"}
    job = client.submit(**endless, api_name="/invert")
    until(lambda: client.predict(api_name="/stop"))
    assert job.result(60)[1]["stopped_by"] == "callback"  # the best so far
    job = client.submit(**endless, api_name="/invert")
    until(lambda: job.status().code.name in ("ITERATING", "PROGRESS", "PROCESSING"))
    job.cancel()
    _, report = connect().predict(**about, api_name="/invert")  # the slot is free again
    assert report["tuning_steps"] == 3


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("/edit", {"strengths": {"smile": 1e9}}, r"'smile' must be in \[-\d.*\], got 1e\+09"),
        ("/invert_and_edit", {"photo": None, "strengths": {"smile": 1e9}}, "'smile' must be in"),  # before all else
        ("/edit", {"strengths": {"nobody": 1.0}}, "There is no direction 'nobody'; there are smile"),
        ("/edit", {"strengths": {"smile": "x"}}, "`strengths`: Input should be a valid number.*got"),
        ("/edit", {"strengths": {}, "model": "../../etc"}, "There is no inversion here|cannot be chosen here"),
        ("/invert", {"photo": "photo.jpg"}, "This file was not uploaded here"),
        ("/invert", {"photo": None}, "Choose a photo first: an uploaded file"),
        ("/invert", {"photo": {"path": "https://example.org/x.png"}}, "fetches nothing from the web"),
        ("/invert", {"photo": [{"x": {"path": "https://example.org/x.png"}}]}, "fetches nothing from the web"),
        ("/invert", {"photo": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}}, "was not uploaded here"),
        ("/invert", {"photo": "data:image/png;base64,AAAA"}, "not an image"),
        (
            "/invert",
            {"photo": f"data:image/heic;base64,{HEIC}"},
            "is a HEIC image or a video; convert it to JPEG or PNG",
        ),
        ("/invert", {"photo": f"data:image/avif;base64,{AVIF}"}, "is an AVIF image; convert it to JPEG or PNG first"),
        ("/invert", {"photo": None, "num_tuning_steps": 10**6}, "`num_tuning_steps`: Input should be less than"),
        ("/invert", {"photo": None, "preset": "quick", "method": "pti"}, "Choose a photo|`preset` must be one of"),
        ("/download", {"kind": "weights"}, "`kind`: Input should be 'jpeg'"),
        ("/random_face", {"seed": -1}, "`seed`: Input should be greater than or equal to 0"),
        ("/translate", {"picture": None}, "Choose a photo first"),
        ("/translate", {"picture": None, "num_outputs": 99}, "`num_outputs`: Input should be less than or equal to 16"),
        ("/redraw", {"picture": "x", "photo": None}, "was not uploaded here"),
        ("/redraw", {"picture": receipt(num_w_steps=9999), "photo": None}, "asks for 'pti' with .*9999.* does not do"),
        ("/redraw", {"picture": receipt("stranger/model"), "photo": None}, "'stranger/model' cannot be chosen here"),
        ("/redraw", {"picture": receipt(), "photo": None}, "Choose a photo first"),
        ("/mix", {"other": "x"}, "There is no inversion|was not uploaded here"),
    ],
)
def test_refusals(name: str, arguments: dict[str, Any], match: str, app: Served, caplog: Any) -> None:
    answer = http(app.url, name, arguments)
    assert answer.startswith("event: error")
    words = json.loads(answer.rpartition("data: ")[2])["error"]
    with pytest.raises(ValueError, match=match):
        raise ValueError(words)
    assert not [each for each in ("Traceback", str(app.folder), "site-packages") if each in answer]
    assert not [record for record in caplog.records if record.exc_info]  # a visitor's mistake fills no log


def test_plain_http(app: Served, path: Path, photo: Image.Image) -> None:
    with httpx.Client(base_url=app.url, timeout=60) as client, path.open("rb") as data:
        sent = client.post("/gradio_api/upload", files={"files": ("x.png", data, "image/png")}).json()[0]
        large = client.post("/gradio_api/upload", files={"files": ("x.zip", b"x" * 26_000_000)})
        assert large.status_code == 413 and "larger than 24 MB" in large.json()["detail"]
    upload = {"path": sent, "meta": {"_type": "gradio.FileData"}}
    address = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    for given in (upload, address, {"url": address}):
        assert "event: complete" in http(app.url, "/invert", {"photo": given}, session="mine")
    drawn = json.loads(http(app.url, "/edit", {"strengths": {"smile": 1.0}}, session="mine").rpartition("data: ")[2])
    assert httpx.get(drawn[0]["url"]).headers["content-type"] == "image/png"
    assert "There is no inversion here" in http(app.url, "/edit", {"strengths": {}}, session="other")


def test_nothing_says_where_the_package_is(app: Served) -> None:
    places = ("/", "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/mcp/schema")
    with httpx.Client(base_url=app.url, timeout=60) as client:
        for place in places:
            assert str(Path(stylegan_inversion.__file__).parents[1]) not in client.get(place).text
        parts = client.get("/config").json()["components"]
        (samples,) = [each["props"]["value"] for each in parts if each["props"].get("elem_id") == "examples"]
        for sample in samples:
            image = client.get(f"/gradio_api/file={sample['image']['path']}")
            assert image.headers["content-type"] == "image/jpeg"


def http(url: str, name: str, arguments: dict[str, Any], session: str | None = None) -> str:
    """The last event of a call with named arguments."""
    asked = {**arguments, **({"session_hash": session} if session else {})}
    with httpx.Client(base_url=url, timeout=60) as client:
        if session:
            names = client.get("/gradio_api/info").json()["named_endpoints"][name]["parameters"]
            given = [arguments.get(each["parameter_name"], each.get("parameter_default")) for each in names]
            begun = client.post(f"/gradio_api/call{name}", json={"data": given, "session_hash": session})
        else:
            begun = client.post(f"/gradio_api/call/v2{name}", json=asked)
        text = client.get(f"/gradio_api/call{name}/{begun.json()['event_id']}").text
    return "event:" + text.strip().rpartition("event:")[2]


def test_programs_are_never_mixed(connect: Connect, app: Served, tmp_path: Path) -> None:
    def work(number: int) -> None:
        client = connect()
        colour = (number * 30 % 256, 255 - number * 30 % 256, number * 77 % 256)
        Image.new("RGB", (96, 80), colour).save(tmp_path / f"{number}.png")
        sent = gradio_client.handle_file(tmp_path / f"{number}.png")
        for _ in range(3):
            client.predict(photo=sent, align=False, api_name="/invert")
            whole = picture(client.predict(strengths={}, api_name="/edit")[0])
            assert whole.getpixel((5, 5)) == colour

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_what_each_argument_takes_is_said_in_json_schema(app: Served) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    endpoints = httpx.get(f"{app.url}/gradio_api/info").json()["named_endpoints"]
    assert len(endpoints) == 13
    for endpoint in endpoints.values():
        for parameter in endpoint["parameters"]:
            jsonschema.Draft202012Validator.check_schema(parameter["type"])
            assert parameter["type"].get("type") or parameter["type"].get("anyOf") or "properties" in parameter["type"]
