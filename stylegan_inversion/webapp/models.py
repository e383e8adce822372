"""The models that visitors choose from: loaded once, shared by all, never changed."""

import dataclasses
import re
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Generator
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch

from stylegan_inversion import storage
from stylegan_inversion.catalogue import KnownModel, catalogue, list_models, read_licence
from stylegan_inversion.checkpoints.find import is_known
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, StyleGANInversionError
from stylegan_inversion.hub import cache_root, report_downloads
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.play import find_components
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.preprocessing.landmarks import LandmarkDetector
from stylegan_inversion.webapp.photos import unpack_upload

OWN = "Directions"  # title of the group of a model's own
DEMONSTRATION = 128  # pixels a side, up to which a model only shows how the methods work
MAX_BYTES = 2_000_000_000  # of an uploaded model
HOW_TO_ZIP = "zip a folder that `save_pretrained` wrote."
REPORT_SECONDS = 0.3  # between two reports of a load at most
LOADING = "loading"  # name of the threads
UPLOAD = "upload-"  # how the names of uploaded models begin
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r"[^\s`'\"(]*snapshots[\\/]+\w+")  # where the Hub's client keeps a repository
_FOLDERS = re.compile(r"(?<![\w:/\\.-])(?:[A-Za-z]:)?[\\/]+(?:[\w.~+@%-]+[\\/]+)+")  # of an absolute path, not of a URL
_WORDS = {
    "smile": ("Smile", "Smile", "Serious"),
    "age": ("Younger / older", "Older", "Younger"),
    "yaw": ("Turn head", "Look right", "Look left"),
    "pose": ("Turn head", "Turn one way", "Turn the other"),
    "gender": ("Female / male", "More male", "More female"),
}
_LICENCES = {"non-commercial-research": "non-commercial research", "mit": "MIT", "apache-2.0": "Apache 2.0"}


@dataclass(frozen=True, eq=False)
class Model:
    """One model and all that can be done with it.

    Attributes:
        name: What `Models.get` knows it by.
        pipelines: By method, in the order of `METHODS`. They share networks and directions.
        groups: Titles of groups of directions with their names. The first are the model's own.
        licence: Of the weights, in words.
    """

    name: str
    pipelines: dict[str, InversionPipeline]
    groups: dict[str, list[str]]
    licence: str = "not stated"

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
        """All directions by name, found ones too."""
        return self.tuner.directions

    @property
    def resolution(self) -> int:
        """Side of its pictures in pixels."""
        return self.tuner.generator.config.resolution

    @property
    def note(self) -> str:
        """What it is, in plain sentences."""
        device, size = self.tuner.device, self.resolution
        name = "The uploaded model" if self.name.startswith(UPLOAD) else self.name
        place = f"GPU ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f"{device.type} here"
        words = f"{name} draws faces of {size} x {size} pixels, on the {place}. Licence: {self.licence}."
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
    name = str(name_or_path)
    if (Path(name) / storage.CONFIG_NAME).is_file():  # as for the loader, a folder wins
        return make_model(tuner, name=Path(name).resolve().name, licence=read_licence(Path(name)))
    licence = next((known.licence for known in list_models() if known.name == name), "see its page")
    return make_model(tuner, name=name, licence=licence)


def make_model(tuner: PTIPipeline, *, name: str, licence: str = "not stated") -> Model:
    """Add the directions that a generator's weights give, and a pipeline for each encoder that the model has."""
    groups = {OWN: list(tuner.directions)}
    for title, found in find_components(tuner.generator).items():
        new = {direction.name: direction for direction in found if direction.name not in tuner.directions}
        tuner.directions.update(new)
        groups[title] = list(new)
    pipelines: dict[str, InversionPipeline] = {
        name: tuner.encoder_pipeline(method.encoder) if method.encoder else tuner
        for name, method in METHODS.items()
        if method.optimizes or method.encoder in tuner.pivots
    }
    return Model(name, pipelines, {title: names for title, names in groups.items() if names}, in_words(licence))


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


def in_words(licence: str) -> str:
    """A licence as a page shows it."""
    return _LICENCES.get(licence, licence)


def sentence(known: KnownModel) -> str:
    """One line about a model that can be chosen."""
    size = "" if known.size is None else f" · {known.size / 1e6:.0f} MB"
    how = {"to fetch": ", to download once", "cached": ", on this disk"}.get(known.where, "")
    about = f" · {known.about}" if known.about else ""
    return f"{known.name}{about}{size}{how} · {in_words(known.licence)}"


class LoadReport(NamedTuple):
    """How far a model is. The last report has the model."""

    text: str
    model: Model | None = None


