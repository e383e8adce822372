"""Compare methods on a folder of images: a row for each image and method, tables, a figure, the editability plot."""

import functools
import hashlib
import inspect
import itertools
import json
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from stylegan_inversion import __version__, storage
from stylegan_inversion.checkpoints.find import find_folder
from stylegan_inversion.editing.directions import apply_directions
from stylegan_inversion.errors import MissingDependencyError, ModelNotFoundError, StyleGANInversionError
from stylegan_inversion.evaluation import metrics, report
from stylegan_inversion.evaluation.editability import edit_strengths, load_face_scorer
from stylegan_inversion.evaluation.metrics import Edit, Scorer, Step, resize
from stylegan_inversion.losses.identity import load_identity
from stylegan_inversion.losses.lpips import load_perceptual
from stylegan_inversion.models.encoders import SINGLE_PASS
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.methods import METHODS, Method
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.receipts import mark
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.image import list_images, load_image, save_image, to_pil, to_tensor

logger = logging.getLogger(__name__)

FIGURE_IMAGES = 6
_PIXELS_TOGETHER = 16 * 128**2  # that a projection draws at once: the gradients of a 1024 px picture take gigabytes

Row = dict[str, Any]
"""One image by one method: "image", "method", "sha256" of the file, "error", "seconds", "report", and the figures."""


def _variants() -> dict[str, tuple[str, Method, dict[str, Any]]]:
    """Label, method and fixed options of what can be compared: encoders, and an optimisation with each pivot."""
    encoders = [method for method in METHODS.values() if method.encoder]
    variants: dict[str, tuple[str, Method, dict[str, Any]]] = {each.name: (each.label, each, {}) for each in encoders}
    for method in (each for each in METHODS.values() if not each.encoder):
        variants["w"] = "W optimisation", method, {"pivot": "w", "num_tuning_steps": 0}
        variants["w_plus"] = "W+ optimisation", method, {"pivot": "w_plus", "num_tuning_steps": 0}
        variants[method.name] = f"{method.label} (W pivot)", method, {"pivot": "w"}
        for other in encoders:
            label = f"{method.label} ({other.label} pivot)"
            variants[f"{method.name}-{other.name}"] = label, method, {"pivot": other.name}
    return variants


_VARIANTS = _variants()
NAMES = tuple(_VARIANTS)
"""What can be compared."""
DEFAULTS = ("w", *SINGLE_PASS, *(name for name, method in METHODS.items() if not method.encoder))
"""What is compared unless other names are given."""


@dataclass(frozen=True)
class Candidate:
    """A way to invert photos: its name in tables, a pipeline, options of its call, and how many images it gets."""

    label: str
    pipeline: InversionPipeline
    options: dict[str, Any]
    limit: int | None
    encode: Callable[[Tensor], Tensor] | None  # images of any side -> w_plus


def load_methods(
    names: Sequence[str],
    model: str,
    *,
    options: Mapping[str, Any],
    limits: Mapping[str, int],
    device: torch.device | str | None,
    detector: Any,
) -> dict[str, Candidate]:
    """Load methods of one model; the arguments are those of `evaluate`."""
    for name in names:
        if name not in NAMES:
            raise ValueError(f"There is no method {name!r}; there are {', '.join(NAMES)}.")
    for name in limits:
        if name not in names:
            raise ValueError(f"`limits` names {name!r}, which is not compared; compared are {', '.join(names)}.")
    pipelines: dict[str, Any] = {}  # variants share theirs
    methods = {}
    for name in names:
        label, method, fixed = _VARIANTS[name]
        if method.name not in pipelines:
            pipelines[method.name] = method.pipeline.from_pretrained(model, device=device, detector=detector)
        pipeline = pipelines[method.name]
        if fixed and fixed["pivot"] not in pipeline.pivots:
            raise ModelNotFoundError(
                f"{model!r} has no encoder for {name!r}; its pivots are {', '.join(pipeline.pivots)}."
            )
        taken = inspect.signature(pipeline.__call__).parameters
        given = {key: value for key, value in options.items() if value is not None and key in taken}
        passes: dict[str, int] = {}
        if "num_iterations" in taken:
            passes = {"num_iterations": given.get("num_iterations", pipeline.encoder.config.iterations)}
            label, given = f"{label} ({passes['num_iterations']} passes)", given | passes
        encode = functools.partial(_encode, pipeline, passes) if method.encoder else None
        methods[name] = Candidate(label, pipeline, {**given, **fixed}, limits.get(name), encode)
    return methods


