"""Builds what is published: `python spaces/assemble.py TARGET`, a Hugging Face Space, or, with `--browser`, a web page.

It holds the app with everything it needs: the package is not on PyPI, so the Space carries it. To publish it, log in
once with a token that may write (`hf auth login`), then

    hf repos create NAME/stylegan-inversion --type space --space-sdk gradio
    hf upload NAME/stylegan-inversion TARGET . --repo-type space

or, from Python, `HfApi().upload_folder(repo_id=..., folder_path=TARGET, repo_type="space")`, or with `git push` from a
clone of the Space that has Git LFS. The hardware is chosen on the Space's settings page: the free CPU or ZeroGPU.

With `--browser` it is the page of `spaces/browser` with a model as ONNX files and the runtime beside it, which loads
nothing from elsewhere. Any server of static files will do, over https; on this machine, `python -m http.server`.
"""

import argparse
import ast
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "stylegan_inversion"
COPIES = ("spaces/README.md", "spaces/.gitattributes", "app.py", "LICENSE")
# ZeroGPU has 2.8.0, 2.9.1, 2.10.0 and 2.11.0 and refuses others; elsewhere any from pyproject.toml's floor on will do.
TORCH = "torch==2.11.0"
ONNX_RUNTIME = "onnxruntime-web@1.30.0"  # an npm package; MIT; the page takes two files of it
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
EXAMPLE = "builtin/samples/portraits/portrait1.jpg"
NOTE = """\
# Written by spaces/assemble.py from pyproject.toml. Not here: gradio, which README.md pins as `sdk_version`, and
# spaces, which the platform installs. PyTorch is the newest that ZeroGPU has.
"""


def requirements() -> str:
    """The Space's requirements.txt: what pyproject.toml asks for, with one version of PyTorch and without Gradio."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = [*_read_list(project, "dependencies"), *_read_list(project, "app")]
    kept = [TORCH if _name(line) == "torch" else line for line in wanted if _name(line) != "gradio"]
    return NOTE + "".join(f"{line}\n" for line in kept)


def assemble(target: Path, name: str | None = None) -> None:
    """Build the folder.

    Args:
        target: Where; made if needed.
        name: "NAME/SPACE", for the address of the picture that links to the Space show; `None` leaves that out.

    Raises:
        ValueError: If it is not empty, or lies inside the package.
    """
    target = _made(target)
    for file in COPIES:
        shutil.copyfile(ROOT / file, target / Path(file).name)
    shutil.copyfile(ROOT / "docs/page.jpg", target / "thumbnail.jpg")
    if name is not None:
        card = target / "README.md"
        address = f"thumbnail: https://huggingface.co/spaces/{name}/resolve/main/thumbnail.jpg\n"
        card.write_text(card.read_text("utf-8").replace("---\n", f"---\n{address}", 1), encoding="utf-8")
    shutil.copytree(ROOT / PACKAGE, target / PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]", ".*"))
    (target / "requirements.txt").write_text(requirements(), encoding="utf-8")


def assemble_browser(target: Path, *, model: str = "faces64") -> None:
    """Build the page that runs in the browser; it takes the package, its extra `export`, and npm.

    Args:
        target: Where; made if needed.
        model: What `stylegan-inversion export` takes.

    Raises:
        ValueError: If the folder is not empty or lies inside the package, or npm does not give the runtime.
    """
    from stylegan_inversion import E4EPipeline

    target = _made(target)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(["npm", "pack", ONNX_RUNTIME], cwd=scratch, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as e:
            raise ValueError(f"npm did not give {ONNX_RUNTIME}: {getattr(e, 'stderr', b'') or e}") from e
        (archive,) = Path(scratch).glob("*.tgz")
        (target / "runtime").mkdir()
        with tarfile.open(archive) as packed:
            for name in RUNTIME_FILES:
                file = packed.extractfile(f"package/dist/{name}")
                assert file is not None  # it is no folder
                (target / "runtime" / name).write_bytes(file.read())
    shutil.copytree(ROOT / "spaces" / "browser", target, dirs_exist_ok=True)
    shutil.copyfile(ROOT / PACKAGE / EXAMPLE, target / "example.jpg")
    E4EPipeline.from_pretrained(model).export_onnx(target / "model")
    files = sorted(path for path in target.rglob("*") if path.is_file())
    loaded = [
        path
        for path in files
        if path.parent.name in ("model", "runtime") and path.suffix in (".json", ".onnx", ".wasm")
    ]
    (target / "files.json").write_text(json.dumps({"bytes": sum(path.stat().st_size for path in loaded)}), "utf-8")
    version = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    worker = target / "sw.js"  # a browser looks for changes in this file alone
    worker.write_text(worker.read_text("utf-8").replace("development", version), "utf-8")


def _made(target: Path) -> Path:
    """Make the folder, which must be empty and outside the package."""
    target = target.resolve()
    if target.is_relative_to(ROOT / PACKAGE):
        raise ValueError(f"{target} lies inside the package, which is copied: take another, such as build/space.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder: delete it, or take another one.")
    target.mkdir(parents=True, exist_ok=True)
    return target


def _read_list(project: str, key: str) -> list[str]:
    """A list of strings from pyproject.toml; Python reads the standard format itself only from 3.11 on."""
    found = re.search(rf"^{key} = (\[.*?\])$", project, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"pyproject.toml has no list `{key}`.")
    return ast.literal_eval(found[1])


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Build the folder of a Hugging Face Space, or of a page for the browser."
    )
    parser.add_argument("target", type=Path, help="an empty or new folder, such as build/space")
    parser.add_argument("--name", metavar="NAME/SPACE", help="for the picture that links to the Space show")
    parser.add_argument(
        "--browser", nargs="?", const="faces64", metavar="MODEL", help="the page, with this model [faces64]"
    )
    options = parser.parse_args()
    target = options.target
    try:
        assemble_browser(target, model=options.browser) if options.browser else assemble(target, options.name)
    except ValueError as e:
        parser.error(str(e))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    what = "a static page" if options.browser else "a Space"
    print(f"{target} is {what} of {size / 1e6:.0f} MB. To push it: hf upload NAME/SPACE {target} . --repo-type space")


if __name__ == "__main__":
    main()
