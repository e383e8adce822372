"""What a user reads and looks at: means and tables, the figure of all methods, the distortion-editability plot."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stylegan_inversion.evaluation.editability import standard_error, summarise_edit
from stylegan_inversion.pipelines.receipts import mark
from stylegan_inversion.preprocessing.image import save_image

CELL = 128  # side of a picture in a figure, in pixels
GAP = 4
GROUP_GAP = 14
HEADER = 30
HALVES = "one half of the data against the other"
_GRID, _GRID_CELL = 8, 256  # pictures in a row of a grid, and the largest side of one in pixels
_COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #555555".split()  # Okabe & Ito: safe for the colour-blind
_MARKERS = "osD^vPX"

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""By method, a row for each image: "image", "error", and the figures."""


def hash_model(folder: Path) -> str:
    """The sha256 of a model's configs and weights: two reports with the same one are of the same model."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def summarise_run(rows: Rows, config: Mapping[str, Any], *, num_images: int) -> dict[str, Any]:
    """Summarise all methods: over the images that each of them did, and, if these differ, over those that all did.

    Returns:
        The content of `results.json`: "all", and "common" or None, each {"methods": {method: {"n", "failed", "metrics":
        {key: {"mean", "median", "standard_error"} or None}}}, "edits": {edit: see `editability.summarise_edit`}}.
        "standard_error" is None for a single image.
    """
    done = {method: [row for row in found if row["error"] is None] for method, found in rows.items()}
    images = set.intersection(*({row["image"] for row in found} for found in done.values()))
    common = None
    if images and any(len(found) != len(images) for found in done.values()):
        common = {method: [row for row in found if row["image"] in images] for method, found in rows.items()}
    return {
        "config": config,
        "num_images": num_images,
        "all": _summarise(rows, config),
        "common": common and _summarise(common, config),
        "num_common": len(images),
    }


def _summarise(rows: Rows, config: Mapping[str, Any]) -> dict[str, Any]:
    done = {method: [row for row in found if row["error"] is None] for method, found in rows.items()}
    return {
        "methods": {
            method: {
                "n": len(done[method]),
                "failed": len(found) - len(done[method]),
                "metrics": {key: _statistics([r[key] for r in done[method] if key in r]) for key in config["metrics"]},
            }
            for method, found in rows.items()
        },
        "edits": {edit: summarise_edit(done, edit, strengths) for edit, strengths in config["edits"].items()},
    }


def _statistics(values: Sequence[float]) -> dict[str, float | None] | None:
    if not values:
        return None
    mean, median = float(np.mean(values)), float(np.median(values))
    return {"mean": mean, "median": median, "standard_error": standard_error(np.array(values))}


def write_tables(results: Mapping[str, Any]) -> str:
    """Write the tables of `results.json` in Markdown."""
    config, methods = results["config"], results["all"]["methods"]
    parts = [f"# {results['num_images']} images"]
    if config["limit_note"]:
        parts.append(config["limit_note"])
    parts += _tables(results["all"], config)
    if results["common"]:
        parts.append(f"## On the {results['num_common']} images that all methods did")
        parts += _tables(results["common"], config)
    elif len({entry["n"] for entry in methods.values()}) > 1:
        parts.append("No image was done by all methods.")
    parts.append(
        "Means over images; LEC: mean (median). L2 is the mean squared error in [-1, 1], PSNR is 10 log10(4 / L2). "
        "Offset norm: mean over layers of the distance to the first layer's w, 0 in W. Seconds: the inversion alone; "
        "photos that went through together share their time equally. "
        f"Pictures are compared at {config['resolution']} px, on {config['device']}."
    )
    failed = [
        f"{config['methods'][name]['label']} {entry['failed']}" for name, entry in methods.items() if entry["failed"]
    ]
    if failed:
        parts.append(f"Failed, and in no mean: {', '.join(failed)}. `records.jsonl` has the reasons.")
    return "\n\n".join(parts) + "\n"


def _tables(summary: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    labels = {name: entry["label"] for name, entry in config["methods"].items()}
    rows = [["method", "n", *config["metrics"].values()]]
    for name, entry in summary["methods"].items():
        rows.append([labels[name], str(entry["n"]), *(_cell(k, entry["metrics"][k]) for k in config["metrics"])])
    tables = [markdown(rows)]
    for edit, found in summary["edits"].items():
        if found["level"] is None:
            continue
        heads = [
            f"{edit} at full strength",
            "its ID to the reconstruction",
            "its ID to the photo",
            f"{edit} at ID {_number(found['level'])} to the reconstruction",
            f"{edit} at ID {_number(found['level_to_photo'])} to the photo",
            "mean over IDs down to it",
        ]
        rows = [["method", "n", *heads]]
        for name, entry in found["methods"].items():
            moves = [_moved(entry[key]) for key in ("move_full", "move_at_level", "move_at_level_to_photo")]
            ends = [_number(entry["curve"][key][-1]) for key in ("identity_to_reconstruction", "identity")]
            rows.append([labels[name], str(entry["n"]), moves[0], *ends, *moves[1:], _number(entry["mean_move"])])
        low, high = found["strengths"][0], found["strengths"][-1]
        tables.append(
            f"How far {edit} moves its score, over strengths {low:+g} to {high:+g} (both sides averaged, ± standard "
            f"error):\n\n{markdown(rows)}"
        )
    return tables


def write_generator_table(results: Mapping[str, Any]) -> str:
    """Write the table of `generators.json` in Markdown."""
    columns = [(key, figure, label) for key, names in results["columns"].items() for figure, label in names.items()]
    rows = [["generator", *(label for *_, label in columns)]]
    measured = {name: entry["figures"] for name, entry in results["generators"].items()} | {HALVES: results["halves"]}
    for name, figures in measured.items():
        rows.append([name, *(_measure(figures.get(key), figure) for key, figure, _ in columns)])
    dims = ", ".join(f"{entry['label']} {entry['dim']}" for entry in results["networks"].values())
    text = [
        f"# {results['num_samples']} samples against {results['num_data']} pictures at {results['resolution']} px",
        markdown(rows),
        f"Truncation psi {results['truncation_psi']:g}, seed {results['seed']}, random noise. FD and KD are the "
        "Fréchet and the kernel distance in the features of the network in brackets: they are neither FID nor KID, and "
        f"comparable only with figures of the same network. Length of the features: {dims}. FD falls with the number "
        "of samples and of data; the last row, on half as many, shows how much of it is left where nothing differs. "
        "Precision and recall: 3 nearest neighbours.",
    ]
    if paths := results["num_paths"]:
        text.append(f"PPL: {paths} samples in W, at the end points, full picture; the papers' is with VGG.")
    return "\n\n".join(text) + "\n"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown: the first row is the head, the first column stands on the left."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]])


def _cell(key: str, statistics: Mapping[str, Any] | None) -> str:
    if statistics is None:
        return "-"
    mean = _number(statistics["mean"])
    return f"{mean} ({_number(statistics['median'])})" if key.startswith("lec_") else mean


def _moved(move: Mapping[str, Any] | None) -> str:
    return "-" if move is None else _number(move["mean"], move["standard_error"])


def _measure(found: Any, figure: str) -> str:
    if found is not None and figure == "kernel":
        return _number(1000 * found["kernel"], 1000 * found["kernel_std"])
    return _number(found[figure] if found is not None and figure else found)


def _number(value: float | None, error: float | None = None) -> str:
    """Enough digits to tell methods apart, four decimals below 1 and fewer above, and "± error" if there is one."""
    if value is None:
        return "-"
    if error is not None:
        return f"{_number(value)} ± {error:.2g}"
    if abs(value) >= 1:
        return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.2g}"


@dataclass(frozen=True)
class Column:
    """One column of a figure: the header of its group, its own, and a picture for each row, or `None`."""

    group: str
    title: str
    pictures: Sequence[Image.Image | None]


def save_figure(columns: Sequence[Column], path: Path) -> None:
    """Put columns of one length side by side, and write them as a PNG.

    Neighbours of one group share the header above their own. Pictures are resized to 128 px (Lanczos); a missing one
    leaves a grey square.
    """
    lefts = [GAP]
    for before, column in itertools.pairwise(columns):
        lefts.append(lefts[-1] + CELL + (GAP if before.group == column.group else GROUP_GAP))
    rows = len(columns[0].pictures)
    sheet = Image.new("RGB", (lefts[-1] + CELL + GAP, 2 * HEADER + rows * (CELL + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=20)
    for group, members in itertools.groupby(zip(lefts, columns), key=lambda member: member[1].group):
        if group:
            inside = [left for left, _ in members]
            right = inside[-1] + CELL
            pen.text(((inside[0] + right) / 2, HEADER / 2), group, fill="black", font=font, anchor="mm")
            pen.line([(inside[0], HEADER), (right - 1, HEADER)], fill="#999999")
    for left, column in zip(lefts, columns):
        title = column.title
        while font.getlength(title) > CELL:
            title = title.removesuffix("…")[:-1] + "…"
        pen.text((left + CELL / 2, 1.5 * HEADER), title, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(column.pictures):
            top = 2 * HEADER + row * (CELL + GAP)
            if picture is None:
                sheet.paste("#eeeeee", (left, top, left + CELL, top + CELL))
            else:
                sheet.paste(picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top))
    save_image(sheet, path, xmp=mark("edited"))


def save_grid(pictures: Sequence[Image.Image], path: Path) -> None:
    """Put generated pictures of one size edge to edge, 8 in a row, reduced to 256 px if they are larger."""
    cell = min(pictures[0].width, _GRID_CELL)
    grid = Image.new("RGB", (cell * min(_GRID, len(pictures)), cell * -(-len(pictures) // _GRID)), "white")
    for i, picture in enumerate(pictures):
        small = picture if picture.width == cell else picture.resize((cell, cell), Image.Resampling.LANCZOS)
        grid.paste(small, (i % _GRID * cell, i // _GRID * cell))
    save_image(grid, path, xmp=mark("generated"))


def plot_editability(summary: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Draw a row of three panels for each edit, as a PNG.

    Left: reconstruction error against how far the edit moves its attribute at a fixed identity similarity. Middle and
    right: attribute against identity similarity to the unedited reconstruction and to the photo, from strength 0 on.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    labels = {name: entry["label"] for name, entry in config["methods"].items()}
    looks: dict[str, dict[str, Any]] = {
        name: {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, name in enumerate(labels)
    }
    edits = summary["edits"]
    with rc_context({"font.size": 14, "axes.titlesize": 14, "axes.labelsize": 14}):
        figure = Figure(figsize=(14, 0.8 + 4.4 * len(edits)), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        rows = figure.subplots(len(edits), 3, squeeze=False)
        for (edit, found), (scatter, *curves) in zip(edits.items(), rows):
            for name, entry in found["methods"].items():
                error, move = summary["methods"][name]["metrics"]["l2"], entry["move_at_level"]
                if move is not None:
                    bars = {"xerr": error["standard_error"], "yerr": move["standard_error"], "capsize": 3}
                    scatter.errorbar(
                        error["mean"], move["mean"], markersize=10, linestyle="none", **bars, **looks[name]
                    )
            if found["level"] is not None:
                scatter.set(xlabel="L2 to the photo", ylabel=f"{edit} moved at ID {found['level']:.4f}")
            scatter.set_title(f"{edit}: distortion and editability")
            scatter.margins(0.2)
            scatter.set_xlim(left=0)
            scatter.set_ylim(bottom=min(0, scatter.get_ylim()[0]))
            for panel, other in zip(curves, ("reconstruction", "photo")):
                key = "identity" if other == "photo" else "identity_to_reconstruction"
                for name, entry in found["methods"].items():
                    panel.plot(entry["curve"][key], entry["curve"]["move"], markersize=7, **looks[name])
                if found["level"] is not None and other == "reconstruction":
                    panel.axvline(found["level"], color="#999999", linewidth=1, linestyle=":")
                panel.invert_xaxis()  # an edit starts on the left and costs identity as it goes on
                panel.xaxis.set_major_locator(MaxNLocator(5))
                panel.set(xlabel=f"ID ({config['identity']}) to the {other}", ylabel=f"{edit} moved")
                panel.set_title(f"{edit} against identity to the {other}")
            for panel in (scatter, *curves):
                panel.grid(alpha=0.3)
                panel.spines[["top", "right"]].set_visible(False)
        handles = [Line2D([], [], label=labels[name], markersize=9, **looks[name]) for name in summary["methods"]]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        figure.savefig(path)
