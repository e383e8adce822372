"""Whatever goes wrong where pictures are loaded, the run ends by itself and says why. The runs are the command's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stylegan_inversion.errors import InvalidImageError
from stylegan_inversion.training import data
from stylegan_inversion.training.config import EncoderRunConfig, config_dict
from stylegan_inversion.training.data import FaceFolder, load_batches, positions
from stylegan_inversion.training.tasks import Inversion
from tests.training.children import wait_for
from tests.training.conftest import MakeConfig

PATIENCE = 120  # a run that hangs is no success


class Run:
    """`stylegan-inversion train`, in a session of its own."""

    def __init__(self, config: EncoderRunConfig, tmp_path: Path, *launcher: str) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(config_dict(config)))
        command = [sys.executable, *launcher, "-m", "stylegan_inversion", "train", "--config", str(path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self.process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> tuple[int, str]:
        """The exit code and what was said, once the run has ended and nothing of it is left."""
        try:
            _, said = self.process.communicate(timeout=PATIENCE)
            with pytest.raises(ProcessLookupError):
                os.killpg(self.process.pid, 0)
        finally:
            if self.is_alive():
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, said


def break_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "absent.png")


def test_a_file_that_cannot_be_read_ends_the_run(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    break_link(pictures / "03.png")
    code, said = Run(make_config(num_workers=2, steps=50), tmp_path).end()
    (line,) = [line for line in said.splitlines() if "03.png" in line]
    assert code == 2 and "Traceback" not in said and line == said.splitlines()[-1]
    assert line.startswith(f"stylegan-inversion: {pictures / '03.png'}: ")
    assert line.endswith("Replace the file, then resume.")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are looked up in /proc")
def test_a_killed_worker(make_config: MakeConfig, tmp_path: Path) -> None:
    """As the kernel does when the memory is full."""
    config = make_config(num_workers=2, steps=100_000)
    run = Run(config, tmp_path)
    wait_for(run, Path(config.output, "log.jsonl"), 5)
    time.sleep(0.1)  # both have filled their queues
    workers = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
    assert len(workers) == 2, "each loads pictures"
    os.kill(int(workers[0]), signal.SIGKILL)
    code, said = run.end()
    assert code == 2 and "Traceback" not in said
    assert "A process that loads pictures was killed (" in said.splitlines()[-1]
    assert "Lower `num_workers` or `batch_size` and start the same command again" in said.splitlines()[-1]


@pytest.mark.slow
def test_with_several_processes(make_config: MakeConfig, pictures: Path, tmp_path: Path) -> None:
    """The other process does not wait for ever."""
    break_link(pictures / "03.png")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    code, said = Run(make_config(num_workers=1, steps=50, batch_size=1), tmp_path, *launcher).end()
    assert code != 0 and f"stylegan-inversion: {pictures / '03.png'}: it cannot be used: No such file" in said


class Broken(Inversion):
    """A task with an error in it."""

    def pair(self, *args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("of\nthe task")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_is_one_line(pictures: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(examples: list[Any]) -> None:
        raise RuntimeError("unable to allocate shared memory")

    def first(task: Inversion) -> Any:
        folder = FaceFolder(pictures, task, input_resolution=8, output_resolution=8, seed=0, training=False)
        return next(load_batches(folder, positions(2, end=2), num_workers=num_workers))

    with pytest.raises(
        InvalidImageError, match=r"00\.png: it cannot be used: ZeroDivisionError: of the task\. Replace"
    ):
        first(Broken("broken", {}))
    monkeypatch.setattr(data, "default_collate", full)
    with pytest.raises(
        InvalidImageError, match=r"A batch failed: RuntimeError: unable .* memory\. Lower `num_workers`"
    ):
        first(Inversion("inversion", {}))
