"""A photo -> a row for each face -> rows with their codes: the two steps that make a table of a folder of photos.

Both are plain callables, so that any scheduler can run them: processes here, or actors of a cluster. Neither raises an
error that concerns one photo: the reason becomes the `error` of its row.
"""

import functools
import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stylegan_inversion import __version__, storage
from stylegan_inversion.errors import MissingDependencyError, StyleGANInversionError
from stylegan_inversion.inversion.generator_delta import write_generator
from stylegan_inversion.pipelines.base import Detector, InversionPipeline
from stylegan_inversion.pipelines.output import DELTAS, InversionOutput
from stylegan_inversion.preprocessing.align import Crop, align_face, recrop, uncropped
from stylegan_inversion.preprocessing.image import load_image, save_image
from stylegan_inversion.preprocessing.landmarks import LandmarkDetector, get_landmark_detector

Row = dict[str, Any]
PICTURES = ("crop", "inverted", "photo")
_PART_ROWS, _PART_SECONDS = 4096, 5.0  # a part is written after so many rows or seconds


def reason(error: Exception) -> str:
    """What a record says about a failure."""
    return str(error) if isinstance(error, (StyleGANInversionError, OSError)) else f"{type(error).__name__}: {error}"


class Align:
    """A photo -> a row for each face, with the face cut out; or one row with the reason why there is none.

    Args:
        folder: What the paths of the photos are relative to.
        sizes: Sides of the crops, the generator's first.
        detector: As in `InversionPipeline`; it runs on the CPU.
        crop_scale: As in `InversionPipeline`.
        align: As in a pipeline's call.
        face: Which face to take, by size; `None` takes all.
    """

    def __init__(
        self,
        folder: Path,
        sizes: Sequence[int],
        *,
        detector: Detector = "auto",
        crop_scale: float = 1.0,
        align: bool = True,
        face: int | None = None,
    ) -> None:
        self.folder, self.sizes, self.crop_scale = folder, sizes, crop_scale
        self.align, self.face, self._detector = align, face, detector

    @functools.cached_property
    def detector(self) -> LandmarkDetector:
        """Loaded in the process that needs it."""
        return get_landmark_detector(self._detector) if isinstance(self._detector, str) else self._detector

    def __call__(self, path: str, known: Collection[str | None] = ()) -> list[Row]:
        """Read a photo and cut its faces out.

        Args:
            path: The photo, below the folder.
            known: Hashes under which the photo is done; `None` stands for one that could not be read.

        Returns:
            The rows of the photo. `left` counts those that follow. One row that is `done` stands for a known photo.
        """
        photo_row = self.failed(path, None)
        try:
            rows = self._rows(photo_row, known)
        except MissingDependencyError:  # it concerns all photos
            raise
        except Exception as e:  # decoders and detectors of a user's choice raise anything
            rows = [{**photo_row, "error": reason(e), "done": photo_row["sha256"] in known}]
        return [{**row, "left": len(rows) - 1 - k} for k, row in enumerate(rows)]

    def failed(self, path: str, error: str | None) -> Row:
        """Make the row of a photo of which nothing is known but why."""
        unknown = {"sha256": None, "face_index": None, "face_count": 0, "left": 0}
        return {"path": path, **unknown, "error": error}

    def _rows(self, photo_row: Row, known: Collection[str | None]) -> list[Row]:
        file = self.folder / photo_row["path"]
        data = file.read_bytes() if file.is_file() else None
        if data is not None:
            photo_row["sha256"] = hashlib.sha256(data).hexdigest()
            if photo_row["sha256"] in known:
                return [{**photo_row, "done": True}]
        photo, size = load_image(file if data is None else data), self.sizes[0]
        landmarks = [found.landmarks for found in self.detector(photo)] if self.align else []
        photo_row["face_count"] = len(landmarks) if self.align else 1
        rows = []
        for k in range(max(1, photo_row["face_count"])) if self.face is None else (self.face,):
            row = {**photo_row, "face_index": k if photo_row["face_count"] else None}
            try:
                if self.align:
                    crop = align_face(photo, landmarks, size=size, scale=self.crop_scale, face=k)
                else:
                    crop = uncropped(photo, size)
            except (StyleGANInversionError, ValueError) as e:
                rows.append({**row, "error": reason(e)})
                continue
            pictures = [crop.image, *(recrop(crop, each) for each in self.sizes[1:])]
            quad = None if crop.quad is None else crop.quad.tolist()
            rows.append({**row, "quad": quad, "cuts": [picture.tobytes() for picture in pictures]})
        return rows


