"""Step 1 of faces64: the generator, from a checkpoint in rosinality's key names or from a training run of ours.

usage: python recipes/faces64/generator.py CHECKPOINT.safetensors [--output DIR]
       python recipes/faces64/generator.py runs/faces64/gan/last [--output DIR]

The checkpoint holds the generator's tensors and `latent_avg`. The one that the package ships (sha256 below) was trained
as the decoder of an autoencoder on synthetic faces; the model card says how. Nothing is done if the output is there.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file

from stylegan_inversion.convert.generator import generator_from_rosinality
from stylegan_inversion.hub import builtin_path, fill_module, load_module, save_module
from stylegan_inversion.models.generator import Generator, GeneratorConfig

SHA256 = "e8d4239a74d4b342ee8bafa7e7f7b3a025549c5b1f8c20340c9dd4e67b0f17d1"


def load(checkpoint: Path) -> Generator:
    """The generator of a run, or of a checkpoint through the package's own converter."""
    if checkpoint.is_dir():
        return load_module(Generator, GeneratorConfig, checkpoint / "generator")
    if hashlib.sha256(checkpoint.read_bytes()).hexdigest() != SHA256:
        print("Note: this is not the checkpoint that the package ships.")
    official = load_file(checkpoint)
    latent_avg = official.pop("latent_avg")
    config, state_dict = generator_from_rosinality(official, latent_avg=latent_avg)
    generator = Generator(config)
    fill_module(generator, state_dict, source=str(checkpoint))
    return generator


def main() -> None:
    """Convert, and report how far float16 storage moves the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="safetensors, or the model folder of a run")
    parser.add_argument("--output", type=Path, default=builtin_path("faces64/generator"))
    args = parser.parse_args()
    if (args.output / "model.safetensors").exists():
        print(f"{args.output} is there already: nothing to do.")
        return
    generator = load(args.checkpoint)
    config = generator.config
    z = torch.randn(64, config.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = generator(z)
        save_module(generator, args.output, dtype=torch.float16)
        half = generator.half().float()(z)
    difference = (full - half).abs()
    print(f"{args.output}: {config}")
    print(f"float16 moves pixels by {difference.mean():.1e} in [-1, 1], at most {difference.max():.1e}")


if __name__ == "__main__":
    main()
