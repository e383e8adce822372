"""The first batches of an encoder's run, and the stages of e4e spread over it."""

from pathlib import Path
from typing import Any

from stylegan_inversion.training.config import E4EOptions
from stylegan_inversion.training.data import FaceFolder, PositionSampler, load_batches
from stylegan_inversion.training.encoder import EncoderLearner

SPREAD = E4EOptions(open_from=0.2, open_until=0.8, pool_size=6)


def batches_of(learner: EncoderLearner, count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """The first micro-batches of the run."""
    config = learner.config
    folder = FaceFolder(
        Path(config.data or ""),
        learner.task,
        input_resolution=learner.input_resolution,
        output_resolution=learner.output_resolution,
        seed=0,
        training=True,
    )
    sampler = PositionSampler(config.batch_size, start=start, end=start + count)
    return list(load_batches(folder, sampler, num_workers=0))
