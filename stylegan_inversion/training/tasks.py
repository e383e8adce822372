"""The tasks of pSp: what the encoder sees, what it must draw, and how the losses weigh.

Paper: Richardson et al. 2021, arXiv:2008.00951, section 4; original code: eladrich/pixel2style2pixel (MIT), whose
transforms and weights these are. Own code. Departure: pictures that are not square lose their sides instead of being
squeezed (see `preprocessing.sources`).
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stylegan_inversion.preprocessing.image import to_pil, to_tensor
from stylegan_inversion.preprocessing.sources import LabelSource, PhotoSource, SketchSource, Source
from stylegan_inversion.training.objective import LossWeights

Pair = tuple[Float[Tensor, "channels S S"], Float[Tensor, "3 R R"]]
"""x, the encoder's input (see `preprocessing.sources`), and y, what is to be drawn: RGB, in [-1, 1]."""


class Task(abc.ABC):
    """What the trainer asks of a task. A subclass says how the losses weigh and, if need be, what becomes of a pair.

    Attributes:
        paired: Whether each target has a source picture of its own, in a second folder.
    """

    paired: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def loss(self) -> LossWeights:
        """The paper's weights, a new object each time."""

    @property
    def source(self) -> Source:
        """What the encoder reads."""
        return PhotoSource()

    def pair(
        self,
        source: Image.Image,
        target: Image.Image,
        *,
        input_resolution: int,
        output_resolution: int,
        rng: torch.Generator | None,
    ) -> Pair:
        """Make one example.

        Args:
            source: As `task.source.load` gives it; the same as `target` unless the task is paired.
            target: RGB, as `load_image` gives it.
            input_resolution: Side S of the encoder's input.
            output_resolution: Side R of the target.
            rng: Of the random draws. `None` means validation: none, the same pair each time.

        Returns:
            x, (C, S, S), and y, (3, R, R), RGB, in [-1, 1].
        """
        return self._transform(self.source(source, input_resolution), PhotoSource()(target, output_resolution), rng)

    def _transform(self, x: Tensor, y: Tensor, rng: torch.Generator | None) -> Pair:
        return x, y


@dataclass(frozen=True)
class Inversion(Task):
    """The photo itself. In training both are mirrored together, every second time."""

    @property
    def loss(self) -> LossWeights:
        """The paper's weights."""
        return LossWeights(l2=1.0, lpips=0.8, identity=0.1)

    def _transform(self, x: Tensor, y: Tensor, rng: torch.Generator | None) -> Pair:
        return (x.flip(-1), y.flip(-1)) if _heads(rng) else (x, y)


@dataclass(frozen=True)
class Pictures(Task):
    """Pictures alone, as a generator is trained on: the source is the target. No task of the encoders."""

    mirror: bool = True

    @property
    def loss(self) -> LossWeights:
        """Nothing that an encoder would pay."""
        return LossWeights(l2=0.0, lpips=0.0, identity=0.0)

    def pair(
        self,
        source: Image.Image,
        target: Image.Image,
        *,
        input_resolution: int,
        output_resolution: int,
        rng: torch.Generator | None,
    ) -> Pair:
        """Make one example; with `mirror`, in training every second one is mirrored."""
        y = PhotoSource()(target, output_resolution)
        y = y.flip(-1) if self.mirror and _heads(rng) else y
        return y, y


@dataclass(frozen=True)
class Toonify(Inversion):
    """The inversion of photos with another generator, which the config's model names. Best after about 6,000 steps."""

    @property
    def loss(self) -> LossWeights:
        """The paper's weights."""
        return LossWeights(l2=1.0, lpips=0.8, identity=1.0, w_norm=0.025)


