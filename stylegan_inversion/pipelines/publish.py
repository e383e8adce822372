"""A model on the Hub: its card, and the upload."""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stylegan_inversion import hub
from stylegan_inversion.editing.directions import Direction, load_directions
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.remote import model_card, upload_folder

CARD_NAME = "README.md"


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    overwrite_card: bool = False,
) -> str:
    """Check the folder of a model, give it a card if it has none, and upload it as `push_to_hub` does.

    The folder stays as it is. A card that somebody wrote or changed is uploaded as it is, unless `overwrite_card`.

    Raises:
        ValueError: If `repo_id` is not "organisation/repository".
        CheckpointError: If a part is missing, damaged or does not fit; then nothing is sent.
        UploadError: If the Hub refuses, or cannot be reached.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder, so there is nothing to upload.")
    check_folder(folder)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.resolve().name
        shutil.copytree(folder, copy, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
        card = copy / CARD_NAME
        text = card.read_text("utf-8", errors="replace") if card.exists() and not overwrite_card else None
        card.unlink(missing_ok=True)  # a link to the folder's own
        if text is None:
            write_card(copy, name=repo_id, metrics=metrics, license=license)
        else:
            hub.write_text(_renamed(text, folder, repo_id), card)
        return upload_folder(
            copy,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            overwrite_card=overwrite_card,
        )


def _renamed(text: str, folder: Path, repo_id: str) -> str:
    """A card that says how to load the folder must say how to load the repository."""

    def rename(call: re.Match[str]) -> str:
        return _load_call(repo_id) if Path(json.loads(call[1])).resolve() == folder.resolve() else call[0]

    return re.sub(r'from_pretrained\(("[^"\n]*")\)', rename, text)


def _link(source: str, target: str) -> str:
    try:
        Path(target).symlink_to(Path(source).resolve())  # takes no room
        return target
    except OSError:  # Windows, without the right to
        return shutil.copyfile(source, target)


def check_folder(folder: Path) -> None:
    """Load every part of a model's folder, each variant of it, as a user of it would."""
    hub.read_config(folder)
    networks: dict[str, tuple[type[nn.Module], type[Any]]] = {"generator": (Generator, GeneratorConfig)}
    networks |= {k.folder: (k.network, k.config) for k in ENCODERS.values() if (folder / k.folder).is_dir()}
    for name, (cls, config_cls) in networks.items():
        part = folder / name
        variants = [file.name.split(".")[1] for file in sorted(part.glob("model.*.safetensors"))]
        for variant in [None, *variants] if (part / hub.WEIGHTS_NAME).is_file() or not variants else variants:
            hub.load_module(cls, config_cls, part, variant=variant)
    directions_in(folder)