def _encode(pipeline: Any, passes: Mapping[str, int], images: Tensor) -> Tensor:
    return pipeline.encode(resize(images, pipeline.encoder.config.input_resolution), **passes)


def evaluate(
    data: str | Path,
    output: str | Path,
    *,
    model: str,
    methods: Sequence[str] = DEFAULTS,
    limit: int | None = None,
    limits: Mapping[str, int] | None = None,
    edits: Sequence[str] | None = None,
    align: bool = False,
    resolution: int | None = None,
    perceptual: str = "alex",
    identity: str | None = "builtin",
    batch_size: int = 16,
    options: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    detector: Any = "auto",
    progress: bool = False,
) -> tuple[dict[str, Any], str]:
    """Invert and edit images by several methods, and measure what comes out.

    The output folder gets `records.jsonl` (a line for each image and method, written as the work goes on),
    `settings.json`, `results.json` (means, medians, standard errors), `table.md`, `figure.png` with the first edit,
    `figure_EDIT.png` with each further one, and, with edits, `editability.png`. A stopped run goes on: an image that a
    method did is not done again unless it failed or its file changed. Images, limits and the list of methods may change
    between runs; the model and all other settings may not. Where methods saw different images, all figures are given a
    second time for the images that every method did, and the plot shows these.

    Args are those of `stylegan-inversion evaluate`, which `--help` explains. `limits` is the limit of single methods;
    `options`, such as `num_w_steps`, go to the pipelines whose call takes them, and `None` counts as not given.

    Returns:
        The content of `results.json` and of `table.md`.

    Raises:
        ValueError: Before the first image, if an argument is wrong, an edit is no direction of the model or has no
            score, or the output folder holds a comparison with other settings.
        ModelNotFoundError: If there is no such model, or it lacks what a method needs.
        MissingDependencyError: If there are edits to plot, and matplotlib is not installed.
    """
    loaded = load_methods(methods, model, options=options or {}, limits=limits or {}, device=device, detector=detector)
    data, output = Path(data), Path(output)
    every = list_images(data)
    images = every[:limit]
    scorer = _load_scorer(next(iter(loaded.values())).pipeline, edits, resolution, perceptual, identity)
    settings = _describe(report.hash_model(find_folder(model)), loaded, scorer, align)
    rows = _open_rows(output, settings)
    hashes = {image: _hash_file(data / image) for image in images}
    run = _Run(loaded, scorer, align, data, hashes, output / "pictures", images[:FIGURE_IMAGES])
    total = sum(len(images[: method.limit]) for method in loaded.values())
    with (
        (output / "records.jsonl").open("a", encoding="utf-8") as file,
        tqdm(total=total, disable=not progress, unit="image") as bar,
    ):
        for first in range(0, len(images), batch_size):
            todo = {}
            for name, method in loaded.items():
                batch = images[: method.limit][first : first + batch_size]
                todo[name] = [image for image in batch if not run.is_done(rows.get((image, name)))]
                bar.update(len(batch) - len(todo[name]))
            for row in run.batch(todo):
                file.write(_line(row))
                file.flush()
                rows[row["image"], row["method"]] = row
                bar.update()

    in_order = {key: rows[key] for key in itertools.product(images, loaded) if key in rows}
    storage.write_text("".join(map(_line, {**in_order, **rows}.values())), output / "records.jsonl")
    done = {name: [rows[image, name] for image in images[: method.limit]] for name, method in loaded.items()}
    config = {
        **settings,
        "methods": {n: {"label": m.label, "limit": m.limit, **settings["methods"][n]} for n, m in loaded.items()},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "metrics": scorer.columns,
        "limit_note": f"The first {len(images)} of {len(every)} images, by name." if len(images) < len(every) else "",
    }
    results = report.summarise_run(done, config, num_images=len(images))
    table = report.write_tables(results)
    storage.write_config(results, output, name="results.json")
    storage.write_text(table, output / "table.md")
    for i, edit in enumerate(config["edits"] or [None]):
        report.save_figure(run.columns(edit), output / (f"figure_{edit}.png" if i else "figure.png"))
    if config["edits"]:
        report.plot_editability(results["common"] or results["all"], config, output / "editability.png")
    return results, table


