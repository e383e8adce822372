from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.preprocessing.sources import (
    LabelSource,
    PhotoSource,
    SketchSource,
    source_from_config,
)
from tests.attack.pictures import encode

LABELS = np.arange(20 * 24).reshape(20, 24) % 19


GREY = Image.fromarray(LABELS.astype(np.uint8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: source_from_config({"kind": "video"}), "must be one of photo, sketch, labels, got 'video'"),
        (lambda: source_from_config({}), "must be one of .*, got None"),
        (lambda: source_from_config({"kind": "photo", "a": 3}), "kind 'photo' has no option 'a'"),
        (lambda: source_from_config({"kind": "labels", "num_labels": 257}), r"whole number in \[1, 256\], got 257"),
        (lambda: PhotoSource()(GREY, 32), "must be of mode RGB, got L"),
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


def test_photos_and_sketches(photo: Image.Image) -> None:
    source = PhotoSource()
    x = source(source.load(photo), 32)
    left = (photo.width - photo.height) // 2
    square = photo.crop((left, 0, left + photo.height, photo.height))
    assert torch.equal(x, to_tensor(square.resize((32, 32), Image.Resampling.LANCZOS))[0])
    assert torch.equal(source.preview(x[None]), x[None])
    sketch = SketchSource()
    white = Image.new("RGBA", (40, 30), (0, 0, 0, 0))  # transparent: paper
    assert torch.equal(sketch(sketch.load(white), 16), torch.ones(1, 16, 16))
    x = sketch(photo, 32)  # not normalised
    assert x.shape == (sketch.in_channels, 32, 32) and 0 <= x.min() < 0.4 < 0.6 < x.max() <= 1
    torch.testing.assert_close(x, sketch(sketch.load(photo), 32))
    torch.testing.assert_close(sketch.preview(x[None])[0, 1], x[0] * 2 - 1)


def one_hot(labels: np.ndarray, num_labels: int) -> torch.Tensor:
    return torch.from_numpy(np.eye(num_labels)[labels]).permute(2, 0, 1).float()


@pytest.mark.usefixtures("sound_tiff")
def test_labels_of_every_mode(tmp_path: Path) -> None:
    source = LabelSource()
    images = {
        "L": Image.fromarray(LABELS.astype(np.uint8)),
        "P": Image.fromarray(LABELS.astype(np.uint8)),
        "I;16": Image.fromarray(LABELS.astype(np.uint16)),
        "I": Image.fromarray(LABELS.astype(np.int32)),
    }
    images["P"].putpalette([0, 0, 0] + [255, 255, 255] + [7, 7, 7] * 254)  # the colours say nothing
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
