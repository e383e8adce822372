"""A tiny model with all methods, and the app on it: here, or as a process of its own (`python -m`)."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig, ReStyleEncoder
from stylegan_inversion.webapp.app import build_app, launch_options, private_folder, start
from stylegan_inversion.webapp.models import Model, Models, make_model
from stylegan_inversion.webapp.studio import Studio
from tests.conftest import make_generator, make_pti


def tiny_model() -> Model:
    """The real classes, tiny."""
    pti = make_pti(make_generator())
    sizes: dict[str, Any] = {"widths": (4, 4, 8, 8), "units": (1, 1, 1, 1), "reduction": 2}
    config = PyramidEncoderConfig(32, 64, w_dim=16, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pti.encoders = {"e4e": Encoder4Editing(config), "psp": GradualStyleEncoder(config)}
        pti.encoders["restyle"] = ReStyleEncoder(ReStyleConfig(32, 64, w_dim=16, **sizes))
    for encoder in pti.encoders.values():
        encoder.eval().requires_grad_(False)
    return make_model(pti, name="tiny", licence="mit")


@dataclass(frozen=True, eq=False)
class Served:
    """A running app."""

    url: str
    demo: Any
    studio: Studio
    folder: Path

    @property
    def model(self) -> Model:
        return self.studio.models.first


@contextmanager
def serve(model: Model, *, hosts: Sequence[str] = (), open: bool = False) -> Iterator[Served]:
    """Serve the app with everything that a visitor meets until the block ends."""
    with private_folder() as folder:
        studio = Studio(Models(model, open=open))
        demo = build_app(studio)
        try:
            url = start(demo, server_name="127.0.0.1", quiet=True, **launch_options(hosts=hosts))
            yield Served(url, demo, studio, Path(folder))
        finally:
            demo.close(verbose=False)


def main() -> None:
    """Say the address, then serve until the standard input ends."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr), serve(tiny_model()) as app:
        print(app.url, file=sys.__stdout__, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
