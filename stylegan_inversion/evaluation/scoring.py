"""Photos that were inverted -> figures: the scoring networks, in batches, each picture drawn and scored once."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.evaluation import metrics
from stylegan_inversion.evaluation.methods import Inversion, resize
from stylegan_inversion.losses.lpips import PerceptualDistance

SCORED_SHARE = 0.74  # side of the square that the face scorer was made for, relative to FFHQ's


class Identity(Protocol):
    """What embeds faces; `losses.identity.load_identity` gives one."""

    @property
    def name(self) -> str | None:
        """What figures are reported under."""

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), RGB, in [-1, 1] -> embeddings of unit norm, (B, D)."""


FaceScores = Callable[[Tensor], Mapping[str, Tensor]]
"""Images (B, 3, R, R), RGB, in [-1, 1] -> scores (B,) by attribute, such as `models.face.FaceScorer`."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A direction and how far it is followed: strengths in rising order, 0 among them, units of the direction."""

    direction: Direction
    strengths: tuple[float, ...]

    @property
    def far(self) -> float:
        """The highest strength, or the lowest of an edit that only goes below 0."""
        return self.strengths[-1] or self.strengths[0]


@dataclass(frozen=True, eq=False)
class Scoring:
    """What every method is measured with.

    Attributes:
        perceptual: The perceptual distance.
        identity: Embeds faces; `None` leaves identity out.
        attributes: Scores attributes; needed for edits only.
        edits: What is edited, by name.
        resolution: Side at which pictures are compared.
        crop_scale: Side of the crops relative to FFHQ's.
        batch_size: Pictures that go through a network at once.
    """

    perceptual: PerceptualDistance
    identity: Identity | None
    attributes: FaceScores | None
    edits: Mapping[str, Edit]
    resolution: int
    crop_scale: float
    batch_size: int

    def embed(self, images: Tensor) -> Tensor | None:
        """Identity embeddings, (B, D)."""
        return None if self.identity is None else self.identity.embed(images)

    def attribute_scores(self, images: Tensor) -> Mapping[str, Tensor]:
        """Scores of the part of the pictures that the scorer was made for, (B,) each."""
        assert self.attributes is not None
        side = images.shape[-1]
        margin = round(side * max(0.0, 1 - SCORED_SHARE / self.crop_scale) / 2)
        return self.attributes(images[..., margin : side - margin, margin : side - margin])


@dataclass(frozen=True, eq=False)
class Targets:
    """Original pictures, (n, 3, r, r), and what every method needs of them."""

    images: Tensor
    features: list[Tensor]
    embeddings: Tensor | None

    def __getitem__(self, rows: Sequence[int]) -> "Targets":
        """Some of them."""
        chosen = list(rows)
        embeddings = None if self.embeddings is None else self.embeddings[chosen]
        return Targets(self.images[chosen], [level[chosen] for level in self.features], embeddings)


@torch.no_grad()
def prepare_targets(images: Tensor, scoring: Scoring) -> Targets:
    """Put original crops, (n, 3, R, R), through the networks once."""
    images = resize(images, scoring.resolution).clamp(-1, 1)
    return Targets(images, scoring.perceptual.features(images), scoring.embed(images))