class Models:
    """The models that visitors can choose: the first one stays, of the others the last used one does."""

    def __init__(self, first: Model, *, open: bool = False, offers: bool = False, device: str = "auto") -> None:
        """Start with one model; `open` lets visitors have others fetched from the Hub, and upload their own.

        `offers` lets them have but the full-size one that `offer` names.
        """
        self.first, self.open, self.offers = first, open, open or offers
        self._device = device
        self._others: OrderedDict[str, _Load] = OrderedDict()  # loaded or being loaded; the last used one is the last
        self._lock, self._fetching = threading.Lock(), threading.Lock()

    def offer(self) -> KnownModel | None:
        """The full-size model that a visitor may have instead of a small one; `sentence` describes it."""
        full = full_size("cached", "to fetch") if self.offers and self.first.resolution <= DEMONSTRATION else []
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
        """The models that are there now, but for uploaded ones."""
        with self._lock:
            others = [load.future for name, load in self._others.items() if not name.startswith(UPLOAD)]
        return [self.first, *(each.result() for each in others if each.done() and each.exception() is None)]

    def get(self, name: str) -> Model:
        """The model of a name, loaded if needed, once for all who ask; the first one for "".

        Raises `ModelNotFoundError` if visitors may not choose it, there is none, or an uploaded one is gone, and
        `CheckpointError` if a file is damaged or does not fit.
        """
        *_, last = self.load(name)
        assert last.model is not None
        return last.model

    def load(self, name: str) -> Generator[LoadReport, None, None]:
        """`get`, with reports of how far it is. Closing it early ends a download for which nobody else waits."""
        model = self.first
        if name not in ("", model.name):
            loading = self._find(name)
            try:
                while not wait([loading.future], timeout=REPORT_SECONDS).done:
                    yield LoadReport(loading.words)
            finally:
                with self._lock:
                    loading.waiting -= 1
            model = loading.future.result()
        yield LoadReport(model.note, model)

    def add_zip(self, path: str | None) -> str:
        """Take a model that a visitor uploads: a zip of a folder that `save_pretrained` wrote.

        It is loaded at once and then lives in memory only, until another model pushes it out.

        Returns:
            A name for `get`, which nobody can guess.

        Raises:
            ModelNotFoundError: If visitors may not upload models.
            ValueError: If it is no such zip; a `CheckpointError` if a file is damaged or does not fit.
        """
        if not self.open:
            raise ModelNotFoundError("Models cannot be uploaded here: run the app yourself, with `--any-model`.")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch).resolve()
            unpack_upload(path, folder, max_bytes=MAX_BYTES, unreadable=f"This zip cannot be read: {HOW_TO_ZIP}")
            roots = sorted(folder.rglob(storage.CONFIG_NAME), key=lambda path: len(path.parts))
            if not roots:
                raise ValueError(f"There is no {storage.CONFIG_NAME} in the zip: {HOW_TO_ZIP}")
            try:
                model = load_model(roots[0].parent, device=self._device, detector=self.first.tuner.detector)
            except (CheckpointError, ModelNotFoundError, TypeError, ValueError) as e:
                raise CheckpointError(f"The zip holds no model: {_FOLDERS.sub('', str(e))}") from e
        name = f"{UPLOAD}{secrets.token_hex(16)}"
        self._keep(_Load(name), dataclasses.replace(model, name=name))
        return name

    def _find(self, name: str) -> "_Load":
        with self._lock:
            if name not in self._others:
                self._check(name)
                loading = self._others[name] = _Load(name)
                threading.Thread(target=self._fetch, args=(loading,), name=LOADING, daemon=True).start()
            self._others.move_to_end(name)
            self._others[name].waiting += 1
            return self._others[name]

    def _check(self, name: str) -> None:
        """Whether a visitor may have a model loaded that is not there yet: never one from a folder of this machine."""
        if name.startswith(UPLOAD):
            raise ModelNotFoundError("The uploaded model is gone, another took its place. Upload it again.")
        names = [known.name for known in self.known()]
        if name in names:
            return
        if not self.open:
            there = " and ".join(names)
            raise ModelNotFoundError(f"The model {name[:80]!r} cannot be chosen here. There is {there}.")
        if not (_REPOSITORY.fullmatch(name) or is_known(name)) or Path(name).exists():
            raise ModelNotFoundError(f"{name[:80]!r} is no repository on the Hub: write organisation/repository.")

    def _fetch(self, loading: "_Load") -> None:
        name = loading.name

        def hear(done: int, total: int) -> None:
            loading.done, loading.total = done, total
            with self._lock:
                if not loading.waiting:
                    self._drop(loading)  # who comes now begins anew
                    raise _Left

        try:
            # one large download at a time; what is built in need not wait for it
            with nullcontext() if name in storage.builtin_models() else self._fetching, report_downloads(hear):
                model = load_model(name, device=self._device, detector=self.first.tuner.detector)
        except BaseException as e:
            if isinstance(e, (StyleGANInversionError, ValueError)):  # whose words visitors see
                text = str(e).replace(str(cache_root()), "")
                e.args = (_FOLDERS.sub("", _SNAPSHOT.sub(lambda _: name, text)),)
            with self._lock:
                self._drop(loading)
            loading.future.set_exception(e)
        else:
            self._keep(loading, model)

    def _keep(self, loading: "_Load", model: Model) -> None:
        with self._lock:
            self._others[loading.name] = loading
            self._others.move_to_end(loading.name)
            loading.future.set_result(model)
            for old in [each for each in self._others.values() if each.future.done()][:-1]:
                self._drop(old)

    def _drop(self, loading: "_Load") -> None:
        if self._others.get(loading.name) is loading:
            del self._others[loading.name]


class _Left(Exception):
    """Nobody waits for this download any more."""


class _Load:
    """A model that is loaded or being loaded."""

    def __init__(self, name: str) -> None:
        self.name, self.future = name, Future[Model]()
        self.waiting = self.done = self.total = 0  # visitors; bytes

    @property
    def words(self) -> str:
        if not 0 < self.done < self.total:
            return f"Loading {self.name} …"
        return f"Downloading {self.name}: {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB"
