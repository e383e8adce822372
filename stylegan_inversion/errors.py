"""Errors that a caller may want to catch. Wrong arguments raise `ValueError` or `TypeError` instead."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class StyleGANInversionError(Exception):
    """Base of every error below."""


class InvalidImageError(StyleGANInversionError, ValueError):
    """The input is not an image this package can work with; the message says why and what to do."""


class FaceNotFoundError(StyleGANInversionError):
    """The photo shows no face, or not the face that was asked for."""


class CheckpointError(StyleGANInversionError):
    """A weight file is missing, damaged, or does not fit the network it is meant for."""


class ModelNotFoundError(StyleGANInversionError):
    """The name is neither a built-in model, nor a folder, nor a repository that can be reached."""


class MissingDependencyError(StyleGANInversionError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    @classmethod
    def of_extra(cls, what: str, extra: str, *, otherwise: str = "") -> "MissingDependencyError":
        """Make the error for a missing extra: `what` cannot be done, `otherwise` needs no extra, both as sentences."""
        commands = f"pip install '.[{extra}]' in a checkout, or pip install 'stylegan-inversion[{extra}]'"
        return cls(f"{what} Install it with: {commands}. {otherwise}".rstrip())


@contextmanager
def importing(package: str, extra: str, *, otherwise: str) -> Iterator[None]:
    """Import an optional package: say how to install it if it is missing, or that torchvision does not fit torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, about readers of files that it lacks
            yield
    except Exception as e:  # a torchvision that does not fit torch raises RuntimeError, then AttributeError
        what = f"{package} cannot be imported ({e})."
        if isinstance(e, ModuleNotFoundError):
            raise MissingDependencyError.of_extra(what, extra, otherwise=otherwise) from e
        cause = "torch and torchvision do not fit each other: install both from one index, see pytorch.org."
        raise MissingDependencyError(f"{what} Here {cause} {otherwise}") from e


class DivergedError(StyleGANInversionError):
    """An optimisation gave NaN or infinity before it reached a usable state."""


class UploadError(StyleGANInversionError):
    """A model could not be uploaded to the Hub."""
