import io
import runpy
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylegan_inversion import PTIPipeline
from stylegan_inversion.pipelines.play import sample_face
from stylegan_inversion.webapp.guard import LOOPBACK, KnownHosts
from stylegan_inversion.webapp.janitor import Janitor
from stylegan_inversion.webapp.marking import read_mark
from stylegan_inversion.webapp.model import Model, make_model
from stylegan_inversion.webapp.sessions import Sessions

gr = pytest.importorskip("gradio")
import stylegan_inversion.webapp.app as module  # noqa: E402
from stylegan_inversion.webapp.photos import NOT_UPLOADED  # noqa: E402
from stylegan_inversion.webapp.shown import enlarge  # noqa: E402
from tests.webapp.checks import EXPIRED, differ, until  # noqa: E402
from tests.webapp.tiny_app import Served, tiny_model  # noqa: E402
from tests.webapp.visitor import Visitor  # noqa: E402

Visit = Callable[..., Visitor]


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


# The page


def test_a_photo_and_its_faces(visit: Visit, path: Path, app: Served, photo: Image.Image) -> None:
    visitor = visit()
    upload = visitor.upload(path)
    shown = visitor.call("find", upload, True, "tiny")
    crops = [enlarge(app.model.pti.align(photo, face=face).image) for face in (0, 1)]
    assert shown["Which face"] == 0 and differ(decoded(visitor.fetch(shown["Aligned face"])), crops[0]) < 60
    other = visitor.call("choose", upload, 1, True, "tiny")
    second = decoded(visitor.fetch(other["Aligned face"]))
    assert differ(second, crops[1]) < 60 < differ(second, crops[0])
    assert differ(*(decoded(visitor.fetch(each["Faces found"])) for each in (shown, other))) > 60
    alone = visitor.call("find", upload, False, "tiny")
    assert alone["Faces found"] is None and alone["Aligned face"] is not None
    assert "Aligned face" not in visitor.call("find", None, True, "tiny")


def test_invert_edit_and_reset(visit: Visit, path: Path, photo: Image.Image, app: Served) -> None:
    visitor = visit()
    upload = visitor.upload(path)
    for method in ("e4e", "pti"):
        shown = visitor.invert(upload, method=method)
        assert "mean squared error" in shown["html"] and shown["Smile"] == 0.0
        faces, photos = ("Face: before | after", "Photo: before | after")
        before, after = (decoded(visitor.fetch(each)) for each in shown[faces])
        assert before.size == after.size == (512, 512) and differ(before, after) > 60
        assert differ(decoded(visitor.fetch(shown[photos][0])), photo) < 60
        edited = visitor.edit(smile=4.0)
        assert differ(decoded(visitor.fetch(edited[faces][1])), after) > 30
        assert differ(decoded(visitor.fetch(edited[photos][1])), photo) > 60
        assert edited[faces][0]["path"] == shown[faces][0]["path"]  # so that the browser need not load it again
        reset = visitor.call("reset", None)
        assert reset["Smile"] == 0.0 and differ(decoded(visitor.fetch(reset[faces][1])), after) == 0
    assert len([each for each in app.sessions._entries.values() if each.owner]) == 1  # the last one gave way


def test_compare_and_play(visit: Visit, path: Path) -> None:
    visitor = visit()
    upload = visitor.upload(path)
    visitor.call_now("waiting_1", None)
    visitor.join("compare_1", None, upload, 0, True, "tiny", True, "smile", 3.0)
    seen: dict[str, Any] = {}
    for _, values in visitor.reports("compare_1"):
        seen |= {key: value for key, value in values.items() if value}
    assert {"e4e", "pSp", "PTI", "e4e, edited", "pSp, edited", "PTI, edited", "Photo"} <= set(seen)
    edits = visitor.call("edit_2", None, "smile", -3.0)
    for name in ("e4e, edited", "PTI, edited"):
        assert differ(*(decoded(visitor.fetch(each[name])) for each in (edits, seen))) > 20

    with pytest.raises(RuntimeError, match="Fill place A first"):
        visitor.call("mix_1", None, None, None, 0, 8, 1.0)
    with pytest.raises(RuntimeError, match="Mix two faces first"):
        visitor.call("reopen", None)
    drawn = [visitor.call(name, None, "tiny", seed, 0.7) for name, seed in (("draw", 1), ("draw_1", 2))]
    assert [each["Seed"] for each in drawn] == [2, 3]
    assert visitor.call("mix_1", None, None, None, 0, 8, 1.0)["A with styles of B"]
    assert visitor.call("morph", None, None)["From A to B and back"]["path"].endswith(".gif")
    for _ in range(2):  # an inversion takes the mixture's place in its tab, and the mixture stays in this one
        opened = visitor.call("reopen", None)
        assert "A mixture of two faces" in opened["html"]
        visitor.invert(upload, method="e4e")


