"""The models that visitors choose from: loaded once, shared by all, never changed."""

import re
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch

from stylegan_inversion import storage
from stylegan_inversion.catalogue import KnownModel, catalogue, list_models, read_licence
from stylegan_inversion.checkpoints.find import find_folder, known_entry
from stylegan_inversion.editing.directions import Direction, both_ways
from stylegan_inversion.errors import ModelNotFoundError, StyleGANInversionError
from stylegan_inversion.hub import Access, cache_root, report_downloads
from stylegan_inversion.latents import broadcast, random_source
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator as StyleGAN
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.encoder import EncoderPipeline
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.play import find_components
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.preprocessing.landmarks import LandmarkDetector
from stylegan_inversion.preprocessing.sources import PhotoSource, to_config
from stylegan_inversion.webapp.run import REPORT_SECONDS, Report, finish, in_thread

STYLE_REACH, STYLE_SAMPLES = 3.0, 1000  # deviations to which a direction in S without a range goes; of so many w
DEMONSTRATION = 128  # pixels a side, up to which a model only shows how the methods work
LOADING = "loading"  # name of the threads
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r"[^\s`'\"(]*snapshots[\\/]+\w+")  # where the Hub's client keeps a repository
_FOLDERS = re.compile(r"(?<![\w:/\\.-])(?:[A-Za-z]:)?[\\/]+(?:[\w.~+@%-]+[\\/]+)+")  # of an absolute path, not of a URL
_WORDS = {
    "smile": ("Smile", "Smile", "Serious"),
    "age": ("Younger / older", "Older", "Younger"),
    "yaw": ("Turn head", "Look right", "Look left"),
    "pose": ("Turn head", "Turn one way", "Turn the other"),
    "gender": ("Female / male", "More male", "More female"),
    "mouth_open": ("Mouth", "Open mouth", "Close mouth"),
    "pitch": ("Nod", "Look up", "Look down"),
}
_LICENCES = {"non-commercial-research": "non-commercial research", "mit": "MIT", "apache-2.0": "Apache 2.0"}


@dataclass(frozen=True, eq=False)
class Model:
    """One model and all that can be done with it."""

    name: str  # what `Models.get` knows it by
    pipelines: dict[str, InversionPipeline]  # by method, in the order of `METHODS`; they share networks and directions
    named: list[str]  # the model's own directions; the others were found in its weights
    licence: str = "not stated"  # of the weights, in words
    drawing: EncoderPipeline | None = None  # of an encoder that does not invert photos but makes pictures of others

    @property
    def has_faces(self) -> bool:
        """Whether it draws faces, which are looked for in photos."""
        return self.tuner.domain.has_faces

    @property
    def readers(self) -> list[InversionPipeline]:
        """All pipelines."""
        return [*self.pipelines.values(), *([self.drawing] if self.drawing else [])]

    @property
    def translator(self) -> EncoderPipeline:
        """The pipeline that translates pictures. Raises `ValueError` if there is none."""
        found = next((each for each in [*self.readers[::-1]] if isinstance(each, EncoderPipeline)), None)
        if found is None:
            raise ValueError(f"{self.name} has no encoder, so that it translates no pictures: choose another model.")
        return found

    @property
    def reads(self) -> str | None:
        """What it makes pictures of, where it does: sketch, labels, or the task for which it reads photos."""
        if self.drawing is None:
            return None
        source = self.drawing.source
        return source.task if isinstance(source, PhotoSource) else source.kind

    @property
    def tuner(self) -> PTIPipeline:
        """The pipeline that every model has."""
        return cast(PTIPipeline, next(each for each in self.pipelines.values() if each.optimizes))

    @property
    def quick(self) -> str | None:
        """The method that answers at once, if there is one."""
        return next((name for name, each in self.pipelines.items() if not each.optimizes), None)

    @property
    def directions(self) -> dict[str, Direction]:
        """All directions by name, its own first."""
        return self.tuner.directions

    @property
    def resolution(self) -> int:
        """Side of its pictures in pixels."""
        return self.tuner.generator.config.resolution

    def range_of(self, name: str) -> tuple[float, float]:
        """The strengths that a direction takes: as far as its calibrated range goes, both ways."""
        if name not in self.directions:
            raise ValueError(f"There is no direction {name[:80]!r}; there are {', '.join(self.directions)}.")
        low, high = self.directions[name].strength_range or (-5.0, 5.0)
        return -max(-low, high), max(-low, high)

    @property
    def note(self) -> str:
        """What it is, in plain sentences."""
        device, size = self.tuner.device, self.resolution
        place = f"GPU ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f"{device.type} here"
        what, shape = "faces" if self.has_faces else "pictures", " x ".join(map(str, self.tuner.domain.size(size)))
        words = f"{self.name} draws {what} of {shape} pixels, on the {place}. Licence: {self.licence}."
        if size <= DEMONSTRATION:
            words += " This small model shows how the methods work, not how sharp their pictures can be."
        return words


