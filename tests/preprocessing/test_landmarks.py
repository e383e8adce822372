import importlib
import inspect
import math
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan_inversion import PTIPipeline
from stylegan_inversion.errors import CheckpointError, MissingDependencyError
from stylegan_inversion.preprocessing import landmarks as module
from stylegan_inversion.preprocessing.builtin_landmarks import MIRROR, BuiltinLandmarkDetector
from stylegan_inversion.preprocessing.landmarks import FacexlibLandmarkDetector, get_landmark_detector
from stylegan_inversion.storage import builtin_path

SAMPLES = {"sample2": 2, "sample5": 5}  # sample2 has a full profile, which is left out


@pytest.fixture(scope="module")
def detector() -> BuiltinLandmarkDetector:
    return BuiltinLandmarkDetector()


def sample(name: str) -> Image.Image:
    return Image.open(builtin_path(f"samples/{name}.jpg"))


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    """One face of about 180 pixels, with surroundings."""
    return sample("sample3").crop((300, 100, 640, 520))


def four_points(landmarks: np.ndarray) -> np.ndarray:
    """Eye centres and corners of the mouth: what the FFHQ crop is made from."""
    eyes = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    return np.stack([*eyes, landmarks[48], landmarks[54]])


def error(landmarks: np.ndarray, expected: np.ndarray) -> float:
    """Mean distance of the four points, in eye distances."""
    ours, theirs = four_points(landmarks), four_points(expected)
    return float(np.linalg.norm(ours - theirs, axis=1).mean() / np.linalg.norm(theirs[1] - theirs[0]))


@pytest.mark.parametrize("name", SAMPLES)
def test_all_faces_of_the_samples_are_found(detector: BuiltinLandmarkDetector, name: str) -> None:
    faces = detector(sample(name))
    assert len(faces) == SAMPLES[name]
    assert faces == sorted(faces, key=lambda face: face.side, reverse=True)
    for face in faces:
        x0, y0, x1, y1 = face.box
        left, right, left_corner, right_corner = four_points(face.landmarks)
        middle = (left + right) / 2
        assert x0 < middle[0] < x1 and y0 < middle[1] < y1
        assert left[0] < right[0] and left_corner[0] < right_corner[0] and left_corner[1] > middle[1]
        assert 0.5 < face.score <= 1


