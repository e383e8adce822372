"""What a caller may want to catch. Wrong arguments raise `ValueError` or `TypeError` instead."""


class StyleGANInversionError(Exception):
    """Base of every error below."""


class InvalidImageError(StyleGANInversionError, ValueError):
    """The input is not an image this package can work with; the message says why and what to do."""


class FaceNotFoundError(StyleGANInversionError):
    """No face, or not the face that was asked for, was found in the photo."""


class CheckpointError(StyleGANInversionError):
    """A weight file is missing, damaged, or does not fit the network it is meant for."""


class ModelNotFoundError(StyleGANInversionError):
    """The name is neither a built-in model, nor a folder, nor a repository that can be reached."""


class MissingDependencyError(StyleGANInversionError, ImportError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    @classmethod
    def of_extra(cls, what: str, extra: str, *, otherwise: str = "") -> "MissingDependencyError":
        """Word the error of an extra of this package.

        Args:
            what: What cannot be done, as a sentence.
            extra: Name of the extra in pyproject.toml that holds the dependency.
            otherwise: What needs no dependency, as a sentence.
        """
        commands = f"pip install '.[{extra}]' in a checkout, or pip install 'stylegan-inversion[{extra}]'"
        return cls(f"{what} Install it with: {commands}. {otherwise}".rstrip())

    @classmethod
    def of_import(cls, package: str, error: Exception, extra: str, *, otherwise: str = "") -> "MissingDependencyError":
        """Word the error of a package that is not installed, or beside whose torchvision another torch is.

        Args:
            package: Its name.
            error: What its import raised.
            extra: As in `of_extra`, and so is `otherwise`.
            otherwise: "
        """
        what = f"{package} cannot be imported ({error})."
        if isinstance(error, ModuleNotFoundError):
            return cls.of_extra(what, extra, otherwise=otherwise)
        way = "torch and torchvision do not fit each other: install both from one index, see pytorch.org."
        return cls(f"{what} Here {way} {otherwise}".rstrip())


class DivergedError(StyleGANInversionError):
    """An optimisation gave NaN or infinity before any usable state was reached."""


class UploadError(StyleGANInversionError):
    """A model could not be uploaded to the Hub."""