def load_model(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    detector: LandmarkDetector | Literal["auto", "builtin", "facexlib"] = "auto",
) -> Model:
    """Load a model as `PTIPipeline.from_pretrained` does, with all its networks, each once, and found directions."""
    tuner = PTIPipeline.from_pretrained(name_or_path, device=device, detector=detector)
    if tuner.base_name is not None and tuner.base_name.is_local:
        tuner.base_name = None  # a download would say where this machine keeps the model; it is saved whole instead
    name, drawing = str(name_or_path), _drawing_pipeline(tuner, name_or_path)
    if (Path(name) / storage.CONFIG_NAME).is_file():  # as for the loader, a folder wins
        licence = read_licence(Path(name))
        return make_model(tuner, name=Path(name).resolve().name, licence=licence, drawing=drawing)
    licence = next((known.licence for known in list_models() if known.name == name), "see its page")
    return make_model(tuner, name=name, licence=licence, drawing=drawing)


def _drawing_pipeline(tuner: PTIPipeline, name_or_path: str | Path) -> EncoderPipeline | None:
    """The pipeline of an encoder that does not invert photos, around the tuner's generator."""
    folder = find_folder(name_or_path, Access())
    if storage.read_config(folder).get("source") in (None, to_config(PhotoSource())):
        return None
    kinds = (each for each in METHODS.values() if each.encoder and (folder / ENCODERS[each.encoder].folder).is_dir())
    if (method := next(kinds, None)) is None:
        return None
    pipeline = method.pipeline.from_pretrained(folder, device=tuner.device)
    pipeline.generator, pipeline.directions = tuner.generator, tuner.directions
    return cast(EncoderPipeline, pipeline)


def make_model(
    tuner: PTIPipeline, *, name: str, licence: str = "not stated", drawing: EncoderPipeline | None = None
) -> Model:
    """Add the directions that a generator's weights give, and a pipeline for each encoder that the model has."""
    named = sorted(tuner.directions, key=lambda name: name not in _WORDS)
    for each in [tuner.directions[name] for name in named]:
        if each.space == "s" and each.strength_range is None:
            tuner.directions[each.name] = replace(each, strength_range=_style_range(tuner.generator, each))
    for found in find_components(tuner.generator).values():
        tuner.directions.update({each.name: each for each in found if each.name not in named})
    pipelines: dict[str, InversionPipeline] = {
        name: tuner.encoder_pipeline(method.encoder) if method.encoder else tuner
        for name, method in METHODS.items()
        if method.optimizes or method.encoder in tuner.pivots
    }
    return Model(name, pipelines, named, _LICENCES.get(licence, licence), drawing)


@torch.no_grad()
def _style_range(generator: StyleGAN, direction: Direction) -> tuple[float, float]:
    """How far the styles of random faces differ along a direction in S."""
    w = generator.sample_w(STYLE_SAMPLES, random_source(0))
    styles = generator.styles_of(broadcast(w, generator.num_ws))
    return both_ways(STYLE_REACH * float((styles @ direction.step.to(styles)).std()) / direction.unit**2)


def full_size(*places: str) -> list[KnownModel]:
    """The catalogue's full-size models of faces that are in such places, the first of each method."""
    # one that takes parts of others may lack them where its own file is
    faces = [each for each in catalogue() if (each.domain or "").startswith("ffhq") and not each.parts]
    first = [next((each.name for each in faces if each.kind == method.encoder), None) for method in METHODS.values()]
    there = {known.name: known for known in list_models() if known.where in places}
    return [there[name] for name in first if name in there]


def best_cached(device: str) -> str:
    """The model to start with: a full-size one that is in the cache, if there is a GPU for it."""
    has_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    full = full_size("cached") if has_gpu else []
    return full[0].name if full else storage.builtin_models()[0]


def words_of(direction: str) -> tuple[str, str, str]:
    """A direction in plain words: its slider ("Change 1 (GANSpace)" of ganspace_1), and what its ends are called."""
    method, _, number = direction.rpartition("_")
    found = {"ganspace": "GANSpace", "sefa": "SeFa"}.get(method)
    label = f"Change {number} ({found})" if found else direction.replace("_", " ").capitalize()
    return _WORDS.get(direction, (label, "", ""))


