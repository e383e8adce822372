"""Invert many photos: one by one, each into a folder with pictures; or a folder of photos into a table. Resumes."""

import csv
import hashlib
import inspect
import io
import itertools
import json
import logging
import os
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from PIL import Image
from tqdm.auto import tqdm

from stylegan_inversion import storage
from stylegan_inversion.bounds import plain_number
from stylegan_inversion.errors import MissingDependencyError, importing
from stylegan_inversion.inversion.generator_delta import DELTAS, generator_sha256
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.encoder import BATCH_SIZE
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import RUN, BaseName, InversionOutput
from stylegan_inversion.pipelines.play import check_edits, with_mappers
from stylegan_inversion.pipelines.receipts import save_picture
from stylegan_inversion.pipelines.rows import (
    PICTURES,
    Align,
    Invert,
    Table,
    each_inverted,
    parts_of,
    picture_file,
    printable,
    read_rows,
    reason,
)
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.preprocessing.image import list_images, load_image, save_image
from stylegan_inversion.runners import run_here, run_on_ray

logger = logging.getLogger(__name__)

REPORT = "report.json"
TOGETHER = "together"  # the inversion of photos that share a generator
_NO_SETTING = ("_library_version", "dataset")  # of a pipeline's config
_NOT_OF_A_RUN = ("image", "align", "face", "together", "callback", "progress")  # or settings of their own


@dataclass(frozen=True)
class Record:
    """The outcome for one photo.

    Attributes:
        photo: Path of the photo, as it was given.
        folder: Where its pictures are, if it failed those of an earlier call; `None` if there are none.
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
    """Raise `ValueError` if a pipeline's call does not take these options; the message names those it takes."""
    known = [name for name in inspect.signature(pipeline.__call__).parameters if name != "image"]
    unknown = [name for name in options if name not in known]
    if unknown:
        calls = {cls: inspect.signature(cls.__call__).parameters for cls in (row.pipeline for row in METHODS.values())}
        other = "".join(f" {cls.__name__} takes it." for cls, names in calls.items() if unknown[0] in names)
        raise ValueError(f"{type(pipeline).__name__} has no option {unknown[0]!r}; it has {', '.join(known)}.{other}")


def invert_photos(
    pipeline: InversionPipeline,
    photos: Sequence[str | Path],
    output: str | Path,
    *,
    edits: Mapping[str, float] | None = None,
    mappers: Mapping[str, str | Path] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Record, InversionOutput | None]]:
    """Invert, edit and paste back photos; yield the record of each, and its (edited) inversion unless it failed.

    A photo `cat.jpg` gets the folder `OUTPUT/cat` with `crop.png`, `inverted.png`, with edits `edited.png` and
    `photo.png` (the photo with the edited face), and `inversion/`, which `InversionOutput.load` reads. Another `cat`
    becomes `cat_2`, even in a later call. `OUTPUT/report.json` holds all records, also those of earlier calls. Each
    file is written whole or not at all. With the option `together` there is one inversion of all, `OUTPUT/together`.

    Args:
        pipeline: Inverts them.
        photos: Paths.
        output: Folder, made if needed.
        edits: Strength by direction, each in its unit; all are applied at once.
        mappers: Files of StyleCLIP's mappers, by name: each is a direction of its own for each photo.
        options: Further arguments of the pipeline's call, such as `face` or `num_w_steps`.

    Raises:
        ValueError: Before the first photo, if an option or a direction is unknown, a strength is not finite, or the
            output folder holds a `report.json` that cannot be read.
        OSError: Before the first photo, if the output folder cannot be made.
    """
    edits, options = dict(edits or {}), dict(options or {})
    check_options(pipeline, options)
    check_edits(pipeline, edits, mappers)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    storage.sweep(output)
    records = _read_records(output)
    for photo, out in each_inverted(pipeline, photos, options, shared=output / TOGETHER):
        folder, begun = output / _folder_name(path := os.path.abspath(photo), records), False
        try:
            if isinstance(out, Exception):
                raise out
            plain = out.unrepeatable if mappers else out  # no receipt holds a mapper
            edited = with_mappers(pipeline, mappers, out.w_unedited).edit(plain, **edits) if edits else out
            begun = True
            storage.sweep(folder)
            if options.get("together"):
                shutil.rmtree(folder / "inversion", ignore_errors=True)
            else:
                out.save(folder / "inversion")  # in place of the old one, so that an interruption loses nothing
            save_image(out.crops[0].image, folder / "crop.png")
            save_picture(out, folder / "inverted.png", picture="drawn")
            _remove(folder, "edited", "photo")
            if edits:
                save_picture(edited, folder / "edited.png", picture="drawn")
                save_picture(edited, folder / "photo.png")
            record, out = Record(str(photo), str(folder), None, out.reports[0], path), edited
        except MissingDependencyError:  # it concerns all photos
            raise
        except Exception as e:  # one photo must not stop the others
            logger.debug("%s failed", photo, exc_info=True)
            record, out = Record(str(photo), records.get(path, Record(path)).folder, reason(e), path=path), None
            if begun:  # pictures of two calls must not stand together
                _remove(folder, "crop", "inverted", "edited", "photo")
        records[path] = record
        storage.write_config({"photos": [asdict(r) for r in records.values()], "edits": edits}, output, name=REPORT)
        yield record, out


