import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing.image import to_pil, to_tensor
from stylegan_inversion.preprocessing.sources import (
    LabelSource,
    PhotoSource,
    SketchSource,
    Source,
    source_from_config,
    to_config,
)

LABELS = np.arange(20 * 24).reshape(20, 24) % 19


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("source", [PhotoSource(), SketchSource(), LabelSource(), LabelSource(3)])
def test_config_round_trip(source: Source) -> None:
    assert source_from_config(json.loads(json.dumps(to_config(source)))) == source
    assert len({PhotoSource(), source}) == (1 if source == PhotoSource() else 2)


GREY = Image.fromarray(LABELS.astype(np.uint8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: source_from_config({"kind": "video"}), "must be one of photo, sketch, labels, got 'video'"),
        (lambda: source_from_config({}), "must be one of .*, got None"),
        (lambda: source_from_config({"kind": "photo", "a": 3}), "kind 'photo' has no option 'a'; it has none"),
        (lambda: source_from_config({"kind": "labels", "num_labels": 257}), r"whole number in \[1, 256\], got 257"),
        (lambda: PhotoSource()(GREY, 32), "must be of mode RGB, got L"),
        (lambda: SketchSource()(GREY, 0), "`size` must be at least 1, got 0"),
        (lambda: LabelSource()(GREY, 0), "`resolution` must be at least 1, got 0"),
        (lambda: LabelSource(18)(GREY, 16), r"holds 18, but labels must be in \[0, 17\]: `num_labels` is 18"),
        (lambda: LabelSource()(Image.fromarray(LABELS.astype(np.int32) - 1), 16), "holds -1, but labels"),
        (lambda: LabelSource().load(encode(GREY, "JPEG")), "is a JPEG, whose compression changes"),
        (lambda: LabelSource().load(GREY.convert("RGB")), "The image is of mode RGB"),
        (lambda: LabelSource()(GREY.convert("RGBA"), 16), "The label map is of mode RGBA"),
        (lambda: LabelSource().load(encode(GREY, "PNG")[:60]), "The file is not an image, or damaged"),
        (lambda: LabelSource().load(LABELS / 2), r"must be \(H, W\) of whole numbers, got \(20, 24\) of float64"),
        (lambda: LabelSource().load(Image.new("L", (17000, 1))), "is 17000 x 1 pixels"),
        (lambda: LabelSource().load(3), r"must be a path, bytes, a PIL image or .*, got int"),
        (lambda: LabelSource().load("nowhere.png"), "nowhere.png"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        call()


def test_photo(photo: Image.Image) -> None:
    source = PhotoSource()
    x = source(source.load(photo), 32)
    left = (photo.width - photo.height) // 2
    square = photo.crop((left, 0, left + photo.height, photo.height))
    torch.testing.assert_close(x, to_tensor(square, 32)[0])
    assert x.shape == (source.in_channels, 32, 32)
    assert torch.equal(source.preview(x[None]), x[None])


def test_sketch_is_not_normalised(photo: Image.Image) -> None:
    source = SketchSource()
    white = Image.new("RGBA", (40, 30), (0, 0, 0, 0))  # transparent: paper
    assert torch.equal(source(source.load(white), 16), torch.ones(1, 16, 16))
    assert torch.equal(source(Image.new("1", (30, 40)), 16), torch.zeros(1, 16, 16))
    x = source(photo, 32)
    assert x.shape == (source.in_channels, 32, 32) and 0 <= x.min() < 0.4 < 0.6 < x.max() <= 1
    torch.testing.assert_close(x, source(source.load(photo), 32))
    torch.testing.assert_close(source.preview(x[None])[0, 1], x[0] * 2 - 1)


def one_hot(labels: np.ndarray, num_labels: int) -> torch.Tensor:
    """Pixel by pixel, as slow as can be."""
    x = torch.zeros(num_labels, *labels.shape)
    for row in range(labels.shape[0]):
        for column in range(labels.shape[1]):
            x[int(labels[row, column]), row, column] = 1
    return x


def palette(labels: np.ndarray) -> Image.Image:
    """The colours say nothing: all labels but two look the same."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([0, 0, 0] + [255, 255, 255] + [7, 7, 7] * 254)
    assert image.mode == "P"
    return image


@pytest.mark.usefixtures("sound_tiff")
def test_labels_of_every_mode(tmp_path: Path) -> None:
    source = LabelSource()
    images = {
        "L": Image.fromarray(LABELS.astype(np.uint8)),
        "P": palette(LABELS),
        "I;16": Image.fromarray(LABELS.astype(np.uint16)),
        "I": Image.fromarray(LABELS.astype(np.int32)),
    }
    expected = one_hot(LABELS[:, 2:22], 19)
    for mode, image in images.items():
        assert image.mode == mode
        path = tmp_path / ("map.tif" if mode == "I" else f"{mode[:2]}.png")  # PNG has no 32 bits
        image.save(path)
        for given in (path, str(path), path.read_bytes(), image, LABELS, LABELS.astype(np.uint8)):
            x = source(source.load(given), 20)
            assert x.dtype == torch.float32 and torch.equal(x, expected), mode
    bits = Image.fromarray(LABELS % 2 == 1)
    assert bits.mode == "1"
    (tmp_path / "bits.png").write_bytes(encode(bits, "PNG"))
    for given in (bits, tmp_path / "bits.png", LABELS % 2 == 1):
        assert torch.equal(LabelSource(2)(source.load(given), 20), one_hot(LABELS[:, 2:22] % 2, 2))


@pytest.mark.parametrize("resolution", [7, 33])
def test_the_central_square_of_labels_is_resized_as_pillow_does(resolution: int) -> None:
    for labels, square in ((LABELS, LABELS[:, 2:22]), (LABELS.T, LABELS.T[2:22])):
        smaller = Image.fromarray(square.astype(np.uint8)).resize((resolution, resolution), Image.Resampling.NEAREST)
        x = LabelSource()(Image.fromarray(labels.astype(np.uint8)), resolution)
        assert torch.equal(x, one_hot(np.asarray(smaller), 19))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
@pytest.mark.parametrize("source", [PhotoSource(), SketchSource(), LabelSource()])
def test_what_blocks_is_not_opened(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "map.png").touch()
    with pytest.raises(InvalidImageError, match=r"`map\.png` is empty"):
        source.load(tmp_path / "map.png")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(Path, "open", None)  # whoever calls it, fails rather than waits
    for path, match in (
        (tmp_path / "pipe.png", r"`pipe\.png` is a folder or a device, not an image"),
        (tmp_path, "is a folder or a device, not an image"),
        ("a\0.png", "holds a null character"),
    ):
        with pytest.raises(InvalidImageError, match=match):
            source.load(path)


def test_preview_of_labels_tells_them_apart() -> None:
    source = LabelSource()
    x = source(Image.fromarray(LABELS.astype(np.uint8)), 20)[None]
    preview = source.preview(x)
    assert preview.shape == (1, 3, 20, 20) and preview.min() >= -1 and preview.max() <= 1
    colours = np.asarray(to_pil(preview)[0]).reshape(-1, 3)
    labels = x[0].argmax(0).flatten().numpy()
    by_label = {label: {tuple(colour) for colour in colours[labels == label].tolist()} for label in range(19)}
    assert all(len(found) == 1 for found in by_label.values())
    assert len(set.union(*by_label.values())) == 19 and by_label[0] == {(0, 0, 0)}
