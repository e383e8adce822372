"""The one door for weights: a folder, a model inside the package, or a repository on the Hugging Face Hub.

A network is a folder with `config.json` (the fields of its config dataclass) and `model.safetensors`. Nothing here ever
executes a file: JSON and safetensors only.
"""

import dataclasses
import filecmp
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stylegan_inversion.bounds import plain_number
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.remote.transfer import download_snapshot

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
PARTS = (
    *("generator", "e4e_encoder", "psp_encoder", "restyle_encoder"),
    *("directions", "discriminator", "autoencoder"),
)  # of a model, each in a folder of its own
_PARTIAL = re.compile(r"\..*\.(\d+)\.[0-9a-f]{8}\.partial")  # a file or folder that is being written, by a process
_REPLACING = ".replacing"  # is in a folder while its files are replaced: see `write_together`
_MAX_CONFIG_BYTES = 1_000_000
_MAX_HEADER_BYTES = 2_000_000  # of a safetensors file; a model's has a hundredth of it, and a huge one takes minutes
_MAX_AXES = 8
_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
}
_OTHERS = {  # what a file begins with that was only renamed
    b"PK": "a zip archive, perhaps PyTorch's .pt, which `from_single_file` reads",
    b"\x80": "a pickle, which `from_single_file` reads",
    b"<": "a web page",
    b"version ": "a pointer of Git LFS; `git lfs pull` fetches the file",
}

