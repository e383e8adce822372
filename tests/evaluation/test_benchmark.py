import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylegan_inversion import E4EPipeline, PTIPipeline, cli
from stylegan_inversion.errors import MissingDependencyError, ModelNotFoundError
from stylegan_inversion.evaluation import benchmark, report
from stylegan_inversion.evaluation.benchmark import NAMES, evaluate
from stylegan_inversion.preprocessing.image import load_image

Run = Callable[..., dict[str, Any]]
STEPS = {"num_w_steps": 2, "num_tuning_steps": 1}


@pytest.fixture
def run(model: str, faces: Path, stubs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`evaluate` on the five faces by fast methods; figure and plot only if they are asked for."""
    drawing = {name: getattr(report, name) for name in ("save_figure", "plot_editability")}

    def call(*methods: str, draw: bool = False, **changes: Any) -> dict[str, Any]:
        for name, function in drawing.items():
            monkeypatch.setattr(report, name, function if draw else lambda *args: None)
        options = {"model": model, "edits": ("smile", "age"), "batch_size": 3, "options": STEPS, **changes}
        return evaluate(faces, tmp_path / "out", methods=methods or ("w", "e4e", "psp"), **options)[0]

    return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was inverted: methods, and how many photos together. A "stop" in it stops the run after so many."""
    seen: list[tuple[str, int]] = []
    invert = benchmark._Run._invert

    def spy(self: Any, name: str, crops: Any) -> Any:
        if seen[:1] == [("stop", len(seen) - 1)]:
            raise KeyboardInterrupt
        seen.append((name, len(crops)))
        yield from invert(self, name, crops)

    monkeypatch.setattr(benchmark._Run, "_invert", spy)
    return seen


def rows_of(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]


def test_every_image_gets_a_row_and_every_file_is_there(run: Run, faces: Path, tmp_path: Path) -> None:
    (faces / "broken.png").write_bytes(b"\x89PNG")
    results = run(batch_size=4, draw=True)
    names = ["a.png", "b.png", "broken.png", "c.jpg", "d.PNG", "more/a.png"]
    rows = rows_of(tmp_path)
    assert [(row["image"], row["method"]) for row in rows] == [(n, m) for n in names for m in ("w", "e4e", "psp")]
    assert (
        all(bool(row["error"]) == (row["image"] == "broken.png") for row in rows) and "broken.png" in rows[6]["error"]
    )
    for row in rows:
        assert row["error"] or row.keys() >= {"l2", "psnr", "ms_ssim", "lpips", "identity", "seconds", "offset_norm"}
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())
    for name, entry in results["all"]["methods"].items():
        assert (entry["n"], entry["failed"]) == (5, 1)
        mine = [row["l2"] for row in rows if row["method"] == name and not row["error"]]
        spread = (sum((x - sum(mine) / 5) ** 2 for x in mine) / 4 / 5) ** 0.5
        figures = {"mean": sum(mine) / 5, "median": sorted(mine)[2], "standard_error": spread}
        assert entry["metrics"]["l2"] == pytest.approx(figures)
        assert (entry["metrics"]["lec_smile"] is None) == (name == "w")
    assert results["all"]["methods"]["w"]["metrics"]["offset_norm"]["mean"] == 0
    assert results["common"] is None  # all methods did the same images
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| W optimisation | 5 |" in table and "## On the" not in table
    for name in ("L2", "PSNR (peak 2)", "MS-SSIM (2 scales)", "LPIPS (alex)", "ID (stub)", "LEC (smile +5)"):
        assert f"| {name} |" in table
    assert "Failed, and in no mean: W optimisation 1, e4e 1, pSp 1." in table
    sizes = {name: load_image(tmp_path / "out" / name).size for name in ("figure.png", "figure_age.png")}
    assert sizes["figure.png"] == sizes["figure_age.png"] and sizes["figure.png"][0] > 10 * 128
    assert (tmp_path / "out" / "editability.png").is_file()


