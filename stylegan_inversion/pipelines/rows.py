"""A photo -> a row for each face -> rows with their codes: the two steps that make a table of a folder of photos.

Both are plain callables, so that any scheduler can run them: processes here, or actors of a cluster. Neither raises an
error that concerns one photo: the reason becomes the `error` of its row.
"""

import errno
import functools
import hashlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch

from stylegan_inversion import __version__, errors, storage
from stylegan_inversion.hub import file_sha256
from stylegan_inversion.inversion.generator_delta import delta_file, write_generator
from stylegan_inversion.pipelines.base import Detector, InversionPipeline
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.receipts import save_picture
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.preprocessing.image import load_image, save_image
from stylegan_inversion.preprocessing.landmarks import LandmarkDetector, get_landmark_detector

Row = dict[str, Any]
PICTURES = ("crop", "inverted", "photo")
_PART_ROWS, _PART_SECONDS = 1024, 5.0  # a part is written after so many rows or seconds


def printable(text: str) -> str:
    """Write what is not UTF-8, such as in names that other systems made, as escapes: a table holds UTF-8 only."""
    return text.encode("utf-8", "backslashreplace").decode()


def reason(error: Exception) -> str:
    """What a record says about a failure."""
    if isinstance(error, OSError) and error.strerror and error.filename:  # without the number
        return printable(f"{error.strerror}: {error.filename}")
    known = isinstance(error, (errors.StyleGANInversionError, OSError))
    return printable(str(error) if known else f"{type(error).__name__}: {error}")


def each_inverted(
    pipeline: InversionPipeline, photos: Sequence[str | Path], options: Mapping[str, Any], *, shared: Path
) -> Iterator[tuple[str | Path, Any]]:
    """Each photo with its inversion, or the error.

    If the option `together` is set, those that hold a face are inverted in one call, whose output goes to `shared`.
    """
    if not options.get("together"):
        yield from ((photo, _attempt(pipeline, photo, options)) for photo in photos)
        return
    which = {name: options[name] for name in ("align", "face") if name in options}
    crops = [_attempt(pipeline.align, photo, which) for photo in photos]
    faces = [crop for crop in crops if isinstance(crop, Crop)]
    out = _attempt(pipeline, faces, options) if faces else None
    if isinstance(out, InversionOutput):
        out.save(shared)
    made = iter(out if isinstance(out, InversionOutput) else itertools.repeat(out))
    yield from ((photo, next(made) if isinstance(crop, Crop) else crop) for photo, crop in zip(photos, crops))


def _attempt(call: Callable[..., Any], image: Any, options: Mapping[str, Any]) -> Any:
    try:
        return call(image, **options)
    except Exception as e:
        return e


@dataclass
class Align:
    """A photo -> a row for each face, with the face cut out; or one row with the reason why there is none.

    `folder` is what the paths of the photos are relative to; `sizes` are the sides of the crops, the generator's
    first. The others are as in `InversionPipeline` and its call, but that `face=None` takes all faces, and `align` says
    whether they are looked for.
    """

    folder: Path
    sizes: Sequence[int]
    detector: Detector
    domain: Domain
    align: bool
    face: int | None

    @functools.cached_property
    def find_faces(self) -> LandmarkDetector:
        """The detector, loaded in the process that needs it."""
        return get_landmark_detector(self.detector) if isinstance(self.detector, str) else self.detector

    def __call__(self, path: str, known: Collection[str | None] = ()) -> list[Row]:
        """Read a photo and cut its faces out.

        Args:
            path: The photo, below the folder.
            known: Hashes under which the photo is done; `None` stands for one that could not be read.

        Returns:
            The rows of the photo. One row that is `done` stands for a known photo.
        """
        photo_row = _photo_row(path)
        try:
            return self._rows(path, photo_row, known)
        except errors.MissingDependencyError:  # it concerns all photos
            raise
        except Exception as e:  # decoders and detectors of a user's choice raise anything
            return [{**photo_row, "error": reason(e), "done": photo_row["sha256"] in known}]

    def killed(self, path: str, known: Collection[str | None]) -> list[Row]:
        """Make the row of a photo that ends the process that reads it."""
        row = _photo_row(path)
        with suppress(OSError):
            row["sha256"] = file_sha256(self.folder / path)
        error = "The process that read the photo was ended: perhaps it takes too much memory."
        return [{**row, "error": error, "done": row["sha256"] in known}]

    def _rows(self, path: str, photo_row: Row, known: Collection[str | None]) -> list[Row]:
        if photo_row["path"] != path:
            raise errors.InvalidImageError("Its name is not UTF-8, which the table needs; rename it.")
        file = self.folder / path
        data = file.read_bytes() if file.is_file() else None
        if data is not None:
            photo_row["sha256"] = hashlib.sha256(data).hexdigest()
            if photo_row["sha256"] in known:
                return [{**photo_row, "done": True}]
        photo, size = load_image(file if data is None else data), self.sizes[0]
        landmarks = [found.landmarks for found in self.find_faces(photo)] if self.align else []
        photo_row["face_count"] = count = len(landmarks) if self.align else 1
        rows = []
        for k in range(max(1, count)) if self.face is None or not self.align else (self.face,):
            row = {**photo_row, "face_index": k if count else None}
            try:
                crop = self.domain.crop(photo, size, landmarks if self.align else None, face=k)
            except (errors.StyleGANInversionError, ValueError) as e:
                rows.append({**row, "error": reason(e)})
                continue
            cuts = {size: crop.image} | {each: self.domain.recrop(crop, each) for each in self.sizes[1:]}
            quad = None if crop.quad is None else crop.quad.tolist()
            rows.append({**row, "quad": quad, "crop": replace(crop, photo=crop.image, cuts=cuts)})
        return rows


