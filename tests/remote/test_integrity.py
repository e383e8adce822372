import os
from pathlib import Path

from stylegan_inversion.remote.integrity import cached_snapshots, storage_folder


def test_models_in_the_cache(tmp_path: Path) -> None:
    assert cached_snapshots(tmp_path) == []
    for repo_id, commit in (("org/a", "1" * 40), ("org/a", "2" * 40), ("other/b-c", "3" * 40)):
        folder = storage_folder(repo_id, tmp_path) / "snapshots" / commit
        folder.mkdir(parents=True)
        os.utime(folder, (int(commit[0]),) * 2)
    (tmp_path / "models--org--empty").mkdir()
    found = [(repo_id, folder.name) for repo_id, folder in cached_snapshots(tmp_path)]
    assert found == [("org/a", "2" * 40), ("other/b-c", "3" * 40)]
