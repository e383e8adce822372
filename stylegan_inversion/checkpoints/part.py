"""What a foreign file turned out to be: networks as (config, state dict) of ours, and directions."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stylegan_inversion import hub
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.editing.ganspace import PrincipalComponents
from stylegan_inversion.errors import CheckpointError

StateDict = dict[str, Tensor]
Kind = Literal[
    "psp",
    "e4e",
    "restyle",
    "rosinality",
    "nvidia",
    "pti",
    "stylegan3-editing",
    "arcface",
    "moco",
    "direction",
    "ganspace",
]


@dataclass(frozen=True, eq=False)
class Part:
    """A network: `build` makes it."""

    module_class: type[nn.Module]
    config: Any
    state_dict: StateDict

    def __post_init__(self) -> None:
        """Check names, shapes and values, without making the network."""
        with torch.device("meta"):
            ours = self.module_class(self.config).state_dict()
        faults = [f"{key} is missing" for key in ours if key not in self.state_dict]
        faults += [f"{key} is unexpected" for key in self.state_dict if key not in ours]
        for key, tensor in self.state_dict.items():
            if key in ours and tensor.shape != ours[key].shape:
                faults.append(f"{key} is {tuple(tensor.shape)}, not {tuple(ours[key].shape)}")
            # one pass without a copy, unlike `isfinite`: NaN is both, infinity is one of the two
            extremes = (
                torch.stack(tensor.aminmax())
                if tensor.is_floating_point() and tensor.numel()
                else torch.zeros(1, device="cpu")
            )
            if not torch.isfinite(extremes).all():
                faults.append(f"{key} holds NaN or infinity")
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise CheckpointError(f"Not a {self.module_class.__name__}: {'; '.join(faults[:5])}{more}.")

    def build(self) -> nn.Module:
        """The network, in eval mode, frozen, float32."""
        module = hub.new_module(self.module_class, self.config)
        hub.fill_module(module, self.state_dict, source="the converted state dict")
        return module


@dataclass(frozen=True, eq=False)
class SingleFile:
    """What a foreign file is.

    Attributes:
        kind: Who writes such files.
        parts: Networks by name: "encoder", "generator", "discriminator", "latent_discriminator", "identity", "moco".
        vectors: Directions by name, as the file holds them; one without a name is "direction".
        directions: The papers' directions for its generator: see `convert.papers`.
        components: GANSpace's.
        options: The settings that the file carries (`opts`), as plain values.
        notes: What was missing in the file and how it was made up for, one sentence each.
    """

    kind: Kind
    parts: dict[str, Part] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    directions: dict[str, Direction] = field(default_factory=dict)
    components: PrincipalComponents | None = None
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
