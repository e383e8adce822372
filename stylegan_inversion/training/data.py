"""A folder of pictures -> examples, each addressed by its place in the whole run.

The n-th example of a run is a function of the seed and n alone: order and augmentation need no saved random state, and
do not depend on the number of processes or workers.
"""

import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path, PurePath
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torch.utils.data._utils import signal_handling

from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.preprocessing.image import list_images, load_image
from stylegan_inversion.training.seeds import seeded
from stylegan_inversion.training.tasks import Task

_PATIENCE = 5.0  # seconds in which the workers may end by themselves


class FaceFolder(Dataset[dict[str, Any]]):
    """The pictures of a folder and its subfolders, as examples of a task. Links are followed, hidden files left out.

    In training a position is the serial number of an example in the whole run, from 0 on without end: position p is in
    epoch p // n, in an order of its own. In validation it is the index of the picture. Of pictures that are not square
    the central square is taken; then they are resized with antialiasing.
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
    ) -> None:
        """List the pictures; none is opened yet.

        Args:
            targets: Folder of what is to be drawn, and of the sources too unless the task is paired.
            task: Makes an example of a picture, or of two.
            input_resolution: Side of the encoder's input.
            output_resolution: Side of the target.
            seed: Of the order and the augmentation, >= 0.
            training: Shuffle and augment. False takes each picture as it is, in the order of the names.
            sources: Folder of the sources, for paired tasks: the same relative names, but for the suffix.

        Raises:
            ValueError: If a folder is missing or holds no picture, a target has no source, or more than one, `sources`
                is missing or not needed, or `seed` is negative.
        """
        if seed < 0:
            raise ValueError(f"`seed` must be >= 0, got {seed}.")
        if task.paired and sources is None:
            raise ValueError(f"{type(task).__name__} needs a folder of sources beside the targets: give `sources`.")
        if not task.paired and sources is not None:
            raise ValueError(f"{type(task).__name__} makes its sources from the targets: leave out `sources`.")
        self.task = task
        self.input_resolution = input_resolution
        self.output_resolution = output_resolution
        self.seed = seed
        self.training = training
        self.targets = Path(targets)
        self._names = list_images(self.targets)
        self.sources = None if sources is None else Path(sources)
        self._source_names = None if self.sources is None else self._match(list_images(self.sources))
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        """How many pictures: examples of an epoch."""
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """Paths of the targets, relative to the folder, in order of the index."""
        return list(self._names)

    @property
    def source_names(self) -> list[str]:
        """Paths of the sources of paired tasks, in the same order; none for the others."""
        return list(self._source_names or [])

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Make one example.

        Args:
            position: In training, the serial number in the whole run; in validation, the index of the picture.

        Returns:
            "x": the encoder's input, (C, S, S); "y": the target, (3, R, R), RGB, in [-1, 1]; "index": of the picture.

        Raises:
            IndexError: If `position` is negative or, in validation, not less than the number of pictures.
            InvalidImageError: If a picture cannot be used, for whatever reason; the message names the file.
        """
        if position < 0 or (position >= len(self) and not self.training):
            raise IndexError(f"`position` must be >= 0 and, in validation, < {len(self)}, got {position}.")
        index, rng = position, None
        if self.training:
            epoch, place = divmod(position, len(self))
            index, rng = self._order(epoch)[place], seeded(self.seed, "augmentation", position)
        path = self.targets / self._names[index]
        try:
            target = load_image(path)
            source: Image.Image = target
            if self.sources is not None and self._source_names is not None:
                path = self.sources / self._source_names[index]
                source = self.task.source.load(path)
            x, y = self.task.pair(
                source,
                target,
                input_resolution=self.input_resolution,
                output_resolution=self.output_resolution,
                rng=rng,
            )
        except Exception as e:  # in a process of its own, whatever is not a value here ends in a traceback
            said = str(e) if isinstance(e, InvalidImageError) else f"it cannot be used: {_say(e)}."
            raise InvalidImageError(f"{path}: {said} Replace the file, then resume.") from e
        return {"x": x, "y": y, "index": index}

    def _order(self, epoch: int) -> list[int]:
        """The pictures of an epoch, shuffled; the last two epochs are kept."""
        if epoch not in self._orders:
            order = torch.randperm(len(self), generator=seeded(self.seed, "order", epoch)).tolist()
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}
        return self._orders[epoch]

    def _match(self, sources: list[str]) -> list[str]:
        """The source of each target: the same relative path, but for the suffix."""
        by_stem: dict[PurePath, str] = {}
        for name in sources:
            if (stem := PurePath(name).with_suffix("")) in by_stem:
                raise ValueError(f"{self.sources} holds two sources of one name: {by_stem[stem]} and {name}.")
            by_stem[stem] = name
        stems = [PurePath(name).with_suffix("") for name in self._names]
        missing = [name for name, stem in zip(self._names, stems) if stem not in by_stem]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self)} targets have no source in {self.sources}: {', '.join(missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''}. A source has its target's path, but for the suffix."
            )
        return [by_stem[stem] for stem in stems]