def _folder_name(path: str, records: Mapping[str, Record]) -> str:
    """The name of the folder that a photo had before, or a free one from the name of its file."""
    if path in records and records[path].folder:
        return Path(str(records[path].folder)).name
    taken = {REPORT, TOGETHER, *(_key(Path(record.folder).name) for record in records.values() if record.folder)}
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


# --- a folder of photos -> a table


@dataclass(frozen=True)
class FolderResult:
    """What the table of a folder holds, and what a run added to it."""

    photos: int  # in the folder
    faces: int  # rows with a code
    errors: int  # rows with a reason
    inverted: int  # faces of this run


def invert_folder(
    pipeline: InversionPipeline,
    folder: str | Path,
    output: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    save: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    ray: str | None = None,
    retry_errors: bool = False,
    progress: bool = False,
) -> FolderResult:
    """Invert every face of every photo in a folder and its subfolders, into the table `OUTPUT/faces-*.parquet`.

    A face has one row: `id`, `path` (below the folder) and `sha256` of its photo, `face_index` (0 is the largest),
    `face_count`, `quad`, `w_plus` in float16, `l2`, `seconds`, `model`, `commit`, `version`. A photo or a face that
    cannot be done has one with the `error`. A generator of its own, tuned by PTI or with the photo's features, is
    `OUTPUT/deltas/<id>.safetensors`; its sha256 is the row's `delta`. `InversionOutput.from_row` makes an output again.

    A run that was stopped, even killed, goes on when it is called again; photos that are done are only hashed. A photo
    that has changed replaces its rows. The rows do not depend on where the run was stopped, nor on `workers`.

    Args:
        pipeline: Inverts them.
        folder: The photos.
        output: Folder, made if needed. Pictures in it are no photos, even if it is inside `folder`.
        options: Further arguments of the pipeline's call; `face` takes only one face of each photo.
        save: Pictures to write too: "crop", "inverted" (what the generator draws) and "photo" (the photo with that in
            place), as `OUTPUT/crop/<path>-<face_index>.png` and so on.
        batch_size: Faces that go through an encoder together. A method that optimises takes one at a time.
        workers: Processes that decode photos and find faces. `None` takes as many as PyTorch has threads; 0 takes this
            process, which a script without `if __name__ == "__main__":` needs.
        ray: Address of a Ray cluster to run on, whose machines all see both folders; "local" starts one here. It needs
            the extra `distributed`. `None` runs without Ray.
        retry_errors: Try the photos with an error again.
        progress: Show a progress bar.

    Raises:
        ValueError: Before the first photo, if an argument is out of range, the folder holds no photos, or the output
            holds another run, one of other options, or one that is still going on.
        MissingDependencyError: If pyarrow (or Ray) is not installed.
        CheckpointError: If a file cannot be written.
    """
    with importing("pyarrow", "folders", otherwise="Single photos need no extra."):
        import pyarrow.parquet  # noqa: F401
    folder, output, options = Path(folder), Path(output), dict(options or {})
    check_options(pipeline, options)
    if options.get("together"):
        raise ValueError("`together` is for single photos: in the table of a folder each face has its own generator.")
    if unknown := [kind for kind in save if kind not in PICTURES]:
        raise ValueError(f"`save` must name some of {', '.join(PICTURES)}, got {unknown[0]!r}.")
    if batch_size < 1 or (workers is not None and workers < 0):
        raise ValueError(f"`batch_size` must be >= 1 and `workers` >= 0, got {batch_size} and {workers}.")
    sizes = pipeline.crop_sizes(options)
    aligned, face = pipeline.finds_faces(options.pop("align", None)), options.pop("face", None)
    pipeline.align(Image.new("RGB", (sizes[0], sizes[0])), align=False)  # raises if it takes no photos
    photos = list_images(folder, without=output)
    align = Align(folder.resolve(), sizes, pipeline.components["detector"], pipeline.domain, aligned, face)
    settings = _settings(pipeline, align, options) | {"save": sorted(save), "batch_size": batch_size}
    output.mkdir(parents=True, exist_ok=True)
    with _only_run(output):
        _check_settings(output, settings)
        for kind in ("", DELTAS, *save):
            for root, *_ in os.walk(output / kind) if kind else [(output,)]:
                storage.sweep(Path(root), older_than=0)
        table = Table(output, pipeline)
        known = table.tidy(retry_errors=retry_errors)[0]
        invert = Invert(pipeline, align, output.resolve(), options, 1 if pipeline.optimizes else batch_size, save)
        names = ((path, printable(path)) for path in photos)
        todo = ((path, (known[name],) if name in known else ()) for path, name in names)
        workers = torch.get_num_threads() if workers is None else workers
        run = run_here(align, invert, todo, workers) if ray is None else run_on_ray(align, invert, todo, ray)
        try:
            with closing(run), tqdm(total=len(photos), unit="photo", disable=not progress) as bar:
                for rows in run:
                    table.add(rows)
                    bar.update(len({row["path"] for row in rows}))
        finally:  # Ctrl-C too
            table.flush()
        _, faces, errors = table.tidy()
    return FolderResult(len(photos), faces, errors, table.inverted)


