import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stylegan_inversion import InversionOutput, PTIPipeline
from stylegan_inversion.batch import invert_photos
from stylegan_inversion.preprocessing.image import load_image


def test_every_photo_gets_its_pictures_or_a_reason(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    photos = [tmp_path / "cat.png", tmp_path / "broken.jpg", tmp_path / "other" / "cat.jpg", tmp_path / "missing.png"]
    photo.save(photos[0])
    photos[1].write_bytes(b"\xff\xd8\xff")
    photo.save(photos[2])
    results = list(invert_photos(pti, photos, tmp_path / "out", edits={"smile": 2.0}))
    records = [record for record, _ in results]
    assert [Path(r.folder).name if r.folder else None for r in records] == ["cat", None, "cat_2", None]
    assert records[1].error and "broken.jpg" in records[1].error
    assert records[3].error and "missing.png" in records[3].error
    for name in ("cat", "cat_2"):
        folder = tmp_path / "out" / name
        sizes = {p.stem: load_image(p).size for p in folder.glob("*.png")}
        assert sizes == {"photo": photo.size, "crop": (32, 32), "inverted": (32, 32), "edited": (32, 32)}
        assert InversionOutput.load(folder / "inversion").edits == {}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [entry["photo"] for entry in report["photos"]] == [str(p) for p in photos]
    assert results[0][1] is not None and results[0][1].edits == {"smile": 2.0} and results[1][1] is None


def test_wrong_arguments_are_said_before_any_work(pti: PTIPipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no direction 'smle'"):
        next(invert_photos(pti, ["a.jpg"], tmp_path / "out", edits={"smle": 1.0}))
    with pytest.raises(ValueError, match="PTIPipeline has no option 'num_steps'; it has align, face, preset, pivot"):
        next(invert_photos(pti, ["a.jpg"], tmp_path / "out", options={"num_steps": 1}))
    assert not (tmp_path / "out").exists()


def test_one_photo_that_breaks_does_not_end_the_others(
    pti: PTIPipeline, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [tmp_path / name for name in ("a.png", "b.png")]
    for path in photos:
        photo.save(path)
    align = pti.align

    def broken(image: Path, **options: Any) -> Any:
        if image == photos[0]:
            raise RuntimeError("out of memory")
        return align(image, **options)

    monkeypatch.setattr(pti, "align", broken)
    records = [record for record, _ in invert_photos(pti, photos, tmp_path / "out")]
    assert records[0].error == "RuntimeError: out of memory" and records[1].error is None


def test_old_pictures_do_not_pass_for_new_ones(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    list(invert_photos(pti, [tmp_path / "a.png"], tmp_path / "out", edits={"smile": 1.0}))
    assert (tmp_path / "out" / "a" / "edited.png").exists()
    list(invert_photos(pti, [tmp_path / "a.png"], tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out" / "a").iterdir()) == ["crop.png", "inversion", "inverted.png"]
    (tmp_path / "a.png").write_bytes(b"")
    ((record, _),) = invert_photos(pti, [tmp_path / "a.png"], tmp_path / "out")
    assert record.error is not None and record.folder == str(tmp_path / "out" / "a"), "nothing is lost by a failure"
    assert sorted(p.name for p in (tmp_path / "out" / "a").iterdir()) == ["crop.png", "inversion", "inverted.png"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [("...jpg", "photo"), (". .jpg", "photo"), (" .png", "photo"), ("report.json.png", "report.json_2")],
)
def test_no_name_of_a_photo_leaves_its_folder(
    name: str, folder: str, pti: PTIPipeline, photo: Image.Image, tmp_path: Path
) -> None:
    mine = tmp_path / "above" / "inversion" / "config.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    photo.save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / name)
    ((record, _),) = invert_photos(pti, [tmp_path / name], tmp_path / "above" / "out", edits={"smile": 1.0})
    assert record.error is None and Path(str(record.folder)) == tmp_path / "above" / "out" / folder
    assert sorted(path.name for path in (tmp_path / "above").iterdir()) == ["inversion", "out"]
    assert mine.read_text() == "{}"


def test_two_photos_never_share_a_folder(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    photos = [tmp_path / folder / name for folder, name in (("a", "cat.png"), ("b", "cat.png"), ("c", "CAT.png"))]
    for path in photos:
        path.parent.mkdir()
        photo.save(path)
    folders = [next(invert_photos(pti, [path], tmp_path / "out"))[0].folder for path in photos]
    assert [Path(str(folder)).name for folder in folders] == ["cat", "cat_2", "CAT_3"]
    again = {record.photo: record.folder for record, _ in invert_photos(pti, photos[::-1], tmp_path / "out")}
    assert again == dict(zip(map(str, photos), folders)), "in another order: each its own"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sorted(entry["photo"] for entry in report["photos"]) == sorted(map(str, photos))
    missing = tmp_path / "d" / "cat.png"
    records = [record for record, _ in invert_photos(pti, [missing, photos[0]], tmp_path / "out")]
    assert records[0].error == f"No such file or directory: {missing}"
    assert records[1].folder == folders[0], "one that is not there takes no folder"
    (tmp_path / "out" / "report.json").write_text("[")
    with pytest.raises(
        ValueError, match=r"report\.json cannot be read, so it is unknown which folder belongs to which"
    ):
        next(invert_photos(pti, photos, tmp_path / "out"))


def test_an_interruption_loses_nothing(
    pti: PTIPipeline, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [tmp_path / "cat.png", tmp_path / "dog.png"]
    for path in photos:
        photo.save(path)
    list(invert_photos(pti, photos, tmp_path / "out", edits={"smile": 1.0}))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(pti), "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(invert_photos(pti, photos[::-1], tmp_path / "out"))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