Module = TypeVar("Module", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Access:
    """How a model is fetched.

    Attributes:
        revision: Branch, tag or commit on the Hub. `None` means the default branch.
        subfolder: Folder inside the model.
        token: Access token for the Hub. `None` takes the one that is logged in.
        cache_dir: Where downloads are kept. `None` means the Hub's own cache.
        local_files_only: Never use the network.
        force_download: Download again what the cache holds.
    """

    revision: str | None = None
    subfolder: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False


KnownFinder = Callable[..., Path | None]
"""A name and the arguments of a download -> a folder, or `None` if the name is not known."""

_known: list[KnownFinder] = []


def builtin_path(name: str) -> Path:
    """Folder of something that ships with the package, such as "faces64" or "faces64/face/landmarks"."""
    return Path(__file__).parent / "builtin" / name


def builtin_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(folder.parent.name for folder in builtin_path("").glob(f"*/{CONFIG_NAME}"))


def weights_name(variant: str | None = None) -> str:
    """Name of a network's weights: model.safetensors, or model.fp16.safetensors for the variant "fp16".

    Raises:
        ValueError: If `variant` is no plain word.
    """
    if variant is None:
        return WEIGHTS_NAME
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", variant):
        raise ValueError(f"`variant` must be a word such as 'fp16', got {variant!r}.")
    return f"model.{variant}.safetensors"


def know(find: KnownFinder) -> None:
    """Let `find_model` also ask for the checkpoints of the field: what can convert them lies above this file."""
    _known[:] = [find]


def find_model(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    variant: str | None = None,
) -> Path:
    """Find the folder of a model: a local folder wins, then a built-in model, the catalogue, and the Hub.

    What comes from the Hub is checked against its hashes; a damaged file is fetched once more.

    Args:
        name_or_path: A folder, the name of a built-in model or of a checkpoint in the catalogue (fetched, verified and
            converted once), or "organisation/repository".
        revision: Branch, tag or commit on the Hub. `None` means its default branch.
        subfolder: Folder inside the model, relative, without "..".
        token: Access token for the Hub. `None` takes the one that is logged in.
        cache_dir: Where downloads are kept. `None` means the Hub's own cache.
        local_files_only: Take what the cache holds; never use the network.
        force_download: Download again what the cache holds.
        variant: Which weights to fetch, such as "fp16": see `weights_name`.

    Returns:
        A folder that holds `config.json`.

    Raises:
        ValueError: If `subfolder` leaves the model, `variant` is out of range, or a name of the catalogue comes
            with a `revision`.
        ModelNotFoundError: If nothing of that name exists, or the Hub cannot be reached.
        CheckpointError: If a file from the Hub is damaged, and still is when it was fetched again.
    """
    weights = weights_name(variant)
    name = os.fspath(name_or_path)
    inside = PureWindowsPath(subfolder or "")  # knows both separators, and drives
    if inside.anchor or ".." in inside.parts:
        raise ValueError(f"`subfolder` must be a relative path inside the model, without '..', got {subfolder!r}.")
    subfolder = inside.as_posix() if inside.parts else None
    folder = Path(name)
    if name in builtin_models() and not (folder / CONFIG_NAME).is_file():  # a mere folder of that name
        folder = builtin_path(name)
    elif not name or not folder.is_dir():
        access: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        known = next((found for find in _known if name and (found := find(name, **access)) is not None), None)
        if known is not None:
            folder = known
        elif name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/"):
            prefix = f"{subfolder}/" if subfolder else ""
            patterns = [f"{prefix}*.json", f"{prefix}*{weights}"]
            folder = download_snapshot(
                name,
                patterns=patterns if variant is None else [*patterns, f"{prefix}*directions/{WEIGHTS_NAME}"],
                **access,
                otherwise=f"or give a folder, or a built-in model: {', '.join(builtin_models())}",
            )
        else:
            raise ModelNotFoundError(
                f"No model {name!r}: it is not a folder, and the built-in models are {', '.join(builtin_models())}. "
                "A repository on the Hub is written organisation/repository; `stylegan-inversion models` lists what is "
                "known by name."
            )
    folder = folder / subfolder if subfolder else folder
    if not (folder / CONFIG_NAME).is_file():
        if (folder / "model_index.json").is_file():
            raise ModelNotFoundError(
                f"{folder} is a pipeline of diffusers (model_index.json), not a GAN of this package."
            )
        raise ModelNotFoundError(f"{folder} holds no {CONFIG_NAME}, so it is not a model saved by this package.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a folder.

    Raises:
        CheckpointError: If it is missing, larger than 1 MB, or not a JSON object.
    """
    path = folder / CONFIG_NAME
    for whole in (folder, folder.parent):  # a part of a model is in the folder below
        if os.path.lexists(whole / _REPLACING):
            raise CheckpointError(f"{whole} is being saved, or its saving was interrupted. Save it again.")
    try:
        _check_regular(path)
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes, so it is not a config.")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} cannot be read as JSON: {e}") from e
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(config).__name__}.")
    return config


def write_config(config: dict[str, Any], folder: Path, *, name: str = CONFIG_NAME) -> None:
    """Write a JSON object to a folder, whole or not at all; numbers of NumPy are written as numbers.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk. A file that was there is untouched.
    """
    write_text(json.dumps(config, indent=2, default=plain_number) + "\n", folder / name)


def write_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk. A file that was there is untouched.
    """
    write_file(path, lambda temporary: temporary.write_text(text, "utf-8"))


def write_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file, whole or not at all.

    Args:
        path: Its folder is made if needed.
        write: Writes a temporary file, which is then put in place.

    Returns:
        The path.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk. A file that was there is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, write)
    except OSError as e:
        raise CheckpointError(f"{path} could not be written: {e}. What was there before is untouched.") from e
    return path


def _check_regular(path: Path) -> None:
    """Refuse a FIFO or a device, which could be read for ever; a link is judged by what it points to."""
    if path.exists() and not path.is_file():
        raise ValueError("it is a folder or a device, not a file")


@contextmanager
def write_together(folder: Path) -> Iterator[Path]:
    """Write the files of a model or an inversion so that all of them are replaced, or none, whatever ends the program.

    They are written to a folder inside `folder`, and moved to their places when the block ends. Where the moving itself
    is cut short, which takes a few system calls, `read_config` refuses the folder until it is saved again. Other files
    stay, but for the parts (`PARTS`) of another generator than the one that is written. One process at a time.

    Args:
        folder: Made if needed. What earlier savings left half written is removed.

    Yields:
        The folder to write to.

    Raises:
        CheckpointError: If a file cannot be written. What was there before is untouched.
    """
    stage = _partial(folder, "files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        stage.mkdir()
    except OSError as e:
        raise CheckpointError(f"{folder} could not be written: {e}. What was there before is untouched.") from e
    try:
        yield stage
        _replace_files(folder, stage)
    except CheckpointError as e:
        raise CheckpointError(str(e).replace(str(stage), str(folder))) from e
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace_files(folder: Path, stage: Path) -> None:
    """Move files to their places. It may be cut short anywhere: then the next saving replaces everything."""
    marker = folder / _REPLACING
    try:
        written = sorted(path for path in stage.rglob("*") if path.is_file())
        foreign = (stage / "generator").is_dir() and (os.path.lexists(marker) or not _is_same_generator(folder, stage))
        if marker.is_symlink():
            marker.unlink()
        marker.touch()
        for name in PARTS if foreign else ():
            part = folder / name
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            elif os.path.lexists(part):
                part.unlink()
        card = folder / "README.md"
        if foreign and card.is_file() and "\nlibrary_name: stylegan_inversion\n" in card.read_text("utf-8", "replace"):
            card.replace(folder / "README.old.md")  # of the other model
        for file in written:
            target = folder / file.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
        marker.unlink(missing_ok=True)
    except OSError as e:
        raise CheckpointError(f"The files of {folder} could not be replaced: {e}. Make room and save it again.") from e


def _is_same_generator(folder: Path, stage: Path) -> bool:
    """Whether a folder holds no generator, or the one that is about to be moved there, in whatever type of number."""
    there = sorted((folder / "generator").glob("model*.safetensors"))
    if not there:
        return True
    (new,) = (stage / "generator").glob("model*.safetensors")
    old = next((path for path in there if path.name == new.name), there[0])
    if filecmp.cmp(old, new, shallow=False):
        return True
    try:
        ours, theirs = read_tensors(new), read_tensors(old)
    except CheckpointError:
        return False
    if {key: tensor.shape for key, tensor in ours.items()} != {key: tensor.shape for key, tensor in theirs.items()}:
        return False
    return all(_is_close(ours[key], theirs[key]) for key in ours)


def _is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, or would be but for the rounding of their types."""
    if a.dtype == b.dtype:
        return torch.equal(a, b)
    step = 2 * max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    return torch.allclose(a.float(), b.float(), rtol=step, atol=1e-6)


def _partial(folder: Path, name: str) -> Path:
    """A name for what is being written: hidden, and one that tells whose it is, so that `sweep` can tell."""
    return folder / f".{name}.{os.getpid()}.{os.urandom(4).hex()}.partial"


def sweep(folder: Path) -> None:
    """Remove what programs that were killed left half written in a folder, but nothing of a program that is alive."""
    for path in folder.glob(".*.partial"):
        if (match := _PARTIAL.fullmatch(path.name)) and not _is_alive(int(match[1]), path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_alive(process: int, path: Path) -> bool:
    if os.name == "nt":  # where asking would end it: what was touched in the last hour is left alone
        return time.time() - path.lstat().st_mtime < 3600
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()  # in this program nothing is half written while another saving begins


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory; what becomes of the file later does not matter.

    Raises:
        CheckpointError: If the file is missing or damaged, holds NaN or infinity, or a type of number or a number of
            axes that no network here has.
    """
    try:
        _check_regular(path)
        with path.open("rb") as file:
            start = file.read(8)
        header = int.from_bytes(start, "little")
        if header > _MAX_HEADER_BYTES:
            found = next((what for magic, what in _OTHERS.items() if start.startswith(magic)), None)
            if found is not None:
                raise ValueError(f"it is {found}")
            raise ValueError(f"its header would have {header} bytes, and at most {_MAX_HEADER_BYTES} are read")
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError, AttributeError) as e:  # the last: a dtype torch lacks
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


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts in the header of a safetensors file.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    try:
        _check_regular(path)
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError) as e:
        raise CheckpointError(f"{path} cannot be read as safetensors: {e}") from e