def test_places_give_way_and_the_inversion_stays(visit: Visit, path: Path, app: Served) -> None:
    visitor = visit()
    visitor.invert(visitor.upload(path), method="e4e")
    for seed in range(30):  # more than a visitor may keep
        visitor.call("draw", None, "tiny", seed, 0.7)
        visitor.call("draw_1", None, "tiny", seed, 0.7)
        if seed % 10 == 0:
            visitor.call("mix_1", None, None, None, 0, 8, 1.0)
            visitor.call("take", None, None, *[0.0] * (len(visitor.events["take"]["inputs"]) - 2))
    owners = [each.owner for each in app.sessions._entries.values() if each.owner]
    assert owners.count(owners[-1]) == 4  # edit, A, B, mixture
    visitor.edit(smile=1.0)
    with pytest.raises(RuntimeError, match="“From layer” has to be below “to layer”"):
        visitor.call("mix_1", None, None, None, 4, 2, 1.0)


def test_what_was_drawn_is_marked_before_and_after(visit: Visit, tmp_path: Path) -> None:
    visitor = visit()
    for name, seed in (("draw", 1), ("draw_1", 2)):
        visitor.call(name, None, "tiny", seed, 0.7)
    visitor.call("mix_1", None, None, None, 0, 8, 1.0)
    opened = visitor.call("reopen", None)
    for label in ("Face: before | after", "Photo: before | after"):
        for each in opened[label]:
            (tmp_path / "shown.jpg").write_bytes(visitor.fetch(each))
            assert str(read_mark(tmp_path / "shown.jpg")).endswith("/trainedAlgorithmicMedia")


def test_what_fails_gives_the_last_result_back(visit: Visit, path: Path) -> None:
    visitor = visit()
    upload = visitor.upload(path)
    visitor.invert(upload, method="e4e")
    visitor.call_now("waiting")
    Image.new("RGB", (8, 8)).save(path.with_name("tiny.png"))
    bad = visitor.upload(path.with_name("tiny.png"))
    visitor.join("invert_1", None, None, bad, 5, True, "tiny", "e4e", "w", 3, 3)
    with pytest.raises(RuntimeError):
        list(visitor.reports("invert_1"))
    shown = visitor.call_now("back", None)
    assert len(shown["Face: before | after"]) == 2
    visitor.edit(smile=1.0)


def test_a_photo_that_has_expired(visit: Visit, path: Path) -> None:
    visitor = visit()
    upload = visitor.upload(path)
    Path(upload["path"]).unlink()
    with pytest.raises(RuntimeError, match=NOT_UPLOADED):
        visitor.call("find", upload, True, "tiny")


def test_what_a_visitor_is_told(visit: Visit, path: Path) -> None:
    visitor = visit()
    with pytest.raises(RuntimeError, match="Choose a photo first"):
        visitor.join("invert_1", None, None, None, 0, True, "tiny", "e4e", "w", 3, 3)
        list(visitor.reports("invert_1"))
    for name in ("redraw", "reset", "download_1", "take"):
        count = len(visitor.events[name]["inputs"])
        with pytest.raises(RuntimeError, match=f"{EXPIRED}|Invert a photo first"):
            visitor.call(name, *[None, *[0.0] * (count - 1)])


