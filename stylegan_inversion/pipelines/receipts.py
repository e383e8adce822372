"""Receipts: a picture says what made it, and `redraw` makes it again from that and the photo.

A receipt is JSON in the picture's XMP, beside the mark of AI's work: IPTC's `DigitalSourceType`
(cv.iptc.org/newscodes/digitalsourcetype). It names no file and no folder. Who wrote it may be a stranger: it can choose
a model by a name of the package, the catalogue or the Hub, numbers that a call checks, and nothing else.
"""

import copy
import dataclasses
import html
import inspect
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageChops, JpegImagePlugin

from stylegan_inversion import __version__, storage
from stylegan_inversion.catalogue import catalogue
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.inversion.generator_delta import generator_sha256
from stylegan_inversion.pipelines.base import ImageLike, InversionPipeline
from stylegan_inversion.pipelines.base_name import Base, BaseName
from stylegan_inversion.pipelines.loading import find_device
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.pipelines.output import InversionOutput, read_quad
from stylegan_inversion.pipelines.play import check_edits, find_components
from stylegan_inversion.preprocessing.align import Crop, around, crop_again
from stylegan_inversion.preprocessing.image import (
    LIBRARY,
    ImageLimits,
    encode_image,
    load_image,
    open_source,
    pixels_sha256,
    save_image,
)
from stylegan_inversion.preprocessing.paste import Detail, paste_back

Kind = Literal["photo", "edited", "generated"]  # as it came; a photo with an edited face; a face of nobody
OF_NOBODY = {"truncation", "source"}  # in the reports of what no photo shows
MARGIN = 0.25  # of the photo around a face, relative to it

FORMATS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {"PNG": {}, "JPEG": {"quality": 92, "subsampling": 0}, "WEBP": {"lossless": True}}
)
_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MARKS = {
    "edited": (
        f"{_VOCABULARY}compositeWithTrainedAlgorithmicMedia",
        "AI-edited: a part of this picture was changed with a StyleGAN2 model.",
    ),
    "generated": (
        f"{_VOCABULARY}trainedAlgorithmicMedia",
        "AI-generated: a StyleGAN2 model drew this, which shows nobody and nothing real.",
    ),
}
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:inversion="https://pypi.org/project/stylegan-inversion/">
<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{sentence}</rdf:li></rdf:Alt></dc:description>
<xmp:CreatorTool>stylegan-inversion</xmp:CreatorTool>{receipt}
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
_IN_XMP = re.compile(rb"<inversion:receipt>([^<]+)</inversion:receipt>")
_ODD = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, StopIteration)
_OPTIONS = {"pivot": str, "num_w_steps": int, "num_tuning_steps": int, "seed": int, "num_iterations": int}  # of calls
_MAX_BYTES = 20_000
MAX_STEPS = 1000  # of each stage of an optimisation, which a stranger may ask for unasked
_SHA256, _REPOSITORY = re.compile(r"[0-9a-f]{64}"), re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WORD = re.compile(r"[\w.+ -]{1,60}")


def _draw_photo(out: InversionOutput, crop: Crop, detail: Detail) -> Image.Image:
    return paste_back(crop, out.images[0], reference=out.reconstructions[0], detail=detail)


PICTURES: Mapping[str, Callable[[InversionOutput, Detail], Image.Image]] = MappingProxyType(
    {
        "photo": lambda out, detail: _draw_photo(out, out.crops[0], detail),  # with the face in place
        "face": lambda out, detail: _draw_photo(out, around(out.crops[0], MARGIN), detail),  # that part of it
        "drawn": lambda out, detail: out.images[0],  # what the generator draws
    }
)