def test_a_stopped_run_goes_on(run: Run, faces: Path, tmp_path: Path, calls: list[Any], caplog: Any) -> None:
    calls.append(("stop", 4))  # in the second batch: three by each, then two by W
    with pytest.raises(KeyboardInterrupt):
        run()
    assert calls[1:] == [("w", 3), ("e4e", 3), ("psp", 3), ("w", 2)]
    path = tmp_path / "out" / "records.jsonl"
    whole = path.read_text()
    assert len(whole.splitlines()) == 11
    path.write_text(whole[:-30])  # as if the last line had been torn
    calls.clear()
    run()
    assert calls == [("w", 1), ("e4e", 2), ("psp", 2)]
    assert caplog.messages == ["records.jsonl, line 11 is incomplete and left out; its image is done again."]
    assert len(rows_of(tmp_path)) == 15 and all(json.loads(row) in rows_of(tmp_path) for row in whole.splitlines()[:10])
    calls.clear()
    table = (tmp_path / "out" / "table.md").read_text()
    assert run() and calls == [] and (tmp_path / "out" / "table.md").read_text() == table
    # Another picture under an old name, a picture of the figure that was removed, and another method.
    Image.new("RGB", (40, 40), "red").save(faces / "b.png")
    (tmp_path / "out" / "pictures" / "c.jpg" / "e4e.png").unlink()
    run("e4e", "psp", "w_plus")
    assert calls == [("e4e", 2), ("psp", 1), ("w_plus", 3), ("w_plus", 2)]
    assert len(rows_of(tmp_path)) == 20  # those of W are kept


def test_other_settings_are_refused(run: Run, model: str, tmp_path: Path) -> None:
    run("e4e", "w", limit=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}

    def refused(reason: str, *methods: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=f"out holds a comparison {reason}.*Give another output folder"):
            run(*methods, limit=1, **changes)

    refused("with other settings: edits; see settings.json there", "e4e", edits=("age",))
    refused("with other settings: w, resolution;", resolution=16, options={"num_w_steps": 3})
    E4EPipeline.from_pretrained(model).save_pretrained(tmp_path / "other")
    refused("with other settings: model;", "e4e", model=str(tmp_path / "other"))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    path = tmp_path / "out" / "settings.json"
    path.write_text(path.read_text().replace('"align"', '"aligned"'))  # of an earlier version
    refused("with other settings: align;")
    path.unlink()
    refused("without a settings.json that can be read")


def test_one_image_that_breaks_a_batch_fails_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    invert = benchmark._Run._invert

    def broken(self: Any, name: str, crops: Any) -> Any:
        if name == "e4e" and "c.jpg" in crops:
            raise RuntimeError("out of memory")
        return invert(self, name, crops)

    monkeypatch.setattr(benchmark._Run, "_invert", broken)
    with caplog.at_level(logging.DEBUG, logger="stylegan_inversion"):
        results = run(batch_size=5)
    rows = rows_of(tmp_path)
    failed = [(row["image"], row["method"], row["error"]) for row in rows if row["error"]]
    assert failed == [("c.jpg", "e4e", "RuntimeError: out of memory")]
    assert [row["together"] for row in rows if row["method"] == "e4e" and not row["error"]] == [1] * 4
    assert [row["together"] for row in rows if row["method"] == "psp"] == [5] * 5
    # A second table, since e4e lacks one; and what failed is tried again.
    assert results["num_common"] == 4 and results["common"]["methods"]["psp"]["n"] == 4
    monkeypatch.setattr(benchmark._Run, "_invert", invert)
    assert run(batch_size=5)["all"]["methods"]["e4e"]["failed"] == 0


def test_every_method_inverts(model: str, faces: Path, tmp_path: Path) -> None:
    """Measured by the built-in networks."""
    results, _ = evaluate(
        faces, tmp_path / "out", model=model, methods=NAMES, limit=2, options={**STEPS, "num_w_steps": 5}
    )
    entries = results["all"]["methods"]
    assert [entry["n"] for entry in entries.values()] == [2] * len(NAMES)
    for name, entry in entries.items():
        in_w = entry["metrics"]["offset_norm"]["mean"] == 0
        assert in_w == (name in ("w", "pti")), name
        assert (entry["metrics"]["lec_smile"] is not None) == (name in ("e4e", "psp", "restyle", "sfe")), name
    pivots = {row["report"].get("pivot") for row in rows_of(tmp_path)}
    assert pivots == {None, "w", "w_plus", "e4e", "psp", "restyle", "sfe"}
    assert {row["report"]["tuning_steps"] for row in rows_of(tmp_path) if row["method"][:1] == "w"} == {0}


def test_methods_that_differ_in_the_tuning_only_share_their_pivots(
    model: str, faces: Path, stubs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[Any, int]] = []
    call = PTIPipeline.__call__

    @functools.wraps(call)
    def spy(self: PTIPipeline, image: Any, **options: Any) -> Any:
        found.append((options["pivot"] if isinstance(image, list) else "given", np.size(image)))
        return call(self, image, **options)

    monkeypatch.setattr(PTIPipeline, "__call__", spy)
    methods = ("w", "e4e", "pti")
    evaluate(faces, tmp_path / "out", model=model, methods=methods, limit=3, edits=(), options=STEPS, batch_size=2)
    assert found == [("w", 2), ("given", 1), ("given", 1), ("w", 1), ("given", 1)]
    pipeline = PTIPipeline.from_pretrained(model)
    alone = pipeline(faces / "a.png", align=False, pivot="w", num_w_steps=2, num_tuning_steps=1).reports[0]
    tuned = next(row["report"] for row in rows_of(tmp_path) if row["method"] == "pti")
    assert tuned["l2"] == pytest.approx(alone["l2"], rel=1e-3) and tuned["w_steps"] == 2


