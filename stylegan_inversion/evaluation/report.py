"""Records -> means, medians and Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stylegan_inversion.evaluation.editability import summarise_edit
from stylegan_inversion.evaluation.records import Record


def summarise(records: Mapping[str, Sequence[Record]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of all methods over the records that they have.

    Args:
        records: By method, failed ones too.
        config: As `benchmark.evaluate` writes it: "metrics", "edits", "level".

    Returns:
        {"methods": {method: {"n", "failed", "metrics": {key: {"mean", "median", "standard_error"} or None}}}, "edits":
        {edit: see `editability.summarise_edit`}}. "standard_error" is None for a single image.
    """
    done = {method: [row for row in rows if row["error"] is None] for method, rows in records.items()}
    return {
        "methods": {
            method: {
                "n": len(done[method]),
                "failed": len(rows) - len(done[method]),
                "metrics": {key: _statistics([r[key] for r in done[method] if key in r]) for key in config["metrics"]},
            }
            for method, rows in records.items()
        },
        "edits": {
            edit: summarise_edit(done, edit, strengths, level=config["level"])
            for edit, strengths in config["edits"].items()
        },
    }


def common_images(records: Mapping[str, Sequence[Record]]) -> set[str]:
    """Images that every method did without failing."""
    done = [{row["image"] for row in rows if row["error"] is None} for rows in records.values()]
    return set.intersection(*done) if done else set()


def _statistics(values: Sequence[float]) -> dict[str, float | None] | None:
    if not values:
        return None
    n = len(values)
    error = float(np.std(values, ddof=1) / n**0.5) if n > 1 else None
    return {"mean": float(np.mean(values)), "median": float(np.median(values)), "standard_error": error}


def write_tables(results: Mapping[str, Any]) -> str:
    """The tables of `results.json` in Markdown."""
    config = results["config"]
    counts = [entry["n"] for entry in results["all"]["methods"].values()]
    parts = [f"# {results['num_images']} images"]
    if config["limit_note"]:
        parts.append(config["limit_note"])
    parts += _tables(results["all"], config)
    if results["common"]:
        parts.append(f"## On the {results['num_common']} images that all methods did")
        parts += _tables(results["common"], config)
    elif min(counts) < max(counts):
        parts.append("No image was done by all methods.")
    parts.append(
        "Means over images; LEC: mean (median). L2 is the mean squared error in [-1, 1], PSNR is 10 log10(4 / L2). "
        "Offset norm: mean over layers of the distance to the first layer's w, 0 in W. Seconds: the inversion alone, "
        "a photo's share of what went through together. "
        f"Pictures are compared at {config['resolution']} px, on {config['device']}."
    )
    failed = {name: entry["failed"] for name, entry in results["all"]["methods"].items() if entry["failed"]}
    if failed:
        listed = ", ".join(f"{config['methods'][name]['label']} {count}" for name, count in failed.items())
        parts.append(f"Failed, and in no mean: {listed}. `records.jsonl` has the reasons.")
    return "\n\n".join(parts) + "\n"


def _tables(summary: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    labels = {name: entry["label"] for name, entry in config["methods"].items()}
    rows = [["method", "n", *config["metrics"].values()]]
    for name, entry in summary["methods"].items():
        cells = [_cell(key, entry["metrics"][key]) for key in config["metrics"]]
        rows.append([labels[name], str(entry["n"]), *cells])
    tables = [_markdown(rows)]
    for edit, found in summary["edits"].items():
        if found["level"] is None:
            continue
        at, to_photo = _number(found["level"]), _number(found["level_to_photo"])
        rows = [
            [
                "method",
                "n",
                f"{edit} at full strength",
                "its ID to the reconstruction",
                "its ID to the photo",
                f"{edit} at ID {at} to the reconstruction",
                f"{edit} at ID {to_photo} to the photo",
                "mean over IDs down to it",
            ]
        ]
        for name, entry in found["methods"].items():
            moves = [_moved(entry[key]) for key in ("move_full", "move_at_level", "move_at_level_to_photo")]
            ends = [_number(entry["curve"][key][-1]) for key in ("identity_to_reconstruction", "identity")]
            rows.append([labels[name], str(entry["n"]), moves[0], *ends, *moves[1:], _number(entry["mean_move"])])
        low, high = found["strengths"][0], found["strengths"][-1]
        tables.append(
            f"How far {edit} moves its score, over strengths {low:+g} to {high:+g} (both sides averaged, ± standard "
            f"error):\n\n{_markdown(rows)}"
        )
    return tables


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]])


def _cell(key: str, statistics: Mapping[str, Any] | None) -> str:
    if statistics is None:
        return "-"
    mean = _number(statistics["mean"])
    return f"{mean} ({_number(statistics['median'])})" if key.startswith("lec_") else mean


def _moved(move: Mapping[str, Any] | None) -> str:
    if move is None:
        return "-"
    error = move["standard_error"]
    return _number(move["mean"]) + ("" if error is None else f" ± {error:.2g}")


def _number(value: float | None) -> str:
    """Enough digits to tell methods apart: four after the point below 1, fewer above."""
    if value is None:
        return "-"
    if abs(value) >= 1:
        return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.2g}"
