"""Edit directions: a unit vector in W (or one for each layer) or in S, StyleSpace, and moves along it."""

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.storage import CONFIG_NAME, WEIGHTS_NAME, read_config, read_tensors, write_config, write_tensors

NORM_TOLERANCE = 1e-3
MIN_UNIT, MAX_UNIT, MAX_STRENGTH = 1e-6, 1e6, 1e6  # farther than any code, yet all products are finite
ROUNDING = 1e-9  # of sums of style offsets, which are float64: edits that cancel out leave nothing
ENTRY_FIELDS = ("layers", "strength_range", "description")  # of a direction in config.json
OPTIONAL_FIELDS = {"unit": 1.0, "photo_limit": None, "space": "w"}  # written if they are not this


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in latent space along which one attribute changes.

    Args:
        name: What changes, as a Python identifier: edits are keyword arguments (`edit(out, smile=2.0)`).
        vector: Unit norm, shared by all layers; or one vector for each layer, whose norms have a root mean square of 1.
            In S, unit norm, one number for each style. `from_vector` normalises.
        layers: Half-open range `(start, stop)` of the style layers it moves. `None` moves all.
        strength_range: Lowest and highest strength that still looks right, within 1e6 of 0. `None` if it is unknown.
        description: What it does and where it comes from.
        unit: How far strength 1 goes, in [1e-6, 1e6]: it adds `unit * vector`. 1 for directions that are found here,
            whose strengths are distances in W. The norm of the file's vector for the papers' directions, whose
            strengths are factors.
        photo_limit: Strength, either way, beyond which an edit looks wrong once it is put back into its photo, though
            the drawn face may still be right: measured for turns of the head. `None` if there is no such limit.
        space: "w" moves codes in W+. "s" moves the styles of the style layers, what the generator computes from w
            (StyleSpace, Wu et al. 2021, arXiv:2011.12799): it changes the generator that draws, and not the codes.

    Raises:
        ValueError: If the name is not an identifier, the vector is not finite, not one- or two-dimensional or not of
            unit norm (within 1e-3), the unit or the strengths are out of range, a range is empty, or the space is
            unknown or "s" with layers.
    """

    name: str
    vector: Float[Tensor, "*num_ws w_dim"]
    layers: tuple[int, int] | None = None
    strength_range: tuple[float, float] | None = None
    description: str = ""
    unit: float = 1.0
    photo_limit: float | None = None
    space: Literal["w", "s"] = "w"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f'`name` must be a Python identifier such as "smile" or "eyes_open", got {self.name!r}.')
        if self.vector.ndim not in (1, 2) or self.vector.numel() == 0:
            raise ValueError(
                f"`vector` of direction {self.name!r} must have the shape (w_dim,) or (num_ws, w_dim), "
                f"got {tuple(self.vector.shape)}."
            )
        if self.space not in ("w", "s") or (self.space == "s" and (self.vector.ndim > 1 or self.layers is not None)):
            raise ValueError(
                f'`space` of direction {self.name!r} must be "w" or "s", and one in "s" is one row of numbers without '
                f"`layers`, got {self.space!r}."
            )
        if not torch.isfinite(self.vector).all():
            raise ValueError(f"`vector` of direction {self.name!r} must be finite, got NaN or infinity.")
        norm = _norm(self.vector)
        if abs(norm - 1) > NORM_TOLERANCE:
            raise ValueError(
                f"`vector` of direction {self.name!r} must have unit norm (the root mean square over its layers), "
                f"got {norm:.4g}; `Direction.from_vector` normalises."
            )
        if not MIN_UNIT <= self.unit <= MAX_UNIT:  # NaN is not
            raise ValueError(
                f"`unit` of direction {self.name!r} must be a number in [{MIN_UNIT:g}, {MAX_UNIT:g}], got {self.unit}."
            )
        if self.photo_limit is not None and not 0 < self.photo_limit <= MAX_STRENGTH:
            raise ValueError(
                f"`photo_limit` of direction {self.name!r} must be in (0, {MAX_STRENGTH:g}], got {self.photo_limit}."
            )
        if self.layers is not None:
            layer_slice(self.layers, self.vector.shape[0] if self.vector.ndim == 2 else None)
        if self.strength_range is not None:
            low, high = self.strength_range
            if not -MAX_STRENGTH <= low < high <= MAX_STRENGTH:
                raise ValueError(
                    f"`strength_range` of direction {self.name!r} must be (low, high), both in [{-MAX_STRENGTH:g}, "
                    f"{MAX_STRENGTH:g}] and with low < high, got {self.strength_range}."
                )

    @classmethod
    def from_vector(
        cls,
        name: str,
        vector: Float[Tensor, " w_dim"] | Float[Tensor, "num_ws w_dim"],
        *,
        layers: tuple[int, int] | None = None,
        strength_range: tuple[float, float] | None = None,
        description: str = "",
        unit: float | None = 1.0,
        space: Literal["w", "s"] = "w",
    ) -> "Direction":
        """Make a direction from a vector of any length but zero: it is divided by its norm.

        The arguments are those of `Direction`. `unit=None` takes the norm of `vector`, so that strength 1 adds `vector`
        unchanged. The norm of one vector for each layer is the root mean square of the layers' norms, so the
        proportions between the layers stay.
        """
        norm = _norm(vector)
        if norm == 0:
            raise ValueError(f"`vector` of direction {name!r} must not be zero.")
        unit = norm if unit is None else unit
        return cls(name, vector / norm, layers, strength_range, description, unit, space=space)

    @property
    def step(self) -> Float[Tensor, "*num_ws w_dim"]:
        """The change of a code, or of the styles, at strength 1: `unit * vector`."""
        return self.unit * self.vector

    def apply(
        self,
        w_plus: Float[Tensor, "batch num_ws w_dim"],
        strength: float | Float[Tensor, " _"],
        *,
        layers: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch num_ws w_dim"]:
        """Move along the direction: `w_plus + strength * unit * vector` in the chosen layers. In S, codes stay.

        Args:
            w_plus: Style codes in W+. Not changed.
            strength: How far, in the direction's unit, for all samples or (batch,). Negative goes back.
            layers: Half-open range `(start, stop)` of style layers to move. `None` takes the direction's own.

        Returns:
            New codes, on the device and in the dtype of `w_plus`.

        Raises:
            ValueError: If the direction is for another `w_dim` or `num_ws`, the layers are outside [0, num_ws],
                or `strength` is not finite or does not fit the batch.
        """
        batch, num_ws, w_dim = w_plus.shape
        if self.space == "w" and (
            self.vector.shape[-1] != w_dim or (self.vector.ndim == 2 and self.vector.shape[0] != num_ws)
        ):
            raise ValueError(
                f"Direction {self.name!r} of shape {tuple(self.vector.shape)} does not fit `w_plus` of shape "
                f"{tuple(w_plus.shape)}; use the directions that belong to this generator."
            )
        amount = torch.as_tensor(strength, device=w_plus.device, dtype=w_plus.dtype)
        if not torch.isfinite(amount).all():
            raise ValueError(f"`strength` of {self.name!r} must be finite, got {strength}.")
        if amount.ndim == 1 and len(amount) != batch:
            raise ValueError(f"`strength` must be one number or {batch} (one for each sample), got {len(amount)}.")
        if self.space == "s":
            return w_plus.clone()
        chosen = layer_slice(layers or self.layers or (0, num_ws), num_ws)
        step = self.step.to(w_plus).expand(num_ws, w_dim)[chosen]  # (chosen layers, w_dim)
        moved = w_plus.clone()
        moved[:, chosen] += amount.reshape(-1, 1, 1) * step
        return moved

    def restyle(self, generator: Generator, strength: float) -> Generator:
        """Move a generator's styles along the direction: gives a light copy that shares all weights. In W, it stays.

        Raises:
            ValueError: If the direction is for a generator with other styles.
        """
        if self.space == "w":
            return generator
        before = generator.style_offset
        offset = float(strength) * self.unit * self.vector.detach().cpu().double()
        if before is not None and before.shape == offset.shape:
            offset = offset + before
        try:
            return generator.with_styles(offset.where(offset.abs() > ROUNDING, 0))
        except ValueError as error:
            raise ValueError(f"Direction {self.name!r} does not fit this generator at {strength:g}: {error}") from error

    def to(self, device: str | torch.device) -> "Direction":
        """Copy the direction to another device."""
        return replace(self, vector=self.vector.to(device))


def _norm(vector: Tensor) -> float:
    """Compute the norm of a vector, or the root mean square of the norms of one for each layer."""
    return float(vector.detach().cpu().double().square().sum(dim=-1).mean().sqrt())


def both_ways(reach: float) -> tuple[float, float]:
    """Make a range that goes equally far both ways, in two digits."""
    end = float(f"{reach:.2g}")
    return -end, end


def layer_slice(layers: tuple[int, int], num_ws: int | None = None) -> slice:
    """Check a half-open range of style layers, in [0, num_ws] if that is known, and turn it into a slice."""
    start, stop = layers
    if not 0 <= start < stop or (num_ws is not None and stop > num_ws):
        end = "num_ws" if num_ws is None else num_ws
        raise ValueError(f"`layers` must be (start, stop) with 0 <= start < stop <= {end}, got ({start}, {stop}).")
    return slice(start, stop)


def apply_directions(
    w_plus: Float[Tensor, "batch num_ws w_dim"],
    directions: Mapping[str, Direction],
    *,
    strengths: Mapping[str, float],
) -> Float[Tensor, "batch num_ws w_dim"]:
    """Apply several edits at once. The moves add up, so their order does not matter.

    Args:
        w_plus: Style codes in W+. Not changed.
        directions: All known directions, by name.
        strengths: How far to go along each, in its unit.

    Raises:
        ValueError: If a name in `strengths` is not in `directions`, or for the reasons of `Direction.apply`.
    """
    for name in strengths:
        if name not in directions:
            close = difflib.get_close_matches(name, directions, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            known = ", ".join(sorted(directions)) or "none"
            raise ValueError(f"There is no direction {name!r}.{hint} Known directions: {known}.")
    moved = w_plus.clone()
    for name, strength in strengths.items():
        moved = directions[name].apply(moved, strength)
    return moved


def restyle_generators(
    generators: Sequence[Generator], directions: Mapping[str, Direction], *, strengths: Mapping[str, float]
) -> list[Generator]:
    """Apply the edits in S among several, as `apply_directions` does those in W, whose checks come first.

    Generators that are the same stay the same.
    """
    moves = [(directions[name], strength) for name, strength in strengths.items()]
    restyled = {
        generator: functools.reduce(lambda moved, move: move[0].restyle(moved, move[1]), moves, generator)
        for generator in generators
    }
    return [restyled[generator] for generator in generators]


def save_directions(directions: Mapping[str, Direction], folder: Path) -> None:
    """Write `folder/config.json` (ranges and descriptions) and `folder/model.safetensors` (vectors in float32).

    Each key must be the name of its direction.
    """
    for key, direction in directions.items():
        if key != direction.name:
            raise ValueError(f"The key {key!r} must be the name of its direction, which is {direction.name!r}.")
    # clone: safetensors refuses tensors that share memory, such as rows of one matrix
    write_tensors({name: each.vector.float().clone() for name, each in directions.items()}, folder / WEIGHTS_NAME)
    entries = {name: {field: getattr(each, field) for field in ENTRY_FIELDS} for name, each in directions.items()}
    for name, direction in directions.items():
        given = {field: getattr(direction, field) for field in OPTIONAL_FIELDS}
        entries[name] |= {field: value for field, value in given.items() if value != OPTIONAL_FIELDS[field]}
    write_config({"directions": entries}, folder)


def load_directions(folder: Path) -> dict[str, Direction]:
    """Read what `save_directions` wrote: the directions by name, in the order they were saved, float32 on the CPU.

    Raises:
        CheckpointError: If a file is missing or damaged, the two do not name the same directions, or one is not valid.
    """
    entries = read_config(folder).get("directions")
    if not isinstance(entries, dict):
        raise CheckpointError(f'{folder / CONFIG_NAME} must hold {{"directions": {{NAME: ...}}}}.')
    vectors = read_tensors(folder / WEIGHTS_NAME)
    if set(entries) != set(vectors):
        raise CheckpointError(
            f"{folder}: {CONFIG_NAME} names the directions {sorted(entries)}, {WEIGHTS_NAME} holds {sorted(vectors)}."
        )
    directions = {}
    for name, entry in entries.items():
        try:
            if not isinstance(entry, dict) or set(entry) - set(OPTIONAL_FIELDS) != set(ENTRY_FIELDS):
                raise ValueError(f"its entry must have the keys {list(ENTRY_FIELDS)}")
            directions[name] = Direction(
                name,
                vectors[name].float(),
                layers=_read_pair(entry["layers"], int),
                strength_range=_read_pair(entry["strength_range"], float),
                description=str(entry["description"]),
                unit=float(entry.get("unit", 1.0)),
                photo_limit=None if (limit := entry.get("photo_limit")) is None else float(limit),
                space=entry.get("space", "w"),
            )
        except (ValueError, TypeError, OverflowError) as e:
            raise CheckpointError(f"The direction {name!r} in {folder} is not valid: {e}") from e
    return directions


def _read_pair(value: Any, kind: type) -> Any:
    """Turn `null` into None and `[a, b]` into a tuple of numbers."""
    if value is None:
        return None
    first, second = value
    return kind(first), kind(second)
