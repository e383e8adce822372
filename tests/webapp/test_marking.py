"""Every file says that it is AI's work, and nothing else."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylegan_inversion.webapp.marking import MAX_GIF_BYTES, Kind, encode, encode_gif, encode_mp4
from tests.webapp.marks import EDITED, GENERATED, read_mark


@pytest.mark.parametrize(("kind", "mark"), [("photo", None), ("edited", EDITED), ("generated", GENERATED)])
@pytest.mark.parametrize("png", [False, True])
def test_pictures(kind: Kind, mark: str | None, png: bool, photo: Image.Image, tmp_path: Path) -> None:
    photo.info = {"exif": b"Exif\0\0 where it was", "comment": b"secret"}
    data = encode(photo, kind, png=png)
    (tmp_path / "x").write_bytes(data)
    assert read_mark(tmp_path / "x") == mark and b"where it was" not in data and b"secret" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == ("PNG" if png else "JPEG") and not image.getexif()
        assert not png or image.convert("RGB").tobytes() == photo.tobytes()


def test_animations(photo: Image.Image, tmp_path: Path) -> None:
    frames = [photo.rotate(k) for k in range(4)]
    (tmp_path / "x.gif").write_bytes(encode_gif(frames, "edited"))
    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 6 or image.n_frames == 7  # there and back
        assert image.size == photo.size and read_mark(tmp_path / "x.gif") == EDITED
    av = pytest.importorskip("av")
    (tmp_path / "x.mp4").write_bytes(encode_mp4([frame.resize((63, 41)) for frame in frames], "generated"))
    assert read_mark(tmp_path / "x.mp4") == GENERATED
    with av.open(tmp_path / "x.mp4") as video:
        (stream,) = video.streams.video
        assert (stream.codec.name, stream.width, stream.height) == ("h264", 62, 40)
        assert len(list(video.decode(stream))) == 18


def test_a_large_animation_is_made_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 900, 900, 3), dtype=np.uint8)
    data = encode_gif([Image.fromarray(each) for each in noise], "edited")
    assert len(data) <= MAX_GIF_BYTES
