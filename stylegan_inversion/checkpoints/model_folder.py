"""What a foreign file holds -> a folder in our own format, which `from_pretrained`, `train` and `evaluate` read."""

import logging
from pathlib import Path
from typing import Any, cast

from torch import nn

from stylegan_inversion import __version__, hub
from stylegan_inversion.checkpoints.direction import direction_from_official
from stylegan_inversion.checkpoints.part import SingleFile
from stylegan_inversion.editing.directions import save_directions
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig, WEncoder
from stylegan_inversion.preprocessing.sources import LabelSource, PhotoSource, SketchSource, Source, to_config

logger = logging.getLogger(__name__)

_PIPELINES = {"psp": "PSPPipeline", "e4e": "E4EPipeline", "restyle": "ReStylePipeline"}


def source_of(encoder: nn.Module) -> Source:
    """What an encoder of the papers reads, by its channels: photos, sketches, or label maps."""
    channels = cast(PyramidEncoderConfig, cast(Any, encoder).config).in_channels
    if channels == 3:
        return PhotoSource()
    return SketchSource() if channels == 1 else LabelSource(channels)


def write_model(file: SingleFile, folder: Path, *, name: str = "direction", crop_scale: float = 1.0) -> Path:
    """Write what a foreign file holds in our own format: a model that `from_pretrained` and `train` read.

    Args:
        file: What was read.
        folder: Made if needed. A network for face identity or MoCo fills the folder itself; directions go there too.
        name: Of a direction, as a Python identifier: the file does not tell.
        crop_scale: Side of the face crop relative to FFHQ's, for the pipeline: the file does not tell.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the file holds nothing that can be kept so, or a file cannot be written.
    """
    if file.kind == "direction":
        vectors = file.vectors if len(file.vectors) > 1 else {name: next(iter(file.vectors.values()))}
        save_directions({key: direction_from_official(v, name=key) for key, v in vectors.items()}, folder)
        return folder
    for alone in ("identity", "moco"):
        if alone in file.parts:
            hub.save_module(file.parts[alone].build(), folder)
            return folder
    if "generator" not in file.parts:
        raise CheckpointError(f"A file of kind {file.kind} has no form in a folder: its parts are read where they are.")
    config: dict[str, Any] = {"_class_name": "PTIPipeline", "crop_scale": crop_scale}
    with hub.write_together(folder) as stage:
        for part, network in file.parts.items():
            module = network.build()
            folder_name = part
            if part == "encoder" and isinstance(module, WEncoder):
                logger.warning("The encoder into W is left out: no pipeline takes it.")
                continue
            if part == "encoder":
                folder_name = f"{file.kind}_encoder"
                config |= {"_class_name": _PIPELINES[file.kind], "source": to_config(source_of(module))}
            hub.save_module(module, stage / folder_name)
        if file.directions:
            save_directions(file.directions, stage / "directions")
        hub.write_config({**config, "_library_version": __version__}, stage)
    return folder
