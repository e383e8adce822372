"""What an inversion is: the pair (`w_plus`, `generator`), the pictures it draws, and where they came from.

Its folder holds `config.json` (numbers and names) and `model.safetensors`: the codes, the photo and the crop as PNG,
and of each tuned generator only what differs from its base, which is found again by its name; of a generator that
draws on the photo's own features, those. Generators of a base without a name are kept whole.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from stylegan_inversion import storage
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.inversion.generator_delta import GeneratorDelta, delta_file, generator_sha256, read_generator
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.feature_generator import PHOTO, FeatureGenerator, editor_among
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.sfe_encoder import FeatureEditor, FeatureEditorConfig, StyleFeatureEncoder
from stylegan_inversion.pipelines.base_name import Base, BaseName
from stylegan_inversion.preprocessing.align import Crop, crop_quad
from stylegan_inversion.preprocessing.domain import Domain, middle_rows
from stylegan_inversion.preprocessing.image import load_image, open_image, to_pil

FORMAT = 2
RUN = "run.json"  # the settings of a folder's run
_KINDS = ("image", "reconstruction", "crop", "photo")
_FARTHEST = 1_000_000  # pixels from the photo's corner to a corner of a crop
_T = TypeVar("_T")
_SLACK, _MAX_GROWTH = 300_000_000, 50  # a loaded output may take so many bytes, and so many times those of its file


@torch.no_grad()
def draw(generators: Sequence[Generator], w_plus: Tensor, *, rows: int | None = None) -> Tensor:
    """Draw codes by their own generators: (B, 3, R, R), about [-1, 1], on the CPU; `rows` keeps some in the middle."""
    pairs = zip(generators, w_plus, strict=True)
    drawn = torch.cat([generator.synthesis(w[None].to(generator.w_avg)).cpu().float() for generator, w in pairs])
    return drawn if rows is None else middle_rows(drawn, rows)


@dataclass(frozen=True, eq=False)
class InversionOutput:
    """One or more inverted photos, edited or not; `out[i]` is the i-th alone.

    Attributes:
        images: What the generators draw at `w_plus`: RGB, R x R, or without black bars above and below.
        reconstructions: What they draw without the edits; the same as `images` before any edit.
        w_plus: Style codes, (B, num_ws, w_dim), on the CPU.
        generators: The generator that draws each photo: one shared by all, or one of its own for each.
        crops: The parts of the photos that were inverted, and the photos.
        edits: The sum of all edits so far, by direction, each in its unit.
        reports: Figures for each inversion, such as "l2" (mean squared error in [-1, 1]), "seconds", "stopped_by".
        base: The pipeline's generator, which the tuned ones are copies of; `None` if it is unknown.
        w_inverted: The codes before any edit, as `w_plus`; `None` if there was none.
    """

    images: list[Image.Image]
    reconstructions: list[Image.Image]
    w_plus: Float[Tensor, "batch num_ws w_dim"]
    generators: Sequence[Generator]
    crops: list[Crop]
    edits: dict[str, float] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    base: Base | None = None
    w_inverted: Float[Tensor, "batch num_ws w_dim"] | None = None

    def __len__(self) -> int:
        """The number of photos."""
        return len(self.images)

    def __getitem__(self, index: int) -> "InversionOutput":
        """One photo as an output of its own."""
        index = range(len(self))[index]
        names = ("images", "reconstructions", "w_plus", "w_inverted", "generators", "crops", "reports")
        one = {name: value[index : index + 1] for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **one)

    def __repr__(self) -> str:
        size, edits = self.images[0].size, ", ".join(f"{name}={step:g}" for name, step in self.edits.items())
        drawn = f"{size[0]} x {size[1]} px by {type(self.generators[0]).__name__}"
        return f"InversionOutput({len(self)} of {drawn}; w_plus: {tuple(self.w_plus.shape)}; edits: {edits or 'none'})"

    def __iter__(self) -> Iterator["InversionOutput"]:
        """The photos, one by one."""
        return (self[i] for i in range(len(self)))

    @property
    def generator(self) -> Generator:
        """The generator that draws the photos. Raises `ValueError` if they have several: take `out[i].generator`."""
        if any(generator is not self.generators[0] for generator in self.generators):
            raise ValueError(f"Each of the {len(self)} photos has its own generator: take `out[i].generator`.")
        return self.generators[0]

    @property
    def w_unedited(self) -> Float[Tensor, "batch num_ws w_dim"]:
        """The codes of `reconstructions`: those before any edit."""
        return self.w_plus if self.w_inverted is None else self.w_inverted

    @property
    def unrepeatable(self) -> "InversionOutput":
        """The same without the report of the call that gives it again: something is done that no receipt knows."""
        return replace(self, reports=[{k: v for k, v in report.items() if k != "made"} for report in self.reports])

    @property
    def unedited(self) -> "InversionOutput":
        """The same inversion before any edit."""
        plain = replace(self, generators=[generator.unstyled for generator in self.generators], edits={})
        return replace(plain, images=self.reconstructions, w_plus=self.w_unedited, w_inverted=None)

    def save(
        self,
        folder: str | Path,
        *,
        rank: int | None = None,
        energy: float | None = None,
        dtype: torch.dtype | None = None,
        whole: bool = False,
    ) -> Path:
        """Write everything to a folder: `config.json` and one `model.safetensors`.

        Tuned generators are stored as their difference from the pipeline's generator if that was loaded by a name;
        without options this is exact, and so is every picture after `load`.

        Args:
            folder: Made if needed.
            rank: Keep the difference of each weight matrix at this rank; see `GeneratorDelta.between`.
            energy: Keep this share of each difference's squared norm.
            dtype: Keep the difference in this type, such as `torch.float16`.
            whole: Keep whole generators instead: larger, but loadable without the base model.

        Raises:
            ValueError: If an option is out of range, or given for a pipeline without a name or with `whole`.
            CheckpointError: If the folder cannot be written.
        """
        base = None if whole or self.base is None or self.base.name is None else self.base
        if base is None and (rank, energy, dtype) != (None, None, None):
            raise ValueError(
                "`rank`, `energy` and `dtype` are for the change from a base model, so not with `whole`, nor where "
                "that has no name: save the pipeline with `save_pretrained`, and load it with `from_pretrained`."
            )
        plain = [each.unstyled for each in self.generators]
        bases = [each.base if isinstance(each, FeatureGenerator) else each for each in plain]
        unique = list(dict.fromkeys(bases))
        numbers = [unique.index(generator) for generator in bases]
        tensors = {"w_plus": self.w_plus} | ({} if self.w_inverted is None else {"w_inverted": self.w_inverted})
        header, generators = dict[str, str](), list[dict[str, Any]]()
        images, reconstructions, reports = self.images, self.reconstructions, self.reports
        for k, generator in enumerate(unique):
            if base is None:
                parts, texts = storage.plain_state_dict(generator), dict[str, str]()
                generators.append({"kind": "whole", "config": asdict(generator.config)})
            else:
                delta = GeneratorDelta.between(base.generator, generator, rank=rank, energy=energy, dtype=dtype)
                if delta.relative_error or any(delta.errors.values()):  # the pictures must fit what is loaded again
                    kept, mine = delta.apply(base.generator), [number == k for number in numbers]
                    styled = [kept.with_styles(each.style_offset) for each in self.generators]
                    images = _redrawn(images, self.w_plus, styled, mine)
                    reconstructions = _redrawn(reconstructions, self.w_unedited, [kept] * len(self), mine)
                    reports = self.unrepeatable.reports
                parts, texts = delta.to_tensors()
                generators.append({"kind": "delta", "relative_error": delta.relative_error})
            tensors |= {f"generator.{k}.{name}": tensor for name, tensor in parts.items()}
            header |= {f"generator.{k}.{name}": text for name, text in texts.items()}
        photos, pictures, editor = list[dict[str, Any]](), dict[bytes, int](), None
        for i, each in enumerate(self.generators):
            if each.style_offset is not None:
                tensors[f"styles.{i}"] = each.style_offset.clone()  # photos may share it
            if isinstance(each, FeatureGenerator):
                editor = each.synthesis.editor  # one for all
                tensors |= {f"photo.{i}.{name}": tensor.clone() for name, tensor in each.photo.items()}
        if editor is not None and base is None:
            tensors |= {f"editor.{name}": tensor for name, tensor in storage.plain_state_dict(editor).items()}
        for i, crop in enumerate(self.crops):
            entry = {
                "generator": numbers[i],
                "quad": None if crop.quad is None else crop.quad.tolist(),
                "asked": None if crop.asked is None else crop.asked.tolist(),
                "face_count": crop.face_count,
                "face_index": crop.face_index,
                "report": reports[i] if reports else {},
            }
            # What the generators draw is kept too: on another machine they may draw it a shade differently.
            for kind, picture in zip(_KINDS, (images[i], reconstructions[i], crop.image, crop.photo), strict=True):
                buffer = io.BytesIO()
                picture.save(buffer, "PNG")
                entry[kind] = pictures.setdefault(buffer.getvalue(), len(pictures))  # faces of one photo share it
            photos.append(entry)
        tensors |= {f"picture.{k}": torch.frombuffer(bytearray(png), dtype=torch.uint8) for png, k in pictures.items()}
        config = {
            "_class_name": "InversionOutput",
            "_format": FORMAT,
            "base": None if base is None or base.name is None else asdict(base.name),
            "edits": self.edits,
            "generators": generators,
            "editor": editor and {**asdict(editor.config), "_sha256": generator_sha256(editor)},
            "photos": photos,
        }
        with storage.write_together(Path(folder)) as stage:
            storage.write_tensors(tensors, stage / storage.WEIGHTS_NAME, metadata=header)
            storage.write_config(config, stage)
        return Path(folder)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        base: Generator | None = None,
        networks: Iterable[nn.Module] = (),
        allow_download: bool = False,
        device: torch.device | str | None = None,
    ) -> "InversionOutput":
        """Read what `save` wrote.

        Args:
            folder: The folder.
            base: The generator of the model that the inversion was made with. `None` loads that model by its name.
            networks: With `base`, the `networks` of its pipeline: among them is what moves the features of a photo.
            allow_download: Fetch that model from the Hub or a folder of another machine if it is not here. Who wrote
                the folder chose the name, so by default only models on this machine are loaded.
            device: Where to put the generators, as in `from_pretrained`; `None` leaves them with `base`.

        Raises:
            ValueError: If this machine has no such device.
            CheckpointError: If the folder is not such a folder, a file is missing or damaged, or `base` (or what is
                now found under its name) is another generator.
            ModelNotFoundError: If the base model is not found.
        """
        from stylegan_inversion.pipelines.loading import find_device  # it imports this file

        device = None if device is None else find_device(device)
        folder = Path(folder)
        config = storage.read_config(folder)
        if config.get("_class_name") != "InversionOutput" or config.get("_format") != FORMAT:
            raise CheckpointError(f"{folder} was not written by `InversionOutput.save` of this version.")
        try:
            name = None if config["base"] is None else BaseName(**config["base"])
            if base is None and name is not None:
                base = name.load(allow_download=allow_download, device=device)
                if config.get("editor") is not None:
                    model = name.find(allow_download=allow_download)
                    rows = [row for row in ENCODERS.values() if row.network is StyleFeatureEncoder]
                    networks = [storage.load_module(r.network, r.config, model / r.folder, device=device) for r in rows]
            out = _read(folder / storage.WEIGHTS_NAME, config, base, networks, device)
        except ModelNotFoundError as e:
            fetch = "" if allow_download else ", or let it be fetched: load(folder, allow_download=True)"
            raise ModelNotFoundError(
                f"{folder} holds only what differs from the base model {config['base']['name_or_path']!r}, which is "
                f"not there: {e} If you have it elsewhere, give its generator: "
                f"load(folder, base=pipe.generator, networks=pipe.networks){fetch}."
            ) from e
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as e:
            raise CheckpointError(f"{folder} is damaged or incomplete: {type(e).__name__}: {e}") from e
        return out if base is None or name is None else replace(out, base=Base(base, name))

    @classmethod
    def from_row(
        cls,
        row: Mapping[str, Any],
        base: Generator,
        *,
        folder: str | Path = ".",
        photo: Any = None,
        networks: Iterable[nn.Module] = (),
        domain: Domain | None = None,
    ) -> "InversionOutput":
        """Make an output of a row that `batch.invert_folder` wrote, whoever read it: pyarrow, pandas or `datasets`.

        Args:
            row: The row, by column.
            base: The generator of the model that the row names: `pipe.generator`.
            folder: The output folder of the run, which says what the model takes and holds the generators: rows with a
                `delta` need it, and models that do not take faces.
            photo: The photo, as `load_image` takes it. `None` takes the drawn face as the photo.
            networks: As in `load`.
            domain: What the model takes, such as `pipe.domain`. `None` takes what the folder's run says, or else faces.

        Raises:
            ValueError: If the row holds no face, or codes of another model.
            CheckpointError: If the file of the generator is missing or is another one.
            ModelNotFoundError: If `networks` lacks what moves the features of the photo.
        """
        if row["error"] is not None:
            raise ValueError(f"The row of {row['path']!r} holds no inversion: {row['error']}")
        w_plus = torch.from_numpy(np.array([[np.asarray(w, np.float32) for w in row["w_plus"]]]))
        if w_plus.shape[1:] != (sizes := (base.num_ws, base.config.w_dim)):
            raise ValueError(f"`w_plus` is {tuple(w_plus.shape[1:])}, but `base` takes {sizes}.")
        if domain is None:
            run = Path(folder) / RUN
            told = storage.read_config(run.parent, name=RUN).get("pipeline", {}) if run.is_file() else {}
            domain = Domain.of_config(told, run)
        generator = base
        if row["delta"] is not None:
            generator = read_generator(delta_file(Path(folder), row["id"]), row["delta"], base, networks)
        images = to_pil(domain.without_bars(draw([generator], w_plus)))
        crop = domain.crop(images[0], images[0].width)
        if photo is not None:
            crop = domain.crop(load_image(photo), images[0].width)
            if domain.has_faces and row["quad"] is not None:
                quad = read_quad([list(corner) for corner in row["quad"]])
                crop = replace(crop, quad=quad, image=crop_quad(crop.photo, quad, images[0].width))
            crop = replace(crop, face_count=int(row["face_count"]), face_index=int(row["face_index"]))
        report = {name: row[name] for name in ("l2", "seconds", "face_count", "face_index")}
        return cls(images, images, w_plus, [generator], [crop], {}, [report], Base(base))


def _redrawn(
    pictures: list[Image.Image], w_plus: Tensor, kept: Sequence[Generator], mine: Sequence[bool]
) -> list[Image.Image]:
    """The pictures, with what the `kept` generators draw in place of those that are marked."""
    return [
        to_pil(draw([one], w[None], rows=picture.height))[0] if redraw else picture
        for picture, w, one, redraw in zip(pictures, w_plus, kept, mine)
    ]


def _read(
    weights: Path, config: Mapping[str, Any], base: Generator | None, networks: Iterable[nn.Module], device: Any
) -> InversionOutput:
    tensors, photos = storage.read_tensors(weights), config["photos"]
    own = _read_generators(weights, config, tensors, base, device)
    generators = [own[int(entry["generator"])] for entry in photos]
    if config.get("editor") is not None:
        editor = _read_editor(weights, config, tensors, networks, device)
        for i, generator in enumerate(generators):
            photo = {name: tensors[f"photo.{i}.{name}"].to(generator.w_avg) for name in PHOTO}
            generators[i] = FeatureGenerator(generator, editor, **photo)
    offsets, styled = [tensors.get(f"styles.{i}") for i in range(len(photos))], dict[Any, Generator]()
    keys = [(id(one), x if x is None else x.numpy().tobytes()) for one, x in zip(generators, offsets)]  # shared stay so
    generators = [styled.setdefault(key, one.with_styles(x)) for key, one, x in zip(keys, generators, offsets)]
    shapes = {(len(photos), generator.num_ws, generator.config.w_dim) for generator in generators}
    for name in {"w_plus", *tensors} & {"w_plus", "w_inverted"}:
        if {found := tuple(tensors[name].shape)} != shapes:
            raise ValueError(f"`{name}` is {found}, and the photos and their generators need {shapes}")
    edits = {name: float(strength) for name, strength in config["edits"].items()}
    if not all(math.isfinite(strength) for strength in edits.values()):
        raise ValueError(f"`edits` must be finite, got {edits}")
    pictures: dict[Any, Image.Image] = {}
    unpacked = packed = 0
    for number in sorted({entry[kind] for kind in _KINDS for entry in photos}):
        png = tensors[f"picture.{number}"].numpy().tobytes()
        with open_image(io.BytesIO(png), "A picture") as image:
            packed += len(png)
            unpacked += 3 * image.width * image.height  # as the header announces, before any of it is decoded
            if unpacked > _SLACK + _MAX_GROWTH * packed:
                raise ValueError(f"its pictures would take more than {unpacked / 1e9:.1f} GB")
            pictures[number] = load_image(image)
    return InversionOutput(
        images=[pictures[entry["image"]] for entry in photos],
        reconstructions=[pictures[entry["reconstruction"]] for entry in photos],
        w_plus=tensors["w_plus"],
        generators=generators,
        crops=[
            Crop(
                pictures[entry["crop"]],
                None if entry["quad"] is None else read_quad(entry["quad"]),
                pictures[entry["photo"]],
                face_count=int(entry["face_count"]),
                face_index=int(entry["face_index"]),
                asked=None if entry.get("asked") is None else read_quad(entry["asked"]),
            )
            for entry in photos
        ],
        edits=edits,
        reports=[dict(entry["report"]) for entry in photos],
        w_inverted=tensors.get("w_inverted"),
    )


def _read_generators(
    weights: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    base: Generator | None,
    device: torch.device | str | None,
) -> list[Generator]:
    tensors_of, texts_of = _by_generator(tensors), _by_generator(storage.read_header(weights)[1])
    fingerprint = cache(generator_sha256)
    generators: list[Generator] = []
    copies, packed = 0, sum(tensor.nbytes for tensor in tensors.values())
    for k, entry in enumerate(config["generators"]):
        parts = tensors_of.get(str(k), {})
        if entry["kind"] == "whole":
            source = f"{weights}, generator {k},"
            where = {"source": source, "weights": source}
            generators.append(
                storage.build_module(Generator, GeneratorConfig, entry["config"], parts, **where).to(device)
            )
            continue
        if base is None:
            raise KeyError("base")
        delta = GeneratorDelta.from_tensors(parts, texts_of.get(str(k), {}))
        if not delta.tensors and delta.base_sha256 == fingerprint(base):
            generators.append(base)  # an encoder's: nothing was tuned
            continue
        copies += sum(tensor.nbytes for tensor in base.state_dict().values())
        if copies > _SLACK + _MAX_GROWTH * packed:
            raise ValueError(f"its generators would take {copies / 1e9:.1f} GB")
        generators.append(delta.apply(base).to(device=device))
    return generators


def _read_editor(
    weights: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], networks: Iterable[nn.Module], device: Any
) -> FeatureEditor:
    """Take the Feature Editor out of the file, or else out of the networks of the model; it must be the same."""
    own = storage.under(tensors, "editor.")
    if own or not config["base"]:
        where, sizes = f"{weights}, its editor,", config["editor"]
        editor = storage.build_module(FeatureEditor, FeatureEditorConfig, sizes, own, source=where, weights=where)
        return editor.to(device)
    editor = editor_among(networks)
    if generator_sha256(editor) != config["editor"]["_sha256"]:
        raise CheckpointError(f"{weights} belongs to another Feature Editor: load the model that it was made with.")
    return editor


def _by_generator(named: Mapping[str, _T]) -> dict[str, dict[str, _T]]:
    """Group entries `generator.NUMBER.NAME` by number and name, in one pass: a stranger's file may have many."""
    found: dict[str, dict[str, _T]] = {}
    for key, value in named.items():
        top, _, rest = key.partition(".")
        number, _, name = rest.partition(".")
        if top == "generator":
            found.setdefault(number, {})[name] = value
    return found


def read_quad(corners: Any) -> np.ndarray:
    """Check the corners of a crop that a file names. Raises `ValueError` if they are none."""
    quad = np.asarray(corners, dtype=np.float64)
    if quad.shape != (4, 2) or not (np.abs(quad) <= _FARTHEST).all():  # NaN is not
        raise ValueError(f"`quad` must be 4 corners (x, y) within {_FARTHEST} pixels, got {str(corners)[:100]}")
    return quad
