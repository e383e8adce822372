"""Step 10 of faces64: an encoder learns the w that the autoencoder of a generator's run knows for each picture.

    python recipes/faces64/pretrain.py --config recipes/faces64/pretrain.yaml

No picture is drawn and compared, so a picture takes less than half the time. The other options are those of
`stylegan-inversion train`.
"""

import sys
from dataclasses import dataclass

from accelerate import Accelerator
from image_encoder import ImageEncoder, ImageEncoderConfig

from stylegan_inversion import storage
from stylegan_inversion.checkpoints.find import find_folder
from stylegan_inversion.training.config import EncoderRunConfig, load_config
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.trainer import train_main


@dataclass(frozen=True)
class PretrainConfig(EncoderRunConfig):
    """A run of an encoder with a teacher."""

    teacher: str = "runs/faces64/gan_noise/last"  # a model with the encoder of an autoencoder


def make_learner(config: PretrainConfig, accelerator: Accelerator) -> EncoderLearner:
    """The package's learner, with the teacher."""
    teacher = storage.load_module(
        ImageEncoder, ImageEncoderConfig, find_folder(config.teacher) / "autoencoder", device=accelerator.device
    )
    return EncoderLearner(config, accelerator, teacher=teacher)


if __name__ == "__main__":
    sys.exit(train_main(load_config(sys.argv[1:], [PretrainConfig]), make_learner))
