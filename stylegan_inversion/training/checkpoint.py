"""Checkpoints of a training run: one safetensors file each, written whole or not at all, and never a pickle."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan_inversion import storage
from stylegan_inversion.errors import CheckpointError

logger = logging.getLogger(__name__)

_STATE = "state"
# What may differ between a run and its continuation: what changes no step, and the ways out of a divergence
FREE = {
    *("optimizer.lr", "optimizer.max_grad_norm", "mixed_precision", "compile", "output", "num_workers", "cpu"),
    *("log_every", "image_every", "validate_every", "checkpoint_every", "trackers"),
    *("data", "sources"),  # a folder may move; the names of its pictures are compared
}
LOUD = {"optimizer.lr", "optimizer.max_grad_norm", "mixed_precision", "compile"}  # changes that are logged


def write_checkpoint(state: Mapping[str, Any], folder: Path, *, step: int) -> Path:
    """Write `FOLDER/step-00001000.safetensors` and remove all but the newest two.

    `state` holds nested dicts, lists and tuples of tensors, numbers, texts and None, such as `state_dict()`s.

    Raises:
        CheckpointError: If a tensor holds NaN or infinity, or the file cannot be written. The older ones stay.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten({"step": step, **state}, "", tensors)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"The state at step {step} is not saved: {key} holds NaN or infinity.")
    path = folder / f"step-{step:08d}.safetensors"
    storage.write_tensors(tensors, path, metadata={_STATE: json.dumps(tree)})
    for old in _newest_first(folder)[2:]:
        old.unlink(missing_ok=True)
    return path


def read_latest(folder: Path, *, sweep: bool = True) -> dict[str, Any] | None:
    """Read the newest whole checkpoint of a folder; `None` if the folder holds none.

    `sweep` removes what a killed run left half written; one process of a run does so.

    Raises:
        CheckpointError: If there are checkpoints and none of them can be read.
    """
    if sweep:
        storage.sweep(folder, older_than=0)
        for orphan in folder.glob(".tmp??????"):  # safetensors' own
            orphan.unlink(missing_ok=True)
    paths = _newest_first(folder)
    for path in paths:
        try:
            return read_checkpoint(path)
        except CheckpointError as e:
            logger.warning("%s; taking the one before.", e)
    if paths:
        raise CheckpointError(
            f"None of the {len(paths)} checkpoints in {folder} can be read. Remove them to start again."
        )
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint: what `write_checkpoint` was given, and its `step`.

    Raises:
        CheckpointError: If the file is missing or damaged, or is not a checkpoint of a training run.
    """
    tensors, texts = storage.read_tensors(path), storage.read_header(path)[1]
    try:
        return dict(_unflatten(json.loads(texts[_STATE]), tensors))
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} is not a checkpoint of a training run, or damaged: {e!r}.") from e


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a nested structure into `tensors`; what is left is JSON."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone()  # safetensors refuses tensors that share memory
        return {"tensor": name}
    if isinstance(value, Mapping):  # keys of an optimizer's state are numbers; JSON's keys are texts
        return {"dict": [[key, _flatten(item, f"{name}/{key}".lstrip("/"), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    return value


def _unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unflatten(item, tensors) for item in tree]
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        if "tuple" in tree:
            return tuple(_unflatten(item, tensors) for item in tree["tuple"])
        return {key: _unflatten(item, tensors) for key, item in tree["dict"]}
    return tree


def compare_configs(
    output: Path, ours: dict[str, Any], theirs: dict[str, Any], *, defaults: dict[str, Any], extendable: bool
) -> None:
    """Refuse to go on with the run of a folder if its config is another; log what else has changed.

    An option that the version that began it did not have, or had as `None`, counts as its default.

    Raises:
        ValueError: If a field differs that changes the steps; `steps` may if the run is `extendable`.
    """
    ours, begun = _flat(ours), {key: value for key, value in _flat(theirs).items() if value is not None}
    theirs = _flat(defaults) | begun
    changed = [key for key in sorted(ours.keys() | theirs.keys()) if theirs.get(key) != ours.get(key)]
    for key in changed:
        if key not in FREE and not (key == "steps" and extendable):
            raise ValueError(
                f"{output} holds a run with {key}={theirs.get(key)!r}, and this one has {ours.get(key)!r}. Give this "
                "one another `output`, or remove that folder."
            )
    for key in changed:
        if key in LOUD:
            logger.warning("The run goes on with %s=%r instead of %r.", key, ours.get(key), theirs.get(key))


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Names as they are typed: `optimizer.lr`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat
