# /// script
# requires-python = ">=3.10"
# dependencies = ["stylegan-inversion"]
# ///
"""Time the work that people wait for, against this machine and against the readable reference forms of `ops.py`.

usage: python recipes/benchmark.py [--resolution 1024] [--work NAME ...] [--repeats 5] [--threads 1] [--device cpu]

Prints a row for each kind of work, with random weights of the released networks' sizes (at 64 px, faces64's):

- ms: median of the repeats, after one that is not counted, and their lowest and highest.
- reference, with `--reference`: median of how many times as long the same work takes with the reference forms. Both run
  in turn, so the ratio holds on a busy machine too. At 1024 px these forms take up to 22 GB. Encoders have none.
- roofline: share of the throughput that this machine reached in a matrix product, counted in floating-point operations
  that the work cannot do without (PyTorch's count of its convolutions and matrix products).
- MB: peak memory above what the networks take. Each row runs in a process of its own.
"""

# ruff: noqa: E402

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from unittest import mock

from stylegan_inversion.cli import prepare_process

prepare_process()  # before PyTorch is loaded, as the command line does

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from stylegan_inversion import PTIPipeline, latents, ops
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.inversion.pivotal_tuning import TuningConfig, tune_generator
from stylegan_inversion.inversion.projector import ProjectorConfig, project_w
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig

REFERENCES = {name: getattr(ops, f"{name}_reference") for name in ("styled_conv", "to_rgb", "upfirdn2d")}


def make_generator(resolution: int, device: str) -> Generator:
    """A generator of the usual sizes with random weights, noise included."""
    base, limit = (4096, 192) if resolution <= 64 else (32768, 512)
    generator = Generator(GeneratorConfig(resolution, channel_base=base, channel_max=limit)).eval()
    for conv in generator.synthesis.convs:
        conv.noise_strength.data.fill_(0.1)
    return generator.requires_grad_(False).to(device)


def make_encoder(resolution: int, device: str) -> Encoder4Editing:
    """e4e's encoder with random weights."""
    return Encoder4Editing(PyramidEncoderConfig(resolution)).eval().requires_grad_(False).to(device)


def synthesis(resolution: int, device: str, *, to: str = "nothing", batch: int = 1) -> Callable[[], object]:
    """Draw a picture, and compute the gradient of its mean square."""
    generator = make_generator(resolution, device)
    generator.synthesis.requires_grad_(to == "weights")
    w_plus = latents.broadcast(torch.randn(batch, 512, device=device), generator.num_ws).requires_grad_(to == "w")
    leaves = list(generator.synthesis.parameters()) if to == "weights" else [w_plus]

    def run() -> None:
        with torch.set_grad_enabled(to != "nothing"):
            loss = generator.synthesis(w_plus).square().mean()
        if to != "nothing":
            loss.backward()
            for leaf in leaves:
                leaf.grad = None

    return run


def encoder(resolution: int, device: str, *, batch: int = 1) -> Callable[[], object]:
    """Encode photos with e4e."""
    network, x = make_encoder(resolution, device), torch.randn(batch, 3, 256, 256, device=device)
    return torch.no_grad()(lambda: network(x))


def projection(resolution: int, device: str) -> Callable[[], object]:
    """A step of PTI's first stage."""
    generator, perceptual = make_generator(resolution, device), load_perceptual(device=device)
    target = torch.rand(1, 3, resolution, resolution, device=device)
    config = ProjectorConfig(num_steps=1, num_w_samples=2)
    return lambda: project_w(generator, target, perceptual=perceptual, config=config)


def tuning(resolution: int, device: str, *, use_locality: bool = False) -> Callable[[], object]:
    """A step of PTI's second stage, and the pass that measures its result."""
    generator, perceptual = make_generator(resolution, device), load_perceptual(device=device)
    target = torch.rand(1, 3, resolution, resolution, device=device)
    pivot = latents.broadcast(torch.randn(1, 512, device=device), generator.num_ws)
    config = TuningConfig(num_steps=1, use_locality=use_locality, lpips_threshold=0.0)
    return lambda: tune_generator(generator, target, pivot, perceptual=perceptual, config=config)