@dataclass(frozen=True)
class Receipt:
    """What made a picture.

    Attributes:
        picture: Which picture of an inversion it is, a key of `PICTURES`.
        detail: As in `paste_back`.
        pixels: The sha256 of its pixels (RGB, row by row) before they were written to a file.
        photo: The sha256 of the pixels of the photo (RGB, upright); `None` if the receipt knows of none.
        quad: The corners of the crop in the photo, as they were asked for; `None` if its middle was taken.
        model: Where the model is found again; `None` if it has no name that others know.
        generator: `generator_sha256` of the model's generator.
        method: A key of `METHODS`; `None` if no single call makes the picture again.
        call: The arguments of that call.
        settings: The other settings of the pipeline that matter.
        edits: Strength by direction.
        version: Of this package.
        torch: The version of PyTorch.
        device: "cpu", "cuda" or "mps".
        dtype: The floating-point type, such as "float32".
        threads: How many of PyTorch's.
    """

    picture: str
    detail: Any
    pixels: str
    photo: str | None
    quad: Any
    model: BaseName | None
    generator: str
    method: str | None
    call: dict[str, Any]
    settings: dict[str, Any]
    edits: dict[str, float]
    version: str
    torch: str
    device: str
    dtype: str
    threads: int

    @classmethod
    def of(cls, out: InversionOutput, picture: str, image: Image.Image, *, detail: Detail = "move") -> "Receipt":
        """Make the receipt of a picture of one photo's inversion."""
        (crop,), base = out.crops, out.base or Base(out.generator.unstyled)
        known = bool(out.reports) and (crop.asked is not None or crop.is_central)
        made: Any = out.reports[0].get("made") if known else None
        plain = cls(
            picture=picture,
            detail=detail,
            pixels=pixels_sha256(image),
            photo=crop.photo_sha256 if made or picture != "drawn" else None,
            quad=None if crop.asked is None else crop.asked.tolist(),
            model=base.name if base.name is not None and _is_public(base.name) else None,
            generator=base.sha256,
            method=None,
            call={},
            settings={},
            edits={name: strength for name, strength in out.edits.items() if name.isidentifier()},
            version=__version__,
            torch=torch.__version__,
            device=base.generator.w_avg.device.type,
            dtype=str(base.generator.w_avg.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        with suppress(*_ODD):  # what a saved inversion of a stranger says
            name, call, settings = made
            method = next(row.name for row in METHODS.values() if row.pipeline.__name__ == name)
            return cls.from_json(dataclasses.replace(plain, method=method, call=call, settings=settings).to_json())
        return plain

    @classmethod
    def from_json(cls, text: str | bytes) -> "Receipt":
        """Read what `to_json` gives, or anything else. Raises `ValueError` if it is no receipt."""
        try:
            if len(text) > _MAX_BYTES:
                raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
            found = json.loads(text)
            receipt = cls(**{**found, "model": found["model"] and BaseName(**found["model"])})
            receipt._check()
            return receipt
        except _ODD as e:
            raise ValueError(f"The receipt is damaged, or of another version: {str(e)[:300]}.") from e

    def to_json(self) -> str:
        """The receipt as JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    def _check(self) -> None:
        """Check what a stranger may have written."""
        hashes = (self.pixels, self.generator, *([] if self.photo is None else [self.photo]))
        method = None if self.method is None else METHODS[self.method]
        options = {*inspect.signature(method.pipeline.__call__).parameters} & _OPTIONS.keys() if method else set()
        sound = {
            "picture": self.picture in PICTURES,
            "detail": self.detail in ("move", "add", "none"),
            "pixels, photo and generator": all(_SHA256.fullmatch(each) for each in hashes),
            "model": self.model is None or _is_public(self.model),
            "call": all(name in options and type(v) is _OPTIONS[name] for name, v in self.call.items()),
            "settings": isinstance(self.settings.get("pti", {}).get("perceptual", "alex"), str),
            "edits": all(name.isidentifier() and math.isfinite(v) for name, v in self.edits.items()),
            "threads": isinstance(self.threads, int),
            "version, torch and dtype": all(_WORD.fullmatch(each) for each in (self.version, self.torch, self.dtype)),
            "device": self.device in ("cpu", "cuda", "mps"),
        }
        if wrong := [name for name, fits in sound.items() if not fits]:
            raise ValueError(f"its {wrong[0]} is nothing that this package writes")
        if self.quad is not None:
            read_quad(self.quad)

    def check_repeatable(self) -> None:
        """Raise `ValueError` if no single call makes the picture again."""
        if self.method is None or self.photo is None:
            raise ValueError(
                "The receipt says that no single call makes this picture again: it is a mixture, a face of nobody, one "
                "of several photos that share a generator, one stopped by hand or begun at an earlier inversion, "
                "edited under a mask or by a mapper's file, or drawn from a table."
            )

    def crop(self, pipeline: InversionPipeline, photo: Image.Image) -> Crop:
        """Cut the photo as the receipt says, if it is that photo, and the pipeline the one that made the picture.

        Raises:
            ValueError: If no single call makes the picture again, it is another photo, or the pipeline is of another
                method or has other settings.
            CheckpointError: If the pipeline has another generator.
        """
        self.check_repeatable()
        if not isinstance(pipeline, METHODS[str(self.method)].pipeline):
            raise ValueError(f"The receipt is of {self.method}, and the pipeline is a {type(pipeline).__name__}.")
        if pixels_sha256(photo) != self.photo:
            raise ValueError("This is another photo than the receipt's: its pixels have another sha256.")
        if generator_sha256(pipeline.generator) != self.generator:
            raise CheckpointError("The receipt is of another model: the generator here has other weights.")
        if json.loads(json.dumps(pipeline.settings)) != self.settings:
            raise ValueError("The receipt is of other settings than the pipeline's: give one with those it names.")
        size = pipeline.generator.config.resolution
        return pipeline.domain.crop(photo, size) if self.quad is None else crop_again(photo, read_quad(self.quad), size)

    def compare(self, image: Image.Image, file: bytes | None = None) -> "Redrawn":
        """Compare a redrawn picture with the one in a file, written as that is; without one, with the receipt."""
        if file is None or file.lstrip()[:1] == b"{":
            same = pixels_sha256(image) == self.pixels
            words = "It is the picture of the receipt." if same else "Its pixels have not the receipt's sha256."
        else:
            there = load_image(file)
            if there.size != image.size:
                size = f"{there.width} x {there.height} pixels, the redrawn one {image.width} x {image.height} pixels"
                return Redrawn(image, False, f"The file was changed since it was drawn: its picture has {size}.")
            levels = np.asarray(ImageChops.difference(there, _written_as(file, image))).max(axis=2)
            same = not levels.any()
            share = f"{(levels > 0).sum()} of {levels.size} pixels differ, by {levels.max()} of 255 levels at most."
            words = "It is the same picture, pixel for pixel." if same else share
        made, here = (
            f"version {version}, PyTorch {framework}, {threads} threads"
            for version, framework, threads in (
                (self.version, self.torch, self.threads),
                (__version__, torch.__version__, torch.get_num_threads()),
            )
        )
        return Redrawn(image, same, words if same else f"{words} Made by {made} on a {self.device}; here: {here}.")


class Redrawn(NamedTuple):
    """A picture that was drawn again, whether it is the same, and what was compared, in a sentence."""

    image: Image.Image
    same: bool
    words: str


def kind_of(out: InversionOutput) -> Kind:
    """How a picture has to be marked."""
    return "generated" if out.reports and OF_NOBODY & out.reports[0].keys() else "edited"


def mark(kind: Kind, receipt: Receipt | None = None) -> bytes | None:
    """The XMP packet of a picture; `None` for a photo that nothing changed."""
    if kind == "photo":
        return None
    (source, sentence), element = MARKS[kind], ""
    if receipt is not None:
        element = f"\n<inversion:receipt>{html.escape(receipt.to_json(), quote=False)}</inversion:receipt>"
    return _XMP.format(source=source, sentence=sentence, receipt=element).encode()


def save_picture(
    out: InversionOutput,
    path: str | os.PathLike[str],
    *,
    picture: Literal["photo", "face", "drawn"] = "photo",
    detail: Detail = "move",
) -> None:
    """Write a picture of one photo's inversion with its receipt, from which `redraw` makes it again.

    Args:
        out: An inversion of one photo, usually edited; take `out[i]` of several.
        path: A .png, a .jpg, or a .webp, which is lossless. Its metadata say that it is AI-edited, and what made it.
        picture: The "photo" with the face in place, the part of it around the "face", or what is "drawn".
        detail: As in `paste_back`.

    Raises:
        ValueError: If there are several photos, or an argument is none of these.
        CheckpointError: If the file cannot be written.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    if len(out) != 1:
        raise ValueError(f"`out` must be one photo, got {len(out)}: take one of them, such as `out[0]`.")
    if kind not in FORMATS:
        raise ValueError(f"`path` must end in .png, .jpg or .webp, got {path.name!r}.")
    if picture not in PICTURES:
        raise ValueError(f"`picture` must be one of {', '.join(PICTURES)}, got {picture!r}.")
    image = PICTURES[picture](out, detail)
    xmp = mark(kind_of(out), Receipt.of(out, picture, image, detail=detail))
    save_image(image, path, xmp=xmp, **FORMATS[kind])


def read_receipt(source: str | os.PathLike[str] | bytes, limits: ImageLimits = LIBRARY) -> Receipt:
    """Read the receipt of a picture, or of a JSON file.

    Args:
        source: A path, or the bytes of a file.
        limits: Which pictures are opened; none is decoded.

    Raises:
        ValueError: If it holds no receipt, or a damaged one.
        InvalidImageError: If it is neither JSON nor a picture.
    """
    data = _bytes_of(source)
    if data.lstrip()[:1] == b"{":
        return Receipt.from_json(data)
    with open_source(data, limits) as (image, _):
        packet = image.info.get("xmp") or b""
    if (found := _IN_XMP.search(packet if isinstance(packet, bytes) else str(packet).encode())) is None:
        raise ValueError("The picture has no receipt: another program wrote it, or took its metadata away.")
    return Receipt.from_json(html.unescape(found[1].decode("utf-8", errors="replace")))


def redraw(
    source: str | os.PathLike[str] | bytes,
    photo: ImageLike,
    *,
    model: InversionPipeline | str | os.PathLike[str] | None = None,
    allow_download: bool = False,
    max_steps: int = MAX_STEPS,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Redrawn:
    """Make a picture again from its receipt and the photo.

    On the same machine, with the same versions of PyTorch and of this package and as many threads, it is the same to
    the last bit; elsewhere the networks round differently, and an optimisation such as PTI's makes more of that.

    Args:
        source: The picture, or its receipt as JSON: a path, or the bytes of the file.
        photo: The photo that it was made from.
        model: The model of the receipt, if that does not name it or it is elsewhere: a name, a folder, or a pipeline.
        allow_download: Fetch the model that the receipt names. Who wrote the receipt chose it, so by default only
            models on this machine are loaded.
        max_steps: Most steps of a stage of an optimisation, or passes of an encoder, that the receipt may ask for.
        device: Where to run. `None` means the kind of device that the receipt names, or else the CPU.
        progress: Show a progress bar.

    Returns:
        The picture; whether it is the same as the given one, written as that is, or as the one of the receipt; and in
        a sentence what was compared.

    Raises:
        ValueError: If it holds no receipt, a damaged one, or one of another photo, of another method or other settings,
            of an unknown direction, of too many steps, or of a picture that no single call makes again.
        InvalidImageError: If the picture or the photo cannot be read.
        ModelNotFoundError: If the model is not on this machine.
        CheckpointError: If the model there has other weights.
    """
    data = _bytes_of(source)
    receipt = read_receipt(data)
    image = load_image(photo)
    pipeline = model if isinstance(model, InversionPipeline) else _load(receipt, model, allow_download, device)
    crop = receipt.crop(pipeline, image)
    call: dict[str, Any] = {name: value for name, value in receipt.call.items() if name != "seed"}
    asked = list(cast(Any, pipeline).plan(**call)) if pipeline.optimizes else [*call.values()]
    if most := [steps for steps in asked if isinstance(steps, int) and steps > max_steps]:
        raise ValueError(
            f"The receipt and its model ask for {max(most)} steps, more than {max_steps}. If you trust whoever made "
            f"them, allow them: `max_steps={max(most)}` (--max-steps)."
        )
    if {*receipt.edits} - {*pipeline.directions}:  # the page has these, too
        found = [each for group in find_components(pipeline.generator).values() for each in group]
        pipeline = copy.copy(pipeline)
        pipeline.directions = {each.name: each for each in found} | pipeline.directions
    check_edits(pipeline, receipt.edits)
    out = pipeline(crop, progress=progress, **receipt.call)
    edited = pipeline.edit(out, **receipt.edits) if receipt.edits else out
    return receipt.compare(PICTURES[receipt.picture](edited, receipt.detail), data)


def _load(receipt: Receipt, model: Any, allow_download: bool, device: Any) -> InversionPipeline:
    """Load the pipeline of a receipt: of the model that the user names, or of the receipt's if it is here."""
    receipt.check_repeatable()
    row, name = METHODS[str(receipt.method)], receipt.model
    dtype = next((each for each in row.pipeline.dtypes if str(each) == f"torch.{receipt.dtype}"), None)
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    if device is None:
        with suppress(ValueError):  # this machine has none
            options["device"] = find_device(receipt.device)
    if row.optimizes:
        options["perceptual"] = receipt.settings.get("pti", {}).get("perceptual")
    if model is not None:
        return row.pipeline.from_pretrained(model, **options)
    if name is None:
        raise ModelNotFoundError("The receipt does not name its model, which others do not know: give it, by `model`.")
    trust = "If you trust who made the picture, let it be fetched: `allow_download=True` (--allow-download)."
    return name.load_pipeline(row.pipeline, allow_download=allow_download, advice=trust, **options)


def _is_public(name: BaseName) -> bool:
    """Whether others find the model by its name: one of the package, of the catalogue, or a commit of the Hub."""
    if not isinstance(name.subfolder, str | None):
        return False
    if name.name_or_path in {*storage.builtin_models(), *(entry.name for entry in catalogue())}:
        return name.revision is None
    is_commit = bool(re.fullmatch(r"[0-9a-f]{40}", name.revision or ""))
    return is_commit and bool(_REPOSITORY.fullmatch(name.name_or_path))


def _bytes_of(source: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    if not os.path.isfile(source):  # a named pipe could be read for ever
        raise ValueError(f"{os.fspath(source)[:300]} is no file: give a picture, or its receipt as JSON.")
    return Path(source).read_bytes()


def _written_as(file: bytes, image: Image.Image) -> Image.Image:
    """What is left of a picture when it is written as the one in a file: a JPEG with the same tables, or all of it."""
    with open_source(file) as (there, _):
        if there.format != "JPEG":
            return image
        tables = {"qtables": there.quantization, "subsampling": JpegImagePlugin.get_sampling(there)}  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    encode_image(image, buffer, "JPEG", **tables)
    return load_image(buffer.getvalue())
