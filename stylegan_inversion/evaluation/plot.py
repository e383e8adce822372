"""The distortion-editability plot of the papers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylegan_inversion.errors import MissingDependencyError

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#555555",
)  # Okabe & Ito: told apart by all
_MARKERS = "osD^vPX"


def check_matplotlib() -> None:
    """Find out before the work whether the plot can be drawn.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise MissingDependencyError.of_extra("The plot needs matplotlib.", "evaluate") from e


def plot_editability(summary: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Draw a row of three panels an edit, as a PNG.

    Left: reconstruction error against how far the edit moves its attribute at a fixed identity similarity. Middle and
    right: the way there, attribute against identity similarity to the unedited reconstruction and to the photo.

    Args:
        summary: As `report.summarise` gives it.
        config: As `benchmark.evaluate` writes it.
        path: Of the PNG.
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
                    errors = {"xerr": error["standard_error"], "yerr": move["standard_error"], "capsize": 3}
                    scatter.errorbar(
                        error["mean"], move["mean"], markersize=10, linestyle="none", **errors, **looks[name]
                    )
            if found["level"] is not None:
                scatter.set(xlabel="L2 to the photo", ylabel=f"{edit} moved at ID {found['level']:.4f}")
            scatter.set_title(f"{edit}: distortion and editability")
            scatter.margins(0.2)
            scatter.set_xlim(left=0)
            scatter.set_ylim(bottom=min(0, scatter.get_ylim()[0]))
            for panel, key, whom in zip(
                curves, ("identity_to_reconstruction", "identity"), ("reconstruction", "photo")
            ):
                for name, entry in found["methods"].items():
                    panel.plot(entry["curve"][key], entry["curve"]["move"], markersize=7, **looks[name])
                if found["level"] is not None and whom == "reconstruction":
                    panel.axvline(found["level"], color="#999999", linewidth=1, linestyle=":")
                panel.invert_xaxis()  # an edit starts on the left and costs identity as it goes on
                panel.xaxis.set_major_locator(MaxNLocator(5))
                panel.set(xlabel=f"ID ({config['identity']}) to the {whom}", ylabel=f"{edit} moved")
                panel.set_title(f"{edit} against identity to the {whom}")
            for panel in (scatter, *curves):
                panel.grid(alpha=0.3)
                panel.spines[["top", "right"]].set_visible(False)
        handles = [Line2D([], [], label=labels[name], markersize=9, **looks[name]) for name in summary["methods"]]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        figure.savefig(path)
