"""An inversion in a folder: `config.json` (what is said in words) and one `model.safetensors` (everything else).

The codes, the photo and the crop as PNG, and of each tuned generator only what differs from its base, which is found
again by its name. Generators of a base that has no name are kept whole.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylegan_inversion import hub
from stylegan_inversion.convert.known import is_known
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.inversion.generator_delta import GeneratorDelta, generator_sha256
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.preprocessing.image import load_image, to_pil

if TYPE_CHECKING:
    from stylegan_inversion.pipelines.output import InversionOutput

FORMAT = 2


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
        named = self.name_or_path in hub.builtin_models() or is_known(self.name_or_path)
        return self.revision is None and not named

    def load(self, *, device: torch.device | str | None = None) -> Generator:
        """Load the generator."""
        folder = hub.find_model(self.name_or_path, revision=self.revision, subfolder=self.subfolder)
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
            parts, texts = dict(generator.state_dict()), dict[str, str]()
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
    hub.write_tensors(tensors, folder / hub.WEIGHTS_NAME, metadata=header)
    config = {
        "_class_name": "InversionOutput",
        "_format": FORMAT,
        "base": None if name is None else asdict(name),
        "edits": out.edits,
        "generators": generators,
        "photos": photos,
    }
    hub.write_config(config, folder)


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
    folder: Path, *, base: Generator | None = None, device: torch.device | str | None = None
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
        return (_read_1 if config["_format"] == 1 else _read_2)(folder, config, base, device)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as e:
        raise CheckpointError(f"{folder} is damaged or incomplete: {type(e).__name__}: {e}") from e


def _read_2(
    folder: Path, config: Mapping[str, Any], base: Generator | None, device: torch.device | str | None
) -> dict[str, Any]:
    tensors = hub.read_tensors(folder / hub.WEIGHTS_NAME)
    header = hub.read_metadata(folder / hub.WEIGHTS_NAME)
    name = None if config["base"] is None else BaseName(**config["base"])
    if name is not None and base is None:
        try:
            base = name.load(device=device)
        except ModelNotFoundError as e:
            raise ModelNotFoundError(
                f"{folder} holds only what differs from the base model {name.name_or_path!r}, which is not there: "
                f"{e} If you have it elsewhere, give its generator: load(folder, base=pipe.generator)."
            ) from e
    generators: list[Generator] = []
    for k, entry in enumerate(config["generators"]):
        prefix = f"generator.{k}."
        parts = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if entry["kind"] == "whole":
            source = f"{folder / hub.WEIGHTS_NAME}, generator {k},"
            generator = hub.build_module(Generator, GeneratorConfig, entry["config"], source=source)
            hub.fill_module(generator, parts, source=source)
            generators.append(generator.to(device=device))
            continue
        if base is None:
            raise KeyError("base")
        texts = {key.removeprefix(prefix): text for key, text in header.items() if key.startswith(prefix)}
        delta = GeneratorDelta.from_tensors(parts, texts)
        if delta.tensors or delta.base_sha256 != generator_sha256(base):
            generators.append(delta.apply(base).to(device=device))
        else:
            generators.append(base)  # an encoder's: nothing was tuned
    photos = config["photos"]
    pictures = [[_picture(tensors, entry[kind]) for entry in photos] for kind in ("crop", "photo")]
    drawn = {kind: [_picture(tensors, entry[kind]) for entry in photos] for kind in ("image", "reconstruction")}
    return {
        "images": drawn["image"],
        "reconstructions": drawn["reconstruction"],
        "w_inverted": tensors.get("w_inverted"),
        "base": None if base is None or name is None else Base(base, name),
        **_shared_fields(config, tensors["w_plus"], generators, *pictures),
    }


def _read_1(
    folder: Path, config: Mapping[str, Any], base: Generator | None, device: torch.device | str | None
) -> dict[str, Any]:
    """Format 1, of version 0.1: pictures as PNG files, generators whole, each in a folder of its own."""
    photos = config["photos"]
    pictures = {
        kind: [load_image(folder / f"{kind}_{i}.png") for i in range(len(photos))]
        for kind in ("image", "reconstruction", "crop", "photo")
    }
    count = 1 + max(int(entry["generator"]) for entry in photos)
    generators = [
        hub.load_module(Generator, GeneratorConfig, folder / f"generator_{k}", device=device) for k in range(count)
    ]
    w_plus = hub.read_tensors(folder / hub.WEIGHTS_NAME)["w_plus"]
    return {
        "images": pictures["image"],
        "reconstructions": pictures["reconstruction"],
        **_shared_fields(config, w_plus, generators, pictures["crop"], pictures["photo"]),
    }


def _shared_fields(
    config: Mapping[str, Any],
    w_plus: Tensor,
    generators: Sequence[Generator],
    crops: Sequence[Image.Image],
    photos: Sequence[Image.Image],
) -> dict[str, Any]:
    entries = config["photos"]
    return {
        "w_plus": w_plus,
        "generators": [generators[int(entry["generator"])] for entry in entries],
        "crops": [
            Crop(
                crop,
                None if entry["quad"] is None else np.asarray(entry["quad"], dtype=np.float64),
                photo,
                face_count=int(entry["face_count"]),
                face_index=int(entry["face_index"]),
            )
            for entry, crop, photo in zip(entries, crops, photos)
        ],
        "edits": {str(name): float(strength) for name, strength in config["edits"].items()},
        "reports": [dict(entry["report"]) for entry in entries],
    }


def _to_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _picture(tensors: Mapping[str, Tensor], number: int) -> Image.Image:
    return load_image(tensors[f"picture.{number}"].numpy().tobytes())