@torch.no_grad()
def score(inversion: Inversion, targets: Targets, scoring: Scoring) -> tuple[list[dict[str, Any]], dict[Any, Tensor]]:
    """Draw reconstructions and edits of photos, and measure them.

    Args:
        inversion: n photos that share a generator.
        targets: Their originals.
        scoring: What to measure with.

    Returns:
        The figures of each photo (see `benchmark.evaluate`), and the pictures, (n, 3, R, R), in [-1, 1] on the CPU:
        `None` the reconstructions, and (edit, strength) the edits of lowest and highest strength.

    Raises:
        FloatingPointError: If a figure is NaN or infinite.
    """
    w_plus, n = inversion.w_plus, len(inversion.w_plus)
    steps: list[tuple[str, float] | None] = [None]
    steps += [(name, s) for name, edit in scoring.edits.items() for s in edit.strengths if s != 0]
    ends = {(name, end) for name, edit in scoring.edits.items() for end in (edit.strengths[0], edit.strengths[-1])}
    codes = torch.cat([w_plus if s is None else scoring.edits[s[0]].direction.apply(w_plus, s[1]) for s in steps])

    # The pictures of all steps in one row, step by step: chunks of them may hold several steps, or a part of one.
    kept_steps = [step for step in steps if step is None or step in ends]
    kept = torch.tensor([step in kept_steps for step in steps]).repeat_interleave(n).split(scoring.batch_size)
    embeddings, attributes, drawn = [], [], []
    for chunk, keep in zip(codes.split(scoring.batch_size), kept):
        full = inversion.generator.synthesis(chunk).clamp(-1, 1)
        drawn.append(full[keep.to(full.device)].cpu())
        images = resize(full, scoring.resolution).clamp(-1, 1)
        if scoring.identity is not None:
            embeddings.append(scoring.identity.embed(images))
        if scoring.edits:
            scores = scoring.attribute_scores(images)
            attributes.append(torch.stack([scores[name] for name in scoring.edits]))
    pictures = dict(zip(kept_steps, torch.cat(drawn).split(n), strict=True))

    reconstructions = resize(pictures[None].to(targets.images), scoring.resolution).clamp(-1, 1)
    figures: dict[str, Tensor] = {
        "l2": metrics.l2(reconstructions, targets.images),
        "psnr": metrics.psnr(reconstructions, targets.images),
        "ms_ssim": metrics.ms_ssim(reconstructions, targets.images),
        "lpips": metrics.lpips(reconstructions, targets.features, network=scoring.perceptual),
        "offset_norm": metrics.mean_offset_norm(w_plus),
    }
    edits: dict[str, dict[str, Tensor]] = {}
    if scoring.identity is not None and targets.embeddings is not None:
        embedded = torch.cat(embeddings).view(len(steps), n, -1)
        to_photo = _similarities(embedded, targets.embeddings)
        to_reconstruction = _similarities(embedded, embedded[0])
        figures["identity"] = to_photo[0]
    if scoring.edits:
        scored = torch.cat(attributes, dim=1).view(len(scoring.edits), len(steps), n)
    for k, (name, edit) in enumerate(scoring.edits.items()):
        rows = [steps.index((name, s) if s != 0 else None) for s in edit.strengths]
        edits[name] = {"move": scored[k, rows] - scored[k, :1]}  # each (strengths, n)
        if scoring.identity is not None:
            edits[name] |= {"identity": to_photo[rows], "identity_to_reconstruction": to_reconstruction[rows]}
        if inversion.encode is not None:
            edited = pictures[name, edit.far].to(w_plus).split(scoring.batch_size)
            figures[f"lec_{name}"] = metrics.latent_edit_consistency(
                w_plus,
                torch.cat([inversion.encode(part) for part in edited]),
                direction=edit.direction,
                strength=edit.far,
            )
    records = [
        {**{key: value[i].item() for key, value in figures.items()}, "edits": _column(edits, i)} for i in range(n)
    ]
    if not all(math.isfinite(v) for record in records for v in _numbers(record)):
        raise FloatingPointError("a figure is NaN or infinite; check the codes and the generator.")
    return records, pictures


def _similarities(embedded: Tensor, others: Tensor) -> Tensor:
    """Identity similarity at each step, (steps, n): embeddings (steps, n, D) against (n, D)."""
    return torch.stack([metrics.identity_similarity(row, others) for row in embedded])


def _column(edits: Mapping[str, Mapping[str, Tensor]], i: int) -> dict[str, dict[str, list[float]]]:
    return {name: {key: rows[:, i].tolist() for key, rows in edit.items()} for name, edit in edits.items()}


def _numbers(record: Mapping[str, Any]) -> list[float]:
    curves = [value for edit in record["edits"].values() for values in edit.values() for value in values]
    return [value for key, value in record.items() if key != "edits"] + curves
