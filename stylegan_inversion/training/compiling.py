"""Networks that are fused by `torch.compile`, and the passes that cannot be."""

import os
import shutil
from contextlib import AbstractContextManager

import torch
from torch import nn

COMPILERS = ("g++", "c++", "clang++", "cl")


def compile_networks(*networks: nn.Module, device: torch.device) -> None:
    """Let calls of these networks run fused, in place. Weights, names and copies of them stay as they are.

    Each new shape of input is compiled once, at its first call. Results differ by rounding.

    Args:
        networks: What a training step calls.
        device: Where they are.

    Raises:
        ValueError: If this needs a C++ compiler, as it does on a CPU, and there is none.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), *COMPILERS)):
        raise ValueError(
            f"`compile` needs a C++ compiler on a CPU, and none of {', '.join(COMPILERS)} was found. Install one, or "
            "set compile=false."
        )
    for network in networks:
        network.compile(dynamic=False)


def uncompiled() -> AbstractContextManager[object]:
    """For passes whose gradients are differentiated again, which compiled networks cannot do."""
    return torch.compiler.set_stance("force_eager")
