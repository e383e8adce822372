"""What a comparison is done with, checked before the first image, and written down so that records can be trusted."""

import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stylegan_inversion import __version__
from stylegan_inversion.editing.directions import Direction, apply_directions
from stylegan_inversion.evaluation import metrics
from stylegan_inversion.evaluation.editability import edit_strengths
from stylegan_inversion.evaluation.face_scores import load_face_scorer
from stylegan_inversion.evaluation.methods import Method, describe, hash_json, hash_tensors
from stylegan_inversion.evaluation.plot import check_matplotlib
from stylegan_inversion.evaluation.scoring import Edit, FaceScores, Scoring
from stylegan_inversion.losses.identity import load_identity
from stylegan_inversion.losses.lpips import load_perceptual

FORMAT = 1  # of a record; goes up when a figure gets another meaning, and old records are done again


def load_scoring(
    methods: Mapping[str, Method],
    edits: Sequence[str],
    *,
    perceptual: str,
    identity: str | None,
    attributes: FaceScores | None,
    resolution: int | None,
    batch_size: int,
    num_strengths: int,
) -> Scoring:
    """Load what every method is measured with, and check that it fits them; see `benchmark.evaluate`.

    Raises:
        ValueError: If an argument is wrong.
        MissingDependencyError: If matplotlib is not installed.
    """
    _check_methods(methods)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be >= 1, got {batch_size}.")
    pipeline = next(iter(methods.values())).pipeline
    device, side = pipeline.device, resolution or pipeline.generator.config.resolution
    black = torch.zeros(1, 3, side, side, device=device)
    metrics.ms_ssim(black, black)  # whether the size is possible
    directions = _find_directions(methods, edits)
    if directions:
        check_matplotlib()
        if identity is None:
            raise ValueError("`edits` are measured by what they cost in identity: give `identity`, or no edits.")
        attributes = attributes or load_face_scorer(device=device)
        scored = sorted(attributes(black))
        for name in directions:
            if name not in scored:
                raise ValueError(f"There is no score for the edit {name!r}; there are {', '.join(scored)}.")
    return Scoring(
        perceptual=load_perceptual(perceptual, device=device),
        identity=None if identity is None else load_identity(identity, device=device),
        attributes=attributes,
        edits={name: Edit(d.to(device), edit_strengths(d, num_strengths)) for name, d in directions.items()},
        resolution=side,
        crop_scale=pipeline.crop_scale,
        batch_size=batch_size,
    )


def _check_methods(methods: Mapping[str, Method]) -> None:
    if not methods:
        raise ValueError("`methods` must hold at least one method, got none.")
    for name in methods:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ValueError(f"The name of a method must be letters, digits and . + - only, got {name!r}.")
    first, *others = [
        (m.pipeline.generator.config.resolution, m.pipeline.crop_scale, str(m.pipeline.device))
        for m in methods.values()
    ]
    for name, other in zip(list(methods)[1:], others):
        if other != first:
            raise ValueError(
                f"`methods` must share resolution, crop scale and device, to be compared on the same pictures; "
                f"{next(iter(methods))!r} has {first}, {name!r} has {other}."
            )


def _find_directions(methods: Mapping[str, Method], edits: Sequence[str]) -> dict[str, Direction]:
    found: dict[str, Direction] = {}
    for name, method in methods.items():
        pipeline = method.pipeline
        codes = torch.zeros(1, pipeline.generator.num_ws, pipeline.generator.config.w_dim)
        apply_directions(codes, pipeline.directions, strengths=dict.fromkeys(edits, 0.0))
        for edit in edits:
            direction = pipeline.directions[edit]
            if not torch.equal(found.setdefault(edit, direction).step.cpu(), direction.step.cpu()):
                raise ValueError(f"`methods` must share their directions; {edit!r} of {name!r} is another vector.")
    return found


def configure(methods: Mapping[str, Method], scoring: Scoring, *, align: bool) -> dict[str, Any]:
    """The settings in JSON; each method has a "key" that changes with all that its records depend on."""
    identity = scoring.identity
    measured = {
        "format": FORMAT,
        "align": align,
        "resolution": scoring.resolution,
        "crop_scale": scoring.crop_scale,
        "device": _device_name(next(iter(methods.values())).pipeline.device),
        "perceptual": scoring.perceptual.name,
        "perceptual_sha256": hash_tensors(scoring.perceptual.state_dict()),
        "identity": None if identity is None else identity.name,
        "identity_sha256": hash_tensors(identity.state_dict()) if isinstance(identity, nn.Module) else None,
        "attributes": _attributes_name(scoring),
        "directions": {
            name: [hash_tensors({"vector": edit.direction.step}), edit.direction.layers, edit.strengths]
            for name, edit in scoring.edits.items()
        },
    }
    entries = {}
    for name, method in methods.items():
        described = describe(method)
        key = hash_json([measured, described])[:16]
        entries[name] = {"label": method.label or name, "limit": method.limit, "key": key, **described}
    return {
        **measured,
        "version": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "batch_size": scoring.batch_size,
        "psnr_peak": metrics.PSNR_PEAK,
        "ms_ssim_scales": metrics.ms_ssim_scales(scoring.resolution),
        "methods": entries,
        "metrics": _columns(scoring),
        "edits": {name: list(edit.strengths) for name, edit in scoring.edits.items()},
    }


def _columns(scoring: Scoring) -> dict[str, str]:
    """Key of each figure in a record -> its name in tables, with all that it must not be mistaken for."""
    columns = {
        "l2": "L2",
        "psnr": f"PSNR (peak {metrics.PSNR_PEAK:g})",
        "ms_ssim": f"MS-SSIM ({metrics.ms_ssim_scales(scoring.resolution)} scales)",
        "lpips": f"LPIPS ({scoring.perceptual.name})",
    }
    if scoring.identity is not None:
        columns["identity"] = f"ID ({scoring.identity.name})"
    columns["offset_norm"] = "offset norm"
    columns |= {f"lec_{name}": f"LEC ({name} {edit.far:+g})" for name, edit in scoring.edits.items()}
    return columns | {"seconds": "s/image"}


def _attributes_name(scoring: Scoring) -> str | None:
    """What tells one face scorer from another: its weights, or the function's name."""
    scorer = scoring.attributes
    if scorer is None or isinstance(scorer, nn.Module):
        return None if scorer is None else hash_tensors(scorer.state_dict())
    return f"{type(scorer).__module__}.{getattr(scorer, '__qualname__', type(scorer).__qualname__)}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"
