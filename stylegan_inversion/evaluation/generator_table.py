"""Measures of generators -> a Markdown table."""

from collections.abc import Mapping
from typing import Any

from stylegan_inversion.evaluation.report import _markdown, _number

HALVES = "one half of the data against the other"


def write_table(results: Mapping[str, Any]) -> str:
    """The table of `generators.json` in Markdown."""
    columns = [(key, figure, label) for key, names in results["columns"].items() for figure, label in names.items()]
    rows = [["generator", *(label for *_, label in columns)]]
    measured = {name: entry["figures"] for name, entry in results["generators"].items()}
    for name, figures in (*measured.items(), (HALVES, results["halves"])):
        rows.append([name, *(_cell(figures.get(key), figure) for key, figure, _ in columns)])
    dims = ", ".join(f"{entry['label']} {entry['dim']}" for entry in results["networks"].values())
    count, data, paths = results["num_samples"], results["num_data"], results["num_paths"]
    text = [
        f"# {count} samples against {data} pictures at {results['resolution']} px",
        _markdown(rows),
        f"Truncation psi {results['truncation_psi']:g}, seed {results['seed']}, random noise. FD and KD are the "
        "Fréchet and the kernel distance in the features of the network in brackets: no FID and no KID, and comparable "
        f"with nothing but themselves. Length of the features: {dims}. FD falls with the number of samples and of "
        "data; the last row, on half as many, shows how much of it is left where nothing differs. Precision and "
        "recall: 3 nearest neighbours.",
    ]
    if paths:
        text.append(f"PPL: {paths} samples in W, at the end points, full picture; the papers' is with VGG.")
    return "\n\n".join(text) + "\n"


def _cell(found: Any, figure: str) -> str:
    if found is None:
        return "-"
    if figure == "kernel":
        return f"{_number(1000 * found['kernel'])} ± {1000 * found['kernel_std']:.2g}"
    return _number(found[figure] if figure else found)
