"""The port against what @vladmandic/face-api 1.7.15 and @vladmandic/human 3.3.6 (FaceRes) computed on TensorFlow.js.

The stored numbers (tests/data/face_api.safetensors) are float32 from the original weights; ours are kept in float16,
which sets the tolerances.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from stylegan_inversion.models.face import (
    ExpressionNet,
    FaceFeaturesConfig,
    FaceLandmarks68,
    FaceRecognitionConfig,
    FaceRecognitionNet,
    FaceScorer,
    landmark_distances,
    landmark_yaw,
)
from stylegan_inversion.models.face_detector import FaceDetector, FaceDetectorConfig, non_max_suppression
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.storage import builtin_path, load_module

DATA = Path(__file__).parents[1] / "data"
FACE = builtin_path("faces64/face")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(DATA / "face_api.safetensors")


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return load_module(FaceDetector, FaceDetectorConfig, FACE / "detector")


@pytest.fixture(scope="module")
def recognition() -> FaceRecognitionNet:
    return load_module(FaceRecognitionNet, FaceRecognitionConfig, FACE / "recognition")


@pytest.fixture(scope="module")
def scorer() -> FaceScorer:
    return FaceScorer(
        load_module(FaceLandmarks68, FaceFeaturesConfig, FACE / "landmarks"),
        load_module(ExpressionNet, FaceFeaturesConfig, FACE / "expression"),
        load_module(FaceRecognitionNet, FaceRecognitionConfig, FACE / "recognition"),
    )


def noise(size: int, count: int) -> Tensor:
    """Blocks of colour with grain, (count, 3, size, size) in [-1, 1]: the inputs of the stored numbers."""
    images = []
    for seed in range(count):
        generator = np.random.Generator(np.random.PCG64(seed))
        blocks = generator.integers(0, 256, (-(-size // 16), -(-size // 16), 3))
        grain = generator.integers(-20, 21, (size, size, 3))
        images.append(np.clip(np.repeat(np.repeat(blocks, 16, 0), 16, 1)[:size, :size] + grain, 0, 255))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def face(number: int, box: tuple[float, float, float, float], size: int = 150) -> Tensor:
    """Crop a sample photo; the box is in shares of its longer side."""
    photo = Image.open(builtin_path(f"samples/sample{number}.jpg"))
    scaled = tuple(value * max(photo.size) for value in box)
    return to_tensor(photo.resize((size, size), Image.Resampling.BICUBIC, box=scaled))  # type: ignore[arg-type]


LAUGHING = face(1, (0.75, 0.096, 0.89, 0.236))
SERIOUS = face(1, (0.19, 0.176, 0.33, 0.316))


def test_landmarks_and_expression_equal_the_original(golden: dict[str, Tensor], scorer: FaceScorer) -> None:
    x = noise(112, 2)
    torch.testing.assert_close(scorer.landmarks(x), golden["landmarks"], atol=1e-3, rtol=0)
    torch.testing.assert_close(scorer.expression(x), golden["expression"], atol=0.03, rtol=0)


def test_recognition_equals_the_original(golden: dict[str, Tensor], recognition: FaceRecognitionNet) -> None:
    x = noise(224, 2)
    age, log_odds = recognition.age_and_gender(x)
    torch.testing.assert_close(recognition(x), golden["recognition"], atol=0.01, rtol=0)
    torch.testing.assert_close(age, golden["age"], atol=0.05, rtol=0)
    torch.testing.assert_close(log_odds, golden["gender"], atol=0.02, rtol=0)


def test_detector_equals_the_original(golden: dict[str, Tensor], detector: FaceDetector) -> None:
    boxes, logits = detector(noise(512, 1))
    torch.testing.assert_close(boxes[0, ::16], golden["detector.boxes"], atol=4.0, rtol=0)
    torch.testing.assert_close(logits[0, ::16].sigmoid(), golden["detector.scores"], atol=2e-3, rtol=0)


@pytest.mark.parametrize("number", [1, 4])
def test_detector_finds_the_faces_that_the_original_finds(detector: FaceDetector, number: int) -> None:
    photo = Image.open(builtin_path(f"samples/sample{number}.jpg"))
    theirs = torch.tensor(json.loads((DATA / "face_api_boxes.json").read_text())[f"sample{number}"])
    ours = detector.detect(to_tensor(photo))
    assert len(ours) == len(theirs)
    torch.testing.assert_close(ours[:, 4], theirs[:, 4], atol=0.02, rtol=0)
    torch.testing.assert_close(ours[:, :4] / max(photo.size), theirs[:, :4], atol=0.01, rtol=0)


def test_non_max_suppression_keeps_the_best_of_each_group() -> None:
    boxes = torch.tensor([[0, 0, 10, 10, 0.9], [1, 0, 11, 10, 0.8], [20, 0, 30, 10, 0.7], [0, 0, 10, 4, 0.6]])
    assert non_max_suppression(boxes, 0.5).tolist() == [0, 2, 3]
    assert non_max_suppression(boxes[:0], 0.5).tolist() == []


def test_scores_have_the_right_order(scorer: FaceScorer) -> None:
    scores = scorer(torch.cat([LAUGHING, SERIOUS]))
    assert set(scores) == {"smile", "age", "gender", "yaw", "pitch", "mouth_open", "eyes_open"}
    assert scores["smile"][0] > 2 and scores["smile"][1] < scores["smile"][0] - 2
    assert bool(((scores["age"] > 15) & (scores["age"] < 60)).all())
    assert bool((scores["gender"] < 0).all())  # both are women
    assert scores["mouth_open"][0] > scores["mouth_open"][1] + 0.05 and bool((scores["eyes_open"] > 0.05).all())
    turned = face(4, (0.115, 0.075, 0.245, 0.245))  # looks to the right of the image
    yaw, mirrored = scorer(torch.cat([turned, turned.flip(3)]))["yaw"]
    assert yaw > 0.1 and mirrored.item() == pytest.approx(-yaw.item(), abs=0.06)


def test_looking_up_an_open_mouth_and_open_eyes() -> None:
    landmarks = torch.zeros(1, 68, 2)
    landmarks[:, 36:42], landmarks[:, 42:48] = torch.tensor([0.3, 0.4]), torch.tensor([0.7, 0.4])
    landmarks[:, 48:68], landmarks[:, 30] = torch.tensor([0.5, 0.8]), torch.tensor([0.5, 0.56])
    landmarks[:, [40, 41, 46, 47], 1] += 0.02
    landmarks[:, [37, 38, 43, 44], 1] -= 0.02
    landmarks[:, [65, 66, 67], 1] += 0.1
    landmarks[:, [61, 62, 63], 1] -= 0.1
    found = landmark_distances(landmarks)
    expected = {"pitch": 0.1, "mouth_open": 0.5, "eyes_open": 0.1}
    torch.testing.assert_close(found, {name: torch.tensor([value]) for name, value in expected.items()})
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])  # rolling the head changes nothing
    torch.testing.assert_close(landmark_distances(landmarks @ turn), found)


def test_yaw_is_positive_when_the_nose_points_right() -> None:
    landmarks = torch.zeros(1, 68, 2)
    landmarks[:, 36:42], landmarks[:, 42:48] = torch.tensor([0.3, 0.4]), torch.tensor([0.7, 0.4])
    landmarks[:, 30] = torch.tensor([0.6, 0.6])
    torch.testing.assert_close(landmark_yaw(landmarks), torch.tensor([0.25]))
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])  # rolling the head changes nothing
    torch.testing.assert_close(landmark_yaw(landmarks @ turn), torch.tensor([0.25]))