def test_one_face_in_many_guises(detector: BuiltinLandmarkDetector, portrait: Image.Image) -> None:
    before = portrait.tobytes()
    (face,) = detector(portrait)
    assert portrait.tobytes() == before
    by_eye = np.array([[120, 187], [187, 188], [128, 257], [174, 257]])  # read off the photo by hand
    distance = np.linalg.norm(four_points(face.landmarks) - by_eye, axis=1) / np.linalg.norm(by_eye[1] - by_eye[0])
    assert distance.max() < 0.15
    (mirrored,) = detector(portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert error((mirrored.landmarks * [-1, 1] + [portrait.width, 0])[MIRROR], face.landmarks) < 0.03
    for scale in (0.35, 2.0):
        size = round(portrait.width * scale), round(portrait.height * scale)
        (scaled,) = detector(portrait.resize(size, Image.Resampling.LANCZOS))
        assert error(scaled.landmarks / scale, face.landmarks) < 0.06
    corner = round(face.box[0]), round(face.box[1])
    (close,) = detector(portrait.crop((*corner, round(face.box[2]), round(face.box[3]))))  # it fills the photo
    assert error(close.landmarks + corner, face.landmarks) < 0.06
    (dark,) = detector(portrait.point([level // 7 for level in range(256)] * 3))
    assert error(dark.landmarks, face.landmarks) < 0.08
    assert len(detector(portrait.convert("L"))) == len(detector(portrait.convert("RGBA"))) == 1


@pytest.mark.parametrize("degrees", [-40, 180])
def test_turned_faces_are_found(detector: BuiltinLandmarkDetector, portrait: Image.Image, degrees: int) -> None:
    (face,) = detector(portrait)
    turned = portrait.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=(110, 110, 110))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    there = (face.landmarks - np.array(portrait.size) / 2) @ np.array([[cos, -sin], [sin, cos]])
    (found,) = detector(turned)
    assert error(found.landmarks, there + np.array(turned.size) / 2) < 0.08


def test_small_faces_in_a_large_photo_are_found(detector: BuiltinLandmarkDetector, portrait: Image.Image) -> None:
    small = portrait.resize((portrait.width // 3, portrait.height // 3), Image.Resampling.LANCZOS)
    photo = Image.new("RGB", (1800, 1200), (90, 100, 110))
    photo.paste(small, (1100, 700))
    (face,) = detector(photo)
    (expected,) = detector(portrait)
    assert error((face.landmarks - [1100, 700]) * 3, expected.landmarks) < 0.1


def test_no_face_gives_an_empty_list(detector: BuiltinLandmarkDetector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 250, 3), dtype=np.uint8)
    assert detector(Image.fromarray(noise)) == []


class FakeRetinaFace:
    """Answers as facexlib's network: one row of box, score and five points a face."""

    def detect_faces(self, bgr: np.ndarray) -> np.ndarray:
        assert bgr.dtype == np.uint8 and bgr.shape[2] == 3
        height, width = bgr.shape[:2]
        assert tuple(bgr[0, 0]) == (30, 20, 10)  # blue first
        scale = np.array([width, height] * 7)
        small = np.array([0.1, 0.1, 0.2, 0.2, 0.12, 0.12, 0.18, 0.12, 0.15, 0.15, 0.13, 0.18, 0.17, 0.18]) * scale
        large = np.array([0.3, 0.3, 0.9, 0.9, 0.4, 0.5, 0.8, 0.5, 0.6, 0.6, 0.5, 0.7, 0.7, 0.7]) * scale
        return np.stack([np.insert(small, 4, 0.99), np.insert(large, 4, 0.9)])


def install_facexlib(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any], weights: Path) -> None:
    package, detection = ModuleType("facexlib"), ModuleType("facexlib.detection")
    detection.init_detection_model = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "facexlib", package)
    monkeypatch.setitem(sys.modules, "facexlib.detection", detection)
    monkeypatch.setattr(module, "_facexlib_weights", lambda: weights)


def test_facexlib_gives_eyes_and_mouth_in_pixels_of_the_photo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def make(name: str, *, device: Any, model_rootpath: str) -> FakeRetinaFace:
        asked.extend([name, device, model_rootpath])
        return FakeRetinaFace()

    install_facexlib(monkeypatch, make, tmp_path / "weights.pth")
    faces = FacexlibLandmarkDetector()(Image.new("RGB", (2000, 1000), (10, 20, 30)))
    assert asked == ["retinaface_resnet50", "cpu", str(tmp_path)]
    assert [face.score for face in faces] == [0.9, 0.99]  # the larger one first
    np.testing.assert_allclose(faces[0].box, (600, 300, 1800, 900))
    expected = [[800, 500], [1600, 500], [1000, 700], [1400, 700]]
    np.testing.assert_allclose(four_points(faces[0].landmarks), expected)
    np.testing.assert_allclose(faces[0].landmarks[[60, 64, 30]], [[1000, 700], [1400, 700], [1200, 600]])
    np.testing.assert_allclose(faces[0].landmarks[[51, 57, 62, 66], 0], 1200)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r'`name` must be "auto", "builtin" or "facexlib", got \'dlib\''):
        inspect.unwrap(get_landmark_detector)("dlib")  # past the type checker of the tests
    monkeypatch.setitem(sys.modules, "facexlib.detection", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'stylegan-inversion\[faces\]'"):
        get_landmark_detector("facexlib")


def test_auto_takes_facexlib_if_it_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install_facexlib(monkeypatch, lambda *_, **__: FakeRetinaFace(), tmp_path / "weights.pth")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert isinstance(get_landmark_detector(), BuiltinLandmarkDetector)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    assert isinstance(get_landmark_detector(), FacexlibLandmarkDetector)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("truncated file")

    install_facexlib(monkeypatch, broken, tmp_path / "weights.pth")
    assert isinstance(get_landmark_detector("auto"), BuiltinLandmarkDetector)
    assert "truncated file" in caplog.text


def test_facexlib_without_weights_says_where_they_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits: list[float | None] = []

    def make(*_: Any, **__: Any) -> None:
        limits.append(socket.getdefaulttimeout())
        raise OSError("no network")

    install_facexlib(monkeypatch, make, tmp_path / "weights.pth")
    before = socket.getdefaulttimeout()
    with pytest.raises(CheckpointError, match=r"fetched or read \(no network\).*_Resnet50_Final\.pth to .*weights"):
        FacexlibLandmarkDetector()
    assert limits == [10.0] and socket.getdefaulttimeout() == before, "a blocked network is not waited for"


def test_an_import_that_fails_in_any_way_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A torchvision that does not fit raises RuntimeError, and warns besides."""
    folder = tmp_path / "facexlib"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    broken = (
        "import warnings\nwarnings.warn('no image extension')\nraise RuntimeError('torchvision::nms does not exist')"
    )
    (folder / "detection.py").write_text(broken)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "facexlib"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    assert type(get_landmark_detector("auto")).__name__ == "BuiltinLandmarkDetector"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("The built-in face detector is used: facexlib cannot be imported (") and "\n" not in line


def test_facexlib_moves_with_the_pipeline(pti: PTIPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    detector = module.FacexlibLandmarkDetector.__new__(module.FacexlibLandmarkDetector)
    monkeypatch.setattr(detector, "to", moved.append, raising=False)
    pti._detector = detector
    pti.to("cpu")
    assert moved == [torch.device("cpu")]