def test_an_example_is_read_as_an_upload_is(visit: Visit, path: Path) -> None:
    visitor = visit()
    for index in (0, 5):
        photo = visitor.call_now("example", index)["Photo"]
        found = visitor.call("find", photo, True, "tiny")
        assert "faces were found" in str(found)
        visitor.invert(photo, method="e4e")
    visitor.call_now("forget")  # not the examples, which belong to all
    assert visitor.http.get(photo["url"]).status_code == 200
    visitor.invert(visitor.upload(path), method="e4e")


# Several at once


def test_two_who_tune_wait_in_turn_and_encoders_do_not(visit: Visit, path: Path, app: Served) -> None:
    anna, bert, carl = visit(), visit(), visit()
    uploads = {each: each.upload(path) for each in (anna, bert, carl)}
    anna.join_invert(uploads[anna], method="pti", steps=1000)
    waited: list[str] = []
    results: dict[str, Any] = {}

    def wait_for(name: str, visitor: Visitor) -> None:
        for _, values in visitor.reports("invert_1"):
            waited.append(f"{name} {values.get('html', '')}")
            results[name] = values

    hers = threading.Thread(target=wait_for, args=("anna", anna))
    hers.start()
    until(lambda: any("step" in words for words in waited))
    bert.join_invert(uploads[bert], method="pti", steps=2)
    his = threading.Thread(target=wait_for, args=("bert", bert))
    his.start()
    until(lambda: any("bert" in words and "Waiting for a free place · 1 before you" in words for words in waited))
    assert len(app.sessions._running) == 1
    shown = carl.invert(uploads[carl], method="e4e")
    assert "mean squared error" in shown["html"]
    assert not any("mean squared error" in values["html"] for values in results.values())  # of neither of the two
    anna.call_now("stop_1", None)
    hers.join(30)
    his.join(30)
    assert "stopped, best state kept" in results["anna"]["html"] and "2 + 2 steps" in results["bert"]["html"]
    for visitor in (anna, bert, carl):
        visitor.edit(smile=1.0)


def test_an_empty_store_of_results_is_used(tmp_path: Path) -> None:
    sessions = Sessions()
    with Janitor(tmp_path) as janitor:
        demo = module.build_app(tiny_model(), sessions=sessions, janitor=janitor)
        draw = next(fn.fn for fn in demo.fns.values() if fn.api_name == "random_face")
        draw(seed=1)
        assert len(sessions) == 1 and demo.janitor is janitor


def test_models_without_encoders_or_directions(pti: PTIPipeline, tmp_path: Path) -> None:
    bare = PTIPipeline(
        pti.generator, perceptual=pti.perceptual, projector=pti.projector, tuning=pti.tuning, detector=pti.detector
    )
    for model in (make_model(pti, name="no encoders"), Model("nothing", {"pti": bare}, {})):
        with Janitor(tmp_path) as janitor:
            demo = module.build_app(model, janitor=janitor)
            blocks = list(demo.blocks.values())
            (methods,) = (each for each in blocks if isinstance(each, gr.Radio) and each.label == "Method")
            assert [value for _, value in methods.choices] == ["pti"] and methods.value == "pti"
            pivots = [each for each in blocks if isinstance(each, gr.Dropdown) and each.label == "Pivot"]
            assert [value for _, value in pivots[0].choices] == ["w", "w_plus"]
            # the settings of the only method there is
            (settings,) = (each for each in blocks if isinstance(each, gr.Accordion) and each.label == "PTI's settings")
            assert settings.visible
            endpoints = {fn.api_name: fn.fn for fn in demo.fns.values()}
            listed = endpoints["models"]()
            assert listed[0]["methods"] == ["pti"]
            *_, (gallery, rows, *_) = endpoints["compare"](png(Image.new("RGB", (64, 64))), {}, 0, False)
            assert [row["method"] for row in rows] == ["pti"] and len(gallery) == 2


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_another_model(visit: Visit, app: Served) -> None:
    """faces64 in place of the tiny one: its name, its sliders, its layers."""
    visitor = visit()
    visitor.join("load", "faces64")
    *_, (_, shown) = visitor.reports("load")
    assert "faces64 draws pictures of 64 x 64 pixels" in str(shown) and "demonstration" in str(shown)
    face = visitor.call("draw", None, "faces64", 5, 0.7)["Face A"]
    from stylegan_inversion.webapp.models import load_model

    expected = enlarge(sample_face(load_model("faces64", device="cpu").pti, seed=5).images[0])
    assert differ(decoded(visitor.fetch(face)), expected) < 60
    with pytest.raises(RuntimeError, match="org/secret is not in the list of choices"):
        visitor.join("load", "org/secret")
        list(visitor.reports("load"))


