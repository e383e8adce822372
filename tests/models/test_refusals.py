"""The configs and the networks refuse what does not fit, and say what would."""

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from stylegan_inversion.models.discriminator import Discriminator, DiscriminatorConfig, append_minibatch_std
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.irse import IRSEConfig
from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig, ReStyleEncoder

GENERATOR = GeneratorConfig(16, z_dim=6, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)
ENCODER = PyramidEncoderConfig(16, 64, 6, widths=(4, 6, 8, 10), units=(1, 1, 1, 1), reduction=2)
RESTYLE = ReStyleConfig(16, 64, 6, widths=(4, 6, 8, 10), units=(1, 1, 1, 1), reduction=2)


def synthesis() -> torch.nn.Module:
    return Generator(GENERATOR).synthesis


def set_stage(stage: int) -> None:
    Encoder4Editing(ENCODER).progressive_stage = stage


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: replace(GENERATOR, resolution=48), r"`resolution` must be a power of two from 4 to 2048, got 48\."),
        (lambda: replace(GENERATOR, resolution=128), r"`channel_base` must be in \[resolution, 1048576\], got 64\."),
        (lambda: synthesis()(torch.zeros(1, 5, 8)), r"`w_plus` must have 6 layers, got 5\."),
        (lambda: synthesis()(torch.zeros(1, 6, 8), noise=[None] * 4), "`noise` must have 5 tensors, .*, got 4"),
        (
            lambda: synthesis()(torch.zeros(1, 6, 8), features=torch.zeros(1, 8, 24, 24)),
            r"`features` must have a side out of \['4', '8', '16'\], got 24\.",
        ),
        (
            lambda: inspect.unwrap(type(synthesis()).noise)(synthesis(), "constant"),  # past the tests' type checker
            r"`noise_mode` must be 'random', 'const' or 'none', got 'constant'\.",
        ),
        (lambda: DiscriminatorConfig(resolution=48), r"`resolution` must be a power of two from 4 to 2048, got 48\."),
        (lambda: DiscriminatorConfig(channel_base=512), r"`channel_base` must be >= resolution, got 512\."),
        (lambda: append_minibatch_std(torch.zeros(3, 1, 4, 4), 2), r"The batch \(3\) must be smaller than, or a"),
        (
            lambda: Discriminator(DiscriminatorConfig(16, 64, 8, group_size=2))(torch.zeros(3, 3, 16, 16)),
            r"The batch \(3\) must be smaller than, or a multiple of, `group_size` \(2\)\.",
        ),
        (lambda: IRSEConfig(reduction=65), r"`reduction` must be in \[0, smallest width\], got 65 for"),
        (lambda: replace(ENCODER, output_resolution=100), r"`resolution` must be a power of two from 4 to 2048, got 1"),
        (lambda: replace(ENCODER, input_resolution=96), r"`input_resolution` must be a power of two from 32 to 2048"),
        (lambda: replace(ENCODER, coarse_end=8), r"`coarse_end` must be in \[1, middle_end\], got 8 with middle_end=7"),
        (lambda: replace(ENCODER, reduction=5), r"`reduction` must be in \[0, smallest width\], got 5"),
        (lambda: replace(RESTYLE, input_resolution=96), r"`input_resolution` must be a power of two from 32 to 2048"),
        (lambda: replace(RESTYLE, in_channels=1), r"`in_channels` must be a whole number in \[3, 3\], got 1"),
        (
            lambda: ReStyleEncoder(RESTYLE).refine(torch.zeros(1, 3, 64, 64), Generator(GENERATOR), iterations=0),
            r"`iterations` must be at least 1, got 0\.",
        ),
        (lambda: set_stage(-1), r"`progressive_stage` must be in \[0, 5\], got -1\."),
        (lambda: set_stage(6), r"`progressive_stage` must be in \[0, 5\], got 6\."),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
