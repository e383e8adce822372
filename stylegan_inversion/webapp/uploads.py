"""A model's folder from the files that a browser uploads, which come without their folders."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.encoders import ENCODERS

MAX_FILES = 32
MAX_BYTES = 2 * 2**30
CARD = "README.md"
_SUFFIXES = (".json", ".safetensors", ".md")
_FOLDERS = {"Generator": "generator", **{kind.network.__name__: kind.folder for kind in ENCODERS.values()}}
_LAYERS = {"generator": "synthesis.", "restyle_encoder": "backbone."}  # names in the weights; "pyramid." in the others


def rebuild_folder(files: Sequence[str | Path], folder: Path) -> Path:
    """Copy the files of a model to where they belong.

    What a `config.json` describes says which it is; weights belong to the config beside them. If the folders are lost,
    as through Gradio, they belong to the config that their names of layers fit; if two fit, as those of both encoders
    do, the first weights belong to the first config, since browsers list a folder in one order.

    Args:
        files: Their names count: `config.json`, `model.safetensors` and `README.md`; other JSON and text is left out.
        folder: Made; the model's.

    Returns:
        The folder. Whether its files fit is for the loader to say.

    Raises:
        ValueError: If a file is of another kind, a part is missing or there twice, or they are too many or too large.
        CheckpointError: If a file cannot be read.
    """
    paths = [Path(file) for file in files]
    _check_files(paths)
    configs: dict[str, Path] = {}
    for path in paths:
        if path.name == hub.CONFIG_NAME:
            part = _part_of(hub.read_config(path.parent))
            if part in configs:
                raise ValueError(
                    f"The folder holds two files {hub.CONFIG_NAME} of its {part or 'root'}: upload one model."
                )
            configs[part] = path
    for part, what in (("", "of the pipeline, at its root"), ("generator", "of its generator")):
        if part not in configs:
            raise ValueError(f"There is no {hub.CONFIG_NAME} {what}: upload a folder that `save_pretrained` wrote.")
    weights = _pair([path for path in paths if path.suffix == ".safetensors"], configs)
    cards = [path for path in paths if path.name == CARD]
    beside = [path for path in cards if path.parent == configs[""].parent]
    placed = {folder / part / hub.CONFIG_NAME: path for part, path in configs.items()}
    placed |= {folder / part / hub.WEIGHTS_NAME: path for part, path in weights.items()}
    if beside or cards:
        placed[folder / CARD] = (beside or cards)[0]
    for target, source in placed.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder


def _check_files(paths: Sequence[Path]) -> None:
    if not 0 < len(paths) <= MAX_FILES:
        raise ValueError(f"A model has 1 to {MAX_FILES} files, got {len(paths)}: upload a folder of `save_pretrained`.")
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{path.name!r} is no file.")
        if path.suffix not in _SUFFIXES or (path.suffix == ".safetensors" and path.name != hub.WEIGHTS_NAME):
            raise ValueError(
                f"{path.name!r} does not belong to a model: it has {hub.CONFIG_NAME}, {hub.WEIGHTS_NAME} and {CARD}. "
                "Leave it out; a checkpoint of another kind is converted with `stylegan-inversion convert`."
            )
    size = sum(path.stat().st_size for path in paths)
    if size > MAX_BYTES:
        raise ValueError(f"A model may have {MAX_BYTES / 1e9:.1f} GB, got {size / 1e9:.1f} GB. Save it in float16.")


def _part_of(config: dict[str, Any]) -> str:
    """The folder of a config inside the model; "" is the root."""
    name = config.get("_class_name")
    if isinstance(config.get("directions"), dict):
        return "directions"
    if "crop_scale" in config or str(name).endswith("Pipeline"):
        return ""
    if not isinstance(name, str) or name not in _FOLDERS:
        raise ValueError(
            f"A {hub.CONFIG_NAME} describes a {name!r}, which no pipeline has: leave it out, with its weights."
        )
    return _FOLDERS[name]


def _pair(weights: Sequence[Path], configs: dict[str, Path]) -> dict[str, Path]:
    """The weights of each part but the root."""
    names = {path: _names(path) for path in weights}
    parts = [part for part in configs if part]
    found: dict[str, Path] = {}
    for part in parts:
        beside = [path for path in weights if path.parent == configs[part].parent]
        if len(beside) == 1:
            found[part] = beside[0]
    for part in parts:
        fitting = [path for path in weights if path not in found.values() and _fits(part, configs[part], names[path])]
        if part not in found:
            if not fitting:
                raise ValueError(f"The {hub.WEIGHTS_NAME} of {part!r} is missing: upload the whole folder.")
            found[part] = fitting[0]
    if len(found) < len(weights):
        raise ValueError(f"A {hub.WEIGHTS_NAME} belongs to no {hub.CONFIG_NAME}: upload the whole folder, and no more.")
    return found


def _fits(part: str, config: Path, names: set[str]) -> bool:
    if part == "directions":
        return names == set(hub.read_config(config.parent)["directions"])
    return any(name.startswith(_LAYERS.get(part, "pyramid.")) for name in names)


def _names(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file."""
    try:
        return set(hub.read_header(path)[0])
    except CheckpointError as e:
        raise CheckpointError(str(e).replace(str(path), f"A {path.name}", 1)) from e
