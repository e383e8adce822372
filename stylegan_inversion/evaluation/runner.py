"""The loop over images and methods: batch by batch, past failures, each record on disk before the next."""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stylegan_inversion.errors import MissingDependencyError, StyleGANInversionError
from stylegan_inversion.evaluation.gallery import Gallery
from stylegan_inversion.evaluation.methods import Method, Pivots, invert
from stylegan_inversion.evaluation.records import Record, RecordFile
from stylegan_inversion.evaluation.scoring import Scoring, Targets, prepare_targets, score
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.image import to_tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Photo:
    """One input: its name in the records, where it is, and the sha256 of the file (`None` if it cannot be read)."""

    name: str
    path: Path
    sha256: str | None


def read_photos(images: Sequence[str | Path], root: str | Path | None) -> list[Photo]:
    """Name images relative to a folder, by default the one that holds them all.

    Raises:
        ValueError: If there is none, one comes twice, or one is not inside the folder.
    """
    paths = [Path(os.path.abspath(image)) for image in images]
    if not paths:
        raise ValueError("`images` must hold at least one path, got none.")
    twice = next((path for path in paths if paths.count(path) > 1), None) if len(set(paths)) < len(paths) else None
    if twice is not None:
        raise ValueError(f"`images` holds {str(twice)!r} twice.")
    folder = Path(os.path.abspath(root)) if root is not None else Path(os.path.commonpath([p.parent for p in paths]))
    outside = next((path for path in paths if not path.is_relative_to(folder)), None)
    if outside is not None:
        raise ValueError(f"`images` must lie inside `root`, {str(folder)!r}; {str(outside)!r} does not.")
    return [Photo(path.relative_to(folder).as_posix(), path, _hash(path)) for path in paths]


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


@dataclass(frozen=True, eq=False)
class Runner:
    """Images through methods into a file of records.

    Attributes:
        methods: By name.
        keys: What identifies each method with its settings.
        scoring: What they are measured with.
        file: Gets the records.
        gallery: Gets the pictures of the figure.
        align: Whether faces are looked for.
        pivots: The last ones, which several methods may want.
    """

    methods: Mapping[str, Method]
    keys: Mapping[str, str]
    scoring: Scoring
    file: RecordFile
    gallery: Gallery
    align: bool
    pivots: Pivots = field(default_factory=Pivots)

    def run(self, photos: Sequence[Photo]) -> Iterator[int]:
        """Do what is not done yet; yields how many records have come in, old ones included.

        All methods see a batch of images before the next batch, so that originals are read and scored once.
        """
        size = self.scoring.batch_size
        for first in range(0, len(photos), size):
            todo = {}
            for name, method in self.methods.items():
                batch = photos[: method.limit][first : first + size]
                todo[name] = [photo for photo in batch if not self._is_done(name, photo)]
                yield len(batch) - len(todo[name])
            yield from self._run_batch(todo)

    def _is_done(self, name: str, photo: Photo) -> bool:
        found = self.file.find(self.keys[name], photo.name, photo.sha256)
        return found is not None and self.gallery.has(photo.name, name)

    def _run_batch(self, todo: Mapping[str, Sequence[Photo]]) -> Iterator[int]:
        wanted = {photo.name: photo for photos in todo.values() for photo in photos}
        crops: dict[str, Crop] = {}
        errors: dict[str, str] = {}
        for photo in wanted.values():
            try:
                pipeline = next(iter(self.methods.values())).pipeline
                crops[photo.name] = pipeline.align(photo.path, align=self.align)
            except MissingDependencyError:  # of no photo: none would go better
                raise
            except Exception as e:  # whatever it is, the other photos go on
                errors[photo.name] = _reason(e)
        if crops:
            images = torch.cat([to_tensor(crop.image) for crop in crops.values()]).to(pipeline.device)
            targets = prepare_targets(images, self.scoring)
        row = {name: i for i, name in enumerate(crops)}
        for name, photos in todo.items():
            failed = [self._record(name, photo, error=errors[photo.name]) for photo in photos if photo.name in errors]
            if failed:
                self.file.append(failed)
                yield len(failed)
            if good := [photo for photo in photos if photo.name in crops]:
                yield from self._run_group(name, good, crops, targets, row)

    def _run_group(
        self, name: str, photos: Sequence[Photo], crops: Mapping[str, Crop], targets: Targets, row: Mapping[str, int]
    ) -> Iterator[int]:
        """Photos that go through together; where that fails, each of the rest on its own. Yields how many are done."""
        left, found = list(photos), self._records(name, photos, crops, targets, row)
        while left:
            failure = None
            try:
                records = next(found)
            except MissingDependencyError:  # of no photo: none would go better
                raise
            except Exception as e:  # whatever it is, the other photos go on
                logger.debug("%s of %s failed", name, [photo.name for photo in left], exc_info=True)
                failure = _reason(e)
            if failure is not None:  # what failed is no longer held by the exception, which may have been of memory
                if len(photos) > 1:
                    for photo in left:
                        yield from self._run_group(name, [photo], crops, targets, row)
                    return
                records = [self._record(name, photos[0], error=failure)]
            self.file.append(records)
            left = left[len(records) :]
            yield len(records)

    def _records(
        self, name: str, photos: Sequence[Photo], crops: Mapping[str, Crop], targets: Targets, row: Mapping[str, int]
    ) -> Iterator[list[Record]]:
        """Records of photos that go through together, as they are done, in order; their pictures are in the gallery."""
        paths, chosen, done = [photo.path for photo in photos], [crops[photo.name] for photo in photos], 0
        for inversion in invert(self.methods[name], paths, chosen, align=self.align, pivots=self.pivots):
            group = photos[done : done + len(inversion.w_plus)]
            figures, pictures = score(inversion, targets[[row[photo.name] for photo in group]], self.scoring)
            shared: dict[str, Any] = {
                "seconds": inversion.seconds,
                "together": len(photos),
                "report": dict(inversion.report),
            }
            for i, photo in enumerate(group):
                drawn = {step: p[i] for step, p in pictures.items()}
                self.gallery.save(photo.name, name, crops[photo.name].image, drawn)
            yield [self._record(name, photo, **found, **shared) for photo, found in zip(group, figures)]
            done += len(group)

    def _record(self, name: str, photo: Photo, *, error: str | None = None, **figures: Any) -> Record:
        about = {"image": photo.name, "method": name, "error": error, **figures}
        return {**about, "sha256": photo.sha256, "key": self.keys[name]}


def _reason(error: Exception) -> str:
    expected = isinstance(error, (StyleGANInversionError, OSError))
    return str(error) if expected else f"{type(error).__name__}: {error}"
