"""A name becomes a folder or a file: on this machine, built in, in the catalogue, or on the Hub."""

import os
import re
from pathlib import Path

from stylegan_inversion import hub
from stylegan_inversion.catalogue import fetch, suggest
from stylegan_inversion.checkpoints import papers
from stylegan_inversion.checkpoints.known import is_known as is_known
from stylegan_inversion.checkpoints.known import known_entry as known_entry
from stylegan_inversion.checkpoints.part import SingleFile
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.hub import Access
from stylegan_inversion.remote.integrity import file_sha256
from stylegan_inversion.remote.transfer import download_file
from stylegan_inversion.remote.web import download_url

_HUB_FILE = re.compile(r"hf://([^/]+/[^/@]+)(?:@([^/]+))?/(.+)")


def find_folder(name_or_path: str | os.PathLike[str], access: Access = Access(), *, variant: str | None = None) -> Path:
    """Find the folder of a model by its name; see `hub.find_model`."""
    return hub.find_model(name_or_path, variant=variant, **vars(access))


def find_file(source: str | os.PathLike[str], access: Access = Access(), *, sha256: str | None = None) -> Path:
    """Find a checkpoint on this machine, or fetch it.

    Args:
        source: A path; "hf://organisation/repository/file", with "@revision" after the repository if need be; an
            "https://" address; or a name of the catalogue.
        access: How to fetch it.
        sha256: Hash of the file, checked wherever it is given; required for https.

    Raises:
        ValueError: If the address is invalid, or an https address comes without a sha256.
        ModelNotFoundError: If there is no such file, or it cannot be fetched.
        CheckpointError: If another file came.
    """
    text = str(source)
    options = {name: value for name, value in vars(access).items() if name not in ("revision", "subfolder")}
    if text.startswith("hf://"):
        match = _HUB_FILE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not hf://organisation/repository/file.")
        repo_id, revision, filename = match.groups()
        return download_file(repo_id, filename, sha256=sha256, revision=revision, **options)
    if text.startswith("https://"):
        if sha256 is None:
            raise ValueError(f"{text}: give the `sha256` of the file too, since nothing else says which file comes.")
        del options["token"]
        return download_url(text, sha256=sha256, **options)
    if (entry := known_entry(text)) is not None and not Path(source).exists():
        return _checked(fetch(entry, **options), sha256)
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


def with_directions(
    file: SingleFile, path: Path, access: Access = Access(), *, source: str | os.PathLike[str] = ""
) -> SingleFile:
    """Add the papers' directions to an FFHQ generator; `source` is the name it was asked for by."""
    return papers.with_directions(
        file,
        path,
        entry=known_entry(source) if source else None,
        cache_dir=access.cache_dir,
        local_files_only=access.local_files_only,
    )