class PositionSampler(Sampler[list[int]]):
    """Positions of each step, as batches for `DataLoader(batch_sampler=...)`.

    Together the processes see what a single one with `batch_size * world_size` sees, in the same order.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        end: int,
        limit: int | None = None,
    ) -> None:
        """Choose the positions of one process.

        Args:
            batch_size: Examples a step in each process.
            rank: Number of this process.
            world_size: How many processes there are.
            start: First step, from 0.
            end: Step after the last.
            limit: Positions from here on are left out, as are batches without any: the tail of a validation set.
                `None` leaves none out.

        Raises:
            ValueError: If a number is out of range.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` must be in [0, world_size - 1], got {rank} with world_size={world_size}.")
        if not 0 <= start <= end:
            raise ValueError(f"`start` must be in [0, end], got {start} with end={end}.")
        if limit is not None and limit < 0:
            raise ValueError(f"`limit` must be >= 0, got {limit}.")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start, self.end, self.limit = start, end, limit

    def __iter__(self) -> Iterator[list[int]]:
        """The positions of each step."""
        for step in range(self.start, self.end):
            first = (step * self.world_size + self.rank) * self.batch_size
            last = first + self.batch_size if self.limit is None else min(first + self.batch_size, self.limit)
            if first >= last:
                return
            yield list(range(first, last))

    def __len__(self) -> int:
        """How many batches."""
        if self.limit is None:
            return self.end - self.start
        # step * world_size + rank < ceil(limit / batch_size)
        steps = -(-(-(-self.limit // self.batch_size) - self.rank) // self.world_size)
        return max(0, min(self.end, steps) - self.start)


def load_batches(
    dataset: FaceFolder, sampler: PositionSampler, *, num_workers: int
) -> Generator[dict[str, Any], None, None]:
    """Load the batches of a sampler, in its order.

    The global random state is neither read nor changed, and the result does not depend on `num_workers`.

    Args:
        dataset: Makes the examples.
        sampler: Says which.
        num_workers: Processes that load ahead; 0 loads in this one. Each uses one thread.

    Returns:
        Batches: "x" (B, C, S, S), "y" (B, 3, R, R), "index" (B,). Closing it ends the processes.

    Raises:
        ValueError: If `num_workers` is negative.
        InvalidImageError: While loading, if a picture cannot be used; the message names the file.
    """
    if num_workers < 0:
        raise ValueError(f"`num_workers` must be >= 0, got {num_workers}.")
    loader = DataLoader(
        _Caught(dataset),
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_run,
        generator=torch.Generator().manual_seed(0),  # or the loader would draw from the global one
    )
    return _batches(loader)


class _Caught(Dataset[Any]):
    """Gives errors back as values: raised in a worker, they would come wrapped in its traceback."""

    def __init__(self, dataset: FaceFolder) -> None:
        self.dataset = dataset

    def __getitem__(self, position: int) -> dict[str, Any] | InvalidImageError:
        try:
            return self.dataset[position]
        except InvalidImageError as e:
            return InvalidImageError(str(e))


def _leave_signals_to_the_run(_: int) -> None:
    """Ctrl-C and SIGTERM often go to a group of processes: the run ends its step, saves, and then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _collate(examples: list[Any]) -> Any:
    errors = [example for example in examples if isinstance(example, InvalidImageError)]
    try:
        return errors[0] if errors else default_collate(examples)
    except Exception as e:  # as on a full /dev/shm
        return InvalidImageError(f"A batch could not be put together: {_say(e)}. Lower `num_workers` or `batch_size`.")


def _say(error: Exception) -> str:
    """An error in one line."""
    text = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
    return " ".join(text.split()).rstrip(":. ")


def _batches(loader: DataLoader[Any]) -> Generator[dict[str, Any], None, None]:
    others, iterator, workers = active_children(), None, []
    try:
        try:
            iterator = iter(loader)
        finally:
            workers = [process for process in active_children() if process not in others]
        for batch in iterator:
            if isinstance(batch, InvalidImageError):
                raise batch
            yield batch
    finally:
        if workers and iterator is not None:
            _shut_down(iterator, workers)  # a traceback may keep the iterator for long
        for worker in workers:
            worker.kill()  # it ignores PyTorch's and multiprocessing's SIGTERM, and the end of Python would wait for it
            worker.join()


def _shut_down(iterator: Any, workers: Sequence[BaseProcess]) -> None:
    """Let all workers end by themselves, within one time for all: PyTorch would wait for one after the other."""
    if iterator._worker_pids_set:  # or PyTorch would raise an error here for each that is killed
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False

    def kill() -> None:
        for worker in workers:
            worker.kill()

    killer = threading.Timer(_PATIENCE, kill)
    killer.start()
    try:
        iterator._shutdown_workers()
    finally:
        killer.cancel()
        killer.join()
