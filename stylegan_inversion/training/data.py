"""What the steps of a run are made of: pictures of a folder, and random codes and noise.

Each is a function of the run's seed and of its place in the run alone: a resumed run needs no saved random state, and
the number of processes or workers changes nothing.
"""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from stylegan_inversion import latents
from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.models.generator import Generator as StyleGAN
from stylegan_inversion.preprocessing.domain import FACES, Domain
from stylegan_inversion.preprocessing.image import list_images, load_image
from stylegan_inversion.training.augment import vary_photo
from stylegan_inversion.training.tasks import Task


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Let the weights of new networks follow from a seed; afterwards PyTorch's own random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class FaceFolder(Dataset[dict[str, Any]]):
    """The pictures of a folder and its subfolders as examples of a task. Links are followed, hidden files left out.

    In training a position is the serial number of an example in the whole run, without end: position p is in epoch
    p // n, and each epoch has its own order. In validation it is the index of the picture.
    """

    def __init__(
        self,
        targets: str | Path,
        task: Task,
        *,
        input_resolution: int,
        output_resolution: int,
        seed: int,
        training: bool,
        sources: str | Path | None = None,
        domain: Domain = FACES,
        other_cameras: float = 0.0,
    ) -> None:
        """List the pictures; none is opened yet.

        `targets` is the folder of what is to be drawn, `sources` that of the encoder's input, for paired tasks: the
        same relative names, but for the suffix. `domain` says what is cut out of photos. Only `training` shuffles,
        mirrors, and changes pictures with the probability `other_cameras` (`augment.vary_photo`). Raises `ValueError`
        if a folder holds no picture, or the sources do not fit the task or the targets.
        """
        if task.paired and sources is None:
            raise ValueError(f"Task {task.name!r} needs a folder of sources beside the targets: give `sources`.")
        if not task.paired and sources is not None:
            raise ValueError(f"Task {task.name!r} makes its sources from the targets: leave out `sources`.")
        self.task, self.seed, self.training, self.other_cameras = task, seed, training, other_cameras
        self.sides: dict[str, Any] = {"input_resolution": input_resolution, "output_resolution": output_resolution}
        self.sides["domain"] = domain
        self.targets, self.sources = Path(targets), Path(sources or targets)
        self.names = list_images(self.targets)  # relative to the folder, in order of the index
        self.source_names = match_sources(self.names, self.sources) if task.paired else []
        self._epoch, self._order = -1, list[int]()

    def __len__(self) -> int:
        """How many pictures: examples of an epoch."""
        return len(self.names)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Make one example: "x", (C, S, S), the encoder's input; "y", (3, R, R), RGB, in [-1, 1]; and its "index".

        Raises:
            InvalidImageError: If a picture cannot be used, for any reason; the message names the file.
        """
        index, rng = position, None
        if self.training:
            epoch, place = divmod(position, len(self))
            index, rng = self._shuffled(epoch)[place], latents.seeded(self.seed, "augmentation", position)
        path = self.targets / self.names[index]
        try:
            target = load_image(path)
            source: Image.Image = target
            if self.task.paired:
                path = self.sources / self.source_names[index]
                source = self.task.source.load(path)
            x, y = self.task.pair(source, target, **self.sides, rng=rng)
            if rng is not None and self.other_cameras:
                x, y = vary_photo(x, y, self.other_cameras, rng)
        except Exception as e:  # decoders raise nearly anything
            reason = str(e) if isinstance(e, InvalidImageError) else f"it cannot be used: {_one_line(e)}."
            raise InvalidImageError(f"{path}: {reason} Replace the file, then resume.") from e
        return {"x": x, "y": y, "index": index}

    def _shuffled(self, epoch: int) -> list[int]:
        """The pictures of an epoch in its order; the last one that was asked for is kept."""
        if epoch != self._epoch:
            order = torch.randperm(len(self), generator=latents.seeded(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.tolist()
        return self._order


def match_sources(targets: list[str], folder: Path) -> list[str]:
    """Find the source of each target in a folder: the same relative path, but for the suffix."""
    by_stem: dict[PurePath, str] = {}
    for name in list_images(folder):
        if (stem := PurePath(name).with_suffix("")) in by_stem:
            raise ValueError(f"{folder} holds two sources of one name: {by_stem[stem]} and {name}.")
        by_stem[stem] = name
    stems = [PurePath(name).with_suffix("") for name in targets]
    missing = [name for name, stem in zip(targets, stems) if stem not in by_stem]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(targets)} targets have no source in {folder}: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}. A source has its target's path, but for the suffix."
        )
    return [by_stem[stem] for stem in stems]


def positions(
    batch_size: int, *, rank: int = 0, world_size: int = 1, start: int = 0, end: int, limit: int | None = None
) -> Iterator[list[int]]:
    """Positions of the batches of one process, from batch `start` to `end`.

    Together the processes see what a single one with `batch_size * world_size` sees, in the same order. Positions from
    `limit` on are left out, as are batches without any: the tail of a validation set.
    """
    for number in range(start, end):
        first = (number * world_size + rank) * batch_size
        batch = list(range(first, first + batch_size if limit is None else min(first + batch_size, limit)))
        if not batch:
            return
        yield batch


def load_batches(
    dataset: FaceFolder, batches: Iterable[list[int]], *, num_workers: int
) -> Generator[dict[str, Any], None, None]:
    """Load the batches of these positions, in their order: "x" (B, C, S, S), "y" (B, 3, R, R), "index" (B,).

    The global random state is neither read nor changed. `num_workers` processes load ahead, with one thread each; 0
    loads in this one.

    Raises:
        InvalidImageError: If a picture cannot be used; the message names the file.
    """
    loader = DataLoader(
        _Batches(dataset),
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=_leave_group,
        generator=torch.Generator().manual_seed(0),  # or the loader would draw from the global one
    )
    for batch in loader:
        if isinstance(batch, InvalidImageError):
            raise batch
        yield batch


class _Batches(Dataset[Any]):
    """Whole batches, with errors as values: raised in a worker, they would come wrapped in its traceback."""

    def __init__(self, dataset: FaceFolder) -> None:
        self.dataset = dataset

    def __getitem__(self, batch: list[int]) -> dict[str, Any] | InvalidImageError:
        try:
            return dict(default_collate([self.dataset[position] for position in batch]))
        except InvalidImageError as e:
            return InvalidImageError(str(e))
        except Exception as e:  # as on a full /dev/shm
            return InvalidImageError(f"A batch failed: {_one_line(e)}. Lower `num_workers` or `batch_size`.")


def _leave_group(_: int) -> None:
    """Put a worker out of reach of Ctrl-C and of signals to the group: the run ends its step, saves, then ends it."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _one_line(error: Exception) -> str:
    text = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
    return " ".join(text.split()).rstrip(":. ")


