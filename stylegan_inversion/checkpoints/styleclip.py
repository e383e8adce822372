"""StyleCLIP's latent mappers: small networks that say which way one code must go to show what a text says.

Paper: Patashnik et al. 2021, arXiv:2103.17249, section 5. Original code: orpatashnik/StyleCLIP (MIT). Own code. A file
holds `mapper.{course,medium,fine}_mapping.mapping.{1..4}.{weight,bias}`, some of the three perhaps missing, or
`mapper.mapping.mapping.*` for all layers, beside the generator (`decoder.*`), which is not read.
"""

import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion import ops, storage
from stylegan_inversion.checkpoints.find import find_file
from stylegan_inversion.checkpoints.read import read_checkpoint
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.errors import CheckpointError

LEVELS = {"mapping": (0, None), "course_mapping": (0, 4), "medium_mapping": (4, 8), "fine_mapping": (8, None)}
_LAYERS, _LR_MULTIPLIER = 4, 0.01


def direction_from_mapper(
    source: str | os.PathLike[str],
    w_plus: Float[Tensor, "1 num_ws w_dim"],
    *,
    name: str,
    strength_range: tuple[float, float] | None = (0.0, 0.1),
) -> Direction:
    """Read a mapper's `.pt` file, and make the direction in which it moves one code. Nothing in the file is executed.

    A mapper's step depends on the code, so the direction is for this photo alone: another photo needs another one.

    Args:
        source: The file: a path or an hf:// address.
        w_plus: The inversion's code, before any edit: `out.w_unedited` of one photo.
        name: What changes, as a Python identifier.
        strength_range: 0.1 to 0.18 at most for the published ones; strength 1 adds all that the mapper gives.

    Returns:
        One vector for each layer; its unit makes strengths the papers' own.

    Raises:
        ModelNotFoundError: If there is no such file.
        CheckpointError: If it holds no mapper, or one of another W.
        ValueError: If `w_plus` is not the code of one photo.
    """
    if w_plus.ndim != 3 or len(w_plus) != 1:
        raise ValueError(f"`w_plus` must be (1, num_ws, w_dim), of one photo, got {tuple(w_plus.shape)}.")
    path = find_file(source)
    checkpoint = read_checkpoint(path)
    found = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    pairs = found.items() if isinstance(found, dict) else ()
    state = {str(key): value for key, value in pairs if isinstance(value, Tensor)}
    step = torch.zeros_like(w_plus, dtype=torch.float32)
    for level, (start, stop) in LEVELS.items():
        prefix = f"mapper.{level}.mapping."
        if tensors := storage.under(state, prefix):
            step[:, start:stop] = _map(tensors, w_plus[:, start:stop].float(), f"{path}: {prefix}")
    if not step.any():
        raise CheckpointError(f"{path} holds no mapper of StyleCLIP: no tensor is called mapper.*_mapping.mapping.*.")
    text = f"What {path.stem}, a mapper of StyleCLIP, does to this photo."
    return Direction.from_vector(name, step[0], strength_range=strength_range, description=text, unit=None)


@torch.no_grad()
def _map(tensors: Mapping[str, Tensor], x: Tensor, where: str) -> Tensor:
    """Run one network on some layers of a code, (1, layers, w_dim)."""
    x = x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()  # over the layers, as the original code does
    x, w_dim = x[0], x.shape[-1]  # (layers, w_dim)
    for k in range(1, _LAYERS + 1):
        weight, bias = (tensors.get(f"{k}.{kind}", torch.empty(0)).to(x) for kind in ("weight", "bias"))
        if weight.shape != (w_dim, w_dim) or bias.shape != (w_dim,):
            raise CheckpointError(f"{where}{k} is missing, or not of w of {w_dim} numbers.")
        x = ops.bias_act(F.linear(x, weight * (_LR_MULTIPLIER / w_dim**0.5)), bias * _LR_MULTIPLIER)
    if not x.isfinite().all():
        raise CheckpointError(f"{where} gives NaN or infinity.")
    return x
