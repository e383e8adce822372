"""An inversion in a folder: `config.json` (what is said in words) and one `model.safetensors` (everything else).

The codes, the photo and the crop as PNG, and of each tuned generator only what differs from its base, which is found
again by its name. Generators of a base that has no name are kept whole.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylegan_inversion import hub
from stylegan_inversion.checkpoints.known import is_known
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.inversion.generator_delta import GeneratorDelta, generator_sha256
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.image import load_image, open_image, to_pil

if TYPE_CHECKING:
    from stylegan_inversion.pipelines.output import InversionOutput

FORMAT = 2
_KINDS = ("image", "reconstruction", "crop", "photo")
_FARTHEST = 1_000_000  # pixels from the photo's corner to a corner of a crop
_ELSEWHERE = re.compile(r"[\\/](?:[\\/]|\?\?[\\/])")  # how Windows begins the names of other machines' folders
_SLACK, _MAX_GROWTH = 300_000_000, 50  # bytes in memory may be so many, and so many times those of the file


_T = TypeVar("_T")


@dataclass(frozen=True)
class BaseName:
    """Where a base generator is found again; the arguments of `hub.find_model`."""

    name_or_path: str
    revision: str | None = None
    subfolder: str | None = None

    @classmethod
    def of(cls, name_or_path: object, folder: Path, *, subfolder: str | None = None) -> "BaseName":
        """Name a model that was found in `folder`: a folder by its full path, a repository with its commit."""
        commit = re.search(r"[\\/]snapshots[\\/]([0-9a-f]{40})(?:[\\/]|$)", str(folder))
        name = str(name_or_path)
        if commit is None and not is_known(name) and hub.builtin_path(name) not in (folder, *folder.parents):
            name = str(Path(name).resolve())
        return cls(name, commit[1] if commit else None, subfolder)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine, which nobody else has."""
        if _ELSEWHERE.match(self.name_or_path):
            return True  # without a look there, which would be a call
        named = self.name_or_path in hub.builtin_models() or is_known(self.name_or_path)
        return self.revision is None and not named

    def load(self, *, allow_download: bool, device: torch.device | str | None = None) -> Generator:
        """Load the generator; from the Hub or another machine only if that is allowed or it is in the cache."""
        if not allow_download and any(_ELSEWHERE.match(each) for each in (self.name_or_path, self.revision or "")):
            raise ModelNotFoundError("It is in a folder of another machine.")
        where: dict[str, Any] = {"revision": self.revision, "subfolder": self.subfolder}
        folder = hub.find_model(self.name_or_path, local_files_only=not allow_download, **where)
        return hub.load_module(Generator, GeneratorConfig, folder / "generator", device=device)


@dataclass(frozen=True, eq=False)
class Base:
    """The generator that a pipeline started from, and its name if it has one."""

    generator: Generator
    name: BaseName | None = None


def write_output(
    out: "InversionOutput",
    folder: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype | None = None,
    whole: bool = False,
) -> None:
    """Write an output. See `InversionOutput.save`."""
    base = None if whole else out.base
    name = None if base is None else base.name
    if name is None and not (rank is None and energy is None and dtype is None):
        raise ValueError(
            "`rank`, `energy` and `dtype` are for the change from a base model, so not with `whole`, nor where that "
            "has no name: save the pipeline with `save_pretrained`, and load it with `from_pretrained`."
        )
    unique = list({id(generator): generator for generator in out.generators}.values())
    tensors: dict[str, Tensor] = {"w_plus": out.w_plus}
    if out.w_inverted is not None:
        tensors["w_inverted"] = out.w_inverted
    header: dict[str, str] = {}
    generators: list[dict[str, Any]] = []
    for k, generator in enumerate(unique):
        if base is None or base.name is None:
            parts, texts = hub.plain_state_dict(generator), dict[str, str]()
            generators.append({"kind": "whole", "config": asdict(generator.config)})
        else:
            delta = GeneratorDelta.between(base.generator, generator, rank=rank, energy=energy, dtype=dtype)
            if delta.relative_error or any(delta.errors.values()):
                out = _redrawn(out, generator, delta.apply(base.generator))
            parts, texts = delta.to_tensors()
            generators.append({"kind": "delta", "relative_error": delta.relative_error})
        tensors |= {f"generator.{k}.{name}": tensor for name, tensor in parts.items()}
        header |= {f"generator.{k}.{name}": text for name, text in texts.items()}
    photos: list[dict[str, Any]] = []
    pictures: dict[bytes, int] = {}
    for i, crop in enumerate(out.crops):
        entry = {
            "generator": next(k for k, generator in enumerate(unique) if generator is out.generators[i]),
            "quad": None if crop.quad is None else crop.quad.tolist(),
            "face_count": crop.face_count,
            "face_index": crop.face_index,
            "report": out.reports[i] if out.reports else {},
        }
        for kind, picture in (
            ("crop", crop.image),
            ("photo", crop.photo),
            # What the generators draw is kept too: on another machine they may draw it a shade differently.
            ("image", out.images[i]),
            ("reconstruction", out.reconstructions[i]),
        ):
            png = _to_png(picture)
            entry[kind] = pictures.setdefault(png, len(pictures))  # several faces of one photo share it
        photos.append(entry)
    tensors |= {f"picture.{k}": torch.frombuffer(bytearray(png), dtype=torch.uint8) for png, k in pictures.items()}
    config = {
        "_class_name": "InversionOutput",
        "_format": FORMAT,
        "base": None if name is None else asdict(name),
        "edits": out.edits,
        "generators": generators,
        "photos": photos,
    }
    with hub.write_together(folder) as stage:
        hub.write_tensors(tensors, stage / hub.WEIGHTS_NAME, metadata=header)
        hub.write_config(config, stage)


