"""What a method is: the one table that the command line, evaluation, export, the card and the app read."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.encoder import E4EPipeline, PSPPipeline, ReStylePipeline
from stylegan_inversion.pipelines.pti import PTIPipeline


@dataclass(frozen=True)
class Method:
    """One way to invert a photo.

    Attributes:
        name: What users type.
        label: How its authors write it.
        title: What a page shows.
        summary: What it does, in a sentence.
        paper: Its number at arXiv.
        pipeline: Class of the pipeline.
    """

    name: str
    label: str
    title: str
    summary: str
    paper: str
    pipeline: type[InversionPipeline]

    @property
    def encoder(self) -> str | None:
        """A key of `models.encoders.ENCODERS`. `None` needs a generator only, and optimises."""
        return self.pipeline.encoder_kind


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(
                "e4e",
                "e4e",
                "e4e · at once, made for edits",
                "An encoder that stays near W, where edits work.",
                "2102.02766",
                E4EPipeline,
            ),
            Method(
                "psp",
                "pSp",
                "pSp · at once, nearer to the photo",
                "An encoder into W+.",
                "2008.00951",
                PSPPipeline,
            ),
            Method(
                "restyle",
                "ReStyle",
                "ReStyle · a few passes, nearer still",
                "An encoder that corrects its own last result.",
                "2104.02699",
                ReStylePipeline,
            ),
            Method(
                "pti",
                "PTI",
                "PTI · nearest to the photo, takes a while",
                "Finds a pivot in W and tunes a copy of the generator.",
                "2106.05744",
                PTIPipeline,
            ),
        )
    }
)