def training(resolution: int, device: str) -> Callable[[], object]:
    """A step of an encoder's training by L2 and LPIPS, on two photos."""
    generator, perceptual = make_generator(resolution, device), load_perceptual(device=device)
    network = make_encoder(resolution, device).train().requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    x = torch.rand(2, 3, 256, 256, device=device)

    def run() -> None:
        optimizer.zero_grad()
        y_hat = F.adaptive_avg_pool2d(generator.synthesis(network(x)), 256)
        (F.mse_loss(y_hat, x) + perceptual(y_hat, x).mean()).backward()
        optimizer.step()

    return run


def photo(resolution: int, device: str) -> Callable[[], object]:
    """A photo by PTI with the built-in model, of 64 px: 20 steps of each stage, the search for the face included."""
    pipeline = PTIPipeline.from_pretrained("faces64", device=device)
    path = sample_photos()[0]
    return lambda: pipeline(path, num_w_steps=20, num_tuning_steps=20)


WORK: dict[str, Callable[[int, str], Callable[[], object]]] = {
    "synthesis": synthesis,
    "synthesis-to-w": lambda *a: synthesis(*a, to="w"),
    "synthesis-to-weights": lambda *a: synthesis(*a, to="weights"),
    "synthesis-of-4": lambda *a: synthesis(*a, batch=4),
    "encoder": encoder,
    "encoder-of-8": lambda *a: encoder(*a, batch=8),
    "projection": projection,
    "tuning": tuning,
    "tuning-locality": lambda *a: tuning(*a, use_locality=True),
    "training": training,
    "photo": photo,
}


def seconds(run: Callable[[], object], device: str) -> float:
    """Time one run; a GPU finishes its work first."""
    start = time.perf_counter()
    run()
    if device != "cpu":
        getattr(torch, device.partition(":")[0]).synchronize()
    return time.perf_counter() - start


def peak(device: str) -> float:
    """Peak memory so far, in megabytes: of the process on a CPU, of the allocator on CUDA, at present on MPS."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    if device.startswith("mps"):
        return torch.mps.current_allocated_memory() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """One row, in this process."""
    torch.manual_seed(0)
    run = WORK[name](args.resolution, args.device)
    resting = peak(args.device)
    with FlopCounterMode(display=False) as counter:
        run()
    memory = peak(args.device) - resting
    matrix = torch.randn(2048, 2048, device=args.device)
    ours, ratios, product = [], [], []
    for _ in range(args.repeats):
        product.append(seconds(lambda: matrix @ matrix, args.device))
        ours.append(seconds(run, args.device))
        if args.reference and not name.startswith("encoder"):
            with mock.patch.multiple(ops, **REFERENCES):
                ratios.append(seconds(run, args.device) / ours[-1])
    throughput = counter.get_total_flops() / statistics.median(ours) / (2 * 2048**3 / min(product[1:] or product))
    return {
        "ms": 1e3 * statistics.median(ours),
        "lowest": 1e3 * min(ours),
        "highest": 1e3 * max(ours),
        "reference": statistics.median(ratios or [float("nan")]),
        "roofline": 100 * throughput,
        "MB": memory,
    }


def main() -> None:
    """Start a process for each row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--work", nargs="+", default=list(WORK), choices=WORK, metavar="NAME", help=", ".join(WORK))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference", action="store_true", help="time the reference forms too")
    parser.add_argument("--row", choices=WORK, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.row:
        print(json.dumps(measure(args.row, args)))
        return
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {args.resolution} px")
    print(f"{'work':22}{'ms':>9}{'lowest':>9}{'highest':>9}{'reference':>11}{'roofline':>10}{'MB':>8}")
    for name in args.work:
        command = [sys.executable, *sys.argv, "--row", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name:22}  failed: {(done.stderr.strip().splitlines() or ['killed, for memory perhaps'])[-1]}")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        times = "".join(f"{row[key]:9.0f}" for key in ("ms", "lowest", "highest"))
        print(f"{name:22}{times}{row['reference']:9.2f} x{row['roofline']:8.0f} %{row['MB']:8.0f}", flush=True)


if __name__ == "__main__":
    main()
