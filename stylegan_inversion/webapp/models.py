"""The models that visitors choose from: loaded once, shared by all, never changed. Knows no user interface."""

import dataclasses
import logging
import os
import re
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from stylegan_inversion import hub
from stylegan_inversion.catalogue import catalogue, list_models
from stylegan_inversion.checkpoints.find import is_known
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError, StyleGANInversionError
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.remote import cache_root, report_downloads
from stylegan_inversion.webapp.model import Model as Model
from stylegan_inversion.webapp.model import in_words
from stylegan_inversion.webapp.model import load_model as load_model
from stylegan_inversion.webapp.model import make_model as make_model
from stylegan_inversion.webapp.uploads import rebuild_folder

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.3  # between two reports of a load at most
UPLOAD = "upload-"  # how the names of uploaded models begin
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r"[^\s`'\"(]*snapshots[\\/]+\w+")  # where the Hub's client keeps a repository
_FOLDERS = re.compile(r"(?<![\w:/\\.-])(?:[A-Za-z]:)?[\\/]+(?:[\w.~+@%-]+[\\/]+)+")  # of an absolute path, not of a URL
_KINDS = ("generator", *ENCODERS)  # of the catalogue, of which a pipeline can be built


class LoadReport(NamedTuple):
    """How far a model is; `share` is in [0, 1], `None` where nobody can tell. The last report has the model."""

    share: float | None
    text: str
    model: Model | None = None


