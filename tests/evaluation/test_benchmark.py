import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylegan_inversion import E4EPipeline, PTIPipeline
from stylegan_inversion.evaluation import benchmark, runner
from stylegan_inversion.evaluation.benchmark import Evaluation, evaluate
from stylegan_inversion.evaluation.methods import Method, load_methods
from stylegan_inversion.preprocessing.image import list_images, load_image


def found_images(folder: Path) -> list[Path]:
    return [folder / name for name in list_images(folder)]


STEPS = {"num_w_steps": 2, "num_tuning_steps": 1}


@pytest.fixture
def run(model: str, faces: list[Path], stubs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`evaluate` on the five faces, by fast methods; figure and plot only where they are asked for."""
    drawing = {name: getattr(benchmark, name) for name in ("save_figure", "plot_editability")}

    def call(
        names: tuple[str, ...] = ("w", "e4e", "psp"), limits: Any = None, draw: bool = False, **options: Any
    ) -> Evaluation:
        for name, function in drawing.items():
            monkeypatch.setattr(benchmark, name, function if draw else lambda *args: None)
        methods = options.pop("methods", None) or load_methods(names, model, options=STEPS, limits=limits)
        images = options.pop("images", None) or found_images(tmp_path / "faces")
        return evaluate(methods, images, tmp_path / "out", **{**stubs, "edits": ("smile", "age"), **options})

    call.model = model  # type: ignore[attr-defined]
    return call


def test_without_edits_named_smile_is_taken_if_it_is_there(run: Any) -> None:
    assert list(run(("e4e",), edits=None).results["config"]["edits"]) == ["smile"]
    methods = load_methods(["e4e"], run.model, options=STEPS)
    methods["e4e"].pipeline.directions = {}
    assert run(methods=methods, edits=None).results["config"]["edits"] == {}


def test_every_image_gets_a_record_and_every_file_is_there(run: Any, tmp_path: Path) -> None:
    (tmp_path / "faces" / "broken.png").write_bytes(b"\x89PNG")
    done = run(batch_size=4, draw=True)
    names = ["a.png", "b.png", "broken.png", "c.jpg", "d.PNG", "more/a.png"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [(line["image"], line["method"]) for line in lines] == [(n, m) for n in names for m in ("w", "e4e", "psp")]
    assert len(done.records) == 18 and done.failed == 3
    assert all(line["error"] and "broken.png" in line["error"] for line in lines if line["image"] == "broken.png")
    for line in lines:
        assert line["error"] or line.keys() >= {"l2", "psnr", "ms_ssim", "lpips", "identity", "seconds", "offset_norm"}

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == json.loads(json.dumps(done.results))
    for name, entry in results["all"]["methods"].items():
        assert (entry["n"], entry["failed"]) == (5, 1)
        mine = [line["l2"] for line in lines if line["method"] == name and not line["error"]]
        assert entry["metrics"]["l2"]["mean"] == pytest.approx(sum(mine) / 5)
        assert entry["metrics"]["l2"]["median"] == sorted(mine)[2]
        spread = (sum((x - sum(mine) / 5) ** 2 for x in mine) / 4 / 5) ** 0.5
        assert entry["metrics"]["l2"]["standard_error"] == pytest.approx(spread)
        assert (entry["metrics"]["lec_smile"] is None) == (name == "w")
    assert results["all"]["methods"]["w"]["metrics"]["offset_norm"]["mean"] == 0
    assert results["common"] is None  # all methods did the same images
    table = (tmp_path / "out" / "table.md").read_text()
    assert table == done.table and "| W optimisation | 5 |" in table and "## On the" not in table
    for name in ("L2", "PSNR (peak 2)", "MS-SSIM (2 scales)", "LPIPS (alex)", "ID (stub)", "LEC (smile +5)"):
        assert f"| {name} |" in table
    assert "Failed, and in no mean: W optimisation 1, e4e 1, pSp 1." in table
    for name in ("figure.png", "figure_age.png", "editability.png"):
        assert (tmp_path / "out" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_methods_with_limits_are_compared_on_what_they_share(run: Any) -> None:
    done = run(("e4e", "pti"), limits={"pti": 2}, limit=4, edits=("smile",))
    assert len(done.records) == 6
    counts = {part: [entry["n"] for entry in done.results[part]["methods"].values()] for part in ("all", "common")}
    assert counts == {"all": [4, 2], "common": [2, 2]}
    first = [record["l2"] for record in done.records if record["method"] == "e4e"][:2]
    assert done.results["common"]["methods"]["e4e"]["metrics"]["l2"]["mean"] == pytest.approx(sum(first) / 2)
    assert [entry["n"] for entry in done.results["common"]["edits"]["smile"]["methods"].values()] == [2, 2]
    assert "The first 4 of 5 images, by name." in done.table
    assert "## On the 2 images that all methods did" in done.table and done.table.count("| method |") == 4


def test_a_killed_run_goes_on(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inverted: list[tuple[str, int]] = []
    invert = runner.invert

    def spy(method: Method, photos: list[Path], *rest: Any, **options: Any) -> Any:
        if len(inverted) == kill_at:
            raise KeyboardInterrupt
        inverted.append((method.label, len(photos)))
        return invert(method, photos, *rest, **options)

    monkeypatch.setattr(runner, "invert", spy)
    kill_at = 4  # in the second batch: three by each, then two by W
    with pytest.raises(KeyboardInterrupt):
        run()
    path = tmp_path / "out" / "records.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    assert inverted == [("W optimisation", 3), ("e4e", 3), ("pSp", 3), ("W optimisation", 2)]
    assert len(whole) == 11
    path.write_text("".join(whole)[:-30])  # as if the last line had been torn
    kill_at = -1
    inverted.clear()
    done = run()
    assert inverted == [("W optimisation", 1), ("e4e", 2), ("pSp", 2)]
    assert len(done.records) == 15 and done.failed == 0
    kept = [json.loads(line) for line in whole[:10]]
    assert all(record in done.records for record in kept)

    inverted.clear()
    again = run()
    assert inverted == [] and again.records == done.records and again.table == done.table


def test_only_what_changed_is_done_again(run: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    inverted: list[str] = []
    invert = runner.invert

    def spy(method: Method, *rest: Any, **options: Any) -> Any:
        inverted.append(method.label)
        return invert(method, *rest, **options)

    monkeypatch.setattr(runner, "invert", spy)
    # Another picture under an old name, one that was missing in the figure, and one method with other steps.
    Image.new("RGB", (40, 40), "red").save(tmp_path / "faces" / "b.png")
    run()
    assert inverted == ["W optimisation", "e4e", "pSp"]
    inverted.clear()
    next((tmp_path / "out" / "pictures" / "c.jpg").glob("e4e*_smile_low.png")).unlink()
    second = run()
    assert inverted == ["e4e"]
    inverted.clear()
    run(methods=load_methods(["w", "psp"], model, options={"num_w_steps": 3}))
    assert inverted == ["W optimisation"] * 2  # two batches
    inverted.clear()
    run(num_strengths=3)
    assert sorted(set(inverted)) == ["W optimisation", "e4e", "pSp"]
    inverted.clear()
    third = run()  # the records of the first settings were not lost
    assert inverted == [] and third.table == second.table
    a = [[record for record in done.records if record["image"] == "a.png"] for done in (first, third)]
    assert a[0] == a[1]


def test_the_same_again_gives_the_same(run: Any, tmp_path: Path) -> None:
    first = run(("pti", "e4e"), draw=True)
    (tmp_path / "out").rename(tmp_path / "first")
    second = run(("pti", "e4e"), draw=True)
    for a, b in zip(first.records, second.records, strict=True):
        drop = {"seconds", "report"}
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
    assert first.results["all"]["edits"] == second.results["all"]["edits"]
    for name in ("figure.png", "editability.png"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_one_image_that_breaks_a_batch_fails_alone(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    invert = runner.invert

    def broken(method: Method, photos: list[Path], *rest: Any, **options: Any) -> Any:
        if method.label == "e4e" and any(photo.name == "c.jpg" for photo in photos):
            raise RuntimeError("out of memory")
        return invert(method, photos, *rest, **options)

    monkeypatch.setattr(runner, "invert", broken)
    with caplog.at_level(logging.DEBUG, logger="stylegan_inversion"):
        done = run(batch_size=5)
    failed = [(record["image"], record["method"], record["error"]) for record in done.records if record["error"]]
    assert failed == [("c.jpg", "e4e", "RuntimeError: out of memory")]
    assert [r["together"] for r in done.records if r["method"] == "e4e" and not r["error"]] == [1] * 4
    assert [r["together"] for r in done.records if r["method"] == "psp"] == [5] * 5
    # A second table, since e4e lacks one; and what failed is tried again.
    assert done.results["num_common"] == 4 and done.results["common"]["methods"]["psp"]["n"] == 4
    monkeypatch.setattr(runner, "invert", invert)
    assert run(batch_size=5).failed == 0


def test_nothing_in_common(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(method: Method, *rest: Any, **options: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(runner, "invert", broken)
    done = run(("w", "e4e"), limit=2, draw=True)
    assert done.failed == 4 and "| e4e | 0 | - | - |" in done.table
    assert done.results["all"]["edits"]["smile"]["level"] is None


def test_photos_are_aligned(
    model: str, photo: Image.Image, detector: Any, stubs: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos" / "a.png")
    methods = load_methods(["w", "e4e"], model, detector=detector, options=STEPS)
    done = evaluate(methods, found_images(tmp_path / "photos"), tmp_path / "out", align=True, **stubs)
    assert done.failed == 0
    crop = methods["e4e"].pipeline.align(photo)
    shown = load_image(tmp_path / "out" / "pictures" / "a.png" / "_original.png")
    assert shown.tobytes() == crop.image.tobytes()
    assert done.records[0]["report"]["face_count"] == 2


def test_without_edits_and_identity(run: Any, tmp_path: Path) -> None:
    done = run(("psp",), edits=(), draw=True, identity=None, figure_images=["more/a.png"], attributes=None)
    assert done.records[0]["edits"] == {} and "ID" not in done.table
    assert not (tmp_path / "out" / "editability.png").exists()
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == ["more"]
    assert run(("psp",), edits=(), figure_images=0).failed == 0


def test_the_builtin_networks_fit(
    e4e_on_faces: E4EPipeline, faces: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = evaluate({"e4e": Method(e4e_on_faces)}, faces[:2], tmp_path / "out", num_strengths=3)
    assert done.failed == 0 and "| ID (builtin) |" in done.table
    entry = done.results["all"]["edits"]["smile"]["methods"]["e4e"]
    assert entry["curve"]["identity_to_reconstruction"][0] == pytest.approx(1, abs=1e-5)


@pytest.fixture
def e4e_on_faces(model: str) -> E4EPipeline:
    return E4EPipeline.from_pretrained(model)


def test_wrong_arguments_are_said_before_any_work(
    run: Any, faces: list[Path], pti: PTIPipeline, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="There is no direction 'smle'"):
        run(edits=("smle",))
    with pytest.raises(ValueError, match="`limit` must be >= 1, got 0"):
        run(limit=0)
    with pytest.raises(
        ValueError, match=r"`figure_images` names 'e.png', which is not among the images, such as 'a.png'"
    ):
        run(figure_images=["e.png"])
    with pytest.raises(ValueError, match="`images` must hold at least one path, got none"):
        evaluate({"w": Method(pti)}, [], tmp_path / "out", edits=(), identity=None)
    with pytest.raises(ValueError, match=r"`images` holds '.*b.png' twice"):
        run(images=[faces[0], faces[1], faces[0]])
    with pytest.raises(ValueError, match=r"(?s)`images` must lie inside `root`, '.*more'; '.*b.png' does not"):
        run(images=faces, root=tmp_path / "faces" / "more")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(run: Any, faces: list[Path]) -> None:
    done = run(("psp",), images=[faces[0], faces[0].with_name("gone.png")])
    gone = done.records[1]
    assert gone["image"] == "gone.png" and gone["sha256"] is None and "gone.png" in gone["error"]
