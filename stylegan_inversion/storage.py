"""The one door for weights: networks in a folder of ours, or inside the package.

A network is a folder with `config.json` (the fields of its config dataclass) and `model.safetensors`. Nothing here
executes a file: JSON and safetensors only.
"""

import dataclasses
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stylegan_inversion.bounds import plain_number
from stylegan_inversion.errors import CheckpointError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_MAX_CONFIG_BYTES = 1_000_000
_MAX_HEADER_BYTES = 2_000_000  # of a safetensors file: a model needs a hundredth, and a huge header takes minutes
_MAX_AXES = 8
_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
}
_PART = re.compile(r"generator|directions|relevance|discriminator|\w*encoder")  # sub-folders of a model
_OURS = re.compile(r"\nlibrary_name: stylegan[-_]inversion\n")  # in a model card

Module = TypeVar("Module", bound=nn.Module)
Value = TypeVar("Value")


def builtin_path(name: str) -> Path:
    """Give the folder of something that ships with the package, such as "faces64" or "faces64/face/landmarks"."""
    return Path(__file__).parent / "builtin" / name


def builtin_models() -> list[str]:
    """List the models that ship with the package."""
    return sorted(folder.parent.name for folder in builtin_path("").glob(f"*/{CONFIG_NAME}"))


def weights_name(variant: str | None = None) -> str:
    """Name the file of a network's weights: model.safetensors, or model.fp16.safetensors for the variant "fp16"."""
    if variant is None:
        return WEIGHTS_NAME
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", variant):
        raise ValueError(f"`variant` must be a word such as 'fp16', got {variant!r}.")
    return f"model.{variant}.safetensors"


# --- reading files


def read_config(folder: Path, *, name: str = CONFIG_NAME) -> dict[str, Any]:
    """Read a folder's `config.json`, or another file. Raises `CheckpointError` if it is no JSON object of 1 MB."""
    path = folder / name
    try:
        _check_regular(path)
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it must hold a JSON object, got {type(config).__name__}")
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} cannot be read as JSON: {e}. Fetch or save it again.") from e
    return config


def _check_regular(path: Path) -> None:
    """Refuse a FIFO or a device, which could be read for ever; a link is judged by what it points to."""
    if path.exists() and not path.is_file():
        raise ValueError("it is a folder or a device, not a file")


def read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Read the header of a safetensors file: the shapes of its tensors, and the texts that `write_tensors` was given.

    Raises `CheckpointError` if it is damaged or larger than 2 MB.
    """
    try:
        _check_regular(path)
        with path.open("rb") as binary:
            length = int.from_bytes(binary.read(8), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(
                f"its header would have {length} bytes, and at most {_MAX_HEADER_BYTES} are read. Perhaps it is a .pt "
                "or .pkl file, which `from_single_file` reads, a pointer of Git LFS, or a web page"
            )
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read as safetensors: {e}. Fetch or save it again.") from e


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory; later changes of the file do not matter.

    Raises `CheckpointError` if it is damaged, or holds NaN, infinity or a dtype that no network here has.
    """
    read_header(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, RuntimeError, AttributeError) as e:  # the last: a dtype torch lacks
        raise CheckpointError(f"{path} cannot be read as safetensors: {e}. Fetch or save it again.") from e
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or tensor.ndim > _MAX_AXES:
            raise CheckpointError(
                f"{path}: tensor {key!r} is {tensor.dtype} with {tensor.ndim} axes, which no network here has."
            )
        tensors[key] = tensor = tensor.clone()  # `load_file` gives live views of the file
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: tensor {key!r} holds NaN or infinity. Fetch or save the file again.")
    return tensors


# --- writing files


def write_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file and put it in place: `path` is written whole, or a `CheckpointError` is raised.

    Its folder is made if needed. A file that was there is untouched after an error, such as a full disk.
    """
    temporary = _partial(path.parent, path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)  # what the user's umask gives; safetensors sets its own
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as e:
        raise CheckpointError(
            f"{path} could not be written: {e}. What was there before is untouched; make room or choose another folder."
        ) from e
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def write_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8, as `write_file` does."""
    write_file(path, lambda temporary: temporary.write_text(text, "utf-8"))


