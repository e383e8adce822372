"""Whatever path a visitor names, on whatever road: only uploads are opened, and the refusal tells nothing."""

import base64
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

gr = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
from stylegan_inversion.webapp import photos  # noqa: E402
from stylegan_inversion.webapp.janitor import Janitor  # noqa: E402
from stylegan_inversion.webapp.photos import NOT_UPLOADED, names_other_files, open_upload, photo_input  # noqa: E402
from tests.webapp.conftest import Visit  # noqa: E402
from tests.webapp.tiny_app import Served  # noqa: E402

META = {"_type": "gradio.FileData"}
OLD = 1_000_000_000  # a time stamp that nothing but `os.utime` changes
needs_posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")


@pytest.fixture
def uploaded(app: Served, photo: Image.Image) -> Path:
    """A photo that lies where an upload does."""
    path = app.janitor.folder / secrets.token_hex(8) / "photo.png"
    path.parent.mkdir()
    photo.save(path)
    return path


@pytest.fixture
def others(app: Served, uploaded: Path, photo: Image.Image, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Names of what is no upload. All pictures there have the time stamp `OLD`."""
    secret = tmp_path / "secret.png"
    photo.save(secret, exif=b"")
    secret.chmod(0o600)
    other = tmp_path / "stylegan-inversion-app-other" / "abc" / "photo.png"
    other.parent.mkdir(parents=True)
    photo.save(other)
    inside = app.janitor.folder / secrets.token_hex(8)
    inside.mkdir()
    os.mkfifo(inside / "fifo.png")
    (inside / "link.png").symlink_to(secret)
    (inside / "loop.png").symlink_to(inside / "loop.png")
    (inside / "folder").symlink_to(tmp_path)
    partial = app.janitor.folder / "tmp1234"
    photo.save(partial, format="png")
    for path in (secret, other):
        os.utime(path, (OLD, OLD))
    up = "../" * len(inside.parts)
    yield {
        "a private photo": str(secret),
        "a photo of another app": str(other),
        "a file of the system": "/etc/shadow",
        "no file": str(tmp_path / "none.png"),
        "no file inside": str(inside / "none.png"),
        "a device": "/dev/zero",
        "the standard input": "/dev/stdin",
        "a process": "/proc/self/environ",
        "a pipe inside": str(inside / "fifo.png"),
        "a link to the outside": str(inside / "link.png"),
        "a linked folder": str(inside / "folder" / "secret.png"),
        "a loop of links": str(inside / "loop.png"),
        "a folder": str(inside),
        "the folder itself": str(app.janitor.folder),
        "a lock": str(app.janitor.folder / ".in-use"),
        "half an upload": str(partial),
        "upwards": f"{inside}/{up}{str(secret)[1:]}",
        "upwards, relative": os.path.relpath(secret),
        "relative": "README.md",
        "nothing": "",
        "home": "~/.bashrc",
        "a zero": f"{uploaded}\0.png",
        "half a character": "\ud800",
        "long": "a" * 10_000,
        "an address": "http://127.0.0.1:1/x.png",
        "an address of files": f"file://{uploaded}",
        "data": "data:image/png;base64,AAAA",
    }
    partial.unlink()
    assert secret.stat().st_mtime == other.stat().st_mtime == OLD


def shapes(path: str) -> list[Any]:
    """How a request can name a file."""
    named = {"path": path, "meta": META}
    return [
        {"path": path},
        named,
        {"path": path, "meta": {"_type": "other"}},
        {"path": path, "url": path},
        {**named, "url": "http://127.0.0.1:7860/gradio_api/file=x", "orig_name": "photo.png", "size": 9},
        {**named, "is_stream": True},
        {"image": named, "caption": None},
        [named],
        [[{"image": named, "caption": "x"}, "x"]],
        {"root": [{"a": {"b": [named]}}]},
        {"__type__": "update", "value": named},
    ]


# The door


@needs_posix
def test_only_uploads_are_opened(others: dict[str, str], uploaded: Path) -> None:
    os.utime(uploaded, (OLD, OLD))
    with open_upload(str(uploaded), max_bytes=10**6) as file:
        assert file.read() == uploaded.read_bytes() and Path(file.name) == uploaded
    assert uploaded.stat().st_mtime > OLD  # it is in use
    assert not names_other_files(shapes(str(uploaded)))
    for what, path in others.items():
        with pytest.raises(photos.NotUploadedError) as caught:
            open_upload(path)
        assert str(caught.value) == NOT_UPLOADED, what
        for shape in shapes(path):
            assert names_other_files(shape) and names_other_files([0, {"x": shape}]), what


def test_an_upload_has_a_limit(uploaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = uploaded.stat().st_size
    open_upload(str(uploaded), max_bytes=size).close()
    with pytest.raises(photos.NotUploadedError, match=NOT_UPLOADED):
        open_upload(str(uploaded), max_bytes=size - 1)
    read = photo_input(render=False).preprocess
    assert read(SimpleNamespace(path=str(uploaded))) == uploaded.read_bytes()
    monkeypatch.setattr(photos, "MAX_PHOTO_BYTES", size - 1)
    with pytest.raises(gr.Error, match=NOT_UPLOADED):
        read(SimpleNamespace(path=str(uploaded)))
    assert read(None) is None and read(SimpleNamespace(path=None)) is None


def test_the_files_of_a_model(uploaded: Path, tmp_path: Path) -> None:
    read = photos.folder_input(render=False).preprocess
    assert read([SimpleNamespace(path=str(uploaded))]) == [uploaded] and read(None) == []
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(gr.Error, match=NOT_UPLOADED):
        read([SimpleNamespace(path=str(uploaded)), SimpleNamespace(path=str(tmp_path / "config.json"))])


def test_many_files_in_one_request(app: Served, uploaded: Path) -> None:
    paths = [{"path": f"{uploaded.parent}{'/.' * i}/photo.png"} for i in range(photos.MAX_PATHS + 1)]
    assert not names_other_files(paths[1:]) and names_other_files(paths)
    assert not names_other_files([paths[0]] * 1000)


def test_after_the_end_nothing_is_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with Janitor(tmp_path) as janitor:
        path = janitor.folder / "a" / "photo.png"
        path.parent.mkdir()
        path.touch()
        assert not names_other_files({"path": str(path)})
    path.parent.mkdir(parents=True)
    path.touch()
    assert names_other_files({"path": str(path)})


def has_files(component: Any) -> bool:
    """Whether a component's value on the page names files."""
    model = getattr(component, "data_model", None)
    return model is not None and '"path"' in json.dumps(model.model_json_schema())


def comes_through_the_door(component: Any) -> bool:
    return component.preprocess.__module__ == photos.__name__


def test_no_function_takes_files_past_the_door(app: Served) -> None:
    functions = app.demo.fns.values()
    taken = {each._id: each for function in functions for each in function.inputs if has_files(each)}
    assert len(taken) == 3  # the page's photo, the API's, and the folder of a model
    assert all(comes_through_the_door(each) for each in taken.values())
    assert not any(getattr(each, "server_fns", None) for each in app.demo.blocks.values())
    assert not any(function.batch or function.component_prop_inputs for function in functions)
    for plain in (gr.Image, gr.File, gr.Gallery, gr.ImageSlider, gr.DownloadButton, gr.Video, gr.ImageEditor):
        component = plain(render=False)
        assert has_files(component) and not comes_through_the_door(component)  # it would be seen
    assert not has_files(gr.JSON(render=False)) and not has_files(gr.Textbox(render=False))


# The running app


@pytest.fixture
def client(app: Served) -> Iterator[Any]:
    with httpx.Client(base_url=app.url, timeout=60, headers={"connection": "close"}) as client:
        yield client


def last_event(client: Any, address: str) -> str:
    return str(client.get(address).text).rstrip().rpartition("\n\n")[2]


Send = Callable[[Any, str, int, list[Any]], Any]
ROADS: dict[str, Send] = {
    "queue/join": lambda client, name, number, data: client.post(
        "/gradio_api/queue/join", json={"data": data, "fn_index": number, "session_hash": secrets.token_hex(6)}
    ),
    "call": lambda client, name, number, data: client.post(f"/gradio_api/call/{name}", json={"data": data}),
    "call/v2": lambda client, name, number, data: client.post(f"/gradio_api/call/v2/{name}", json={"photo": data[0]}),
    "run": lambda client, name, number, data: client.post(
        f"/gradio_api/run/{name}", json={"data": data, "fn_index": number}
    ),
    "run/mcp": lambda client, name, number, data: client.post(
        "/gradio_api/run/mcp", json={"data": data, "fn_index": number}
    ),
    "api": lambda client, name, number, data: client.post(f"/gradio_api/api/{name}", json={"data": data}),
    "event_data": lambda client, name, number, data: client.post(
        "/gradio_api/queue/join",
        json={"data": [], "event_data": data[0], "fn_index": number, "session_hash": secrets.token_hex(6)},
    ),
    "component_server": lambda client, name, number, data: client.post(
        "/gradio_api/component_server",
        json={"data": data, "component_id": number, "fn_name": "x", "session_hash": secrets.token_hex(6)},
    ),
    "mcp": lambda client, name, number, data: client.post(
        "/gradio_api/mcp/",
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": data[0]}},
    ),
}


def refusal(answer: Any) -> tuple[int, bytes]:
    return answer.status_code, answer.content


EXPECTED = (403, json.dumps({"detail": NOT_UPLOADED}).encode())


@needs_posix
def test_every_way_to_name_a_file_is_refused_alike(client: Any, others: dict[str, str], uploaded: Path) -> None:
    for what, path in others.items():
        if path.isascii():  # `httpx` sends no half characters
            for shape in shapes(path):
                assert refusal(ROADS["call"](client, "faces", 0, [shape])) == EXPECTED, what
    for sent in (b'{"data": [{"path": "\\ud800"}]}', json.dumps({"data": [{"path": "/etc/shadow"}]}).encode("utf-16")):
        kind = {"content-type": "application/json"}
        assert refusal(client.post("/gradio_api/call/faces", content=sent, headers=kind)) == EXPECTED
    good = client.post("/gradio_api/call/faces", json={"data": [{"path": str(uploaded), "meta": META}]})
    assert '"score"' in last_event(client, f"/gradio_api/call/faces/{good.json()['event_id']}")


@needs_posix
def test_every_road_is_shut(app: Served, client: Any, others: dict[str, str], uploaded: Path) -> None:
    chosen = ("a private photo", "no file", "a device", "a link to the outside", "an address")
    names = {function.api_name or "x": number for number, function in app.demo.fns.items()}
    assert len(names) > 40
    for name, number in names.items():  # whatever it takes, by name and by number
        count = max(len(app.demo.fns[number].inputs), 1)
        for what in chosen[:2]:
            data = [{"path": others[what], "meta": META}] * count
            for road in ("queue/join", "call", "run"):
                assert refusal(ROADS[road](client, name, number, data)) == EXPECTED, (name, road)
    for road, send in ROADS.items():
        for what in chosen:
            for shape in ({"path": others[what]}, {"photo": {"path": others[what], "meta": META}}):
                assert refusal(send(client, "faces", names["faces"], [shape])) == EXPECTED, (road, what)
        good = send(client, "faces", names["faces"], [{"path": str(uploaded), "meta": META}])
        assert good.content != EXPECTED[1] and NOT_UPLOADED not in good.text, road
        if road in ("queue/join", "call", "call/v2"):
            assert good.status_code == 200, road


def test_the_roads_that_read_files_by_address(client: Any, uploaded: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    for path in ("/etc/passwd", "../../../etc/passwd", str(tmp_path / "secret.png"), str(Path(__file__)), "/dev/zero"):
        for route in ("file=", "file/", "proxy="):
            answer = client.get(f"/gradio_api/{route}{path}")
            assert answer.status_code in (400, 403, 404) and b"secret" not in answer.content[:9], route
    assert client.get(f"/gradio_api/file={uploaded}").content == uploaded.read_bytes()
    assert client.post("/gradio_api/stream/x", json={"data": [{"path": "/etc/passwd"}]}).status_code == 403


def test_the_download_of_the_play_tab(app: Served, visit: Visit, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "secret.png")
    visitor = visit()
    number = next(n for n, f in app.demo.fns.items() if f.name == "download" and len(f.inputs) == 1)
    name = next(each for each, event in visitor.events.items() if event["id"] == number)
    for sent in (str(tmp_path / "secret.png"), None, [str(tmp_path / "secret.png")]):  # a component it does not take
        with pytest.raises(RuntimeError, match="The animation has expired"):
            visitor.call(name, sent)
    with pytest.raises(RuntimeError, match=NOT_UPLOADED):
        visitor.call(name, {"path": str(tmp_path / "secret.png"), "meta": META})
    for take in ("draw", "draw_1"):
        visitor.call(take, None, "tiny", secrets.randbelow(1000), 0.7)
    assert visitor.call("morph", None, None)
    (file,) = visitor.call(name, None).values()
    assert visitor.fetch(file).startswith(b"GIF8")


# MCP


def test_tools_read_no_files(app: Served, others: dict[str, str], uploaded: Path) -> None:
    mcp = pytest.importorskip("mcp", reason="MCP is missing: pip install 'gradio[mcp]'")
    import anyio
    from mcp.client.streamable_http import streamable_http_client

    photo = f"data:image/png;base64,{base64.b64encode(uploaded.read_bytes()).decode()}"
    chosen = [path for what, path in others.items() if what not in ("data", "long", "half a character", "a zero")]

    async def tools() -> tuple[Any, Any, list[str]]:
        async with streamable_http_client(f"{app.url}/gradio_api/mcp/") as (receive, send, _):
            async with mcp.ClientSession(receive, send) as session:
                await session.initialize()
                models = await session.call_tool("models", {})
                good = await session.call_tool("faces", {"photo": photo})
                refused = [await session.call_tool("faces", {"photo": path}) for path in chosen]
                assert all(each.isError for each in refused)
                return models, good, [each.content[0].text for each in refused]

    models, good, refused = anyio.run(tools)
    assert "tiny" in models.content[0].text and "score" in good.content[0].text
    for path, words in zip(chosen, refused):  # not even whether it is there
        assert words.replace(path, "") == refused[0].replace(chosen[0], "") or path.startswith("http"), words
