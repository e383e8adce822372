"""A folder of photos becomes a table: each face and each failure once, wherever the run was stopped."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from PIL import Image

from stylegan_inversion import E4EPipeline, InversionOutput, PTIPipeline, cli
from stylegan_inversion.batch import FolderResult, edit_folder, invert_folder
from stylegan_inversion.errors import CheckpointError, FaceNotFoundError
from stylegan_inversion.pipelines import receipts
from stylegan_inversion.pipelines.rows import read_rows
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.preprocessing.landmarks import Face
from tests.conftest import landmarks_at, make_generator, make_photo
from tests.pipelines.conftest import small_pipeline


def faces_by_width(photo: Image.Image) -> list[Face]:
    """None in a photo of 100 pixels, three in a wide one, else one. A red one ends the process, a green one once."""
    if photo.getpixel((0, 0)) == (254, 0, 0) and multiprocessing.parent_process() is not None:
        os._exit(1)
    if photo.getpixel((0, 0)) == (0, 254, 0) and (once := Path(os.environ["DIES_ONCE"])).exists():
        once.unlink()
        os._exit(1)
    where = {100: [], 400: [50.0, 190.0, 330.0]}.get(photo.width, [120.0])
    return [landmarks_at(x, 60.0, 15.0) for x in where]


def write_photos(folder: Path, count: int) -> Path:
    """One in four has three faces, one in five is broken, one in seven has no face."""
    photo = make_photo()
    for k in range(count):
        path = folder / f"d{k % 3}" / f"{k:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        width = 100 if k % 7 == 6 else 400 if k % 4 == 3 else 200
        photo.rotate(k).resize((width, 120)).save(path)
        if k % 5 == 4:
            path.write_bytes(path.read_bytes()[:500])
    return folder


def make_e4e() -> E4EPipeline:
    return small_pipeline("e4e", make_generator(), detector=faces_by_width)


@pytest.fixture
def e4e() -> E4EPipeline:
    return make_e4e()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", 12)


def table(output: Path) -> dict[str, dict[str, Any]]:
    """The rows by id, but for the time they took; no id may come twice."""
    rows = list(read_rows(output))
    found = {row["id"]: {name: value for name, value in row.items() if name != "seconds"} for row in rows}
    assert len(found) == len(rows)
    return found


def test_every_face_and_every_failure_has_one_row(e4e: E4EPipeline, photos: Path, tmp_path: Path) -> None:
    done = invert_folder(e4e, photos, tmp_path / "out", workers=1, batch_size=4)
    assert done == FolderResult(photos=12, faces=15, errors=3, inverted=15)
    rows = list(read_rows(tmp_path / "out"))
    numbers = sorted((row["path"], row["face_index"]) for row in rows if row["error"] is None)
    assert [k for path, k in numbers if path == "d0/003.png"] == [0, 1, 2] and len(set(numbers)) == 15
    errors = {row["path"]: row["error"] for row in rows if row["error"] is not None}
    assert sorted(errors) == ["d0/006.png", "d0/009.png", "d1/004.png"]
    assert "No face was found" in errors["d0/006.png"] and "damaged" in errors["d1/004.png"]
    schema = pq.read_schema(next((tmp_path / "out").glob("faces-*.parquet")))
    assert str(schema.field("w_plus").type).count("[16]") == 1 and "halffloat" in str(schema.field("w_plus").type)
    alone = e4e(photos / "d0/000.png")
    row = next(row for row in rows if row["path"] == "d0/000.png")
    assert np.abs(np.array(row["w_plus"], np.float32) - alone.w_plus[0].numpy()).max() < 2e-3
    assert row["l2"] == pytest.approx(alone.reports[0]["l2"], abs=1e-4)


def test_rows_do_not_depend_on_the_neighbours_in_a_batch(e4e: E4EPipeline, photos: Path, tmp_path: Path) -> None:
    invert_folder(e4e, photos, tmp_path / "out", workers=0, batch_size=4)
    for path in photos.glob("d1/*"):
        path.rename(path.with_suffix(".hidden"))
    invert_folder(e4e, photos, tmp_path / "fewer", workers=0, batch_size=4)
    for path in photos.glob("d1/*"):
        path.rename(path.with_suffix(".png"))
    invert_folder(e4e, photos, tmp_path / "fewer", workers=0, batch_size=4)
    assert table(tmp_path / "fewer") == table(tmp_path / "out")


def test_a_finished_run_computes_nothing_and_a_new_photo_only_itself(
    e4e: E4EPipeline, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = invert_folder(e4e, photos, tmp_path / "out", workers=0)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(type(e4e), "invert", None)  # whoever calls it fails
    assert invert_folder(e4e, photos, tmp_path / "out", workers=0).inverted == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    run = json.loads(before[tmp_path / "out" / "run.json"])
    run["pipeline"]["crop_scale"] = run["pipeline"].pop("domain")["crop_scale"]  # as an earlier version wrote it
    (tmp_path / "out" / "run.json").write_text(json.dumps(run))
    assert invert_folder(e4e, photos, tmp_path / "out", workers=0).inverted == 0
    monkeypatch.undo()

    shutil.copy(photos / "d0/000.png", photos / "new.png")
    shutil.copy(photos / "d0/003.png", photos / "d0/000.png")  # changed: three faces instead of one
    assert invert_folder(e4e, photos, tmp_path / "out", workers=0) == FolderResult(13, first.faces + 3, first.errors, 4)
    invert_folder(e4e, photos, tmp_path / "fresh", workers=0)
    assert table(tmp_path / "out") == table(tmp_path / "fresh")


def test_errors_can_be_tried_again(e4e: E4EPipeline, photos: Path, tmp_path: Path) -> None:
    invert = e4e.encoder.forward
    e4e.encoder.forward = lambda x: invert(x)[:0] if len(x) else x  # type: ignore[method-assign]
    done = invert_folder(e4e, photos, tmp_path / "out", workers=0, batch_size=4)
    assert (done.faces, done.errors) == (0, 18), "an error of the network is a row, too"
    e4e.encoder.forward = invert  # type: ignore[method-assign]
    assert invert_folder(e4e, photos, tmp_path / "out", workers=0, batch_size=4).inverted == 0
    done = invert_folder(e4e, photos, tmp_path / "out", workers=0, batch_size=4, retry_errors=True)
    assert (done.faces, done.errors) == (15, 3) and len(table(tmp_path / "out")) == 18


def test_a_photo_that_ends_its_process_is_an_error_and_the_others_go_on(
    e4e: E4EPipeline, photos: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (200, 120), (254, 0, 0)).save(photos / "d1" / "bomb.png")
    assert invert_folder(e4e, photos, tmp_path / "out", workers=1) == FolderResult(13, 15, 4, 15)
    (error,) = [row["error"] for row in read_rows(tmp_path / "out") if row["path"] == "d1/bomb.png"]
    assert error == "The process that read the photo was ended: perhaps it takes too much memory."
    before = table(tmp_path / "out")
    assert invert_folder(e4e, photos, tmp_path / "out", workers=1) == FolderResult(13, 15, 4, 0)
    assert table(tmp_path / "out") == before


def test_a_detector_that_no_process_can_be_given_is_refused(e4e: E4EPipeline, photos: Path, tmp_path: Path) -> None:
    e4e._detector = lambda photo: []
    with pytest.raises(ValueError, match="a detector of your own must be a module's function; or pass `workers=0`"):
        invert_folder(e4e, photos, tmp_path / "out", workers=1)


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="such names do not exist there")
def test_names_that_a_table_or_a_disk_cannot_hold_are_errors(e4e: E4EPipeline, photos: Path, tmp_path: Path) -> None:
    names = [b"d0/\xff.png", b"d0/" + b"n" * 245 + b".png", b'd0/a b,"c\n\xc3\xa9.png']
    for name in names:
        shutil.copy(photos / "d0/000.png", os.fsencode(photos) + b"/" + name)
    for new in (16, 0):
        done = invert_folder(e4e, photos, tmp_path / "out", workers=0, save=["crop"])
        assert done == FolderResult(15, 16, 5, new)
    errors = {row["path"]: row["error"] for row in read_rows(tmp_path / "out") if row["error"] is not None}
    assert errors["d0/\\udcff.png"] == "Its name is not UTF-8, which the table needs; rename it."
    assert "File name too long" in errors[names[1].decode()]


def test_a_picture_that_cannot_be_made_is_an_error_and_a_full_disk_ends_the_run(
    e4e: E4EPipeline, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("does not fit")

    monkeypatch.setattr(receipts, "paste_back", fail)
    done = invert_folder(e4e, photos, tmp_path / "out", workers=0, save=["photo"])
    assert (done.faces, done.errors) == (0, 18)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "crop").write_text("no folder can be made here")
    with pytest.raises(CheckpointError, match="could not be written"):
        invert_folder(e4e, photos, tmp_path / "full", workers=0, save=["crop"])


def test_a_photo_that_changed_takes_its_old_files_along(e4e: E4EPipeline, photos: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "out", photos / "d0" / "003.png"  # three faces
    invert_folder(e4e, photos, out, workers=0, save=["crop"])
    edit_folder(e4e, out, tmp_path / "edits", edits={"smile": [1.0]})
    before = (tmp_path / "edits/d0/003.png-0_smile+1.png").read_bytes()
    assert len(list(out.glob("crop/d0/003.png-?.png"))) == 3
    partial = out / "crop" / "d0" / ".003.png-0.png.01234567.partial"
    partial.touch()  # of a killed run
    shutil.copy(photos / "d1/001.png", kept)
    invert_folder(e4e, photos, out, workers=0, save=["crop"])
    assert [path.name for path in out.glob("crop/d0/003.png-?.png")] == ["003.png-0.png"] and not partial.exists()
    edit_folder(e4e, out, tmp_path / "edits", edits={"smile": [1.0]})
    assert (tmp_path / "edits/d0/003.png-0_smile+1.png").read_bytes() != before


def test_ctrl_c_keeps_whole_photos(
    e4e: E4EPipeline, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, invert = iter(range(3)), type(e4e).invert

    def interrupted(self: E4EPipeline, *args: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return invert(self, *args, **options)

    monkeypatch.setattr(type(e4e), "invert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        invert_folder(e4e, photos, tmp_path / "out", workers=1, batch_size=4)
    monkeypatch.undo()
    kept = list(read_rows(tmp_path / "out"))
    assert 4 <= sum(row["error"] is None for row in kept) <= 8
    assert all(sum(other["path"] == row["path"] for other in kept) == max(1, row["face_count"]) for row in kept)
    invert_folder(e4e, photos, tmp_path / "out", workers=1, batch_size=4)
    invert_folder(e4e, photos, tmp_path / "whole", workers=0, batch_size=4)
    assert table(tmp_path / "out") == table(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 2}, r"out holds a run with batch_size=4, and this one has 2\. Give another output folder"),
        ({"options": {"face": 0}}, "holds a run with face=None, and this one has 0"),
        ({"save": ["faces"]}, "`save` must name some of crop, inverted, photo, got 'faces'"),
        ({"options": {"num_steps": 1}}, "E4EPipeline has no option 'num_steps'"),
        ({"options": {"preset": "fast"}}, r"E4EPipeline has no option 'preset'; .* PTIPipeline takes it\."),
        ({"batch_size": 0}, "`batch_size` must be >= 1 and `workers` >= 0, got 0"),
        ({"folder": "other"}, r"holds a run with folder=.*If the folder was moved, change `folder` in run\.json"),
    ],
)
def test_another_run_is_refused(change: Any, message: str, e4e: E4EPipeline, photos: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "other", 1)
    given: dict[str, Any] = {"folder": "photos", "workers": 0, "batch_size": 4, **change}
    invert_folder(e4e, photos, tmp_path / "out", workers=0, batch_size=4)
    with pytest.raises(ValueError, match=message):
        invert_folder(e4e, tmp_path / given.pop("folder"), tmp_path / "out", **given)


def test_other_weights_are_another_run(e4e: E4EPipeline, photos: Path, tmp_path: Path) -> None:
    invert_folder(e4e, photos, tmp_path / "out", workers=0)
    psp = small_pipeline("psp", e4e.generator, detector=faces_by_width)
    with pytest.raises(ValueError, match=r"with pipeline\._class_name='E4EPipeline', and this one has 'PSPPipeline'"):
        invert_folder(psp, photos, tmp_path / "out", workers=0)
    next(iter(e4e.encoder.parameters())).data += 1
    with pytest.raises(ValueError, match="holds a run with weights="):
        invert_folder(e4e, photos, tmp_path / "out", workers=0)
    edit_folder(e4e, tmp_path / "out", tmp_path / "edits", edits={"smile": [1.0]})  # the generator is the same
    next(iter(e4e.generator.parameters())).data += 1
    with pytest.raises(ValueError, match="generator that has other weights than this pipeline's"):
        edit_folder(e4e, tmp_path / "out", tmp_path / "edits", edits={"smile": [1.0]})


def test_the_output_may_lie_inside_the_folder(e4e: E4EPipeline, photos: Path) -> None:
    for _ in range(2):
        done = invert_folder(e4e, photos, photos / "out", workers=0, save=["crop", "inverted", "photo"])
        assert done.photos == 12
    sizes = {
        kind: load_image(photos / "out" / kind / "d0/003.png-2.png").size for kind in ("crop", "inverted", "photo")
    }
    assert sizes == {"crop": (32, 32), "inverted": (32, 32), "photo": (400, 120)}
    with pytest.raises(ValueError, match="holds no picture outside"):
        invert_folder(e4e, photos, photos, workers=0)


def test_rows_of_pti_bring_their_generators(pti: PTIPipeline, tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 2)
    pti._detector = faces_by_width
    invert_folder(pti, folder, tmp_path / "out", workers=0, options={"num_w_steps": 2, "num_tuning_steps": 2})
    row = next(iter(read_rows(tmp_path / "out")))
    out = InversionOutput.from_row(row, pti.generator, folder=tmp_path / "out", photo=folder / row["path"])
    assert out.generator is not pti.generator
    target = torch.from_numpy(np.array(out.crops[0].image)) / 127.5 - 1
    drawn = torch.from_numpy(np.array(out.images[0])) / 127.5 - 1
    assert (drawn - target).square().mean().item() == pytest.approx(row["l2"], abs=2e-3)
    assert pti.paste_back(pti.edit(out, smile=1.0))[0].size == (200, 120)
    file = tmp_path / "out" / "deltas" / f"{row['id']}.safetensors"
    with pytest.raises(CheckpointError, match="must be 32 hexadecimal digits, got"):
        InversionOutput.from_row({**row, "id": "../secret"}, pti.generator, folder=tmp_path / "out")
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match="is missing, or another one"):
        InversionOutput.from_row(row, pti.generator, folder=tmp_path / "out")


def test_pti_goes_on_after_it_loaded_an_encoder(e4e: E4EPipeline, tmp_path: Path) -> None:
    folder, out = write_photos(tmp_path / "photos", 2), tmp_path / "out"
    pti = PTIPipeline.from_pretrained(e4e.save_pretrained(tmp_path / "model"), detector=faces_by_width)
    options = {"pivot": "e4e", "num_tuning_steps": 1}
    assert [invert_folder(pti, folder, out, workers=0, options=options).inverted for _ in range(2)] == [2, 0]
    shutil.copy(folder / "d0/000.png", folder / "d1/001.png")
    assert invert_folder(pti, folder, out, workers=0, options=options).inverted == 1
    assert {path.stem for path in (out / "deltas").iterdir()} == set(table(out))


@pytest.mark.parametrize(
    ("column", "values", "error", "message"),
    [
        ("path", ["../../evil.png"], CheckpointError, "names a photo '../../evil.png', which is outside its folder"),
        ("path", ["/evil.png"], CheckpointError, "outside its folder"),
        ("path", [5], ValueError, "is not a part of a table that `invert_folder` wrote"),
        ("error", ["no face"], None, ""),
    ],
)
def test_tables_from_anyone(
    column: str, values: list[Any], error: type[Exception] | None, message: str, e4e: E4EPipeline, tmp_path: Path
) -> None:
    invert_folder(e4e, write_photos(tmp_path / "photos", 1), tmp_path / "out", workers=0)
    (part,) = (tmp_path / "out").glob("faces-*.parquet")
    rows = pq.read_table(part)
    changed = rows.set_column(rows.schema.get_field_index(column), column, pa.array(values))
    pq.write_table(changed, part)
    if error is None:  # a table of errors only
        assert edit_folder(e4e, tmp_path / "out", tmp_path / "a" / "b", edits={"smile": [1.0]}) == 0
        return
    with pytest.raises(error, match=message):
        edit_folder(e4e, tmp_path / "out", tmp_path / "a" / "b", edits={"smile": [1.0]})
    assert not list(tmp_path.rglob("*evil*"))


def test_edits_of_a_table_are_a_grid_with_a_list(e4e: E4EPipeline, photos: Path, tmp_path: Path) -> None:
    invert_folder(e4e, photos, tmp_path / "out", workers=0)
    for paste in (False, True):
        output = tmp_path / f"edits{paste}"
        grid = {"smile": [-2.0, 0.0, 2.0], "age": [0.0, 1.0]}
        assert edit_folder(e4e, tmp_path / "out", output, edits=grid, paste=paste) == 15 * 6
        with (output / "edits.csv").open(newline="") as file:
            listed = list(csv.DictReader(file))
        assert {(float(row["smile"]), float(row["age"])) for row in listed} == {
            (smile, age) for smile in grid["smile"] for age in grid["age"]
        }
        sizes = {load_image(output / row["picture"]).size for row in listed}
        assert sizes == ({(200, 120), (400, 120)} if paste else {(32, 32)}) and len(listed) == 90
    with pytest.raises(ValueError, match="holds a run with paste=True, and this one has False"):
        edit_folder(e4e, tmp_path / "out", output, edits=grid)
    with FileLock(output / ".lock"), pytest.raises(ValueError, match="Another run is writing to"):
        edit_folder(e4e, tmp_path / "out", output, edits=grid, paste=True)
    with pytest.raises(ValueError, match="must be finite"):
        edit_folder(e4e, tmp_path / "out", tmp_path / "more", edits={"smile": [1.0, float("inf")]})
    row = next(row for row in read_rows(tmp_path / "out") if row["error"] is not None)
    with pytest.raises(ValueError, match="holds no inversion: "):
        InversionOutput.from_row(row, e4e.generator)
    with pytest.raises(ValueError, match="There is no direction 'smle'"):
        edit_folder(e4e, tmp_path / "out", tmp_path / "more", edits={"smle": [1.0]})


def test_on_the_command_line(pti: PTIPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, folder, out = str(pti.save_pretrained(tmp_path / "model")), str(tmp_path / "photos"), str(tmp_path / "out")
    write_photos(tmp_path / "photos", 5)
    arguments = ["invert", folder, "--model", model, "--no-align", "--preset", "fast", "--num-tuning-steps", "2"]
    arguments += ["--num-w-steps", "2", "--output", out, "--device", "cpu", "--workers", "0"]
    for new in (4, 0):
        assert cli.main(arguments) == 1  # one is broken
        assert f"5 photos: 4 faces and 1 errors; {new} faces are new." in capsys.readouterr().out
    edit = ["edit-folder", out, "--edit", "smile=-4:4:3", "age=1", "--device", "cpu", "--output", f"{out}-edits"]
    assert cli.main(edit) == 0 and "12 pictures." in capsys.readouterr().out
    for wrong, message in (
        ([*arguments, "--edit", "smile=1"], "edited later: stylegan-inversion edit-folder"),
        (["invert", folder, *arguments[1:]], "is a folder: give it alone"),
        (["invert", f"{folder}/d0/000.png", "--model", model, "--workers", "1"], "--workers is for a folder of photos"),
        (["edit-folder", folder, "--edit", "smile=1"], "run.json cannot be read"),
    ):
        assert cli.main(wrong) == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["edit-folder", out, "--edit", "smile=-4:4"])
    assert "'smile=-4:4' is not NAME=STRENGTH or NAME=LOW:HIGH:STEPS" in capsys.readouterr().err
    run = json.loads((tmp_path / "out/run.json").read_text())
    run["model"] = {"name_or_path": "a-stranger/model", "revision": None, "subfolder": None}
    (tmp_path / "out/run.json").write_text(json.dumps(run))
    assert cli.main(edit) == 2 and "If you trust who made" in capsys.readouterr().err


def test_a_list_says_which_photo_failed(e4e: E4EPipeline, photos: Path) -> None:
    with pytest.raises(FaceNotFoundError, match=r"^Photo 2 of 2: No face was found"):
        e4e([photos / "d0/000.png", photos / "d0/006.png"])


def _killed_runs(
    folder: Path, output: Path, kills: int, run: Callable[[Path, Path], None], *, longest: float, kill: Any = os.kill
) -> None:
    """Kill as many runs at random moments, then let one end. No worker may outlive its parent."""
    rng, context = random.Random(0), multiprocessing.get_context("spawn")
    for number in range(kills + 1):
        process = context.Process(target=run, args=(folder, output))
        process.start()
        if number < kills:
            while process.is_alive() and not (output / "run.json").exists():
                time.sleep(0.05)
            time.sleep(rng.uniform(0, longest))
            kill(process.pid or 0, signal.SIGKILL)
        process.join()
    assert process.exitcode == 0


def run_tiny(folder: Path, output: Path) -> None:
    """What a child of a test does: a slow network, and a part after each batch."""
    from stylegan_inversion.pipelines import rows

    rows._PART_SECONDS = 0.0
    torch.set_num_threads(1)
    pipeline = make_e4e()
    encode = pipeline.encode
    pipeline.encode = lambda x: (time.sleep(0.1), encode(x))[1]  # type: ignore[method-assign]
    invert_folder(pipeline, folder, output, workers=1, batch_size=4)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("count", "kills", "longest"),
    [(12, 2, 4.0), pytest.param(500, 10, 12.0, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])],
)
def test_kills_lose_nothing_and_give_nothing_twice(
    count: int, kills: int, longest: float, e4e: E4EPipeline, tmp_path: Path
) -> None:
    folder = write_photos(tmp_path / "photos", count)
    _killed_runs(folder, tmp_path / "out", kills, run_tiny, longest=longest)
    done = invert_folder(e4e, folder, tmp_path / "whole", workers=0, batch_size=4)
    assert done.photos == count and len(table(tmp_path / "whole")) == done.faces + done.errors
    assert table(tmp_path / "out") == table(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "out").glob(".*")) == [".lock"]


def run_tiny_on_ray(folder: Path, output: Path) -> None:
    """What the driver of a cluster does; Ray's processes are in its group."""
    import ray

    os.setpgrp()
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False)
    invert_folder(make_e4e(), folder, output, ray="local", batch_size=2)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_ray_cluster_gives_the_same_rows_though_drivers_and_an_actor_die(
    e4e: E4EPipeline, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("DIES_ONCE", str(tmp_path / "once"))
    Image.new("RGB", (200, 120), (0, 254, 0)).save(photos / "d1" / "once.png")
    invert_folder(e4e, photos, tmp_path / "whole", workers=0, batch_size=2)
    (tmp_path / "once").touch()
    _killed_runs(photos, tmp_path / "out", 2, run_tiny_on_ray, longest=20.0, kill=os.killpg)
    assert not (tmp_path / "once").exists() and table(tmp_path / "out") == table(tmp_path / "whole")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    _killed_runs(photos, tmp_path / "out", 0, run_tiny_on_ray, longest=0.0)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
