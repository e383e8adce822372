"""Methods over a folder of images: records, tables, a figure and the distortion-editability plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from stylegan_inversion import hub
from stylegan_inversion.evaluation import report
from stylegan_inversion.evaluation.figure import save_figure
from stylegan_inversion.evaluation.gallery import Gallery
from stylegan_inversion.evaluation.methods import Method
from stylegan_inversion.evaluation.plot import plot_editability
from stylegan_inversion.evaluation.records import Record, RecordFile
from stylegan_inversion.evaluation.runner import Photo, Runner, read_photos
from stylegan_inversion.evaluation.scoring import FaceScores
from stylegan_inversion.evaluation.settings import configure, load_scoring


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came out.

    Attributes:
        output: The folder with all files.
        results: What `results.json` holds.
        records: One for each image and method, images first.
        table: What `table.md` holds.
    """

    output: Path
    results: dict[str, Any]
    records: list[Record]
    table: str

    @property
    def failed(self) -> int:
        """How many of the records hold an error."""
        return sum(record["error"] is not None for record in self.records)


def evaluate(
    methods: Mapping[str, Method],
    images: Sequence[str | Path],
    output: str | Path,
    *,
    root: str | Path | None = None,
    limit: int | None = None,
    edits: Sequence[str] | None = None,
    align: bool = False,
    perceptual: str = "alex",
    identity: str | None = "builtin",
    attributes: FaceScores | None = None,
    resolution: int | None = None,
    batch_size: int = 16,
    num_strengths: int = 7,
    identity_level: float | None = None,
    figure_images: int | Sequence[str] = 6,
    progress: bool = False,
) -> Evaluation:
    """Invert and edit images by several methods, and measure what comes out.

    The folder gets `records.jsonl` (a line for each image and method, written as the work goes on), `results.json`
    (means, medians, standard errors and the settings), `table.md`, `figure.png` with the first edit, `figure_EDIT.png`
    with each further one, and, with edits, `editability.png`. A run that was killed goes on where it stopped: what has
    the same image, method, settings and weights is not done again, unless it failed. Where methods saw different
    numbers of images, all figures are given a second time for the images that every method did; the plot shows these.

    Args:
        methods: What to compare, by name; see `methods.load_methods`. They must share resolution, crop scale, device
            and directions.
        images: Paths. Each gets a record for each method, whether or not it fails.
        output: Folder, made if needed.
        root: Folder that names in the records are relative to. `None` takes the one that holds all images.
        limit: Take only that many images, the first ones (`preprocessing.image.list_images` sorts them by name).
        edits: Directions to measure, each named like the attribute that it moves: smile, age, gender, yaw. `None` takes
            smile if the model has it.
        align: Find the face in each photo and cut it out. False takes the images as aligned crops.
        perceptual: Perceptual distance, see `losses.lpips.load_perceptual`.
        identity: Identity network, see `losses.identity.load_identity`. `None` leaves identity out.
        attributes: Scores the attributes of pictures. `None` means the built-in face networks.
        resolution: Side at which pictures are compared. `None` means the generator's; the papers compare at 256.
        batch_size: Pictures that go through a network at once; encoders and projections invert as many together.
        num_strengths: Points on the curve of an edit, odd: 0, and as many on each side up to the ends of its range.
        identity_level: Identity similarity to the unedited reconstruction at which methods are compared. `None` takes
            the highest of the methods' similarities at full strength.
        figure_images: How many images the figure shows, the first ones, or their names.
        progress: Show a progress bar.

    Returns:
        Results, records and tables.

    Raises:
        ValueError: Before the first image, if an argument is wrong: no or equal images, methods that cannot be
            compared, an edit that is no direction of the model or has no score.
        MissingDependencyError: If matplotlib is not installed.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be >= 1, got {limit}.")
    if edits is None:
        edits = [name for name in ("smile",) if all(name in method.pipeline.directions for method in methods.values())]
    scoring = load_scoring(
        methods,
        edits,
        perceptual=perceptual,
        identity=identity,
        attributes=attributes,
        resolution=resolution,
        batch_size=batch_size,
        num_strengths=num_strengths,
    )
    photos = read_photos(images[:limit], root)
    shown = _choose(figure_images, photos)
    config = configure(methods, scoring, align=align) | {"level": identity_level, "limit_note": ""}
    if len(photos) < len(images):
        by_name = ", by name" if [p.name for p in photos] == sorted(p.name for p in photos) else ""
        config["limit_note"] = f"The first {len(photos)} of {len(images)} images{by_name}."
    keys = {name: config["methods"][name]["key"] for name in methods}

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    file = RecordFile(output / "records.jsonl")
    gallery = Gallery(output / "pictures", shown, config["edits"], keys)
    runner = Runner(methods, keys, scoring, file, gallery, align)
    with tqdm(total=sum(len(photos[: m.limit]) for m in methods.values()), disable=not progress, unit="image") as bar:
        for done in runner.run(photos):
            bar.update(done)

    order = {name: [(keys[name], photo.name) for photo in photos[: m.limit]] for name, m in methods.items()}
    place = {photo.name: i for i, photo in enumerate(photos)}
    file.finish(sorted((pair for pairs in order.values() for pair in pairs), key=lambda pair: place[pair[1]]))
    records = {name: [file.get(*pair) for pair in pairs] for name, pairs in order.items()}
    return _report(records, len(photos), config, gallery, output)


def _choose(figure_images: int | Sequence[str], photos: Sequence[Photo]) -> list[str]:
    names = [photo.name for photo in photos]
    if isinstance(figure_images, int):
        return names[:figure_images]
    for name in figure_images:
        if name not in names:
            raise ValueError(f"`figure_images` names {name!r}, which is not among the images, such as {names[0]!r}.")
    return list(figure_images)


def _report(
    records: Mapping[str, list[Record]], num_images: int, config: dict[str, Any], gallery: Gallery, output: Path
) -> Evaluation:
    everything, common = report.summarise(records, config), None
    images = report.common_images(records)
    if images and any(entry["n"] != len(images) for entry in everything["methods"].values()):
        shared = {name: [row for row in rows if row["image"] in images] for name, rows in records.items()}
        common = report.summarise(shared, config)
    results = {"config": config, "num_images": num_images, "all": everything, "common": common}
    results["num_common"] = len(images)
    table = report.write_tables(results)
    hub.write_config(results, output, name="results.json")
    (output / "table.md").write_text(table, "utf-8")
    if gallery.images:
        labels = {name: entry["label"] for name, entry in config["methods"].items()}
        for i, edit in enumerate(config["edits"] or [None]):
            save_figure(gallery.columns(labels, edit), output / (f"figure_{edit}.png" if i else "figure.png"))
    if config["edits"]:
        plot_editability(common or everything, config, output / "editability.png")
    return Evaluation(output, results, [row for rows in records.values() for row in rows], table)
