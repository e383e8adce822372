"""What an encoder is, by name: its network, its config, and the folder that holds it inside a model."""

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
        progressive: Whether it writes offsets from its first w, which training switches on one by one.
    """

    network: type[nn.Module]
    config: type[Any]
    folder: str
    pipeline: str
    progressive: bool = False


ENCODERS = {
    "psp": EncoderKind(GradualStyleEncoder, PyramidEncoderConfig, "psp_encoder", "PSPPipeline"),
    "e4e": EncoderKind(Encoder4Editing, PyramidEncoderConfig, "e4e_encoder", "E4EPipeline", progressive=True),
    "restyle": EncoderKind(ReStyleEncoder, ReStyleConfig, "restyle_encoder", "ReStylePipeline"),
}
