"""Scores of pictures to find directions with: of the built-in face networks, or from labelled pictures; the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stylegan_inversion import storage
from stylegan_inversion.editing.directions import Direction, load_directions, save_directions
from stylegan_inversion.editing.find_directions import FoundDirection, Score
from stylegan_inversion.errors import MissingDependencyError
from stylegan_inversion.evaluation import report
from stylegan_inversion.evaluation.distribution import sample_w_plus
from stylegan_inversion.evaluation.editability import load_face_scorer
from stylegan_inversion.evaluation.metrics import resize, scored_part
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.output import draw
from stylegan_inversion.preprocessing.image import to_pil, to_tensor

FACE_SCORES = {
    "smile": "Positive: more of a smile.",
    "age": "Positive: looks older.",
    "gender": "Positive: looks more male, negative: more female, to the face network.",
    "yaw": "Positive: the nose turns to the right side of the image.",
}
LANDMARK_SCORES = {  # for who asks for them
    "pitch": "Positive: the head looks up.",
    "mouth_open": "Positive: the mouth opens.",
    "eyes_open": "Positive: the eyes open.",
}
FEWEST = 10  # labelled pictures of each kind
_SIDE = 224  # at which the perceptual network sees pictures, as in its training
_GRID = 4  # cells a side: where something is tells much of an aligned picture (1 cell: 73 % held out, 4: 88 %, 6: 88 %)
_FOLDS, _PENALTY = 5, 0.01  # of the cross-validation, and 1 / the weight of the ridge
_ROWS, _PSI = 4, 0.7  # of the contact sheet: its faces, and their truncation


def face_score(names: Sequence[str], *, crop_scale: float, device: torch.device | str | None = None) -> Score:
    """Score faces with the built-in networks.

    Args:
        names: Some of `FACE_SCORES` and `LANDMARK_SCORES`.
        crop_scale: Side of the generator's crops relative to FFHQ's: the networks look at the middle of them.
        device: Where to put the networks.

    Raises:
        ValueError: If there is no such score.
    """
    for name in names:
        if name not in (known := FACE_SCORES | LANDMARK_SCORES):
            raise ValueError(f"The face networks score {', '.join(known)}, not {name!r}: give labelled pictures.")
    scorer = load_face_scorer(device=device)

    def score(x: Tensor) -> Mapping[str, Tensor]:
        scores = scorer(scored_part(x, crop_scale))
        return {name: scores[name] for name in names}

    return score


class Probe(nn.Module):
    """A linear classifier on the features of the perceptual network: the log-odds that a picture is a positive one."""

    weight: Tensor
    bias: Tensor

    def __init__(self, network: PerceptualDistance, resolution: int) -> None:
        super().__init__()
        self.network, self.resolution = network, resolution

    def embed(self, x: Tensor) -> Tensor:
        """Average the features of images (B, 3, S, S), in [-1, 1], over a grid: (B, D).

        They are first brought to the generator's side, so that sharpness tells nothing.
        """
        layers = self.network.features(resize(resize(x, self.resolution), _SIDE))
        return torch.cat([F.avg_pool2d(layer, layer.shape[-1] // _GRID).flatten(1) for layer in layers], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Score images, (B, 3, S, S), RGB, in [-1, 1]: (B,)."""
        return self.embed(x) @ self.weight + self.bias

    def fit(self, positive: Sequence[Image.Image], negative: Sequence[Image.Image]) -> float:
        """Learn from square pictures of both kinds, and return the accuracy on pictures held out, the mean of 5 folds.

        Both kinds weigh the same, however many there are; 0.5 is chance.

        Raises:
            ValueError: If there are fewer than 10 of a kind.
            MissingDependencyError: If scikit-learn is not installed.
        """
        if min(counts := (len(positive), len(negative))) < FEWEST:
            found = f"got {counts[0]} positive and {counts[1]} negative ones"
            raise ValueError(f"At least {FEWEST} pictures of each kind are needed, some hundred are better; {found}.")
        try:
            from sklearn.linear_model import LogisticRegression
            from sklearn.model_selection import cross_val_score
        except ImportError as e:
            raise MissingDependencyError.of_extra("Learning from labelled pictures needs scikit-learn.", "train") from e
        place = next(self.network.parameters())
        with torch.no_grad():
            rows = [self.embed(to_tensor(picture).to(place)).cpu().double() for picture in (*positive, *negative)]
        features, labels = torch.cat(rows).numpy(), np.repeat([1, 0], counts)
        scale = features.std(axis=0) + 1e-6
        model = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000)
        held_out = cross_val_score(model, features / scale, labels, cv=_FOLDS, scoring="balanced_accuracy")
        model.fit(features / scale, labels)
        self.register_buffer("weight", torch.from_numpy(model.coef_[0] / scale).to(place))
        self.register_buffer("bias", torch.tensor(model.intercept_[0]).to(place))
        return float(held_out.mean())


def write_report(found: Sequence[FoundDirection], pipeline: InversionPipeline, folder: Path, *, seed: int = 0) -> str:
    """Add directions to those in a folder, with `directions.md`, the table, and `directions.png`, the contact sheet.

    A direction of the same name is replaced. The sheet shows random faces, a row each, with every direction at five
    strengths through its range.

    Returns:
        The table, in Markdown.
    """
    heads = ["direction", "range", "accuracy", "rises for", *(f"{name} moves" for name in found[0].moves)]
    rows = [heads]
    for each in found:
        low, high = each.direction.strength_range or (0.0, 0.0)
        accuracy = "" if each.accuracy is None else f"{each.accuracy:.1%}"
        moves = (f"{move:+.2f}" for move in each.moves.values())
        rows.append([each.direction.name, f"{low:+g} to {high:+g}", accuracy, f"{each.monotone_share:.0%}", *moves])
    table = f"""{report.markdown(rows)}

Accuracy: of the boundary, on samples held out. Rises for: the share of unseen images whose score rises at each of 6
steps from one end of the range to the other. Moves: of the mean score between the ends, in standard deviations over
random images.
"""
    directions = [each.direction for each in found]
    there = load_directions(folder) if (folder / storage.CONFIG_NAME).is_file() else {}
    with storage.write_together(folder) as stage:
        save_directions(there | {each.name: each for each in directions}, stage)
    storage.write_text(table, folder / "directions.md")
    report.save_figure(_columns(directions, pipeline, seed), folder / "directions.png")
    return table


@torch.no_grad()
def _columns(directions: Sequence[Direction], pipeline: InversionPipeline, seed: int) -> list[report.Column]:
    """The contact sheet."""
    generator = pipeline.generator
    w_plus = sample_w_plus(generator, range(_ROWS), seed=seed, truncation_psi=_PSI)
    columns = []
    for direction in directions:
        low, high = direction.strength_range or (-3.0, 3.0)
        for strength in (low, low / 2, 0.0, high / 2, high):
            moved, drawing = direction.apply(w_plus, strength), direction.restyle(generator, strength)
            pictures = to_pil(pipeline.domain.without_bars(draw([drawing] * _ROWS, moved)))
            columns.append(report.Column(direction.name, f"{strength:+g}" if strength else "0", pictures))
    return columns