def _load_scorer(
    pipeline: InversionPipeline,
    edits: Sequence[str] | None,
    resolution: int | None,
    perceptual: str,
    identity: str | None,
) -> Scorer:
    generator, directions, device = pipeline.generator, pipeline.directions, pipeline.device
    resolution = resolution or generator.config.resolution
    metrics.ms_ssim_scales(pipeline.domain.size(resolution)[1])  # refuses a side that is too small
    if not pipeline.domain.has_faces:
        identity, edits = None, edits or []
    if edits is None:
        edits = ["smile"] if "smile" in directions else []
    codes = torch.zeros(1, generator.num_ws, generator.config.w_dim)
    apply_directions(codes, directions, strengths=dict.fromkeys(edits, 0.0))  # refuses an unknown direction
    attributes = None
    if edits:
        try:
            import matplotlib  # noqa: F401
        except ImportError as e:
            raise MissingDependencyError.of_extra("The plot needs matplotlib.", "evaluate") from e
        if identity is None:
            raise ValueError(
                "`edits` are measured by what they cost in the identity of faces: give `identity`, or none."
            )
        attributes = load_face_scorer(device=device)
        scored = sorted(attributes(torch.zeros(1, 3, resolution, resolution, device=device)))
        for name in edits:
            if name not in scored:
                raise ValueError(f"There is no score for the edit {name!r}; there are {', '.join(scored)}.")
    network = None
    if identity is not None:
        network = load_identity(identity, None if identity == "builtin" else find_folder(identity), device=device)
    return Scorer(
        perceptual=load_perceptual(perceptual, device=device),
        identity=network,
        attributes=attributes,
        edits={n: Edit(directions[n].to(device), edit_strengths(directions[n])) for n in edits},
        resolution=resolution,
        crop_scale=pipeline.crop_scale,
    )


def _describe(model: str, methods: Mapping[str, Candidate], scorer: Scorer, align: bool) -> dict[str, Any]:
    """The settings that the rows depend on, in JSON."""
    device = next(iter(methods.values())).pipeline.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "version": __version__,
        "model": model,
        "device": f"{device.type} ({machine})",
        "align": align,
        "resolution": scorer.resolution,
        "perceptual": scorer.perceptual.name,
        "identity": None if scorer.identity is None else scorer.identity.name,
        "edits": {name: list(edit.strengths) for name, edit in scorer.edits.items()},
        "methods": {name: {"options": method.options} for name, method in methods.items()},
    }


def _open_rows(output: Path, settings: dict[str, Any]) -> dict[tuple[str, str], Row]:
    """Check that the settings are those of the rows in a folder, and read these, by image and method."""
    path, lines = output / "settings.json", output / "records.jsonl"
    methods = settings["methods"]
    if path.exists() or lines.exists():
        try:
            earlier = json.loads(path.read_text("utf-8"))
            before = earlier.pop("methods")
            changed = [name for name in methods if name in before and before[name] != methods[name]]
            now = {name: value for name, value in settings.items() if name != "methods"}
            changed += [name for name in now if name not in earlier or earlier[name] != now[name]]
            methods = {**before, **methods}
            reason = f"with other settings: {', '.join(changed)}; see settings.json there" if changed else ""
        except (OSError, ValueError, LookupError, TypeError):
            reason = "without a settings.json that can be read"
        if reason:
            raise ValueError(f"{output} holds a comparison {reason}. Give another output folder, or remove this one.")
    storage.write_config({**settings, "methods": methods}, output, name=path.name)
    rows = {}
    for number, line in enumerate(lines.read_text("utf-8", errors="replace").splitlines() if lines.exists() else [], 1):
        try:
            row = json.loads(line)
            rows[row["image"], row["method"]] = row
        except (ValueError, LookupError, TypeError):
            logger.warning("%s, line %d is incomplete and left out; its image is done again.", lines.name, number)
    storage.write_text("".join(map(_line, rows.values())), lines)
    return rows


