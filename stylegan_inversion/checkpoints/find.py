"""A name becomes a folder or a file, once: on this machine, built in, in the catalogue, or on the Hub.

A checkpoint of the catalogue is fetched, verified and converted into the cache, each of them once. The cache keeps the
converted folder, with the papers' directions, but not the checkpoint unless it was in the cache before.
"""

import logging
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock

from stylegan_inversion import storage
from stylegan_inversion.catalogue import CatalogueEntry, cached_file, cached_url, catalogue, converted_folder, suggest
from stylegan_inversion.checkpoints.direction import style_directions
from stylegan_inversion.checkpoints.export import write_model
from stylegan_inversion.checkpoints.recognise import Part, SingleFile, read_single_file
from stylegan_inversion.editing.directions import Direction, save_directions
from stylegan_inversion.editing.ganspace import name_components
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.hub import (
    MAX_FILE_BYTES,
    Access,
    download,
    download_file,
    file_sha256,
    is_inside,
    is_offline,
    remove,
)
from stylegan_inversion.models.encoders import ENCODERS
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.preprocessing.domain import domain_named
from stylegan_inversion.preprocessing.sources import photo_task

logger = logging.getLogger(__name__)

COMPONENTS = 10  # how many of GANSpace's components a model brings, the widest first
_HUB_FILE = re.compile(r"hf://([^/]+/[^/@]+)(?:@([^/]+))?/(.+)")
_SILENCE = 10.0  # seconds without an answer that end a download from an https address
_CHECKPOINTS = (".pt", ".pth", ".pkl", ".npy", ".ckpt", ".safetensors")
# In units of W's spread: an average of n samples lies 1 / sqrt(n) from the mean, 0.01 for e4e's 10 000; a moving
# average such as NVIDIA's 0.015; the means of two networks lie about 1 apart.
_NEAR = 0.1
_failed: list[str] = []  # why the first file of directions could not be fetched; this process tries no other


def known_entry(name: str | os.PathLike[str]) -> CatalogueEntry | None:
    """Look up a name in the catalogue; `None` for a folder, a built-in model, or any other name."""
    if Path(name).is_dir() or str(name) in storage.builtin_models():
        return None
    return next((entry for entry in catalogue() if entry.name == str(name)), None)


def find_folder(name_or_path: str | os.PathLike[str], access: Access = Access(), *, variant: str | None = None) -> Path:
    """Find the folder of a model: a local folder wins, then a built-in model, the catalogue, and the Hub.

    It holds `config.json`. From the Hub only the weights of `variant` are fetched.

    Raises:
        ValueError: If the subfolder leaves the model, `variant` is not a word, or a name of the catalogue comes with a
            revision.
        ModelNotFoundError: If nothing of that name exists, or it cannot be fetched.
        CheckpointError: If a file is damaged, or cannot be converted.
    """
    name, weights = os.fspath(name_or_path), storage.weights_name(variant)
    if not is_inside(access.subfolder or ""):
        raise ValueError(
            f"`subfolder` must be a relative path inside the model, without '..', got {access.subfolder!r}."
        )
    folder, inside = Path(name), PureWindowsPath(access.subfolder or "").as_posix()  # knows both separators
    if name in storage.builtin_models() and not (folder / storage.CONFIG_NAME).is_file():
        folder = storage.builtin_path(name)
    elif not name or not folder.is_dir():
        folder = _find_elsewhere(name, inside, access, weights)
    folder /= inside
    if (folder / storage.CONFIG_NAME).is_file():
        return folder
    if (folder / "model_index.json").is_file():
        raise ModelNotFoundError(f"{folder} is a pipeline of diffusers (model_index.json), not a GAN of this package.")
    raise ModelNotFoundError(
        f"{folder} holds no {storage.CONFIG_NAME}, so it is not a model saved by this package, or its saving was "
        "interrupted: save it again."
    )


def _find_elsewhere(name: str, inside: str, access: Access, weights: str) -> Path:
    """Find a model that is neither a folder nor built in."""
    if (entry := known_entry(name)) is not None:
        return _find_converted(entry, access)
    if PurePath(name).suffix in _CHECKPOINTS:
        raise CheckpointError(
            f"{name!r} is not a folder in this package's format. A pipeline's `from_single_file` reads it; or convert "
            f"it once, by `stylegan-inversion convert {name} FOLDER`, and give the folder."
        )
    builtin = ", ".join(storage.builtin_models())
    if re.fullmatch(r"[^./~][^/]*/[^/]+", name):
        prefix = "" if inside == "." else f"{inside}/"
        patterns = [f"{prefix}*.json", f"{prefix}*{weights}"]
        if weights != storage.WEIGHTS_NAME:
            patterns += [f"{prefix}*{part}/{storage.WEIGHTS_NAME}" for part in ("directions", "relevance")]
        try:
            return download(name, patterns, access, otherwise=f", or give a folder, or a built-in model: {builtin}")
        except ModelNotFoundError as e:
            hint = suggest(PurePath(name).name) or ""
            raise ModelNotFoundError(f"{e} There is no folder {name!r} here. {hint}".rstrip()) from e
    hint = suggest(name) or "A repository on the Hub is written organisation/repository."
    raise ModelNotFoundError(
        f"No model {name!r}: it is not a folder, and the built-in models are {builtin}. {hint} "
        "`stylegan-inversion models` lists what is known by name."
    )


