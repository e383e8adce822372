"""Where the generator of a pipeline is found again: its name, for inversions that hold only what differs from it."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stylegan_inversion import hub, storage
from stylegan_inversion.checkpoints.find import find_folder, known_entry
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.inversion.generator_delta import generator_sha256
from stylegan_inversion.models.generator import Generator, GeneratorConfig

_ELSEWHERE = re.compile(r"[\\/](?:[\\/]|\?\?[\\/])")  # how Windows begins the names of other machines' folders


@dataclass(frozen=True)
class BaseName:
    """Where a base generator is found again: the arguments of `from_pretrained`."""

    name_or_path: str
    revision: str | None = None
    subfolder: str | None = None

    @classmethod
    def of(cls, name_or_path: object, folder: Path, *, subfolder: str | None = None) -> "BaseName":
        """Name a model that was found in `folder`: a folder by its full path, a repository with its commit."""
        commit = re.search(r"[\\/]snapshots[\\/]([0-9a-f]{40})(?:[\\/]|$)", str(folder))
        name = str(name_or_path)
        if commit is None and not known_entry(name) and storage.builtin_path(name) not in (folder, *folder.parents):
            name = str(Path(name).resolve())
        return cls(name, commit[1] if commit else None, subfolder)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine, which nobody else has."""
        name = self.name_or_path  # another machine's folder is not touched: that would contact the machine
        if _ELSEWHERE.match(name):
            return True
        return not (self.revision or name in storage.builtin_models() or known_entry(name))

    def find(self, *, allow_download: bool) -> Path:
        """Find the model's folder; on the Hub or another machine only if that is allowed or it is in the cache."""
        if not allow_download and any(_ELSEWHERE.match(each) for each in (self.name_or_path, self.revision or "")):
            raise ModelNotFoundError("It is in a folder of another machine.")
        access = hub.Access(self.revision, self.subfolder, local_files_only=not allow_download)
        return find_folder(self.name_or_path, access)

    def load_pipeline(self, cls: Any, *, allow_download: bool, advice: str, **options: Any) -> Any:
        """Load a pipeline of a class, of a model that `find` finds; if there is none, the error gives the advice."""
        try:
            self.find(allow_download=allow_download)
        except ModelNotFoundError as e:
            raise ModelNotFoundError(f"{e} {advice}") from e
        options |= {"revision": self.revision, "subfolder": self.subfolder, "local_files_only": not allow_download}
        return cls.from_pretrained(self.name_or_path, **options)

    def load(self, *, allow_download: bool, device: torch.device | str | None = None) -> Generator:
        """Load the generator, of a model that `find` finds."""
        folder = self.find(allow_download=allow_download) / "generator"
        return storage.load_module(Generator, GeneratorConfig, folder, device=device)


@dataclass(frozen=True, eq=False)
class Base:
    """The generator that a pipeline started from, and its name if it has one."""

    generator: Generator
    name: BaseName | None = None

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the generator's weights, see `generator_sha256`."""
        return generator_sha256(self.generator)
