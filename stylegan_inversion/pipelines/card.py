"""The model card: what the Hub and a reader see of a model, with a picture of what it draws."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from stylegan_inversion import storage
from stylegan_inversion.editing.directions import Direction, load_directions
from stylegan_inversion.hub import card_header
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.preprocessing.domain import Domain
from stylegan_inversion.preprocessing.image import save_image
from stylegan_inversion.preprocessing.sources import PhotoSource, to_config

if TYPE_CHECKING:
    from stylegan_inversion.pipelines.base import InversionPipeline

STYLEGAN2 = "1912.04958"  # at arXiv
CARD_NAME, GALLERY = "README.md", "gallery.jpg"
FACES, EDITS, SIDE = 4, 3, 256  # of the gallery: in a row, rows of edits at most, pixels of one at most


def directions_in(folder: Path) -> dict[str, Direction]:
    """The directions of a model's folder, by name."""
    return dict(load_directions(folder / "directions")) if (folder / "directions").is_dir() else {}


def draw_gallery(pipeline: "InversionPipeline", path: Path) -> None:
    """Draw a row of pictures at random, and below it the same with each of the first directions at its end."""
    from stylegan_inversion.pipelines.play import sample_face  # they import this file
    from stylegan_inversion.pipelines.receipts import mark

    faces = [sample_face(pipeline, seed=seed) for seed in range(FACES)]
    rows = [faces, *([pipeline.edit(face, **edit) for face in faces] for edit in _shown(pipeline.directions))]
    width, height = pipeline.domain.size(min(SIDE, pipeline.generator.config.resolution))
    sheet = Image.new("RGB", (width * FACES, height * len(rows)))
    for y, row in enumerate(rows):
        for x, out in enumerate(row):
            sheet.paste(out.images[0].resize((width, height), Image.Resampling.LANCZOS), (x * width, y * height))
    save_image(sheet, path, quality=92, xmp=mark("generated"))


def _shown(directions: Mapping[str, Direction]) -> list[dict[str, float]]:
    ends = [{each.name: each.strength_range[1]} for each in directions.values() if each.strength_range]
    return ends[:EDITS]


