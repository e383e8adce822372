"""Pictures of a generator for the eye: uncurated samples, mixed styles, and the data that lie nearest to samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stylegan_inversion import latents
from stylegan_inversion.editing.mixing import mix_styles
from stylegan_inversion.evaluation.features import read_picture
from stylegan_inversion.evaluation.figure import Column, save_figure
from stylegan_inversion.evaluation.samples import draw_samples, sample_w_plus
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.preprocessing.image import save_image, to_pil

GRID = 8  # pictures a side of the grid of samples
CELL = 256  # largest side of a picture in it, in pixels
GRID_PSI = 0.7  # truncation of the second grid
MIXED = 4  # rows, and columns for each range of layers, of the sheet of mixed styles
NEIGHBOURS = 3  # nearest data shown beside a sample


def save_sheets(
    generator: Generator, folder: Path, name: str, *, seed: int, truncation_psi: float, batch_size: int
) -> None:
    """Write `NAME_samples.png`, the same with psi 0.7, and `NAME_mixing.png`."""
    for psi, suffix in ((truncation_psi, ""), (GRID_PSI, f"_psi{GRID_PSI}")):
        save_samples(
            generator,
            folder / f"{name}_samples{suffix}.png",
            seed=seed,
            truncation_psi=psi,
            batch_size=batch_size,
        )
    save_mixing(generator, folder / f"{name}_mixing.png", seed=seed, truncation_psi=truncation_psi)


def save_grid(pictures: Sequence[Image.Image], path: Path) -> None:
    """Put pictures of one size edge to edge, 8 in a row, as they are unless they are larger than 256 px.

    Raises:
        ValueError: If there is none.
    """
    if not pictures:
        raise ValueError("`pictures` must hold at least one picture, got none.")
    cell = min(pictures[0].width, CELL)
    rows = -(-len(pictures) // GRID)
    grid = Image.new("RGB", (cell * min(GRID, len(pictures)), cell * rows), "white")
    for i, picture in enumerate(pictures):
        small = picture if picture.width == cell else picture.resize((cell, cell), Image.Resampling.LANCZOS)
        grid.paste(small, (i % GRID * cell, i // GRID * cell))
    save_image(grid, path)


def save_samples(generator: Generator, path: Path, *, seed: int, truncation_psi: float, batch_size: int) -> None:
    """The first 64 samples, uncurated."""
    numbers = range(GRID**2)
    parts = [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]
    drawn = [draw_samples(generator, part, seed=seed, truncation_psi=truncation_psi) for part in parts]
    save_grid([picture for images in drawn for picture in to_pil(images)], path)


@torch.no_grad()
def save_mixing(generator: Generator, path: Path, *, seed: int, truncation_psi: float) -> None:
    """Samples A down the left, others B along the top: inside, A with the coarse, the middle or the fine layers of B.

    The ranges are StyleGAN's (`latents.layer_ranges`); noise is the generator's own.
    """
    w_plus = sample_w_plus(generator, range(2 * MIXED), seed=seed, truncation_psi=truncation_psi)
    a, b = w_plus.chunk(2)
    columns = [Column("", "A", [None, *_draw(generator, a)])]
    for name, layers in latents.layer_ranges(generator.config.resolution).items():
        if layers[0] == layers[1]:
            continue
        for i, top in enumerate(_draw(generator, b)):
            mixed = _draw(generator, mix_styles(a, b[i : i + 1], layers=layers))
            columns.append(Column(f"{name} layers of B, the others of A", f"B {i + 1}", [top, *mixed]))
    save_figure(columns, path)


def _draw(generator: Generator, w_plus: Tensor) -> list[Image.Image]:
    return to_pil(generator.synthesis(w_plus))


def save_nearest(
    samples: Tensor,
    sample_features: Mapping[str, Tensor],
    data_features: Mapping[str, Tensor],
    paths: Sequence[Path],
    path: Path,
) -> None:
    """Samples, and beside each the data that lie nearest to it: copies would show that a generator memorises.

    Args:
        samples: (n, 3, R, R), RGB, in [-1, 1].
        sample_features: Their features by network, (n, D) each.
        data_features: Features of the data, (N, D) each.
        paths: The data, in the same order.
        path: The picture to write.
    """
    columns = [Column("", "sample", to_pil(samples))]
    for name, features in sample_features.items():
        distances = torch.cdist(features, data_features[name])
        nearest = distances.topk(min(NEIGHBOURS, len(paths)), largest=False).indices  # (n, k)
        for rank, chosen in enumerate(nearest.T.tolist()):
            pictures = [to_pil(read_picture(paths[i], samples.shape[-1]))[0] for i in chosen]
            columns.append(Column(f"nearest data ({name})", f"{rank + 1}", pictures))
    save_figure(columns, path)
