"""The file of records: one JSON object a line, added as the work goes on, whole or not at all."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stylegan_inversion.bounds import plain_number

logger = logging.getLogger(__name__)

Record = dict[str, Any]
"""What became of one image by one method: "image", "method", "key", "sha256", "error", and the figures."""


class RecordFile:
    """Records on disk, by (key, image); `key` identifies the method and its settings.

    A killed run leaves at most one torn line, at the end; opening the file takes it away. Records of other settings
    stay in the file untouched.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[tuple[str, str], Record] = {}
        if path.exists():
            self._read()
            self.rewrite(self._records.values())

    def _read(self) -> None:
        lines = self.path.read_text("utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                record = json.loads(line)
                self._records[record["key"], record["image"]] = record
            except (ValueError, KeyError, TypeError):
                logger.warning("%s, line %d is torn and left out; its image is done again.", self.path.name, number)

    def find(self, key: str, image: str, sha256: str | None) -> Record | None:
        """A finished record of the same settings and the same picture; `None` if there is none, or it failed."""
        record = self._records.get((key, image))
        if record is None or record["error"] is not None or record["sha256"] != sha256:
            return None
        return record

    def append(self, records: Iterable[Record]) -> None:
        """Add records and wait until they are on the disk."""
        records = list(records)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_line(record) for record in records))
            file.flush()
            os.fsync(file.fileno())
        self._records.update({(record["key"], record["image"]): record for record in records})

    def get(self, key: str, image: str) -> Record:
        """The record of an image, failed or not.

        Raises:
            KeyError: If there is none.
        """
        return self._records[key, image]

    def finish(self, order: Iterable[tuple[str, str]]) -> None:
        """Write the file anew: these (key, image) first and in this order, then the records of other settings."""
        first = {key: self._records[key] for key in order}
        self.rewrite([*first.values(), *(record for key, record in self._records.items() if key not in first)])

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file's contents in one step."""
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(_line(record) for record in records), "utf-8")
        temporary.replace(self.path)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, default=plain_number) + "\n"
