"""MoCo v2's checkpoint -> the trunk of our ResNet.

Format: facebookresearch/moco (MIT), main_moco.py: {"arch": "resnet50", "state_dict": {"module.encoder_q.*": ...}}, in a
training checkpoint with "module.encoder_k.*" and the queue beside it. Reading the file is the caller's:
`torch.load(path, map_location="cpu", weights_only=True)`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.resnet import ResNet, ResNetConfig

_QUERY = "encoder_q."


def moco_from_official(checkpoint: Mapping[str, Any]) -> tuple[ResNetConfig, dict[str, Tensor]]:
    """Read the query encoder of a MoCo checkpoint, such as `moco_v2_800ep_pretrain.pth.tar`; its head `fc` is dropped.

    Args:
        checkpoint: What the file holds.

    Returns:
        The config, read from the tensors, and the state dict of our `ResNet`, whose names are the same.

    Raises:
        CheckpointError: If it is another checkpoint, or a ResNet without bottlenecks.
    """
    state_dict = checkpoint.get("state_dict")
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(
            f"Not a MoCo checkpoint: it has no `state_dict`, only {sorted(map(str, checkpoint))[:5]}."
        )
    named = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    trunk = {key[len(_QUERY) :]: tensor for key, tensor in named.items() if key.startswith(_QUERY)}
    trunk = {key: tensor for key, tensor in trunk.items() if not key.startswith("fc.")}
    if not trunk:
        raise CheckpointError(f"Not a MoCo checkpoint: its state dict has no `{_QUERY}` tensors.")
    stages = [f"layer{i}." for i in range(1, 5)]
    units = [len({k.split(".")[1] for k in trunk if k.startswith(stage)}) for stage in stages]
    try:
        widths = [trunk[f"{stage}0.conv1.weight"].shape[0] for stage in stages]
    except KeyError as e:
        raise CheckpointError(f"Not a ResNet of four stages: tensor {e} is missing.") from e
    config = ResNetConfig(tuple(widths), tuple(units))
    with torch.device("meta"):
        expected = ResNet(config).state_dict().keys()
    faults = [f"missing {key}" for key in expected if key not in trunk]
    faults += [f"unexpected {key}" for key in trunk if key not in expected]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"Not a ResNet with bottlenecks, such as ResNet-50: {'; '.join(faults[:5])}{more}.")
    return config, trunk
