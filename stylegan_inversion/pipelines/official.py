"""A pipeline from one foreign checkpoint: where the file is found, and which of its networks a pipeline takes."""

import os
import re
from pathlib import Path
from typing import TypeVar

from torch import nn

from stylegan_inversion.catalogue import fetch, suggest
from stylegan_inversion.checkpoints.known import is_known as is_known
from stylegan_inversion.checkpoints.known import known_entry
from stylegan_inversion.checkpoints.recognise import SingleFile, read_single_file
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.remote.integrity import file_sha256
from stylegan_inversion.remote.transfer import download_file
from stylegan_inversion.remote.web import download_url

Module = TypeVar("Module", bound=nn.Module)

_PIPELINE_KINDS = ("psp", "e4e", "restyle", "generator")
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
) -> Path:
    """Find a checkpoint on this machine, or fetch it.

    Args:
        source: A path; "hf://organisation/repository/file", with "@revision" after the repository if need be; an
            "https://" address; or a name of the catalogue.
        sha256: Of the file. Needed for https, where nothing else says that the right file has come; checked
            wherever it is given.
        token: Access token for the Hub.
        cache_dir: Where downloads are kept. `None` means the Hub's own cache.
        local_files_only: Never use the network.
        force_download: Fetch it again.

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
        )
    if (entry := known_entry(text)) is not None and not Path(source).exists():
        path = fetch(
            entry,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return _checked(path, sha256)
    if "://" in text:
        raise ValueError(f"{text!r} is neither a path nor an hf:// or https:// address.")
    path = Path(source)
    if not path.is_file():
        hint = "That is a folder: use from_pretrained." if path.is_dir() else suggest(text)
        raise ModelNotFoundError(f"There is no file {text!r}. {hint or ''}".rstrip())
    return _checked(path, sha256)


def _checked(path: Path, sha256: str | None) -> Path:
    if sha256 is not None and file_sha256(path) != sha256:
        raise CheckpointError(f"{path} has not the sha256 {sha256}: it is another file, or damaged. Fetch it again.")
    return path


def read_networks(path: Path, *, encoder: str | None) -> SingleFile:
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


def refuse_other_kinds(name: str | os.PathLike[str]) -> None:
    """Refuse a name of the catalogue of which no pipeline can be built, before it is fetched.

    Raises:
        ModelNotFoundError: If it is one.
    """
    entry = known_entry(name)
    if entry is not None and entry.kind not in (*_PIPELINE_KINDS, "unread"):  # of that, `fetch` says why
        raise ModelNotFoundError(f"{entry.name!r} is no model that a pipeline can be built of: {entry.description}.")


def build_part(file: SingleFile, name: str, cls: type[Module]) -> Module:
    """Build a network of a file.

    Raises:
        CheckpointError: If it is of another class.
    """
    module = file.parts[name].build()
    if not isinstance(module, cls):
        raise CheckpointError(f"The file's {name} is a {type(module).__name__}, not a {cls.__name__}.")
    return module
