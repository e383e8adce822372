"""What an inversion is: the pair (`w_plus`, `generator`), the pictures it draws, and where they came from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines.saving import Base, read_output, write_output
from stylegan_inversion.preprocessing.align import Crop


@dataclass(frozen=True, eq=False)
class InversionOutput:
    """One or more inverted photos, edited or not; `out[i]` is the i-th alone.

    Attributes:
        images: What the generators draw at `w_plus`: RGB, R x R.
        reconstructions: What they draw without the edits; the same as `images` before any edit.
        w_plus: Style codes, (B, num_ws, w_dim), on the CPU.
        generators: Who draws each photo: one shared generator, or a tuned copy for each photo.
        crops: The aligned faces and their photos.
        edits: The sum of all edits so far, by direction, each in its unit.
        reports: Figures of each inversion, such as "l2" (mean squared error in [-1, 1]), "seconds", "stopped_by".
        base: The pipeline's generator, from which the tuned ones came; `None` if that is not known.
        w_inverted: The codes before any edit, as `w_plus`; `None` if there was none.
    """

    images: list[Image.Image]
    reconstructions: list[Image.Image]
    w_plus: Float[Tensor, "batch num_ws w_dim"]
    generators: Sequence[Generator]
    crops: list[Crop]
    edits: dict[str, float] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    base: Base | None = None
    w_inverted: Float[Tensor, "batch num_ws w_dim"] | None = None

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
            w_inverted=None if self.w_inverted is None else self.w_inverted[one],
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

    def save(
        self,
        folder: str | Path,
        *,
        rank: int | None = None,
        energy: float | None = None,
        dtype: torch.dtype | None = None,
        whole: bool = False,
    ) -> Path:
        """Write everything to a folder: `config.json` and one `model.safetensors`.

        Of tuned generators only what differs from the pipeline's generator is kept, if the pipeline was loaded by a
        name; without options that is exact, and so is every picture after `load`.

        Args:
            folder: Made if needed.
            rank: Keep the difference of each weight matrix at this rank; see `GeneratorDelta.between`.
            energy: Keep this share of each difference's squared norm.
            dtype: Keep the difference in this type, such as `torch.float16`.
            whole: Keep whole generators instead: larger, but it can be loaded where the base model is not.

        Raises:
            ValueError: If an option is out of range, or given for a pipeline without a name or with `whole`.
            CheckpointError: If the folder cannot be written.
        """
        folder = Path(folder)
        write_output(self, folder, rank=rank, energy=energy, dtype=dtype, whole=whole)
        return folder

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        base: Generator | None = None,
        allow_download: bool = False,
        device: torch.device | str | None = None,
    ) -> "InversionOutput":
        """Read what `save` wrote, with this version or 0.1.

        Args:
            folder: The folder.
            base: The generator of the model that the inversion was made with. `None` loads that model by its name.
            allow_download: Whether that model may be fetched from the Hub or a folder of another machine. The name is
                what whoever wrote the folder put there, so by default only a model that is on this machine is taken.
            device: Where to put the generators.

        Raises:
            CheckpointError: If the folder is not such a folder, a file is missing or damaged, or `base` (or what is
                now found under its name) is another generator.
            ModelNotFoundError: If the base model is not found.
        """
        return cls(**read_output(Path(folder), base=base, allow_download=allow_download, device=device))
