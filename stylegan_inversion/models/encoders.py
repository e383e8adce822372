"""What an encoder is, by name: its network, its config, the folder that holds it inside a model, its authors' files."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig, ReStyleEncoder


@dataclass(frozen=True)
class EncoderKind:
    """One row of `ENCODERS`.

    Attributes:
        network: The class of the network.
        config: Its config dataclass.
        folder: Folder of the network inside a model.
        pipeline: Name of the pipeline that a converted model's config names.
        types: The values of `encoder_type` in the `opts` of its authors' files.
        options: Options that only its authors' files have; the first holds the generator's resolution.
        average_samples: How many z its authors average w over where a file has no average.
        from_average: Whether it starts at the average w even if `opts` deny it (`start_from_latent_avg`).
    """

    network: type[nn.Module]
    config: type[Any]
    folder: str
    pipeline: str
    types: tuple[str, ...]
    options: tuple[str, ...] = ("output_size", "learn_in_w")
    average_samples: int = 10_000
    from_average: bool = False


ENCODERS = {
    "psp": EncoderKind(
        GradualStyleEncoder,
        PyramidEncoderConfig,
        "psp_encoder",
        "PSPPipeline",
        ("GradualStyleEncoder", "BackboneEncoderUsingLastLayerIntoW"),
        average_samples=100_000,
    ),
    "e4e": EncoderKind(
        Encoder4Editing,
        PyramidEncoderConfig,
        "e4e_encoder",
        "E4EPipeline",
        ("Encoder4Editing", "SingleStyleCodeEncoder"),
        options=("stylegan_size",),
    ),
    "restyle": EncoderKind(
        ReStyleEncoder,
        ReStyleConfig,
        "restyle_encoder",
        "ReStylePipeline",
        ("BackboneEncoder", "ProgressiveBackboneEncoder"),
        from_average=True,
    ),
}
