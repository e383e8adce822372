"""Step 8 of faces64: the generator, from the model of an adversarial run into the package, as float16.

usage: python recipes/faces64/generator.py [runs/faces64/gan_noise/last] [--noise 0.5] [--output DIR]

The noise inputs are halved: what they draw is grain, and half of it brings the Frechet distance in the features
of the perceptual network of that time (see README.md) from 2.11 to 1.99 and leaves that in the face network's where it
was (0.35).
Nothing is done if the output is there.
"""

import argparse
from pathlib import Path

import torch

from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.storage import builtin_path, load_module, save_module


def main() -> None:
    """Round it, and report how far that moves the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, nargs="?", default=Path("runs/faces64/gan_noise/last"), help="folder of a model"
    )
    parser.add_argument("--noise", type=float, default=0.5, help="factor on the strength of the noise inputs")
    parser.add_argument("--output", type=Path, default=builtin_path("faces64/generator"))
    args = parser.parse_args()
    if (args.output / "model.safetensors").exists():
        print(f"{args.output} is there already: nothing to do.")
        return
    generator = load_module(Generator, GeneratorConfig, args.model / "generator")
    for conv in generator.synthesis.convs:
        conv.noise_strength.data *= args.noise
    z = torch.randn(64, generator.config.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = generator(z)
        save_module(generator, args.output, dtype=torch.float16)
        half = generator.half().float()(z)
    difference = (full - half).abs()
    print(f"{args.output}: {generator.config}")
    print(f"float16 moves pixels by {difference.mean():.1e} in [-1, 1], at most {difference.max():.1e}")


if __name__ == "__main__":
    main()
