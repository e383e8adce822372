import os
from pathlib import Path

import pytest

from stylegan_inversion.remote.integrity import (
    cached_snapshots,
    check_listing,
    read_ref,
    storage_folder,
    write_ref,
)


def test_models_in_the_cache(tmp_path: Path) -> None:
    assert cached_snapshots(tmp_path) == []
    for repo_id, commit in (("org/a", "1" * 40), ("org/a", "2" * 40), ("other/b-c", "3" * 40)):
        folder = storage_folder(repo_id, tmp_path) / "snapshots" / commit
        folder.mkdir(parents=True)
        os.utime(folder, (int(commit[0]),) * 2)
    (tmp_path / "models--org--empty").mkdir()
    found = [(repo_id, folder.name) for repo_id, folder in cached_snapshots(tmp_path)]
    assert found == [("org/a", "2" * 40), ("other/b-c", "3" * 40)]


@pytest.mark.parametrize("revision", ["{outside}", "../../outside", "..\\outside", "C:outside", "\\\\host\\outside"])
def test_a_revision_stays_in_the_cache(revision: str, tmp_path: Path) -> None:
    revision, storage = revision.format(outside=tmp_path / "outside"), tmp_path / "cache" / "models--o--r"
    with pytest.raises(ValueError, match="is no path inside a repository"):
        check_listing({revision: (None, None)})
    write_ref(storage, revision, "1" * 40)
    assert not list(tmp_path.iterdir())
    (tmp_path / "outside").write_text("1" * 40)
    assert read_ref(storage, revision) is None
    write_ref(storage, "refs/pr/1", "1" * 40)
    assert read_ref(storage, "refs/pr/1") == "1" * 40
