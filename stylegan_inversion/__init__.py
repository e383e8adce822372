"""Real photos inside StyleGAN2's latent space: pSp, e4e, ReStyle, StyleFeatureEditor and PTI."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stylegan_inversion.editing.directions import Direction
    from stylegan_inversion.errors import (
        CheckpointError,
        DivergedError,
        FaceNotFoundError,
        InvalidImageError,
        MissingDependencyError,
        ModelNotFoundError,
        StyleGANInversionError,
        UploadError,
    )
    from stylegan_inversion.models.generator import Generator
    from stylegan_inversion.pipelines.encoder import E4EPipeline, PSPPipeline, ReStylePipeline
    from stylegan_inversion.pipelines.methods import METHODS
    from stylegan_inversion.pipelines.output import InversionOutput
    from stylegan_inversion.pipelines.pti import PTIPipeline
    from stylegan_inversion.pipelines.receipts import Receipt, read_receipt, redraw, save_picture
    from stylegan_inversion.pipelines.sfe import SFEPipeline
    from stylegan_inversion.preprocessing.domain import Domain
    from stylegan_inversion.preprocessing.image import load_image

__all__ = [
    "METHODS",
    "CheckpointError",
    "Direction",
    "DivergedError",
    "Domain",
    "E4EPipeline",
    "FaceNotFoundError",
    "Generator",
    "InvalidImageError",
    "InversionOutput",
    "MissingDependencyError",
    "ModelNotFoundError",
    "PSPPipeline",
    "PTIPipeline",
    "ReStylePipeline",
    "Receipt",
    "SFEPipeline",
    "StyleGANInversionError",
    "UploadError",
    "load_image",
    "read_receipt",
    "redraw",
    "save_picture",
]

_MODULES = {
    "METHODS": "pipelines.methods",
    "Direction": "editing.directions",
    "Domain": "preprocessing.domain",
    "E4EPipeline": "pipelines.encoder",
    "Generator": "models.generator",
    "InversionOutput": "pipelines.output",
    "PSPPipeline": "pipelines.encoder",
    "PTIPipeline": "pipelines.pti",
    "ReStylePipeline": "pipelines.encoder",
    "Receipt": "pipelines.receipts",
    "SFEPipeline": "pipelines.sfe",
    "load_image": "preprocessing.image",
    "read_receipt": "pipelines.receipts",
    "redraw": "pipelines.receipts",
    "save_picture": "pipelines.receipts",
}  # where each name is; the others are in `errors`


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: PyTorch takes a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
