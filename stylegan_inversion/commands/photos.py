"""The main job on the command line: photos in, edited photos out; the demo and the app."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylegan_inversion.commands.arguments import add_detector, add_device, add_model, at_least, grid, layer_list, pair
from stylegan_inversion.errors import FaceNotFoundError, InvalidImageError

if TYPE_CHECKING:
    from stylegan_inversion.batch import Record

FOLDER_OPTIONS = ("save", "batch_size", "workers", "retry_errors", "ray")
"""Options of `invert` that are for a folder."""


def add_invert(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.losses.lpips import PERCEPTUAL_NETWORKS
    from stylegan_inversion.pipelines.methods import DEFAULT_METHOD, METHODS
    from stylegan_inversion.pipelines.pti import PIVOTS, PRESETS

    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="photos to invert, or one folder of them")
    add_model(parser)
    add("--method", default=DEFAULT_METHOD, choices=METHODS, help="how to invert [%(default)s]")
    edits = "direction and strength, such as smile=2; `stylegan-inversion directions` lists them"
    edit = pair(float, "NAME=STRENGTH, such as smile=2")
    add("--edit", nargs="+", action="extend", default=[], type=edit, metavar="NAME=STRENGTH", help=edits)
    mappers = "file of a mapper of StyleCLIP, which becomes a direction of this name for each photo: afro=afro.pt"
    mapper = pair(str, "NAME=FILE, such as afro=afro.pt")
    add("--mapper", nargs="+", action="extend", default=[], type=mapper, metavar="NAME=FILE", help=mappers)
    add("--output", default="outputs", metavar="DIR", help="folder to write to [%(default)s]")
    add("--face", type=at_least(0), help="which face of the photo, by size; 0 is the largest [0]")
    add("--no-align", dest="align", action="store_false", default=None, help="take the photos as aligned crops")
    add("--preset", choices=PRESETS, help="PTI: how much time to take; the options below win [the model's own]")
    add("--num-w-steps", type=at_least(1), metavar="N", help="PTI: steps of the projection [450]")
    add("--num-tuning-steps", type=at_least(0), metavar="N", help="PTI: steps of the tuning at most [350]")
    add("--pivot", choices=PIVOTS, help="PTI: space of the pivot, or the encoder that gives it [w]")
    shared = "PTI: tune one generator for all photos, such as those of one person; it is saved once"
    add("--together", action="store_true", default=None, help=shared)
    add("--num-iterations", type=at_least(1), metavar="N", help="ReStyle: passes of the encoder [the model's own]")
    add("--perceptual", choices=PERCEPTUAL_NETWORKS, help="PTI: perceptual network [the model's own]")
    add("--seed", type=at_least(0), help="PTI: seed of the random draws [0]")
    kinds = "folder: pictures to write too, some of crop,inverted,photo [none]"
    add("--save", type=lambda text: text.split(","), metavar="KINDS", help=kinds)
    add("--batch-size", type=at_least(1), metavar="N", help="folder: faces that go through an encoder together [16]")
    add("--workers", type=at_least(0), metavar="N", help="folder: processes that find faces [one a core]")
    again = "folder: try the photos with an error again"
    add("--retry-errors", action="store_true", default=None, help=again)
    cluster = "folder: run on the Ray cluster at this address, or on one that is started here"
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help=cluster)
    add_device(parser)
    add_detector(parser)


def invert(
    photos: list[str],
    edit: list[tuple[str, float]],
    output: str,
    *,
    mapper: list[tuple[str, str]],
    model: str,
    method: str,
    perceptual: str | None,
    device: str,
    detector: Any,
    **options: Any,
) -> int:
    from stylegan_inversion.batch import invert_folder, invert_photos
    from stylegan_inversion.pipelines.methods import METHODS

    folders = [photo for photo in photos if Path(photo).is_dir()]
    if folders and (len(photos) > 1 or edit):
        many = f"{folders[0]} is a folder: give it alone, without other photos."
        raise ValueError(many if len(photos) > 1 else "A folder is edited later: stylegan-inversion edit-folder.")
    if unused := sorted({name for name, _ in mapper} - {name for name, _ in edit}):
        raise ValueError(f"--mapper {unused[0]} does nothing by itself: add --edit {unused[0]}=0.1.")
    if options["together"] and len(photos) == 1 and not folders:
        raise ValueError("--together tunes one generator for several photos: give two or more, or leave it out.")
    cls = METHODS[method].pipeline
    pipeline = cls.from_pretrained(model, device=device, detector=detector, perceptual=perceptual)
    given = {name: value for name, value in options.items() if value is not None}
    of_folder = {name: given.pop(name) for name in FOLDER_OPTIONS if name in given}
    if folders:
        done = invert_folder(pipeline, folders[0], output, options=given, progress=True, **of_folder)
        print(f"{done.photos} photos: {done.faces} faces and {done.errors} errors; {done.inverted} faces are new.")
        print(f"Look at {output}/faces-*.parquet.")
        return 1 if done.errors else 0
    if of_folder:
        raise ValueError(f"--{next(iter(of_folder)).replace('_', '-')} is for a folder of photos.")
    given |= {"progress": True}
    results = invert_photos(pipeline, photos, output, edits=dict(edit), mappers=dict(mapper), options=given)
    return report((record for record, _ in results), output)


def add_edit_folder(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", help="what `invert FOLDER --output DIR` wrote")
    edits = "direction and strengths: smile=2, or smile=-4:4:9 for 9 from -4 to 4; several give all combinations"
    add("--edit", nargs="+", action="extend", required=True, type=grid, metavar="NAME=LOW:HIGH:STEPS", help=edits)
    add("--output", default="edits", metavar="DIR", help="folder to write to [%(default)s]")
    add("--paste", action="store_true", help="draw the whole photos, with the edited faces in place")
    add_device(parser)


def edit_folder(folder: str, edit: list[tuple[str, list[float]]], output: str, *, paste: bool, device: str) -> int:
    from stylegan_inversion.batch import edit_folder, load_pipeline

    pipeline = load_pipeline(folder, device=device)
    count = edit_folder(pipeline, folder, output, edits=dict(edit), paste=paste, progress=True)
    print(f"{count} pictures. {output}/edits.csv lists them.")
    return 0


def add_translate(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.pipelines.methods import METHODS

    add, methods = parser.add_argument, [name for name, method in METHODS.items() if method.encoder]
    add("pictures", nargs="+", metavar="PICTURE", help="sketches, label maps or photos, as the model reads")
    add_model(parser)
    add("--method", default="psp", choices=methods, help="whose encoder the model holds [%(default)s]")
    add("--num-outputs", type=at_least(1), default=1, metavar="N", help="pictures to draw of each [%(default)s]")
    layers = "layers that get a random w, such as 8-17 [none for one output, or else those of pSp: 8-17 at 1024 px]"
    add("--latent-mask", type=layer_list, metavar="LAYERS", help=layers)
    add("--mix-alpha", type=float, metavar="SHARE", help="weight of the random w in these layers, 0 to 1 [1]")
    factor = "make photos so many times smaller first, for super-resolution, such as 8 [they are as small as they are]"
    add("--resize-factor", type=float, metavar="FACTOR", help=factor)
    finds = "find the face of a photo and cut it out [for frontalization and toonify]"
    add("--align", action=argparse.BooleanOptionalAction, help=finds)
    add("--seed", type=at_least(0), default=0, help="seed of the random w [%(default)s]")
    add("--output", default="translated", metavar="DIR", help="folder to write to [%(default)s]")
    add_device(parser)
    add_detector(parser)


def translate(
    pictures: list[str], output: str, *, model: str, method: str, device: str, detector: Any, **options: Any
) -> int:
    from stylegan_inversion.pipelines.methods import METHODS
    from stylegan_inversion.pipelines.receipts import save_picture
    from stylegan_inversion.pipelines.rows import reason
    from stylegan_inversion.preprocessing.image import save_image
    from stylegan_inversion.preprocessing.sources import LabelSource

    folders = {Path(output) / Path(picture).stem: picture for picture in pictures}
    if len(folders) < len(pictures):
        raise ValueError("Two pictures have the same name, and so the same folder: translate them one by one.")
    pipeline: Any = METHODS[method].pipeline.from_pretrained(model, device=device, detector=detector)
    failed = 0
    for folder, picture in folders.items():
        try:
            out = pipeline.translate(picture, **options)
        except (InvalidImageError, FaceNotFoundError, OSError) as e:  # one picture must not stop the others
            print(f"{picture}: failed: {reason(e)}", flush=True)
            failed += 1
            continue
        out.save(folder / "inversion")
        shown = out.crops[0].image
        labels = isinstance(pipeline.source, LabelSource)
        save_image(pipeline.source.with_legend(shown) if labels else shown, folder / "input.png")
        for k, each in enumerate(out, 1):
            save_picture(each, folder / f"output_{k}.png", picture="drawn")
        print(f"{picture}: {len(out)} drawn, in {folder}", flush=True)
    return 1 if failed else 0


def add_redraw(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.pipelines.receipts import MAX_STEPS

    add = parser.add_argument
    add("source", metavar="PICTURE", help="a picture that this package or its app saved, or its receipt as JSON")
    add("photo", metavar="PHOTO", help="the photo that it was made from")
    add("--output", default="redrawn.png", metavar="FILE", help="file to write to [%(default)s]")
    add("--model", help="the receipt's model, if that is a folder or elsewhere [the one that the receipt names]")
    fetch = "fetch the model that the receipt names: whoever wrote it chose the name"
    add("--allow-download", action="store_true", help=fetch)
    most = "most steps of a stage of PTI that the receipt may ask for [%(default)s]"
    add("--max-steps", type=at_least(1), default=MAX_STEPS, metavar="N", help=most)
    add("--device", help="cpu, cuda, mps, or the best there is by auto [the receipt's, or else the CPU]")


def redraw(source: str, photo: str, output: str, **options: Any) -> int:
    from PIL import Image

    from stylegan_inversion.pipelines.receipts import FORMATS, mark, read_receipt, redraw
    from stylegan_inversion.preprocessing.image import save_image

    kind = Image.registered_extensions().get(Path(output).suffix.lower(), "")
    if kind not in FORMATS:
        raise ValueError(f"--output must be a .png, .jpg or .webp, got {output!r}.")
    done = redraw(source, photo, progress=True, **options)
    xmp = mark("edited", read_receipt(source) if done.same else None)
    save_image(done.image, Path(output), xmp=xmp, **FORMATS[kind])
    print(f"{output}: {done.words}")
    return 0 if done.same else 1


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="demo", metavar="DIR", help="folder to write to [%(default)s]")
    add_device(parser)


def demo(output: str, device: str) -> int:
    from stylegan_inversion.demo import run_demo

    return report(run_demo(output, device=device), f"{output}/sheet.png and the folders beside it")


def report(records: Iterable["Record"], where: str) -> int:
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
    print(f"{sum(done)} of {len(done)} photos done." + (f" Look at {where}." if any(done) else ""))
    return 0 if all(done) else 1


def add_app(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = "as in `invert` [a full-size one that is in the cache, if there is a GPU, or else faces64]"
    add("--model", help=names)
    add("--host", default="127.0.0.1", help="address to listen on [%(default)s]")
    add("--port", type=int, help="port to listen on [the first free one from 7860]")
    add("--share", action="store_true", help="also make a public link")
    add_device(parser)
    add(
        "--any-model",
        dest="open_choice",
        action=argparse.BooleanOptionalAction,
        help="let visitors load models of the Hub [only the full-size one, and on this machine]",
    )
    proxy = "name by which a proxy on this machine reaches the app; repeatable [localhost only]"
    add("--allow-host", dest="allowed_hosts", action="append", default=[], metavar="NAME", help=proxy)
    add("--tuning-slots", type=at_least(1), default=1, metavar="N", help="PTI runs at a time [%(default)s]")


def app(model: str, **options: Any) -> int:
    from stylegan_inversion.webapp import launch

    launch(model, **options)
    return 0