def _hash_file(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


@dataclass(frozen=True, eq=False)
class _Run:
    """Photos -> rows, and pictures on disk for those photos that the figure shows."""

    methods: Mapping[str, Candidate]
    scorer: Scorer
    align: bool
    data: Path
    hashes: Mapping[str, str | None]  # by image
    pictures: Path
    shown: Sequence[str]
    pivots: dict[Any, InversionOutput] = field(default_factory=dict)

    def is_done(self, row: Row | None) -> bool:
        if row is None or row["error"] is not None or row["sha256"] != self.hashes[row["image"]]:
            return False
        return row["image"] not in self.shown or self.path(row["image"], row["method"], None).is_file()

    def batch(self, todo: Mapping[str, Sequence[str]]) -> Iterator[Row]:
        """Cut out the faces once for all methods, then invert; an image that fails gets a row with the reason."""
        align = next(iter(self.methods.values())).pipeline.align
        crops: dict[str, Crop] = {}
        errors: dict[str, str] = {}
        for image in dict.fromkeys(itertools.chain(*todo.values())):
            try:
                crops[image] = align(self.data / image, align=self.align)
            except MissingDependencyError:  # no image would succeed
                raise
            except Exception as e:  # the other images go on
                errors[image] = _reason(e)
        for name, images in todo.items():
            yield from (self._row(name, image, errors[image]) for image in images if image in errors)
            yield from self._together(name, {image: crops[image] for image in images if image in crops})

    def _row(self, name: str, image: str, error: str | None = None, **figures: Any) -> Row:
        return {"image": image, "method": name, "error": error, **figures, "sha256": self.hashes[image]}

    def _together(self, name: str, crops: Mapping[str, Crop]) -> Iterator[Row]:
        """Invert and score images together; if that fails, each of those that are left alone."""
        left = dict(crops)
        try:
            for out in self._invert(name, crops) if crops else ():
                for image, figures in zip(list(left), self._score(name, list(left), out)):
                    yield self._row(name, image, together=len(crops), **figures)
                    del left[image]
            return
        except MissingDependencyError:
            raise
        except Exception as e:
            logger.debug("%s of %s failed", name, [*left], exc_info=True)
            error = _reason(e)  # the exception itself may hold the memory that ran out
        if len(crops) == 1:
            yield self._row(name, next(iter(left)), error)
        else:
            for image, crop in left.items():
                yield from self._together(name, {image: crop})

    def _invert(self, name: str, crops: Mapping[str, Crop]) -> Iterator[InversionOutput]:
        """Invert photos: all in one pass of an encoder; PTI finds their pivots together and tunes one by one."""
        pipeline, options = self.methods[name].pipeline, self.methods[name].options
        if "pivot" not in options:
            out = pipeline(list(crops.values()), **options)
            yield from [out] if len(set(out.generators)) == 1 else out
            return
        search = {**options, "num_tuning_steps": 0}
        key = (tuple(crops), *search.items())
        if key not in self.pivots:  # else another method has found the same ones
            self.pivots.clear()
            side = pipeline.generator.config.resolution
            search["batch_size"] = max(1, min(len(crops), _PIXELS_TOGETHER // side**2))
            self.pivots[key] = pipeline(list(crops.values()), **search)
        for crop, found in zip(crops.values(), self.pivots[key]):
            if options.get("num_tuning_steps") == 0:
                yield found
                continue
            out = pipeline(crop, **{**options, "pivot": found})
            out.reports[0]["seconds"] += found.reports[0]["seconds"]
            yield out

    def _score(self, name: str, images: Sequence[str], out: InversionOutput) -> list[dict[str, Any]]:
        """Measure images that share a generator, and keep the pictures of the figure."""
        generator = out.generators[0]
        originals = torch.cat([to_tensor(crop.image) for crop in out.crops]).to(generator.w_avg)
        w_plus, encode = out.w_plus.to(generator.w_avg), self.methods[name].encode
        rows, pictures = self.scorer.score(w_plus, generator, originals, encode=encode)
        for i, image in enumerate(images[: len(rows)]):
            if image in self.shown:
                save_image(out.crops[i].image, self.path(image, "_original", None))
                for step, drawn in pictures.items():
                    save_image(to_pil(drawn[i : i + 1])[0], self.path(image, name, step), xmp=mark("edited"))
        return [{**row, "seconds": found["seconds"], "report": found} for row, found in zip(rows, out.reports)]

    def path(self, image: str, method: str, step: Step) -> Path:
        """Where a picture of the figure is."""
        return self.pictures / image / (f"{method}.png" if step is None else f"{method}_{step[0]}{step[1]:+g}.png")

    def columns(self, edit: str | None) -> list[report.Column]:
        """The photo, then for each method its reconstruction and the ends of one edit."""
        columns = [report.Column("", "photo", self._load("_original", None))]
        steps: list[Step] = [None]
        if edit is not None:
            steps += [(edit, strength) for strength in self.scorer.edits[edit].ends]
        for name, method in self.methods.items():
            for step in steps:
                title = "inversion" if step is None else f"{step[0]} {step[1]:+g}"
                columns.append(report.Column(method.label, title, self._load(name, step)))
        return columns

    def _load(self, method: str, step: Step) -> list[Image.Image | None]:
        paths = [self.path(image, method, step) for image in self.shown]
        return [load_image(path) if path.is_file() else None for path in paths]


def _reason(error: Exception) -> str:
    expected = isinstance(error, (StyleGANInversionError, OSError))
    return str(error) if expected else f"{type(error).__name__}: {error}"