def write_config(config: dict[str, Any], folder: Path, *, name: str = CONFIG_NAME) -> None:
    """Write a JSON object to a folder, as `write_file` does; NumPy's numbers become numbers."""
    write_text(json.dumps(config, indent=2, default=plain_number) + "\n", folder / name)


def write_tensors(tensors: dict[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, as `write_file` does. `read_header` gives the texts in `metadata` back."""
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    texts = {"format": "pt", **(metadata or {})}
    write_file(path, lambda temporary: save_file(contiguous, temporary, metadata=texts))


@contextmanager
def write_together(folder: Path) -> Iterator[Path]:
    """Replace the files of a model or an inversion together: after an error or a kill, the folder is never a mixture.

    They are written to the folder that this yields, inside `folder`, and moved to their places when the block ends.
    `config.json` is removed first and written last: if the program is killed between, the folder is refused until it
    is saved again. Other files stay, except that the parts of another generator than the one that is written are
    deleted. Only one process may write a folder at a time.
    """
    stage = _partial(folder, "files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, older_than=0)
        stage.mkdir()
        yield stage
        _replace_files(folder, stage)
    except (CheckpointError, OSError) as e:
        text = str(e).replace(str(stage), str(folder))
        raise CheckpointError(
            text if isinstance(e, CheckpointError) else f"{folder} could not be written: {text}. Save it again."
        ) from e
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace_files(folder: Path, stage: Path) -> None:
    """Move files to their places; those of a generator leave last and come first, so that a mixture has one."""
    config, card = folder / CONFIG_NAME, folder / "README.md"
    files = [path for path in stage.rglob("*") if path.is_file()]
    foreign = all((each / "generator").is_dir() for each in (stage, folder))
    foreign = foreign and not (config.is_file() and _is_same_generator(folder, stage))
    config.unlink(missing_ok=True)
    if foreign:
        parts = [path for path in folder.iterdir() if _PART.fullmatch(path.name)]
        for part in sorted(parts, key=lambda path: path.name == "generator"):
            part.rename(stage / f".{part.name}")  # deleted with it
        if card.is_file() and _OURS.search(card.read_text("utf-8", "replace")):
            card.replace(folder / "README.old.md")  # it describes the other model
    for file in sorted(files, key=lambda path: (path == stage / CONFIG_NAME, path.parent.name != "generator")):
        target = folder / file.relative_to(stage)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)


def _is_same_generator(folder: Path, stage: Path) -> bool:
    """Tell whether a folder holds the generator that is about to be moved there, in whatever dtype."""
    try:
        (new,) = (stage / "generator").glob("model*.safetensors")
        there = sorted((folder / "generator").glob("model*.safetensors"), key=lambda path: path.name != new.name)
        ours, theirs = read_tensors(new), read_tensors(there[0])
    except (CheckpointError, LookupError):
        return False
    return ours.keys() == theirs.keys() and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), *((0, 0) if a.dtype == b.dtype else (2**-7, 1e-6)))
        for a, b in ((tensor, theirs[key]) for key, tensor in ours.items())
    )


def _partial(folder: Path, name: str) -> Path:
    """Make a hidden name for what is being written, which `sweep` knows."""
    return folder / f".{name}.{os.urandom(4).hex()}.partial"


def sweep(folder: Path, *, older_than: float = 3600.0) -> None:
    """Remove what killed programs left half written in a folder: what was not touched for so many seconds."""
    for path in folder.glob(f".*.{'[0-9a-f]' * 8}.partial"):
        if time.time() - path.lstat().st_mtime < older_than:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


# --- networks


def load_module(
    cls: type[Module],
    config_cls: type[Any],
    folder: Path,
    *,
    device: torch.device | str | None = None,
    variant: str | None = None,
) -> Module:
    """Build a network from the `config.json` of a folder and fill it, strictly, from its `model.safetensors`.

    It comes in eval mode, frozen, and in float32, whatever the file holds.

    Raises:
        CheckpointError: If a file is missing or damaged, the config has a bad field or is another network's, or names
            or shapes differ.
    """
    weights = folder / weights_name(variant)
    if folder.is_dir() and not weights.is_file():
        if variant is not None:
            raise CheckpointError(f"{folder} has no variant {variant!r} ({weights.name}); leave `variant` out.")
        if others := sorted(folder.glob("model.*.safetensors")):
            raise CheckpointError(f"{folder} has variants alone: give variant={others[0].name.split('.')[1]!r}.")
    config, source = read_config(folder), str(folder / CONFIG_NAME)
    if config.get("_class_name", cls.__name__) not in [base.__name__ for base in cls.__mro__]:
        raise CheckpointError(f"{source} is of a {str(config['_class_name'])[:100]!r}, not of a {cls.__name__}.")
    module = build_module(cls, config_cls, config, read_tensors(weights), source=source, weights=str(weights))
    return module.to(device)


def build_module(
    cls: type[Module],
    config_cls: type[Any],
    config: dict[str, Any],
    state_dict: dict[str, Tensor],
    *,
    source: str,
    weights: str,
) -> Module:
    """Build a network from the fields of its config, without those that begin with an underscore, and fill it.

    `source` and `weights` say in messages where the config and the state dict come from.
    """
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if not k.startswith("_")}
    try:
        with torch.device("meta"):  # without memory: a config may ask for more than there is
            module = cls(config_cls(**fields))
        check_fit(module, state_dict, source=weights)
        if len(list(module.buffers())) > sum(key in state_dict for key, _ in module.named_buffers()):
            module = new_module(cls, config_cls(**fields))  # for buffers that no file holds
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, LookupError) as e:  # a wrong type
        raise CheckpointError(f"{source} does not describe a {cls.__name__}: {e}") from e
    module.load_state_dict(state_dict, strict=True, assign=True)
    return module.to(torch.float32).eval().requires_grad_(False)


def new_module(cls: type[Module], config: Any) -> Module:
    """Build a network to be filled, on the CPU and in float32, whatever the caller's defaults; draws no randomness."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return cls(config).to(torch.float32)


def uncompiled(module: Module) -> Module:
    """Unwrap a network that `torch.compile` wrapped; any other network stays as it is."""
    return cast(Module, getattr(module, "_orig_mod", module))


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Give the state dict of a network by its own names, also where `torch.compile` wraps it or a part of it."""
    return {plain_name(key): tensor for key, tensor in module.state_dict().items()}


def plain_name(key: str) -> str:
    """Strip what `torch.compile` puts into the name of a parameter."""
    return key.replace("_orig_mod.", "")


def under(named: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """Take what is named with a prefix, such as "encoder.", out of a state dict, by the names without it."""
    return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}


def fill_module(module: nn.Module, state_dict: dict[str, Tensor], *, source: str) -> None:
    """Copy a state dict into a network, which ends frozen in eval mode, or raise `CheckpointError` and change nothing.

    `source` says in messages where the state dict comes from.
    """
    check_fit(module, state_dict, source=source)
    module.load_state_dict(state_dict, strict=True)
    module.eval().requires_grad_(False)


def check_fit(module: nn.Module, state_dict: dict[str, Tensor], *, source: str) -> None:
    """Check that a state dict has the names, shapes and kinds of number of a network, which may be on "meta".

    The `CheckpointError` lists five differences.
    """
    ours = module.state_dict()
    faults = [f"missing {key}" for key in ours if key not in state_dict]
    faults += [f"unexpected {key}" for key in state_dict if key not in ours]
    for key, tensor in ours.items():
        found = state_dict.get(key, tensor)
        if found.shape != tensor.shape:
            faults.append(f"{key} is {tuple(found.shape)}, not {tuple(tensor.shape)}")
        elif found.is_floating_point() != tensor.is_floating_point():
            faults.append(f"{key} is {found.dtype}, not {tensor.dtype}")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {'; '.join(faults[:5])}{more}.")


def save_module(
    module: nn.Module, folder: Path, *, dtype: torch.dtype | None = None, variant: str | None = None
) -> None:
    """Write a network that has a `config`, the dataclass it was built from, as `config.json` and `model.safetensors`.

    `dtype` is the floating-point type in the file; `None` keeps the network's own.
    """
    module = uncompiled(module)
    state_dict = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in plain_state_dict(module).items()}
    if dtype is not None and not all(torch.isfinite(v).all() for v in state_dict.values() if v.is_floating_point()):
        raise ValueError(f"`dtype` {dtype} cannot hold the weights of this {type(module).__name__}.")
    write_tensors(state_dict, folder / weights_name(variant))
    write_config({"_class_name": type(module).__name__, **dataclasses.asdict(cast(Any, module.config))}, folder)
