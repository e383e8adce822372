"""A run of an autoencoder, and its first batches."""

from typing import Any

from accelerate import Accelerator
from stylegan_inversion.training.autoencoder import AutoencoderLearner
from stylegan_inversion.training.generator_config import AutoencoderConfig

from stylegan_inversion.training.data import PositionSampler, load_batches


def learner_of(config: AutoencoderConfig) -> AutoencoderLearner:
    return AutoencoderLearner(config, Accelerator(cpu=True))


def batches_of(learner: AutoencoderLearner, count: int, *, start: int = 0) -> list[dict[str, Any]]:
    folder = learner.open_data()
    assert folder is not None
    sampler = PositionSampler(learner.config.batch_size, start=start, end=start + count)
    return list(load_batches(folder, sampler, num_workers=0))