def write_card(
    folder: Path,
    *,
    name: str | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the model card, `README.md`, from what the folder of a model holds. One that is there stays.

    Args:
        folder: What `save_pretrained` wrote.
        name: What users type to load the model, such as "organisation/repository". `None` takes the folder itself.
        metrics: Measured figures, by name.
        license: Identifier of the Hub's for the weights. `None` says that it is not stated.
        card: More of the header that the Hub reads, such as `base_model`, `datasets` and `license_link`.
        overwrite: Also replace a card that is there.
    """
    from stylegan_inversion.pipelines.methods import METHODS  # it imports this file

    path, config = folder / CARD_NAME, storage.read_config(folder)
    if path.is_file() and not overwrite:
        return path
    name, metrics = name or str(folder), metrics or {}
    title = Path(name).name or folder.resolve().name
    directions, sizes = directions_in(folder), storage.read_config(folder / "generator")
    folders = {m: folder / (ENCODERS[m.encoder].folder if m.encoder else "generator") for m in METHODS.values()}
    methods = [method for method, part in folders.items() if (part / storage.CONFIG_NAME).is_file()]
    classes = [method.pipeline.__name__ for method in methods]
    main = config["_class_name"] if config.get("_class_name") in classes else classes[0]
    papers = [f"{m.label} ([arXiv:{m.paper}](https://arxiv.org/abs/{m.paper}))" for m in methods]
    parts = [(folders[m], f"{m.label}'s encoder" if m.encoder else "StyleGAN2 generator") for m in methods]
    terms = (
        f"Weights: {license}."
        if license
        else "The licence of these weights is not stated. Weights have the terms of what they descend from: NVIDIA's "
        "StyleGAN2 generators are for non-commercial use, and so are many data sets of faces."
    )
    above = "".join(f", {key} {value:+.3g}" for edit in _shown(directions) for key, value in edit.items())
    gallery = f"\n![Drawn at random; below, row by row{above}]({GALLERY})\n" if (folder / GALLERY).is_file() else ""
    body = f"""# {title}
{gallery}
A StyleGAN2 generator at {sizes.get("resolution")} x {sizes.get("resolution")} pixels. The Python package \
`stylegan_inversion` brings a photo into its latent space, edits it there and puts it back: {", ".join(papers)}.

## Use

```python
from stylegan_inversion import {main}

pipe = {main}.{load_call(name)}
{_example(directions, config)}
```

{Domain.of_config(config, path).describe()}
{_section("Parts", ("folder", "what", "files"), (_part(*part) for part in parts))}\
{_section("Directions", ("name", "strength", "what"), map(_direction, directions.values()))}\
{_section("Measured", ("figure", "value"), ((key, f"{value:.4g}") for key, value in metrics.items()))}
## Limits

- It draws what its generator was trained to draw; a photo of anything else comes out as the nearest to that.
- An inversion is a likeness. An edit moves what goes together in the training data, perhaps more than asked.
- Edit only photos of people who agree, and say that a picture was edited.

## Licence

{terms} The code of `stylegan_inversion` is MIT.

## Citation

```bibtex
{_citations(STYLEGAN2, *(method.paper for method in methods))}
```
"""
    of = {"task_type": "image-to-image", "task_name": "GAN inversion"}
    of |= {"dataset_type": "custom", "dataset_name": "the author's"}
    fields: dict[str, Any] = {
        "pipeline_tag": "image-to-image",
        "tags": ["gan-inversion", "stylegan2", "image-editing", *(method.name for method in methods)],
        "license": license or "other",
        "license_name": None if license else "not-stated",
        "license_link": "LICENSE" if (folder / "LICENSE").is_file() else None,
        "metrics": list(metrics) or None,
        "model_name": title if metrics else None,
        "eval_results": [
            {**of, "metric_type": key, "metric_name": key, "metric_value": float(value)}
            for key, value in metrics.items()
        ],
    }
    storage.write_text(f"{card_header(**fields | dict(card or {}))}\n{body}", path)
    return path


def _citations(*papers: str) -> str:
    """The entries for BibTeX of papers by their numbers at arXiv."""
    entries = storage.builtin_path("papers.bib").read_text("utf-8").split("\n@")
    return "\n".join(f"@{each.strip().lstrip('@')}" for each in entries if any(f"{{{no}}}" in each for no in papers))


def load_call(name: str) -> str:
    """Write the call that loads a model."""
    return f"from_pretrained({json.dumps(name)})"


def _example(directions: Mapping[str, Direction], config: Mapping[str, Any]) -> str:
    if config.get("source") not in (None, to_config(PhotoSource())):
        return 'out = pipe.translate("picture.png")\nout.images[0].save("face.png")'
    if not directions:
        return 'out = pipe("photo.jpg")\nout.images[0].save("inverted.png")'
    name, direction = next(iter(directions.items()))
    strength = direction.strength_range[1] / 2 if direction.strength_range else 1.0
    edit = f'edited = pipe.edit(pipe("photo.jpg"), {name}={strength:.3g})'
    return f'{edit}\npipe.paste_back(edited)[0].save("edited.png")'


def _section(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A section with a table; nothing without rows."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(["", f"## {title}", "", *lines, ""]) if len(lines) > 2 else ""


def _part(folder: Path, what: str) -> tuple[str, ...]:
    files = sorted(folder.glob("*.safetensors"))
    sizes = ", ".join(f"`{file.name}` {file.stat().st_size / 1e6:.1f} MB" for file in files)
    return f"`{folder.name}/`", what, sizes


def _direction(direction: Direction) -> tuple[str, ...]:
    limits = direction.strength_range
    span = f"{limits[0]:+.3g} to {limits[1]:+.3g}" if limits else "not measured"
    return f"`{direction.name}`", span, " ".join(direction.description.replace("|", "/").split())
