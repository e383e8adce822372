"""InterFaceGAN: a direction is the normal of the plane that separates high from low scores in W.

Paper: Shen et al. 2020, "Interpreting the Latent Space of GANs for Semantic Face Editing", arXiv:1907.10786.
Original code: https://github.com/genforce/interfacegan (MIT).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion.errors import MissingDependencyError

DEGENERATE = 1e-5  # sine of the angle below which two directions count as equal in float32


@dataclass(frozen=True, eq=False)
class Boundary:
    """The plane `vector @ w + bias = 0` in W, and how well it separates the two sides."""

    vector: Float[Tensor, " w_dim"]  # unit normal, float32 on the CPU; points towards higher scores
    bias: float  # signed distance of w = 0 from the plane
    train_accuracy: float  # share of the samples of the fit that lie on their side, in [0, 1]
    validation_accuracy: float  # the same for the samples held out of the fit
    full_accuracy: float  # the same for all samples, where a score above the middle of the range counts as high


def import_svm() -> Any:
    """Import scikit-learn's SVM, or raise `MissingDependencyError`."""
    try:
        from sklearn.svm import SVC
    except ImportError as e:
        raise MissingDependencyError.of_extra("Fitting a boundary needs scikit-learn.", "train") from e
    return SVC


def fit_boundary(
    w: Float[Tensor, "samples w_dim"],
    scores: Float[Tensor, " _"],
    *,
    chosen_ratio: float = 0.02,
    split_ratio: float = 0.7,
    invalid_value: float | None = None,
    seed: int = 0,
) -> Boundary:
    """Fit the boundary of an attribute: a linear SVM between the highest and the lowest scores.

    With the same seed it chooses and splits the samples as the original code does, and so finds the same plane.

    Args:
        w: Samples of W, such as `generator.mapping(z)`.
        scores: How much of the attribute each sample shows, in any unit, (samples,).
        chosen_ratio: Share of the samples taken from the top, and the same from the bottom, in (0, 0.5].
        split_ratio: Share of the chosen samples that are fitted, in (0, 1). The rest validates the fit.
        invalid_value: Score that marks a sample to leave out. `None` keeps all.
        seed: Decides which of the chosen samples are fitted, in [0, 2**32 - 1].

    Returns:
        The boundary. If training and validation accuracy are far apart, it needs more samples.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
        ValueError: If `w` or `scores` are not finite or not equally many, a ratio is outside its range, too few samples
            are left to fit or to validate, or all scores are equal.
    """
    if not 0 < chosen_ratio <= 0.5:
        raise ValueError(f"`chosen_ratio` must be in (0, 0.5], got {chosen_ratio}.")
    if not 0 < split_ratio < 1:
        raise ValueError(f"`split_ratio` must be in (0, 1), got {split_ratio}.")
    if len(scores) != len(w):
        raise ValueError(f"`scores` must hold one score for each of the {len(w)} samples of `w`, got {len(scores)}.")
    classifier = import_svm()
    samples = w.detach().float().cpu().numpy()
    values = scores.detach().cpu().numpy()
    if invalid_value is not None:
        valid = ~np.isnan(values) if np.isnan(invalid_value) else values != invalid_value
        samples, values = samples[valid], values[valid]
    if not (np.isfinite(samples).all() and np.isfinite(values).all()):
        raise ValueError("`w` and `scores` must be finite, got NaN or infinity; mark such scores with `invalid_value`.")
    num_chosen = int(len(values) * chosen_ratio)
    num_train = int(num_chosen * split_ratio)
    if not 0 < num_train < num_chosen:
        raise ValueError(
            f"{len(values)} valid samples leave {num_train} a side to fit and {num_chosen - num_train} to validate; "
            f"give more samples or a larger `chosen_ratio` than {chosen_ratio}."
        )
    order = np.argsort(-values, kind="stable")
    samples, values = samples[order], values[order]
    if values[0] == values[-1]:
        raise ValueError(f"`scores` must differ, but every valid score is {values[0]}.")

    # The legacy generator gives the permutations of the original code.
    random_state = np.random.RandomState(seed)
    high = samples[:num_chosen][random_state.permutation(num_chosen)]
    low = samples[-num_chosen:][random_state.permutation(num_chosen)]
    labels = np.repeat([1, 0], num_train)
    svm = classifier(kernel="linear", random_state=seed).fit(
        np.concatenate([high[:num_train], low[:num_train]]), labels
    )
    normal = svm.coef_[0].astype(np.float64)
    norm = float(np.linalg.norm(normal))
    if norm == 0:
        raise ValueError("No boundary separates these scores: the fitted normal is zero. Are the samples all the same?")
    normal, bias = normal / norm, float(svm.intercept_[0]) / norm

    def side(points: np.ndarray) -> np.ndarray:
        return points @ normal + bias > 0

    return Boundary(
        vector=torch.from_numpy(normal.astype(np.float32)),
        bias=bias,
        train_accuracy=float(np.mean(np.concatenate([side(high[:num_train]), ~side(low[:num_train])]))),
        validation_accuracy=float(np.mean(np.concatenate([side(high[num_train:]), ~side(low[num_train:])]))),
        full_accuracy=float(np.mean(side(samples) == (values > (values[0] + values[-1]) / 2))),
    )


def condition_boundary(
    primary: Float[Tensor, " w_dim"], *conditions: Float[Tensor, " w_dim"]
) -> Float[Tensor, " w_dim"]:
    """Remove from a direction what it shares with others, so that moving along it leaves their attributes alone.

    The conditional manipulation of InterFaceGAN (section 3.3): the projection of `primary` on the orthogonal complement
    of all `conditions`. The original has the formulas for one and for two conditions.

    Args:
        primary: Normal of the attribute to edit, of any length but zero.
        conditions: Normals of the attributes to keep, of any length but zero.

    Returns:
        Unit norm, in the dtype and on the device of `primary`.
    """
    unit = torch.stack([vector.detach().cpu().double() for vector in (primary, *conditions)])  # (1 + conditions, w_dim)
    norms = unit.norm(dim=1, keepdim=True)
    if not (torch.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("`primary` and `conditions` must be finite and not zero.")
    unit = unit / norms
    remaining = unit[0]
    if conditions:
        basis, scales, _ = torch.linalg.svd(unit[1:].T, full_matrices=False)  # (w_dim, conditions)
        if len(conditions) > len(primary) or scales[-1] < DEGENERATE:
            raise ValueError(
                f"The {len(conditions)} `conditions` must be linearly independent; leave out those that repeat others."
            )
        remaining = remaining - basis @ (basis.T @ remaining)
    length = remaining.norm()
    if length < DEGENERATE:
        raise ValueError("Nothing of `primary` is left: it lies in the span of the `conditions`.")
    return (remaining / length).to(primary)
