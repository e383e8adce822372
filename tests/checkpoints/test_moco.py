from pathlib import Path
from typing import Any

import pytest
import torch
from stylegan_inversion.checkpoints.moco import moco_from_official
from torch import Tensor

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.resnet import ResNet, ResNetConfig

SIZES = ResNetConfig((4, 5, 6, 7), (1, 2, 1, 1))


def official() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint in the layout of MoCo's training script, and the trunk inside it."""
    rng = torch.Generator().manual_seed(0)
    trunk = {k: torch.rand(v.shape, generator=rng).to(v.dtype) for k, v in ResNet(SIZES).state_dict().items()}
    head = {"fc.0.weight": torch.zeros(28, 28), "fc.0.bias": torch.zeros(28), "fc.2.weight": torch.zeros(8, 28)}
    query = {f"module.encoder_q.{key}": tensor for key, tensor in {**trunk, **head}.items()}
    key = {f"module.encoder_k.{key}": torch.zeros_like(tensor) for key, tensor in trunk.items()}
    queue = {"module.queue": torch.zeros(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": {**query, **key, **queue}, "optimizer": {}}, trunk


def test_conversion(tmp_path: Path) -> None:
    checkpoint, trunk = official()
    torch.save(checkpoint, tmp_path / "moco.pth.tar")
    config, state_dict = moco_from_official(torch.load(tmp_path / "moco.pth.tar", weights_only=True))
    assert config == SIZES and state_dict.keys() == trunk.keys()
    assert all(torch.equal(tensor, trunk[key]) for key, tensor in state_dict.items())
    ResNet(config).load_state_dict(state_dict)


def test_names_spelled_out() -> None:
    names = official()[0]["state_dict"]
    assert "module.encoder_q.layer2.1.bn3.running_mean" in names
    assert "module.encoder_q.layer1.0.downsample.0.weight" in names
    assert "module.encoder_q.conv1.weight" in names


def test_what_is_no_moco_checkpoint() -> None:
    with pytest.raises(CheckpointError, match=r"it has no `state_dict`, only \['conv1.weight'\]"):
        moco_from_official({"conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"no `encoder_q\.` tensors"):
        moco_from_official({"state_dict": {"module.conv1.weight": torch.zeros(1)}})


def changed(changes: dict[str, Tensor | None]) -> dict[str, Any]:
    state_dict = official()[0]["state_dict"]
    for key, tensor in changes.items():
        state_dict[f"module.encoder_q.{key}"] = tensor
    return {"state_dict": {key: tensor for key, tensor in state_dict.items() if tensor is not None}}


def test_another_network() -> None:
    with pytest.raises(CheckpointError, match=r"tensor 'layer4.0.conv1.weight' is missing\."):
        moco_from_official(changed({"layer4.0.conv1.weight": None}))
    with pytest.raises(CheckpointError, match=r"such as ResNet-50: missing layer2.1.conv3.weight\."):
        moco_from_official(changed({"layer2.1.conv3.weight": None}))
    with pytest.raises(CheckpointError, match=r"such as ResNet-50: unexpected layer1.0.se.weight\."):
        moco_from_official(changed({"layer1.0.se.weight": torch.zeros(1)}))
    plain = {key: None for key in ResNet(SIZES).state_dict() if ".conv3." in key or ".bn3." in key}
    with pytest.raises(CheckpointError, match=r"missing layer1.0.conv3.weight; .* and 25 more\."):
        moco_from_official(changed(dict(plain)))
