"""The pictures of a folder, for training and evaluation alike."""

import os
from pathlib import Path

from PIL import Image

from stylegan_inversion.preprocessing.image import FORMATS


def list_images(folder: Path) -> list[str]:
    """Paths of the pictures in a folder and its subfolders, relative to it, with "/", sorted.

    Links are followed, hidden files and folders left out.

    Raises:
        ValueError: If it is no folder, or holds no picture.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a folder of pictures.")
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    names, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        # A link may lead back to a folder above
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(root).relative_to(folder)
        names += [
            (inside / name).as_posix()
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    if not names:
        raise ValueError(f"{folder} holds no picture ({', '.join(sorted(suffixes))}).")
    return sorted(names)
