"""Directions that nobody named: GANSpace's and SeFa's, found from a generator in a second."""

import logging
import operator

import torch
from torch import Tensor

from stylegan_inversion.editing.directions import Direction, both_ways
from stylegan_inversion.editing.ganspace import fit_pca, name_components
from stylegan_inversion.editing.sefa import factorize
from stylegan_inversion.latents import random_source
from stylegan_inversion.models.generator import Generator

logger = logging.getLogger(__name__)

SAMPLES, CHUNK = 10_000, 1000  # of w, as StyleGAN2's projector takes; how many are mapped at once
SEFA_LAYERS = (2, 6)  # e4e's choice, style layers
SEFA_REACH = 0.8  # of the spread of w


@torch.no_grad()
def find_components(generator: Generator, *, count: int = 6, seed: int = 0) -> dict[str, list[Direction]]:
    """Find GANSpace's and SeFa's first directions of a generator, with ranges in which it still draws faces.

    Args:
        generator: Its mapping network gives the w, its affine layers the weights.
        count: How many of each at most.
        seed: Of z, which is drawn on the CPU.

    Returns:
        "GANSpace": the widest principal components of W, all layers, to 2 standard deviations on both sides. "SeFa":
        the eigenvectors of the affine layers 2 to 5, which alone they move, to 0.8 of the spread of w, the root of
        the mean squared distance from its average: w hardly varies along them, so their own deviation would show
        nothing. A group is left out if the generator has none, as one of equal w.
    """
    count = operator.index(count)
    rng = random_source(seed)
    z = torch.randn(SAMPLES, generator.config.z_dim, generator=rng, device="cpu", dtype=torch.float32)
    w = torch.cat([generator.mapping(chunk.to(generator.w_avg)).cpu().float() for chunk in z.split(CHUNK)])
    groups = {}
    for title, find in (("GANSpace", _ganspace), ("SeFa", _sefa)):
        try:
            groups[title] = find(generator, w, count)
        except ValueError as e:
            logger.warning("The generator has no directions of %s: %s", title, e)
    return groups


def _ganspace(generator: Generator, w: Tensor, count: int) -> list[Direction]:
    return name_components(fit_pca(w, min(count, w.shape[1])))


def _sefa(generator: Generator, w: Tensor, count: int) -> list[Direction]:
    start, stop = SEFA_LAYERS
    weights = [conv.affine.weight for conv in generator.synthesis.convs[start:stop]]
    vectors, _ = factorize(weights, min(count, w.shape[1]))
    spread = w.var(dim=0).sum().sqrt().item()
    return [
        Direction.from_vector(
            f"sefa_{k}",
            vector,
            layers=(start, start + len(weights)),
            strength_range=both_ways(SEFA_REACH * spread),
            description=f"Number {k} of the changes that this generator's weights amplify most. Nobody named it.",
        )
        for k, vector in enumerate(vectors, 1)
    ]
