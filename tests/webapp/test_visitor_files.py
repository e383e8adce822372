from pathlib import Path
from typing import Any

import pytest
from PIL import Image

gr = pytest.importorskip("gradio")
from stylegan_inversion.webapp import visitor_files as module  # noqa: E402
from stylegan_inversion.webapp.actions import Actions  # noqa: E402
from stylegan_inversion.webapp.messages import EXPIRED  # noqa: E402


def test_files_of_who_was_forgotten_meanwhile(actions: Actions, photo: Image.Image) -> None:
    began = actions.sessions.now()
    whose: dict[str, Any] = {"owner": "anna", "since": began}
    kept = actions.files.picture(photo, name="face", **whose)
    actions.forget("anna")
    assert not Path(kept).exists()
    for write in (
        lambda: actions.files.picture(photo, name="face", **whose),
        lambda: actions.files.original(photo, **whose),
    ):
        with pytest.raises(gr.Error, match=EXPIRED):
            write()
    assert not list(actions.files.folder_of("anna").rglob("*.*"))
    assert Path(actions.files.picture(photo, name="face", owner="anna", since=actions.sessions.now())).is_file()


def test_a_picture_that_nothing_changed_has_one_path(actions: Actions, photo: Image.Image) -> None:
    first, again = (actions.files.original(photo, owner="anna") for _ in range(2))
    assert first == again and Path(first).is_file()
    others = {actions.files.original(photo, owner="bert"), actions.files.original(photo.rotate(180), owner="anna")}
    assert len({first, *others}) == 3
    actions.forget("anna")
    assert not Path(first).exists() and sum(Path(path).exists() for path in others) == 1


def test_uploads_are_remembered_of_so_many(actions: Actions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_OWNERS", 2)
    paths = {name: actions.janitor.folder / f"{name}.png" for name in ("anna", "bert", "carl")}
    for name, path in paths.items():
        path.write_bytes(b"photo")
        actions.files.remember_upload(path, owner=name)
        actions.files.remember_upload(path, owner=None)  # a program's: its own affair
    assert list(actions.files._uploads) == ["bert", "carl"]
    assert actions.forget("carl") == 0 and not paths["carl"].exists() and paths["bert"].exists()
    assert actions.forget(None) == 0 and paths["anna"].exists()