class SeededDraws:
    """The random draws of one process of a run, made on its device: a CPU and a GPU draw different numbers.

    `purpose` in the methods names what the draws are for: two purposes share none. `serial` is the number of the
    micro-batch in this process, and `count` how many examples it has.
    """

    def __init__(self, generator: StyleGAN, accelerator: Accelerator, *, seed: int) -> None:
        self.generator, self.seed = generator, seed
        self.device, self.rank, self.world = accelerator.device, accelerator.process_index, accelerator.num_processes

    def w(self, step: int, count: int) -> tuple[Tensor, torch.Generator]:
        """Codes of the mapping network, (count, w_dim), and the source to draw on from; the same in each process."""
        rng = latents.seeded(self.seed, "w", step)
        return self.generator.sample_w(count, rng), rng

    def noise(self, serial: int, count: int, *, purpose: str = "noise") -> list[Tensor]:
        """Noise for pictures, (count, 1, r, r) a layer: the papers train with random noise."""
        return self._noise(self.sources(purpose, serial, count, device=self.device))

    def normal(self, purpose: str, serial: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers of a shape, whose first axis counts the examples."""
        return latents.seeded_normal(self.sources(purpose, serial, shape[0], device=self.device), *shape[1:])

    def numbered(self, purpose: str, numbers: Sequence[int], size: int) -> Tensor:
        """Standard normal vectors, (len(numbers), size), that belong to numbers, the same in each process."""
        return latents.seeded_normal([latents.seeded(self.seed, purpose, number) for number in numbers], size).to(
            self.device
        )

    def styles(self, purpose: str, serial: int, count: int, *, mixing: float) -> tuple[Tensor, Tensor]:
        """Codes of samples, (count, num_ws, w_dim), with gradients into the mapping network, and the first w of each.

        `mixing` is the share of the samples whose layers from a random one on take a second w (arXiv:1812.04948).
        """
        num_ws, z_dim = self.generator.num_ws, self.generator.config.z_dim
        z, cutoffs = [], []
        for rng in self.sources(purpose, serial, count):
            z.append(latents.normal(rng, 2, z_dim))
            mixes = float(torch.rand((), generator=rng, device="cpu", dtype=torch.float32)) < mixing
            cutoffs.append(int(torch.randint(1, num_ws, (), generator=rng, device="cpu")) if mixes else num_ws)
        first, second = torch.stack(z, dim=1).to(self.device)  # (count, z_dim) each
        w = self.generator.mapping(first)
        if min(cutoffs) == num_ws:
            return latents.broadcast(w, num_ws), w
        later = torch.arange(num_ws, device="cpu") >= torch.tensor(cutoffs, device="cpu")[:, None]  # (count, num_ws)
        other = self.generator.mapping(second)
        return torch.where(later.to(self.device)[..., None], other[:, None], w[:, None]), w

    @torch.no_grad()
    def synthesize(self, serial: int, count: int, *, side: int) -> tuple[Tensor, Tensor]:
        """Samples of the generator, (count, 3, side, side), RGB, in [-1, 1], and their codes, (count, w_dim)."""
        sizes = self.generator.config
        if count == 0:
            return torch.empty(0, 3, side, side, device=self.device), torch.empty(0, sizes.w_dim, device=self.device)
        sources = self.sources("synthetic", serial, count, device=self.device)
        w = self.generator.mapping(latents.seeded_normal(sources, sizes.z_dim))
        images = self.generator.synthesis(latents.broadcast(w, self.generator.num_ws), noise=self._noise(sources))
        if side != sizes.resolution:
            images = F.interpolate(images, size=side, mode="bilinear", antialias=True, align_corners=False)
        return images.clamp(-1, 1), w

    def sources(
        self, purpose: str, serial: int, count: int, *, device: torch.device | str = "cpu"
    ) -> list[torch.Generator]:
        """A random source for each example of a micro-batch, by its place among those of all processes."""
        first = (serial * self.world + self.rank) * count
        return [latents.seeded(self.seed, purpose, first + i, device=device) for i in range(count)]

    def _noise(self, sources: list[torch.Generator]) -> list[Tensor]:
        return latents.seeded_noise([conv.noise_const.shape for conv in self.generator.synthesis.convs], sources)
