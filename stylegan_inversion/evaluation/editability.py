"""How far edits go and what they cost: attribute against identity, as e4e and PTI plot it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.models.face import (
    ExpressionNet,
    FaceFeaturesConfig,
    FaceLandmarks68,
    FaceRecognitionConfig,
    FaceRecognitionNet,
    FaceScorer,
)
from stylegan_inversion.storage import builtin_path, load_module

_UNCALIBRATED = (-3.0, 3.0)  # strengths of a direction without a range
_STEPS = 3  # on each side of 0
_RESAMPLES = 400
_IDENTITIES = ("identity_to_reconstruction", "identity")


def load_face_scorer(*, device: torch.device | str | None = None) -> FaceScorer:
    """Load the built-in face networks that score smile, age, gender, pose, mouth and eyes, frozen and in eval mode."""
    face = builtin_path("faces64/face")
    return FaceScorer(
        load_module(FaceLandmarks68, FaceFeaturesConfig, face / "landmarks", device=device),
        load_module(ExpressionNet, FaceFeaturesConfig, face / "expression", device=device),
        load_module(FaceRecognitionNet, FaceRecognitionConfig, face / "recognition", device=device),
    )


def edit_strengths(direction: Direction) -> tuple[float, ...]:
    """Space 7 strengths evenly over a direction's calibrated range, 0 among them: (-3, ..., 3) without a range.

    A range that lies on one side of 0 is followed from 0 on, in 4 strengths.
    """
    low, high = direction.strength_range or _UNCALIBRATED
    below = [low * k / _STEPS for k in range(_STEPS, 0, -1)] if low < 0 else []
    above = [high * k / _STEPS for k in range(1, _STEPS + 1)] if high > 0 else []
    return (*below, 0.0, *above)


def fold(curve: np.ndarray, strengths: Sequence[float], *, signed: bool) -> np.ndarray:
    """Average both sides of an edit: (n, strengths) -> (n, steps + 1), where step 0 is the reconstruction.

    `signed` turns the sign of the side below 0: for a move, not for a similarity.
    """
    zero = strengths.index(0.0)
    sides = curve[:, zero::-1] * (-1 if signed else 1), curve[:, zero:]
    return np.mean([side for side in sides if side.shape[1] > 1], axis=0)


def move_at(level: float, move: np.ndarray, identity: np.ndarray) -> float | None:
    """How far the attribute has moved where identity first falls to a level, interpolated; `None` if it never does."""
    if identity[0] < level:
        return None
    for k in range(1, len(identity)):
        if identity[k] <= level:
            share = (identity[k - 1] - level) / max(identity[k - 1] - identity[k], 1e-12)
            return float(move[k - 1] + share * (move[k] - move[k - 1]))
    return None


def mean_move(level: float, move: np.ndarray, identity: np.ndarray, *, points: int = 101) -> float | None:
    """Area under the curve: the mean of `move_at` over the identities from step 0 down to a level."""
    moves = [move_at(float(x), move, identity) for x in np.linspace(identity[0], level, points)]
    reached = [each for each in moves if each is not None]
    return float(np.mean(reached)) if level < identity[0] and len(reached) == points else None


def summarise_edit(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], name: str, strengths: Sequence[float]
) -> dict[str, Any]:
    """Give the curves and figures of one edit for all methods, from their rows that did not fail.

    Returns:
        {"strengths", "level", "level_to_photo", "methods": {method: {"n", "curve": {"move", "identity",
        "identity_to_reconstruction"} of means by step, "move_full", "move_at_level", "move_at_level_to_photo" as
        {"mean", "standard_error"} or None, "mean_move"}}}. Moves are signed so that the edit's way is positive, and
        both sides of 0 are averaged. Methods are compared at "level", the highest of their identity similarities at
        full strength, which all curves reach; the standard error of an interpolated move is by bootstrap over images.
    """
    folded = {}
    for method, done in rows.items():
        if done:
            edits = [row["edits"][name] for row in done]
            folded[method] = {
                key: fold(np.array([edit[key] for edit in edits]), strengths, signed=key == "move")
                for key in ("move", *_IDENTITIES)
            }
    own, photo = _IDENTITIES
    levels: dict[str, Any] = {
        key: max((float(curves[key].mean(axis=0).min()) for curves in folded.values()), default=None)
        for key in _IDENTITIES
    }
    methods = {}
    for method, curves in folded.items():
        means = {key: curve.mean(axis=0) for key, curve in curves.items()}
        full = curves["move"][:, -1]
        methods[method] = {
            "n": len(full),
            "curve": {key: mean.tolist() for key, mean in means.items()},
            "move_full": {"mean": float(full.mean()), "standard_error": standard_error(full)},
            "move_at_level": _move_with_error(levels[own], curves["move"], curves[own]),
            "move_at_level_to_photo": _move_with_error(levels[photo], curves["move"], curves[photo]),
            "mean_move": mean_move(levels[own], means["move"], means[own]),
        }
    head = {"strengths": list(strengths), "level": levels[own], "level_to_photo": levels[photo]}
    return {**head, "methods": methods}


def standard_error(values: np.ndarray) -> float | None:
    """Standard error of a mean; `None` for a single value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def _move_with_error(level: float, move: np.ndarray, identity: np.ndarray) -> dict[str, Any] | None:
    """`move_at` of the mean curve; its standard error from curves of images drawn with replacement."""
    mean = move_at(level, move.mean(axis=0), identity.mean(axis=0))
    if mean is None:
        return None
    n = len(move)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    drawn = [move_at(level, m, i) for m, i in zip(weights @ move, weights @ identity)]
    # A curve that just misses the level reaches it at its beginning or at its end.
    misses = np.where((weights @ identity[:, 0]) < level, 0.0, weights @ move[:, -1])
    moves = [float(miss) if x is None else x for x, miss in zip(drawn, misses)]
    return {"mean": mean, "standard_error": float(np.std(moves, ddof=1)) if n > 1 else None}
