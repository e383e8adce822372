import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_inversion import cli
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.preprocessing.image import load_image
from stylegan_inversion.storage import builtin_path
from tests.checkpoints.test_styleclip import mapper_file
from tests.pipelines.test_domains import official_e4e
from tests.pipelines.test_tasks_of_psp import TASKS, make_picture, official_psp

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "recipes/README.md",
    ROOT / "spaces/README.md",
]
README = PAGES[0].read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(sample_photos()[0], "photo.jpg"))


def test_the_readme_runs(photo: Path) -> None:
    """The first block as it stands, but for the number of steps. tests/test_full_size.py runs the second."""
    first = blocks("README.md")[0]
    assert "progress=True" in first
    exec(first.replace("progress=True", "num_w_steps=3, num_tuning_steps=2"), {})
    assert load_image("edited.png").size == load_image(photo).size


def test_the_pages_run(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods as it stands; a direction of one's own with the w and the scores of a few samples."""
    names: dict[str, Any] = {}
    exec(blocks("docs/methods.md")[0], names)
    assert Path("folder/config.json").exists()
    pytest.importorskip("sklearn")
    w = torch.randn(4000, 512, generator=torch.Generator().manual_seed(0))
    own, exact = blocks("docs/edits.md")
    exec(own, names | {"w": w, "scores": w[:, 0]})
    exec(exact.replace("\nredraw(", "\nassert redraw("), names)
    assert abs(float(names["pipe"].directions["glasses"].vector.flatten()[0])) > 0.3
    found, mapper = blocks("docs/find-directions.md")
    assert "num_samples=256, num_points=64, num_tests=16" in found
    exec(
        found.replace("num_samples=256, num_points=64, num_tests=16", "num_samples=64, num_points=16, num_tests=8"),
        names,
    )
    mapper_file(Path("afro.pt"), "course", "medium", w_dim=512)
    exec(mapper, names)
    assert names["edited"].edits == {"afro": 0.1}
    assert {"smile", "brightness", "warmth"} <= {*load_directions(Path("my-own/directions"))}


def test_the_notebook_runs(photo: Path) -> None:
    """The cells as they stand, but for the installation."""
    notebook = json.loads((ROOT / "docs/first_photo.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells[0] == "%pip install -q stylegan-inversion"
    names: dict[str, Any] = {}
    for cell in cells[1:]:
        exec(cell, names)
    assert load_image("turned.png").size == load_image(names["photo"]).size
    assert names["tuned"].reports[0]["l2"] < names["out"].reports[0]["l2"]


TINY_RUN = "--steps 1 --batch-size 2 --num-workers 0 --cpu --trackers"
TINY_SIZES = {
    "gan": f"{TINY_RUN} --generator.resolution 32 --generator.w-dim 16 --generator.channel-max 8 --generator.z-dim 8",
    "e4e": f"{TINY_RUN} --encoder.widths 4 4 8 8 --encoder.units 1 1 1 1 --encoder.reduction 2",
}


def test_the_page_of_other_domains_runs(photo: Path) -> None:
    """As it stands, with tiny models in folders of the names that it uses, and one step of each training."""
    models = {"e4e-cars-512": official_e4e("cars_encode", styles=12)}
    tasks = {
        "psp-celebs-sketch-to-face": "celebs_sketch_to_face",
        "models/psp-celebs-seg-to-face": "celebs_seg_to_face",
    }
    tasks |= {"psp-celebs-super-resolution": "celebs_super_resolution", "psp-ffhq-frontalization": "ffhq_frontalize"}
    models |= {name: official_psp(task, TASKS[task][0]) for name, task in tasks.items()}
    models["models/psp-ffhq-toonify"] = official_psp("toonify", 3)
    for name, checkpoint in models.items():
        torch.save(checkpoint, "official.pt")
        assert cli.main(["convert", "official.pt", name]) == 0
    Path("pictures").mkdir()
    for copy in ("car.jpg", "small.jpg", "pictures/1.jpg", "pictures/2.jpg"):
        shutil.copy(photo, copy)
    for name, channels in {"drawing.png": 1, "labels.png": 19}.items():
        make_picture(channels).save(name)

    def run(page: str) -> None:
        for line in page.strip().splitlines():
            words = shlex.split(line)
            words += shlex.split(TINY_SIZES[words[words.index("--method") + 1]]) if words[1] == "train" else []
            assert cli.main(words[1:]) == 0, line

    text = (ROOT / "docs/domains.md").read_text(encoding="utf-8")
    found = re.findall(r"```(python|bash)\n(.*?)```", text, flags=re.DOTALL)
    assert [kind for kind, _ in found] == ["python", "bash", "bash", "python", "bash", "python"]
    for kind, block in found:
        run(block) if kind == "bash" else exec(block, {})
    whole = load_image(photo)
    for name in ("edited.png", "outputs/car/photo.png", "own.png"):
        assert load_image(name).size == whole.size and load_image(name).tobytes() != whole.tobytes()
    assert load_image("inverted/photo/inverted.png").size == (32, 32) and load_image("face.png").size == (64, 64)
    assert {path.name for path in Path("from-labels/labels").glob("*.png")} >= {"input.png", "output_4.png"}


def test_the_api_answers(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block as it stands, but for the port."""
    pytest.importorskip("gradio")
    from stylegan_inversion.webapp.models import load_model
    from tests.webapp.tiny_app import serve

    (block,) = blocks("docs/app.md")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    names: dict[str, Any] = {}
    assert "http://127.0.0.1:7860" in block
    with serve(load_model("faces64")) as app:
        try:
            exec(block.replace("http://127.0.0.1:7860", app.url), names)
            assert load_image(names["photo"]).size == load_image(photo).size
            assert load_image(names["drawn"]).size == (64, 64) and names["report"]["face_count"] >= 1
        finally:
            if "client" in names:
                names["client"].close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?://|mailto:", link)]
    named = re.findall(r"`((?:stylegan_inversion|recipes|tests)/[\w/.]+)`", text)
    for link in links:
        path, _, section = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        headings = [
            re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-")
            for head in re.findall(r"(?m)^#+ (.*)$", target.read_text("utf-8") if section else "")
        ]
        assert not section or section in headings, link
    assert all((ROOT / name).exists() for name in named)


def test_the_model_card_says_the_same() -> None:
    card = (builtin_path("faces64") / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert block is not None
    compile(block.group(1), "README.md", "exec")
    directions = load_directions(builtin_path("faces64") / "directions")
    shares = {name: share for share, name in re.findall(r"(\d+) % \((\w+)\)", card)}
    assert shares.keys() == directions.keys()
    for name, share in shares.items():
        found = re.search(r"([\d.]+)% of [35]00", directions[name].description)
        assert found is not None and abs(float(found.group(1)) - float(share)) < 1
    for folder, text in re.findall(r"\| `(\w+)/`.*\| ([\d.]+) MB", card):
        size = sum(path.stat().st_size for path in (builtin_path("faces64") / folder).rglob("*.safetensors"))
        assert size / 1e6 == pytest.approx(float(text), abs=0.1)


@pytest.mark.parametrize("target", re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE))
def test_the_targets_that_the_readme_names_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
