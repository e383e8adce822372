"""The tasks of pSp: what the encoder sees, what it must draw, and how the losses weigh.

Paper: Richardson et al. 2021, arXiv:2008.00951, section 4; original code: eladrich/pixel2style2pixel (MIT), whose
transforms and weights these are. Own code. Departure: pictures that are not square lose their sides instead of being
squeezed (see `preprocessing.sources`).
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stylegan_inversion.preprocessing.domain import FACES, Domain
from stylegan_inversion.preprocessing.image import to_pil, to_tensor
from stylegan_inversion.preprocessing.sources import LabelSource, PhotoSource, SketchSource, Source, reduced
from stylegan_inversion.training.config import TaskOptions

Pair = tuple[Float[Tensor, "channels S S"], Float[Tensor, "3 R R"]]
"""x, the encoder's input (see `preprocessing.sources`), and y, what is to be drawn: RGB, in [-1, 1]."""


@dataclass(frozen=True)
class Task:
    """What the encoder reads and draws. A subclass replaces `change`.

    Attributes:
        name: What users type.
        loss: The paper's weights; the other terms are left out.
        source: What the encoder reads.
        paired: Whether each target has a source picture of its own, in a second folder.
        bars: Whether photos come as the generator draws them, with its black bars.
    """

    name: str
    loss: dict[str, float]
    source: Source = field(default_factory=PhotoSource)
    paired: bool = False
    bars: bool = False

    def pair(
        self,
        source: Image.Image,
        target: Image.Image,
        *,
        input_resolution: int,
        output_resolution: int,
        rng: torch.Generator | None,
        domain: Domain = FACES,
    ) -> Pair:
        """Make one example of a target, RGB, and of its source, the same picture unless the task is paired.

        `rng` is the source of the random changes; `None` means validation, without changes. Photos get the shape of
        the domain.
        """

        def pixels(photo: Image.Image, side: int) -> Tensor:
            picture = domain.crop(photo, side).image
            return (domain.with_bars(picture) if self.bars else to_tensor(picture))[0]

        y = pixels(target, output_resolution)
        if not isinstance(self.source, PhotoSource):
            x = self.source(source, input_resolution)
        else:
            alike = source is target and input_resolution == output_resolution
            x = y if alike else pixels(source, input_resolution)
        return self.change(x, y, rng)

    def change(self, x: Tensor, y: Tensor, rng: torch.Generator | None) -> Pair:
        """Change a pair. Label maps and drawings stay: left and right are different labels."""
        return x, y


class Inversion(Task):
    """The photo itself. In training both pictures are mirrored together, every second time."""

    def change(self, x: Tensor, y: Tensor, rng: torch.Generator | None) -> Pair:
        """Mirror both pictures or neither."""
        return (x.flip(-1), y.flip(-1)) if _toss(rng) else (x, y)


class Frontalization(Task):
    """Source and target are mirrored apart: only a face from the front can please both."""

    def change(self, x: Tensor, y: Tensor, rng: torch.Generator | None) -> Pair:
        """Mirror each picture on its own."""
        return x.flip(-1) if _toss(rng) else x, y.flip(-1) if _toss(rng) else y


@dataclass(frozen=True)
class SuperResolution(Task):
    """The photo, reduced by a factor drawn from a list and enlarged again. Validation takes the middle of the list."""

    factors: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def change(self, x: Tensor, y: Tensor, rng: torch.Generator | None) -> Pair:
        """Reduce and enlarge what the encoder reads."""
        factor = sorted(self.factors)[len(self.factors) // 2]
        if rng is not None:
            factor = self.factors[int(torch.randint(len(self.factors), (), generator=rng))]
        return to_tensor(reduced(to_pil(x[None])[0], factor))[0], y


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Inversion("inversion", {"l2": 1.0, "lpips": 0.8, "identity": 0.1}),
        Frontalization(
            "frontalization",
            {"l2": 0.001, "lpips": 0.08, "identity": 1.0, "w_norm": 0.005, "l2_crop": 0.01, "lpips_crop": 0.8},
            PhotoSource("frontalization"),
        ),
        SuperResolution(
            "super_resolution",
            {"l2": 1.0, "lpips": 0.8, "identity": 0.1, "w_norm": 0.005},
            PhotoSource("super_resolution"),
        ),
        Task("labels_to_face", {"l2": 1.0, "lpips": 0.8, "w_norm": 0.005}, LabelSource(), paired=True),
        Task("sketch_to_face", {"l2": 1.0, "lpips": 0.8, "w_norm": 0.005}, SketchSource(), paired=True),
        # The inversion of photos with another generator, which the config's `model` names: best after about 6,000 steps
        Inversion("toonify", {"l2": 1.0, "lpips": 0.8, "identity": 1.0, "w_norm": 0.025}, PhotoSource("toonify")),
    )
}


def make_task(name: str, options: TaskOptions | None = None) -> Task:
    """Build a task by name; an option of `None` takes the task's own.

    Raises:
        ValueError: If the name is not one of `TASKS`, or an option belongs to another task.
    """
    if name not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {name!r}.")
    task, options = TASKS[name], options or TaskOptions()
    for option, of in (("factors", "super_resolution"), ("num_labels", "labels_to_face")):
        if getattr(options, option) is not None and name != of:
            raise ValueError(f"`task_options.{option}` is an option of task {of!r}, not of {name!r}. Leave it out.")
    if options.factors is not None:
        return SuperResolution(name, task.loss, task.source, factors=options.factors)
    if options.num_labels is not None:
        return replace(task, source=LabelSource(options.num_labels))
    return task


def _toss(rng: torch.Generator | None) -> bool:
    """Toss a coin; without a generator it is always tails."""
    return rng is not None and bool(torch.rand((), generator=rng) < 0.5)
