"""Find calibrated edit directions of a generator from scores of its images, in W (InterFaceGAN) or in S (StyleSpace).

Papers: Shen et al. 2020, arXiv:1907.10786 (boundaries, and conditioning them on one another); Wu et al. 2021,
arXiv:2011.12799, section 5 (which style channels an attribute depends on). Own code.

In W:
1. Global boundary. Images of random w are scored, and `fit_boundary` separates high from low scores among the leading
   components of w: what goes along with the score in the data. For a score without gradients this is all.
2. Local boundary. At points spread along the global boundaries' normals the gradient of the score by w is taken, and
   `fit_boundary` separates the gradients from their negatives: the one direction along which the score of as many
   images as possible rises.
In S the gradient by each style, averaged over images and times the style's standard deviation, says how much the score
depends on it. The channels with the largest values make the direction. Correlations instead did not work.
Then, in both:
3. It is conditioned on the other scores (`condition_boundary`), so that these stay put.
4. The range is the largest symmetric one in which, on images not seen in the fit, (a) the score rises at each step for
   at least 90 % and (b) the mean score at both ends stays among those of random images, so that images stay near the
   data. It has at least 2 of 6 steps.
5. On other unseen images: for how many the score rises all along the range, and how far all scores move.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from stylegan_inversion import latents
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.editing.interfacegan import condition_boundary, fit_boundary, import_svm
from stylegan_inversion.models.generator import Generator

Score = Callable[[Tensor], Mapping[str, Tensor]]
"""Images (B, 3, R, R), RGB, in [-1, 1] -> one number a score and image, (B,) by name; best differentiable."""

MAPPED = 4096  # w that are mapped, but not drawn, for the components and the spread of W
GLOBAL_COMPONENTS, LOCAL_COMPONENTS = 60, 160  # of w: in the others a direction has no share
CHOSEN_RATIO, NUM_FITS = 0.45, 3
# Scale of the gradients before the fit: below 1 the margin is softer, which suits few points in many axes.
SOFTNESS = 0.3
STEPS, FEWEST_STEPS, MONOTONE_SHARE = 6, 2, 0.9  # of the range, on each side of 0
REACH = 0.38  # of 6 steps in W, relative to the spread of w
STYLE_REACH = 6.0  # of 6 steps in S, in standard deviations of the styles
# Each draw of w has a purpose of its own: `latents.seeded`
FIT, COMPONENTS, POINTS, CALIBRATION, TEST = "fit", "components", "points", "calibration", "test"


@dataclass(frozen=True, eq=False)
class FoundDirection:
    """A direction, and what was measured of it on images that its fit has not seen."""

    direction: Direction
    accuracy: float | None  # of the boundary in W, on samples held out, in [0, 1]
    monotone_share: float  # of images whose score rises at each of 6 equal steps through the range, in [0, 1]
    moves: Mapping[str, float]  # of each score between the ends of the range, in deviations over random images


def find_directions(
    generator: Generator,
    score: Score,
    *,
    names: Sequence[str] | None = None,
    space: Literal["w", "s"] = "w",
    num_samples: int = 512,
    num_points: int | None = None,
    num_tests: int = 24,
    num_channels: int | None = None,
    steps: Mapping[str, Tensor] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    descriptions: Mapping[str, str] | None = None,
    progress: bool = False,
) -> list[FoundDirection]:
    """Find directions along which scores rise while the others stay.

    Args:
        generator: Draws the images, with its own noise. It is not changed.
        score: See `Score`. All its names must be Python identifiers.
        names: Scores to find directions of. The other scores are only kept still. `None` takes all.
        space: "w" or "s"; see `Direction`.
        num_samples: Images that are scored first, >= 64.
        num_points: Images at which the gradients of all scores are taken, >= 16, for a fit. `None` means 640.
        num_tests: Images that set the range, and as many that measure it, at 6 strengths on each side; >= 8.
        num_channels: Styles that a direction in S moves at most, >= the number of scores, for a fit. `None` means 64.
        steps: Directions in S that are given and only measured, such as those of texts: by name, what a strength of 1
            adds to the styles, (num_styles,). `None` fits them.
        batch_size: Images that go through together, >= 1.
        seed: Seed of all w, >= 0.
        descriptions: What each direction does, by score. Otherwise "Positive: more NAME."
        progress: Show a progress bar.

    Returns:
        One for each of `names`, in their order; vectors in float32 on the CPU.

    Raises:
        ValueError: If an option is out of range or not used, a score is not finite or the same for all images, it has
            no gradient in S, or the scores depend on w in the same way.
        MissingDependencyError: If scikit-learn is not installed, for directions in W.
    """
    if space not in ("w", "s"):
        raise ValueError(f'`space` must be "w" or "s", got {space!r}.')
    if steps is not None and space == "w":
        raise ValueError('`steps` are directions in S: leave them out, or take `space="s"`, got "w".')
    if num_points is not None and steps is not None:
        raise ValueError(f"`num_points` is for a fit: leave it out with `steps`, got {num_points}.")
    if num_channels is not None and (steps is not None or space == "w"):
        raise ValueError(f"`num_channels` is for a fit in S: leave it out with `steps` or in W, got {num_channels}.")
    num_points = 640 if num_points is None else num_points
    num_channels = 64 if num_channels is None else num_channels
    least = {"num_samples": 64, "num_points": 16, "num_tests": 8, "num_channels": 1, "batch_size": 1, "seed": 0}
    given = (num_samples, num_points, num_tests, num_channels, batch_size, seed)
    for (option, lowest), value in zip(least.items(), given):
        if value < lowest:
            raise ValueError(f"`{option}` must be >= {lowest}, got {value}.")
    if space == "w":
        import_svm()  # raises before the first image
    search = _Search(generator, score, batch_size, seed)
    known = list(search.scores)
    names = known if names is None else list(names)
    for name in (*names, *known):
        if name not in known or not name.isidentifier():
            raise ValueError(
                f"`names` must be among the scores, which are identifiers: {', '.join(known)}; got {name!r}."
            )
    sizes, count = {key: step.numel() for key, step in (steps or {}).items()}, sum(generator.config.style_sizes)
    if odd := [name for name in names if steps is not None and sizes.get(name) != count]:
        raise ValueError(
            f"`steps` must hold {count} numbers for each of `names`, got {sizes.get(odd[0], 0)} for {odd[0]!r}."
        )
    per_name = num_tests * (2 * STEPS + 1) + num_tests * (STEPS + 1)
    total = num_samples + num_points * (steps is None) + per_name * len(names)
    with tqdm(total=total, unit="image", disable=not progress, desc=f"directions in {space.upper()}") as search.bar:
        w = search.sample(FIT, num_samples)
        samples = torch.cat([search.draw_scores(part) for part in w.split(batch_size)])
        if not samples.isfinite().all():
            raise ValueError(f"`score` must be finite, got NaN or infinity among {', '.join(known)}.")
        accuracies, fitted = dict[str, float](), steps is None
        if steps is None:
            fit = search.fit_styles if space == "s" else search.fit_codes
            steps, accuracies = fit(w, samples, num_points, num_channels)
        found = []
        for name in names:
            text = (descriptions or {}).get(name, f"Positive: more {name.replace('_', ' ')}.")
            raw = Direction.from_vector(name, steps[name], unit=None if space == "s" else 1.0, space=space)
            reach = STYLE_REACH if space == "s" else REACH * search.spread()
            direction = search.calibrate(raw, samples, float(f"{reach / STEPS:.1g}"), num_tests)
            kept = ", ".join(other for other in known if other != name)
            method = "InterFaceGAN" if space == "w" else f"{int((raw.vector != 0).sum())} channels of StyleSpace"
            text += f" {method}, conditioned on {kept}." if kept and fitted else f" {method}."
            found.append(search.test(replace(direction, description=text), accuracies.get(name), samples, num_tests))
    return found


class _Search:
    """A generator and a score, and the w that are drawn for them."""

    bar: "tqdm[object]"

    def __init__(self, generator: Generator, score: Score, batch_size: int, seed: int) -> None:
        self.generator, self.score, self.batch_size, self.seed = generator, score, batch_size, seed
        with torch.no_grad():
            self.scores = tuple(score(self.draw(generator.w_avg[None])))

    def sample(self, purpose: str, count: int) -> Tensor:
        """Draw w, (count, w_dim)."""
        return self.generator.sample_w(count, latents.seeded(self.seed, purpose, 0))

    def spread(self) -> float:
        """Root of the mean squared distance of w from its average."""
        return self.sample(COMPONENTS, MAPPED).var(dim=0).sum().sqrt().item()

    def components(self, count: int) -> Tensor:
        """Leading principal components of w, (w_dim, at most count), float32 on the CPU."""
        w = self.sample(COMPONENTS, MAPPED).cpu().double()
        return torch.linalg.eigh(w.T.cov()).eigenvectors.flip(1)[:, :count].float()

    def draw(self, w: Tensor, *, generator: Generator | None = None, styles: Tensor | None = None) -> Tensor:
        """Draw images of w, clamped as a saved picture is."""
        generator = generator or self.generator
        return generator.synthesis(latents.broadcast(w, generator.num_ws), styles=styles).clamp(-1, 1)

    @torch.no_grad()
    def draw_scores(self, w: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Scores of the images of one batch of w, (B, scores), on the CPU."""
        rows = self.score(self.draw(w, generator=generator))
        self.bar.update(len(w))
        return torch.stack([rows[name] for name in self.scores], dim=1).cpu().float()

    @torch.no_grad()
    def curves(self, direction: Direction, purpose: str, strengths: Tensor, count: int) -> Tensor:
        """Scores along a direction, (count, strengths, scores)."""
        columns = []
        for strength in strengths.tolist():
            generator = direction.restyle(self.generator, strength)
            rows = []
            for w in self.sample(purpose, count).split(self.batch_size):
                moved = direction.apply(w[:, None], strength)[:, 0]
                rows.append(self.draw_scores(moved, generator=generator))
            columns.append(torch.cat(rows))
        return torch.stack(columns, dim=1)

    @torch.enable_grad()
    def gradients(self, w: Tensor, *, styles: bool = False) -> dict[str, Tensor]:
        """Gradients by w, (B, w_dim), or by the styles, (B, num_styles), of each score that has some."""
        rows: dict[str, list[Tensor]] = {name: [] for name in self.scores}
        for part in w.split(self.batch_size):
            leaf = part.clone().requires_grad_()
            offset = part.new_zeros(len(part), sum(self.generator.config.style_sizes)).requires_grad_()
            scores = self.score(self.draw(leaf, styles=offset if styles else None))
            for name, score in scores.items():
                if score.requires_grad:
                    (row,) = torch.autograd.grad(score.sum(), offset if styles else leaf, retain_graph=True)
                    rows[name].append(row.cpu().float())
            self.bar.update(len(part))
        return {name: torch.cat(parts) for name, parts in rows.items() if parts}

    def fit_codes(
        self, w: Tensor, samples: Tensor, num_points: int, num_channels: int
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Steps 1 to 3 in W: by score, the direction and the accuracy of its boundary."""
        wide, narrow = self.components(LOCAL_COMPONENTS), self.components(GLOBAL_COMPONENTS)
        reduced = (w - w.mean(dim=0)).cpu().float() @ narrow
        fits = [_boundary(reduced, column, narrow, CHOSEN_RATIO) for column in samples.unbind(1)]
        vectors, accuracies = (dict(zip(self.scores, column)) for column in zip(*fits))
        rng = latents.seeded(self.seed, POINTS, 1)
        uniform = torch.rand(num_points, len(fits), generator=rng, device="cpu", dtype=torch.float32) * 2 - 1
        along = REACH * self.spread() * 2 / 3 * uniform @ torch.stack([*vectors.values()])
        for name, gradients in self.gradients(self.sample(POINTS, num_points) + along.to(w)).items():
            reduced = gradients @ wide
            reduced = SOFTNESS * reduced / reduced.norm(dim=1).mean()
            signs = torch.ones(len(reduced))
            both = torch.cat([reduced, -reduced]), torch.cat([signs, -signs])
            vectors[name], accuracies[name] = _boundary(*both, wide, 0.5)
        return _condition(vectors), accuracies

    def fit_styles(
        self, w: Tensor, samples: Tensor, num_points: int, num_channels: int
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Step 3 in S: by score, what a strength of 1 adds to the styles."""
        with torch.no_grad():
            styles = self.generator.styles_of(latents.broadcast(w, self.generator.num_ws)).cpu().float()
        deviation = styles.std(dim=0)
        gradients = self.gradients(self.sample(POINTS, num_points), styles=True)
        if missing := [name for name in self.scores if name not in gradients]:
            raise ValueError(
                f"Scores need gradients for directions in S, and {missing[0]!r} has none; take `space='w'`."
            )
        effects = {name: rows.mean(dim=0) * deviation for name, rows in gradients.items()}
        steps = {}
        for name, vector in _condition(effects).items():
            chosen = vector.abs().topk(min(num_channels, len(vector))).indices
            few = _condition({key: effect[chosen] for key, effect in effects.items()}, only=name)[name]
            steps[name] = torch.zeros_like(deviation).index_put((chosen,), few * deviation[chosen])
        return steps, {}

    def calibrate(self, direction: Direction, samples: Tensor, step: float, count: int) -> Direction:
        """Step 4: the same direction with a range, in whole steps. A step that is too far ends the search."""
        index = self.scores.index(direction.name)
        low, high = samples[:, index].quantile(torch.tensor([0.001, 0.999])).tolist()
        columns = self.curves(direction, CALIBRATION, step * torch.arange(-1, 2.0), count)[:, :, index]
        half = 1
        while half < STEPS:
            ends = self.curves(direction, CALIBRATION, step * torch.tensor([-half - 1.0, half + 1.0]), count)[
                :, :, index
            ]
            columns = torch.cat([ends[:, :1], columns, ends[:, 1:]], dim=1)
            mean = columns.mean(dim=0)
            if not (monotone_share(columns) >= MONOTONE_SHARE and low <= mean[0] and mean[-1] <= high):
                break
            half += 1
        end = float(f"{max(half, FEWEST_STEPS) * step:.2g}")
        self.bar.total -= 2 * count * max(0, STEPS - half - 1)
        return replace(direction, strength_range=(-end, end))

    def test(self, direction: Direction, accuracy: float | None, samples: Tensor, count: int) -> FoundDirection:
        """Step 5."""
        assert direction.strength_range is not None
        curves = self.curves(direction, TEST, torch.linspace(*direction.strength_range, STEPS + 1), count)
        moved = (curves[:, -1] - curves[:, 0]).mean(dim=0) / samples.std(dim=0)
        share = monotone_share(curves[:, :, self.scores.index(direction.name)])
        text = f"{direction.description} Its score rises all along the range for {share:.1%} of {count} unseen w."
        return FoundDirection(
            replace(direction, description=text), accuracy, share, dict(zip(self.scores, moved.tolist()))
        )


def monotone_share(curves: Tensor) -> float:
    """Share of the rows, (B, strengths), that rise at every step."""
    return (curves.diff(dim=1) > 0).all(dim=1).float().mean().item()


def _boundary(reduced: Tensor, scores: Tensor, basis: Tensor, chosen_ratio: float) -> tuple[Tensor, float]:
    """Fit boundaries among components of w with several seeds: the mean normal in W, and the accuracy held out."""
    fits = [fit_boundary(reduced, scores, chosen_ratio=chosen_ratio, seed=seed) for seed in range(NUM_FITS)]
    normal = basis @ torch.stack([fit.vector for fit in fits]).sum(dim=0)
    return normal / normal.norm(), sum(fit.validation_accuracy for fit in fits) / NUM_FITS


def _condition(vectors: Mapping[str, Tensor], *, only: str | None = None) -> dict[str, Tensor]:
    """Step 3: each vector, or only one, without what it shares with the others."""
    return {
        name: condition_boundary(vector, *(other for key, other in vectors.items() if key != name))
        for name, vector in vectors.items()
        if only in (None, name)
    }
