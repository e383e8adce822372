"""A pipeline from one foreign checkpoint: where the file is found, and which of its networks a pipeline takes."""

import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from stylegan_inversion import __version__, hub
from stylegan_inversion.catalogue import catalogue, fetch, find_entry
from stylegan_inversion.convert.direction import direction_from_official
from stylegan_inversion.convert.encoder_file import EncoderKind
from stylegan_inversion.convert.part import SingleFile
from stylegan_inversion.convert.single_file import read_single_file
from stylegan_inversion.editing.directions import save_directions
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig, WEncoder
from stylegan_inversion.preprocessing.sources import LabelSource, PhotoSource, SketchSource, Source, to_config
from stylegan_inversion.remote.integrity import cache_root, file_sha256
from stylegan_inversion.remote.transfer import TIMEOUT, download_file
from stylegan_inversion.remote.web import download_url

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

CONVERTED = 1  # number of the format in the cache: another one converts again
_PIPELINES = {"psp": "PSPPipeline", "e4e": "E4EPipeline"}
_KINDS: dict[str, EncoderKind] = {"psp": "psp", "e4e": "e4e"}
_HUB_FILE = re.compile(r"hf://([^/]+/[^/@]+)(?:@([^/]+))?/(.+)")
_HOLDS = {
    "arcface": "an identity network",
    "moco": "MoCo's network",
    "direction": "a direction",
    "ganspace": "GANSpace's components",
}


def find_file(
    source: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    timeout: float | None = TIMEOUT,
) -> Path:
    """Find a checkpoint on this machine, or fetch it.

    Args:
        source: A path; "hf://organisation/repository/file", with "@revision" after the repository if need be; or an
            "https://" address.
        sha256: Of the file. Needed for https, where nothing else says that the right file has come; checked
            wherever it is given.
        token: Access token for the Hub.
        cache_dir: Where downloads are kept. `None` means the Hub's own cache.
        local_files_only: Never use the network.
        force_download: Fetch it again.
        timeout: Seconds that a download may take. `None` sets no limit.

    Raises:
        ValueError: If the address is none of these, or an https address comes without a sha256.
        ModelNotFoundError: If there is no such file, or it cannot be fetched.
        CheckpointError: If another file came.
    """
    text = str(source)
    if text.startswith("hf://"):
        match = _HUB_FILE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not hf://organisation/repository/file.")
        repo_id, revision, filename = match.groups()
        return download_file(
            repo_id,
            filename,
            sha256=sha256,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            timeout=timeout,
        )
    if text.startswith("https://"):
        if sha256 is None:
            raise ValueError(f"{text}: give the `sha256` of the file too, since nothing else says which file comes.")
        return download_url(
            text,
            sha256=sha256,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            timeout=timeout,
        )
    if "://" in text:
        raise ValueError(f"{text!r} is neither a path nor an hf:// or https:// address.")
    path = Path(source)
    if not path.is_file():
        hint = " That is a folder: use from_pretrained." if path.is_dir() else ""
        raise ModelNotFoundError(f"There is no file {text!r}.{hint}")
    if sha256 is not None and file_sha256(path) != sha256:
        raise CheckpointError(f"{path} has not the sha256 {sha256}: it is another file, or damaged. Fetch it again.")
    return path


def read_networks(path: Path, *, encoder: EncoderKind | None) -> SingleFile:
    """Read a checkpoint that a pipeline can be built of: one that holds a generator.

    Args:
        path: The file.
        encoder: The encoder that the pipeline needs. `None` takes whatever there is.

    Raises:
        CheckpointError: If it cannot be read, or lacks what is needed; the message says what it holds.
    """
    file = read_single_file(path, encoder=encoder)
    if file.kind in _HOLDS:
        way = "`pipeline.load_direction` reads it" if file.kind == "direction" else "it is no generator"
        raise CheckpointError(f"{path} holds {_HOLDS[file.kind]}, of which no pipeline can be built: {way}.")
    for name, wanted in (("generator", True), ("encoder", encoder is not None)):
        if wanted and name not in file.parts:
            raise CheckpointError(
                f"{path} holds no {name} (found: {file.kind}; {', '.join(file.parts) or 'nothing'})."
                + (" PTIPipeline needs the generator alone." if name == "encoder" else "")
            )
    return file


def build_part(file: SingleFile, name: str, cls: type[Module]) -> Module:
    """Build a network of a file.

    Raises:
        CheckpointError: If it is of another class.
    """
    module = file.parts[name].build()
    if not isinstance(module, cls):
        raise CheckpointError(f"The file's {name} is a {type(module).__name__}, not a {cls.__name__}.")
    return module


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
    for part, network in file.parts.items():
        module = network.build()
        folder_name = part
        if part == "encoder" and isinstance(module, WEncoder):
            logger.warning("The encoder into W is left out: no pipeline takes it.")
            continue
        if part == "encoder":
            folder_name = f"{file.kind}_encoder"
            config |= {"_class_name": _PIPELINES[file.kind], "source": to_config(source_of(module))}
        hub.save_module(module, folder / folder_name)
    hub.write_config({**config, "_library_version": __version__}, folder)  # last: it says that all is there
    return folder


def is_known(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a checkpoint in the catalogue, and of no folder here."""
    return any(entry.name == str(name) for entry in catalogue()) and not Path(name).is_dir()


def find_known_model(
    name: str,
    *,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    timeout: float | None = TIMEOUT,
) -> Path:
    """The folder of a checkpoint of the catalogue: fetched, verified and converted, each of them once.

    Args:
        name: In the catalogue.
        token: As in `find_file`, and so are the others.
        cache_dir: "
        local_files_only: "
        force_download: "
        timeout: "

    Raises:
        ModelNotFoundError: If it is not in the catalogue, or cannot be fetched.
        CheckpointError: If another file came, or it cannot be converted.
    """
    entry = find_entry(name)
    if entry.kind not in (*_KINDS, "generator"):
        raise ModelNotFoundError(f"{name!r} is no model that a pipeline can be built of: {entry.description}.")
    path = fetch(
        entry,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
        timeout=timeout,
    )
    storage = cache_root(cache_dir) / "converted--stylegan-inversion"
    folder = storage / f"{entry.sha256 or file_sha256(path)}-{CONVERTED}"
    if (folder / hub.CONFIG_NAME).is_file():
        return folder
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage) as scratch:
        made = write_model(read_single_file(path, encoder=_KINDS.get(entry.kind)), Path(scratch) / "model")
        if not folder.exists():  # another process may have been faster
            made.rename(folder)
    return folder
