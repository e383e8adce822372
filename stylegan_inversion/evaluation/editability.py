"""How far edits go and what they cost: attribute against identity, as e4e and PTI plot it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.evaluation.records import Record

UNCALIBRATED = (-3.0, 3.0)  # strengths of a direction without a range
_RESAMPLES = 400
_IDENTITIES = ("identity_to_reconstruction", "identity")


def edit_strengths(direction: Direction, num_strengths: int) -> tuple[float, ...]:
    """Evenly spaced strengths over a direction's calibrated range, 0 among them.

    Args:
        direction: A range that does not hold 0 is followed from 0 on; without a range, -3 to 3.
        num_strengths: How many at most, odd: 0, and as many each side.

    Raises:
        ValueError: If the number is even or below 3.
    """
    if num_strengths < 3 or num_strengths % 2 == 0:
        raise ValueError(f"`num_strengths` must be odd and >= 3, got {num_strengths}.")
    steps = num_strengths // 2
    low, high = direction.strength_range or UNCALIBRATED
    below = [low * k / steps for k in range(steps, 0, -1)] if low < 0 else []
    above = [high * k / steps for k in range(1, steps + 1)] if high > 0 else []
    return (*below, 0.0, *above)


def fold(curve: np.ndarray, strengths: Sequence[float], *, signed: bool) -> np.ndarray:
    """Both sides of an edit as one: step k is the mean of the k-th strength below and above 0.

    Args:
        curve: (n, strengths).
        strengths: As `edit_strengths` gives them.
        signed: Whether what goes down below 0 counts as going the right way: a move, not a similarity.

    Returns:
        (n, steps + 1); step 0 is the reconstruction.
    """
    zero = strengths.index(0.0)
    sides = []
    if zero > 0:
        sides.append(curve[:, zero::-1] * (-1 if signed else 1))
    if zero < len(strengths) - 1:
        sides.append(curve[:, zero:])
    return np.mean(sides, axis=0)


def move_at(level: float, move: np.ndarray, identity: np.ndarray) -> float | None:
    """How far the attribute has moved where identity first falls to a level, between steps linearly.

    Args:
        level: Identity similarity.
        move: Of the attribute, by step.
        identity: Similarity, by step.

    Returns:
        `None` if identity starts below the level or never falls to it.
    """
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
    known = [x for x in moves if x is not None]
    return float(np.mean(known)) if level < identity[0] and len(known) == points else None


def summarise_edit(
    records: Mapping[str, Sequence[Record]], name: str, strengths: Sequence[float], *, level: float | None = None
) -> dict[str, Any]:
    """Curves and figures of one edit for all methods.

    Args:
        records: Those that did not fail, by method.
        name: The edit.
        strengths: As `edit_strengths` gives them.
        level: Identity similarity to the unedited reconstruction at which methods are compared. `None` takes the
            highest of the methods' similarities at full strength, down to which all curves reach.

    Returns:
        {"strengths", "level", "level_to_photo", "methods": {method: {"n", "curve": {"move", "identity",
        "identity_to_reconstruction"} of means by step, "move_full", "move_at_level", "move_at_level_to_photo" as
        {"mean", "standard_error"} or None, "mean_move"}}}. A move is signed so that going the edit's way is positive,
        both sides of 0 averaged; "standard_error" of interpolated moves is by bootstrap over images.
    """
    folded = {}
    for method, rows in records.items():
        if rows:
            edits = [row["edits"][name] for row in rows]
            folded[method] = {
                key: fold(np.array([edit[key] for edit in edits]), strengths, signed=key == "move")
                for key in ("move", *_IDENTITIES)
                if key in edits[0]
            }
    lowest = {key: [curves[key].mean(0).min() for curves in folded.values() if key in curves] for key in _IDENTITIES}
    levels = {key: float(max(values)) if values else None for key, values in lowest.items()}
    if level is not None:
        levels["identity_to_reconstruction"] = level
    return {
        "strengths": list(strengths),
        "level": levels["identity_to_reconstruction"],
        "level_to_photo": levels["identity"],
        "methods": {method: _summarise_curves(curves, levels) for method, curves in folded.items()},
    }


def _summarise_curves(curves: Mapping[str, np.ndarray], levels: Mapping[str, float | None]) -> dict[str, Any]:
    n = len(curves["move"])
    means = {key: curve.mean(axis=0) for key, curve in curves.items()}
    full = curves["move"][:, -1]
    level = levels["identity_to_reconstruction"]
    return {
        "n": n,
        "curve": {key: mean.tolist() for key, mean in means.items()},
        "move_full": {
            "mean": float(full.mean()),
            "standard_error": float(full.std(ddof=1) / n**0.5) if n > 1 else None,
        },
        "move_at_level": _move_with_error(level, curves, "identity_to_reconstruction"),
        "move_at_level_to_photo": _move_with_error(levels["identity"], curves, "identity"),
        "mean_move": None if level is None else mean_move(level, means["move"], means["identity_to_reconstruction"]),
    }


def _move_with_error(level: float | None, curves: Mapping[str, np.ndarray], key: str) -> dict[str, Any] | None:
    """`move_at` of the mean curve; its standard error from curves of images drawn with replacement."""
    if level is None:
        return None
    move, identity = curves["move"], curves[key]
    mean = move_at(level, move.mean(axis=0), identity.mean(axis=0))
    if mean is None:
        return None
    n = len(move)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    drawn = [move_at(level, m, i) for m, i in zip(weights @ move, weights @ identity)]
    # A curve that just misses the level has it at its beginning or at its end.
    misses = np.where((weights @ identity[:, 0]) < level, 0.0, weights @ move[:, -1])
    moves = [float(miss) if x is None else x for x, miss in zip(drawn, misses)]
    return {"mean": mean, "standard_error": float(np.std(moves, ddof=1)) if n > 1 else None}
