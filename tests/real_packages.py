"""The packages `lpips` and `facexlib`, also beside a torchvision whose compiled part does not fit this PyTorch."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from stylegan_inversion.models.face_detector import non_max_suppression

# What torchvision describes at its import, and only its compiled part defines.
MISSING = ("nms", "qnms")
_library: list[torch.library.Library] = []  # defined for as long as this lives


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    order = scores.argsort(descending=True)
    return order[non_max_suppression(torch.cat([dets, scores[:, None]], dim=1)[order].float(), iou_threshold)]


def real_package(name: str) -> ModuleType:
    """Import a package that needs torchvision; skip the test where one of the two is not installed."""
    if importlib.util.find_spec(name.partition(".")[0]) is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip(f"needs {name} and torchvision")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, AttributeError):
        for module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        _library.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in MISSING:
            if not hasattr(torch.ops.torchvision, operator):
                _library[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library[0].impl("nms", _nms, "CPU")
        boxes = importlib.import_module("torchvision.ops.boxes")
        boxes._assert_has_ops = lambda: None  # type: ignore[attr-defined]
    return importlib.import_module(name)
