"""A pipeline from a folder or the Hub, and back."""

import abc
import functools
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from typing_extensions import Self

from stylegan_inversion import __version__, hub
from stylegan_inversion.convert.direction import direction_from_official
from stylegan_inversion.convert.encoder_file import EncoderKind
from stylegan_inversion.convert.part import SingleFile
from stylegan_inversion.convert.single_file import read_single_file
from stylegan_inversion.editing.directions import Direction, load_directions, save_directions
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines.card import write_card
from stylegan_inversion.pipelines.official import find_file, find_known_model, is_known, read_networks
from stylegan_inversion.pipelines.saving import BaseName
from stylegan_inversion.preprocessing.landmarks import LandmarkDetector
from stylegan_inversion.remote.transfer import TIMEOUT, upload_folder

logger = logging.getLogger(__name__)

ModuleLoader = Callable[..., Any]
"""`hub.load_module` with the dtype and variant that were asked for."""

ModuleSaver = Callable[..., None]
"""`hub.save_module` with the dtype and variant that were asked for."""

_VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def find_device(name: torch.device | str | None) -> torch.device:
    """Check a device. "auto" is the best there is, `None` the CPU.

    Raises:
        ValueError: If this machine, or this build of PyTorch, has no such device.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in here.items() if available)
    try:
        device = torch.device(name or "cpu")
    except RuntimeError as e:
        raise ValueError(f"`device` must be auto, {', '.join(here)} or such as cuda:1, got {name!r}.") from e
    if not here.get(device.type, True):
        raise ValueError(f"`device` is {name!r}, which this machine or this build of PyTorch lacks. Take 'cpu'.")
    return device


class PretrainedPipeline(abc.ABC):
    """What is loaded, saved and published; `InversionPipeline` adds what it does."""

    generator: Generator
    directions: dict[str, Direction]
    crop_scale: float
    _detector: LandmarkDetector | Literal["auto", "builtin", "facexlib"]
    _encoder_kind: ClassVar[EncoderKind | None] = None  # which encoder of a foreign file it needs
    _name: BaseName | None = None  # where the generator came from

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move every network to a device, in place, and return the pipeline."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        timeout: float | None = TIMEOUT,
        device: torch.device | str | None = None,
        detector: LandmarkDetector | Literal["auto", "builtin", "facexlib"] = "auto",
    ) -> Self:
        """Load a pipeline from a folder, a built-in model ("faces64"), the Hugging Face Hub, or the catalogue.

        Args:
            name_or_path: A folder, a built-in model, "organisation/repository", or a checkpoint of the field in the
                catalogue: those with a copy on the Hub are fetched, verified and converted once; of the others the
                error says where they are.
            revision: Branch, tag or commit on the Hub.
            subfolder: Folder inside the model.
            token: Access token for the Hub.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.
            force_download: Download again.
            dtype: Floating-point type of the networks, such as `torch.bfloat16`. `None` means float32.
            torch_dtype: The old name of `dtype`.
            variant: Which weights, such as "fp16" for the files `model.fp16.safetensors`.
            timeout: Seconds that all downloads together may take. `None` sets no limit.
            device: Where to put it: "cpu", "cuda", "mps", or "auto" for the best there is. `None` means the CPU.
            detector: Finds faces: "auto", "builtin", "facexlib", or a callable.

        Raises:
            ModelNotFoundError: If there is no such model, or it lacks what this pipeline needs.
            CheckpointError: If a file is damaged or does not fit.
            ValueError: If this machine has no such device, or `dtype`, `variant` or `timeout` is out of range.
        """
        if torch_dtype is not None:
            warnings.warn("`torch_dtype` is now called `dtype`.", FutureWarning, stacklevel=2)
            dtype = dtype or torch_dtype
        cls._check_dtype(dtype)
        device = find_device(device)
        access: dict[str, Any] = {
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "force_download": force_download,
            "timeout": timeout,
        }
        if is_known(name_or_path):
            folder = find_known_model(str(name_or_path), **access)
        else:
            folder = hub.find_model(name_or_path, revision=revision, subfolder=subfolder, variant=variant, **access)
        config = hub.read_config(folder)
        load = functools.partial(hub.load_module, dtype=dtype, variant=variant)
        generator = load(Generator, GeneratorConfig, folder / "generator", device=device)
        directions = load_directions(folder / "directions") if (folder / "directions").is_dir() else {}
        pipeline = cls._from_folder(folder, config, generator, load)
        if dtype in (None, torch.float32, torch.float64) and variant is None:  # else the name gives other numbers
            name = folder if is_known(name_or_path) else name_or_path
            pipeline._name = BaseName.of(name, folder, subfolder=subfolder)
        pipeline.directions = dict(directions)
        pipeline.crop_scale = float(config.get("crop_scale", 1.0))
        pipeline._detector = detector
        return pipeline.to(device)

    @classmethod
    @abc.abstractmethod
    def _from_folder(cls, folder: Path, config: Mapping[str, Any], generator: Generator, load: ModuleLoader) -> Self:
        """Build the pipeline around a loaded generator, loading its own parts from the folder as it was loaded."""

    @classmethod
    def _check_dtype(cls, dtype: torch.dtype | None) -> None:
        if dtype is not None and not dtype.is_floating_point:
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
        timeout: float | None = TIMEOUT,
        crop_scale: float = 1.0,
        device: torch.device | str | None = None,
        detector: LandmarkDetector | Literal["auto", "builtin", "facexlib"] = "auto",
    ) -> Self:
        """Load a pipeline from one official checkpoint: pSp's, e4e's, rosinality's, NVIDIA's, PTI's.

        Nothing in the file is executed: it is read by our own reader, in a process with limits. Sizes are read from
        the tensors. `save_pretrained` then writes safetensors.

        Args:
            source: A path; "hf://organisation/repository/file"; or an "https://" address, with its `sha256`.
            sha256: Of the file, to be checked.
            token: Access token for the Hub.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.
            force_download: Download again.
            dtype: As in `from_pretrained`.
            timeout: Seconds that a download may take. `None` sets no limit.
            crop_scale: Side of the face crop relative to FFHQ's, which the file does not say.
            device: As in `from_pretrained`.
            detector: As in `from_pretrained`.

        Raises:
            ModelNotFoundError: If there is no such file, or it cannot be fetched.
            CheckpointError: If it cannot be read, is not supported, or lacks what this pipeline needs.
            ValueError: If the address, the device or the dtype is none.
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
            timeout=timeout,
        )
        file = read_networks(path, encoder=cls._encoder_kind)
        for note in file.notes:
            logger.warning("%s: %s", path.name, note)
        pipeline = cls._from_file(file)
        for module in vars(pipeline).values():
            if isinstance(module, nn.Module) and dtype is not None:
                module.to(dtype)
        pipeline.crop_scale = crop_scale
        pipeline._detector = detector
        return pipeline.to(device)

    @classmethod
    @abc.abstractmethod
    def _from_file(cls, file: SingleFile) -> Self:
        """Build the pipeline of the networks of a foreign file."""

    def load_direction(self, path: str | os.PathLike[str], name: str, *, description: str = "") -> Direction:
        """Add a direction of the field: InterFaceGAN's `.npy`, pSp's, e4e's or PTI's `.pt`. Nothing in it is executed.

        Args:
            path: The file.
            name: What changes, as a Python identifier: `edit` knows it by this.
            description: Where it comes from.

        Raises:
            ModelNotFoundError: If there is no such file.
            CheckpointError: If it is no direction, or none of this generator's W.
        """
        file = read_single_file(find_file(os.fspath(path)))
        if file.kind != "direction" or len(file.vectors) != 1:
            raise CheckpointError(f"{path} holds no single direction (found: {file.kind}).")
        (vector,) = file.vectors.values()
        sizes = (self.generator.config.w_dim,), (self.generator.num_ws, self.generator.config.w_dim)
        if tuple(vector.shape) not in sizes:
            found, (one, all_layers) = tuple(vector.shape), sizes
            raise CheckpointError(f"{path} holds a direction of shape {found}; it must be {one} or {all_layers}.")
        self.directions[name] = direction_from_official(vector, name=name, description=description)
        return self.directions[name]

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        variant: str | None = None,
        dtype: torch.dtype | None = None,
        metrics: Mapping[str, float] | None = None,
        license: str | None = None,
        overwrite_card: bool = False,
    ) -> Path:
        """Write the pipeline, and a card that says what it is, to a folder that `from_pretrained` reads.

        Args:
            folder: Made if needed. Other variants that it holds stay.
            variant: Of the names of the weights: "fp16" writes `model.fp16.safetensors`, in float16.
            dtype: Floating-point type in the files. `None` means that of a variant "fp16", "bf16" or "fp32", or else
                the networks' own.
            metrics: Measured figures for the card, by name.
            license: Of the weights, for the card: an identifier of the Hub's such as "cc-by-nc-4.0".
            overwrite_card: Also replace a README.md that is there.

        Raises:
            ValueError: If `variant` is no word, or `dtype` cannot hold the weights.
            CheckpointError: If a file cannot be written.
        """
        folder = Path(folder)
        self._write(folder, variant, dtype)
        write_card(folder, metrics=metrics, license=license, overwrite=overwrite_card)
        return folder

    def _write(self, folder: Path, variant: str | None, dtype: torch.dtype | None) -> None:
        dtype = dtype or _VARIANTS.get(variant or "")
        settings = self._settings()
        save = functools.partial(hub.save_module, dtype=dtype, variant=variant)
        save(self.generator, folder / "generator")
        if self.directions:
            save_directions(self.directions, folder / "directions")
        self._save_parts(folder, save)
        root = {"_class_name": type(self).__name__, "_library_version": __version__, "crop_scale": self.crop_scale}
        hub.write_config(root | settings, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        variant: str | None = None,
        dtype: torch.dtype | None = None,
        metrics: Mapping[str, float] | None = None,
        license: str | None = None,
        overwrite_card: bool = False,
        timeout: float | None = TIMEOUT,
    ) -> str:
        """Save the pipeline and upload it to the Hugging Face Hub, in one commit.

        Args:
            repo_id: "organisation/repository"; made if it is not there.
            private: Of a new repository. `None` means the organisation's default.
            token: Access token with the right to write. `None` takes the one that is logged in.
            revision: Branch, made if needed. `None` means the default branch.
            commit_message: Of the commit.
            variant: As in `save_pretrained`, and so are the next four.
            dtype: Floating-point type in the files.
            metrics: For the card.
            license: For the card.
            overwrite_card: Also replace a README.md that is in the repository.
            timeout: Seconds that the upload may take. `None` sets no limit.

        Returns:
            Address of the commit.

        Raises:
            ValueError: If an argument is out of range.
            UploadError: If the Hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as scratch:
            self._write(Path(scratch), variant, dtype)
            write_card(Path(scratch), name=repo_id, metrics=metrics, license=license)
            return upload_folder(
                Path(scratch),
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
                overwrite_card=overwrite_card,
                timeout=timeout,
            )

    def _save_parts(self, folder: Path, save: ModuleSaver) -> None:  # noqa: B027  most pipelines add nothing
        """Write the parts of a subclass."""

    def _settings(self) -> dict[str, Any]:
        """Settings of a subclass for the root config, which `_from_folder` reads."""
        return {}
