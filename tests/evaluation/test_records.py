import json
import logging
from pathlib import Path
from typing import Any

import pytest

from stylegan_inversion.evaluation.records import RecordFile


def record(image: str, key: str = "k", error: str | None = None, **more: Any) -> dict[str, Any]:
    return {"image": image, "key": key, "error": error, "sha256": f"sha of {image}", **more}


def test_records_survive(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([record("a", l2=0.5), record("b")])
    file.append([record("c")])
    again = RecordFile(tmp_path / "records.jsonl")
    assert again.find("k", "a", "sha of a") == record("a", l2=0.5)
    assert again.get("k", "c") == record("c")
    assert again.find("k", "a", "another file") is None and again.find("other", "a", "sha of a") is None


def test_a_failure_is_kept_but_not_taken_for_done(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([record("a", error="no face")])
    assert file.find("k", "a", "sha of a") is None and file.get("k", "a")["error"] == "no face"
    file.append([record("a")])
    assert RecordFile(file.path).find("k", "a", "sha of a") == record("a")


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_taken_away(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([record("a"), record("b")])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: -cut - 1])
    with caplog.at_level(logging.WARNING):
        again = RecordFile(file.path)
    assert caplog.messages == ["records.jsonl, line 2 is torn and left out; its image is done again."]
    assert again.find("k", "a", "sha of a") and again.find("k", "b", "sha of b") is None
    again.append([record("b")])
    assert again.path.read_bytes() == whole


def test_the_end_is_in_order_and_other_settings_stay(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([record("b"), record("old", key="old"), record("a")])
    file.finish([("k", "a"), ("k", "b")])
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a", "b", "old"]
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]
