"""What a visitor's data are safe from, and that they go when the visitor wants it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

gr = pytest.importorskip("gradio")
import stylegan_inversion.webapp.visitor_files as visitor_files  # noqa: E402
from tests.webapp.checks import EXPIRED, until  # noqa: E402
from tests.webapp.tiny_app import Served  # noqa: E402
from tests.webapp.visitor import Visitor  # noqa: E402

Visit = Callable[..., Visitor]


def files(app: Served) -> set[Path]:
    """What lies on the disk, without the examples."""
    found = {each for each in app.janitor.folder.rglob("*") if each.is_file()} - app.janitor._kept
    return {each for each in found if each.name != ".in-use"}


def test_delete_my_data(visit: Visit, path: Path, app: Served) -> None:
    anna, bert = visit(), visit()
    before = files(app)
    Image.new("RGB", (320, 240), "red").save(path.with_name("hers.png"))
    upload = anna.upload(path.with_name("hers.png"))
    anna.call("find", upload, True, "tiny")
    shown = anna.invert(upload, method="e4e")
    anna.edit(smile=2.0)
    for name in ("download_1", "download_2", "download_3", "download_5", "download_6"):  # 4 is PTI's delta
        count = len(anna.events[name]["inputs"])
        anna.call(name, None, *[1.0] * (count - 1))
    anna.join_invert(upload, method="pti", steps=1000)
    until(lambda: app.sessions._running)
    mine = files(app)
    his = bert.upload(path)
    bert.invert(his, method="e4e")
    bert_only = files(app) - mine
    assert len(mine - before) > 8 and bert_only
    answer = anna.call_now("forget")
    assert "Deleted: your photo, 2 results and all files." in answer["html"]  # e4e's, and the one that runs
    list(anna.reports("invert_1"))  # it ends
    assert files(app) - before <= bert_only
    assert anna.http.get(shown["Face: before | after"][1]["url"]).status_code in (403, 404)
    with pytest.raises(RuntimeError, match=EXPIRED):
        anna.edit(smile=1.0)
    bert.edit(smile=1.0)
    assert "0 results" in anna.call_now("forget")["html"]


@pytest.mark.parametrize(("event", "picture"), [("invert_1", "preview"), ("invert_1", "photo"), ("compare_1", "face")])
def test_data_deleted_while_a_picture_is_written(
    event: str, picture: str, visit: Visit, path: Path, app: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visit()
    before, answers = files(app), []
    upload = visitor.upload(path)
    visitor.call("find", upload, True, "tiny")
    save = visitor_files.save_marked

    def deleted_meanwhile(image: Image.Image, folder: Path, *, name: str, **options: Any) -> Path:
        if name == picture:
            answers.append(visitor.call_now("forget")["html"])
        return save(image, folder, name=name, **options)

    monkeypatch.setattr(visitor_files, "save_marked", deleted_meanwhile)
    if event == "invert_1":
        visitor.join_invert(upload, method="pti", steps=1000 if picture == "preview" else 3)
    else:
        visitor.call_now("waiting_1", None)
        visitor.join(event, None, upload, 0, True, "tiny", False, "smile", 3.0)
    *_, (is_last, values) = visitor.reports(event)
    assert is_last and "expired" not in values["html"]  # no error is shown to one who wanted it so
    assert len(answers) == 1 and "Deleted: your photo, 1 result and all files." in answers[0]
    until(lambda: not app.sessions._running)
    assert files(app) <= before
    visitor.invert(visitor.upload(path), method="e4e")  # a new one can begin


def test_another_visitor_with_the_same_session_hash(visit: Visit, path: Path) -> None:
    anna = visit()
    anna.invert(anna.upload(path), method="e4e")
    thief = visit(session_hash=anna.session_hash)
    for name in ("redraw", "reset", "download_1", "take"):
        count = len(thief.events[name]["inputs"])
        with pytest.raises(RuntimeError, match="403: This page belongs to another visitor"):
            thief.call(name, *[None] * 2, *[0.0] * (count - 2))
    anna.edit(smile=1.0)  # still hers


def test_tokens_of_the_page_are_not_for_programs(visit: Visit, path: Path, app: Served, connect: Any) -> None:
    visitor = visit()
    visitor.invert(visitor.upload(path), method="e4e")
    *_, token = (token for token, entry in app.sessions._entries.items() if entry.owner)
    client = connect()
    for name in ("/edit", "/download", "/animate"):
        with pytest.raises(Exception, match=EXPIRED):
            client.predict(token, api_name=name)
    assert client.predict(token, api_name="/delete") is False and client.predict(token, api_name="/stop") is False
    visitor.edit(smile=1.0)
