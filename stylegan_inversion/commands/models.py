"""Models on the command line: listed, converted, given directions, published."""

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from stylegan_inversion.commands.arguments import add_device, at_least


def directions(model: str) -> int:
    from stylegan_inversion.hub import Access
    from stylegan_inversion.pipelines.loading import read_model

    found = read_model(model, Access(), variant=None).directions
    for direction in found.values():
        limits = direction.strength_range
        reach = "range unknown" if limits is None else f"{limits[0]:+.1f} to {limits[1]:+.1f}"
        print(f"{direction.name:10} {reach}  {direction.description}".rstrip())
    if not found:
        print(f"{model} has no directions: `stylegan-inversion find-directions` finds some.")
    return 0


def add_find_directions(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.editing.text_directions import BETA, CLIP
    from stylegan_inversion.evaluation.attributes import FACE_SCORES, LANDMARK_SCORES

    add = parser.add_argument
    add("model", metavar="MODEL", help="built-in model, folder, name that `models` lists, or organisation/repository")
    copied = "folder of a copy of the model, which gets the directions [MODEL itself, if it is a folder]"
    add("--output", metavar="DIR", help=copied)
    faces = f"scores of the built-in face networks to find directions of: {', '.join(FACE_SCORES)} [these], "
    faces += ", ".join(LANDMARK_SCORES)
    kept = "with --positive they are only kept still; none if the model draws no faces"
    add("--scores", nargs="*", metavar="SCORE", help=f"{faces}; {kept}")
    add("--positive", metavar="DIR", help="pictures that show what a new direction is to bring, such as glasses")
    add("--negative", metavar="DIR", help="pictures that do not show it, and are as alike otherwise as possible")
    texts = ("FROM", "TO")
    add(
        "--text", nargs=2, metavar=texts, help='what there is and what is to be, such as "face" "smiling face", by CLIP'
    )
    add("--name", help="name of that direction: edits are called by it [the words that --text adds]")
    add("--align", action="store_true", help="find the face in these pictures and cut it out")
    spaces = "w: vectors of InterFaceGAN; s: channels of StyleSpace, whose names get an _s [w; --text s]"
    add("--space", choices=("w", "s"), default=None, help=spaces)
    sizes = {
        "--num-samples": (64, 512, "random images that are scored"),
        "--num-points": (16, 640, "images at which the gradients of the scores are taken"),
        "--num-tests": (8, 24, "images that set each range, and as many that check it"),
        "--num-channels": (1, 64, "s: channels that a direction moves at most"),
        "--num-images": (1, 100, "text: random images in which each style is moved, once for a model"),
        "--batch-size": (1, 8, "images that go through together"),
        "--seed": (0, 0, "seed of all images"),
    }
    not_always = ("--num-points", "--num-channels", "--num-images")  # then None says that it is not given
    for option, (least, default, what) in sizes.items():
        value = None if option in not_always else default
        add(option, type=at_least(least), default=value, metavar="N", help=f"{what} [{default}]")
    more = "text: channels of less relevance stay; more channels do more, and change more else"
    add("--beta", type=float, help=f"{more} [{BETA:g}]")
    add("--clip", metavar="NAME", help=f"text: folder or repository of a CLIP of OpenCLIP, as safetensors [{CLIP}]")
    add_device(parser)


def find_directions(
    model: str,
    output: str | None,
    scores: list[str] | None,
    positive: str | None,
    negative: str | None,
    name: str | None,
    *,
    text: list[str] | None,
    align: bool,
    space: Literal["w", "s"] | None,
    beta: float | None,
    clip: str | None,
    num_images: int | None,
    device: str,
    **sizes: Any,
) -> int:
    from stylegan_inversion import PTIPipeline, load_image
    from stylegan_inversion.checkpoints.find import find_folder
    from stylegan_inversion.editing.find_directions import find_directions
    from stylegan_inversion.editing.text_directions import BETA, CLIP, load_clip, measure_relevance, name_of
    from stylegan_inversion.evaluation.attributes import FACE_SCORES, LANDMARK_SCORES, Probe, face_score, write_report
    from stylegan_inversion.losses.lpips import load_perceptual
    from stylegan_inversion.preprocessing.image import list_images

    started = time.monotonic()
    if text is not None:
        if positive is not None or negative is not None or space == "w":
            raise ValueError("--text finds channels of S by itself: leave out --positive, --negative and --space w.")
        name, space = name or name_of(*text), "s"
    elif len({positive is None, negative is None, name is None}) > 1:
        raise ValueError("--positive, --negative and --name belong together: two folders, and what they differ in.")
    fits = text is None
    for option, value, used, where in (
        ("--align", align or None, positive is not None, "--positive"),
        ("--num-points", sizes["num_points"], fits, "a search without --text"),
        ("--num-channels", sizes["num_channels"], fits and space == "s", "--space s without --text"),
        ("--num-images", num_images, not fits, "--text"),
        ("--beta", beta, not fits, "--text"),
        ("--clip", clip, not fits, "--text"),
    ):
        if value is not None and not used:
            raise ValueError(f"{option} is for {where}: leave it out, got {value}.")
    folder = Path(model) if output is None else Path(output)
    if output is None and not folder.is_dir():
        raise ValueError(f"--output is needed: {model} is no folder that directions can be added to.")
    if output is not None and folder.exists():
        raise ValueError(f"{folder} is there already: give another --output, or {folder} itself as the MODEL.")
    pipeline = PTIPipeline.from_pretrained(model, device=device)
    domain = pipeline.domain
    others = "--positive, --negative and --name, or --text"
    if scores and not domain.has_faces:
        raise ValueError(f"--scores are for faces, and {model} draws none: give {others}.")
    scores = list(FACE_SCORES) * domain.has_faces if scores is None else scores
    if positive is None and text is None and not scores:
        raise ValueError(f"There is nothing to find: give --scores, or {others}.")
    parts = [face_score(scores, crop_scale=pipeline.crop_scale, device=pipeline.device)] if scores else []
    if positive is not None and negative is not None and name is not None:
        kinds = [[Path(kind, path) for path in list_images(Path(kind))] for kind in (positive, negative)]
        crops = [[pipeline.align(load_image(path), align=align).image for path in paths] for paths in kinds]
        probe = Probe(load_perceptual(device=pipeline.device), pipeline.generator.config.resolution)
        print(f"{name}: {probe.fit(*crops):.1%} of the pictures held out are told apart (50 % is chance).", flush=True)
        parts.append(lambda x: {name: probe(domain.without_bars(x))})
    descriptions, steps = FACE_SCORES | LANDMARK_SCORES, None
    if text is not None and name is not None:
        known = pipeline.relevance
        if known is not None and clip is None and known.clip != CLIP:  # whoever made the model chose it
            raise ValueError(f"{model} was measured with the CLIP {known.clip!r}: give it, or another one, by --clip.")
        network = load_clip(clip or CLIP, device=pipeline.device)
        change = network.change(*text)
        if known is not None and known.clip == network.name:
            if num_images is not None:
                raise ValueError(f"--num-images is for measuring, which was done for {model}: leave it out.")
        else:
            how: dict[str, Any] = {"batch_size": sizes["batch_size"], "seed": sizes["seed"], "progress": True}
            how |= {} if num_images is None else {"num_images": num_images}
            known = measure_relevance(pipeline.generator, network, name=network.name, **how)
        if output is not None:
            shutil.copytree(find_folder(model), folder)
        known.save(folder / "relevance")  # it took long, and other texts need it too
        beta = BETA if beta is None else beta
        steps = {name: known.step(change, beta=beta)}
        descriptions[name] = f"From {text[0]!r} to {text[1]!r}, by StyleCLIP, beta {beta:g}."
        parts.append(lambda x: {name: network(x) @ change})
    found = find_directions(
        pipeline.generator,
        lambda x: {key: value for part in parts for key, value in part(x).items()},
        names=scores if name is None else [name],
        space=space or "w",
        steps=steps,
        descriptions=descriptions,
        progress=True,
        **sizes,
    )
    if space == "s":
        found = [replace(each, direction=replace(each.direction, name=f"{each.direction.name}_s")) for each in found]
    if output is not None and not folder.exists():
        shutil.copytree(find_folder(model), folder)
    print(write_report(found, pipeline, folder / "directions", seed=sizes["seed"]))
    print(f"{(time.monotonic() - started) / 60:.1f} minutes. Look at {folder / 'directions' / 'directions.png'}.")
    return 0


def add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache-dir", metavar="DIR", help="folder of the downloads [the Hub's own cache]")


def models(cache_dir: str | None) -> int:
    from stylegan_inversion.catalogue import describe_models

    print(describe_models(cache_dir))
    return 0


def add_convert(parser: argparse.ArgumentParser) -> None:
    from stylegan_inversion.checkpoints.export import LAYOUTS
    from stylegan_inversion.models.encoders import ENCODERS
    from stylegan_inversion.preprocessing.sources import PHOTO_TASKS

    add, source = parser.add_argument, "hf://organisation/repository/file, or https://"
    add("source", metavar="SRC", help=f"a file, a name that `models` lists, {source}")
    add("destination", metavar="DST", help="folder of the model that is written")
    add("--to", choices=LAYOUTS, help="convert a model back: SRC is a model, DST a .pt file of this layout")
    add("--encoder", choices=ENCODERS, help="kind of the encoder, if the file does not say it")
    add("--name", default="direction", help="name for an imported direction [%(default)s]")
    add("--crop-scale", type=float, help="side of the face crop relative to FFHQ's [what the file says, or 1]")
    whole = "the model draws no faces, or none that are cut out as FFHQ's: photos are taken whole [what the file says]"
    add("--whole-photos", action="store_true", help=whole)
    bars = "height of its pictures between black bars, relative to their width: cars 0.75 [what the file says, or 1]"
    add("--height", type=float, help=bars)
    add("--task", choices=PHOTO_TASKS, help="what the encoder makes of photos [what the file says, or inversion]")
    add("--sha256", help="expected hash of the file; required for https")


def convert(
    source: str,
    destination: str,
    *,
    to: Any,
    encoder: str | None,
    name: str,
    sha256: str | None,
    whole_photos: bool,
    crop_scale: float | None,
    height: float | None,
    task: str | None,
) -> int:
    from stylegan_inversion.checkpoints.export import write_model, write_official
    from stylegan_inversion.checkpoints.find import find_file, find_folder, with_directions, with_parts
    from stylegan_inversion.checkpoints.recognise import read_single_file

    if to is not None:
        print(write_official(find_folder(source), Path(destination), layout=to))
        return 0
    path = find_file(source, sha256=sha256)
    file = with_directions(with_parts(read_single_file(path, encoder=encoder)), path, source=source)
    file = replace(file, task=task or file.task)
    for note in file.notes:
        print(f"Note: {note}")
    faces = False if whole_photos else None
    domain = file.domain.changed({"has_faces": faces, "crop_scale": crop_scale, "height": height})
    print(f"{file.kind}: {write_model(file, Path(destination), name=name, domain=domain)}")
    return 0


def add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="built-in model, folder, name that `models` lists, or organisation/repository")
    add("--output", metavar="FOLDER", required=True, help="gets the ONNX files and model.json; made if needed")


def export(model: str, output: str) -> int:
    from stylegan_inversion import E4EPipeline

    folder = E4EPipeline.from_pretrained(model).export_onnx(output)
    for file in sorted(folder.iterdir()):
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    return 0


def add_push(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="a model, as `save_pretrained` and `train` write it")
    add("repo_id", metavar="REPO", help="organisation/repository; created if it is not there")
    add("--private", action="store_true", default=None, help="create the repository as private")
    add("--license", metavar="ID", help="licence of the weights for the card, such as cc-by-nc-4.0")
    add("--message", dest="commit_message", metavar="TEXT", help="commit message")
    add("--revision", metavar="BRANCH", help="branch to push to [the default branch]")
    add("--create-pr", action="store_true", help="open a pull request, as is done in a repository of others")
    add("--base-model", metavar="REPO", help="for the card: the repository of the model that this one was made from")
    add("--dataset", dest="datasets", action="append", metavar="REPO", help="for the card: data on the Hub; repeatable")
    add("--overwrite-card", action="store_true", help="also replace a README.md that is there")


def push(folder: str, repo_id: str, *, base_model: str | None, datasets: list[str] | None, **options: Any) -> int:
    from stylegan_inversion.pipelines.loading import push_to_hub

    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder: `save_pretrained` or `stylegan-inversion convert` makes one.")
    print(push_to_hub(Path(folder), repo_id, card={"base_model": base_model, "datasets": datasets}, **options))
    return 0
