"""The command line: arguments -> one call per subcommand. Each imports what it needs: `--help` waits for no PyTorch."""

import argparse
import ctypes
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

from stylegan_inversion import __version__
from stylegan_inversion.commands import arguments, models, photos, research
from stylegan_inversion.errors import StyleGANInversionError


def prepare_process() -> None:
    """Choose how memory is taken and how PyTorch's threads wait, unless the user has, before PyTorch is loaded.

    A thread of GNU OpenMP that waits for the others spins for some 60 microseconds before it sleeps, not for several
    milliseconds, in which it would keep a core that the others need. PTI on faces64, 30 + 30 steps, two threads on two
    AVX2 cores, quiet and beside two busy programs (medians): by default 5.8 s and 25 to 60 s, with 3,000 spins 6.6 s
    and 16.6 s, with 1,000 7.8 s and 16.1 s, with 100,000 6.2 s and 28.6 s, with one thread 9.5 s and 15.3 s.
    Large tensors get huge pages on Linux: the first pass over new memory takes a fifth.
    And the process keeps what it has freed, where glibc would give each large tensor back and take it again: on a
    virtual machine, one thread at 1024 px, a picture took 0.79 of the time and its gradient to w 0.61.
    """
    if sys.platform == "linux" and not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # musl has none
        for option, number in (-4, 0), (-1, -1), (-8, 1):  # M_MMAP_MAX, M_TRIM_..., M_ARENA_MAX
            mallopt(option, number)
    if "torch" in sys.modules:
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


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
            return research.train(argv[1:])  # tyro reads its arguments
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


Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[..., int]]
"""What a subcommand does, its options, and its call."""

COMMANDS: dict[str, Command] = {
    "invert": ("invert photos, edit them, put the faces back", photos.add_invert, photos.invert),
    "edit-folder": ("draw edits of an inverted folder", photos.add_edit_folder, photos.edit_folder),
    "translate": ("draw faces of sketches, label maps, small or odd photos", photos.add_translate, photos.translate),
    "redraw": ("make a picture again from its receipt and the photo", photos.add_redraw, photos.redraw),
    "demo": ("invert and edit the bundled photos", photos.add_demo, photos.demo),
    "directions": ("list what a model can edit", arguments.add_model, models.directions),
    "find-directions": (
        "find directions of a model's own, with ranges",
        models.add_find_directions,
        models.find_directions,
    ),
    "models": ("list the models: built in, cached, and the known ones of the field", models.add_models, models.models),
    "convert": ("convert a checkpoint of the field into a model folder, or back", models.add_convert, models.convert),
    "export": ("write a model's e4e as ONNX files, for a browser or another program", models.add_export, models.export),
    "push": ("upload the folder of a model to the Hugging Face Hub", models.add_push, models.push),
    "train": ("train an encoder or a generator, or go on with a run", lambda parser: None, research.train),
    "evaluate": ("compare methods on a folder of images", research.add_evaluate, research.evaluate),
    "evaluate-generator": (
        "compare generators with a folder of images",
        research.add_evaluate_generator,
        research.evaluate_generator,
    ),
    "app": ("start the web app", photos.add_app, photos.app),
}
