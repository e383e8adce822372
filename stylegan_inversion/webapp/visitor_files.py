"""Files of visitors: under paths that nobody can guess, and gone when their owner wants it."""

import hashlib
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from stylegan_inversion.webapp.janitor import Janitor
from stylegan_inversion.webapp.marking import Kind, save_animation, save_marked
from stylegan_inversion.webapp.messages import EXPIRED, gr
from stylegan_inversion.webapp.sessions import Sessions
from stylegan_inversion.webapp.shown import SHOWN_FACE

REMEMBERED_OWNERS = 1000  # whose uploads can be deleted at once; the others' go by themselves

Owner = str | None


class VisitorFiles:
    """Writes what visitors get to see, and deletes it."""

    def __init__(self, janitor: Janitor, sessions: Sessions) -> None:
        """Write to the janitor's folder, a folder an owner.

        Args:
            janitor: Has the folder.
            sessions: Knows who wished to be forgotten.
        """
        self.janitor, self.sessions = janitor, sessions
        self._salt = secrets.token_bytes(32)
        self._uploads: OrderedDict[str, set[Path]] = OrderedDict()
        self._lock = threading.Lock()

    def picture(
        self,
        image: Image.Image,
        *,
        owner: Owner,
        name: str,
        kind: Kind = "edited",
        shown: bool = False,
        since: int | None = None,
    ) -> str:
        """Write a picture for a visitor: marked, under a path nobody can guess; a JPEG if it is only to be shown.

        `since` as in `original`.
        """
        path = save_marked(image, self.new_folder(owner), name=name, kind=kind, lossy=shown)
        return self.written(path, owner, since)

    def original(self, image: Image.Image, *, owner: Owner, drawn: bool = False, since: int | None = None) -> str:
        """Write a picture that nothing has changed, only to be shown; the same one has the same path.

        Args:
            image: The picture.
            owner: Whose it is.
            drawn: Whether it is a generator's picture, which is marked, and no photo.
            since: From `sessions.now`, when the request began: if the owner was forgotten after that, nothing stays on
                the disk, and the request ends with an error.
        """
        name = hashlib.blake2b(image.tobytes(), key=self._salt, digest_size=24).hexdigest()
        path = self.folder_of(owner) / f"{name}-{image.width}{'-drawn' if drawn else ''}" / "picture.jpg"
        try:
            os.utime(path)  # the janitor's time counts anew
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{secrets.token_hex(8)}.jpg")
            if drawn:
                save_marked(image, part.parent, name=part.name, kind="generated", lossy=True)
            else:
                image.save(part, quality=92, subsampling=0)
            part.replace(path)  # whole at once
        return self.written(path, owner, since)

    def written(self, path: str | Path, owner: Owner, since: int | None = None) -> str:
        """The path, unless the owner wished to be forgotten while it was written: then it is deleted."""
        if self.sessions.is_forgotten(owner, since):
            self.janitor.forget([path])
            raise gr.Error(EXPIRED, print_exception=False)
        return str(path)

    def animation(
        self, frames: Sequence[Image.Image], owner: Owner, since: int | None = None, *, name: str, kind: Kind
    ) -> str:
        """Write pictures as a GIF that goes there and back, in the size of the page; `since` as in `original`."""
        shown = [frame.resize((SHOWN_FACE, SHOWN_FACE), Image.Resampling.BICUBIC) for frame in frames]
        return self.written(save_animation(shown, self.new_folder(owner), name=name, kind=kind), owner, since)

    def remember_upload(self, path: Path, *, owner: Owner) -> None:
        """Note whose upload a file is, so that `forget` can delete it at once."""
        if owner is not None:
            with self._lock:
                self._uploads.setdefault(owner, set()).add(path)
                self._uploads.move_to_end(owner)
                while len(self._uploads) > REMEMBERED_OWNERS:
                    self._uploads.popitem(last=False)

    def forget(self, owner: str) -> None:
        """Delete all files of an owner, uploads included."""
        with self._lock:
            uploads = self._uploads.pop(owner, set())
        self.janitor.forget([*uploads, *self.folder_of(owner).rglob("*.*")])

    def folder_of(self, owner: Owner) -> Path:
        """Where everything of an owner lies."""
        return self.janitor.folder / (f"visitor-{owner[:32]}" if owner else "programs")

    def new_folder(self, owner: Owner) -> Path:
        """A new folder that nobody can guess, for something of an owner's."""
        folder = self.folder_of(owner) / secrets.token_urlsafe(24)
        folder.mkdir(parents=True)
        return folder