@torch.no_grad()
def _redrawn(out: "InversionOutput", generator: Generator, kept: Generator) -> "InversionOutput":
    """The output with the pictures that `kept` draws in place of `generator`: what is loaded again must fit."""
    pictures = [list(out.images), list(out.reconstructions)]
    codes = (out.w_plus, out.w_plus if out.w_inverted is None else out.w_inverted)
    for drawn, w_plus in zip(pictures, codes):
        for i, (mine, w) in enumerate(zip(out.generators, w_plus)):
            if mine is generator:
                drawn[i] = to_pil(kept.synthesis(w[None].to(kept.w_avg)).float().cpu())[0]
    return replace(out, images=pictures[0], reconstructions=pictures[1])


def read_output(
    folder: Path, *, base: Generator | None, allow_download: bool, device: torch.device | str | None
) -> dict[str, Any]:
    """Read what `write_output` wrote, or an older version; the fields of an `InversionOutput`.

    Raises:
        CheckpointError: If the folder is no such folder or damaged, or the base is another one.
        ModelNotFoundError: If the base model is not found.
    """
    config = hub.read_config(folder)
    if config.get("_class_name") != "InversionOutput" or config.get("_format") not in (1, FORMAT):
        raise CheckpointError(f"{folder} was not written by `InversionOutput.save` of this version.")
    try:
        if config["_format"] == 1:
            return _read_1(folder, config, device)
        if base is None and config["base"] is not None:
            base = _find_base(folder, BaseName(**config["base"]), allow_download, device)
        return _read_2(folder, config, base, device)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as e:
        raise CheckpointError(f"{folder} is damaged or incomplete: {type(e).__name__}: {e}") from e


def _find_base(folder: Path, name: BaseName, allow_download: bool, device: torch.device | str | None) -> Generator:
    """The generator that an inversion names. Who wrote the folder chose the name, so nothing is fetched unasked."""
    try:
        return name.load(allow_download=allow_download, device=device)
    except ModelNotFoundError as e:
        ways = "give its generator: load(folder, base=pipe.generator)"
        if not allow_download:
            ways += ", or let it be fetched: load(folder, allow_download=True)"
        raise ModelNotFoundError(
            f"{folder} holds only what differs from the base model {name.name_or_path!r}, which is not there: {e} "
            f"If you have it elsewhere, {ways}."
        ) from e


def _read_2(
    folder: Path, config: Mapping[str, Any], base: Generator | None, device: torch.device | str | None
) -> dict[str, Any]:
    tensors = hub.read_tensors(folder / hub.WEIGHTS_NAME)
    header = hub.read_metadata(folder / hub.WEIGHTS_NAME)
    name = None if config["base"] is None else BaseName(**config["base"])
    if len(config["generators"]) > len(config["photos"]):
        raise ValueError(f"it has {len(config['generators'])} generators for {len(config['photos'])} photos")
    tensors_of, texts_of = _by_generator(tensors), _by_generator(header)
    fingerprint = cache(generator_sha256)
    generators: list[Generator] = []
    copies, packed = 0, sum(tensor.nbytes for tensor in tensors.values())
    for k, entry in enumerate(config["generators"]):
        parts = tensors_of.get(str(k), {})
        if entry["kind"] == "whole":
            source = f"{folder / hub.WEIGHTS_NAME}, generator {k},"
            where = {"source": source, "weights": source}
            generators.append(hub.build_module(Generator, GeneratorConfig, entry["config"], parts, **where).to(device))
            continue
        if base is None:
            raise KeyError("base")
        delta = GeneratorDelta.from_tensors(parts, texts_of.get(str(k), {}))
        copies += sum(tensor.nbytes for tensor in base.state_dict().values()) if delta.tensors else 0
        if copies > _SLACK + _MAX_GROWTH * packed:
            raise ValueError(f"its generators would take {copies / 1e9:.1f} GB")
        if delta.tensors or delta.base_sha256 != fingerprint(base):
            generators.append(delta.apply(base).to(device=device))
        else:
            generators.append(base)  # an encoder's: nothing was tuned
    photos = config["photos"]
    numbers = sorted({entry[kind] for kind in _KINDS for entry in photos})  # several faces of one photo share it
    decoded = dict(zip(numbers, _decode(tensors[f"picture.{number}"].numpy().tobytes() for number in numbers)))
    pictures = {kind: [decoded[entry[kind]] for entry in photos] for kind in _KINDS}
    return {
        "images": pictures["image"],
        "reconstructions": pictures["reconstruction"],
        "base": None if base is None or name is None else Base(base, name),
        **_shared_fields(config, tensors, generators, pictures["crop"], pictures["photo"]),
    }


