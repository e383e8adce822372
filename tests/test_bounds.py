"""Every number of every config has two bounds, and both hold."""

import dataclasses
import importlib
import math
import pkgutil
from typing import Any, get_args

import pytest

import stylegan_inversion
from stylegan_inversion.bounds import check_bounds, number


def all_configs() -> list[Any]:
    found = {}
    for package in ("models", "losses", "inversion"):
        path = [f"{stylegan_inversion.__path__[0]}/{package}"]
        for module in pkgutil.iter_modules(path, f"stylegan_inversion.{package}."):
            for name, cls in vars(importlib.import_module(module.name)).items():
                if name.endswith("Config") and dataclasses.is_dataclass(cls):
                    found[name] = cls
    return [found[name] for name in sorted(found)]


def make(cls: Any, **values: Any) -> Any:
    required = {field.name: (3,) for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
    return cls(**{**required, **values})


def recheck(config: Any, name: str, value: Any) -> None:
    """Check a config of which a field has another value; the types, which the tests check too, are passed by."""
    object.__setattr__(config, name, value)
    config.__post_init__()


@pytest.mark.parametrize("cls", all_configs(), ids=lambda cls: cls.__name__)
def test_every_number_is_bounded(cls: Any) -> None:
    make(cls)
    numbers = 0
    for field in dataclasses.fields(cls):
        kinds = {field.type, *get_args(field.type)}
        if field.type is bool:
            with pytest.raises(ValueError, match=rf"`{field.name}` must be true or false, got 'yes'\."):
                recheck(make(cls), field.name, "yes")
            continue
        if not kinds & {int, float}:
            continue
        numbers += 1
        low, high, count = field.metadata["bounds"]
        assert math.isfinite(low) and math.isfinite(high), field.name
        step = 1 if isinstance(low, int) else 1e-9
        bad: list[Any] = [low - step, high + 1, 10**30, 10**5000, math.inf, -math.inf, math.nan, "1", [1], {}, True]
        if count is not None:
            length = count if isinstance(count, int) else count[0]
            bad = [(value,) * length for value in bad] + [(), (high,) * 10_000, low, "1" * length]
        elif field.default is not None:
            bad.append(None)
        for value in bad:
            with pytest.raises(ValueError, match=rf"`{field.name}` must be .* in \[.*, .*\], got ") as caught:
                recheck(make(cls), field.name, value)
            assert len(str(caught.value)) < 300
    assert numbers == sum("bounds" in field.metadata for field in dataclasses.fields(cls)) > 0


@dataclasses.dataclass(frozen=True)
class Some:
    whole: int = number(3, 1, 5)
    real: float = number(0.5, 0.0, 1.0)
    maybe: int | None = number(None, 1, 5)
    pair: tuple[int, ...] = number((1, 2), 1, 5, count=2)
    few: tuple[float, ...] = number((1.0,), 0.0, 5.0, count=(1, 3))

    def __post_init__(self) -> None:
        check_bounds(self)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"whole": 6}, r"`whole` must be a whole number in \[1, 5\], got 6\."),
        ({"real": math.nan}, r"`real` must be a number in \[0\.0, 1\.0\], got nan\."),
        ({"pair": (1, 2, 3)}, r"`pair` must be 2 numbers, each a whole number in \[1, 5\], got \(1, 2, 3\)\."),
        ({"few": ()}, r"`few` must be 1 to 3 numbers, each a number in \[0\.0, 5\.0\], got \(\)\."),
        ({"whole": 10**5000}, r"`whole` must be .*, got a number of thousands of digits\."),
        ({"whole": "x" * 1000}, r"`whole` must be .*, got 'x{96}\.\.\.\."),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Some(**change)
