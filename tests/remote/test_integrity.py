import os
import time
from pathlib import Path

from filelock import FileLock

from stylegan_inversion.remote.integrity import cached_snapshots, storage_folder, sweep, unfinished


def test_what_killed_downloads_left_is_swept(tmp_path: Path) -> None:
    storage = storage_folder("org/repo", tmp_path)
    (storage / "blobs").mkdir(parents=True)
    names = ("mine", "theirs", "old", "locked")
    files = {name: storage / "blobs" / f"{name}.0123abcd.incomplete" for name in names}
    whole = storage / "blobs" / "whole"
    for path in (*files.values(), whole):
        path.write_bytes(b"x")
    os.utime(files["old"], (time.time() - 7200,) * 2)
    before = {files["theirs"], files["old"]}
    lock = tmp_path / ".locks" / storage.name / "locked.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        sweep(storage, before)
    assert unfinished(storage) == {files["theirs"], files["locked"]} and whole.exists()


def test_models_in_the_cache(tmp_path: Path) -> None:
    assert cached_snapshots(tmp_path) == []
    for repo_id, commit in (("org/a", "1" * 40), ("org/a", "2" * 40), ("other/b-c", "3" * 40)):
        folder = storage_folder(repo_id, tmp_path) / "snapshots" / commit
        folder.mkdir(parents=True)
        os.utime(folder, (int(commit[0]),) * 2)
    (tmp_path / "models--org--empty").mkdir()
    found = [(repo_id, folder.name) for repo_id, folder in cached_snapshots(tmp_path)]
    assert found == [("org/a", "2" * 40), ("other/b-c", "3" * 40)]
