"""The pictures that the figure shows, kept on disk as they are drawn: a tuned generator is gone after its image."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from stylegan_inversion.evaluation.figure import Column
from stylegan_inversion.preprocessing.image import load_image, save_image, to_pil

_ORIGINAL = "_original"


class Gallery:
    """Pictures of some images, `FOLDER/IMAGE/METHOD-KEY[_EDIT_low|_EDIT_high].png`."""

    def __init__(
        self, folder: Path, images: Sequence[str], edits: Mapping[str, Sequence[float]], keys: Mapping[str, str]
    ) -> None:
        """Say what to keep; nothing is written yet.

        Args:
            folder: Made if needed.
            images: Names of those that are shown.
            edits: Strengths by name, of which the lowest and the highest are shown.
            keys: What identifies each method with its settings.
        """
        self.folder = folder
        self._keys = keys
        self.images = list(images)
        self._ends = {
            f"{edit}_{end}": (edit, strengths[index])
            for edit, strengths in edits.items()
            for end, index in (("low", 0), ("high", -1))
            if strengths[index] != 0
        }

    def has(self, image: str, method: str) -> bool:
        """Whether nothing is missing of an image by a method."""
        names = [_ORIGINAL, *self._names(method)]
        return image not in self.images or all(self._path(image, name).is_file() for name in names)

    def _names(self, method: str) -> dict[str, tuple[str, float] | None]:
        """Name of each picture -> the step that it shows."""
        stem = f"{method}-{self._keys[method]}"
        return {stem: None, **{f"{stem}_{end}": step for end, step in self._ends.items()}}

    def save(
        self, image: str, method: str, target: Image.Image, pictures: Mapping[tuple[str, float] | None, Tensor]
    ) -> None:
        """Keep what is to be shown of one image, if it is: `pictures` as `scoring.score` gives them, (3, R, R) each."""
        if image not in self.images:
            return
        self._path(image, _ORIGINAL).parent.mkdir(parents=True, exist_ok=True)
        save_image(target, self._path(image, _ORIGINAL))
        for name, step in self._names(method).items():
            save_image(to_pil(pictures[step][None])[0], self._path(image, name))

    def columns(self, labels: Mapping[str, str], edit: str | None) -> list[Column]:
        """The figure's columns: the original, then for each method, by name, its reconstruction and one edit's ends."""
        columns = [Column("", "photo", self._load(_ORIGINAL))]
        for method, label in labels.items():
            for name, step in self._names(method).items():
                if step is None or step[0] == edit:
                    title = "inversion" if step is None else f"{edit} {step[1]:+g}"
                    columns.append(Column(label, title, self._load(name)))
        return columns

    def _load(self, name: str) -> list[Image.Image | None]:
        paths = [self._path(image, name) for image in self.images]
        return [load_image(path) if path.is_file() else None for path in paths]

    def _path(self, image: str, name: str) -> Path:
        return self.folder / image / f"{name}.png"
