"""What can be trained: a config and a learner for each method; and how the config of a run is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stylegan_inversion.errors import MissingDependencyError

try:
    from accelerate import Accelerator
except ImportError as e:
    raise MissingDependencyError.of_extra(f"Training needs Accelerate, which cannot be imported ({e}).", "train") from e

from stylegan_inversion.training.autoencoder import AutoencoderLearner
from stylegan_inversion.training.config import RunConfig, TrainConfig, one_of
from stylegan_inversion.training.encoder import EncoderLearner
from stylegan_inversion.training.gan import GANLearner
from stylegan_inversion.training.generator_config import AutoencoderConfig, GANConfig
from stylegan_inversion.training.learner import Learner


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    config: type[RunConfig]
    learner: Callable[[Any, Accelerator], Learner]


METHODS = {
    "psp": Method(TrainConfig, EncoderLearner),
    "e4e": Method(TrainConfig, EncoderLearner),
    "gan": Method(GANConfig, GANLearner),
    "autoencoder": Method(AutoencoderConfig, AutoencoderLearner),
}
DEFAULT = "psp"


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config.

    Args:
        path: YAML with `method` and the fields of its config. `None` takes the defaults.
        overrides: `name=value`, such as `steps=1000` or `optimizer.lr=1e-4`; they win.

    Raises:
        ValueError: If the file cannot be read, a field is unknown, or a value does not fit; the message names it.
        MissingDependencyError: If OmegaConf is not installed.
    """
    try:
        from omegaconf import DictConfig, OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ImportError as e:
        raise MissingDependencyError.of_extra(
            f"Training needs OmegaConf, which cannot be imported ({e}).", "train"
        ) from e
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"{override!r} is not NAME=VALUE, such as steps=1000.")
    try:
        given = OmegaConf.merge({} if path is None else OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        if not isinstance(given, DictConfig):
            raise TypeError
        method = str(given.get("method", DEFAULT))
        one_of("method", method, list(METHODS))
        fields = OmegaConf.structured(METHODS[method].config)
        return cast(RunConfig, OmegaConf.to_object(OmegaConf.merge(fields, given)))
    except OSError as e:
        raise ValueError(f"The config cannot be read: {e}") from e
    except (YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{path or 'An override'} is not YAML: {e}") from e
    except TypeError as e:
        raise ValueError(f"{path} must hold NAME: VALUE lines.") from e
    except OmegaConfBaseException as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f"The config does not fit at {getattr(e, 'full_key', None) or '?'}: {reason}") from e
