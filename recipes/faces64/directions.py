"""Step 9 of faces64: the edit directions smile, age, gender and yaw, by InterFaceGAN on the built-in face scores.

usage: python recipes/faces64/directions.py [--num-chunks 14] [--num-points 1600] [--output DIR] [--no-test]

1. Global boundaries. Images of random w are scored by `FaceScorer`, averaged over the image and its mirror image, and
   `fit_boundary` separates high from low scores among the leading components of w; several seeds, averaged.
2. Local boundaries. At points spread along each global boundary's normal the gradient of the score by w is taken, and
   `fit_boundary` separates the gradients from their negatives: the normal is the one direction along which the score
   of as many images as possible rises. Step 1 alone finds what goes along with a score in the data. The number of
   points matters: of 400, the smile rose for 90 % as far as 2 units from the middle, of 1,600 as far as 4.
3. Each local boundary is conditioned on the three others (`condition_boundary`), so that their scores stay put.
4. The range is the largest symmetric one of whole numbers up to 6 in which, on images not seen in the fit, (a) the
   score rises at each step of 1 for at least 90 % and (b) the mean score at both ends stays among those of random
   images (their 0.1 and 99.9 percentiles), so that the images stay near the data. It is at least 1.5.
5. The report: on 500 images not seen before, the share whose score rises at each of 6 equal steps from the lowest to
   the highest strength, and how far all scores move, in standard deviations over random images.

Scores are those of the image alone, clamped to [-1, 1], from step 2 on. All draws are kept in recipes/faces64/.cache,
so an interrupted run goes on where it was; about 40 minutes on one core. Needs scikit-learn.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.editing.directions import Direction, save_directions
from stylegan_inversion.editing.interfacegan import condition_boundary, fit_boundary
from stylegan_inversion.evaluation.editability import load_face_scorer
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.storage import WEIGHTS_NAME, builtin_path, load_module, read_tensors, write_tensors

logger = logging.getLogger("directions")
NAMES = ("smile", "age", "gender", "yaw")
WORDS = {
    "smile": "Positive: more of a smile.",
    "age": "Positive: looks older.",
    "gender": "Positive: looks more male, negative: more female, to the face network.",
    "yaw": "Positive: the nose turns to the right side of the image.",
}
MIRRORED = torch.tensor([1.0, 1.0, 1.0, -1.0])  # what a mirror does to the scores
CHUNK, BATCH = 256, 8  # small batches stay in the processor's cache
GLOBAL_COMPONENTS, LOCAL_COMPONENTS = 60, 160  # the largest of w, of up to w_dim / 2 = 256 that `fit_prior` draws
CHOSEN_RATIO, NUM_FITS = 0.45, 3
SMALLEST_STRENGTH, LARGEST_STRENGTH, MONOTONE_SHARE = 1.5, 6, 0.9
# Chunk i of step 1 is drawn with seed i
POINTS_SEED, CALIBRATION_SEED, TEST_SEED = 910_000, 920_000, 930_000
NUM_CALIBRATION, NUM_TEST, NUM_STRENGTHS = 256, 500, 7


@dataclass(frozen=True)
class Result:
    """What was measured of one direction."""

    global_accuracy: float  # of the global boundary, on samples held out
    local_accuracy: float  # of the local boundary, on gradients held out
    calibration_shares: dict[int, float]  # half of the range -> share of images whose score rises all along it
    strength_range: tuple[float, float]
    monotone_share: float | None = None  # on the test images
    mean_scores: list[float] | None = None  # at the strengths, lowest first
    moves: dict[str, float] | None = None  # of each score from the lowest to the highest, in standard deviations


class Workbench:
    """The generator and the scorer, and a cache of what they gave."""

    def __init__(self, cache: Path) -> None:
        """Load the networks; channels last, which is the faster layout on a CPU."""
        generator = builtin_path("faces64/generator")
        self.generator = load_module(Generator, GeneratorConfig, generator)
        self.scorer = load_face_scorer().to(memory_format=torch.channels_last)
        self.generator.synthesis.to(memory_format=torch.channels_last)
        digest = hashlib.sha256((generator / WEIGHTS_NAME).read_bytes()).hexdigest()
        self.cache = cache / f"directions-{digest[:12]}"

    def cached(self, name: str, make: Callable[[], Tensor], *inputs: Tensor) -> Tensor:
        """Read what was made under this name of the same inputs, or make and keep it."""
        digest = "".join(f"-{hashlib.sha256(x.numpy().tobytes()).hexdigest()[:12]}" for x in inputs)
        path = self.cache / f"{name}{digest}.safetensors"
        if not path.is_file():
            write_tensors({"scores": make()}, path)
            logger.info("%s", path.name)
        return read_tensors(path)["scores"]

    @torch.no_grad()
    def sample(self, seed: int, count: int) -> Tensor:
        """Draw w, (count, w_dim)."""
        z = torch.randn(count, self.generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
        return self.generator.mapping(z)

    def draw(self, w: Tensor) -> Tensor:
        """Draw images, clamped as a saved image is."""
        return self.generator.synthesis(latents.broadcast(w, self.generator.num_ws)).clamp(-1, 1)

    def score(self, x: Tensor) -> Tensor:
        """Score images: (B, 4), in the order of `NAMES`."""
        scores = self.scorer(x)
        return torch.stack([scores[name] for name in NAMES], dim=1)

    @torch.no_grad()
    def labels(self, w: Tensor) -> Tensor:
        """Scores of the images and of their mirror images, (B, 2, 4)."""
        images = [self.draw(part) for part in w.split(BATCH)]
        return torch.cat([torch.stack([self.score(x), self.score(x.flip(3)) * MIRRORED], dim=1) for x in images])

    @torch.no_grad()
    def curves(self, w: Tensor, vector: Tensor, strengths: Tensor) -> Tensor:
        """Scores along a direction, (B, strengths, 4)."""
        rows = [torch.cat([self.score(self.draw(p)) for p in (w + s * vector).split(BATCH)]) for s in strengths]
        return torch.stack(rows, dim=1)

    def gradients(self, w: Tensor, name: str) -> Tensor:
        """Gradient of one score by w, (B, w_dim)."""
        rows = []
        for part in w.split(BATCH):
            leaf = part.clone().requires_grad_()
            rows.append(torch.autograd.grad(self.scorer(self.draw(leaf))[name].sum(), leaf)[0])
        return torch.cat(rows)


def components(w: Tensor, count: int) -> Tensor:
    """Leading principal components of w, (w_dim, count)."""
    centred = w - w.mean(dim=0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :count]


def global_boundary(w: Tensor, scores: Tensor) -> tuple[Tensor, float]:
    """Step 1 for one score: unit normal, and accuracy on samples held out."""
    basis = components(w, GLOBAL_COMPONENTS)
    reduced = (w - w.mean(dim=0)) @ basis
    fits = [fit_boundary(reduced, scores, chosen_ratio=CHOSEN_RATIO, seed=seed) for seed in range(NUM_FITS)]
    normal = basis @ torch.stack([fit.vector for fit in fits]).sum(dim=0)
    return normal / normal.norm(), sum(fit.validation_accuracy for fit in fits) / NUM_FITS


def local_boundary(gradients: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """Step 2 for one score: unit normal, and the share of held-out gradients on the right side of it."""
    reduced = gradients @ basis
    reduced = reduced / reduced.norm(dim=1).mean()
    signs = torch.ones(len(reduced))
    fits = [
        fit_boundary(torch.cat([reduced, -reduced]), torch.cat([signs, -signs]), chosen_ratio=0.5, seed=seed)
        for seed in range(NUM_FITS)
    ]
    normal = basis @ torch.stack([fit.vector for fit in fits]).sum(dim=0)
    return normal / normal.norm(), sum(fit.validation_accuracy for fit in fits) / NUM_FITS


def monotone_share(curves: Tensor) -> float:
    """Share of the rows (B, strengths) that rise at every step."""
    return (curves.diff(dim=1) > 0).all(dim=1).float().mean().item()


def calibrate(curves: Tensor, samples: Tensor) -> tuple[float, dict[int, float]]:
    """Step 4: half of the range, and the shares it was chosen by.

    `curves` is one score, (B, strengths), at -LARGEST_STRENGTH, ..., LARGEST_STRENGTH; `samples` that of random images.
    """
    middle = LARGEST_STRENGTH
    low, high = samples.quantile(torch.tensor([0.001, 0.999])).tolist()
    shares, half = {}, SMALLEST_STRENGTH
    for r in range(1, LARGEST_STRENGTH + 1):
        part = curves[:, middle - r : middle + r + 1]
        shares[r] = round(monotone_share(part), 4)
        ends = part.mean(dim=0)
        if shares[r] >= MONOTONE_SHARE and low <= ends[0] and ends[-1] <= high:
            half = max(r, SMALLEST_STRENGTH)
    return float(half), shares


def fit_all(bench: Workbench, w: Tensor, labels: Tensor, num_points: int) -> tuple[dict[str, Tensor], dict[str, list]]:
    """Steps 1 to 3: the vectors, and both accuracies."""
    basis = components(w, LOCAL_COMPONENTS)
    averaged, spread = labels.mean(dim=1), LARGEST_STRENGTH * 2 / 3
    local, accuracies = {}, {}
    for index, name in enumerate(NAMES):
        normal, global_accuracy = global_boundary(w, averaged[:, index])
        uniform = torch.rand(num_points, 1, generator=torch.Generator().manual_seed(POINTS_SEED)) * 2 - 1
        points = bench.sample(POINTS_SEED, num_points) + spread * uniform * normal
        gradients = bench.cached(f"gradients_{name}", lambda p=points, n=name: bench.gradients(p, n), normal, uniform)
        local[name], local_accuracy = local_boundary(gradients, basis)
        accuracies[name] = [round(global_accuracy, 4), round(local_accuracy, 4)]
    vectors = {n: condition_boundary(local[n], *(local[other] for other in NAMES if other != n)) for n in NAMES}
    return vectors, accuracies


def measure(bench: Workbench, index: int, vector: Tensor, samples: Tensor, accuracies: list, *, test: bool) -> Result:
    """Steps 4 and 5 for one direction."""
    name = NAMES[index]
    grid = torch.arange(-LARGEST_STRENGTH, LARGEST_STRENGTH + 1.0)
    w = bench.sample(CALIBRATION_SEED, NUM_CALIBRATION)
    curves = bench.cached(f"calibration_{name}", lambda: bench.curves(w, vector, grid), vector, grid)
    half, shares = calibrate(curves[:, :, index], samples[:, index])
    result = Result(*accuracies, shares, (-half, half))
    if not test:
        return result
    grid = torch.linspace(-half, half, NUM_STRENGTHS)
    w = bench.sample(TEST_SEED, NUM_TEST)
    curves = bench.cached(f"test_{name}", lambda: bench.curves(w, vector, grid), vector, grid)
    moved = (curves[:, -1] - curves[:, 0]).mean(dim=0) / samples.std(dim=0)
    return replace(
        result,
        monotone_share=round(monotone_share(curves[:, :, index]), 4),
        mean_scores=[round(value, 3) for value in curves[:, :, index].mean(dim=0).tolist()],
        moves={key: round(value, 2) for key, value in zip(NAMES, moved.tolist())},
    )


def main() -> None:
    """Find, measure and write the directions, and a report beside the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-chunks", type=int, default=14, help=f"of {CHUNK} samples each, for step 1")
    parser.add_argument("--num-points", type=int, default=1600, help="gradients a direction, for step 2")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES, help="measure these only, write nothing")
    parser.add_argument("--no-test", action="store_true", help="leave out step 5")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / ".cache")
    parser.add_argument("--output", type=Path, default=builtin_path("faces64/directions"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    bench = Workbench(args.cache)
    chunks = [bench.sample(seed, CHUNK) for seed in range(args.num_chunks)]
    labels = [bench.cached(f"labels_{seed:04d}", lambda w=w: bench.labels(w)) for seed, w in enumerate(chunks)]
    samples = torch.cat(labels)[:, 0]
    vectors, accuracies = fit_all(bench, torch.cat(chunks), torch.cat(labels), args.num_points)
    results = {
        name: measure(bench, NAMES.index(name), vectors[name], samples, accuracies[name], test=not args.no_test)
        for name in args.names
    }
    report = {name: asdict(result) for name, result in results.items()}
    stacked = torch.stack([vectors[name] for name in NAMES])
    report["cosines"] = {n: [round(c, 3) for c in row] for n, row in zip(NAMES, (stacked @ stacked.T).tolist())}
    print(json.dumps(report, indent=1))
    if set(results) != set(NAMES):
        return
    directions = {}
    for name, result in results.items():
        words = f"{WORDS[name]} InterFaceGAN, conditioned on the other three."
        if result.monotone_share is not None:
            words += f" Its score rises all along the range for {result.monotone_share:.1%} of {NUM_TEST} unseen w."
        directions[name] = Direction(name, vectors[name], strength_range=result.strength_range, description=words)
    save_directions(directions, args.output)
    (args.cache / "directions.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
