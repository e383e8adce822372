"""Models on the command line: listed, converted, published."""

import argparse
from pathlib import Path
from typing import Any


def directions(model: str) -> int:
    from stylegan_inversion.checkpoints.find import find_folder
    from stylegan_inversion.editing.directions import load_directions

    folder = find_folder(model) / "directions"
    for direction in load_directions(folder).values() if folder.is_dir() else []:
        low, high = direction.strength_range or (float("nan"), float("nan"))
        print(f"{direction.name:10} {low:+.1f} to {high:+.1f}  {direction.description}")
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
    faces = False if whole_photos else None
    domain = file.domain.changed({"has_faces": faces, "crop_scale": crop_scale, "height": height})
    print(f"{file.kind}: {write_model(file, Path(destination), name=name, domain=domain)}")
    return 0


def add_push(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="a model, as `save_pretrained` and `train` write it")
    add("repo_id", metavar="REPO", help="organisation/repository; created if it is not there")
    add("--private", action="store_true", default=None, help="create the repository as private")
    add("--license", metavar="ID", help="licence of the weights for the card, such as cc-by-nc-4.0")
    add("--message", dest="commit_message", metavar="TEXT", help="commit message")
    add("--revision", metavar="BRANCH", help="branch to push to [the default branch]")
    add("--overwrite-card", action="store_true", help="also replace a README.md that is there")


def push(folder: str, repo_id: str, **options: Any) -> int:
    from stylegan_inversion.pipelines.loading import push_to_hub

    print(push_to_hub(Path(folder), repo_id, **options))
    return 0