# Starting


def test_launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    model, called, handled = tiny_model(), {}, []
    monkeypatch.setattr(module.signal, "getsignal", lambda number: signal.SIG_DFL)
    monkeypatch.setattr(module.signal, "signal", lambda number, handler: handled.append((number, handler)))
    monkeypatch.setattr(module, "load_model", lambda name, device: called.update(name=name, device=device) or model)
    built: list[Any] = []

    def launch(self: Any, **options: Any) -> None:
        called.update(options)
        built.append(self)

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    module.launch("folder", port=1234, device="cpu")
    assert called["name"] == "folder" and called["server_name"] == "127.0.0.1" and called["server_port"] == 1234
    assert called["share"] is False and called["show_error"] is False and called["num_workers"] == 0
    assert called["run_history"] is False and called["enable_monitoring"] is False and called["ssr_mode"] is False
    assert "fonts.googleapis" not in called["theme"].font + called["theme"].font_mono
    assert [each.cls.__name__ for each in called["app_kwargs"]["middleware"]][-2:] == [
        "VisitorCookie",
        "SecurityHeaders",
    ]
    assert not built[0].janitor.folder.exists()  # closed at the end
    assert {number for number, _ in handled} >= {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    for _, handler in handled:
        with pytest.raises(SystemExit):  # and so it is if the app is told to end
            handler()
    handled.clear()
    monkeypatch.setattr(module.signal, "getsignal", lambda number: signal.SIG_IGN)
    module.launch("folder", device="cpu")
    assert not handled  # as `nohup` wants it

    def open_models(demo: Any) -> bool:
        return any(
            isinstance(each, gr.File) and each.visible and each.file_count == "directory"
            for each in demo.blocks.values()
        )

    for options, is_open, hosts in (
        ({}, False, LOOPBACK),
        ({"open_choice": True, "allowed_hosts": ["Demo.example.org"]}, True, {*LOOPBACK, "demo.example.org"}),
        ({"host": "0.0.0.0", "allowed_hosts": ["demo.example.org"]}, False, ()),
        ({"host": "0.0.0.0", "open_choice": True}, True, ()),
        ({"host": "::1"}, False, LOOPBACK),
        ({"host": "127.0.0.2"}, False, {*LOOPBACK, "127.0.0.2"}),
        ({"host": "127.1"}, False, {*LOOPBACK, "127.1"}),
        ({"host": "LOCALHOST."}, False, LOOPBACK),
        ({"host": "192.0.2.1"}, False, ()),
        ({"host": "a\0b"}, False, ()),
        ({"host": "127.0.0.2", "share": True}, False, ()),
        ({"share": True}, False, ()),
    ):
        module.launch("folder", device="cpu", **options)  # type: ignore[arg-type]
        assert open_models(built[-1]) is is_open
        assert called["max_file_size"] == (2_000_000_000 if is_open else "20mb")
        first = called["app_kwargs"]["middleware"][0]
        assert (first.cls is KnownHosts) is bool(hosts)
        assert not hosts or first.cls(None, **first.kwargs).names == set(hosts)

    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("STYLEGAN_INVERSION_MODEL", "other")
    runpy.run_path(str(Path(__file__).parents[2] / "app.py"), run_name="__main__")
    assert called["name"] == "other" and called["server_name"] == "0.0.0.0"
