"""Tools of language models, called by the official SDK."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

mcp = pytest.importorskip("mcp")
from mcp.client.streamable_http import streamablehttp_client  # noqa: E402

from tests.webapp.tiny_app import Served  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This MCP server includes a tool"),
]
NAMES = "delete download edit faces interpolate invert invert_and_edit mix models random_face redraw stop translate"


def ask(app: Served, *calls: tuple[str, dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """The tools, and the answers of calls within one connection."""

    async def talk() -> tuple[list[Any], list[Any]]:
        async with (
            streamablehttp_client(f"{app.url}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            return tools, [await session.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(talk())


def pictures(answer: Any) -> list[Image.Image]:
    found = [each for each in answer.content if each.type == "image"]
    return [Image.open(io.BytesIO(base64.b64decode(each.data))) for each in found]


def test_every_tool(app: Served, path: Path, photo: Image.Image, connect: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    client = connect()
    gradio_client = pytest.importorskip("gradio_client")
    client.predict(photo=gradio_client.handle_file(path), api_name="/invert")
    archive = Path(client.predict(kind="inversion", api_name="/download"))
    sent = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    inversion = f"data:application/zip;base64,{base64.b64encode(archive.read_bytes()).decode()}"
    saved = Path(client.predict(kind="png", strengths={"smile": 2.0}, api_name="/download"))
    picture = f"data:image/png;base64,{base64.b64encode(saved.read_bytes()).decode()}"
    smile = {"smile": 2.0}
    calls: list[tuple[str, dict[str, Any], int]] = [
        ("models", {}, 0),
        ("faces", {"photo": sent}, 0),
        ("invert", {"photo": sent}, 1),
        ("edit", {"strengths": smile, "inversion": inversion}, 3),
        ("invert_and_edit", {"photo": sent, "strengths": smile}, 3),
        ("invert_and_edit", {"photo": sent, "strengths": smile, "method": "pti", "num_tuning_steps": 2}, 3),
        ("random_face", {"seed": 3}, 1),
        ("mix", {"other": inversion, "what": "features", "inversion": inversion}, 1),
        ("interpolate", {"other": inversion, "inversion": inversion, "frames": 3}, 1),
        ("download", {"kind": "png", "inversion": inversion}, 1),
        ("translate", {"picture": sent, "num_outputs": 3}, 4),
        ("redraw", {"picture": picture, "photo": sent}, 1),
        ("stop", {}, 0),
        ("delete", {}, 0),
    ]
    tools, answers = ask(app, *((name, arguments) for name, arguments, _ in calls))
    assert sorted(tool.name for tool in tools) == NAMES.split() == sorted({name for name, *_ in calls})
    for tool in tools:
        jsonschema.Draft202012Validator.check_schema(tool.inputSchema)
        assert tool.description and all(each.get("description") for each in tool.inputSchema["properties"].values())
    for (name, _, count), answer in zip(calls, answers, strict=True):
        assert not answer.isError, (name, answer.content)
        assert len(pictures(answer)) == count, (name, answer.content)
    assert pictures(answers[3])[0].size == photo.size


def test_mistakes_are_sentences_and_nothing_of_one_caller_is_kept(app: Served, path: Path) -> None:
    sent = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    _, (kept, address, wild, unknown) = ask(
        app,
        ("invert", {"photo": sent}),
        ("invert", {"photo": "https://example.org/face.jpg"}),
        ("invert_and_edit", {"photo": sent, "strengths": {"smile": 1e9}}),
        ("edit", {"strengths": {"smile": 1.0}}),
    )
    assert not kept.isError
    for answer, words in ((address, "fetches nothing"), (wild, "must be in"), (unknown, "There is no inversion")):
        assert answer.isError and words in answer.content[0].text and "Traceback" not in answer.content[0].text
    assert not [each for each in app.folder.iterdir() if each.is_file()]
