"""Find faces in a photo and their 68 landmarks: the built-in networks, or facexlib's RetinaFace if it is installed.

The order of the landmarks is that of iBUG 300-W, left and right as seen in the image: jaw 0-16, brows 17-21 and 22-26,
nose 27-35 (tip 30), eyes 36-41 and 42-47, mouth 48-67 (left corner 48, right corner 54).
"""

import importlib.util
import logging
import pickle
import socket
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from stylegan_inversion.errors import CheckpointError, MissingDependencyError, importing

logger = logging.getLogger(__name__)

_FACEXLIB_WEIGHTS = "detection_Resnet50_Final.pth"
_FACEXLIB_URL = f"https://github.com/xinntao/facexlib/releases/download/v0.1.0/{_FACEXLIB_WEIGHTS}"
_CONNECT_SECONDS = 10.0
_FACEXLIB_LONGER_SIDE = 1280  # larger photos are shrunk to this: RetinaFace takes seconds for a megapixel


@dataclass(frozen=True, eq=False)
class Face:
    """One face in a photo, in pixels; (0, 0) is the top left corner of the photo. It may reach beyond the photo."""

    landmarks: Float[np.ndarray, "68 2"]  # (x, y)
    box: tuple[float, float, float, float]  # x0, y0, x1, y1
    score: float  # how sure the detector is, in [0, 1]

    @property
    def side(self) -> float:
        """The longer side of the box."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@runtime_checkable
class LandmarkDetector(Protocol):
    """A callable that finds faces, so that any detector can replace those below."""

    def __call__(self, photo: Image.Image) -> list[Face]:
        """Find the faces in an RGB photo, the largest box first."""


def get_landmark_detector(
    name: Literal["auto", "builtin", "facexlib"] = "auto", *, device: torch.device | str = "cpu"
) -> LandmarkDetector:
    """Load a detector.

    Args:
        name: "builtin" needs no other package. "facexlib" is RetinaFace, which is better on small, turned and covered
            faces and fetches its weights once. "auto" takes facexlib if it is installed and its weights are there or
            can be fetched, otherwise the built-in one.
        device: Where facexlib runs. The built-in networks stay on the CPU.

    Raises:
        ValueError: If there is no detector of this name.
        MissingDependencyError: If facexlib is asked for and cannot be imported.
        CheckpointError: If the weights cannot be read or fetched.
    """
    if name not in ("auto", "builtin", "facexlib"):
        raise ValueError(f'`name` must be "auto", "builtin" or "facexlib", got {name!r}.')
    if name == "facexlib":
        return FacexlibLandmarkDetector(device=device)
    if name == "auto" and importlib.util.find_spec("facexlib"):
        try:
            return FacexlibLandmarkDetector(device=device)
        except (MissingDependencyError, CheckpointError) as e:
            logger.warning("The built-in face detector is used: %s", str(e).partition("\n")[0])
    from stylegan_inversion.preprocessing.builtin_landmarks import BuiltinLandmarkDetector

    return BuiltinLandmarkDetector()


class FacexlibLandmarkDetector:
    """RetinaFace (Deng et al. 2020, arXiv:1905.00641) of facexlib (https://github.com/xinntao/facexlib, MIT).

    It measures the five points that the FFHQ crop needs: the centres of the eyes, the tip of the nose and the corners
    of the mouth. The other landmarks are placed on these or between them.
    """

    def __init__(self, *, device: torch.device | str = "cpu") -> None:
        """Load the network, and fetch its weights (109 MB) if they are not there; see `get_landmark_detector`."""
        otherwise = 'The built-in one needs nothing: detector="builtin", or --detector builtin.'
        with importing("facexlib", "faces", otherwise=otherwise):
            from facexlib.detection import init_detection_model

            if "torchvision" in sys.modules:  # without its compiled part it fails only at the first photo
                boxes = torch.zeros(1, 4, dtype=torch.float32, device="cpu")
                sys.modules["torchvision"].ops.nms(boxes, boxes[:, 0], 0.5)
        weights = _facexlib_weights()
        before = socket.getdefaulttimeout()
        try:
            if not weights.is_file():  # fetching them over a blocked network would wait for minutes
                socket.setdefaulttimeout(_CONNECT_SECONDS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision's, about an argument that facexlib uses
                self._network: Any = init_detection_model(
                    "retinaface_resnet50", device=device, model_rootpath=str(weights.parent)
                )
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as e:
            raise CheckpointError(
                f"The weights of RetinaFace could not be fetched or read ({e}). Download {_FACEXLIB_URL} to {weights}, "
                'or use the built-in detector: detector="builtin", or --detector builtin.'
            ) from e
        finally:
            socket.setdefaulttimeout(before)

    def to(self, device: torch.device | str) -> "FacexlibLandmarkDetector":
        """Move the network to a device, in place."""
        self._network.to(device)
        self._network.device = torch.device(device)  # where it puts pictures; this and the mean are not buffers
        self._network.mean_tensor = self._network.mean_tensor.to(device)
        return self

    @torch.no_grad()
    def __call__(self, photo: Image.Image) -> list[Face]:
        """Find the faces in an RGB photo; see `LandmarkDetector`."""
        photo = photo.convert("RGB")
        shrink = min(1.0, _FACEXLIB_LONGER_SIDE / max(photo.size))
        width, height = max(1, round(photo.width * shrink)), max(1, round(photo.height * shrink))
        small = photo.resize((width, height), Image.Resampling.LANCZOS) if shrink < 1 else photo
        bgr = np.ascontiguousarray(np.asarray(small)[:, :, ::-1])
        found = np.asarray(self._network.detect_faces(bgr), dtype=np.float64).reshape(-1, 15)
        scale = np.array([photo.width / width, photo.height / height])
        faces = []
        for row in found:
            x0, y0, x1, y1 = (row[:4].reshape(2, 2) * scale).ravel().tolist()
            faces.append(Face(_spread_five_points(row[5:].reshape(5, 2) * scale), (x0, y0, x1, y1), float(row[4])))
        return sorted(faces, key=lambda face: face.side, reverse=True)


def _spread_five_points(points: Float[np.ndarray, "5 2"]) -> Float[np.ndarray, "68 2"]:
    """Spread (left eye, right eye, nose, left and right corner of the mouth) over 68 landmarks."""
    left_eye, right_eye, nose, left_corner, right_corner = points
    landmarks = np.empty((68, 2))
    landmarks[0:9] = landmarks[17:22] = landmarks[36:42] = left_eye
    landmarks[9:17] = landmarks[22:27] = landmarks[42:48] = right_eye
    landmarks[27:36] = nose
    share = np.array([0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0, 2, 3, 4, 6, 4, 3, 2])[:, None] / 6  # of the way, 48 to 67
    landmarks[48:68] = left_corner + share * (right_corner - left_corner)
    return landmarks


def _facexlib_weights() -> Path:
    """Find RetinaFace's weights in facexlib's own folder, or give their place in torch's cache."""
    spec = importlib.util.find_spec("facexlib")
    folders = [Path(folder) / "weights" for folder in (spec.submodule_search_locations or [])] if spec else []
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    return next((f for folder in folders if (f := folder / _FACEXLIB_WEIGHTS).is_file()), cache / _FACEXLIB_WEIGHTS)
