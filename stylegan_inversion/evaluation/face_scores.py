"""Scores of faces by the built-in face networks: smile, age, gender, yaw. InterFaceGAN labels its samples with them."""

import torch

from stylegan_inversion.hub import builtin_path, load_module
from stylegan_inversion.models.face import (
    AgeGenderConfig,
    AgeGenderNet,
    ExpressionNet,
    FaceFeaturesConfig,
    FaceLandmarks68,
    FaceScorer,
)


def load_face_scorer(*, device: torch.device | str | None = None) -> FaceScorer:
    """Load the scorer with the networks that ship with the package, frozen and in eval mode.

    Args:
        device: Where to put it. `None` means the CPU.

    Returns:
        Images (B, 3, H, W), RGB, in [-1, 1] -> {"smile", "age", "gender", "yaw"}, each (B,); see `FaceScorer`.

    Raises:
        CheckpointError: If the package's own files are damaged.
    """
    face = builtin_path("faces64/face")
    return FaceScorer(
        load_module(FaceLandmarks68, FaceFeaturesConfig, face / "landmarks", device=device),
        load_module(ExpressionNet, FaceFeaturesConfig, face / "expression", device=device),
        load_module(AgeGenderNet, AgeGenderConfig, face / "age_gender", device=device),
    )
