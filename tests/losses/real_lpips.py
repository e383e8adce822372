"""The package `lpips`, also beside a torchvision whose compiled part does not fit this build of PyTorch."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

# What torchvision describes at its import, and only its compiled part defines.
MISSING = ("nms", "qnms")
_library: list[torch.library.Library] = []  # defined for as long as this lives


def package() -> ModuleType:
    """Import `lpips`; skip the test where it or torchvision is not installed."""
    if importlib.util.find_spec("lpips") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs lpips and torchvision")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in MISSING:
            if not hasattr(torch.ops.torchvision, name):
                _library[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import lpips

    return lpips