def _by_generator(named: Mapping[str, _T]) -> dict[str, dict[str, _T]]:
    """What is called `generator.NUMBER.NAME`, by number and name."""
    found: dict[str, dict[str, _T]] = {}
    for key, value in named.items():
        if match := re.match(r"generator\.(\d+)\.", key):
            found.setdefault(match[1], {})[key[match.end() :]] = value
    return found


def _read_1(folder: Path, config: Mapping[str, Any], device: torch.device | str | None) -> dict[str, Any]:
    """Format 1, of version 0.1: pictures as PNG files, generators whole, each in a folder of its own."""
    photos = config["photos"]
    decoded = iter(_decode(_file(folder / f"{kind}_{i}.png") for kind in _KINDS for i in range(len(photos))))
    pictures = {kind: [next(decoded) for _ in photos] for kind in _KINDS}
    count = 1 + max(int(entry["generator"]) for entry in photos)
    generators = [
        hub.load_module(Generator, GeneratorConfig, folder / f"generator_{k}", device=device) for k in range(count)
    ]
    tensors = hub.read_tensors(folder / hub.WEIGHTS_NAME)
    return {
        "images": pictures["image"],
        "reconstructions": pictures["reconstruction"],
        **_shared_fields(config, tensors, generators, pictures["crop"], pictures["photo"]),
    }


def _shared_fields(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    generators: Sequence[Generator],
    crops: Sequence[Image.Image],
    photos: Sequence[Image.Image],
) -> dict[str, Any]:
    entries = config["photos"]
    drawing = [generators[int(entry["generator"])] for entry in entries]
    codes = {"w_plus": tensors["w_plus"], "w_inverted": tensors.get("w_inverted")}
    shapes = {(len(entries), generator.num_ws, generator.config.w_dim) for generator in drawing}
    for name, code in codes.items():
        if code is not None and {tuple(code.shape)} != shapes:
            raise ValueError(f"`{name}` is {tuple(code.shape)}, and the photos and their generators need {shapes}")
    edits = {str(name): float(strength) for name, strength in config["edits"].items()}
    if not all(math.isfinite(strength) for strength in edits.values()):
        raise ValueError(f"`edits` must be finite, got {edits}")
    return {
        **codes,
        "generators": drawing,
        "crops": [
            Crop(
                crop,
                None if entry["quad"] is None else _quad(entry["quad"]),
                photo,
                face_count=int(entry["face_count"]),
                face_index=int(entry["face_index"]),
            )
            for entry, crop, photo in zip(entries, crops, photos)
        ],
        "edits": edits,
        "reports": [dict(entry["report"]) for entry in entries],
    }


def _quad(corners: Any) -> np.ndarray:
    quad = np.asarray(corners, dtype=np.float64)
    if quad.shape != (4, 2) or not (np.abs(quad) <= _FARTHEST).all():  # NaN is not
        raise ValueError(f"`quad` must be 4 corners (x, y) within {_FARTHEST} pixels, got {str(corners)[:100]}")
    return quad


def _to_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _file(path: Path) -> bytes:
    if not path.is_file():  # a named pipe would be waited for
        raise FileNotFoundError(f"{path.name} is not a file")
    return path.read_bytes()


def _decode(pngs: Iterable[bytes]) -> list[Image.Image]:
    """Decode pictures, as long as they do not take far more memory than their files; a header says how much."""
    pictures, decoded, packed = [], 0, 0
    for png in pngs:
        with open_image(io.BytesIO(png), "A picture") as image:
            packed += len(png)
            decoded += 3 * image.width * image.height
            if decoded > _SLACK + _MAX_GROWTH * packed:
                raise ValueError(f"its pictures would take more than {decoded / 1e9:.1f} GB")
            pictures.append(load_image(image))
    return pictures
