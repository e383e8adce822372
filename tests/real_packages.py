"""The code of the package `facexlib` beside ours, in a process: `python -m tests.real_packages`.

Its torchvision may not fit this build of PyTorch: then what its compiled part would define is defined here first,
which must not reach other tests.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from stylegan_inversion.models.face_detector import non_max_suppression
from stylegan_inversion.preprocessing import landmarks
from tests.conftest import make_photo


def nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    order = scores.argsort(descending=True)
    return order[non_max_suppression(torch.cat([dets, scores[:, None]], dim=1)[order].float(), iou_threshold)]


def fit_torchvision() -> torch.library.Library | None:
    """Define the operators that torchvision describes at its import, if its compiled part does not; lives as long."""
    try:
        import torchvision
    except (ImportError, RuntimeError, AttributeError):
        for module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", nms, "CPU")
        import torchvision.ops.boxes

        torchvision.ops.boxes._assert_has_ops = lambda: None
        return library
    return None


def check_facexlib() -> None:
    """RetinaFace with weights by a rule: our detector gives its answers on the same photo, wherever it runs."""
    from facexlib.detection.retinaface import RetinaFace

    network = RetinaFace(network_name="resnet50", device="cpu").eval()
    rng = torch.Generator().manual_seed(0)
    scales = {"ClassHead": 10.0, "BboxHead": 0.01, "LandmarkHead": 0.01}  # some anchors are sure, boxes stay near them
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn, inputs = torch.randn(tensor.shape, generator=rng), max(tensor[:1].numel(), 4)
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.copy_(1 + 0.1 * drawn.abs())
            else:
                tensor.copy_(drawn * scales.get(name.partition(".")[0], 1.0) * (2 / inputs) ** 0.5)
    photo = make_photo()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "detection_Resnet50_Final.pth"
        torch.save(network.state_dict(), weights)
        landmarks._facexlib_weights = lambda: weights
        detector = landmarks.get_landmark_detector("auto")
    assert isinstance(detector, landmarks.FacexlibLandmarkDetector)
    faces = detector(photo)
    rows = network.detect_faces(np.ascontiguousarray(np.asarray(photo)[:, :, ::-1]))
    assert len(faces) == len(rows) > 0
    ours = sorted((face.score, *face.box) for face in faces)
    np.testing.assert_allclose(
        ours, sorted((float(row[4]), *map(float, row[:4])) for row in rows), rtol=1e-4, atol=0.01
    )
    assert len(detector.to("cpu")(photo)) == len(faces)
    assert detector._network.device == detector._network.mean_tensor.device == torch.device("cpu")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    library = fit_torchvision()
    with torch.no_grad():
        check_facexlib()
    print("facexlib agrees")