def write_card(
    folder: Path,
    *,
    name: str | None = None,
    metrics: Mapping[str, float] | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the model card, `README.md`, from what the folder of a model holds. One that is there stays.

    Args:
        folder: What `save_pretrained` wrote.
        name: What users type to load the model, such as "organisation/repository". `None` takes the folder itself.
        metrics: Measured figures, by name.
        license: Identifier of the Hub's for the weights. `None` says that it is not stated.
        overwrite: Also replace a card that is there.
    """
    from stylegan_inversion.pipelines.methods import METHODS  # it imports this file

    path, config = folder / CARD_NAME, hub.read_config(folder)
    if path.is_file() and not overwrite:
        return path
    name = name or str(folder)
    title, metrics = Path(name).name or folder.resolve().name, metrics or {}
    folders = {
        method: ENCODERS[method.encoder].folder if method.encoder else "generator" for method in METHODS.values()
    }
    methods = [method for method, part in folders.items() if (folder / part / hub.CONFIG_NAME).is_file()]
    named = config.get("_class_name")
    main = next((m.pipeline.__name__ for m in methods if m.pipeline.__name__ == named), "PTIPipeline")
    sizes, directions = hub.read_config(folder / "generator"), directions_in(folder)
    papers = [f"{m.label} ([arXiv:{m.paper}](https://arxiv.org/abs/{m.paper}))" for m in methods]
    parts = [(folders[m], f"{m.label}'s encoder" if m.encoder else "StyleGAN2 generator") for m in methods]
    resolution = sizes.get("resolution", "?")
    shown = ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max")
    terms = (
        f"Weights: {license}."
        if license
        else "The licence of these weights is not stated. Weights have the terms of what they descend from: NVIDIA's "
        "StyleGAN2 generators are for non-commercial use, and so are many data sets of faces."
    )
    body = f"""# {title}

A StyleGAN2 generator at {resolution} x {resolution} pixels, with what it takes to bring a photo into its
latent space, to edit it there and to put it back: {", ".join(papers)}. For the Python package `stylegan_inversion`.

## Use

```python
from stylegan_inversion import {main}

pipe = {main}.{_load_call(name)}
{_example(directions, config)}
```

## Parts

| folder | what | numbers | files |
|---|---|---:|---|
{_rows(_part(folder / part, what) for part, what in parts)}

Generator: {", ".join(f"{key} {sizes[key]}" for key in shown if key in sizes)}. Face crops have \
{config.get("crop_scale", 1.0):g} times the side of FFHQ's.
"""
    if directions:
        body += f"""
## Directions

`pipe.edit(out, NAME=STRENGTH)`, strength in the direction's unit.

| name | strength | what |
|---|---|---|
{_rows(_direction(direction) for direction in directions.values())}
"""
    if metrics:
        body += f"""
## Measured

| figure | value |
|---|---:|
{_rows((key, f"{value:.4g}") for key, value in metrics.items())}
"""
    body += f"""
## Limits

- It draws what its generator was trained to draw; a photo of anything else comes out as the nearest to that.
- An inversion is a likeness. An edit moves what goes together in the training data, perhaps more than asked.
- Edit only photos of people who agree, and say that a picture was edited.

## Licence

{terms} The code of `stylegan_inversion` is MIT.
"""
    tags = ["gan-inversion", "stylegan2", "image-editing", "pti", *(m.name for m in methods if m.encoder)]
    hub.write_text(model_card(body, title=title, tags=tags, license=license, metrics=metrics), path)
    return path


def _load_call(name: str) -> str:
    return f"from_pretrained({json.dumps(name)})"


def directions_in(folder: Path) -> dict[str, Direction]:
    """The directions of a model's folder, by name."""
    return dict(load_directions(folder / "directions")) if (folder / "directions").is_dir() else {}


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _example(directions: Mapping[str, Direction], config: Mapping[str, Any]) -> str:
    source = config.get("source")
    if isinstance(source, dict) and source.get("kind", "photo") != "photo":
        return 'out = pipe.translate("picture.png")\nout.images[0].save("face.png")'
    if not directions:
        return 'out = pipe("photo.jpg")\nout.images[0].save("inverted.png")'
    name, direction = next(iter(directions.items()))
    strength = direction.strength_range[1] / 2 if direction.strength_range else 1.0
    edit = f'edited = pipe.edit(pipe("photo.jpg"), {name}={strength:.3g})'
    return f'{edit}\npipe.paste_back(edited)[0].save("edited.png")'


def _direction(direction: Direction) -> tuple[str, ...]:
    limits = direction.strength_range
    span = f"{limits[0]:+.3g} to {limits[1]:+.3g}" if limits else "not measured"
    return f"`{direction.name}`", span, " ".join(direction.description.replace("|", "/").split())


def _part(folder: Path, what: str) -> tuple[str, ...]:
    files, count = sorted(folder.glob("*.safetensors")), 0
    if files:
        shapes, _ = hub.read_header(files[0])
        count = sum(math.prod(shape) for shape in shapes.values())
    sizes = ", ".join(f"`{file.name}` {file.stat().st_size / 1e6:.1f} MB" for file in files)
    return f"`{folder.name}/`", what, f"{count / 1e6:.1f} M", sizes
