"""The command line: arguments -> one call per subcommand. Each imports what it needs: `--help` waits for no PyTorch."""

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylegan_inversion import __version__
from stylegan_inversion.errors import StyleGANInversionError

if TYPE_CHECKING:
    from stylegan_inversion.batch import Record


def prepare_process() -> None:
    """Choose how PyTorch's threads wait and how it takes memory, unless the user has. PyTorch must not be loaded yet.

    A thread of GNU OpenMP that waits for the others spins for some 20 microseconds before it sleeps, not for several
    milliseconds, in which it would keep a core that the others need. Measured with two threads on two cores and some 25
    busy processes, 24 forward passes of a small network: more than 100 s by default, 39 s with 10,000 spins, 22 s with
    1,000, 30 s with one thread. Large tensors get huge pages on Linux: the first pass over new memory takes a fifth.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name. `None` takes those of the process.

    Returns:
        0 if all went well, 1 if a photo failed, 2 for wrong arguments.
    """
    prepare_process()
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if argv[:1] == ["train"]:
            return _train(argv[1:])  # tyro reads its arguments
        options = vars(_parser(argv).parse_args(argv))
        run = options.pop("run")
        return run(**options)
    except (StyleGANInversionError, ValueError, OSError) as e:
        print(f"stylegan-inversion: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stylegan-inversion: interrupted; what was finished is kept.", file=sys.stderr)
        return 130


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Make the parser; only the subcommand in `argv` gets its options, since some of their choices need PyTorch."""
    parser = argparse.ArgumentParser(prog="stylegan-inversion", description="Real photos in, edited photos out.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (what, add_options, run) in COMMANDS.items():
        subparser = commands.add_parser(name, help=what)
        if name in argv:
            add_options(subparser)
            subparser.set_defaults(run=run)
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    """Make the type of a whole number that is not below `least`."""

    def number(text: str) -> int:
        if not text.lstrip("+-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return int(text)

    return number


def _pair(number: Callable[[str], float], what: str) -> Callable[[str], tuple[str, float]]:
    """Make the type of NAME=NUMBER."""

    def pair(text: str) -> tuple[str, float]:
        name, _, value = text.partition("=")
        with suppress(ValueError, argparse.ArgumentTypeError):
            if name:
                return name, number(value)
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return pair


def _grid(text: str) -> tuple[str, list[float]]:
    """Read NAME=STRENGTH or NAME=LOW:HIGH:STEPS."""
    name, _, numbers = text.partition("=")
    with suppress(ValueError):
        low, *more = numbers.split(":")
        high, steps = more or (low, "1")
        if name and int(steps) >= 1 and (more == [] or int(steps) >= 2):
            step = (float(high) - float(low)) / max(1, int(steps) - 1)
            return name, [round(float(low) + k * step, 6) for k in range(int(steps))]
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=STRENGTH or NAME=LOW:HIGH:STEPS, such as smile=-4:4:9")


def _add_model(parser: argparse.ArgumentParser) -> None:
    names = "built-in model, folder, name that `models` lists, or organisation/repository [%(default)s]"
    parser.add_argument("--model", default="faces64", help=names)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, or the best there is [%(default)s]")


def _add_detector(parser: argparse.ArgumentParser) -> None:
    choices = ("auto", "builtin", "facexlib")
    parser.add_argument("--detector", default="auto", choices=choices, help="what finds faces [%(default)s]")


def _add_invert(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.losses.lpips import PERCEPTUAL_NETWORKS
    from stylegan_inversion.pipelines.methods import DEFAULT_METHOD, METHODS
    from stylegan_inversion.pipelines.pti import PIVOTS, PRESETS

    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="photos to invert, or one folder of them")
    _add_model(parser)
    add("--method", default=DEFAULT_METHOD, choices=METHODS, help="how to invert [%(default)s]")
    edits = "direction and strength, such as smile=2; `stylegan-inversion directions` lists them"
    edit = _pair(float, "NAME=STRENGTH, such as smile=2")
    add("--edit", nargs="+", action="extend", default=[], type=edit, metavar="NAME=STRENGTH", help=edits)
    add("--output", default="outputs", metavar="DIR", help="folder to write to [%(default)s]")
    add("--face", type=_at_least(0), help="which face of the photo, by size; 0 is the largest [0]")
    add("--no-align", dest="align", action="store_false", default=None, help="take the photos as aligned crops")
    add("--preset", choices=PRESETS, help="PTI: how much time to take; the options below win [the model's own]")
    add("--num-w-steps", type=_at_least(1), metavar="N", help="PTI: steps of the projection [450]")
    add("--num-tuning-steps", type=_at_least(0), metavar="N", help="PTI: steps of the tuning at most [350]")
    add("--pivot", choices=PIVOTS, help="PTI: space of the pivot, or the encoder that gives it [w]")
    add("--perceptual", choices=PERCEPTUAL_NETWORKS, help="PTI: perceptual network [the model's own]")
    add("--seed", type=_at_least(0), help="PTI: seed of the random draws [0]")
    kinds = "folder: pictures to write too, some of crop,inverted,photo [none]"
    add("--save", type=lambda text: text.split(","), metavar="KINDS", help=kinds)
    add("--batch-size", type=_at_least(1), metavar="N", help="folder: faces that go through an encoder together [16]")
    add("--workers", type=_at_least(0), metavar="N", help="folder: processes that find faces [all CPUs but one]")
    again = "folder: try the photos with an error again"
    add("--retry-errors", action="store_true", default=None, help=again)
    cluster = "folder: run on the Ray cluster at this address, or on one that is started here"
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help=cluster)
    _add_device(parser)
    _add_detector(parser)


def _invert(
    photos: list[str],
    edit: list[tuple[str, float]],
    output: str,
    *,
    model: str,
    method: str,
    perceptual: str | None,
    device: str,
    detector: Any,
    **options: Any,
) -> int:
    from stylegan_inversion.batch import invert_photos
    from stylegan_inversion.pipelines.methods import METHODS

    folders = [photo for photo in photos if Path(photo).is_dir()]
    if folders and (len(photos) > 1 or edit):
        many = f"{folders[0]} is a folder: give it alone, without other photos."
        raise ValueError(many if len(photos) > 1 else "A folder is edited later: stylegan-inversion edit-folder.")
    cls = METHODS[method].pipeline
    pipeline = cls.from_pretrained(model, device=device, detector=detector, perceptual=perceptual)
    given = {name: value for name, value in options.items() if value is not None}
    of_folder = {name: given.pop(name) for name in FOLDER_OPTIONS if name in given}
    if folders:
        return _invert_folder(pipeline, folders[0], output, options=given, **of_folder)
    if of_folder:
        raise ValueError(f"--{next(iter(of_folder)).replace('_', '-')} is for a folder of photos.")
    given |= {"progress": True}
    results = invert_photos(pipeline, photos, output, edits=dict(edit), options=given)
    return _report((record for record, _ in results), output)


def _invert_folder(pipeline: Any, folder: str, output: str, **options: Any) -> int:
    from stylegan_inversion.batch import invert_folder

    done = invert_folder(pipeline, folder, output, progress=True, **options)
    print(f"{done.photos} photos: {done.faces} faces and {done.errors} errors; {done.inverted} faces are new.")
    print(f"Look at {output}/faces-*.parquet.")
    return 1 if done.errors else 0


def _add_edit_folder(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="what `invert FOLDER --output DIR` wrote")
    edits = "direction and strengths: smile=2, or smile=-4:4:9 for 9 from -4 to 4; several give all combinations"
    add("--edit", nargs="+", action="extend", required=True, type=_grid, metavar="NAME=LOW:HIGH:STEPS", help=edits)
    add("--output", default="edits", metavar="DIR", help="folder to write to [%(default)s]")
    add("--paste", action="store_true", help="draw the whole photos, with the edited faces in place")
    _add_device(parser)


def _edit_folder(folder: str, edit: list[tuple[str, list[float]]], output: str, *, paste: bool, device: str) -> int:
    from stylegan_inversion.batch import edit_folder, load_pipeline

    pipeline = load_pipeline(folder, device=device)
    count = edit_folder(pipeline, folder, output, edits=dict(edit), paste=paste, progress=True)
    print(f"{count} pictures. {output}/edits.csv lists them.")
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="demo", metavar="DIR", help="folder to write to [%(default)s]")
    _add_device(parser)


def _demo(output: str, device: str) -> int:
    from stylegan_inversion.demo import run_demo

    return _report(run_demo(output, device=device), f"{output}/sheet.png and the folders beside it")


def _report(records: Iterable["Record"], where: str) -> int:
    """Print a line for each photo, and how many are done."""
    done: list[bool] = []
    for record in records:
        done.append(record.error is None)
        line = f"failed: {record.error}"
        if record.error is None:
            faces, index = record.report["face_count"], record.report["face_index"]
            which = f", face {index} of {faces} (0 is the largest)" if faces > 1 else ""
            line = f"{record.folder}{which}, mean squared error {record.report['l2']:.4f}"
        print(f"{record.photo}: {line}", flush=True)
    print(f"{sum(done)} of {len(done)} photos done. Look at {where}.")
    return 0 if all(done) else 1


def _directions(model: str) -> int:
    from stylegan_inversion.checkpoints.find import find_folder
    from stylegan_inversion.editing.directions import load_directions

    folder = find_folder(model) / "directions"
    for direction in load_directions(folder).values() if folder.is_dir() else []:
        low, high = direction.strength_range or (float("nan"), float("nan"))
        print(f"{direction.name:10} {low:+.1f} to {high:+.1f}  {direction.description}")
    return 0


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache-dir", metavar="DIR", help="folder of the downloads [the Hub's own cache]")


def _models(cache_dir: str | None) -> int:
    from stylegan_inversion.catalogue import describe_models

    print(describe_models(cache_dir))
    return 0


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.checkpoints.export import LAYOUTS
    from stylegan_inversion.models.encoders import ENCODERS

    add, source = parser.add_argument, "hf://organisation/repository/file, or https://"
    add("source", metavar="SRC", help=f"a file, a name that `models` lists, {source}")
    add("destination", metavar="DST", help="folder of the model that is written")
    add("--to", choices=LAYOUTS, help="convert a model back: SRC is a model, DST a .pt file of this layout")
    add("--encoder", choices=ENCODERS, help="kind of the encoder, if the file does not say it")
    add("--name", default="direction", help="name for an imported direction [%(default)s]")
    add("--crop-scale", type=float, default=1.0, help="side of the face crop relative to FFHQ's [%(default)s]")
    add("--sha256", help="expected hash of the file; required for https")


def _convert(
    source: str, destination: str, *, to: Any, encoder: str | None, name: str, crop_scale: float, sha256: str | None
) -> int:
    from stylegan_inversion.checkpoints.export import write_model, write_official
    from stylegan_inversion.checkpoints.find import find_file, find_folder, with_directions, with_parts
    from stylegan_inversion.checkpoints.recognise import read_single_file

    if to is not None:
        print(write_official(find_folder(source), Path(destination), layout=to))
        return 0
    path = find_file(source, sha256=sha256)
    file = with_directions(with_parts(read_single_file(path, encoder=encoder)), path, source=source)
    for note in file.notes:
        print(f"Note: {note}")
    print(f"{file.kind}: {write_model(file, Path(destination), name=name, crop_scale=crop_scale)}")
    return 0


def _add_push(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="a model, as `save_pretrained` and `train` write it")
    add("repo_id", metavar="REPO", help="organisation/repository; created if it is not there")
    add("--private", action="store_true", default=None, help="create the repository as private")
    add("--license", metavar="ID", help="licence of the weights for the card, such as cc-by-nc-4.0")
    add("--message", dest="commit_message", metavar="TEXT", help="commit message")
    add("--revision", metavar="BRANCH", help="branch to push to [the default branch]")
    add("--overwrite-card", action="store_true", help="also replace a README.md that is there")


def _push(folder: str, repo_id: str, **options: Any) -> int:
    from stylegan_inversion.pipelines.loading import push_to_hub

    print(push_to_hub(Path(folder), repo_id, **options))
    return 0


def _train(arguments: list[str]) -> int:
    from stylegan_inversion.training.config import load_config

    config = load_config(arguments)  # `--help` needs no PyTorch
    from stylegan_inversion.training.trainer import train_main

    return train_main(config)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.evaluation.benchmark import DEFAULTS, NAMES
    from stylegan_inversion.losses.lpips import PERCEPTUAL_NETWORKS

    add = parser.add_argument
    add("data", metavar="DATA_FOLDER", help="aligned face crops, or photos with --align")
    _add_model(parser)
    names = f"methods to compare: {', '.join(NAMES)} [{' '.join(DEFAULTS)}]"
    add("--methods", nargs="+", default=DEFAULTS, metavar="NAME", help=names)
    add("--output", default="evaluation", metavar="DIR", help="a stopped run goes on in its folder [%(default)s]")
    add("--limit", type=_at_least(1), metavar="N", help="use only the first N images by name")
    only = "limit one method, such as pti=50; a second table then compares the images that all methods did"
    limit = _pair(_at_least(1), "METHOD=N, such as pti=50")
    add("--limit-for", nargs="+", action="extend", default=[], type=limit, metavar="METHOD=N", help=only)
    add("--edits", nargs="*", metavar="NAME", help="edits to measure; no names, no edits [smile, if the model has it]")
    add("--align", action="store_true", help="find the face in each photo and cut it out")
    add("--resolution", type=_at_least(11), metavar="PX", help="side at which pictures are compared [the model's]")
    add("--perceptual", default="alex", choices=PERCEPTUAL_NETWORKS, help="network that measures LPIPS [%(default)s]")
    faces = "network that compares faces: builtin, an ArcFace's folder, none [%(default)s]"
    add("--identity", default="builtin", help=faces)
    together = "photos that go through together [%(default)s]"
    add("--batch-size", type=_at_least(1), default=16, metavar="N", help=together)
    add("--num-w-steps", type=_at_least(1), metavar="N", help="steps of the projection [450]")
    add("--num-tuning-steps", type=_at_least(0), metavar="N", help="PTI: steps of the tuning [350]")
    _add_device(parser)
    _add_detector(parser)


def _evaluate(
    data: str,
    output: str,
    *,
    limit_for: list[tuple[str, int]],
    identity: str,
    num_w_steps: int | None,
    num_tuning_steps: int | None,
    **options: Any,
) -> int:
    from stylegan_inversion.evaluation.benchmark import evaluate

    options |= {"identity": None if identity == "none" else identity, "limits": dict(limit_for), "progress": True}
    steps = {"num_w_steps": num_w_steps, "num_tuning_steps": num_tuning_steps}
    results, table = evaluate(data, output, options=steps, **options)
    print(f"{table}\nEverything is in {output}.")
    return 1 if any(entry["failed"] for entry in results["all"]["methods"].values()) else 0


def _add_evaluate_generator(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.losses.lpips import PERCEPTUAL_NETWORKS

    add, number = parser.add_argument, _at_least(1)
    faces = "aligned face crops: the training data, or held-out pictures"
    add("--data", required=True, metavar="FOLDER", help=faces)
    models = "built-in models, folders, or organisation/repository; NAME=MODEL gives a name [faces64]"
    add("--models", nargs="+", default=["faces64"], metavar="MODEL", help=models)
    add("--output", default="generators", metavar="DIR", help="folder to write to [%(default)s]")
    add("--num-samples", type=_at_least(8), default=10_000, metavar="N", help="samples to draw [%(default)s]")
    paths = "samples for the path length; 0 leaves it out [%(default)s]"
    add("--num-paths", type=_at_least(0), default=2_000, metavar="N", help=paths)
    add("--limit", type=number, metavar="N", help="use only the first N images by name")
    add("--truncation-psi", type=float, default=1.0, metavar="PSI", help="truncation of the samples [%(default)s]")
    add("--seed", type=_at_least(0), default=0, help="seed of all draws [%(default)s]")
    add("--perceptual", default="alex", choices=PERCEPTUAL_NETWORKS, help="network for features and PPL [%(default)s]")
    faces = "network for face features: builtin, an ArcFace's folder, none [builtin]"
    add("--identity", default="builtin", help=faces)
    add("--fid", action="store_true", help="add FID and KID; needs torch-fidelity and its weights")
    add("--batch-size", type=number, default=32, metavar="N", help="pictures that go through together [%(default)s]")
    _add_device(parser)


def _evaluate_generator(models: list[str], data: str, output: str, *, identity: str, **options: Any) -> int:
    from stylegan_inversion.evaluation.generators import evaluate_generators

    options |= {"identity": None if identity == "none" else identity, "progress": True}
    _, table = evaluate_generators(models, data, output, **options)
    print(f"{table}\nEverything is in {output}.")
    return 0


def _add_app(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = "as in `invert` [a full-size one that is in the cache, if there is a GPU, or else faces64]"
    add("--model", help=names)
    add("--host", default="127.0.0.1", help="address to listen on [%(default)s]")
    add("--port", type=int, help="port to listen on [the first free one from 7860]")
    add("--share", action="store_true", help="also make a public link")
    _add_device(parser)
    add(
        "--any-model",
        dest="open_choice",
        action=argparse.BooleanOptionalAction,
        help="let visitors load models of the Hub and upload some [only the full-size one, and on this machine]",
    )
    proxy = "name by which a proxy on this machine reaches the app; repeatable [localhost only]"
    add("--allow-host", dest="allowed_hosts", action="append", default=[], metavar="NAME", help=proxy)
    add("--tuning-slots", type=_at_least(1), default=1, metavar="N", help="PTI runs at a time [%(default)s]")


def _app(model: str, **options: Any) -> int:
    from stylegan_inversion.webapp import launch

    launch(model, **options)
    return 0


FOLDER_OPTIONS = ("save", "batch_size", "workers", "retry_errors", "ray")
"""Options of `invert` that are for a folder."""

Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[..., int]]
"""What a subcommand does, its options, and its call."""

COMMANDS: dict[str, Command] = {
    "invert": ("invert photos, edit them, put the faces back", _add_invert, _invert),
    "edit-folder": ("draw edits of an inverted folder", _add_edit_folder, _edit_folder),
    "demo": ("invert and edit the bundled photos", _add_demo, _demo),
    "directions": ("list what a model can edit", _add_model, _directions),
    "models": ("list the models: built in, cached, and the known ones of the field", _add_models, _models),
    "convert": ("convert a checkpoint of the field into a model folder, or back", _add_convert, _convert),
    "push": ("upload the folder of a model to the Hugging Face Hub", _add_push, _push),
    "train": ("train an encoder or a generator, or go on with a run", lambda parser: None, _train),
    "evaluate": ("compare methods on a folder of images", _add_evaluate, _evaluate),
    "evaluate-generator": ("compare generators with a folder of images", _add_evaluate_generator, _evaluate_generator),
    "app": ("start the web app", _add_app, _app),
}
