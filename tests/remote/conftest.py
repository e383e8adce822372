from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.fake_hub import FakeHub, hub_client, serve

WEIGHTS = "encoder/model.safetensors"


@pytest.fixture
def fake_hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with one small model, org/tiny, an empty cache in `tmp_path / "cache"`, and the client set to both."""
    source = tmp_path / "source"
    (source / "encoder").mkdir(parents=True)
    (source / "config.json").write_text("{}\n")
    (source / "code.py").write_text("raise SystemExit\n")
    save_file({"a": torch.arange(50.0)}, source / WEIGHTS)
    save_file({"a": torch.arange(50.0).half()}, source / "encoder" / "model.fp16.safetensors")
    with serve() as hub, hub_client(hub, tmp_path / "cache"):
        hub.add("org/tiny", source)
        yield hub