@dataclass(frozen=True)
class Frontalization(Task):
    """Mirrored apart, source and target look different ways: only a face from the front can please both."""

    @property
    def loss(self) -> LossWeights:
        """The paper's weights."""
        return LossWeights(l2=0.001, lpips=0.08, identity=1.0, w_norm=0.005, l2_crop=0.01, lpips_crop=0.8)

    def _transform(self, x: Tensor, y: Tensor, rng: torch.Generator | None) -> Pair:
        return x.flip(-1) if _heads(rng) else x, y.flip(-1) if _heads(rng) else y


@dataclass(frozen=True)
class SuperResolution(Task):
    """The photo, reduced by a factor drawn from a list and enlarged again. Validation takes the middle of the list.

    Raises:
        ValueError: If `factors` is empty or holds anything but whole numbers >= 1.
    """

    factors: Sequence[int] = (1, 2, 4, 8, 16, 32)

    def __post_init__(self) -> None:
        """Check the values."""
        factors = tuple(self.factors) if isinstance(self.factors, Sequence) else ()
        if not factors or not all(isinstance(factor, int) and factor >= 1 for factor in factors):
            raise ValueError(f"`factors` must be a list of whole numbers >= 1, got {self.factors!r}.")
        object.__setattr__(self, "factors", factors)

    @property
    def loss(self) -> LossWeights:
        """The paper's weights."""
        return LossWeights(l2=1.0, lpips=0.8, identity=0.1, w_norm=0.005)

    def _transform(self, x: Tensor, y: Tensor, rng: torch.Generator | None) -> Pair:
        factor = sorted(self.factors)[len(self.factors) // 2]
        if rng is not None:
            factor = self.factors[int(torch.randint(len(self.factors), (), generator=rng))]
        image = to_pil(x[None])[0]
        small = max(1, round(image.width / factor))
        # The original's kernels: bicubic (a = -0.5), antialiased, down to 8 bits; bilinear up
        reduced = image.resize((small, small), Image.Resampling.BICUBIC)
        return to_tensor(reduced.resize(image.size, Image.Resampling.BILINEAR))[0], y


@dataclass(frozen=True)
class LabelsToFace(Task):
    """A label map becomes a face. Never mirrored: left and right are different labels.

    Raises:
        ValueError: If `num_labels` is out of range.
    """

    paired: ClassVar[bool] = True
    num_labels: int = 19  # CelebAMask-HQ's

    def __post_init__(self) -> None:
        """Check the value."""
        self.source  # noqa: B018  checks it

    @property
    def loss(self) -> LossWeights:
        """The paper's weights."""
        return LossWeights(l2=1.0, lpips=0.8, identity=0.0, w_norm=0.005)

    @property
    def source(self) -> Source:
        """What the encoder reads."""
        return LabelSource(self.num_labels)


@dataclass(frozen=True)
class SketchToFace(Task):
    """A drawing becomes a face. Not mirrored, as in the original."""

    paired: ClassVar[bool] = True

    @property
    def loss(self) -> LossWeights:
        """The paper's weights."""
        return LossWeights(l2=1.0, lpips=0.8, identity=0.0, w_norm=0.005)

    @property
    def source(self) -> Source:
        """What the encoder reads."""
        return SketchSource()


TASKS: dict[str, type[Any]] = {
    "inversion": Inversion,
    "frontalization": Frontalization,
    "super_resolution": SuperResolution,
    "labels_to_face": LabelsToFace,
    "sketch_to_face": SketchToFace,
    "toonify": Toonify,
}


def make_task(name: str, **options: Any) -> Task:
    """Build a task by name.

    Args:
        name: One of `TASKS`.
        **options: Fields of the task, such as `factors` or `num_labels`.

    Raises:
        ValueError: If the name or an option is unknown, or a value is out of range.
    """
    if name not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {name!r}.")
    known = [field.name for field in fields(TASKS[name])]
    for option in options:
        if option not in known:
            raise ValueError(f"Task {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}.")
    return TASKS[name](**options)


def _heads(rng: torch.Generator | None) -> bool:
    """Toss a coin; without a generator it is always tails."""
    return rng is not None and bool(torch.rand((), generator=rng) < 0.5)
