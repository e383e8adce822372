"""The encoders of faces64: from the runs of `psp.yaml`, `e4e.yaml` and `sfe_editor.yaml` into the package, as float16.

usage: python recipes/faces64/encoders.py [--runs runs/faces64] [--only psp e4e sfe] [--model FOLDER]
"""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from stylegan_inversion import storage
from stylegan_inversion.models.encoders import ENCODERS

RUNS = {"psp": "psp", "e4e": "e4e", "sfe": "sfe_editor"}
LARGEST_VARIANCE = 1e4  # float16 ends at 65504


@torch.no_grad()
def shrink_features(encoder: nn.Module) -> None:
    """Divide convolutions whose features float16 cannot hold the variance of; batch normalisation undoes it."""
    for block in encoder.modules():
        for conv, norm in pairwise(block) if isinstance(block, nn.Sequential) else ():
            if isinstance(conv, nn.Conv2d) and conv.bias is None and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                if (largest := norm.running_var.max()) > LARGEST_VARIANCE:
                    factor = (LARGEST_VARIANCE / largest).sqrt()
                    conv.weight *= factor
                    norm.running_mean *= factor
                    norm.running_var *= factor**2


def main() -> None:
    """Copy them, and say how far the rounding moves their codes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/faces64"))
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--model", type=Path, default=storage.builtin_path("faces64"))
    args = parser.parse_args()
    for name in args.only:
        kind = ENCODERS[name]
        encoder = storage.load_module(kind.network, kind.config, args.runs / RUNS[name] / "best" / kind.folder)
        codes = getattr(encoder, "backbone", encoder)  # StyleFeatureEditor's gives them first, then the features
        x = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            full = codes(x)
            shrink_features(encoder)
            storage.save_module(encoder, args.model / kind.folder, dtype=torch.float16)
            encoder.half().float()
            half = codes(x)
        if isinstance(full, tuple):
            full, half = full[0], half[0]
        parameters = sum(p.numel() for p in encoder.parameters())
        moved = (full - half).norm() / full.norm()
        print(f"{kind.folder}: {parameters / 1e6:.1f} M parameters; float16 moves the codes by {moved:.1e}, relative")


if __name__ == "__main__":
    main()
