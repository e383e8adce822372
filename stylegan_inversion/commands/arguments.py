"""Options that several subcommands have, and the types of their values."""

import argparse
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def at_least(least: int) -> Callable[[str], int]:
    """Make the type of a whole number that is not below `least`."""

    def number(text: str) -> int:
        if not text.lstrip("+-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return int(text)

    return number


def pair(kind: Callable[[str], T], what: str) -> Callable[[str], tuple[str, T]]:
    """Make the type of NAME=VALUE."""

    def pair(text: str) -> tuple[str, T]:
        name, _, value = text.partition("=")
        with suppress(ValueError, argparse.ArgumentTypeError):
            if name and value:
                return name, kind(value)
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return pair


def grid(text: str) -> tuple[str, list[float]]:
    """Read NAME=STRENGTH or NAME=LOW:HIGH:STEPS."""
    name, _, numbers = text.partition("=")
    with suppress(ValueError):
        low, *more = numbers.split(":")
        high, steps = more or (low, "1")
        if name and int(steps) >= 1 and (more == [] or int(steps) >= 2):
            step = (float(high) - float(low)) / max(1, int(steps) - 1)
            return name, [round(float(low) + k * step, 6) for k in range(int(steps))]
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=STRENGTH or NAME=LOW:HIGH:STEPS, such as smile=-4:4:9")


def layer_list(text: str) -> list[int]:
    """Read layers: 8,9 or 8-17."""
    layers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of layers, such as 8-17 or 8,9,10")
        layers += range(int(first), int(last or first) + 1)
    return layers


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    names = "built-in model, folder, name that `models` lists, or organisation/repository [%(default)s]"
    parser.add_argument("--model", default="faces64", help=names)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, or the best there is [%(default)s]")


def add_detector(parser: argparse.ArgumentParser) -> None:
    """Add `--detector`."""
    choices = ("auto", "builtin", "facexlib")
    parser.add_argument("--detector", default="auto", choices=choices, help="what finds faces [%(default)s]")
