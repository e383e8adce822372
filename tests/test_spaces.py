"""The Hugging Face Space: its header, and the folder that is pushed, which is started as the platform starts it."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

tomllib = pytest.importorskip("tomllib")
ROOT = Path(__file__).parents[1]
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
ZEROGPU_TORCH = {"==2.8.0", "==2.9.1", "==2.10.0", "==2.11.0"}
ZEROGPU_PYTHON = {"3.10", "3.12"}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("assemble_space", ROOT / "spaces" / "assemble.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    target = tmp_path_factory.mktemp("space") / "new"
    script.assemble(target, "me/space")
    yield target
    shutil.rmtree(target)


@pytest.fixture
def header(space: Path) -> dict[str, Any]:
    _, header, text = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert "30 minutes" in text and "faces64" in text and "non-commercial" in text
    return yaml.safe_load(header)


def test_the_header_is_complete(header: dict[str, Any], space: Path, project: dict[str, Any]) -> None:
    texts = {key: value for key, value in header.items() if key not in ("pinned", "tags")}
    assert all(isinstance(value, str) and value for value in texts.values())  # "3.10" unquoted would be 3.1
    assert header["sdk"] == "gradio" and header["pinned"] is False and header["license"] == "other"
    assert header["title"] and len(header["emoji"]) == 1 and not header["emoji"].isascii()
    assert {header["colorFrom"], header["colorTo"]} <= COLOURS
    assert len(header["short_description"]) <= 60
    assert header["thumbnail"] == "https://huggingface.co/spaces/me/space/resolve/main/thumbnail.jpg"
    assert {header["license_link"], "thumbnail.jpg"} <= {path.name for path in space.iterdir()}
    assert (space / header["app_file"]).is_file()
    (gradio,) = [Requirement(line) for line in project["optional-dependencies"]["app"] if line.startswith("gradio")]
    assert gradio.specifier.contains(header["sdk_version"])
    assert SpecifierSet(project["requires-python"]).contains(header["python_version"])
    assert header["python_version"] in ZEROGPU_PYTHON and header["suggested_hardware"] == "cpu-basic"
    assert "stylegan2" in header["tags"] and "models" not in header  # there is none on the Hub


def test_the_requirements_cover_the_project(space: Path, project: dict[str, Any]) -> None:
    lines = (space / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = {each.name: each for each in map(Requirement, (line for line in lines if not line.startswith("#")))}
    wanted = {each.name: each for each in map(Requirement, project["dependencies"])}
    extra = {each.name for each in map(Requirement, project["optional-dependencies"]["app"])}
    assert set(found) == {*wanted, *extra} - {"gradio"}  # which the header pins
    assert str(found["torch"].specifier) in ZEROGPU_TORCH
    (pinned,) = found["torch"].specifier
    assert wanted["torch"].specifier.contains(pinned.version)
    assert all(str(found[name]) == str(each) for name, each in wanted.items() if name != "torch")


def test_the_folder_holds_the_app_and_nothing_else(space: Path) -> None:
    names = {path.name for path in space.iterdir()}
    assert names == {
        "README.md",
        ".gitattributes",
        "requirements.txt",
        "app.py",
        "LICENSE",
        "thumbnail.jpg",
        "stylegan_inversion",
    }
    inside = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    package = ROOT / "stylegan_inversion"
    code = {f"stylegan_inversion/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assert code <= inside and "stylegan_inversion/builtin/faces64/generator/model.safetensors" in inside
    assert not [name for name in inside if "__pycache__" in name or name.endswith(".pyc") or "/test" in name]
    tracked = {line.split()[0] for line in (space / ".gitattributes").read_text().splitlines() if "filter=lfs" in line}
    large = [name for name in inside if (space / name).stat().st_size > 10_000_000]
    pictures = [name for name in inside if name.endswith((".jpg", ".png"))]
    assert large and pictures and {f"*{Path(name).suffix}" for name in [*large, *pictures]} <= tracked


def test_what_is_refused(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(space.rglob("*"))
    with pytest.raises(ValueError, match="is not an empty folder: delete it, or take another one"):
        script.assemble(space)
    assert sorted(space.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not an empty folder"):
        script.assemble(tmp_path / "file")
    inside = ROOT / "stylegan_inversion" / "space"
    with pytest.raises(ValueError, match="lies inside the package, which is copied: take another, such as build/space"):
        script.assemble(inside)
    assert not inside.exists()
    monkeypatch.setattr(sys, "argv", ["assemble.py", str(space)])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "is not an empty folder" in capsys.readouterr().err


def test_the_browser_page_needs_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"npm did not give onnxruntime-web@[\d.]+: .*npm"):
        script.assemble_browser(tmp_path / "page")
    assert not list((tmp_path / "page").iterdir())  # so the next try finds it empty


@pytest.fixture
def url(space: Path, tmp_path: Path) -> Iterator[str]:
    """`python app.py` in the folder, as the platform runs it; the package there wins over the installed one."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    foreign = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    environment = {key: value for key, value in os.environ.items() if key not in foreign}
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("wb") as file:
        app = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stdout=file, stderr=file)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            assert app.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                with urllib.request.urlopen(f"{url}/config", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        app.terminate()
        app.wait(30)
    assert "Traceback" not in log.read_text()


def test_the_folder_runs(url: str, space: Path, tmp_path: Path) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(url, verbose=False, download_files=tmp_path / "client")
    try:
        assert "faces64" in str(client.predict(api_name="/models"))
        with Image.open(client.predict(7, api_name="/random_face")) as image:
            assert image.size == (64, 64)
    finally:
        client.close()
    assert list(space.glob("stylegan_inversion/webapp/__pycache__/studio.*.pyc"))  # so it was this package that ran
