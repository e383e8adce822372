"""The public files of directions, by a rule: their names, layouts and norms, and an https server that has them."""

import hashlib
import io
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError
from urllib.request import HTTPSHandler
from urllib.response import addinfourl

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_inversion import catalogue
from stylegan_inversion.catalogue import CatalogueEntry
from stylegan_inversion.checkpoints import find

Rows = Literal["one", "equal", "own", "any"]
"""What the rows of a file are: one; equal ones; each of its own and unit norm; each of its own and any norm."""

LAYOUTS: list[tuple[str, tuple[int, ...], str, Rows, float]] = [  # name, shape, dtype, rows, norm
    ("interfacegan_directions/age.pt", (1, 512), "float32", "one", 1.0),
    ("interfacegan_directions/pose.pt", (1, 18, 512), "float32", "own", 1.0),
    ("bound/Smiling_boundary.npy", (1, 9216), "float32", "any", 18**-0.5),
    ("latent_directions/smile.npy", (18, 512), "float64", "any", 3.5),
]


def make_direction(shape: tuple[int, ...], rows: Rows, norm: float, *, w_dim: int = 512, seed: int = 0) -> Tensor:
    """A tensor in a layout; the root mean square of its layers' norms is `norm`. Float64."""
    count = int(np.prod(shape)) // w_dim
    vector = torch.randn(count, w_dim, generator=torch.Generator().manual_seed(seed)).double()
    if rows == "equal":
        vector = vector[:1].expand(count, w_dim)
    if rows != "any":
        vector = vector / vector.norm(dim=1, keepdim=True)
    return (norm * vector / vector.square().sum(dim=1).mean().sqrt()).reshape(shape)


def save_direction(tensor: Tensor, path: Path, dtype: str) -> Path:
    """Write a `.npy` or a `.pt`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, tensor.numpy().astype(dtype))
    else:
        torch.save(tensor.to(getattr(torch, dtype)), path)
    return path


class FakeGitHub:
    """Raw files by address. `down` is a network that is not there, `leads_to` is where it redirects to."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.down = False
        self.leads_to: str | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer in place of every https server."""
        monkeypatch.setattr(HTTPSHandler, "https_open", lambda _, request: self.open(request))

    def open(self, request: Any) -> Any:
        self.asked.append(request.full_url)
        if self.down:
            raise URLError("no route to host")
        headers = Message()
        if self.leads_to is not None:
            headers["Location"] = self.leads_to
        code = 200 if self.leads_to is None else 302
        answer: Any = addinfourl(io.BytesIO(self.files[request.full_url]), headers, request.full_url, code)
        answer.read1, answer.msg = answer.read, ""
        return answer


def publish(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Any], *, models: tuple[CatalogueEntry, ...] = (), resolution: int
) -> FakeGitHub:
    """Put files by the names of their entries on a fake GitHub, for FFHQ at another resolution.

    Args:
        monkeypatch: Of the test.
        files: What `torch.save` is to write, by name of an entry.
        models: Entries beside those of the directions.
        resolution: Of the generators of the test.
    """
    server, entries = FakeGitHub(), list(models)
    for entry in catalogue.catalogue():
        if entry.name in files:
            buffer = io.BytesIO()
            torch.save(files[entry.name], buffer)
            content = buffer.getvalue()
            address = f"https://raw.githubusercontent.com/{entry.repository}/{entry.revision}/{entry.file}"
            server.files[address] = content
            entries.append(
                replace(
                    entry,
                    sha256=hashlib.sha256(content).hexdigest(),
                    size=len(content),
                    domain=entry.domain and f"ffhq-{resolution}",
                )
            )
    for module in (catalogue, find):
        monkeypatch.setattr(module, "catalogue", lambda: tuple(entries))
    monkeypatch.setattr(find, "_failed", [])  # as in a new process
    server.install(monkeypatch)
    return server
