"""Where the two steps of a folder run: faces are found in processes here, or everything on a Ray cluster."""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from typing import Any

import torch

from stylegan_inversion.errors import importing
from stylegan_inversion.pipelines.rows import Align, Invert, Row

Photo = tuple[str, tuple[str | None, ...]]
"""A path below the folder, and the hash under which it is done."""
Photos = Iterator[Photo]


def run_here(align: Align, invert: Invert, photos: Photos, workers: int) -> Generator[list[Row]]:
    """Find the faces in `workers` processes (0: in this one) while this one inverts them: finished rows, in order."""
    for rows in _batches(_align_here(align, photos, workers), invert.batch_size):
        yield invert(rows)


def _batches(aligned: Iterator[list[Row]], size: int) -> Iterator[list[Row]]:
    """Group whole photos by `size` faces, or a few less or, of one photo, more; those without a face do not wait."""
    batch, faces = list[Row](), 0
    for rows in aligned:
        new = sum("crop" in row for row in rows)
        if faces and faces + new > size:
            yield batch
            batch, faces = [], 0
        batch, faces = batch + rows, faces + new
        if faces == 0 or faces >= size or len(batch) >= 64 * size:
            yield batch
            batch, faces = [], 0
    yield batch


_worker_align: Align  # of a process that `_start_worker` began


def _start_worker(align: Align) -> None:
    """Prepare a process: Ctrl-C is its parent's, and it ends when its parent does, even if that is killed."""
    global _worker_align
    _worker_align = align
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    logging.getLogger("stylegan_inversion").setLevel(logging.ERROR)  # the parent has said which detector it is
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _align_there(path: str, known: tuple[str | None, ...]) -> list[Row]:
    return _worker_align(path, known)


def _align_here(align: Align, photos: Photos, workers: int) -> Iterator[list[Row]]:
    """Align photos in processes, in order, a few ahead of the network."""
    if workers == 0:
        yield from (align(*photo) for photo in photos)
        return
    waiting, results = deque[Photo](), deque[Future[list[Row]]]()
    executor = _processes(align, workers)
    try:
        try:
            executor.submit(os.getpid).result()
        except (BrokenProcessPool, AttributeError, TypeError, pickle.PicklingError) as e:
            raise ValueError(
                'The processes that find faces could not start. A script needs `if __name__ == "__main__":` around its '
                "call, and a detector of your own must be a module's function; or pass `workers=0`."
            ) from e
        while True:
            waiting.extend(islice(photos, 4 * workers - len(waiting)))
            if not waiting:
                return
            try:
                results.extend(executor.submit(_align_there, *photo) for photo in islice(waiting, len(results), None))
                rows = results[0].result()
            except BrokenProcessPool:  # one of those under way ended its process: each goes again, alone
                while waiting:
                    executor.shutdown()
                    executor = _processes(align, 1)
                    with suppress(BrokenProcessPool):
                        while waiting:
                            yield executor.submit(_align_there, *waiting[0]).result()
                            waiting.popleft()
                    if waiting:
                        yield align.killed(*waiting.popleft())
                results.clear()
                executor.shutdown()
                executor = _processes(align, workers)
            else:
                waiting.popleft()
                results.popleft()
                yield rows
    finally:
        executor.shutdown(cancel_futures=True)


def _processes(align: Align, workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(align,))


# --- on a Ray cluster


class _AlignActor:
    """`Align` for Ray: photos -> the rows of each, pickled, since Ray would make tensors of lists."""

    def __init__(self, align: Align) -> None:
        torch.set_num_threads(1)
        self.align = align

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"rows": [pickle.dumps(self.align(*pickle.loads(photo))) for photo in batch["item"]]}


class _InvertActor:
    """`Invert` for Ray: the rows of some photos -> one list of rows with their codes."""

    def __init__(self, invert: Any, device: str) -> None:
        import ray

        self.invert: Invert = ray.get(invert)
        self.invert.pipeline.to(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [row for packed in batch["rows"] for row in pickle.loads(packed)]
        return {"rows": [pickle.dumps(self.invert(rows))]}


def run_on_ray(align: Align, invert: Invert, photos: Photos, address: str) -> Generator[list[Row]]:
    """Find faces on the CPUs of a cluster and invert them on its GPUs, or CPUs if it has none: finished rows.

    The driver writes the table, so that a run goes on as without Ray; actors that die are replaced by Ray.
    """
    with importing("ray", "distributed", otherwise="Without Ray the folder is inverted on this machine."):
        import ray
        from ray.data import ActorPoolStrategy

    if not ray.is_initialized():
        ray.init(None if address == "local" else address, log_to_driver=False)
    items = [pickle.dumps(photo) for photo in photos]
    cpus, gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
    share: Any = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one already
    blocks = max(4 * cpus, len(items) // 64)
    aligned = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        _AlignActor,
        fn_constructor_args=(align,),
        batch_size=8,
        num_cpus=1,
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, cpus - 2)),
    )
    finished = aligned.map_batches(
        _InvertActor,
        fn_constructor_args=(ray.put(invert), "cuda" if gpus else "cpu"),
        batch_size=4 * invert.batch_size if invert.batch_size > 1 else 1,
        compute=ActorPoolStrategy(size=max(1, gpus)),
        **share,
    )
    for row in finished.iter_rows():
        yield pickle.loads(row["rows"])
