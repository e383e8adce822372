import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageSequence, PngImagePlugin

from stylegan_inversion.webapp import marking
from stylegan_inversion.webapp.marking import read_mark, save_animation, save_marked

EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def frames(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """A bright square that moves over a smooth ground."""
    ground = Image.linear_gradient("L").resize(size).convert("RGB")
    moved = []
    for i in range(count):
        frame = ground.copy()
        frame.paste((250, 120, 40), (4 * i, 10, 4 * i + 12, 22))
        moved.append(frame)
    return moved


def source_type(packet: str) -> str | None:
    """As a program reads it that knows XML and nothing of ours."""
    assert packet.startswith("<?xpacket begin=") and packet.rstrip().endswith('<?xpacket end="w"?>')
    return ET.fromstring(re.sub(r"<\?xpacket.*?\?>", "", packet).strip()).findtext(f".//{SOURCE_TYPE}")


def test_a_picture_says_what_it_is(photo: Image.Image, tmp_path: Path) -> None:
    for kind, expected, words in (("edited", EDITED, "AI-edited"), ("generated", GENERATED, "AI-generated")):
        path = save_marked(photo, tmp_path / "new" / kind, name="face.png", kind=kind)  # type: ignore[arg-type]
        assert path == tmp_path / "new" / kind / "face.png" and read_mark(path) == expected
        with Image.open(path) as image:
            assert isinstance(image, PngImagePlugin.PngImageFile) and image.format == "PNG"
            assert ImageChops.difference(image, photo).getbbox() is None
            assert image.text["Description"].startswith(words) and image.text["Software"] == "stylegan-inversion"
            assert source_type(image.text["XML:com.adobe.xmp"]) == expected
        data = path.read_bytes()
        assert data.index(b"XML:com.adobe.xmp") < data.index(b"IDAT")  # where readers look for it


def test_a_picture_to_be_looked_at_says_so_too(photo: Image.Image, tmp_path: Path) -> None:
    path = save_marked(photo, tmp_path, name="face", kind="generated", lossy=True)
    assert path == tmp_path / "face.jpg" and read_mark(path) == GENERATED
    with Image.open(path) as image:
        assert image.format == "JPEG" and source_type(image.info["xmp"].decode()) == GENERATED
        assert np.abs(np.asarray(image, int) - np.asarray(photo, int)).mean() < 3


def test_the_mark_is_all_the_metadata(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    photo.save(tmp_path / "private.jpg", exif=exif, comment=b"a secret name", icc_profile=b"a secret profile")
    with Image.open(tmp_path / "private.jpg") as private:
        paths = [save_marked(private, tmp_path, name="face", kind="edited", lossy=lossy) for lossy in (False, True)]
        paths.append(save_animation([private, private], tmp_path, name="face", kind="edited"))
        assert "exif" in private.info  # the caller's picture is as before
    assert all(b"secret" not in path.read_bytes() for path in paths)


def test_an_animation_loops_there_and_back(tmp_path: Path) -> None:
    path = save_animation(frames(5), tmp_path, name="way", kind="generated", seconds=0.5)
    assert path == tmp_path / "way.gif" and read_mark(path) == GENERATED
    with Image.open(path) as gif:
        shown = [frame.convert("RGB") for frame in ImageSequence.Iterator(gif)]
        assert gif.info["loop"] == 0 and gif.info["duration"] == 100 and gif.size == (64, 48)
    assert len(shown) == 8  # 0 1 2 3 4 3 2 1
    for i, expected in enumerate([0, 1, 2, 3, 4, 3, 2, 1]):
        errors = np.abs(np.asarray(shown[i], int) - np.asarray(frames(5)[expected], int))
        assert errors.mean() < 6
    still = [np.asarray(frame)[30:] for frame in shown]
    assert all(np.array_equal(each, still[0]) for each in still)  # nothing flickers where nothing moves

    path = save_animation(frames(3), tmp_path, name="once.gif", kind="edited", boomerang=False, seconds=0.01)
    with Image.open(path) as gif:
        assert gif.n_frames == 3 and gif.info["duration"] == 20  # type: ignore[attr-defined]
    path = save_animation(frames(1), tmp_path, name="one", kind="edited")
    assert read_mark(path) == EDITED


def test_the_mark_of_an_animation_stands_where_readers_look_for_it(tmp_path: Path) -> None:
    data = save_animation(frames(2), tmp_path, name="way", kind="edited").read_bytes()
    start = data.index(b"\x21\xff\x0bXMP DataXMP") + 14
    packet = data[start : data.index(b"\x01\xff\xfe", start)]
    assert source_type(packet.decode()) == EDITED and b"\0" not in packet
    position = start  # a reader that knows no XMP goes from block to block, and comes to the end
    while data[position]:
        position += 1 + data[position]
    assert data[position + 1 :] == b";"
    assert b"AI-edited: the face" in data[:1000]  # the comment


def test_an_animation_is_made_small_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 100, 150, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in noise]
    monkeypatch.setattr(marking, "MAX_BYTES", 60_000)
    path = save_animation(pictures, tmp_path, name="noise", kind="edited")
    assert path.stat().st_size <= 60_000
    with Image.open(path) as gif:
        assert 40 < gif.height < 100 and gif.width / gif.height == pytest.approx(1.5, abs=0.05)
    assert pictures[0].size == (150, 100) and read_mark(path) == EDITED


def test_without_a_mark(photo: Image.Image, tmp_path: Path) -> None:
    for suffix in ("png", "gif", "jpg"):
        photo.save(tmp_path / f"photo.{suffix}")
        assert read_mark(tmp_path / f"photo.{suffix}") is None
    (tmp_path / "text.png").write_text(f"<Iptc4xmpExt:DigitalSourceType>{EDITED}</")
    assert read_mark(tmp_path / "text.png") is None


def test_bad_arguments(photo: Image.Image, tmp_path: Path) -> None:
    for name in ("../face", "a/b", "", "face.gif", "x" * 101):
        with pytest.raises(ValueError, match=r"`name` must be letters, digits, '-' and '_', got "):
            save_marked(photo, tmp_path, name=name, kind="edited")
    with pytest.raises(ValueError, match=r"`kind` must be one of \['edited', 'generated'\], got 'real'"):
        save_marked(photo, tmp_path, name="face", kind="real")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`frames` must hold at least one picture, got none"):
        save_animation([], tmp_path, name="way", kind="edited")
    with pytest.raises(ValueError, match=r"`frames` must be of one size, got \[\(64, 48\), \(320, 240\)\]"):
        save_animation([photo, *frames(1)], tmp_path, name="way", kind="edited")
    for seconds in (0.0, float("nan"), 60.0):
        with pytest.raises(ValueError, match=r"`seconds` must be in \(0, 60\), got"):
            save_animation(frames(2), tmp_path, name="way", kind="edited", seconds=seconds)
    save_marked(photo, tmp_path, name="face", kind="edited")
    with pytest.raises(FileExistsError, match=r"face\.png"):
        save_marked(photo, tmp_path, name="face", kind="edited")
    save_animation(frames(1), tmp_path, name="way", kind="edited")
    with pytest.raises(FileExistsError, match=r"way\.gif"):
        save_animation(frames(1), tmp_path, name="way", kind="edited")
