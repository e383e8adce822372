"""Builds the folder that is pushed as a Hugging Face Space: `python spaces/assemble.py TARGET`.

It holds the app with everything it needs: the package is not on PyPI, so the Space carries it. To publish it, log in
once with a token that may write (`hf auth login`), then

    hf repos create NAME/stylegan-inversion --type space --space-sdk gradio
    hf upload NAME/stylegan-inversion TARGET . --repo-type space

or, from Python, `HfApi().upload_folder(repo_id=..., folder_path=TARGET, repo_type="space")`, or with `git push` from a
clone of the Space that has Git LFS. The hardware is chosen on the Space's settings page: the free CPU or ZeroGPU.
"""

import argparse
import ast
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "stylegan_inversion"
COPIES = ("spaces/README.md", "spaces/.gitattributes", "app.py", "LICENSE")
# ZeroGPU has 2.8.0, 2.9.1, 2.10.0 and 2.11.0 and refuses others; elsewhere any from pyproject.toml's floor on will do.
TORCH = "torch==2.11.0"
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
    target = target.resolve()
    if target.is_relative_to(ROOT / PACKAGE):
        raise ValueError(f"{target} lies inside the package, which is copied: take another, such as build/space.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is not an empty folder: delete it, or take another one.")
    target.mkdir(parents=True, exist_ok=True)
    for file in COPIES:
        shutil.copyfile(ROOT / file, target / Path(file).name)
    shutil.copyfile(ROOT / "docs/page.jpg", target / "thumbnail.jpg")
    if name is not None:
        card = target / "README.md"
        address = f"thumbnail: https://huggingface.co/spaces/{name}/resolve/main/thumbnail.jpg\n"
        card.write_text(card.read_text("utf-8").replace("---\n", f"---\n{address}", 1), encoding="utf-8")
    shutil.copytree(ROOT / PACKAGE, target / PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]", ".*"))
    (target / "requirements.txt").write_text(requirements(), encoding="utf-8")


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
    parser = argparse.ArgumentParser(description="Build the folder that is pushed as a Hugging Face Space.")
    parser.add_argument("target", type=Path, help="an empty or new folder, such as build/space")
    parser.add_argument("--name", metavar="NAME/SPACE", help="for the picture that links to the Space show")
    given = parser.parse_args()
    target = given.target
    try:
        assemble(target, given.name)
    except ValueError as e:
        parser.error(str(e))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target} is a Space of {size / 1e6:.0f} MB. To push it: hf upload NAME/SPACE {target} . --repo-type space")


if __name__ == "__main__":
    main()