def sentence(known: KnownModel) -> str:
    """One line about a model that can be chosen."""
    size = "" if known.size is None else f" · {known.size / 1e6:.0f} MB"
    how = {"to fetch": ", to download once", "cached": ", on this disk"}.get(known.where, "")
    about = f" · {known.about}" if known.about else ""
    return f"{known.name}{about}{size}{how} · {_LICENCES.get(known.licence, known.licence)}"


class Models:
    """The models that visitors can choose: the first one stays, of the others the last one does."""

    def __init__(self, first: Model, *, open: bool = False, offers: bool = False, device: str = "auto") -> None:
        """Start with one model; `open` lets visitors have others fetched from the Hub.

        `offers` lets them have but the full-size one that `offer` names.
        """
        self.first, self.open, self.offers = first, open, open or offers
        self._device, self._other = device, first
        self._fetching, self._reading = threading.Lock(), threading.Lock()  # one large download at a time
        self._newest = Report("")  # of the download

    def offer(self) -> KnownModel | None:
        """The full-size model that a visitor may have instead of a small one; `sentence` describes it."""
        is_small = self.first.resolution <= DEMONSTRATION and self.first.has_faces
        full = full_size("cached", "to fetch") if self.offers and is_small else []
        return full[0] if full else None

    def known(self) -> list[KnownModel]:
        """What can be chosen, the first model first. Uses no network."""
        parts = {entry.name for entry in catalogue() if entry.kind not in ("generator", *ENCODERS)}
        offered, places = self.offer(), ("built in", *(("cached", "to fetch") if self.open else ()))
        listed = {
            each.name: each
            for each in list_models()
            if each == offered or (each.where in places and each.name not in parts)
        }
        first = KnownModel(self.first.name, "loaded", None, self.first.licence, "")
        return [listed.pop(first.name, first), *listed.values()]

    def loaded(self) -> list[Model]:
        """The models that are there now, by name."""
        return list({model.name: model for model in (self.first, self._other)}.values())

    def get(self, name: str) -> Model:
        """The model of a name, loaded if needed, once for all who ask; the first one for "".

        Raises `ModelNotFoundError` if visitors may not choose it or there is none, and `CheckpointError` if a file is
        damaged or does not fit.
        """
        return finish(self.load(name))

    def load(self, name: str) -> Generator[Report, None, Model]:
        """`get`, with reports of how far it is. Closing it early ends its download; who waits for it begins anew."""
        there = {"": self.first, self._other.name: self._other, self.first.name: self.first}
        if name in there:
            return there[name]
        self._check(name)
        lock, left = self._reading if name in storage.builtin_models() else self._fetching, threading.Event()
        while not lock.acquire(timeout=REPORT_SECONDS):
            yield self._newest
        if self._other.name == name:  # somebody else asked for it, too
            lock.release()
            return self._other

        def work(send: Callable[[Report], None]) -> Model:
            def hear(done: int, total: int) -> None:
                if left.is_set():
                    raise ConnectionAbortedError(f"Nobody waits for {name} any more.")
                if 0 < done < total:
                    self._newest = Report(f"Downloading {name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", done / total)
                    send(self._newest)

            try:
                with report_downloads(hear):
                    model = load_model(name, device=self._device, detector=self.first.tuner.detector)
                self._other = model
                return model
            except (StyleGANInversionError, ValueError) as e:  # whose words visitors see
                text = _SNAPSHOT.sub(lambda _: name, str(e).replace(str(cache_root()), ""))
                e.args = (_FOLDERS.sub("", text),)
                raise
            finally:
                lock.release()

        self._newest = Report(f"Loading {name} …")
        try:
            return (yield from in_thread(work, LOADING, self._newest))
        finally:
            left.set()

    def _check(self, name: str) -> None:
        """Whether a visitor may have a model loaded that is not there yet: never one from a folder of this machine."""
        names = [known.name for known in self.known()]
        if name in names:
            return
        if not self.open:
            there = " and ".join(names)
            raise ModelNotFoundError(f"The model {name[:80]!r} cannot be chosen here. There is {there}.")
        if not (_REPOSITORY.fullmatch(name) or known_entry(name)) or Path(name).exists():
            raise ModelNotFoundError(f"{name[:80]!r} is no repository on the Hub: write organisation/repository.")
