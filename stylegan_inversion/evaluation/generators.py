"""Compare generators with a folder of pictures: distances of distributions, path length, sheets to look at."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from stylegan_inversion import __version__, latents, storage
from stylegan_inversion.checkpoints.find import find_folder
from stylegan_inversion.editing.mixing import mix_styles
from stylegan_inversion.errors import CheckpointError, InvalidImageError, importing
from stylegan_inversion.evaluation import report
from stylegan_inversion.evaluation.distribution import draw_samples, measure, perceptual_path_length, sample_w_plus
from stylegan_inversion.losses.frechet import pool_features
from stylegan_inversion.losses.identity import FaceResEmbedding, load_identity
from stylegan_inversion.losses.lpips import PerceptualDistance, load_perceptual
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines.loading import find_device
from stylegan_inversion.preprocessing.domain import FACES, Domain
from stylegan_inversion.preprocessing.image import list_images, load_image, to_pil

FEWEST = 8  # pictures of a set: each half of the data must hold more than 3 neighbours
_GRID, _GRID_PSI = 64, 0.7  # samples of a grid, and the truncation of the second one
_MIXED = 4  # rows, and columns for each range of layers, of the sheet of mixed styles
_SHOWN, _NEIGHBOURS = 8, 3  # samples whose nearest data are shown, and how many


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """Images (B, 3, R, R), RGB, in [-1, 1] -> features (B, D), under a label for tables; only Inception's give FID."""

    key: str
    label: str
    embed: Callable[[Tensor], Tensor]

    def columns(self) -> dict[str, str]:
        """The name in tables of each figure."""
        in_brackets = f" ({self.label})"
        names = ("FID", "KID") if self.key == "inception" else (f"FD{in_brackets}", f"KD{in_brackets}")
        shares = {key: f"{key}{in_brackets}" for key in ("precision", "recall")}
        return {"frechet": names[0], "kernel": f"{names[1]} x 1000", **shares}