def _settings(pipeline: InversionPipeline, align: Align, options: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run the same run. `weights` is a hash of all networks, also those that are loaded when needed."""
    defaults = inspect.signature(pipeline.__call__).parameters
    pipeline.saved_networks()  # loads them
    settings = {
        "folder": str(align.folder),
        "model": pipeline.base_name and asdict(pipeline.base_name),
        "generator": generator_sha256(pipeline.generator),
        "pipeline": {name: value for name, value in pipeline.config.items() if name not in _NO_SETTING},
        "align": align.align,
        "face": align.face,
        "detector": type(pipeline.detector).__name__ if align.align else None,  # raises if it cannot be had
        "options": {name: options.get(name, p.default) for name, p in defaults.items() if name not in _NOT_OF_A_RUN},
        "weights": hashlib.sha256("".join(map(generator_sha256, pipeline.networks)).encode()).hexdigest(),
    }
    try:
        return dict(json.loads(json.dumps(settings, default=plain_number)))
    except TypeError as e:
        raise ValueError(f"Options for a folder must be numbers and texts, which a later run can compare: {e}") from e


def _check_settings(output: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new run; compare those of one that goes on."""
    if not (output / RUN).is_file():
        storage.write_config(settings, output, name=RUN)
        return
    there = read_run(output)
    if scale := (there.get("pipeline") or {}).pop("crop_scale", None):  # of an earlier version
        there["pipeline"]["domain"] = asdict(Domain(crop_scale=scale))
    for name, new in settings.items():
        if (old := there.get(name)) != new:
            moved = f" If the folder was moved, change `folder` in {RUN}." if name == "folder" else ""
            while isinstance(old, dict) and isinstance(new, dict):  # name the entry that differs
                key = next(key for key in {**old, **new} if old.get(key, ...) != new.get(key, ...))
                name, old, new = f"{name}.{key}", old.get(key), new.get(key)
            raise ValueError(
                f"{output} holds a run with {name}={old!r}, and this one has {new!r}. Give another "
                f"output folder, or repeat that run's settings, which {output / RUN} lists.{moved}"
            )


def read_run(output: Path) -> dict[str, Any]:
    """Read the settings of a run. Raises `ValueError` if the folder holds none."""
    try:
        return dict(json.loads((output / RUN).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as e:
        raise ValueError(f"{RUN} cannot be read: {reason(e)}. Give the output folder of an inverted folder.") from e


def load_pipeline(output: str | Path, *, allow_download: bool = False, device: str | None = None) -> InversionPipeline:
    """Load the pipeline that a run was made with, by its names.

    Who wrote the output chose the model's name, so it is fetched only with `allow_download`.

    Raises:
        ValueError: If the model had no name.
        ModelNotFoundError: If it is not on this machine.
    """
    run = read_run(Path(output))
    try:
        name = run["model"] and BaseName(**run["model"])
        classes = (method.pipeline for method in METHODS.values())
        cls = next(each for each in classes if each.__name__ == run["pipeline"]["_class_name"])
    except (LookupError, TypeError, StopIteration) as e:
        raise ValueError(f"{output}/{RUN} does not describe a run: {type(e).__name__}: {e}") from e
    if name is None:
        raise ValueError("The run's model has no name: load the pipeline yourself, and call `edit_folder` with it.")
    fetch = f"stylegan-inversion directions --model {name.name_or_path}"
    trust = f"If you trust who made {output}, fetch the run's model first: {fetch}"
    return name.load_pipeline(cls, allow_download=allow_download, advice=trust, device=device)


@contextmanager
def _only_run(output: Path) -> Iterator[None]:
    try:
        with FileLock(output / ".lock").acquire(timeout=0):
            yield
    except Timeout as e:
        raise ValueError(
            f"Another run is writing to {output}. Wait until it ends, or give another output folder."
        ) from e


# --- and edits of it, later


def edit_folder(
    pipeline: InversionPipeline,
    folder: str | Path,
    output: str | Path,
    *,
    edits: Mapping[str, Sequence[float]],
    paste: bool = False,
    progress: bool = False,
) -> int:
    """Draw every combination of edits for every face of a table that `invert_folder` wrote.

    The pictures are `OUTPUT/<path>-<face_index>_smile+2_age-1.png`, and `OUTPUT/edits.csv` lists them with their
    strengths. Pictures that are newer than the table are not drawn again.

    Args:
        pipeline: It must have the generator that the table was made with.
        folder: The output of `invert_folder`.
        output: Folder, made if needed; of one table, with or without `paste`.
        edits: Strengths by direction: `{"smile": [-4, 0, 4], "age": [-2, 2]}` draws six pictures a face.
        paste: Draw the whole photos, with the edited faces in place. They must still be where they were.
        progress: Show a progress bar.

    Returns:
        The number of pictures.

    Raises:
        ValueError: If a direction is unknown, no strengths are given, the folder holds no table of this generator, or
            the output pictures of another table, or is being written to.
        CheckpointError: If a row names a file outside the folders.
        OSError: If a photo is gone.
    """
    with importing("pyarrow", "folders", otherwise="Single photos need no extra."):
        import pyarrow.parquet
    folder, output, parts = Path(folder), Path(output), parts_of(Path(folder))
    if not parts or not all(edits.values()):
        raise ValueError(f"{folder} holds no table." if not parts else "`edits` must give each direction a strength.")
    settings, schema = read_run(folder), Table(folder, pipeline).schema
    mine = {"folder": str(folder.resolve()), "generator": generator_sha256(pipeline.generator), "paste": paste}
    if settings.get("generator") != mine["generator"]:
        raise ValueError(f"{folder} was made with a generator that has other weights than this pipeline's.")
    if other := [part for part in parts if not pyarrow.parquet.read_schema(part).equals(schema)]:
        raise ValueError(f"{other[0]} is not a part of a table that `invert_folder` wrote; remove it.")
    made: dict[str, Any] = {"networks": pipeline.networks, "domain": pipeline.domain, "folder": folder}
    grid = [dict(zip(edits, strengths)) for strengths in itertools.product(*edits.values())]
    for strengths in grid:
        check_edits(pipeline, strengths)
    output.mkdir(parents=True, exist_ok=True)
    with _only_run(output):
        _check_settings(output, mine)
        for root, *_ in os.walk(output):
            storage.sweep(Path(root))
        changed = max(part.stat().st_mtime for part in parts)
        listed, total = list[dict[str, Any]](), sum(pyarrow.parquet.read_metadata(part).num_rows for part in parts)
        for row in tqdm(read_rows(folder), total=total, unit="face", disable=not progress):
            if row["error"] is not None:
                continue
            out = None
            for strengths in grid:
                label = "".join(f"_{name}{strength:+.9g}" for name, strength in strengths.items())
                file = picture_file(output, row, label)
                name = file.relative_to(output).as_posix()
                listed.append({"picture": name, **{key: row[key] for key in ("id", "path", "face_index")}, **strengths})
                if file.is_file() and file.stat().st_mtime >= changed:
                    continue
                if out is None:
                    photo = load_image(Path(settings["folder"], row["path"])) if paste else None
                    out = InversionOutput.from_row(row, pipeline.generator, photo=photo, **made)
                edited = pipeline.edit(out, **strengths)
                save_picture(edited, file, picture="photo" if paste else "drawn")
        text = io.StringIO()
        writer = csv.DictWriter(text, ["picture", "id", "path", "face_index", *edits])
        writer.writeheader()
        writer.writerows(listed)
        storage.write_file(output / "edits.csv", lambda file: file.write_text(text.getvalue(), "utf-8", newline=""))
    return len(listed)
