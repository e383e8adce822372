"""Training and measuring on the command line."""

import argparse
from typing import Any

from stylegan_inversion.commands.arguments import add_detector, add_device, add_model, at_least, pair


def train(arguments: list[str]) -> int:
    from stylegan_inversion.training.config import load_config

    config = load_config(arguments)  # `--help` needs no PyTorch
    from stylegan_inversion.training.trainer import train_main

    return train_main(config)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.evaluation.benchmark import DEFAULTS, NAMES
    from stylegan_inversion.losses.lpips import PERCEPTUAL_NETWORKS

    add = parser.add_argument
    add("data", metavar="DATA_FOLDER", help="aligned face crops, or photos with --align")
    add_model(parser)
    names = f"methods to compare: {', '.join(NAMES)} [{' '.join(DEFAULTS)}]"
    add("--methods", nargs="+", default=DEFAULTS, metavar="NAME", help=names)
    add("--output", default="evaluation", metavar="DIR", help="a stopped run goes on in its folder [%(default)s]")
    add("--limit", type=at_least(1), metavar="N", help="use only the first N images by name")
    only = "limit one method, such as pti=50; a second table then compares the images that all methods did"
    limit = pair(at_least(1), "METHOD=N, such as pti=50")
    add("--limit-for", nargs="+", action="extend", default=[], type=limit, metavar="METHOD=N", help=only)
    add("--edits", nargs="*", metavar="NAME", help="edits to measure; no names, no edits [smile, if the model has it]")
    add("--align", action="store_true", help="find the face in each photo and cut it out")
    add("--resolution", type=at_least(11), metavar="PX", help="side at which pictures are compared [the model's]")
    add("--perceptual", default="alex", choices=PERCEPTUAL_NETWORKS, help="network that measures LPIPS [%(default)s]")
    faces = "network that compares faces: builtin, curricularface-ir-101 (the papers'), a folder, none [%(default)s]"
    add("--identity", default="builtin", help=faces)
    together = "photos that go through together [%(default)s]"
    add("--batch-size", type=at_least(1), default=16, metavar="N", help=together)
    add("--num-iterations", type=at_least(1), metavar="N", help="ReStyle: passes of the encoder [the model's own]")
    add("--num-w-steps", type=at_least(1), metavar="N", help="steps of the projection [450]")
    add("--num-tuning-steps", type=at_least(0), metavar="N", help="PTI: steps of the tuning [350]")
    add_device(parser)
    add_detector(parser)


def evaluate(data: str, output: str, *, limit_for: list[tuple[str, int]], identity: str, **options: Any) -> int:
    from stylegan_inversion.evaluation.benchmark import evaluate

    options |= {"identity": None if identity == "none" else identity, "limits": dict(limit_for), "progress": True}
    steps = {name: options.pop(name) for name in ("num_iterations", "num_w_steps", "num_tuning_steps")}
    results, table = evaluate(data, output, options=steps, **options)
    print(f"{table}\nEverything is in {output}.")
    return 1 if any(entry["failed"] for entry in results["all"]["methods"].values()) else 0


def add_evaluate_generator(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.losses.lpips import PERCEPTUAL_NETWORKS

    add, number = parser.add_argument, at_least(1)
    faces = "aligned face crops: the training data, or held-out pictures"
    add("--data", required=True, metavar="FOLDER", help=faces)
    models = "built-in models, folders, or organisation/repository; NAME=MODEL gives a name [faces64]"
    add("--models", nargs="+", default=["faces64"], metavar="MODEL", help=models)
    add("--output", default="generators", metavar="DIR", help="folder to write to [%(default)s]")
    add("--num-samples", type=at_least(8), default=10_000, metavar="N", help="samples to draw [%(default)s]")
    paths = "samples for the path length; 0 leaves it out [%(default)s]"
    add("--num-paths", type=at_least(0), default=2_000, metavar="N", help=paths)
    add("--limit", type=number, metavar="N", help="use only the first N images by name")
    add("--truncation-psi", type=float, default=1.0, metavar="PSI", help="truncation of the samples [%(default)s]")
    add("--seed", type=at_least(0), default=0, help="seed of all draws [%(default)s]")
    add("--perceptual", default="alex", choices=PERCEPTUAL_NETWORKS, help="network for features and PPL [%(default)s]")
    faces = "network for face features: builtin, an ArcFace's folder, none [builtin]"
    add("--identity", default="builtin", help=faces)
    add("--fid", action="store_true", help="add FID and KID; needs torch-fidelity and its weights")
    add("--batch-size", type=number, default=32, metavar="N", help="pictures that go through together [%(default)s]")
    add_device(parser)


def evaluate_generator(models: list[str], data: str, output: str, *, identity: str, **options: Any) -> int:
    from stylegan_inversion.evaluation.generators import evaluate_generators

    options |= {"identity": None if identity == "none" else identity, "progress": True}
    _, table = evaluate_generators(models, data, output, **options)
    print(f"{table}\nEverything is in {output}.")
    return 0
