"""Generators against a folder of pictures: distances of distributions, path length, and grids to look at."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from stylegan_inversion import __version__, hub
from stylegan_inversion.evaluation import sheets
from stylegan_inversion.evaluation.features import (
    data_features,
    data_key,
    find_pictures,
    identity_network,
    inception_network,
    perceptual_network,
)
from stylegan_inversion.evaluation.generator_table import write_table
from stylegan_inversion.evaluation.methods import hash_tensors
from stylegan_inversion.evaluation.samples import draw_samples, perceptual_path_length, sample_features
from stylegan_inversion.losses.distribution import (
    FeatureStatistics,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines.base import find_device
from stylegan_inversion.training.data import seeded

FEWEST = 8  # pictures of a set: each half of the data must hold more than K
K = 3  # neighbours of precision and recall
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance
SHOWN = 8  # samples whose nearest data are shown


@dataclass(frozen=True, eq=False)
class GeneratorEvaluation:
    """What came out.

    Attributes:
        output: The folder with all files.
        results: What `generators.json` holds.
        table: What `generators.md` holds.
    """

    output: Path
    results: dict[str, Any]
    table: str


def load_generators(models: Sequence[str], *, device: torch.device | str | None = None) -> dict[str, Generator]:
    """Load the generators of models, frozen and in eval mode.

    Args:
        models: Built-in models, folders of models or of generators, or "organisation/repository"; each alone, called
            by the last part of its path, or as "NAME=MODEL".
        device: Where to put them: "cpu", "cuda", "mps", or "auto" for the best there is. `None` means the CPU.

    Returns:
        The generators by name, in the same order.

    Raises:
        ValueError: If two models have one name, or this machine has no such device.
        ModelNotFoundError: If there is no such model.
        CheckpointError: If a file is damaged, or it holds no generator.
    """
    device = find_device(device)
    found: dict[str, Generator] = {}
    for text in models:
        name, equals, model = text.partition("=")
        if not equals or Path(text).is_dir():
            name, model = Path(text).resolve().name, text
        if name in found:
            raise ValueError(f"Two models are called {name!r}: write NAME=MODEL, such as {name}2={model}.")
        folder = hub.find_model(model)
        if hub.read_config(folder).get("_class_name") != "Generator":
            folder /= "generator"
        found[name] = hub.load_module(Generator, GeneratorConfig, folder, device=device)
    return found


@torch.no_grad()
def evaluate_generators(
    generators: Mapping[str, Generator],
    images: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    num_samples: int = 10_000,
    truncation_psi: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    perceptual: str = "alex",
    identity: str | None = "builtin",
    fid: bool = False,
    num_paths: int = 2_000,
    limit: int | None = None,
    progress: bool = False,
) -> GeneratorEvaluation:
    """Measure how close the pictures of generators come to those of a folder.

    The folder gets `generators.json`, `generators.md`, and for each generator `NAME_samples.png` (the first 64
    samples), `NAME_samples_psi0.7.png` (truncated), `NAME_mixing.png` (styles mixed by layers) and `NAME_nearest.png`
    (the data nearest to samples: give the training data to look for copies). Features of the data are kept in
    `features/` for the next time, under the names and sizes of the files; take that folder away if files changed but
    kept their sizes.

    Args:
        generators: By name, of one resolution and on one device.
        images: A folder, or paths: RGB, the central square, resized to the generators' side.
        output: Folder, made if needed.
        num_samples: Samples of each generator, the same z and noise for all. Fréchet distances of fewer samples, or
            data, are larger: compare only equal numbers.
        truncation_psi: Of the samples; 1 is the generator's whole distribution. Path length is without.
        seed: Of all draws, >= 0.
        batch_size: Pictures that go through a network at once; makes no difference beyond rounding.
        perceptual: Features and path length, see `losses.lpips.load_perceptual`.
        identity: Features of faces, see `losses.identity.load_identity`. `None` leaves them out.
        fid: Also FID and KID, in the features of Inception (needs torch-fidelity and its weights).
        num_paths: Samples of the path length; 0 leaves it out.
        limit: Take only that many of the data, the first ones.
        progress: Show a progress bar.

    Returns:
        Results and table.

    Raises:
        ValueError: If there is no generator, a name cannot be a file's, resolutions or devices differ, or there are
            too few samples or data.
        InvalidImageError: If a picture cannot be used.
        MissingDependencyError: If `fid` is asked for and torch-fidelity is not installed.
    """
    resolution, device = _check_generators(generators)
    for name, value, least in (
        ("num_samples", num_samples, FEWEST),
        ("batch_size", batch_size, 1),
        ("num_paths", num_paths, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be >= {least}, got {value}.")
    if not math.isfinite(truncation_psi):
        raise ValueError(f"`truncation_psi` must be finite, got {truncation_psi}.")
    pictures = find_pictures(images, limit)
    if len(pictures.paths) < FEWEST:
        raise ValueError(f"There must be at least {FEWEST} pictures of the data, got {len(pictures.paths)}.")
    network = load_perceptual(perceptual, device=device)
    networks = [perceptual_network(network)]
    if identity is not None:
        networks.append(identity_network(identity, device=device))
    if fid:
        networks.append(inception_network(device=device))

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    total = len(pictures.paths) + len(generators) * (num_samples + num_paths)
    with tqdm(total=total, disable=not progress, unit="image") as bar:
        real = data_features(
            pictures,
            networks,
            output / "features",
            resolution=resolution,
            batch_size=batch_size,
            device=device,
            advance=bar.update,
        )
        found: dict[str, Any] = {}
        for name, generator in generators.items():
            fake = sample_features(
                generator,
                networks,
                num_samples,
                seed=seed,
                truncation_psi=truncation_psi,
                batch_size=batch_size,
                advance=bar.update,
            )
            figures: dict[str, Any] = {n.key: measure(real[n.key], fake[n.key], seed=seed) for n in networks}
            if num_paths:
                figures["path_length"] = perceptual_path_length(
                    generator, network, num_samples=num_paths, seed=seed, batch_size=batch_size, advance=bar.update
                )
            found[name] = figures
            sheets.save_sheets(generator, output, name, seed=seed, truncation_psi=truncation_psi, batch_size=batch_size)
            shown = draw_samples(generator, range(SHOWN), seed=seed, truncation_psi=truncation_psi)
            near = {n.label: fake[n.key][:SHOWN] for n in networks}
            among = {n.label: real[n.key] for n in networks}
            sheets.save_nearest(shown, near, among, pictures.paths, output / f"{name}_nearest.png")

    order = torch.randperm(len(pictures.paths), generator=seeded(seed, "halves", 0))
    one, other = order.chunk(2)
    halves = {n.key: measure(real[n.key][one], real[n.key][other], seed=seed) for n in networks}
    columns = {n.key: n.columns() for n in networks}
    if num_paths:
        columns["path_length"] = {"": f"PPL (W, {network.name})"}
    results = {
        "version": __version__,
        "torch": torch.__version__,
        "num_samples": num_samples,
        "truncation_psi": truncation_psi,
        "seed": seed,
        "resolution": resolution,
        "num_paths": num_paths,
        "num_data": len(pictures.paths),
        "data_key": data_key(pictures, resolution),
        "networks": {n.key: {"label": n.label, "sha256": n.sha256, "dim": real[n.key].shape[1]} for n in networks},
        "columns": columns,
        "generators": {
            name: {"sha256": hash_tensors(g.state_dict()), "config": asdict(g.config), "figures": found[name]}
            for name, g in generators.items()
        },
        "halves": halves,
    }
    table = write_table(results)
    hub.write_config(results, output, name="generators.json")
    (output / "generators.md").write_text(table, "utf-8")
    return GeneratorEvaluation(output, results, table)


def _check_generators(generators: Mapping[str, Generator]) -> tuple[int, torch.device]:
    if not generators:
        raise ValueError("`generators` must hold at least one generator, got none.")
    for name in generators:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"The name of a generator must be letters, digits and . + - only, got {name!r}.")
    kinds = {name: (g.config.resolution, g.w_avg.device) for name, g in generators.items()}
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if kind != kinds[first]:
            raise ValueError(
                f"`generators` must share resolution and device, to be compared in the same features; {first!r} has "
                f"{kinds[first][0]} px on {kinds[first][1]}, {name!r} {kind[0]} px on {kind[1]}."
            )
    return kinds[first]


def measure(real: Tensor, fake: Tensor, *, seed: int) -> dict[str, float]:
    """All measures of two sets of features, (N, D) and (M, D).

    Args:
        real: Features of the data.
        fake: Features of samples.
        seed: Of the kernel distance's subsets.

    Returns:
        {"frechet", "kernel", "kernel_std", "kernel_subset", "precision", "recall"}. A subset of the kernel distance is
        1000 pictures, or half of the smaller set.
    """
    clouds = FeatureStatistics(), FeatureStatistics()
    for cloud, features in zip(clouds, (real, fake)):
        cloud.update(features)
    size = min(SUBSET_SIZE, min(len(real), len(fake)) // 2)
    kernel = kernel_distance(real, fake, rng=seeded(seed, "subsets", 0), num_subsets=SUBSETS, subset_size=size)
    manifold = precision_recall(real, fake, k=K)
    return {
        "frechet": frechet_distance(clouds[0].mean, clouds[0].cov, clouds[1].mean, clouds[1].cov),
        "kernel": kernel.mean,
        "kernel_std": kernel.std,
        "kernel_subset": size,
        "precision": manifold.precision,
        "recall": manifold.recall,
    }
