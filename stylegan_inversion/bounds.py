"""Numbers of a config, each with a lowest and a highest value: checked in one place, before a network is built.

A `config.json` may come from anyone. A config derives from `BoundedConfig` and declares its fields as
`units: tuple[int, ...] = number((3, 4, 14, 3), 1, 100, count=4)`.
"""

import dataclasses
from numbers import Integral, Real
from typing import Any


def number(default: Any, low: float, high: float, *, count: int | tuple[int, int] | None = None) -> Any:
    """Declare a number, or a tuple of numbers, of a config dataclass.

    Args:
        default: Default of the field. `None` makes the number optional, `dataclasses.MISSING` makes it required.
        low: Lowest value. If both bounds are ints, the number must be whole.
        high: Highest value, finite.
        count: How many numbers a tuple holds, or (least, most). `None` declares a single number.
    """
    return dataclasses.field(default=default, metadata={"bounds": (low, high, count)})


def plain_number(value: Any) -> int | float:
    """Convert a number of any library, such as NumPy's, to Python's own, which JSON can hold."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{_shorten(value)} is not a number.")


def check_bounds(config: Any) -> None:
    """Check the numbers of a config against the bounds of their fields, and that its bools are bools.

    NumPy's numbers become Python's own.

    Args:
        config: A dataclass instance.

    Raises:
        ValueError: If a value is outside its bounds or of another kind. The message names the field.
    """
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if each.type is bool and not isinstance(value, bool):
            raise ValueError(f"`{each.name}` must be true or false, got {_shorten(value)}.")
        if "bounds" not in each.metadata or (value is None and each.default is None):
            continue
        low, high, count = each.metadata["bounds"]
        kind = Integral if isinstance(low, int) and isinstance(high, int) else Real
        what = f"{'a whole number' if kind is Integral else 'a number'} in [{low}, {high}]"
        values = [value]
        if count is not None:
            least, most = (count, count) if isinstance(count, int) else count
            what = f"{least if least == most else f'{least} to {most}'} numbers, each {what}"
            values = list(value) if isinstance(value, (list, tuple)) and least <= len(value) <= most else [None]
        if not all(isinstance(v, kind) and not isinstance(v, bool) and low <= v <= high for v in values):
            raise ValueError(f"`{each.name}` must be {what}, got {_shorten(value)}.")
        if not all(type(v) in (int, float) for v in values):
            converted = [plain_number(v) for v in values]
            object.__setattr__(config, each.name, converted[0] if count is None else type(value)(converted))


class BoundedConfig:
    """Base of a config dataclass whose numbers are checked when it is made."""

    def __post_init__(self) -> None:
        check_bounds(self)


def _shorten(value: Any) -> str:
    """Describe a value in a message: the `repr` of a huge number or list could fill a screen, or fail."""
    try:
        text = repr(value)
    except ValueError:  # an int of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."
