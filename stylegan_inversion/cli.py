"""The command line: arguments -> one call per subcommand."""

import argparse
import io
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stylegan_inversion import E4EPipeline, PSPPipeline, PTIPipeline, ReStylePipeline, __version__, hub
from stylegan_inversion.batch import Record, invert_photos
from stylegan_inversion.catalogue import describe_models
from stylegan_inversion.checkpoints.find import find_file
from stylegan_inversion.checkpoints.known import known_entry
from stylegan_inversion.checkpoints.model_folder import write_model
from stylegan_inversion.checkpoints.papers import with_directions
from stylegan_inversion.checkpoints.single_file import read_single_file
from stylegan_inversion.demo import run_demo
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.errors import StyleGANInversionError
from stylegan_inversion.losses.lpips import PERCEPTUAL_NETWORKS
from stylegan_inversion.pipelines.base import InversionPipeline
from stylegan_inversion.pipelines.export import LAYOUTS, write_official
from stylegan_inversion.pipelines.pti import PRESETS
from stylegan_inversion.pipelines.publish import push_folder

METHODS: dict[str, type[InversionPipeline]] = {
    "pti": PTIPipeline,
    "e4e": E4EPipeline,
    "psp": PSPPipeline,
    "restyle": ReStylePipeline,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name. `None` takes those of the process.

    Returns:
        0 if all went well, 1 if a photo failed, 2 for wrong arguments.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return args.run(args)
    except (StyleGANInversionError, ValueError, OSError) as e:
        print(f"stylegan-inversion: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stylegan-inversion: interrupted; what was finished is kept.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stylegan-inversion", description="Real photos in, edited photos out.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    invert = commands.add_parser("invert", help="invert photos, edit them, put the faces back")
    invert.set_defaults(run=_invert)
    invert.add_argument("photos", nargs="+", metavar="PHOTO")
    invert.add_argument(
        "--model", default="faces64", help="built-in model, folder, or organisation/repository [%(default)s]"
    )
    invert.add_argument("--method", default="pti", choices=METHODS, help="[%(default)s]")
    invert.add_argument(
        "--edit",
        nargs="+",
        action="extend",
        default=[],
        type=_edit,
        metavar="NAME=STRENGTH",
        help="direction and strength, such as smile=2; `stylegan-inversion directions` lists them",
    )
    invert.add_argument("--output", default="outputs", metavar="DIR", help="[%(default)s]")
    invert.add_argument("--face", type=_at_least(0), help="which face of the photo, by size; 0 is the largest [0]")
    invert.add_argument(
        "--no-align", dest="align", action="store_false", default=None, help="the photos are aligned crops"
    )
    invert.add_argument(
        "--preset", choices=PRESETS, help="PTI: how much time to take; the options below win over it [the model's own]"
    )
    invert.add_argument("--num-w-steps", type=_at_least(1), metavar="N", help="PTI: steps of the projection [450]")
    invert.add_argument(
        "--num-tuning-steps", type=_at_least(0), metavar="N", help="PTI: steps of the tuning at most [350]"
    )
    invert.add_argument(
        "--pivot",
        choices=("w", "w_plus", "e4e", "psp"),
        help="PTI: space of the pivot, or the encoder that gives it [w]",
    )
    invert.add_argument("--perceptual", choices=PERCEPTUAL_NETWORKS, help="PTI: perceptual network [the model's own]")
    invert.add_argument("--seed", type=_at_least(0), help="PTI: of the random draws [0]")
    invert.add_argument("--device", default="auto", help="cpu, cuda, mps, or the best there is [%(default)s]")
    invert.add_argument("--detector", default="auto", choices=("auto", "builtin", "facexlib"), help="[%(default)s]")

    demo = commands.add_parser("demo", help="invert and edit the bundled photos")
    demo.set_defaults(run=_demo)
    demo.add_argument("--output", default="demo", metavar="DIR", help="[%(default)s]")
    demo.add_argument("--device", default="auto", help="[%(default)s]")

    directions = commands.add_parser("directions", help="list what a model can edit")
    directions.set_defaults(run=_directions)
    directions.add_argument("--model", default="faces64", help="[%(default)s]")

    models = commands.add_parser("models", help="list the models: built in, cached, and the known ones of the field")
    models.set_defaults(run=_models)
    models.add_argument("--cache-dir", metavar="DIR", help="[the Hub's own cache]")

    convert = commands.add_parser("convert", help="a checkpoint of the field into a model folder, or a model back")
    convert.set_defaults(run=_convert)
    convert.add_argument(
        "source", metavar="SRC", help="file, name that `models` lists, hf://organisation/repository/file, or https://"
    )
    convert.add_argument("destination", metavar="DST", help="folder of the model that is written")
    convert.add_argument("--to", choices=LAYOUTS, help="SRC is a model: write DST, a .pt file of this layout")
    convert.add_argument("--encoder", choices=("psp", "e4e"), help="whose encoder it is, if the file does not say")
    convert.add_argument("--name", default="direction", help="name for an imported direction [%(default)s]")
    convert.add_argument("--crop-scale", type=float, default=1.0, help="of the faces, to FFHQ's crop [%(default)s]")
    convert.add_argument("--sha256", help="of the file, to be checked; needed for https")

    push = commands.add_parser("push", help="upload the folder of a model to the Hugging Face Hub")
    push.set_defaults(run=_push)
    push.add_argument("folder", metavar="FOLDER", help="a model, as `save_pretrained` and `train` write it")
    push.add_argument("repo_id", metavar="REPO", help="organisation/repository; made if it is not there")
    push.add_argument("--private", action="store_true", default=None, help="if it is made")
    push.add_argument("--license", metavar="ID", help="of the weights, for the card, such as cc-by-nc-4.0")
    push.add_argument("--message", metavar="TEXT", help="of the commit")
    push.add_argument("--revision", metavar="BRANCH", help="[the default branch]")
    push.add_argument("--overwrite-card", action="store_true", help="also replace a README.md that is there")

    train = commands.add_parser("train", help="train an encoder or a generator, or go on with a run")
    train.set_defaults(run=_train)
    train.add_argument("--config", metavar="FILE", help="YAML with `method` and the fields of its config")
    train.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="such as data=folder optimizer.lr=1e-4")

    evaluate = commands.add_parser("evaluate", help="compare methods on a folder of images")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("data", metavar="DATA_FOLDER", help="aligned face crops, or photos with --align")
    evaluate.add_argument("--model", default="faces64", help="[%(default)s]")
    evaluate.add_argument(
        "--methods",
        nargs="+",
        default=["w", "e4e", "psp", "pti"],
        metavar="NAME",
        help="methods to compare: w, w_plus, e4e, psp, restyle, pti, pti-e4e, pti-psp [w e4e psp pti]",
    )
    evaluate.add_argument(
        "--output", default="evaluation", metavar="DIR", help="a stopped run goes on in its folder [%(default)s]"
    )
    evaluate.add_argument("--limit", type=_at_least(1), metavar="N", help="use only the first N images by name")
    evaluate.add_argument(
        "--limit-for",
        nargs="+",
        action="extend",
        default=[],
        type=_limit,
        metavar="METHOD=N",
        help="limit one method, such as pti=50; a second table then compares the images that all methods did",
    )
    evaluate.add_argument(
        "--edits", nargs="*", metavar="NAME", help="edits to measure; no names, no edits [smile, if the model has it]"
    )
    evaluate.add_argument("--align", action="store_true", help="find the face in each photo and cut it out")
    evaluate.add_argument(
        "--resolution", type=_at_least(11), metavar="PX", help="side at which pictures are compared [the model's]"
    )
    evaluate.add_argument(
        "--perceptual", default="alex", choices=PERCEPTUAL_NETWORKS, help="network that measures LPIPS [%(default)s]"
    )
    evaluate.add_argument(
        "--identity",
        default="builtin",
        help="network that compares faces: builtin, an ArcFace's folder, none [builtin]",
    )
    evaluate.add_argument(
        "--batch-size", type=_at_least(1), default=16, metavar="N", help="photos that go through together [%(default)s]"
    )
    evaluate.add_argument("--num-w-steps", type=_at_least(1), metavar="N", help="steps of the projection [450]")
    evaluate.add_argument("--num-tuning-steps", type=_at_least(0), metavar="N", help="PTI: steps of the tuning [350]")
    evaluate.add_argument("--device", default="auto", help="[%(default)s]")
    evaluate.add_argument("--detector", default="auto", choices=("auto", "builtin", "facexlib"), help="[%(default)s]")

    generators = commands.add_parser("evaluate-generator", help="compare what generators draw with a folder of images")
    generators.set_defaults(run=_evaluate_generator)
    generators.add_argument(
        "--data", required=True, metavar="FOLDER", help="aligned face crops: the training data, or held-out pictures"
    )
    generators.add_argument(
        "--models",
        nargs="+",
        default=["faces64"],
        metavar="MODEL",
        help="built-in models, folders, or organisation/repository; NAME=MODEL gives a name [faces64]",
    )
    generators.add_argument("--output", default="generators", metavar="DIR", help="[%(default)s]")
    generators.add_argument(
        "--num-samples", type=_at_least(8), default=10_000, metavar="N", help="samples to draw [%(default)s]"
    )
    generators.add_argument(
        "--num-paths",
        type=_at_least(0),
        default=2_000,
        metavar="N",
        help="samples for the path length; 0 leaves it out [%(default)s]",
    )
    generators.add_argument("--limit", type=_at_least(1), metavar="N", help="use only the first N images by name")
    generators.add_argument(
        "--truncation-psi", type=float, default=1.0, metavar="PSI", help="truncation of the samples [%(default)s]"
    )
    generators.add_argument("--seed", type=_at_least(0), default=0, help="seed of all draws [%(default)s]")
    generators.add_argument(
        "--perceptual", default="alex", choices=PERCEPTUAL_NETWORKS, help="network for features and PPL [%(default)s]"
    )
    generators.add_argument(
        "--identity", default="builtin", help="network for face features: builtin, an ArcFace's folder, none [builtin]"
    )
    generators.add_argument("--fid", action="store_true", help="add FID and KID; needs torch-fidelity and its weights")
    generators.add_argument(
        "--batch-size",
        type=_at_least(1),
        default=32,
        metavar="N",
        help="pictures that go through together [%(default)s]",
    )
    generators.add_argument("--device", default="auto", help="[%(default)s]")

    app = commands.add_parser("app", help="start the web app")
    app.set_defaults(run=_app)
    app.add_argument("--model", default="faces64", help="[%(default)s]")
    app.add_argument("--host", default="127.0.0.1", help="[%(default)s]")
    app.add_argument("--port", type=int, help="[the first free one from 7860]")
    app.add_argument("--share", action="store_true", help="also a public link")
    app.add_argument("--device", default="auto", help="[%(default)s]")
    app.add_argument(
        "--any-model",
        dest="open_choice",
        action="store_true",
        help="visitors may load models of the Hub and upload folders",
    )
    app.add_argument(
        "--allow-host",
        dest="allowed_hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which a proxy on this machine reaches the app; repeatable [localhost only]",
    )
    app.add_argument(
        "--tuning-slots", type=_at_least(1), default=1, metavar="N", help="PTI runs at a time [%(default)s]"
    )
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not below `least`."""

    def number(text: str) -> int:
        if not text.lstrip("+-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return int(text)

    return number


def _edit(text: str) -> tuple[str, float]:
    name, equals, strength = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, float(strength)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=STRENGTH, such as smile=2") from None


def _limit(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    if not (name and equals and number.isdigit() and int(number) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not METHOD=N, such as pti=50")
    return name, int(number)


def _invert(args: argparse.Namespace) -> int:
    pipeline = METHODS[args.method].from_pretrained(
        args.model, device=args.device, detector=args.detector, perceptual=args.perceptual
    )
    names = ("face", "align", "preset", "num_w_steps", "num_tuning_steps", "pivot", "seed")
    options: dict[str, Any] = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    options["progress"] = True
    records = []
    for record, _ in invert_photos(pipeline, args.photos, args.output, edits=dict(args.edit), options=options):
        print(_line(record), flush=True)
        records.append(record)
    return _finish(records, args.output)


def _demo(args: argparse.Namespace) -> int:
    records = run_demo(args.output, device=args.device)
    for record in records:
        print(_line(record))
    return _finish(records, f"{args.output}/sheet.png and the folders beside it")


def _line(record: Record) -> str:
    if record.error is not None:
        return f"{record.photo}: failed: {record.error}"
    faces, index = record.report["face_count"], record.report["face_index"]
    which = f", face {index} of {faces} (0 is the largest)" if faces > 1 else ""
    return f"{record.photo}: {record.folder}{which}, mean squared error {record.report['l2']:.4f}"


def _finish(records: Sequence[Record], where: object) -> int:
    failed = sum(record.error is not None for record in records)
    print(f"{len(records) - failed} of {len(records)} photos done. Look at {where}.")
    return 1 if failed else 0


def _directions(args: argparse.Namespace) -> int:
    folder = hub.find_model(args.model) / "directions"
    for direction in load_directions(folder).values() if folder.is_dir() else []:
        low, high = direction.strength_range or (float("nan"), float("nan"))
        print(f"{direction.name:10} {low:+.1f} to {high:+.1f}  {direction.description}")
    return 0


def _models(args: argparse.Namespace) -> int:
    print(describe_models(args.cache_dir))
    return 0


def _convert(args: argparse.Namespace) -> int:
    if args.to is not None:
        print(write_official(args.source, args.destination, layout=args.to))
        return 0
    path = find_file(args.source, sha256=args.sha256)
    file = with_directions(read_single_file(path, encoder=args.encoder), path, entry=known_entry(args.source))
    for note in file.notes:
        print(f"Note: {note}")
    print(f"{file.kind}: {write_model(file, Path(args.destination), name=args.name, crop_scale=args.crop_scale)}")
    return 0


def _push(args: argparse.Namespace) -> int:
    options = {"private": args.private, "commit_message": args.message, "revision": args.revision}
    card = {"license": args.license, "overwrite_card": args.overwrite_card}
    print(push_folder(Path(args.folder), args.repo_id, **options, **card))
    return 0


def _train(args: argparse.Namespace) -> int:
    from stylegan_inversion.training.methods import load_config

    config = load_config(args.config, args.overrides)
    from stylegan_inversion.training.trainer import train

    logging.getLogger("stylegan_inversion").setLevel(logging.INFO)
    result = train(config)
    if result.interrupted:
        print(f"Stopped after step {result.step}; the same command goes on from there.")
        return 130
    models = "last/" if result.best is None else "best/ and last/"
    if result.main:
        print(f"{result.step} steps done. Look at {models} in {config.output}.")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from stylegan_inversion.evaluation.benchmark import evaluate

    results, table = evaluate(
        args.data,
        args.output,
        model=args.model,
        methods=args.methods,
        limit=args.limit,
        limits=dict(args.limit_for),
        edits=args.edits,
        align=args.align,
        resolution=args.resolution,
        perceptual=args.perceptual,
        identity=None if args.identity == "none" else args.identity,
        batch_size=args.batch_size,
        options={"num_w_steps": args.num_w_steps, "num_tuning_steps": args.num_tuning_steps},
        device=args.device,
        detector=args.detector,
        progress=True,
    )
    print(f"{table}\nEverything is in {args.output}.")
    return 1 if any(entry["failed"] for entry in results["all"]["methods"].values()) else 0


def _evaluate_generator(args: argparse.Namespace) -> int:
    from stylegan_inversion.evaluation.generators import evaluate_generators

    _, table = evaluate_generators(
        args.models,
        args.data,
        args.output,
        num_samples=args.num_samples,
        truncation_psi=args.truncation_psi,
        seed=args.seed,
        batch_size=args.batch_size,
        perceptual=args.perceptual,
        identity=None if args.identity == "none" else args.identity,
        fid=args.fid,
        num_paths=args.num_paths,
        limit=args.limit,
        device=args.device,
        progress=True,
    )
    print(f"{table}\nEverything is in {args.output}.")
    return 0


def _app(args: argparse.Namespace) -> int:
    from stylegan_inversion.webapp import launch

    launch(
        args.model,
        host=args.host,
        port=args.port,
        share=args.share,
        device=args.device,
        open_choice=args.open_choice,
        allowed_hosts=args.allowed_hosts,
        tuning_slots=args.tuning_slots,
    )
    return 0
