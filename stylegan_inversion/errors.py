"""Errors that a caller may want to catch. Wrong arguments raise `ValueError` or `TypeError` instead."""


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

    @classmethod
    def of_import(cls, package: str, error: Exception, extra: str, *, otherwise: str = "") -> "MissingDependencyError":
        """Make the error for an import that raised `error`: it is missing, or torchvision does not fit torch."""
        what = f"{package} cannot be imported ({error})."
        if isinstance(error, ModuleNotFoundError):
            return cls.of_extra(what, extra, otherwise=otherwise)
        cause = "torch and torchvision do not fit each other: install both from one index, see pytorch.org."
        return cls(f"{what} Here {cause} {otherwise}".rstrip())


class DivergedError(StyleGANInversionError):
    """An optimisation gave NaN or infinity before it reached a usable state."""


class UploadError(StyleGANInversionError):
    """A model could not be uploaded to the Hub."""
