"""What an inversion is: the pair (`w_plus`, `generator`), the pictures it draws, and where they came from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.image import load_image

FORMAT = 1


@dataclass(frozen=True, eq=False)
class InversionOutput:
    """One or more inverted photos, edited or not; `out[i]` is the i-th alone.

    Attributes:
        images: What the generators draw at `w_plus`: RGB, R x R.
        reconstructions: What they draw without the edits; the same as `images` before any edit.
        w_plus: Style codes, (B, num_ws, w_dim), on the CPU.
        generators: Who draws each photo: one shared generator, or a tuned copy for each photo.
        crops: The aligned faces and their photos.
        edits: The sum of all edits so far, by direction, in units of the unit-norm direction.
        reports: Figures of each inversion, such as "l2" (mean squared error in [-1, 1]), "seconds", "stopped_by".
    """

    images: list[Image.Image]
    reconstructions: list[Image.Image]
    w_plus: Float[Tensor, "batch num_ws w_dim"]
    generators: Sequence[Generator]
    crops: list[Crop]
    edits: dict[str, float] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        """How many photos."""
        return len(self.images)

    def __getitem__(self, index: int) -> "InversionOutput":
        """One photo as an output of its own."""
        index = range(len(self))[index]
        one = slice(index, index + 1)
        return replace(
            self,
            images=self.images[one],
            reconstructions=self.reconstructions[one],
            w_plus=self.w_plus[one],
            generators=self.generators[one],
            crops=self.crops[one],
            reports=self.reports[one],
        )

    def __iter__(self) -> Iterator["InversionOutput"]:
        """The photos, one by one."""
        return (self[i] for i in range(len(self)))

    @property
    def generator(self) -> Generator:
        """Who draws the photos.

        Raises:
            ValueError: If each photo has a tuned generator of its own: take `out[i].generator`.
        """
        if any(generator is not self.generators[0] for generator in self.generators):
            raise ValueError(f"Each of the {len(self)} photos has its own generator: take `out[i].generator`.")
        return self.generators[0]

    def save(self, folder: str | Path) -> Path:
        """Write everything to a folder: pictures as PNG, codes and generators as safetensors, the rest as JSON."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        unique = list({id(generator): generator for generator in self.generators}.values())
        for k, generator in enumerate(unique):
            hub.save_module(generator, folder / f"generator_{k}")
        hub.write_tensors({"w_plus": self.w_plus}, folder / hub.WEIGHTS_NAME)
        entries = []
        for i, (image, reconstruction, crop) in enumerate(zip(self.images, self.reconstructions, self.crops)):
            for name, picture in (
                ("image", image),
                ("reconstruction", reconstruction),
                ("crop", crop.image),
                ("photo", crop.photo),
            ):
                picture.save(folder / f"{name}_{i}.png")
            entries.append(
                {
                    "generator": next(k for k, g in enumerate(unique) if g is self.generators[i]),
                    "quad": None if crop.quad is None else crop.quad.tolist(),
                    "face_count": crop.face_count,
                    "face_index": crop.face_index,
                    "report": self.reports[i] if self.reports else {},
                }
            )
        hub.write_config(
            {"_class_name": "InversionOutput", "_format": FORMAT, "edits": self.edits, "photos": entries}, folder
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str | None = None) -> "InversionOutput":
        """Read what `save` wrote.

        Raises:
            CheckpointError: If the folder is not such a folder, or a file is missing or damaged.
        """
        folder = Path(folder)
        config = hub.read_config(folder)
        if config.get("_class_name") != "InversionOutput" or config.get("_format") != FORMAT:
            raise CheckpointError(f"{folder} was not written by `InversionOutput.save` of this version.")
        generators: dict[int, Generator] = {}
        try:
            entries = config["photos"]
            pictures = {
                name: [load_image(folder / f"{name}_{i}.png") for i in range(len(entries))]
                for name in ("image", "reconstruction", "crop", "photo")
            }
            for k in {int(entry["generator"]) for entry in entries}:
                generators[k] = hub.load_module(Generator, GeneratorConfig, folder / f"generator_{k}", device=device)
            crops = [
                Crop(
                    pictures["crop"][i],
                    None if entry["quad"] is None else np.asarray(entry["quad"], dtype=np.float64),
                    pictures["photo"][i],
                    face_count=int(entry["face_count"]),
                    face_index=int(entry["face_index"]),
                )
                for i, entry in enumerate(entries)
            ]
            return cls(
                images=pictures["image"],
                reconstructions=pictures["reconstruction"],
                w_plus=hub.read_tensors(folder / hub.WEIGHTS_NAME)["w_plus"],
                generators=[generators[int(entry["generator"])] for entry in entries],
                crops=crops,
                edits={str(k): float(v) for k, v in config["edits"].items()},
                reports=[dict(entry["report"]) for entry in entries],
            )
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as e:
            raise CheckpointError(f"{folder} is damaged or incomplete: {type(e).__name__}: {e}") from e
