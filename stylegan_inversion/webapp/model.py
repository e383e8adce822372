"""One model of the web app: its pipelines, which share every network, and its directions. Knows no user interface."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from stylegan_inversion import hub
from stylegan_inversion.catalogue import list_models, read_licence
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.play import find_components
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.preprocessing.landmarks import LandmarkDetector
from stylegan_inversion.webapp.zerogpu import own_cpu

OWN = "Directions"  # title of the model's own
DEMONSTRATION = 128  # pixels a side, up to which a model is none to make pictures with
_LICENCES = {"non-commercial-research": "non-commercial research", "mit": "MIT", "apache-2.0": "Apache 2.0"}


@dataclass(frozen=True, eq=False)
class Model:
    """One model and all that can be done with it.

    Attributes:
        name: What `Models.get` knows it by; of a folder only its own name, not where it is.
        pipelines: By method, in the order of `METHODS`: "pti" always, the others if there is such an encoder of photos.
            They share the generator, the encoders, the detector and the directions.
        groups: Titles of slider groups, each with the names of its directions; "Directions" are the model's own.
        licence: Of the weights, in words.
        title: How a page calls it; "" means its name.
    """

    name: str
    pipelines: dict[str, InversionPipeline]
    groups: dict[str, list[str]]
    licence: str = "not stated"
    title: str = ""

    @property
    def pti(self) -> PTIPipeline:
        """The pipeline that every model has."""
        return cast(PTIPipeline, self.pipelines["pti"])

    @property
    def directions(self) -> dict[str, Direction]:
        """All directions by name, found ones too."""
        return self.pti.directions

    @property
    def resolution(self) -> int:
        """Side of its pictures in pixels."""
        return self.pti.generator.config.resolution

    @property
    def device(self) -> str:
        """Where it runs, in words."""
        device = self.pti.device
        if device.type == "cuda":
            return f"GPU ({torch.cuda.get_device_name(device)})"
        return {"cpu": own_cpu(), "mps": "GPU (Apple)"}.get(device.type, str(device))

    @property
    def note(self) -> str:
        """What it is, in plain sentences."""
        size = f"{self.resolution} x {self.resolution}"
        name = self.title or self.name
        words = [f"{name} draws pictures of {size} pixels, on the {self.device}. Licence: {self.licence}."]
        if self.resolution <= DEMONSTRATION:
            words.append(
                f"At {self.resolution} pixels it is a demonstration: it shows how the methods work, not how sharp "
                "their pictures can be."
            )
        if list(self.pipelines) == ["pti"]:
            words.append("It has no encoder, so that PTI is the only method.")
        return " ".join(words)


def load_model(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    detector: LandmarkDetector | Literal["auto", "builtin", "facexlib"] = "auto",
    token: str | None = None,
) -> Model:
    """Load a model with all its networks, each once, and find GANSpace's and SeFa's directions.

    Args:
        name_or_path: As in `PTIPipeline.from_pretrained`.
        device: Where to run; "auto" is the best there is.
        detector: Finds faces.
        token: Access token for the Hub.

    Raises:
        ModelNotFoundError: If there is no such model.
        CheckpointError: If a file is damaged or does not fit.
        ValueError: If this machine has no such device.
    """
    pti = PTIPipeline.from_pretrained(name_or_path, device=device, detector=detector, token=token)
    if pti.base_name is not None and pti.base_name.is_local:
        pti.base_name = (
            None  # a visitor's download would say where this machine keeps the model; it is saved whole instead
        )
    name = str(name_or_path)
    if (Path(name) / hub.CONFIG_NAME).is_file():  # as for the loader, a folder wins
        return make_model(pti, name=Path(name).resolve().name, licence=read_licence(Path(name)))
    licence = next((known.licence for known in list_models() if known.name == name), "see its page")
    return make_model(pti, name=name, licence=licence)


def make_model(pti: PTIPipeline, *, name: str, licence: str = "not stated") -> Model:
    """Find GANSpace's and SeFa's directions and build the pipelines of the encoders that a PTI pipeline has.

    Args:
        pti: Gets the found directions beside its own; one of its own that has such a name wins.
        name: Of the model.
        licence: Of the weights, as its card names it.

    Raises:
        CheckpointError: If an encoder's file is damaged.
    """
    groups = {OWN: list(pti.directions)}
    for title, found in find_components(pti.generator).items():
        new = {direction.name: direction for direction in found if direction.name not in pti.directions}
        pti.directions.update(new)
        groups[title] = list(new)
    pipelines: dict[str, InversionPipeline] = {
        method: pti.encoder_pipeline(method) for method in METHODS if method in pti.pivots
    }
    pipelines["pti"] = pti
    return Model(name, pipelines, {title: names for title, names in groups.items() if names}, in_words(licence))


def in_words(licence: str) -> str:
    """A licence as a page shows it."""
    return _LICENCES.get(licence, licence)