def evaluate_generators(
    models: Sequence[str],
    data: str | Path,
    output: str | Path,
    *,
    num_samples: int = 10_000,
    num_paths: int = 2_000,
    limit: int | None = None,
    truncation_psi: float = 1.0,
    seed: int = 0,
    perceptual: str = "alex",
    identity: str | None = "builtin",
    fid: bool = False,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> tuple[dict[str, Any], str]:
    """Measure how close the pictures of generators come to those of a folder.

    The output folder gets `generators.json`, `generators.md`, and for each generator `NAME_samples.png` (the first 64
    samples), `NAME_samples_psi0.7.png` (truncated), `NAME_mixing.png` (styles mixed by layers) and `NAME_nearest.png`
    (the data nearest to samples: give the training data to look for copies).

    Args are those of `stylegan-inversion evaluate-generator`, which `--help` explains. A model is called by the last
    part of its path, or as "NAME=MODEL". All generators get the same z and noise. Fréchet distances of fewer samples or
    less data are larger: compare only equal numbers.

    Returns:
        The content of `generators.json` and of `generators.md`.

    Raises:
        ValueError: If two models have one name, a name cannot be a file's, resolutions differ, there are fewer than 8
            pictures, or this machine has no such device.
        ModelNotFoundError: If there is no such model.
        CheckpointError: If a file is damaged, or a model holds no generator.
        InvalidImageError: If a picture cannot be used.
        MissingDependencyError: If `fid` is asked for and torch-fidelity is not installed.
    """
    device = find_device(device)
    folders = find_generators(models)
    generators = {n: storage.load_module(Generator, GeneratorConfig, f, device=device) for n, f in folders.items()}
    first = next(iter(folders.values())).parent  # the model, unless it is a generator alone
    config = storage.read_config(first) if (first / storage.CONFIG_NAME).is_file() else {}
    domain = Domain.of_config(config, first)
    sides = {name: generator.config.resolution for name, generator in generators.items()}
    resolution = next(iter(sides.values()))
    if len(set(sides.values())) > 1:
        listed = ", ".join(f"{name!r} has {side} px" for name, side in sides.items())
        raise ValueError(f"The models must share their resolution, to be compared in the same features; {listed}.")
    paths = [Path(data, name) for name in list_images(Path(data))[:limit]]
    if len(paths) < FEWEST:
        raise ValueError(f"There must be at least {FEWEST} pictures of the data, got {len(paths)}.")
    network = load_perceptual(perceptual, device=device)
    networks = _load_networks(network, identity, fid, device)

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    with (
        torch.no_grad(),
        tqdm(total=len(paths) + len(models) * (num_samples + num_paths), disable=not progress, unit="image") as bar,
    ):

        def embed(batches: Iterable[Tensor]) -> dict[str, Tensor]:
            rows: dict[str, list[Tensor]] = {each.key: [] for each in networks}
            for images in batches:
                for each in networks:
                    rows[each.key].append(each.embed(images).cpu())
                bar.update(len(images))
            return {key: torch.cat(parts) for key, parts in rows.items()}

        def draw(generator: Generator, count: int, psi: float) -> Iterator[Tensor]:
            for first in range(0, count, batch_size):
                yield draw_samples(generator, range(count)[first : first + batch_size], seed=seed, truncation_psi=psi)

        parts = [paths[first : first + batch_size] for first in range(0, len(paths), batch_size)]
        real = embed(torch.cat([read_picture(path, resolution, domain) for path in part]).to(device) for part in parts)
        for name, generator in generators.items():
            fake = embed(draw(generator, num_samples, truncation_psi))
            found[name] = {each.key: measure(real[each.key], fake[each.key], seed=seed) for each in networks}
            if num_paths:
                found[name]["path_length"] = perceptual_path_length(
                    generator, network, num_samples=num_paths, seed=seed, batch_size=batch_size, advance=bar.update
                )
            for psi, suffix in ((truncation_psi, ""), (_GRID_PSI, f"_psi{_GRID_PSI}")):
                pictures = [picture for images in draw(generator, _GRID, psi) for picture in to_pil(images)]
                report.save_grid(pictures, output / f"{name}_samples{suffix}.png")
            w_plus = sample_w_plus(generator, range(2 * _MIXED), seed=seed, truncation_psi=truncation_psi)
            report.save_figure(mix(generator, w_plus), output / f"{name}_mixing.png")
            samples = torch.cat([*draw(generator, _SHOWN, truncation_psi)])
            near = {each.label: (fake[each.key][:_SHOWN], real[each.key]) for each in networks}
            report.save_figure(find_nearest(samples, near, paths), output / f"{name}_nearest.png")

    one, other = torch.randperm(len(paths), generator=latents.seeded(seed, "halves", 0)).chunk(2)
    columns = {each.key: each.columns() for each in networks}
    results = {
        "version": __version__,
        "torch": torch.__version__,
        "num_samples": num_samples,
        "truncation_psi": truncation_psi,
        "seed": seed,
        "resolution": resolution,
        "num_paths": num_paths,
        "num_data": len(paths),
        "networks": {each.key: {"label": each.label, "dim": real[each.key].shape[1]} for each in networks},
        "columns": columns | ({"path_length": {"": f"PPL (W, {network.name})"}} if num_paths else {}),
        "generators": {
            name: {"sha256": report.hash_model(folders[name]), "config": asdict(g.config), "figures": found[name]}
            for name, g in generators.items()
        },
        "halves": {each.key: measure(real[each.key][one], real[each.key][other], seed=seed) for each in networks},
    }
    table = report.write_generator_table(results)
    storage.write_config(results, output, name="generators.json")
    storage.write_text(table, output / "generators.md")
    return results, table


def find_generators(models: Sequence[str]) -> dict[str, Path]:
    """Folders of generators by the names that files and tables give them."""
    folders: dict[str, Path] = {}
    for text in models:
        name, equals, model = text.partition("=")
        if not equals or Path(text).is_dir():
            name, model = Path(text).resolve().name, text
        if name in folders:
            raise ValueError(f"Two models are called {name!r}: write NAME=MODEL, such as {name}2={model}.")
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"The name of a generator must be letters, digits and . + - only, got {name!r}.")
        folder = find_folder(model)
        whole = storage.read_config(folder).get("_class_name") != "Generator"
        folders[name] = folder / "generator" if whole else folder
    return folders


