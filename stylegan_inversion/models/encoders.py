"""What an encoder is, by name: its network, its config, the folder that holds it inside a model, its authors' files."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.models.restyle_encoder import ReStyleConfig, ReStyleEncoder
from stylegan_inversion.models.sfe_encoder import StyleFeatureConfig, StyleFeatureEncoder


@dataclass(frozen=True)
class EncoderKind:
    """One row of `ENCODERS`."""

    network: type[nn.Module]
    config: type[Any]
    folder: str  # of the network inside a model
    types: tuple[str, ...]  # the values of `encoder_type` in the `opts` of its authors' files
    options: tuple[str, ...] = ("output_size", "learn_in_w")  # of those `opts`; the first is the generator's side
    grew_from: str | None = None  # the kind whose code its authors extended: their `opts` may keep that kind's options
    average_samples: int = 10_000  # how many z its authors average w over where a file has no average
    progressive: bool = False  # whether training switches its offsets from the first w on one by one
    needs: tuple[str, ...] = ()  # other kinds that its pipeline uses as well
    from_average: bool = False  # whether it starts at the average w, whatever `start_from_latent_avg` in `opts` says
    iterative: bool = False  # whether it looks at its own last result, in several passes


RESTYLE_FORMS = {  # by `resnet` and `offsets` of the config
    (False, False): "BackboneEncoder",
    (False, True): "ProgressiveBackboneEncoder",
    (True, False): "ResNetBackboneEncoder",
    (True, True): "ResNetProgressiveBackboneEncoder",
}
ENCODERS = {
    "e4e": EncoderKind(
        Encoder4Editing,
        PyramidEncoderConfig,
        "e4e_encoder",
        ("Encoder4Editing", "SingleStyleCodeEncoder"),
        options=("stylegan_size",),
        grew_from="psp",
        progressive=True,
    ),
    "psp": EncoderKind(
        GradualStyleEncoder,
        PyramidEncoderConfig,
        "psp_encoder",
        ("GradualStyleEncoder", "BackboneEncoderUsingLastLayerIntoW"),
        average_samples=100_000,
    ),
    "restyle": EncoderKind(
        ReStyleEncoder,
        ReStyleConfig,
        "restyle_encoder",
        tuple(RESTYLE_FORMS.values()),
        from_average=True,
        iterative=True,
    ),
    "sfe": EncoderKind(StyleFeatureEncoder, StyleFeatureConfig, "sfe_encoder", types=(), options=(), needs=("e4e",)),
}
SINGLE_PASS = tuple(name for name, row in ENCODERS.items() if row.config is PyramidEncoderConfig)
"""Those that map a picture to w_plus at once."""
WITH_GENERATOR = tuple(name for name, row in ENCODERS.items() if row.types)
"""Those whose authors' files hold the generator as well."""
