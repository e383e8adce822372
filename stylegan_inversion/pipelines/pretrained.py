"""A pipeline from a folder or the Hub, and back."""

import abc
import functools
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from typing_extensions import Self

from stylegan_inversion import __version__, hub
from stylegan_inversion.editing.directions import load_directions, save_directions
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines.card import write_card
from stylegan_inversion.pipelines.device import find_device as find_device
from stylegan_inversion.pipelines.official import refuse_other_kinds
from stylegan_inversion.pipelines.saving import BaseName
from stylegan_inversion.pipelines.single_file import SingleFilePipeline
from stylegan_inversion.preprocessing.landmarks import LandmarkDetector
from stylegan_inversion.remote.transfer import upload_folder

ModuleLoader = Callable[..., Any]
"""`hub.load_module` with the dtype and variant that were asked for."""

ModuleSaver = Callable[..., None]
"""`hub.save_module` with the dtype and variant that were asked for."""

_OWN = ("crop_scale", "source")  # settings of the root config that each pipeline writes itself
_VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def _check_root(config: Mapping[str, Any], folder: Path) -> float:
    """Check that a root config is a pipeline's. Whose it is does not matter: any can be built of what is there.

    Returns:
        The scale of its crops.

    Raises:
        CheckpointError: If it is not, or the scale is out of range.
    """
    found, path = config.get("_class_name"), folder / hub.CONFIG_NAME
    classes, names = [PretrainedPipeline], list[str]()
    for cls in classes:
        classes += cls.__subclasses__()
        names.append(cls.__name__)
    if found is not None and found not in (*names, *hub.builtin_models()):
        raise CheckpointError(f"{path} is of a {str(found)[:100]!r}, not of a pipeline of this package.")
    scale = config.get("crop_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 100:
        raise CheckpointError(f"{path}: `crop_scale` must be a number in (0, 100), got {str(scale)[:100]!r}.")
    return float(scale)


class PretrainedPipeline(SingleFilePipeline):
    """What is loaded, saved and published; `InversionPipeline` adds what it does."""

    _name: BaseName | None = None  # where the generator came from
    _kept: Mapping[str, Any] = MappingProxyType({})  # the model's settings for other pipelines: saved with it

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
        device: torch.device | str | None = None,
        detector: LandmarkDetector | Literal["auto", "builtin", "facexlib"] = "auto",
        perceptual: PerceptualDistance | str | None = None,
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
            device: Where to put it: "cpu", "cuda", "mps", or "auto" for the best there is. `None` means the CPU.
            detector: Finds faces: "auto", "builtin", "facexlib", or a callable.
            perceptual: Perceptual network of a pipeline that optimises, such as PTI: "alex", "vgg", or one of your own.
                `None` means the model's, by default "alex".

        Raises:
            ModelNotFoundError: If there is no such model, or it lacks what this pipeline needs.
            CheckpointError: If a file is damaged or does not fit.
            MissingDependencyError: If `perceptual` is "vgg" and the package `lpips` cannot be imported.
            ValueError: If this machine has no such device, `dtype` or `variant` is out of range, or
                `perceptual` is unknown, or given to a pipeline that does not optimise.
        """
        if torch_dtype is not None:
            warnings.warn("`torch_dtype` is now called `dtype`.", FutureWarning, stacklevel=2)
            dtype = dtype or torch_dtype
        cls._check_dtype(dtype)
        device = find_device(device)
        refuse_other_kinds(name_or_path)
        folder = hub.find_model(
            name_or_path,
            revision=revision,
            subfolder=subfolder,
            variant=variant,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        config = hub.read_config(folder)
        scale = _check_root(config, folder)
        load = functools.partial(hub.load_module, dtype=dtype, variant=variant)
        generator = load(Generator, GeneratorConfig, folder / "generator", device=device)
        directions = load_directions(folder / "directions") if (folder / "directions").is_dir() else {}
        pipeline = cls._from_folder(folder, config, generator, load, perceptual)
        pipeline._kept = {name: value for name, value in config.items() if name not in _OWN and name[:1] != "_"}
        if dtype in (None, torch.float32, torch.float64) and variant is None:  # else the name gives other numbers
            pipeline._name = BaseName.of(name_or_path, folder, subfolder=subfolder)
        pipeline.directions = dict(directions)
        pipeline.crop_scale = scale
        pipeline._detector = detector
        return pipeline.to(device)

    @classmethod
    @abc.abstractmethod
    def _from_folder(
        cls,
        folder: Path,
        config: Mapping[str, Any],
        generator: Generator,
        load: ModuleLoader,
        perceptual: PerceptualDistance | str | None,
    ) -> Self:
        """Build the pipeline around a loaded generator, loading its own parts from the folder as it was loaded."""

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
            folder: Made if needed. It changes as a whole or not at all. Of a model that it holds, other variants and
                encoders stay if they belong to the same generator.
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
        with hub.write_together(folder) as stage:
            self._write(stage, variant, dtype)
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
        hub.write_config(root | dict(self._kept) | settings, folder)

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
            )

    def _save_parts(self, folder: Path, save: ModuleSaver) -> None:
        """Write the parts of a subclass."""

    def _settings(self) -> dict[str, Any]:
        """Settings of a subclass for the root config, which `_from_folder` reads."""
        return {}