class Models:
    """The models that visitors can choose: the first one stays, of the others the last used ones do."""

    def __init__(self, first: Model, *, open: bool = False, device: str = "auto", capacity: int = 2) -> None:
        """Start with one model.

        Args:
            first: Shown first, never dropped; its detector finds the faces for all.
            open: Whether visitors may also have models fetched from the Hub and upload their own. If not, there are
                the first one and those that are built in.
            device: Where to run the others.
            capacity: How many to keep loaded, the first among them.

        Raises:
            ValueError: If `capacity` is below 2.
        """
        if capacity < 2:
            raise ValueError(f"`capacity` must be >= 2, the first model and one more, got {capacity}.")
        self.first, self.open = first, open
        self._device, self._capacity = device, capacity
        self._others: OrderedDict[str, _Load] = OrderedDict()  # loaded or being loaded; the last used one is the last
        self._lock, self._fetching = threading.Lock(), threading.Lock()

    def choices(self) -> list[tuple[str, str]]:
        """What can be chosen: pairs of a label and a name. Uploaded models are not shown. Uses no network."""
        found = {self.first.name: _label(self.first.name, f"{self.first.resolution} px", None, self.first.licence)}
        listed = {entry.name for entry in catalogue()}  # directions among them
        fetched = {entry.name for entry in catalogue() if entry.fetchable and entry.kind in _KINDS}
        for known in list_models():
            mine = known.where == "cached" and known.name not in listed
            if known.where == "built in" or (self.open and (mine or known.name in fetched)):
                how = "to download once" if known.where == "to fetch" else known.where
                found.setdefault(known.name, _label(known.name, how, known.size, known.licence))
        return [(label, name) for name, label in found.items()]

    def loaded(self) -> list[Model]:
        """The models that are there now, but for uploaded ones."""
        with self._lock:
            others = [(name, load) for name, load in self._others.items() if not name.startswith(UPLOAD)]
            done = [load.future for _, load in others if load.future.done() and load.future.exception() is None]
        return [self.first, *(future.result() for future in done)]

    def get(self, name: str) -> Model:
        """The model of a name, loaded if needed, once for all who ask.

        Raises:
            ModelNotFoundError: If visitors may not choose it, there is no such model, or an uploaded one is gone.
            CheckpointError: If a file is damaged or does not fit.
        """
        return self.first if name == self.first.name else self._find(name).future.result()

    def load(self, name: str) -> Generator[LoadReport, None, None]:
        """`get`, with reports of how far it is. Whoever leaves it early loses nothing: the load goes on.

        Raises:
            ModelNotFoundError: As `get`, and so are the others.
            CheckpointError: "
        """
        model = self.first
        if name != model.name:
            loading = self._find(name)
            while not wait([loading.future], timeout=REPORT_SECONDS).done:
                yield loading.report(name)
            model = loading.future.result()
        yield LoadReport(1.0, model.note, model)

    def add_folder(self, files: Sequence[str | Path]) -> str:
        """Take a model that a visitor uploads: the files of a folder that `save_pretrained` wrote.

        It is loaded at once and then lives in memory only, until others push it out.

        Args:
            files: As Gradio gives them: with their names, without their folders.

        Returns:
            A name for `get`, which nobody can guess.

        Raises:
            ModelNotFoundError: If visitors may not upload models.
            ValueError: If a file does not belong into such a folder, one is missing, or they are too large.
            CheckpointError: If a file is damaged or does not fit.
        """
        if not self.open:
            raise ModelNotFoundError(f"Models cannot be uploaded here. {self._offer()}")
        # where the app's own files lie, if it has such a place: what a killed app leaves is removed there
        with tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR")) as scratch:
            folder = Path(scratch).resolve() / "model"
            rebuild_folder(files, folder)
            try:
                model = load_model(folder, device=self._device, detector=self.first.pti.detector)
            except (CheckpointError, ModelNotFoundError, TypeError, ValueError) as e:
                text = _without_folders(str(e).replace(f"{folder}{os.sep}", ""))
                raise CheckpointError(f"The folder is no model: {text}") from e
        name = f"{UPLOAD}{secrets.token_hex(16)}"
        loaded = _Load()
        with self._lock:
            self._others[name] = loaded
        self._keep(name, dataclasses.replace(model, name=name, title="The uploaded model"))
        return name

    def _offer(self) -> str:
        names = [name for _, name in self.choices()]
        return f"There is {' and '.join(names)}; for others, run the app yourself."

    def _find(self, name: str) -> "_Load":
        with self._lock:
            if name not in self._others:
                self._check(name)
                self._others[name] = _Load()
                threading.Thread(target=self._fetch, args=(name, self._others[name]), daemon=True).start()
            self._others.move_to_end(name)
            return self._others[name]

    def _check(self, name: str) -> None:
        """Whether a visitor may have a model loaded that is not there yet: never one from a folder of this machine."""
        if name.startswith(UPLOAD):
            raise ModelNotFoundError("The uploaded model is gone, others took its place. Upload it again.")
        if name in (known for _, known in self.choices()):
            return
        if not self.open:
            raise ModelNotFoundError(f"The model {name!r} cannot be chosen here. {self._offer()}")
        if not (_REPOSITORY.fullmatch(name) or is_known(name)) or Path(name).exists():
            raise ModelNotFoundError(f"{name!r} is no repository on the Hub, which is written organisation/repository.")

    def _fetch(self, name: str, loading: "_Load") -> None:
        try:
            # one large download at a time; what is built in need not wait for it
            with nullcontext() if name in hub.builtin_models() else self._fetching, report_downloads(loading.hear):
                model = load_model(name, device=self._device, detector=self.first.pti.detector)
        except BaseException as e:
            if isinstance(e, (StyleGANInversionError, ValueError)):  # whose words visitors see
                text = str(e).replace(str(cache_root()), "")
                e.args = (_without_folders(_SNAPSHOT.sub(lambda _: name, text)),)
            with self._lock:
                self._others.pop(name, None)
            loading.future.set_exception(e)
        else:
            self._keep(name, model)

    def _keep(self, name: str, model: Model) -> None:
        with self._lock:
            self._others[name].future.set_result(model)
            self._others.move_to_end(name)
            loaded = [other for other, load in self._others.items() if load.future.done()]
            for old in loaded[: 1 - self._capacity]:
                del self._others[old]


class _Load:
    """A model that is loaded or being loaded."""

    def __init__(self) -> None:
        self.future: Future[Model] = Future()
        self._done, self._total = 0, 0

    def hear(self, done: int, total: int) -> None:
        """Take note of a download's bytes."""
        self._done, self._total = done, total

    def report(self, name: str) -> LoadReport:
        """How far it is."""
        if not 0 < self._done < self._total:
            return LoadReport(None, f"Loading {name} …")
        text = f"Downloading {name}: {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB"
        return LoadReport(self._done / self._total, text)


def _without_folders(text: str) -> str:
    """An error's sentence without the folders of this machine, which are no visitor's business."""
    return _FOLDERS.sub("", text)


def _label(name: str, how: str, size: int | None, licence: str) -> str:
    amount = "" if size is None else f"{size / 1e6:.0f} MB "
    return f"{name} · {amount}{how} · {in_words(licence)}"
