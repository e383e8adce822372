"""Damaged files, by the hundred: each is refused, and no network is half filled."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator, GeneratorConfig

CONFIG = GeneratorConfig(16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=4)


def renamed(tensors: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(sorted(tensors))
    tensors[key + rng.choice(["x", ".0", " "])] = tensors.pop(key)


def dropped(tensors: dict[str, Any], rng: random.Random) -> None:
    del tensors[rng.choice(sorted(tensors))]


def added(tensors: dict[str, Any], rng: random.Random) -> None:
    tensors[f"extra{rng.random()}"] = torch.zeros(rng.randint(0, 3))


def reshaped(tensors: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(sorted(tensors))
    tensors[key] = torch.cat([tensors[key].flatten(), torch.zeros(rng.randint(1, 3))])


def integers(tensors: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(sorted(tensors))
    tensors[key] = tensors[key].to(rng.choice([torch.int64, torch.uint8, torch.bool]))


def not_finite(tensors: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(sorted(tensors))
    flat = tensors[key].clone().flatten()
    flat[rng.randrange(len(flat))] = rng.choice([float("nan"), float("inf"), float("-inf")])
    tensors[key] = flat.reshape(tensors[key].shape)


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def longer(data: bytes, rng: random.Random) -> bytes:
    return data + bytes(rng.randint(1, 100))


def other_header_length(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    return struct.pack("<Q", rng.choice([0, length - 1, length + 1, 2**31, 2**62, 2**64 - 1])) + data[8:]


def other_offsets(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    key = rng.choice([key for key in header if key != "__metadata__"])
    header[key][rng.choice(["shape", "data_offsets"])] = [0, rng.choice([2**62, -1, 1])]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def wrong_value(config: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice([key for key in config if not key.startswith("_")])
    config[key] = rng.choice(["../../x", -1, 0, 10**9, 2**70, 0.5, "64", [64], {}, True, "https://example.org/x"])


def unknown_field(config: dict[str, Any], rng: random.Random) -> None:
    config[rng.choice(["../x", "class", "auto_map", "weights", "hidden_size"])] = "os.system"


def absurd_sizes(config: dict[str, Any], rng: random.Random) -> None:
    config["channel_base"], config["channel_max"], config["resolution"] = 2**20, 4096, rng.choice([1024, 2048])


def another_class(config: dict[str, Any], rng: random.Random) -> None:
    config["_class_name"] = rng.choice(["os.system", "Encoder4Editing", "../x", "", ["Generator"], 1, None])


OF_TENSORS = [renamed, dropped, added, reshaped, integers, not_finite]
OF_BYTES = [truncated, longer, other_header_length, other_offsets]
OF_CONFIG = [wrong_value, unknown_field, absurd_sizes, another_class]


def damage(folder: Path, change: Callable[..., Any], rng: random.Random) -> None:
    weights, config = folder / hub.WEIGHTS_NAME, folder / hub.CONFIG_NAME
    if change in OF_TENSORS:
        tensors = load_file(weights)
        change(tensors, rng)
        save_file(tensors, weights)
    elif change in OF_BYTES:
        weights.write_bytes(change(weights.read_bytes(), rng))
    else:
        fields = json.loads(config.read_text())
        change(fields, rng)
        config.write_text(json.dumps(fields))


@pytest.mark.parametrize("change", [*OF_TENSORS, *OF_BYTES, *OF_CONFIG], ids=lambda change: change.__name__)
def test_each_damage_is_refused(change: Callable[..., Any], tmp_path: Path) -> None:
    rng = random.Random(change.__name__)
    generator = Generator(CONFIG)
    before = {key: tensor.clone() for key, tensor in generator.state_dict().items()}
    for i in range(10):
        folder = tmp_path / str(i)
        hub.save_module(generator, folder)
        hub.load_module(Generator, GeneratorConfig, folder)  # sound until then
        intact = (folder / hub.CONFIG_NAME).read_text()
        damage(folder, change, rng)
        with pytest.raises(CheckpointError):
            hub.load_module(Generator, GeneratorConfig, folder)
        if change not in OF_CONFIG and intact == (folder / hub.CONFIG_NAME).read_text():
            with pytest.raises(CheckpointError):
                hub.fill_module(generator, hub.read_tensors(folder / hub.WEIGHTS_NAME), source="damaged")
    assert all(torch.equal(before[key], tensor) for key, tensor in generator.state_dict().items())


def test_an_absurd_config_takes_no_memory(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    hub.save_module(Generator(CONFIG), folder)
    fields = json.loads((folder / hub.CONFIG_NAME).read_text())
    absurd_sizes(fields, random.Random(0))
    (folder / hub.CONFIG_NAME).write_text(json.dumps(fields))
    made: list[torch.device] = []

    class Watched(Generator):
        def __init__(self, config: GeneratorConfig) -> None:
            super().__init__(config)
            made.append(self.w_avg.device)

    with pytest.raises(CheckpointError, match=r"does not fit Watched: "):
        hub.load_module(Watched, GeneratorConfig, folder)
    assert [device.type for device in made] == ["meta"]
