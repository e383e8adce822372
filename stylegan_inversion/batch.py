"""Invert photos one by one: each gets a folder with its pictures, or a line with the reason why not."""

import inspect
import json
import logging
import os
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from stylegan_inversion import storage
from stylegan_inversion.editing.directions import apply_directions
from stylegan_inversion.errors import MissingDependencyError, StyleGANInversionError
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.preprocessing.image import save_image

logger = logging.getLogger(__name__)

REPORT = "report.json"


@dataclass(frozen=True)
class Record:
    """The outcome for one photo.

    Attributes:
        photo: Path of the photo, as it was given.
        folder: Where its pictures are; `None` if it failed.
        error: The reason, if it failed.
        report: Figures of the inversion.
        path: Absolute path of the photo: the folder belongs to it.
    """

    photo: str
    folder: str | None = None
    error: str | None = None
    report: dict[str, Any] = field(default_factory=dict)
    path: str | None = None


def check_options(pipeline: InversionPipeline, options: Mapping[str, Any]) -> None:
    """Check that a pipeline's call takes these options.

    Raises:
        ValueError: If it does not; the message names those it takes.
    """
    known = [name for name in inspect.signature(pipeline.__call__).parameters if name != "image"]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"{type(pipeline).__name__} has no option {unknown[0]!r}; it has {', '.join(known)}.")


def invert_photos(
    pipeline: InversionPipeline,
    photos: Sequence[str | Path],
    output: str | Path,
    *,
    edits: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Record, InversionOutput | None]]:
    """Invert, edit and paste back photos; yield after each one.

    A photo `cat.jpg` gets the folder `OUTPUT/cat` with `crop.png`, `inverted.png`, with edits `edited.png` and
    `photo.png` (the photo with the edited face), and `inversion/`, which `InversionOutput.load` reads. Another `cat`
    becomes `cat_2`, even in a later call. `OUTPUT/report.json` holds all records, also those of earlier calls. Each
    file is written whole or not at all.

    Args:
        pipeline: Inverts them.
        photos: Paths.
        output: Folder, made if needed.
        edits: Strength by direction, each in its unit; all are applied at once.
        options: Further arguments of the pipeline's call, such as `face` or `num_w_steps`.

    Yields:
        The record of each photo, in order, and its inversion (edited if there are edits) unless it failed.

    Raises:
        ValueError: Before the first photo, if an option or a direction is unknown, a strength is not finite, or the
            output folder holds a `report.json` that cannot be read.
        OSError: Before the first photo, if the output folder cannot be made.
    """
    edits, options = dict(edits or {}), dict(options or {})
    check_options(pipeline, options)
    sizes = 1, pipeline.generator.num_ws, pipeline.generator.config.w_dim
    nothing = torch.zeros(sizes, device="cpu", dtype=torch.float32)
    apply_directions(nothing, pipeline.directions, strengths=edits)  # raises before the first photo
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    storage.sweep(output)
    records = _read_records(output)
    for photo in photos:
        path, out = os.path.abspath(photo), None
        folder = output / _folder_name(path, records)
        try:
            out = pipeline(photo, **options)
            edited = pipeline.edit(out, **edits) if edits else out
            pasted = pipeline.paste_back(edited)[0] if edits else None
            storage.sweep(folder)
            out.save(folder / "inversion")  # in place of the old one, so that an interruption loses nothing
            save_image(out.crops[0].image, folder / "crop.png")
            save_image(out.images[0], folder / "inverted.png")
            if pasted is None:
                _remove(folder, "edited", "photo")
            else:
                save_image(edited.images[0], folder / "edited.png")
                save_image(pasted, folder / "photo.png")
            record, out = Record(str(photo), str(folder), None, out.reports[0], path), edited
        except MissingDependencyError:  # it concerns all photos
            raise
        except Exception as e:  # one photo must not stop the others
            expected = isinstance(e, (StyleGANInversionError, OSError))
            logger.debug("%s failed", photo, exc_info=True)
            record, out = Record(str(photo), error=str(e) if expected else f"{type(e).__name__}: {e}", path=path), None
            _remove(folder, "crop", "inverted", "edited", "photo")
            if (folder / "inversion" / storage.CONFIG_NAME).is_file():
                shutil.rmtree(folder / "inversion")
        records[path] = record
        storage.write_config({"photos": [asdict(r) for r in records.values()], "edits": edits}, output, name=REPORT)
        yield record, out


def _folder_name(path: str, records: Mapping[str, Record]) -> str:
    """The name of the folder that a photo had before, or a free one from the name of its file."""
    if path in records and records[path].folder:
        return Path(str(records[path].folder)).name
    taken = {REPORT, *(_key(Path(record.folder).name) for record in records.values() if record.folder)}
    stem = Path(path).stem.strip(". ") or "photo"  # the stem of "...png" is "..", the folder above
    names = (stem, *(f"{stem}_{k}" for k in range(2, len(taken) + 3)))
    return next(name for name in names if _key(name) not in taken)


def _key(name: str) -> str:
    """Names with one key are the same on some disks: case is ignored, and how an accent is written."""
    return unicodedata.normalize("NFC", name).casefold()


def _read_records(output: Path) -> dict[str, Record]:
    """The records of earlier calls, by the path of the photo."""
    path = output / REPORT
    try:
        entries = json.loads(path.read_text("utf-8"))["photos"] if path.exists() else []
        records = [Record(**entry) for entry in entries]
        return {record.path or os.path.abspath(record.photo): record for record in records}
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ValueError(
            f"{path} cannot be read, so it is unknown which folder belongs to which photo: {e}. Remove it, or "
            "give another output folder."
        ) from e


def _remove(folder: Path, *names: str) -> None:
    """Remove pictures of an earlier run, so that they are not taken for new ones."""
    for name in names:
        (folder / f"{name}.png").unlink(missing_ok=True)