def _photo_row(path: str) -> Row:
    unknown = {"sha256": None, "face_index": None, "face_count": 0, "error": None}
    return {"path": printable(path), **unknown}


@dataclass
class Invert:
    """Rows of `Align` -> rows of the table; the files of a face are written first.

    A batch is always filled up to `batch_size`, so that the code of a face does not depend on its neighbours: the
    numerical libraries choose their way by the size of the batch.
    """

    pipeline: InversionPipeline
    align: Align
    output: Path
    options: Mapping[str, Any]  # of the pipeline's call
    batch_size: int
    save: Collection[str]  # some of `PICTURES`

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """Invert the faces; the other rows, and the order, stay."""
        faces, size = [row for row in rows if "crop" in row], self.batch_size
        done = iter([row for k in range(0, len(faces), size) for row in self._invert(faces[k : k + size], size)])
        finished = [next(done) if "crop" in row else row for row in rows]
        name = self.pipeline.base_name
        model = {"model": name and printable(name.name_or_path), "commit": name and name.revision}
        return [{**model, "version": __version__, **row, "id": row_id(row), "crop": None} for row in finished]

    def _invert(self, rows: list[Row], fill: int) -> list[Row]:
        try:
            crops = [row["crop"] for row in rows]
            if {*self.save} - {"crop"}:
                crops = [replace(row["crop"], photo=load_image(self.align.folder / row["path"])) for row in rows]
            out = self.pipeline(crops + crops[-1:] * (fill - len(rows)), **self.options)
        except errors.MissingDependencyError:
            raise
        except Exception as e:  # such as too little memory, so that each is tried alone
            if fill == 1:
                return [{**rows[0], "error": reason(e)}]
            return [row for one in rows for row in self._invert([one], 1)]
        return [self._written(row, out[k]) for k, row in enumerate(rows)]

    def _written(self, row: Row, out: InversionOutput) -> Row:
        try:
            return {**row, **self._write(row, out)}
        except Exception as e:
            of_all = isinstance(e, (errors.CheckpointError, errors.MissingDependencyError))  # such as a full disk
            if of_all and getattr(e.__cause__, "errno", None) != errno.ENAMETOOLONG:
                raise
            return {**row, "error": reason(e)}

    def _write(self, row: Row, out: InversionOutput) -> Row:
        w_plus, report, delta = out.w_plus[0].half(), out.reports[0], None
        if not torch.isfinite(w_plus).all():
            raise errors.DivergedError("The code does not fit float16: the inversion went astray.")
        for kind in self.save:
            file = picture_file(self.output / kind, row)
            if kind == "crop":
                save_image(out.crops[0].image, file)
            else:
                save_picture(out, file, picture="photo" if kind == "photo" else "drawn", detail="none")
        if out.generator is not self.pipeline.generator:
            delta = write_generator(delta_file(self.output, row_id(row)), out.generator, self.pipeline.generator)
        return {"w_plus": w_plus.numpy(), "l2": report["l2"], "seconds": report["seconds"], "delta": delta}


def row_id(row: Row) -> str:
    """A face's name among all rows: 32 hexadecimal digits of its photo's path and content, and its number."""
    parts = (row["path"], row["sha256"], row["face_index"])
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def picture_file(folder: Path, row: Row, label: str = "") -> Path:
    """Where a picture of a face is. Raises `CheckpointError` if it were outside `folder`: a table may come from anyone.

    Args:
        folder: Of all pictures of this kind.
        row: The row of the face.
        label: What tells it from other pictures of the face.
    """
    name = PurePath(f"{row['path']}-{row['face_index']}{label}.png")
    if name.anchor or ".." in name.parts:
        raise errors.CheckpointError(f"The table names a photo {row['path']!r}, which is outside its folder.")
    return folder / name