def find_file(source: str | os.PathLike[str], access: Access = Access(), *, sha256: str | None = None) -> Path:
    """Find a checkpoint on this machine, or fetch it.

    Args:
        source: A path; "hf://organisation/repository/file", with "@revision" after the repository if need be; an
            "https://" address; or a name of the catalogue.
        access: How to fetch it.
        sha256: Hash of the file, checked wherever it is given; required for https.

    Raises:
        ValueError: If the address or the sha256 is invalid, or an https address comes without a sha256.
        ModelNotFoundError: If there is no such file, or it cannot be fetched.
        CheckpointError: If another file came.
    """
    text, path = str(source), Path(source)
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256 := sha256.lower()):
        raise ValueError(f"`sha256` must be 64 hexadecimal digits, got {sha256!r}.")
    if match := _HUB_FILE.fullmatch(text):
        repo_id, revision, filename = match.groups()
        return download_file(repo_id, filename, replace(access, revision=revision), sha256=sha256)
    if text.startswith("https://"):
        if sha256 is None:
            raise ValueError(f"{text}: give the `sha256` of the file too, since nothing else says which file comes.")
        return download_url(text, sha256, access)
    if "://" in text:
        raise ValueError(f"{text!r} is neither a path nor hf://organisation/repository/file nor an https:// address.")
    if not path.exists() and (entry := known_entry(text)) is not None:
        path = fetch(entry, access)
    if not path.is_file():
        hint = "That is a folder: use from_pretrained." if path.is_dir() else suggest(text)
        raise ModelNotFoundError(f"There is no file {text!r}. {hint or ''}".rstrip())
    if sha256 is not None and file_sha256(path) != sha256:
        raise CheckpointError(f"{path} has not the sha256 {sha256}: it is another file, or damaged. Fetch it again.")
    return path


