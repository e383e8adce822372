"""What a method is: the one table that the command line, evaluation, the card and the app read."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.encoder import E4EPipeline, PSPPipeline, ReStylePipeline
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.pipelines.sfe import SFEPipeline


@dataclass(frozen=True)
class Method:
    """One way to invert a photo."""

    name: str  # what users type
    label: str  # how its authors write it
    title: str  # what a page shows
    paper: str  # its number at arXiv
    code: str  # its authors' repository on GitHub
    pipeline: type[InversionPipeline]

    @property
    def encoder(self) -> str | None:
        """A key of `models.encoders.ENCODERS`; `None` if it needs a generator only."""
        return self.pipeline.encoder_kind

    @property
    def optimizes(self) -> bool:
        """Whether it optimises for each photo, which takes a while and can be stopped; an encoder answers at once."""
        return self.pipeline.optimizes


_ROWS = (  # the page takes the first that the model has
    Method("sfe", "SFE", "SFE · at once, sharp", "2406.10601", "AIRI-Institute/StyleFeatureEditor", SFEPipeline),
    Method("e4e", "e4e", "e4e · at once, made for edits", "2102.02766", "omertov/encoder4editing", E4EPipeline),
    Method("psp", "pSp", "pSp · at once, nearer to the photo", "2008.00951", "eladrich/pixel2style2pixel", PSPPipeline),
    Method(
        "restyle",
        "ReStyle",
        "ReStyle · a few passes, nearer still",
        "2104.02699",
        "yuval-alaluf/restyle-encoder",
        ReStylePipeline,
    ),
    Method("pti", "PTI", "PTI · nearest to the photo, takes a while", "2106.05744", "danielroich/PTI", PTIPipeline),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ROWS})
DEFAULT_METHOD = "pti"  # of the command line
ANY_GENERATOR = next(row.pipeline.__name__ for row in _ROWS if row.encoder is None)  # takes a model without an encoder
