"""What becomes of the photo's own detail when an edited face goes back."""

import inspect
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.preprocessing.align import Crop, crop_quad, uncropped
from stylegan_inversion.preprocessing.paste import paste_back


def square(x: float, y: float, side: float, degrees: float = 0.0) -> np.ndarray:
    turn = np.deg2rad(degrees)
    right = np.array([np.cos(turn), np.sin(turn)]) * side / 2
    down = np.array([-right[1], right[0]])
    return np.array([x, y]) + np.stack([-right - down, -right + down, right + down, right - down])


def noise(seed: int, width: int, height: int, blur: float) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur)), dtype=float)
    return (soft - soft.mean()) / soft.std()


def scene(dx: int = 0, *, fine: float = 12.0) -> np.ndarray:
    """Soft blobs, 320 x 320, with fine grain that the generator cannot draw; both moved right by `dx` pixels."""
    return np.roll(np.clip(128 + 45 * noise(1, 320, 320, 12) + fine * noise(2, 320, 320, 1), 0, 255), dx, axis=1)


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def drawn(pixels: np.ndarray, size: int) -> Image.Image:
    return picture(pixels).resize((size, size), Image.Resampling.LANCZOS)


def error(image: Image.Image, truth: np.ndarray) -> float:
    """Root mean square, in the middle: near the border nothing moves."""
    middle = (slice(80, 240), slice(80, 240))
    return float(np.sqrt(np.square(np.asarray(image, dtype=float)[middle] - truth[middle]).mean()))


@pytest.mark.parametrize(("size", "dx"), [(64, 8), (64, -6), (256, 8)])
def test_detail_moves_with_the_face(size: int, dx: int) -> None:
    photo, truth = scene(), scene(dx)
    crop = Crop(drawn(photo, size), square(159.5, 159.5, 320), picture(photo), 1, 0)
    before, after = drawn(scene(fine=0), size), drawn(scene(dx, fine=0), size)
    moved, added, replaced = (
        error(paste_back(crop, after, reference=before, detail=detail), truth) for detail in ("move", "add", "none")
    )
    assert moved < 0.6 * min(added, replaced)


def test_a_change_of_colour_moves_nothing() -> None:
    photo = scene()
    crop = Crop(drawn(photo, 64), square(159.5, 159.5, 320), picture(photo), 1, 0)
    before = scene(fine=0)
    darker = drawn(before * 0.8, 64)
    assert error(paste_back(crop, darker, reference=drawn(before, 64)), photo - 0.2 * before) < 2.5


def test_the_change_vanishes_with_the_edit() -> None:
    photo = scene()
    crop = Crop(drawn(photo, 64), square(159.5, 159.5, 300, 20), picture(photo), 1, 0)
    start, end = (np.asarray(drawn(scene(dx, fine=0), 64), dtype=float) for dx in (0, 10))
    results = [
        paste_back(crop, picture(start + share * (end - start)), reference=picture(start))
        for share in (0.0, 0.02, 0.1, 0.4)
    ]
    assert results[0].tobytes() == crop.photo.tobytes()
    errors = [error(result, photo) for result in results]
    assert errors == sorted(errors) and errors[1] < 1.0


@settings(max_examples=60, deadline=None)
@given(
    place=st.tuples(st.floats(-40, 240), st.floats(-40, 140), st.floats(20, 400), st.floats(-180, 180)),
    size=st.sampled_from([16, 64, 128]),
    detail=st.sampled_from(["move", "add", "none"]),
    dx=st.integers(-6, 6),
)
def test_outside_the_quad_nothing_changes_and_without_an_edit_nowhere(
    place: tuple[float, float, float, float], size: int, detail: str, dx: int
) -> None:
    photo, quad = picture(scene()[:100, :200]), square(*place)
    crop = Crop(drawn(scene(), size), quad, photo, 1, 0)
    after = drawn(scene(dx), size)
    result = np.asarray(paste_back(crop, after, reference=crop.image, detail=detail))  # type: ignore[arg-type]
    y, x = np.mgrid[:100, :200]
    u, v = np.linalg.inv(np.stack([quad[3] - quad[0], quad[1] - quad[0]], axis=1)) @ (
        np.stack([x.ravel(), y.ravel()]) - quad[0][:, None]
    )
    outside = (np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v)) < -1e-9).reshape(100, 200)
    assert (result == np.asarray(photo))[outside].all()
    if detail != "none":
        assert paste_back(crop, after, reference=after.copy(), detail=detail).tobytes() == photo.tobytes()  # type: ignore[arg-type]


def test_a_photo_that_is_the_crop_and_a_turned_crop() -> None:
    """Detail moves along the face's axes, whatever its angle; an uncropped photo has no seam, and moves as well."""
    photo, truth = picture(scene()), picture(scene(8))
    before, after = drawn(scene(fine=0), 64), drawn(scene(8, fine=0), 64)
    whole = paste_back(uncropped(photo, 64), after, reference=before)
    assert error(whole, scene(8)) < 0.6 * error(photo, scene(8))
    turned = square(159.5, 159.5, 320, 90)  # the photo is turned in the other direction
    crop = Crop(crop_quad(photo.rotate(-90), turned, 64), turned, photo.rotate(-90), 1, 0)
    pasted = paste_back(crop, after, reference=before).rotate(90)
    assert np.abs(np.asarray(pasted, dtype=int) - np.asarray(whole))[80:240, 80:240].mean() < 1.5
    assert truth.size == pasted.size


def test_a_face_larger_than_the_generator_draws_and_smaller() -> None:
    for side in (40, 900):
        crop = replace(
            uncropped(picture(scene()).resize((side, side)), 64), quad=square(side / 2, side / 2, side * 0.9)
        )
        result = paste_back(crop, drawn(scene(8), 64), reference=drawn(scene(), 64))
        assert result.size == (side, side) and result.tobytes() != crop.photo.tobytes()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crop = uncropped(picture(scene()), 64)
    with pytest.raises(ValueError, match="`detail` must be one of move, add, none, got 'keep'"):
        inspect.unwrap(paste_back)(crop, crop.image, detail="keep")  # past the type checker of the tests
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    (tmp_path / "cv2.py").write_text("raise AttributeError('no DictValue')")  # as mixed builds do
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"no DictValue.* pip install opencv-python-headless"):
        paste_back(crop, crop.image, reference=crop.image)
