"""The model card: README.md of a pipeline's folder, from what the folder holds.

Its header is what the Hub reads (tags, library, pipeline, licence, metrics); the rest is for people.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stylegan_inversion import hub
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.errors import CheckpointError

CARD_NAME = "README.md"
_PARTS = {  # folder: what it is, the pipeline that needs it
    "generator": ("StyleGAN2 generator", "PTIPipeline"),
    "e4e_encoder": ("e4e's encoder", "E4EPipeline"),
    "psp_encoder": ("pSp's encoder", "PSPPipeline"),
    "restyle_encoder": ("ReStyle's encoder", "ReStylePipeline"),
}
_PAPERS = {
    "PTIPipeline": "PTI ([arXiv:2106.05744](https://arxiv.org/abs/2106.05744))",
    "E4EPipeline": "e4e ([arXiv:2102.02766](https://arxiv.org/abs/2102.02766))",
    "PSPPipeline": "pSp ([arXiv:2008.00951](https://arxiv.org/abs/2008.00951))",
    "ReStylePipeline": "ReStyle ([arXiv:2104.02699](https://arxiv.org/abs/2104.02699))",
}


def write_card(
    folder: Path,
    *,
    name: str | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `README.md` of a pipeline's folder; one that is there stays, unless it is asked for.

    Args:
        folder: What `save_pretrained` wrote.
        name: What users type to load the model, such as "organisation/repository". `None` takes the folder itself.
        metrics: Measured figures, by name.
        license: Of the weights: an identifier of the Hub's such as "cc-by-nc-4.0". `None` says that it is not stated.
        overwrite: Also replace a card that is there.

    Returns:
        The card.

    Raises:
        CheckpointError: If the folder is no pipeline's, a part is damaged, or the card cannot be written.
    """
    path = folder / CARD_NAME
    config = hub.read_config(folder)
    if overwrite or not path.is_file():
        hub.write_text(_draw_card(folder, config, name or str(folder), metrics or {}, license), path)
    return path


def _draw_card(
    folder: Path, config: Mapping[str, Any], name: str, metrics: Mapping[str, float], license: str | None
) -> str:
    parts = [part for part in _PARTS if (folder / part / hub.CONFIG_NAME).is_file()]
    sizes = hub.read_config(folder / "generator") if "generator" in parts else {}
    resolution = sizes.get("resolution", "?")
    pipelines = [_PARTS[part][1] for part in parts]
    named = str(config.get("_class_name"))
    main = named if named in pipelines else (pipelines or ["PTIPipeline"])[0]
    title = Path(name).name or folder.resolve().name
    directions = load_directions(folder / "directions") if (folder / "directions").is_dir() else {}
    lines = [
        "---",
        "library_name: stylegan_inversion",
        "pipeline_tag: image-to-image",
        f"tags: {json.dumps(['gan-inversion', 'stylegan2', 'image-editing', *_tags(parts)])}",
        *_header_licence(license),
        *_header_metrics(title, metrics),
        "---",
        "",
        f"# {title}",
        "",
        f"A StyleGAN2 generator at {resolution} x {resolution} pixels, with what it takes to bring a photo into its",
        "latent space, to edit it there and to put it back: "
        + ", ".join(_PAPERS[pipeline] for pipeline in sorted(set(pipelines)))
        + ". For the Python package `stylegan_inversion`.",
        "",
        "## Use",
        "",
        "```python",
        *_snippet(main, name, directions, config),
        "```",
        "",
        "## Parts",
        "",
        "| folder | what | numbers | files |",
        "|---|---|---:|---|",
        *(_part(folder / part, _PARTS[part][0]) for part in parts),
        "",
        *_settings(sizes, config),
        "",
        *_directions(directions),
        *_metrics(metrics),
        "## Limits",
        "",
        "- It draws what its generator was trained to draw; a photo of anything else comes out as the nearest to that.",
        "- An inversion is a likeness. An edit moves what goes together in the training data, perhaps more than asked.",
        "- Edit only photos of people who agree, and say that a picture was edited.",
        "",
        "## Licence",
        "",
        _licence(license),
        "",
    ]
    return "\n".join(lines)


def _tags(parts: list[str]) -> list[str]:
    return ["pti", *(part.removesuffix("_encoder") for part in parts if part != "generator")]


def _header_licence(license: str | None) -> list[str]:
    return ["license: other", "license_name: not-stated"] if license is None else [f"license: {json.dumps(license)}"]


def _header_metrics(title: str, metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return []
    results = [{"type": name, "name": name, "value": float(value)} for name, value in metrics.items()]
    task = {"type": "image-to-image", "name": "GAN inversion"}
    dataset = {"name": "the author's", "type": "custom"}
    index = [{"name": title, "results": [{"task": task, "dataset": dataset, "metrics": results}]}]
    return [f"metrics: {json.dumps(list(metrics))}", f"model-index: {json.dumps(index)}"]


def _snippet(main: str, name: str, directions: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    load = [f"from stylegan_inversion import {main}", "", f"pipe = {main}.from_pretrained({json.dumps(name)})"]
    kind = config.get("source", {}).get("kind", "photo") if isinstance(config.get("source"), dict) else "photo"
    if kind != "photo":
        return [*load, 'out = pipe.translate("picture.png")', 'out.images[0].save("face.png")']
    if not directions:
        return [*load, 'out = pipe("photo.jpg")', 'out.images[0].save("inverted.png")']
    edit_name, direction = next(iter(directions.items()))
    strength = direction.strength_range[1] / 2 if direction.strength_range else 1.0
    edit = f'edited = pipe.edit(pipe("photo.jpg"), {edit_name}={strength:.3g})'
    return [*load, edit, 'pipe.paste_back(edited)[0].save("edited.png")']


def _part(folder: Path, what: str) -> str:
    files = sorted(folder.glob("*.safetensors"))
    count = _count_numbers(files[0]) if files else 0
    sizes = ", ".join(f"`{file.name}` {file.stat().st_size / 1e6:.1f} MB" for file in files)
    return f"| `{folder.name}/` | {what} | {count / 1e6:.1f} M | {sizes} |"


def _count_numbers(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as file:  # its header only
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
    except (OSError, SafetensorError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read as safetensors: {e}") from e


def _settings(sizes: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    shown = {
        key: sizes[key] for key in ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max") if key in sizes
    }
    text = ", ".join(f"{key} {value}" for key, value in shown.items())
    return [f"Generator: {text}. Face crops have {config.get('crop_scale', 1.0):g} times the side of FFHQ's."]


def _directions(directions: Mapping[str, Any]) -> list[str]:
    if not directions:
        return []
    lines = ["## Directions", "", "`pipe.edit(out, NAME=STRENGTH)`, strength in the direction's unit.", ""]
    lines += ["| name | strength | what |", "|---|---|---|"]
    for name, direction in directions.items():
        limits = direction.strength_range
        span = f"{limits[0]:+.3g} to {limits[1]:+.3g}" if limits else "not measured"
        words = " ".join(direction.description.replace("|", "/").split())
        lines.append(f"| `{name}` | {span} | {words} |")
    return [*lines, ""]


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return []
    rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return ["## Measured", "", "| figure | value |", "|---|---:|", *rows, ""]


def _licence(license: str | None) -> str:
    if license is not None:
        return f"Weights: {license}. The code of `stylegan_inversion` is MIT."
    return (
        "The licence of these weights is not stated. Weights have the terms of what they descend from: NVIDIA's "
        "StyleGAN2 generators are for non-commercial use, and so are many data sets of faces. The code of "
        "`stylegan_inversion` is MIT."
    )
