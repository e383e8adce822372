"""The built-in landmark detector: small networks that look at a photo in several views.

Landmarks are those of `stylegan_inversion.preprocessing.landmarks`.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from stylegan_inversion.models.face import FaceFeaturesConfig, FaceLandmarks68
from stylegan_inversion.models.face_detector import FaceDetector, FaceDetectorConfig
from stylegan_inversion.models.layers import ONEDNN
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.preprocessing.landmarks import Face
from stylegan_inversion.storage import builtin_path, load_module

logger = logging.getLogger(__name__)

# Landmark of the mirror image -> landmark of the image.
_MIRROR_FACE = (*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1))  # jaw, brows, nose
_MIRROR_EYES = (*range(45, 41, -1), 47, 46, *range(39, 35, -1), 41, 40)
_MIRROR_MOUTH = (*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65)
MIRROR = np.array((*_MIRROR_FACE, *_MIRROR_EYES, *_MIRROR_MOUTH))

_OVERLAP = 1 / 3  # of neighbouring parts of the photo
_COARSE_PARTS = 768  # photos with a longer side than this are also searched in parts, half as wide
_FINE_PART = 640.0  # side of the finer parts, in pixels
_MAX_FINE_PARTS = 100
_PADDED = 2.0  # side of the view with a border, as a multiple of the photo's longer side
_TURNS = (45, -45, 90, -90, 180)  # degrees
_SAME_FACE = 0.4  # faces whose centres are nearer than this share of the larger box are the same
# Of 255: dark crops are stretched until 99.5 % of their pixels lie below _WHITE; if their mean is below _DARK, they are
# then brightened to about _LIT.
_DARK, _LIT, _WHITE = 60.0, 100.0, 235.0
# How far the landmarks of the mirror image disagree, in eye distances: 0.02 to 0.09 on faces, 0.1 to above 1 where the
# face is turned against the crop, or there is none. Above _DOUBTFUL turned crops are tried; above _MAX_DISAGREEMENT the
# box is dropped.
_DOUBTFUL, _MAX_DISAGREEMENT = 0.1, 0.18
# Crops for the landmarks, tuned on photos against other landmark detectors: (side as a multiple of the longer side of
# the box, shift down as a share of it), first for the detector's box, then for the box around the landmarks.
_FIRST_CROP = (1.1, 0.05)
_NEXT_CROPS = ((1.2, 0.04), (1.4, 0.04))


Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the photo."""