def _load_networks(
    perceptual: PerceptualDistance, identity: str | None, fid: bool, device: torch.device
) -> list[FeatureNetwork]:
    name = str(perceptual.name)
    networks = [FeatureNetwork(name, name, lambda images: pool_features(perceptual.features(images)))]
    if identity is not None:
        face = load_identity(identity, None if identity == "builtin" else find_folder(identity), device=device)
        key, label = ("faceres", "FaceRes") if isinstance(face, FaceResEmbedding) else ("arcface", "ArcFace")
        networks.append(FeatureNetwork(key, label, lambda images: pool_features([face.embed(images)])))
    if fid:
        networks.append(FeatureNetwork("inception", "Inception", _load_inception(device)))
    return networks


def _load_inception(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Load torch-fidelity's copy of the Inception network of the first FID."""
    otherwise = "The Fréchet and kernel distances in the built-in networks need nothing: leave out `fid`."
    with importing("torch-fidelity", "fid", otherwise=otherwise):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    try:
        network: Any = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
    except (OSError, RuntimeError) as e:
        raise CheckpointError(
            f"The Inception weights of torch-fidelity are not in PyTorch's cache and could not be fetched: {e}. "
            "Connect once, or leave out `fid`."
        ) from e
    return lambda images: network(((images + 1) * 127.5).round().to(torch.uint8))[0].float()


def read_picture(path: Path, resolution: int, domain: Domain = FACES) -> Tensor:
    """Read a picture as training does, (1, 3, R, R): the central part, antialiased, with its black bars."""
    try:
        return domain.with_bars(domain.crop(load_image(path), resolution).image)
    except InvalidImageError as e:
        raise InvalidImageError(f"{path}: {e} Replace or remove the file.") from e


def mix(generator: Generator, w_plus: Tensor) -> list[report.Column]:
    """Samples A down the left, others B along the top; inside, A with the coarse, middle or fine layers of B.

    The ranges are StyleGAN's (`latents.layer_ranges`); the noise is the generator's own.
    """

    def draw(codes: Tensor) -> list[Image.Image]:
        return to_pil(generator.synthesis(codes))

    a, b = w_plus.chunk(2)
    columns = [report.Column("", "A", [None, *draw(a)])]
    for name, layers in latents.layer_ranges(generator.config.resolution).items():
        for i, top in enumerate(draw(b) if layers[0] != layers[1] else []):
            mixed = draw(mix_styles(a, b[i : i + 1], layers=layers))
            columns.append(report.Column(f"{name} layers of B, the others of A", f"B {i + 1}", [top, *mixed]))
    return columns


def find_nearest(
    samples: Tensor, features: Mapping[str, tuple[Tensor, Tensor]], paths: Sequence[Path]
) -> list[report.Column]:
    """Samples, and beside each the data that lie nearest to it: copies would show that a generator memorises.

    `features` are those of the samples, (n, D), and of the data, (N, D), by network.
    """
    columns = [report.Column("", "sample", to_pil(samples))]
    for name, (own, data) in features.items():
        nearest = torch.cdist(own, data).topk(_NEIGHBOURS, largest=False).indices  # (n, k)
        for rank, chosen in enumerate(nearest.T.tolist()):
            pictures = [to_pil(read_picture(paths[i], samples.shape[-1]))[0] for i in chosen]
            columns.append(report.Column(f"nearest data ({name})", f"{rank + 1}", pictures))
    return columns
