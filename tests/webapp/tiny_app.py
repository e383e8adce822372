"""A tiny model with all methods, and the app on it: here, or as a process of its own (`python -m`)."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.webapp.app import build_app, launch_options
from stylegan_inversion.webapp.janitor import Janitor
from stylegan_inversion.webapp.model import Model, make_model
from stylegan_inversion.webapp.sessions import Sessions
from tests.conftest import make_generator, make_pti


def tiny_model() -> Model:
    """The real classes, tiny; PTI takes 3 + 3 steps unless it is asked for more."""
    pti = make_pti(make_generator())
    config = PyramidEncoderConfig(32, 64, w_dim=16, widths=(4, 4, 8, 8), units=(1, 1, 1, 1), reduction=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pti.encoders = {"e4e": Encoder4Editing(config), "psp": GradualStyleEncoder(config)}
    for encoder in pti.encoders.values():
        encoder.eval().requires_grad_(False)
    return make_model(pti, name="tiny", licence="mit")


@dataclass(frozen=True, eq=False)
class Served:
    """A running app."""

    url: str
    demo: Any
    model: Model
    sessions: Sessions
    janitor: Janitor


@contextmanager
def serve(model: Model, folder: Path, *, hosts: Sequence[str] = (), **options: Any) -> Iterator[Served]:
    """Serve the app with everything that a visitor meets, middleware too, until the block ends."""
    sessions, janitor = Sessions(), Janitor(folder)
    try:
        demo = build_app(model, sessions=sessions, janitor=janitor, **options)
        how = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True}
        _, url, _ = demo.launch(**how, **launch_options(hosts=hosts))
        try:
            yield Served(url.rstrip("/"), demo, model, sessions, janitor)
        finally:
            demo.close(verbose=False)
    finally:
        janitor.close()


def main() -> None:
    """Say the address, then serve until the standard input ends."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, serve(tiny_model(), Path(folder)) as app:
        print(app.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