class _OnlyHttps(HTTPRedirectHandler):
    """Refuses to follow a redirect to another kind of address."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Request | None:
        if not newurl.startswith("https://"):
            raise OSError(f"it leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download_url(url: str, sha256: str, access: Access) -> Path:
    """Fetch a file from an https address, as `find_file` does, or find it in the cache under its sha256."""
    path = cached_url(url, sha256, access.cache_dir)
    if path.is_file() and not access.force_download and file_sha256(path) == sha256:
        return path
    if is_offline(access):
        raise ModelNotFoundError(f"{url} is not in the cache, and the network may not be used.")
    request = Request(url, headers={"User-Agent": "stylegan-inversion"})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            partial = Path(scratch) / path.name
            with build_opener(_OnlyHttps).open(request, timeout=_SILENCE) as answer, partial.open("wb") as file:
                while chunk := answer.read1(2**20):  # what has come, instead of waiting for a whole chunk
                    if file.tell() + len(chunk) > MAX_FILE_BYTES:
                        raise OSError(f"it is larger than {MAX_FILE_BYTES} bytes")
                    file.write(chunk)
            if (found := file_sha256(partial)) != sha256:
                raise CheckpointError(
                    f"{url} gave another file: its sha256 is {found}, not {sha256}. Often it is a page that asks for a "
                    "log-in or reports a quota: open the address in a browser."
                )
            partial.replace(path)
    except OSError as e:  # URLError and TimeoutError among them
        raise ModelNotFoundError(f"{url} could not be fetched: {getattr(e, 'reason', e)}. Try again later.") from e
    return path


# --- the catalogue


def fetch(entry: CatalogueEntry, access: Access = Access()) -> Path:
    """Fetch the file of an entry into the Hub's cache, and check its sha256. Nothing in it is run.

    If no sha256 is known, the file is checked against the Hub's own, and a warning gives it. Then nothing but the Hub
    and the repository's owner says that the file is what its name says.

    Raises:
        ModelNotFoundError: If no copy is known, this package does not read it, or it cannot be fetched.
        CheckpointError: If another file came; nothing of it is kept.
    """
    if entry.kind == "unread":
        raise ModelNotFoundError(f"{entry.name!r} is listed, but not supported: {entry.note}")
    if entry.repository is None or entry.file is None:
        raise ModelNotFoundError(
            f"{entry.name!r} cannot be fetched by its name, since no copy of it on the Hub is known. Get it from "
            f"{entry.source}; `stylegan-inversion convert FILE FOLDER` makes a model of it. {entry.note or ''}".rstrip()
        )
    if entry.host == "github":
        address = f"https://raw.githubusercontent.com/{entry.repository}/{entry.revision}/{entry.file}"
        return download_url(address, str(entry.sha256), access)
    access = replace(access, revision=entry.revision)
    try:
        path = download_file(entry.repository, entry.file, access, sha256=entry.sha256)
    except ModelNotFoundError as e:
        file = PurePath(entry.file).name
        by_hand = f"`stylegan-inversion convert {file} FOLDER` makes a model of it"
        raise ModelNotFoundError(f"{e} Or get {file} from {entry.source}; {by_hand}.") from e
    if entry.sha256 is None:
        where = f"{entry.file} of {entry.repository}"
        text = "No sha256 of %s is known in advance: %s was checked against the Hub's own, %s."
        logger.warning(text, entry.name, where, file_sha256(path))
    return path


def _find_converted(entry: CatalogueEntry, access: Access) -> Path:
    """Find the folder of a checkpoint of the catalogue: fetched and converted if need be, with directions."""
    if access.revision is not None:
        raise ValueError(f"`revision` is for repositories; {entry.name!r} of the catalogue is always the same file.")
    if entry.kind in ("direction", "ganspace"):
        raise ModelNotFoundError(
            f"{entry.name!r} is not a model: {entry.description}. A pipeline's `load_direction` and `load_components` "
            "take such files."
        )
    folder, directions = converted_folder(entry, access.cache_dir), dict[str, Direction]()
    config = folder / storage.CONFIG_NAME
    if there := config.is_file() and not access.force_download:
        if not (folder / "directions").is_dir():  # perhaps it was converted without a network
            directions = fetch_directions(entry.name, entry.domain, access)
        if not directions:
            return folder
    try:
        locks = folder.parents[1] / ".locks"  # where the Hub's client has its own
        for place in (folder.parent, locks):
            place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{folder.name}.lock")  # one process converts, the others wait and find the folder
        with lock, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / folder.name
            if directions and not (folder / "directions").is_dir():
                save_directions(directions, made)
                made.rename(folder / "directions")
            elif access.force_download or not config.is_file():
                _convert(entry, made, access)
                if folder.exists():
                    folder.rename(Path(scratch) / "old")
                made.rename(folder)
    except (OSError, NotImplementedError) as e:  # the last: a disk that knows no locks
        text = f"{folder.parent} cannot be written or locked ({e}): give another `cache_dir`."
        if not there:
            raise ModelNotFoundError(text) from e
        logger.warning("%s The directions of %s are missing.", text, entry.name)
    return folder


def _convert(entry: CatalogueEntry, folder: Path, access: Access) -> None:
    """Fetch and convert a checkpoint, and remove it again unless it was in the cache before.

    Parts that other entries have are linked, not copied, where the disk can.
    """
    kept = cached_file(entry, access.cache_dir) is not None
    path = fetch(entry, access)
    file = read_single_file(path, encoder=entry.kind if entry.kind in ENCODERS else None)
    whole = with_directions(with_parts(file, access), path, access, source=entry.name)
    fetched = {name: each for name, each in whole.directions.items() if each.space == "w"}  # the others need no file
    write_model(replace(whole, directions=fetched), folder)
    for part, there in _part_folders(entry, access).items() if "generator" not in file.parts else ():
        for own in there.iterdir():
            with suppress(OSError):
                os.link(own, folder / part / f"{own.name}.linked")
                os.replace(folder / part / f"{own.name}.linked", folder / part / own.name)
    if not kept:
        remove(path)


def with_parts(file: SingleFile, access: Access = Access()) -> SingleFile:
    """Add the networks that a file is used with and does not hold, where the catalogue says which they are.

    StyleFeatureEditor's file is for one generator and one e4e encoder, which other entries have.

    Raises:
        ModelNotFoundError: If one cannot be fetched.
        CheckpointError: If one is damaged, or the file is for a generator of another size than those.
    """
    entry = next((each for each in catalogue() if each.kind == file.kind and each.parts), None)
    if entry is None or "generator" in file.parts:
        return file
    side = file.parts["encoder"].config.output_resolution
    if entry.domain is not None and not entry.domain.endswith(f"-{side}"):
        raise CheckpointError(
            f"The file is for a generator of {side} px and does not hold it; what is published fits {entry.domain}. "
            "Convert a file that holds `decoder.*` and `e4e_encoder.*` as well, or load the folder of the run."
        )
    classes: dict[str, tuple[type[Any], type[Any]]] = {"generator": (Generator, GeneratorConfig)}
    classes |= {row.folder: (row.network, row.config) for row in ENCODERS.values()}
    parts = dict(file.parts)
    for part, folder in _part_folders(entry, access).items():
        network = storage.load_module(*classes[part], folder)
        parts[part] = Part(type(network), network.config, network.state_dict())
    return replace(file, parts=parts)


def _part_folders(entry: CatalogueEntry, access: Access) -> dict[str, Path]:
    """Find the parts of an entry that others have: theirs, whatever folder of such a name there is."""
    known, access = {each.name: each for each in catalogue()}, replace(access, subfolder=None, force_download=False)
    return {part: _find_converted(known[name], access) / part for part, name in entry.parts}


# --- the papers' directions for the generators that they were found in


def with_directions(
    file: SingleFile, path: Path, access: Access = Access(), *, source: str | os.PathLike[str] = ""
) -> SingleFile:
    """Add the papers' directions to a file if its generator is one that they were found in; and what an entry draws.

    A generator is recognised by its entry in the catalogue, if `source` is one, by the training set that a checkpoint
    of pSp or e4e names, or, if it draws FFHQ, by its average w. If the directions cannot be fetched, one warning says
    so, and the file stays as it is.
    """
    part = file.parts.get("generator")
    if part is None:
        return file
    entry, resolution = known_entry(source) if source else None, part.config.resolution
    if entry is not None and entry.domain is not None:
        file = replace(file, domain=domain_named(entry.domain))
    if entry is not None and file.task == "inversion":
        file = replace(file, task=photo_task(entry.name))  # toonify's file is one of "ffhq_encode"
    name = path.name if entry is None else entry.name
    trained = str(file.options.get("dataset_type")).partition("_")[0]  # "ffhq_encode" -> "ffhq"
    domain = (entry.domain if entry is not None else None) or f"{trained}-{resolution}"
    if not edits_of(domain):
        domain = f"ffhq-{resolution}"
        try:
            if not _is_near(part, domain, access):
                return file
        except (ModelNotFoundError, CheckpointError) as e:
            _warn(f"If {name} draws FFHQ's faces, its directions are missing", domain, e)
            return file
    directions = style_directions(domain, part.config) | fetch_directions(name, domain, access)
    sizes = (part.config.w_dim,), (part.config.num_ws, part.config.w_dim)
    fitting = {k: each for k, each in directions.items() if each.space == "s" or tuple(each.vector.shape) in sizes}
    return replace(file, directions=fitting, dataset=domain)


def edits_of(domain: str | None) -> list[CatalogueEntry]:
    """List the files of the catalogue that hold the directions of a domain."""
    return [entry for entry in catalogue() if domain is not None and entry.domain == domain and entry.edit is not None]


def fetch_directions(name: str, domain: str | None, access: Access) -> dict[str, Direction]:
    """Fetch and read the directions of a model of a domain, all or none: if one is missing, a warning says why."""
    found: dict[str, Direction] = {}
    try:
        for entry in edits_of(domain):
            file, edit = read_single_file(_fetch_edit(entry, access)), str(entry.edit)
            origin = f"({entry.repository}, {entry.licence})"
            if file.components is not None:
                for each in name_components(file.components.first(COMPONENTS), name=edit):
                    found[each.name] = replace(each, description=f"{each.description} {origin}")
                continue
            (vector,) = file.vectors.values()
            text = f"{entry.description} {origin}"
            found[edit] = Direction.from_vector(
                edit, vector, strength_range=entry.strength_range, description=text, unit=None
            )
    except (ModelNotFoundError, CheckpointError) as e:
        _warn(f"The directions of {name} are missing", domain, e)
        return {}
    return found


def _warn(what: str, domain: str | None, error: Exception) -> None:
    names = ", ".join(str(entry.edit) for entry in edits_of(domain))
    logger.warning("%s (%s): %s They come with it when it is loaded again with a network.", what, names, error)


def _fetch_edit(entry: CatalogueEntry, access: Access) -> Path:
    """Fetch a file that the user did not ask for. Without a network, a process waits for it once, not at each load."""
    once = Access(cache_dir=access.cache_dir, local_files_only=access.local_files_only or bool(_failed))
    try:
        return fetch(entry, once)
    except ModelNotFoundError as e:
        if e.__cause__ is not None:  # it was tried
            _failed.append(f"{e} Only a new process tries again.")
        if _failed and not access.local_files_only:
            raise ModelNotFoundError(_failed[0]) from e
        raise


def _is_near(part: Part, domain: str, access: Access) -> bool:
    """Tell whether the average w of a generator is the mean of W that GANSpace's components were found around."""
    for entry in edits_of(domain):
        if entry.kind == "ganspace":
            found, w_avg = read_single_file(_fetch_edit(entry, access)).components, part.state_dict["w_avg"].float()
            if found is not None and found.mean.shape == w_avg.shape:
                return bool((w_avg - found.mean).norm() <= _NEAR * found.std.norm())
    return False