class Table:
    """The rows of a run: parts `faces-00000.parquet`, each written whole, no photo in two of them."""

    def __init__(self, output: Path, pipeline: InversionPipeline) -> None:
        import pyarrow as pa

        code = pa.list_(pa.list_(pa.float16(), pipeline.generator.config.w_dim), pipeline.generator.num_ws)
        quad = pa.list_(pa.list_(pa.float64(), 2), 4)
        texts, text = ("model", "commit", "version", "error", "delta"), pa.string()
        self.schema = pa.schema(
            [("id", text), ("path", text), ("sha256", text), ("face_index", pa.int32()), ("face_count", pa.int32())]
            + [("quad", quad), ("w_plus", code), ("l2", pa.float32()), ("seconds", pa.float32())]
            + [(name, text) for name in texts]
        )
        self.output, self.inverted = output, 0
        self._rows: list[Row] = []
        self._number = max((int(part.stem.rpartition("-")[2]) + 1 for part in parts_of(output)), default=0)
        self._start = self._written = time.monotonic()

    def add(self, rows: Sequence[Row]) -> None:
        """Keep finished rows of whole photos, and write a part when it is time: a longer run gets larger parts."""
        self._rows += rows
        now = time.monotonic()
        if len(self._rows) >= _PART_ROWS or now - self._written >= max(_PART_SECONDS, (now - self._start) / 50):
            self.flush()

    def flush(self) -> None:
        """Write them."""
        import pyarrow as pa

        if new := [row for row in self._rows if not row.get("done")]:
            codes = [{**row, "w_plus": list(row["w_plus"]) if "w_plus" in row else None} for row in new]
            table = pa.Table.from_pylist(codes, self.schema)
            self._write(table, self.output / f"faces-{self._number:05}.parquet")
        self._rows, self._number = [], self._number + bool(new)
        self.inverted += sum(row["error"] is None for row in new)
        self._written = time.monotonic()

    def _write(self, table: Any, part: Path) -> None:
        import pyarrow.parquet as pq

        # small groups without dictionaries: pyarrow takes ten times a group's memory
        options = {"compression": "zstd", "row_group_size": 256, "use_dictionary": False}
        storage.write_file(part, lambda temporary: pq.write_table(table, temporary, **options))

    def tidy(self, *, retry_errors: bool = False) -> tuple[dict[str, str | None], int, int]:
        """Remove the rows of photos that later rows replace, and on request those with errors; and then their files.

        Returns:
            The hash of each photo that has rows, how many rows hold a face, and how many hold an error.
        """
        import pyarrow.parquet as pq

        def rows_of(part: Path) -> list[Row]:
            return pq.read_table(part, columns=["id", "path", "sha256", "face_index", "error"]).to_pylist()

        known, again = dict[str, str | None](), set[str]()
        for row in (row for part in parts_of(self.output) for row in rows_of(part)):
            if known.get(row["path"], row["sha256"]) != row["sha256"] or (retry_errors and row["error"] is not None):
                again.add(row["path"])
            known[row["path"]] = row["sha256"]
        if retry_errors:
            known = {path: sha256 for path, sha256 in known.items() if path not in again}
        counts, faces, dropped = [0, 0], set[tuple[str, int]](), list[Row]()
        for part in parts_of(self.output):
            rows = rows_of(part)
            keep = [row["path"] in known and known[row["path"]] == row["sha256"] for row in rows]
            if not any(keep):
                part.unlink()
            elif not all(keep):
                self._write(pq.read_table(part).filter(keep), part)
            dropped += [row for row, stays in zip(rows, keep) if not stays]
            for row in (row for row, stays in zip(rows, keep) if stays):
                counts[row["error"] is not None] += 1
                faces |= {(row["path"], row["face_index"])} if row["path"] in again else set()
        for row in dropped:
            delta_file(self.output, row["id"]).unlink(missing_ok=True)
            for kind in PICTURES if (row["path"], row["face_index"]) not in faces else ():
                picture_file(self.output / kind, row).unlink(missing_ok=True)
        return known, counts[0], counts[1]


def parts_of(output: Path) -> list[Path]:
    """The parts of a table, in the order in which they were written."""
    return sorted(output.glob("faces-*.parquet"))


def read_rows(output: Path) -> Iterator[Row]:
    """The rows of a table, a few at a time in memory."""
    import pyarrow.parquet as pq

    for part in parts_of(output):
        with pq.ParquetFile(part) as file:
            for some in file.iter_batches(batch_size=64):
                yield from some.to_pylist()
