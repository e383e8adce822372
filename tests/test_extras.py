"""Without an extra, each command ends with one sentence that says how to get it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXTRAS = {
    "app": ("gradio", "gradio_client", "starlette", "fastapi", "uvicorn", "python_multipart", "httpx"),
    "train": ("accelerate", "tyro", "yaml", "sklearn", "tensorboard", "wandb"),
    "evaluate": ("matplotlib",),
    "fid": ("torch_fidelity",),
    "faces": ("facexlib", "lpips", "torchvision"),
    "folders": ("pyarrow",),
    "distributed": ("ray",),
    "clip": ("open_clip",),
    "export": ("onnx", "onnxscript"),
}
RUN = """
import sys, warnings
warnings.simplefilter("ignore")
missing = set(sys.argv[1].split(","))
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in missing else find(name, package)
from stylegan_inversion.cli import main
sys.exit(main(sys.argv[2:]))
"""


def run(missing: str, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-c", RUN, missing, *command]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(given, capture_output=True, text=True, cwd=folder, env=environment, timeout=250)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    from tests.conftest import make_photo

    (tmp_path / "data").mkdir()
    for i in range(8):
        make_photo().resize((64, 64)).save(tmp_path / "data" / f"{i}.png")
    return tmp_path / "data"


EVALUATE = ["evaluate", "data", "--methods", "e4e"]
ASKED = [("train", "accelerate", ["train", "--data", "data"])]
MORE = [
    ("app", "gradio", ["app"]),
    ("evaluate", "matplotlib", EVALUATE),
    ("folders", "pyarrow", ["invert", "data", "--method", "e4e", "--no-align"]),
    ("app", "starlette", ["app"]),
    ("clip", "open_clip", ["find-directions", "faces64", "--output", "new", "--text", "face", "smiling face"]),
    ("export", "onnx", ["export", "faces64", "--output", "out"]),
    ("app", "python_multipart", ["app"]),
    ("train", "tyro", ["train", "--data", "data"]),
    ("train", "yaml", ["train", "--data", "data"]),
    ("fid", "torch_fidelity", ["evaluate-generator", "--data", "data", "--fid", "--num-samples", "8"]),
    ("faces", "lpips", [*EVALUATE, "--perceptual", "vgg"]),
    ("faces", "facexlib", [*EVALUATE, "--align", "--detector", "facexlib"]),
    ("faces", "facexlib", ["invert", "data/0.png", "--method", "e4e", "--detector", "facexlib"]),
]


@pytest.mark.parametrize(
    ("extra", "missing", "command"), [*ASKED, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)]
)
def test_a_command_without_its_extra(extra: str, missing: str, command: list[str], data: Path) -> None:
    done = run(missing, *command, folder=data.parent)
    assert done.returncode == 2 and not done.stdout, done
    *before, line = done.stderr.splitlines()
    assert line.startswith("stylegan-inversion: ") and "Traceback" not in done.stderr
    assert not before or "--align" in command  # a bar
    assert f"pip install '.[{extra}]' in a checkout, or pip install 'stylegan-inversion[{extra}]'" in line


def test_commands_that_need_no_extra(data: Path) -> None:
    everything = ",".join(name for names in EXTRAS.values() for name in names)
    done = run(everything, "models", folder=data.parent)
    assert done.returncode == 0 and done.stdout and not done.stderr, done
    done = run(everything, "invert", "data/0.png", "--method", "e4e", "--no-align", folder=data.parent)
    assert done.returncode == 0 and "1 of 1 photos done" in done.stdout, done
