"""Time and memory of `generator.synthesis`, with random weights of the usual sizes.

usage: python recipes/benchmark_synthesis.py [--resolutions 64 256 1024] [--batches 1 8] [--threads N] [--device cpu]

Prints, for each resolution and batch, the median milliseconds of the forward pass and of forward + backward to w and
the weights, and the peak memory above what the weights take. Each row runs in a process of its own, so that its peak is
its own.
With `--reference` it also times the plain per-sample convolutions of the paper's equations, as a ratio to ours.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from unittest import mock

import torch

from stylegan_inversion import latents, ops
from stylegan_inversion.models.generator import Generator, GeneratorConfig


def measure(resolution: int, batch: int, device: str, repeats: int) -> dict[str, float]:
    """One row: milliseconds and megabytes."""
    # 64 px as the built-in model, larger ones as the released networks.
    base, limit = (4096, 192) if resolution == 64 else (32768, 512)
    generator = Generator(GeneratorConfig(resolution, channel_base=base, channel_max=limit)).to(device)
    w_plus = latents.broadcast(torch.randn(batch, 512, device=device), generator.num_ws)

    def forward() -> None:
        with torch.no_grad():
            generator.synthesis(w_plus)

    def backward() -> None:
        w = w_plus.clone().requires_grad_()
        generator.synthesis(w).square().mean().backward()
        generator.zero_grad(set_to_none=True)

    result = {}
    resting = peak(device)  # the weights, and on a CPU the interpreter
    for name, run in (("forward", forward), ("backward", backward)):
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            run()
            if device != "cpu":
                getattr(torch, device.partition(":")[0]).synchronize()
            times.append((time.perf_counter() - start) * 1e3)
        result[name] = statistics.median(times[1:])
        result[f"{name}_mb"] = peak(device) - resting
    return result


def peak(device: str) -> float:
    """Peak memory so far, in megabytes: of the process on a CPU, of the allocator on CUDA, at present on MPS."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    if device.startswith("mps"):
        return torch.mps.current_allocated_memory() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Start a process for each row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--row", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.row:
        replaced = ops.modulated_conv2d_reference if args.plain else ops.modulated_conv2d
        with mock.patch.object(ops, "modulated_conv2d", replaced):
            print(json.dumps(measure(*args.row, args.device, args.repeats)))
        return

    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, median of {args.repeats}")
    print("  side  batch   forward ms  fwd+bwd ms   forward MB  fwd+bwd MB" + "   reference: fwd, f+b" * args.reference)
    for resolution in args.resolutions:
        for batch in args.batches:
            ours = row(args, resolution, batch)
            line = f"{resolution:6} {batch:6} "
            if ours is None:
                print(line + "  out of memory")
                continue
            line += (
                f"{ours['forward']:12.1f}{ours['backward']:12.1f}{ours['forward_mb']:13.0f}{ours['backward_mb']:12.0f}"
            )
            plain = row(args, resolution, batch, "--plain") if args.reference else None
            if plain:
                line += "".join(f"{plain[key] / ours[key]:10.2f} x" for key in ("forward", "backward"))
            print(line, flush=True)


def row(args: argparse.Namespace, resolution: int, batch: int, *extra: str) -> dict[str, float] | None:
    """Measure one row in a process of its own; `None` if it ran out of memory."""
    options = ["--threads", str(args.threads), "--repeats", str(args.repeats), "--device", args.device, *extra]
    command = [sys.executable, __file__, "--row", str(resolution), str(batch), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -9 or "memory" in done.stderr.lower():
        return None
    done.check_returncode()
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