class BuiltinLandmarkDetector:
    """The networks that ship with the package, on the CPU.

    The detector searches the whole photo, the photo inside a wide border (for faces as large as the photo) and
    overlapping parts of it (for small faces). If it finds nothing, it searches finer parts, and the photo turned. Each
    box is cropped upright for the landmarks, which are averaged with those of the mirror image. Where the two disagree,
    turned crops are tried. Boxes where they never agree, such as full profiles, are dropped.
    """

    def __init__(self) -> None:
        folder = builtin_path("faces64/face")
        self.detector = load_module(FaceDetector, FaceDetectorConfig, folder / "detector")
        self.landmarks = load_module(FaceLandmarks68, FaceFeaturesConfig, folder / "landmarks")
        for network in (self.detector, self.landmarks) if ONEDNN else ():
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth less time

    @torch.no_grad()
    def __call__(self, photo: Image.Image) -> list[Face]:
        """Find the faces in an RGB photo; see `LandmarkDetector`."""
        if photo.mode != "RGB":
            photo = photo.convert("RGB")
        for views in _stages(photo.width, photo.height):
            faces = self._find(photo, views)
            if faces:
                return sorted(faces, key=lambda face: face.side, reverse=True)
        return []

    def _find(self, photo: Image.Image, views: list["_Square"]) -> list[Face]:
        """Find the faces in any of the views, each once, best first."""
        candidates = [candidate for view in views for candidate in self._detect(photo, view)]
        faces: list[Face] = []
        for square, score, box in sorted(candidates, key=lambda candidate: candidate[1], reverse=True):
            if any(_same(box, face.box) for face in faces):
                continue
            landmarks, disagreement = self._refine(photo, square)
            logger.debug("Box %s: score %.2f, mirror disagreement %.3f.", box, score, disagreement)
            if disagreement < _MAX_DISAGREEMENT:
                faces.append(Face(landmarks, box, score))
        return faces

    def _detect(self, photo: Image.Image, view: "_Square") -> Iterator[tuple["_Square", float, Box]]:
        """Run the detector on one view: squares around the faces, turned like the view, with scores and boxes."""
        size = self.detector.config.resolution
        for x0, y0, x1, y1, score in self.detector.detect(to_tensor(_brighten(view.crop(photo, size)))).tolist():
            if view.cuts((x0 / size, y0 / size, x1 / size, y1 / size), photo.width, photo.height):
                continue  # a neighbouring view shows more of this face
            ((x, y),) = view.to_photo(np.array([[(x0 + x1) / 2, (y0 + y1) / 2]]) / size).tolist()
            width, height = (x1 - x0) * view.side / size, (y1 - y0) * view.side / size
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            yield _Square.rounded(x, y, max(width, height), view.angle), score, box

    def _refine(self, photo: Image.Image, box: "_Square") -> tuple[Float[np.ndarray, "68 2"], float]:
        """Find the landmarks in a box, crop upright around them, and find them again. If in doubt, turn the box.

        Returns:
            The landmarks in pixels of the photo, and by how many eye distances the mirror image disagrees.
        """
        found = []
        for turn in (0, *_TURNS):
            turned = replace(box, angle=box.angle + math.radians(turn))
            landmarks, _ = self._averaged(photo, [turned.scaled(*_FIRST_CROP)])
            around = _Square.around(landmarks)
            found.append(self._averaged(photo, [around.scaled(*crop) for crop in _NEXT_CROPS]))
            if found[0][1] < _DOUBTFUL:
                break
        return min(found, key=lambda each: each[1])

    def _averaged(self, photo: Image.Image, squares: list["_Square"]) -> tuple[Float[np.ndarray, "68 2"], float]:
        """Average the landmarks over crops and their mirror images, and measure how far the mirror images disagree."""
        size = self.landmarks.config.resolution
        x = torch.cat([to_tensor(_brighten(square.crop(photo, size))) for square in squares])
        shares = self.landmarks(torch.cat([x, x.flip(3)])).double().numpy()
        mirrored = shares[len(squares) :, MIRROR] * [-1, 1] + [1, 0]
        both = np.stack([shares[: len(squares)], mirrored])  # (2, crops, 68, 2)
        landmarks = np.mean([square.to_photo(s) for square, s in zip(squares, both.mean(axis=0))], axis=0)
        eye_distance = np.linalg.norm(both[..., 42:48, :].mean(axis=-2) - both[..., 36:42, :].mean(axis=-2), axis=-1)
        error = np.linalg.norm(both[0] - both[1], axis=-1).mean()
        return landmarks, float(error / max(eye_distance.mean(), 1e-6))


