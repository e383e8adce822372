"""Step 6 of faces64: samples as the pictures are, from the autoencoder of step 5.

usage: python recipes/faces64/prior.py MODEL [--data FOLDER] [--output FOLDER]

The autoencoder's run leaves a normal distribution of w. Here a flow learns the distribution itself from the w of all
pictures and their mirror images, and the mapping network learns the flow. About 15 minutes on one core. Nothing is done
if the output is there.
"""

import argparse
import logging
from pathlib import Path

import torch
from flow import FlowConfig, fit_flow_prior
from image_encoder import ImageEncoder, ImageEncoderConfig
from torch import Tensor

from stylegan_inversion import storage
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.image import list_images, load_image, to_tensor

logger = logging.getLogger("prior")
BATCH = 64


@torch.no_grad()
def encode(encoder: ImageEncoder, pictures: list[Path]) -> Tensor:
    """The w of pictures and of their mirror images, (2 * len(pictures), w_dim)."""
    codes = []
    for first in range(0, len(pictures), BATCH):
        x = torch.cat([to_tensor(load_image(path)) for path in pictures[first : first + BATCH]])
        codes += [encoder(x), encoder(x.flip(-1))]
    return torch.cat(codes)


def main() -> None:
    """Write a model with another mapping network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("runs/faces64/autoencoder64/last"))
    parser.add_argument("--data", type=Path, default=Path("runs/faces64/data/train"), help="aligned pictures")
    parser.add_argument("--output", type=Path, default=Path("runs/faces64/prior"))
    parser.add_argument("--bf16", action="store_true", help="half precision: twice as fast on processors with AMX")
    for name in ("components", "flow_steps", "pairs", "mapping_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(FlowConfig, name), metavar="N")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if (args.output / storage.CONFIG_NAME).exists():
        logger.info("%s is there already: nothing to do.", args.output)
        return
    generator = storage.load_module(Generator, GeneratorConfig, args.model / "generator")
    encoder = storage.load_module(ImageEncoder, ImageEncoderConfig, args.model / "autoencoder")
    w = encode(encoder, [args.data / name for name in list_images(args.data)])
    config = FlowConfig(
        components=args.components,
        flow_steps=args.flow_steps,
        pairs=args.pairs,
        mapping_steps=args.mapping_steps,
        bf16=args.bf16,
    )
    fit_flow_prior(
        generator, encoder, w, config=config, report=lambda *values: logger.info("%s, step %d: %.4f", *values)
    )
    storage.save_module(generator, args.output / "generator")
    storage.save_module(encoder, args.output / "autoencoder")
    storage.write_config(storage.read_config(args.model), args.output)


if __name__ == "__main__":
    main()
