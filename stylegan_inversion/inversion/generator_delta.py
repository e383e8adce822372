"""The change that pivotal tuning made to a generator: exact, or of low rank with its error stated.

A tuned generator is its base and a small change. Keeping only the change makes a saved inversion small, and the sha256
of the base's tensors ensures that it is applied to the same base again. Own code.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.models.feature_generator import PHOTO, FeatureGenerator, editor_among
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.storage import plain_name, plain_state_dict, read_header, read_tensors, write_tensors

FORMAT = "generator-delta-1"
DELTAS = "deltas"  # in the output of `batch.invert_folder`
_KINDS = ("value", "difference", "left", "right")  # the last part of a tensor's name


def generator_sha256(generator: nn.Module) -> str:
    """Compute the sha256 over the names, shapes and float32 bytes of a network's tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(plain_state_dict(generator).items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False).reshape(-1).data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class GeneratorDelta:
    """The change from a base generator to a tuned one. `between` makes it, `apply` puts it on the base again.

    Attributes:
        tensors: The changed tensors by name, on the CPU. Each name ends in `.value`, the new tensor; `.difference`, new
            minus old; or `.left` and `.right`, two factors of the difference as a matrix (out, everything else).
        base_sha256: `generator_sha256` of the base.
        errors: By changed tensor, how far the kept change is from the true one: ||kept - true|| / ||true||.
        relative_error: The same over all changed parameters together; 0 if the change is exact. Constant noise, which
            is not learned, counts only if nothing else changed.
    """

    tensors: Mapping[str, Tensor]
    base_sha256: str
    errors: Mapping[str, float]
    relative_error: float

    @classmethod
    @torch.no_grad()
    def between(
        cls,
        base: Generator,
        tuned: Generator,
        *,
        rank: int | None = None,
        energy: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> "GeneratorDelta":
        """Find what changed, in float32. Without options the change is kept exactly.

        Sizes, and how far the inverted picture moves (mean squared, in [-1, 1]), for a photo in faces64, 350 steps, and
        in an untrained generator of 1024 px, 10 steps:

        | | 64 px | 1024 px |
        |---|---|---|
        | exact | 13.2 MB | 113 MB |
        | float16 | 6.6 MB, 4e-10 | 57 MB, 2e-9 |
        | rank 64 | 6.2 MB, 2e-5 | 21 MB, 3e-4 |
        | rank 16, float16 | 0.8 MB, 1e-3 | 2.7 MB, 2e-2 |

        Args:
            base: The generator before.
            tuned: The generator after, of the same sizes.
            rank: Keep the change of each weight matrix (out, in * k * k) as its best approximation of this rank.
                Biases, noise and matrices that would not get smaller are kept whole.
            energy: Instead of `rank`: each matrix takes the lowest rank that keeps this share, in (0, 1], of its
                change's squared norm.
            dtype: Floating-point type to keep the change in, such as `torch.float16`. `None` means float32.

        Raises:
            ValueError: If the sizes differ, an option is out of range, or the change is not finite or too large for
                `dtype`.
        """
        if base.config != tuned.config:
            raise ValueError(f"`tuned` must have the sizes of `base`, {base.config}, got {tuned.config}.")
        if rank is not None and energy is not None:
            raise ValueError(f"Give `rank` or `energy`, not both: got {rank} and {energy}.")
        if rank is not None and rank < 1:
            raise ValueError(f"`rank` must be >= 1, got {rank}.")
        if energy is not None and not 0 < energy <= 1:
            raise ValueError(f"`energy` must be in (0, 1], got {energy}.")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"`dtype` must be a floating-point type such as torch.float16, got {dtype}.")
        exact = rank is None and energy is None and dtype in (None, torch.float32)
        parameters = {plain_name(name) for name, _ in tuned.named_parameters()}
        before, tensors, errors = plain_state_dict(base), {}, {}
        norms: dict[bool, list[float]] = {True: [0.0, 0.0], False: [0.0, 0.0]}  # of parameters, of buffers: lost, true
        for name, tensor in plain_state_dict(tuned).items():
            old, new = before[name].float().cpu(), tensor.float().cpu()
            if torch.equal(old, new):
                continue
            if not torch.isfinite(new).all():
                raise ValueError(f"`tuned` holds NaN or infinity in {name!r}, so its change cannot be kept.")
            if exact:
                tensors[f"{name}.value"], errors[name] = new.clone(), 0.0
                continue
            difference = new - old
            kept = _compress(difference, rank if name in parameters else None, energy if name in parameters else None)
            kept = {kind: part.to(dtype or torch.float32).contiguous() for kind, part in kept.items()}
            if not all(torch.isfinite(part).all() for part in kept.values()):
                raise ValueError(f"`dtype` {dtype} cannot hold the change of {name!r}; take torch.float32.")
            lost = (_restore(kept, difference.shape) - difference).double().square().sum().item()
            true = difference.double().square().sum().item()
            errors[name] = (lost / true) ** 0.5
            norms[name in parameters][0] += lost
            norms[name in parameters][1] += true
            tensors.update({f"{name}.{kind}": part for kind, part in kept.items()})
        lost, true = norms[True] if norms[True][1] else norms[False]
        return cls(tensors, generator_sha256(base), errors, (lost / true) ** 0.5 if true else 0.0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def apply(self, base: Generator) -> Generator:
        """Put the change on a copy of the base, on its device and in its dtype, frozen, in eval mode.

        Raises:
            CheckpointError: If `base` is another generator, or a changed tensor does not fit it.
        """
        found = generator_sha256(base)
        if found != self.base_sha256:
            raise CheckpointError(
                f"This change belongs to the generator with sha256 {self.base_sha256[:12]}..., but got one with "
                f"{found[:12]}...: load the model, and the revision of it, that the inversion was made with."
            )
        tuned = copy.deepcopy(base).eval().requires_grad_(False)
        state = plain_state_dict(tuned)
        for name, parts in self._parts().items():
            if name not in state:
                raise CheckpointError(f"The change holds {name!r}, which the generator does not have.")
            try:
                old = state[name].float().cpu()
                change = _restore(parts, old.shape)
            except RuntimeError as e:
                raise CheckpointError(f"The change of {name!r} does not fit its shape {tuple(old.shape)}: {e}") from e
            state[name].copy_(change if "value" in parts else old + change)
        return tuned

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Convert to tensors and texts by name, for a safetensors file and its header."""
        figures = {"relative_error": repr(self.relative_error), "errors": json.dumps(dict(self.errors))}
        return dict(self.tensors), {"format": FORMAT, "base_sha256": self.base_sha256, **figures}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> "GeneratorDelta":
        """Read what `to_tensors` gave.

        Raises:
            CheckpointError: If it is something else, or damaged.
        """
        if metadata.get("format") != FORMAT or not re.fullmatch(r"[0-9a-f]{64}", metadata.get("base_sha256", "")):
            raise CheckpointError(f"Not a change of a generator: the header must say format {FORMAT} and a sha256.")
        try:
            errors = {str(name): float(error) for name, error in json.loads(metadata["errors"]).items()}
            delta = cls(dict(tensors), metadata["base_sha256"], errors, float(metadata["relative_error"]))
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise CheckpointError(f"The header of the change is damaged: {type(e).__name__}: {e}") from e
        for name, parts in delta._parts().items():
            if sorted(parts) not in (["value"], ["difference"], ["left", "right"]):
                raise CheckpointError(f"The change of {name!r} is incomplete: it holds {sorted(parts)}.")
            if not all(part.is_floating_point() for part in parts.values()):
                raise CheckpointError(f"The change of {name!r} must be floating-point numbers.")
        return delta

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            name, _, kind = key.rpartition(".")
            if kind not in _KINDS:
                raise CheckpointError(f"The change holds {key!r}, which must end in one of {', '.join(_KINDS)}.")
            parts.setdefault(name, {})[kind] = tensor
        return parts


def _compress(difference: Float[Tensor, "..."], rank: int | None, energy: float | None) -> dict[str, Tensor]:
    """Keep the difference whole, or as two factors where that is smaller."""
    if difference.ndim < 2 or (rank is None and energy is None):
        return {"difference": difference}
    matrix = difference.flatten(1).double()
    rows, columns = matrix.shape
    wide = matrix if rows <= columns else matrix.T
    # The singular vectors of a wide matrix are the eigenvectors of its small Gram matrix, much faster than an SVD.
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    if rank is None:
        squares = values.flip(0).clamp(min=0).cumsum(0)
        rank = 1 + int((squares < energy * squares[-1]).sum().clamp(max=len(squares) - 1))
    if rank * (rows + columns) >= rows * columns:
        return {"difference": difference}
    leading = vectors[:, -rank:]
    left, right = leading, leading.T @ wide
    return {"left": left, "right": right} if rows <= columns else {"left": right.T, "right": left.T}


def _restore(parts: Mapping[str, Tensor], shape: torch.Size) -> Float[Tensor, "..."]:
    """Rebuild the kept tensor in float32. A `RuntimeError` says that it does not fit the shape."""
    if "left" in parts:
        left, right = parts["left"], parts["right"]
        fits = left.ndim == right.ndim == 2 and len(shape) >= 2
        if not fits or (len(left), right.shape[1]) != (shape[0], shape[1:].numel()):
            raise RuntimeError(f"its factors are {tuple(left.shape)} and {tuple(right.shape)}")  # before they grow
        return (parts["left"].float() @ parts["right"].float()).reshape(shape)
    (whole,) = parts.values()
    if whole.shape != shape:
        raise RuntimeError(f"it is {tuple(whole.shape)}")
    return whole.float()


def delta_file(folder: Path, row_id: object) -> Path:
    """Where the tuned generator of a row is. Raises `CheckpointError` for an id that is none, but perhaps a path."""
    if not re.fullmatch("[0-9a-f]{32}", str(row_id)):
        raise CheckpointError(f"The id of a row must be 32 hexadecimal digits, got {row_id!r}.")
    return folder / DELTAS / f"{row_id}.safetensors"


def write_generator(file: Path, generator: Generator, base: Generator) -> str:
    """Write what makes the generator of one photo out of its base, about in float16, and return the file's sha256."""
    if isinstance(generator, FeatureGenerator):
        halves = {name: (tensor, tensor.half()) for name, tensor in generator.photo.items()}
        tensors = {name: half if half.isfinite().all() else tensor for name, (tensor, half) in halves.items()}
        texts = dict[str, str]()
    else:
        tensors, texts = GeneratorDelta.between(base, generator, dtype=torch.float16).to_tensors()
    write_tensors(tensors, file, metadata=texts)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_generator(file: Path, sha256: str, base: Generator, networks: Iterable[nn.Module]) -> Generator:
    """Read what `write_generator` wrote; the `networks` of the pipeline have what moves the features of a photo."""
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise CheckpointError(f"{file} is missing, or another one: `folder` must be the output of the run.")
    tensors = read_tensors(file)
    if tensors.keys() == set(PHOTO):
        photo = {name: tensor.to(base.w_avg) for name, tensor in tensors.items()}
        return FeatureGenerator(base, editor_among(networks), **photo)
    return GeneratorDelta.from_tensors(tensors, read_header(file)[1]).apply(base)
