"""Playing with inversions: faces from z, style mixing of two people, frames between two faces, unnamed directions.

Functions over `InversionOutput`; none of them changes what it is given.
"""

import copy
import dataclasses
import logging
import operator
import os
from collections.abc import Mapping
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from stylegan_inversion import storage
from stylegan_inversion.checkpoints.styleclip import direction_from_mapper
from stylegan_inversion.editing.directions import Direction, apply_directions, both_ways, restyle_generators
from stylegan_inversion.editing.ganspace import fit_pca, name_components
from stylegan_inversion.editing.mixing import mix_styles
from stylegan_inversion.editing.sefa import factorize
from stylegan_inversion.latents import broadcast, random_source, truncate
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.output import Base, InversionOutput, draw
from stylegan_inversion.preprocessing.image import to_pil

logger = logging.getLogger(__name__)
_Pipeline = TypeVar("_Pipeline", bound=InversionPipeline)

MAX_TRUNCATION = 2.0  # beyond it generators draw no faces
SAMPLES, CHUNK = 10_000, 1000  # of w, as StyleGAN2's projector takes; how many are mapped at once
SEFA_LAYERS = (2, 6)  # e4e's choice, style layers
SEFA_REACH = 0.8  # of the spread of w


@torch.no_grad()
def sample_face(pipeline: InversionPipeline, *, seed: int = 0, truncation: float = 0.7) -> InversionOutput:
    """Draw a random face from z, as an output that can be edited, mixed and saved like any inversion.

    Args:
        pipeline: Its generator draws.
        seed: Seed of z, which is drawn on the CPU: the same face on every device.
        truncation: w is w_avg + truncation (mapping(z) - w_avg): 0 is the average face, 1 the generator's own variety.

    Returns:
        One output; its crop and its photo are the drawn picture itself, its report says `seed` and `truncation`.

    Raises:
        ValueError: If `seed` is outside [0, 2**63) or `truncation` outside [0, 2].
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must be in [0, 2**63), got {seed}.")
    if not 0 <= truncation <= MAX_TRUNCATION:  # NaN is not either
        raise ValueError(f"`truncation` must be in [0, {MAX_TRUNCATION:g}], got {truncation}; 0.7 is usual.")
    generator = pipeline.generator
    w = broadcast(generator.sample_w(1, random_source(seed)), generator.num_ws)
    w_plus = truncate(w, generator.w_avg, truncation_psi=float(truncation)).cpu().float()
    (image,) = images = to_pil(pipeline.domain.without_bars(draw([generator], w_plus)))
    report = {"seed": int(seed), "truncation": float(truncation)}
    base, crop = Base(generator, pipeline.base_name), pipeline.domain.crop(image, image.width)
    return InversionOutput(images, images, w_plus, [generator], [crop], {}, [report], base)


def mix_outputs(
    a: InversionOutput, b: InversionOutput, *, layers: tuple[int, int] | None = None, alpha: float = 1.0
) -> InversionOutput:
    """Give some layers of one face to another: coarse ones are pose and shape, fine ones colours (style mixing).

    Args:
        a: One photo: keeps its generator, crop, edits and its other layers.
        b: One photo of the same model, as edited: gives the layers. Its tuned generator, if any, is not used.
        layers: Half-open range `(start, stop)` of style layers; `latents.layer_ranges` names three. `None` takes all.
        alpha: Weight of b in these layers: 0 keeps a, 1 takes b.

    Returns:
        One output. Without edits it is still `a`, so `paste_back` puts the mix into the photo of `a`.

    Raises:
        ValueError: If `a` or `b` is not one photo, they are of different models, or `layers` or `alpha` do not fit.
    """
    _check(a=a, b=b)
    w_plus = mix_styles(a.w_plus, b.w_plus, layers=layers, alpha=alpha)
    images = to_pil(draw(a.generators, w_plus, rows=a.images[0].height))
    return dataclasses.replace(a.unrepeatable, images=images, w_plus=w_plus, w_inverted=a.w_unedited)


def with_mappers(
    pipeline: _Pipeline, mappers: Mapping[str, str | os.PathLike[str]] | None, w_plus: Tensor
) -> _Pipeline:
    """Give a copy of a pipeline, which shares its networks, the directions of StyleCLIP's mapper files for one code.

    See `direction_from_mapper`, whose errors it raises; `mappers` holds the files by the directions' names.
    """
    made = copy.copy(pipeline)
    found = {name: direction_from_mapper(path, w_plus, name=name) for name, path in (mappers or {}).items()}
    made.directions = pipeline.directions | found
    return made


def check_edits(
    pipeline: InversionPipeline,
    strengths: Mapping[str, float],
    mappers: Mapping[str, str | os.PathLike[str]] | None = None,
) -> None:
    """Raise what an edit would raise, before the long work of an inversion."""
    code = pipeline.generator.w_avg.float().expand(1, pipeline.generator.num_ws, -1)
    apply_directions(code, with_mappers(pipeline, mappers, code).directions, strengths=strengths)


@torch.no_grad()
def interpolate_outputs(a: InversionOutput, b: InversionOutput, *, steps: int) -> list[Image.Image]:
    """Turn one face into another: w_plus moves on a line, and so do all weights and the noise of tuned generators.

    Two tuned generators come from the same one and differ little, so what lies between them draws faces too. Where only
    one of the two draws on the features of its photo, the pictures are faded into each other.

    Args:
        a: One photo, edited or not: the first frame.
        b: One photo of the same model, edited or not: the last frame.
        steps: How many frames, at least 2.

    Returns:
        RGB, R x R, `steps` of them. The first is `a.images[0]`, the last `b.images[0]`, drawn again.

    Raises:
        ValueError: If `a` or `b` is not one photo, they are of different models, or there are too few steps.
    """
    _check(steps, a=a, b=b)
    first, last = a.generator.unstyled, b.generator.unstyled
    none = torch.zeros(sum(first.config.style_sizes), dtype=torch.float64)
    offsets = [none if each.style_offset is None else each.style_offset for each in (a.generator, b.generator)]
    between = first if first is last else copy.deepcopy(first)
    here, there = storage.plain_state_dict(first), storage.plain_state_dict(last)
    frames, rows = [], a.images[0].height
    for share in (step / (steps - 1) for step in range(steps)):
        w_plus = a.w_plus.lerp(b.w_plus, share)
        styles = offsets[0].lerp(offsets[1], share)
        if here.keys() != there.keys():
            ends = [draw([each.with_styles(styles)], w_plus, rows=rows) for each in (first, last)]
            frames += to_pil(ends[0].lerp(ends[1], share))
            continue
        if between is not first:
            for name, tensor in storage.plain_state_dict(between).items():
                if tensor.is_floating_point():
                    torch.lerp(here[name], there[name].to(here[name]), share, out=tensor)
        frames += to_pil(draw([between.with_styles(styles)], w_plus, rows=rows))
    return frames


def edit_frames(
    pipeline: InversionPipeline, out: InversionOutput, strengths: Mapping[str, float], *, steps: int
) -> list[Image.Image]:
    """Let an edit grow: from the face as it is given to `pipeline.edit(out, **strengths)`, all directions at once.

    Args:
        pipeline: Has the directions.
        out: One photo, usually not edited yet.
        strengths: Strength of the last frame, by direction, each in its unit, from `out` on.
        steps: How many frames, at least 2.

    Returns:
        RGB, R x R, `steps` of them.

    Raises:
        ValueError: If `out` is not one photo, a direction is unknown or a strength not finite, or there are too few
            steps.
    """
    _check(steps, out=out)
    last = apply_directions(out.w_plus, pipeline.directions, strengths=strengths)
    frames = []
    for share in (step / (steps - 1) for step in range(steps)):
        part = {name: share * strength for name, strength in strengths.items()}
        generators = restyle_generators(out.generators, pipeline.directions, strengths=part)
        frames += to_pil(draw(generators, out.w_plus.lerp(last, share), rows=out.images[0].height))
    return frames


def _check(steps: int = 2, **outputs: InversionOutput) -> None:
    if steps < 2:
        raise ValueError(f"`steps` must be >= 2, the first and the last frame, got {steps}.")
    for name, out in outputs.items():
        if len(out) != 1:
            raise ValueError(f"`{name}` must be one photo, got {len(out)}: take one of them, such as `{name}[0]`.")
    first, *others = outputs.values()
    if not all(first.generator.has_the_w_of(out.generator) for out in others):
        raise ValueError(
            "`a` and `b` must be of the same model, but the sizes of their generators or their average w differ: "
            f"{[out.generator.config for out in outputs.values()]}. Invert both photos with one model."
        )


def find_components(generator: Generator, *, count: int = 6, seed: int = 0) -> dict[str, list[Direction]]:
    """Find GANSpace's and SeFa's first directions of a generator, with ranges in which it still draws faces.

    Args:
        generator: Its mapping network gives the w, its affine layers the weights.
        count: How many of each at most.
        seed: Seed of z, which is drawn on the CPU.

    Returns:
        "GANSpace": the widest principal components of W, all layers, to 2 standard deviations on both sides. "SeFa":
        the eigenvectors of the affine layers 2 to 5, the only ones they move, to 0.8 of the spread of w, the root of
        the mean squared distance from its average: w hardly varies along them, so their own deviation would show
        nothing. A group is left out if the generator has none, as one whose w are all equal.
    """
    count = min(operator.index(count), generator.config.w_dim)
    w = generator.sample_w(SAMPLES, random_source(seed), at_once=CHUNK).cpu().float()
    groups = {}
    finds = {"GANSpace": lambda: name_components(fit_pca(w, count)), "SeFa": lambda: _sefa(generator, w, count)}
    for title, find in finds.items():
        try:
            groups[title] = find()
        except ValueError as e:
            logger.warning("The generator has no directions of %s: %s", title, e)
    return groups


def _sefa(generator: Generator, w: Tensor, count: int) -> list[Direction]:
    start, stop = SEFA_LAYERS
    weights = [conv.affine.weight for conv in generator.synthesis.convs[start:stop]]
    vectors, _ = factorize(weights, count)
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
