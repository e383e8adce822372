"""A pipeline from one foreign checkpoint, and directions from foreign files."""

import abc
import logging
import operator
import os
from typing import ClassVar, Literal

import torch
from typing_extensions import Self

from stylegan_inversion.checkpoints.direction import direction_from_official
from stylegan_inversion.checkpoints.known import known_entry
from stylegan_inversion.checkpoints.papers import with_directions
from stylegan_inversion.checkpoints.recognise import SingleFile, read_single_file
from stylegan_inversion.editing.directions import Direction, layer_slice
from stylegan_inversion.editing.ganspace import name_components
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines.device import find_device
from stylegan_inversion.pipelines.official import find_file, read_networks
from stylegan_inversion.preprocessing.landmarks import LandmarkDetector

logger = logging.getLogger(__name__)


class SingleFilePipeline(abc.ABC):
    """What is built of the field's own files; `PretrainedPipeline` adds this package's format."""

    generator: Generator
    directions: dict[str, Direction]
    crop_scale: float
    _detector: LandmarkDetector | Literal["auto", "builtin", "facexlib"]
    _encoder_kind: ClassVar[str | None] = None  # which encoder of a foreign file it needs

    @abc.abstractmethod
    def to(
        self,
        *args: torch.device | torch.dtype | str | int | None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Move every network to a device, a floating-point type or both."""

    @classmethod
    def _check_dtype(cls, dtype: torch.dtype | None) -> None:
        if dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be a floating-point type such as torch.bfloat16, got {dtype}.")

    @classmethod
    def from_single_file(
        cls,
        source: str | os.PathLike[str],
        *,
        sha256: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: torch.dtype | None = None,
        crop_scale: float = 1.0,
        device: torch.device | str | None = None,
        detector: LandmarkDetector | Literal["auto", "builtin", "facexlib"] = "auto",
        perceptual: PerceptualDistance | str | None = None,
    ) -> Self:
        """Load a pipeline from one official checkpoint: pSp's, e4e's, rosinality's, NVIDIA's, PTI's.

        Nothing in the file is executed: it is read by our own reader, in a process with limits. Sizes are read from
        the tensors. `save_pretrained` then writes safetensors. A generator for FFHQ at 1024 px brings the papers'
        directions, which are fetched once (0.2 MB).

        Args:
            source: A path; "hf://organisation/repository/file"; or an "https://" address, with its `sha256`.
            sha256: Of the file, to be checked.
            token: Access token for the Hub.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.
            force_download: Download again.
            dtype: As in `from_pretrained`.
            crop_scale: Side of the face crop relative to FFHQ's, which the file does not say.
            device: As in `from_pretrained`.
            detector: As in `from_pretrained`.
            perceptual: As in `from_pretrained`.

        Raises:
            ModelNotFoundError: If there is no such file, or it cannot be fetched.
            CheckpointError: If it cannot be read, is not supported, or lacks what this pipeline needs.
            MissingDependencyError: As in `from_pretrained`.
            ValueError: If the address, the device, the dtype or the perceptual network is invalid.
        """
        cls._check_dtype(dtype)
        device = find_device(device)
        path = find_file(
            source,
            sha256=sha256,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        file = read_networks(path, encoder=cls._encoder_kind)
        file = with_directions(
            file, path, entry=known_entry(source), cache_dir=cache_dir, local_files_only=local_files_only
        )
        for note in file.notes:
            logger.warning("%s: %s", path.name, note)
        pipeline = cls._from_file(file, perceptual)
        pipeline.directions = dict(file.directions)
        pipeline.crop_scale = crop_scale
        pipeline._detector = detector
        return pipeline.to(device, dtype)

    @classmethod
    @abc.abstractmethod
    def _from_file(cls, file: SingleFile, perceptual: PerceptualDistance | str | None) -> Self:
        """Build the pipeline of the networks of a foreign file."""

    def load_direction(
        self, path: str | os.PathLike[str], name: str, *, description: str = "", unit: float | None = None
    ) -> Direction:
        """Add a direction of the field: a `.npy` or `.pt`, of InterFaceGAN, e4e, PTI and others. Nothing is executed.

        The file may hold one vector for all layers, or one a layer, in one row too, of any norm; also in a dictionary.

        Args:
            path: The file: a path, an hf:// address, or a name of the catalogue.
            name: What changes, as a Python identifier: `edit` knows it by this. Of several in a dictionary, the one of
                this name is taken.
            description: Where it comes from.
            unit: How far strength 1 goes in W, > 0. `None` means the norm of the file: a strength is then the factor of
                the papers' code, which adds factor times what the file holds.

        Raises:
            ModelNotFoundError: If there is no such file.
            CheckpointError: If it is no direction, or none of this generator's W.
            ValueError: If `name` is no identifier, or `unit` is not positive.
        """
        file = read_single_file(find_file(os.fspath(path)))
        vectors = {name: file.vectors[name]} if name in file.vectors else file.vectors
        if file.kind != "direction" or len(vectors) != 1:
            way = " `load_components` takes GANSpace's files." if file.kind == "ganspace" else ""
            if vectors:
                way = f" It holds {', '.join(vectors)}: say which by `name`."
            raise CheckpointError(f"{path} holds no single direction (found: {file.kind}).{way}")
        (vector,) = vectors.values()
        w_dim, entry = self.generator.config.w_dim, known_entry(path)
        direction = direction_from_official(
            vector,
            name=name,
            description=description or (entry.description if entry is not None else ""),
            strength_range=entry.strength_range if entry is not None and unit is None else None,
            unit=unit,
            w_dim=w_dim,
        )
        sizes = (w_dim,), (self.generator.num_ws, w_dim)
        if tuple(direction.vector.shape) not in sizes:
            found, (one, all_layers) = tuple(direction.vector.shape), sizes
            raise CheckpointError(f"{path} holds a direction of shape {found}; it must be {one} or {all_layers}.")
        self.directions[name] = direction
        return direction

    def load_components(
        self,
        path: str | os.PathLike[str],
        *,
        count: int = 10,
        name: str = "ganspace",
        layers: tuple[int, int] | None = None,
    ) -> list[Direction]:
        """Add GANSpace's components, a `.pt` as e4e and PTI ship them, as directions. Nothing in it is executed.

        `edit(out, ganspace_1=...)` steps along one, in units of the unit-norm direction, and its range is two standard
        deviations. GANSpace's own edit, which sets a coordinate, is `editing.ganspace.set_coordinate`.

        Args:
            path: As in `load_direction`.
            count: How many at most, the widest first.
            name: What they are called: name_1, name_2, and so on; a Python identifier.
            layers: Half-open range of the style layers that they move. `None` moves all.

        Raises:
            ModelNotFoundError: If there is no such file.
            CheckpointError: If it holds no components, or none of this generator's W.
            ValueError: If `count`, `name` or `layers` is out of range.
        """
        if count < 1:
            raise ValueError(f"`count` must be at least 1, got {count}.")
        if layers is not None:
            layer_slice(layers, self.generator.num_ws)
        file = read_single_file(find_file(os.fspath(path)))
        if file.components is None:
            raise CheckpointError(f"{path} holds no components of GANSpace (found: {file.kind}).")
        w_dim = self.generator.config.w_dim
        if file.components.components.shape[1] != w_dim:
            found = file.components.components.shape[1]
            raise CheckpointError(f"{path} holds components of {found} numbers; this generator's w have {w_dim}.")
        directions = name_components(file.components.first(operator.index(count)), name=name, layers=layers)
        self.directions |= {direction.name: direction for direction in directions}
        return directions