class Invert:
    """Rows of `Align` -> rows of the table.

    A batch is always filled up to `batch_size`, so that the code of a face does not depend on its neighbours: the
    numerical libraries choose their way by the size of the batch.

    Args:
        pipeline: Inverts the faces.
        folder: The photos.
        output: Folder of the deltas and the pictures.
        sizes: As in `Align`.
        options: Further arguments of the pipeline's call.
        batch_size: Faces that go through an encoder together; a method that optimises takes one at a time.
        save: Which pictures to write too: `PICTURES`.
    """

    def __init__(
        self,
        pipeline: InversionPipeline,
        folder: Path,
        output: Path,
        sizes: Sequence[int],
        *,
        options: Mapping[str, Any],
        batch_size: int,
        save: Collection[str] = (),
    ) -> None:
        self.pipeline, self.folder, self.output, self.sizes = pipeline, folder, output, sizes
        self.options, self.save = dict(options), save
        self.batch_size = 1 if pipeline.optimizes else batch_size
        name = pipeline.base_name
        self._model = {"model": name and name.name_or_path, "commit": name and name.revision, "version": __version__}

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """Invert the faces; the other rows, and the order, stay."""
        faces = [row for row in rows if "cuts" in row]
        groups = [faces[k : k + self.batch_size] for k in range(0, len(faces), self.batch_size)]
        done = iter([row for group in groups for row in self._invert(group, self.batch_size)])
        finished = [next(done) if "cuts" in row else row for row in rows]
        return [{**self._model, **row, "id": row_id(row), "cuts": None} for row in finished]

    def _invert(self, rows: list[Row], fill: int) -> list[Row]:
        padded = rows + rows[-1:] * (fill - len(rows))
        try:
            out = self.pipeline([self._crop(row) for row in padded], **self.options)
        except MissingDependencyError:
            raise
        except Exception as e:  # such as too little memory, so that each is tried alone
            if fill == 1:
                return [{**rows[0], "error": reason(e)}]
            return [row for one in rows for row in self._invert([one], 1)]
        return [self._written(row, out[k]) for k, row in enumerate(rows)]

    def _crop(self, row: Row) -> Crop:
        pictures = [Image.frombytes("RGB", (size, size), data) for size, data in zip(self.sizes, row["cuts"])]
        photo = load_image(self.folder / row["path"]) if "photo" in self.save else pictures[0]
        quad = None if row["quad"] is None else torch.tensor(row["quad"], dtype=torch.float64).numpy()
        return Crop(pictures[0], quad, photo, row["face_count"], row["face_index"], dict(zip(self.sizes, pictures)))

    def _written(self, row: Row, out: InversionOutput) -> Row:
        """The row of one inversion, after its files are written."""
        w_plus, report, delta = out.w_plus[0].half(), out.reports[0], None
        if not torch.isfinite(w_plus).all():
            return {**row, "error": "The code does not fit float16: the inversion went astray."}
        if out.generator is not self.pipeline.generator:
            file = self.output / DELTAS / f"{row_id(row)}.safetensors"
            delta = write_generator(file, out.generator, self.pipeline.generator)
        for kind in self.save:
            picture = out.crops[0].image if kind == "crop" else out.images[0]
            if kind == "photo":
                (picture,) = self.pipeline.paste_back(out, detail="none")
            save_image(picture, self.output / kind / f"{row['path']}-{row['face_index']}.png")
        return {**row, "w_plus": w_plus.numpy(), "l2": report["l2"], "seconds": report["seconds"], "delta": delta}


def row_id(row: Row) -> str:
    """A face's name among all rows: 32 hexadecimal digits of its photo's path and content, and its number."""
    parts = (row["path"], row["sha256"], row["face_index"])
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


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
        """Keep finished rows, and write a part when it is time: the longer a run takes, the larger are its parts."""
        self._rows += rows
        now = time.monotonic()
        if len(self._rows) >= _PART_ROWS or now - self._written >= max(_PART_SECONDS, (now - self._start) / 50):
            self.flush()

    def flush(self) -> None:
        """Write the rows of whole photos."""
        import pyarrow as pa

        ends = [k for k, row in enumerate(self._rows, 1) if row["left"] == 0]
        whole = [row for row in self._rows[: ends[-1] if ends else 0] if not row.get("done")]
        if whole:
            codes = [{**row, "w_plus": list(row["w_plus"]) if "w_plus" in row else None} for row in whole]
            table = pa.Table.from_pylist(codes, self.schema)
            self._write(table, self.output / f"faces-{self._number:05}.parquet")
        del self._rows[: ends[-1] if ends else 0]
        self._number += bool(whole)
        self.inverted += sum(row["error"] is None for row in whole)
        self._written = time.monotonic()

    def _write(self, table: Any, part: Path) -> None:
        import pyarrow.parquet as pq

        storage.write_file(part, lambda temporary: pq.write_table(table, temporary, compression="zstd"))

    def tidy(self, *, retry_errors: bool = False) -> tuple[dict[str, str | None], int]:
        """Remove the rows of photos that later rows replace, and on request those with errors.

        Returns:
            The hash of each photo that has rows, and how many rows hold an error.
        """
        import pyarrow.parquet as pq

        columns = {part: pq.read_table(part, columns=["path", "sha256", "error"]) for part in parts_of(self.output)}
        rows = {part: [tuple(row.values()) for row in table.to_pylist()] for part, table in columns.items()}
        known = {path: sha256 for each in rows.values() for path, sha256, _ in each}
        failed = {path for each in rows.values() for path, _, error in each if error is not None}
        for path in failed if retry_errors else ():
            del known[path]
        errors = 0
        for part, each in rows.items():
            keep = [path in known and known[path] == sha256 for path, sha256, _ in each]
            errors += sum(kept and error is not None for kept, (_, _, error) in zip(keep, each))
            if not any(keep):
                part.unlink()
            elif not all(keep):
                self._write(pq.read_table(part).filter(keep), part)
        return known, errors


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