def test_photos_are_aligned(model: str, photo: Image.Image, detector: Any, stubs: None, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos" / "a.png")
    options = {"model": model, "methods": ["w", "e4e"], "detector": detector, "options": STEPS}
    results, _ = evaluate(tmp_path / "photos", tmp_path / "out", align=True, **options)
    assert results["all"]["methods"]["e4e"]["n"] == 1 and rows_of(tmp_path)[0]["report"]["face_count"] == 2
    for name in ("figure.png", "pictures/a.png/e4e.png"):
        assert b"compositeWithTrainedAlgorithmicMedia" in (tmp_path / "out" / name).read_bytes()
    crop = E4EPipeline.from_pretrained(model, detector=detector).align(photo)
    assert load_image(tmp_path / "out" / "pictures" / "a.png" / "_original.png").tobytes() == crop.image.tobytes()


def test_without_edits_and_identity(run: Run, model: str, tmp_path: Path) -> None:
    run("psp", edits=(), draw=True, identity=None, resolution=48)
    row, table = rows_of(tmp_path)[0], (tmp_path / "out" / "table.md").read_text()
    assert row["edits"] == {} and "identity" not in row and "ID" not in table and "at 48 px" in table
    assert not (tmp_path / "out" / "editability.png").exists() and (tmp_path / "out" / "figure.png").is_file()
    shutil.rmtree(tmp_path / "out")
    assert list(run("psp", edits=None, limit=1)["config"]["edits"]) == ["smile"]
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(Path(model) / "directions")
    assert run("psp", edits=None, limit=1)["config"]["edits"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edits": ("smle",)}, "There is no direction 'smle'"),
        ({"edits": ("yaw",)}, "There is no score for the edit 'yaw'; there are age, smile"),
        ({"identity": None}, "`edits` are measured by what they cost in the identity of faces"),
        ({"resolution": 8}, "MS-SSIM needs images of at least 11 px"),
        (
            {"methods": ["w", "hfgi"]},
            "There is no method 'hfgi'; there are sfe, e4e, psp, restyle, w, w_plus, pti",
        ),
        ({"limits": {"pti": 3}}, "`limits` names 'pti', which is not compared; compared are w"),
    ],
)
def test_wrong_arguments(
    model: str, faces: Path, stubs: None, tmp_path: Path, pti: PTIPipeline, changes: dict[str, Any], message: str
) -> None:
    if "yaw" in changes.get("edits", ()):
        pti.directions["yaw"] = dataclasses.replace(pti.directions["smile"], name="yaw")
        pti.save_pretrained(model)
    with pytest.raises(ValueError, match=message):
        evaluate(faces, tmp_path / "out", **{"model": model, "methods": ["w"], **changes})
    assert not (tmp_path / "out").exists()


def test_what_is_missing(run: Run, pti: PTIPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="has no encoder for 'pti-e4e'; its pivots are w, w_plus"):
        run("pti-e4e", model=str(pti.save_pretrained(tmp_path / "generator only")))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"The plot needs matplotlib\. Install .*\[evaluate\]"):
        run("w")


def test_the_command(stubs: None, model: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"evaluate {faces} --model {model} --methods e4e psp pti --limit 3 --limit-for pti=1 --device cpu"
    arguments += f" --output {tmp_path / 'out'} --edits smile age --num-w-steps 2 --num-tuning-steps 1 --batch-size 2"
    assert cli.main(arguments.split()) == 0
    out = capsys.readouterr().out
    assert "The first 3 of 5 images, by name." in out and "## On the 1 images that all methods did" in out
    assert out.count("| PTI (W pivot) | 1 |") == 6 and f"Everything is in {tmp_path / 'out'}." in out
    assert (tmp_path / "out" / "figure_age.png").exists() and len(rows_of(tmp_path)) == 7
    (faces / "a.png").write_bytes(b"")
    assert cli.main(arguments.split()) == 1
    out = capsys.readouterr().out
    assert "Failed, and in no mean: e4e 1, pSp 1, PTI (W pivot) 1." in out and "No image was done by all" in out
    assert cli.main([*arguments.split(), "--edits", "smle"]) == 2
    assert "There is no direction 'smle'" in capsys.readouterr().err