@dataclass(frozen=True)
class _Square:
    """A square in the photo's pixels, turned clockwise by `angle` radians. May reach beyond the photo."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    @staticmethod
    def rounded(x: float, y: float, side: float, angle: float) -> "_Square":
        """Round what a network gave, so that the last bits of a machine's arithmetic decide nothing."""
        return _Square(round(x, 2), round(y, 2), round(side, 2), round(angle, 4))

    @staticmethod
    def around(landmarks: np.ndarray) -> "_Square":
        """Find the smallest square around landmarks that has the eyes level."""
        across = landmarks[42:48].mean(axis=0) - landmarks[36:42].mean(axis=0)
        angle = math.atan2(across[1], across[0])
        level = landmarks @ _rotation(angle)
        low, high = level.min(axis=0), level.max(axis=0)
        x, y = _rotation(angle) @ (low + high) / 2
        return _Square.rounded(float(x), float(y), float((high - low).max()), angle)

    def scaled(self, scale: float, down: float) -> "_Square":
        """Move down, in the square's own upright direction, by a share of the side, and scale."""
        x, y = np.array([self.x, self.y]) + _rotation(self.angle) @ [0.0, down * self.side]
        return _Square(float(x), float(y), self.side * scale, self.angle)

    def to_photo(self, shares: np.ndarray) -> np.ndarray:
        """Convert shares of the square, (N, 2), to pixels of the photo."""
        return (shares - 0.5) * self.side @ _rotation(self.angle).T + [self.x, self.y]

    def cuts(self, box: tuple[float, ...], width: int, height: int) -> bool:
        """Tell whether an edge of the square inside the photo cuts a box, which is given in shares of the square."""
        if self.angle:
            return False
        left, top = self.x - self.side / 2, self.y - self.side / 2
        inside = (left > 0, top > 0, left + self.side < width, top + self.side < height)
        beyond = (box[0] < 0.01, box[1] < 0.01, box[2] > 0.99, box[3] > 0.99)
        return any(i and b for i, b in zip(inside, beyond))

    def crop(self, photo: Image.Image, size: int) -> Image.Image:
        """Cut the square out, `size` x `size` pixels, with antialiasing. Black beyond the photo."""
        if self.angle == 0:
            return _cut(photo, self.x - self.side / 2, self.y - self.side / 2, self.side, size)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        reach = self.side * (abs(cos) + abs(sin))  # side of the level square around this one
        large = 2 * math.ceil(size * reach / self.side)
        level = _cut(photo, self.x - reach / 2, self.y - reach / 2, reach, large)
        step = self.side * large / (reach * 2 * size)  # about 1: pixels of `level` for one of twice the result
        a, b = cos * step, sin * step
        shift = large / 2
        matrix = (a, -b, shift - size * (a - b), b, a, shift - size * (a + b))
        turned = level.transform((2 * size, 2 * size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        return turned.reduce(2)


def _rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _cut(photo: Image.Image, x0: float, y0: float, side: float, size: int) -> Image.Image:
    """Cut out a level square and resize it. Black beyond the photo."""
    canvas = Image.new("RGB", (size, size))
    step = side / size
    left, right = (round((min(max(x, 0), photo.width) - x0) / step) for x in (x0, x0 + side))
    top, bottom = (round((min(max(y, 0), photo.height) - y0) / step) for y in (y0, y0 + side))
    if right > left and bottom > top:
        box = (
            min(max(x0 + left * step, 0), photo.width - 1),
            min(max(y0 + top * step, 0), photo.height - 1),
            min(x0 + right * step, photo.width),
            min(y0 + bottom * step, photo.height),
        )
        part = photo.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
        canvas.paste(part, (left, top))
    return canvas


def _stages(width: int, height: int) -> Iterator[list[_Square]]:
    """List views to search for faces, stage by stage. The later ones are used only if the earlier show no face."""
    longer = float(max(width, height))
    yield [
        _Square(longer / 2, longer / 2, longer),
        _Square(width / 2, height / 2, longer * _PADDED),
        *(_parts(width, height, longer / 2) if longer > _COARSE_PARTS else []),
    ]
    fine = _parts(width, height, max(_FINE_PART, math.sqrt(width * height / _MAX_FINE_PARTS) / (1 - _OVERLAP)))
    if longer > 2 * _FINE_PART:
        yield fine
    for turn in _TURNS:
        yield [_Square(width / 2, height / 2, math.hypot(width, height), math.radians(turn))]


def _parts(width: int, height: int, side: float) -> list[_Square]:
    """Cover a photo with overlapping squares."""

    def centres(length: int) -> np.ndarray:
        if length <= side:
            return np.array([length / 2])
        return np.linspace(side / 2, length - side / 2, 1 + math.ceil((length - side) / (side * (1 - _OVERLAP))))

    return [_Square(float(x), float(y), side) for y in centres(height) for x in centres(width)]


def _brighten(crop: Image.Image) -> Image.Image:
    """Brighten a dark crop for the networks: first stretch it to white, then apply a gamma curve."""
    levels = np.asarray(crop.convert("L").resize((112, 112), Image.Resampling.BOX), dtype=np.float64)
    levels = levels[levels > 0]  # black lies beyond the photo
    if levels.size == 0:
        return crop
    gain = max(1.0, _WHITE / max(float(np.percentile(levels, 99.5)), 8.0))
    mean = float(np.clip(levels * gain, 1, 255).mean())
    gamma = math.log(_LIT / 255) / math.log(mean / 255) if mean < _DARK else 1.0
    return crop.point([round(255 * min(level * gain / 255, 1) ** gamma) for level in range(256)] * 3)


def _same(a: Box, b: Box) -> bool:
    """Tell whether two boxes are of one face."""
    distance = math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2
    return distance < _SAME_FACE * max(*(each[k + 2] - each[k] for each in (a, b) for k in (0, 1)))