def write_tensors(tensors: dict[str, Tensor], path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        tensors: By name.
        path: The file.
        metadata: Texts for its header; `read_metadata` gives them back.

    Raises:
        CheckpointError: If it cannot be written, as on a full disk. A file that was there is untouched.
    """
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    texts = {"format": "pt", **(metadata or {})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, lambda temporary: save_file(contiguous, temporary, metadata=texts))
    except (OSError, SafetensorError) as e:
        raise CheckpointError(
            f"{path} could not be written: {e}. What was there before is untouched; make room or choose another folder."
        ) from e


def copy_file(source: Path, path: Path) -> None:
    """Copy a file, whole or not at all; one that is the same already is left alone.

    Raises:
        CheckpointError: If it cannot be written. What was there is untouched.
    """
    try:
        if not (path.is_file() and filecmp.cmp(source, path, shallow=False)):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, lambda temporary: shutil.copyfile(source, temporary))
    except OSError as e:
        raise CheckpointError(f"{path} could not be written: {e}. What was there before is untouched.") from e


def _write_whole(path: Path, write: Any) -> None:
    """Call `write` with a temporary file beside `path`, then put it in place in one step, and wait for the disk."""
    temporary = _partial(path.parent, path.name)
    temporary.touch(exist_ok=False)
    mode = stat.S_IMODE(temporary.stat().st_mode)  # as the user's umask wants it; safetensors makes a file of its own
    try:
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_module(
    cls: type[Module],
    config_cls: type[Any],
    folder: Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> Module:
    """Build a network from the `config.json` of a folder and fill it, strictly, from its `model.safetensors`.

    Args:
        cls: The network's class; its constructor takes a `config_cls`.
        config_cls: The network's config dataclass.
        folder: Folder with both files.
        device: Where to put it. `None` means the CPU.
        dtype: Floating-point type of the parameters. `None` means float32, whatever the file holds.
        variant: Which weights: see `weights_name`.

    Returns:
        The network in eval mode, its parameters frozen.

    Raises:
        CheckpointError: If a file is missing or damaged, the config has a bad field or is another network's, or names
            or shapes differ.
    """
    weights = folder / weights_name(variant)
    if variant is not None and folder.is_dir() and not weights.is_file():
        raise CheckpointError(f"{folder} has no variant {variant!r} ({weights.name}); leave `variant` out.")
    config, source = read_config(folder), str(folder / CONFIG_NAME)
    if config.get("_class_name", cls.__name__) not in [base.__name__ for base in cls.__mro__]:
        raise CheckpointError(f"{source} is of a {str(config['_class_name'])[:100]!r}, not of a {cls.__name__}.")
    module = build_module(cls, config_cls, config, read_tensors(weights), source=source, weights=str(weights))
    return module.to(device=device, dtype=dtype or torch.float32)


def build_module(
    cls: type[Module],
    config_cls: type[Any],
    config: dict[str, Any],
    state_dict: dict[str, Tensor],
    *,
    source: str,
    weights: str,
) -> Module:
    """Build a network from the fields of its config and fill it, strictly.

    Args:
        cls: The network's class; its constructor takes a `config_cls`.
        config_cls: The network's config dataclass.
        config: Its fields; those that begin with an underscore are left out.
        state_dict: The weights.
        source: Where the config comes from, for messages.
        weights: Where the weights come from.

    Returns:
        The network in eval mode, its parameters frozen.

    Raises:
        CheckpointError: If a field is unknown or of the wrong type or value, or names or shapes of weights differ.
    """
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if not k.startswith("_")}
    try:
        with torch.device("meta"):  # first without memory: a config may ask for more than there is
            outline = cls(config_cls(**fields))
        _check_fit(outline, state_dict, source=weights)
        module = new_module(cls, config_cls(**fields))
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, LookupError) as e:  # a wrong type
        raise CheckpointError(f"{source} does not describe a {cls.__name__}: {e}") from e
    fill_module(module, state_dict, source=weights)
    return module


def new_module(cls: type[Module], config: Any) -> Module:
    """Build a network whose weights are filled in later: on the CPU and in float32, whatever the caller's defaults.

    The caller's random numbers stay as they were.

    Args:
        cls: The network's class; its constructor takes the config.
        config: Its config.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return cls(config).to(torch.float32)


def uncompiled(module: Module) -> Module:
    """The network inside of what `torch.compile` made of it; any other network itself."""
    return cast(Module, getattr(module, "_orig_mod", module))


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network by its own names, also where `torch.compile` wraps it or a part of it."""
    return {plain_name(key): tensor for key, tensor in module.state_dict().items()}


def plain_name(key: str) -> str:
    """The name of a parameter without what `torch.compile` puts into it."""
    return key.replace("_orig_mod.", "")


def fill_module(module: nn.Module, state_dict: dict[str, Tensor], *, source: str) -> None:
    """Copy a state dict into a network: all names, all shapes, or an error and an untouched network.

    The network ends in eval mode with its parameters frozen.

    Raises:
        CheckpointError: If a name is missing or unexpected, or a shape or kind of number differs; five are listed.
    """
    _check_fit(module, state_dict, source=source)
    module.load_state_dict(state_dict, strict=True)
    module.eval().requires_grad_(False)


def _check_fit(module: nn.Module, state_dict: dict[str, Tensor], *, source: str) -> None:
    ours = module.state_dict()
    faults = [f"missing {key}" for key in ours if key not in state_dict]
    faults += [f"unexpected {key}" for key in state_dict if key not in ours]
    faults += [
        f"{key} is {tuple(state_dict[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in ours.items()
        if key in state_dict and state_dict[key].shape != tensor.shape
    ]
    faults += [
        f"{key} is {state_dict[key].dtype}, not {tensor.dtype}"
        for key, tensor in ours.items()
        if key in state_dict and state_dict[key].is_floating_point() != tensor.is_floating_point()
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {'; '.join(faults[:5])}{more}.")


def save_module(
    module: nn.Module, folder: Path, *, dtype: torch.dtype | None = None, variant: str | None = None
) -> None:
    """Write a network that has a `config` as `config.json` and `model.safetensors`.

    Args:
        module: The network; `module.config` is the dataclass it was built from.
        folder: Created if needed.
        dtype: Floating-point type in the file, such as `torch.float16`. `None` keeps the network's own.
        variant: Of the file's name: see `weights_name`.

    Raises:
        ValueError: If a number is too large for `dtype`.
        CheckpointError: If the files cannot be written.
    """
    module = uncompiled(module)
    config = dataclasses.asdict(cast(Any, module.config))
    state_dict = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in plain_state_dict(module).items()}
    if dtype is not None and not all(torch.isfinite(v).all() for v in state_dict.values() if v.is_floating_point()):
        raise ValueError(f"`dtype` {dtype} cannot hold the weights of this {type(module).__name__}.")
    write_tensors(state_dict, folder / weights_name(variant))
    write_config({"_class_name": type(module).__name__, **config}, folder)


def model_card(
    body: str, *, title: str, tags: list[str], license: str | None = None, metrics: Mapping[str, float] | None = None
) -> str:
    """Put the header that the Hub reads on top of a model card.

    Args:
        body: The card's Markdown.
        title: Name of the model.
        tags: Tags of the Hub.
        license: Identifier of the Hub's, such as "cc-by-nc-4.0". `None` says that it is not stated.
        metrics: Measured figures, by name.
    """
    from huggingface_hub import EvalResult, ModelCardData

    where: dict[str, Any] = {"task_type": "image-to-image", "task_name": "GAN inversion"}
    where |= {"dataset_type": "custom", "dataset_name": "the author's"}
    results = [
        EvalResult(**where, metric_type=name, metric_name=name, metric_value=float(value))
        for name, value in (metrics or {}).items()
    ]
    header = ModelCardData(
        library_name="stylegan-inversion",
        pipeline_tag="image-to-image",
        tags=tags,
        license=license or "other",
        license_name=None if license else "not-stated",
        metrics=list(metrics) if metrics else None,
        model_name=title if metrics else None,
        eval_results=results or None,
    )
    return f"---\n{header.to_yaml()}\n---\n\n{body}"
