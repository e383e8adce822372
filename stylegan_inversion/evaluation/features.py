"""Pictures -> feature vectors, by networks whose names the figures carry. Those of the data are kept on disk."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError, InvalidImageError, MissingDependencyError
from stylegan_inversion.evaluation.methods import hash_json, hash_tensors
from stylegan_inversion.losses.distribution import pool_features
from stylegan_inversion.losses.identity import DlibEmbedding, IdentityEmbedding, load_identity
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.preprocessing.align import uncropped
from stylegan_inversion.preprocessing.image import list_images, load_image, to_tensor

logger = logging.getLogger(__name__)

FORMAT = 1  # of kept features; goes up when they change


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """What turns pictures into vectors.

    Attributes:
        key: Names it in files and JSON.
        label: Names it in tables, in brackets after the measure.
        embed: Images (B, 3, R, R), RGB, in [-1, 1], of 8 bits -> features, (B, D).
        sha256: Of its weights.
        frechet: What its Fréchet distance is called. Inception's alone is FID.
        kernel: What its kernel distance is called. Inception's alone is KID.
    """

    key: str
    label: str
    embed: Callable[[Tensor], Tensor]
    sha256: str
    frechet: str = "FD"
    kernel: str = "KD"

    def columns(self) -> dict[str, str]:
        """Key of each figure -> its name in tables."""
        where = f" ({self.label})"
        only = "" if self.frechet == "FID" else where
        return {
            "frechet": f"{self.frechet}{only}",
            "kernel": f"{self.kernel}{only} x 1000",
            "precision": f"precision{where}",
            "recall": f"recall{where}",
        }


@dataclass(frozen=True)
class Pictures:
    """The pictures of the data: their names, where they are, and their sizes in bytes."""

    names: list[str]
    paths: list[Path]
    sizes: list[int]


def find_pictures(images: str | Path | Sequence[str | Path], limit: int | None) -> Pictures:
    """List the pictures of a folder and its subfolders by name, or take a list of paths as it is.

    Args:
        images: Folder, or paths.
        limit: Take only that many, the first ones.

    Raises:
        ValueError: If a folder is missing or holds no picture, or `limit` < 1.
        OSError: If a file is missing.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be >= 1, got {limit}.")
    if isinstance(images, (str, Path)):
        names = list_images(Path(images))[:limit]
        paths = [Path(images) / name for name in names]
    else:
        paths = [Path(path) for path in images][:limit]
        root = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
        names = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    return Pictures(names, paths, [path.stat().st_size for path in paths])


def read_picture(path: Path, resolution: int) -> Tensor:
    """Read a picture as training does: RGB, the central square, resized with antialiasing.

    Returns:
        (1, 3, R, R), RGB, in [-1, 1], of 8 bits.

    Raises:
        InvalidImageError: If it cannot be used; the message names the file.
    """
    try:
        return to_tensor(uncropped(load_image(path), resolution).image)
    except InvalidImageError as e:
        raise InvalidImageError(f"{path}: {e} Replace the file, or take it away.") from e


def perceptual_network(perceptual: PerceptualDistance) -> FeatureNetwork:
    """The layers of a perceptual distance, each averaged over the pixels."""
    name = perceptual.name or "perceptual"
    return FeatureNetwork(
        name, name, lambda images: pool_features(perceptual.features(images)), hash_tensors(perceptual.state_dict())
    )


def identity_network(name: str, *, device: torch.device) -> FeatureNetwork:
    """A face recognition network; see `losses.identity.load_identity`."""
    identity: IdentityEmbedding = load_identity(name, device=device)
    key, label = ("dlib", "dlib faces") if isinstance(identity, DlibEmbedding) else ("arcface", "ArcFace")
    sha256 = hash_tensors(identity.state_dict())
    return FeatureNetwork(key, label, lambda images: pool_features([identity.embed(images)]), sha256)


def inception_network(*, device: torch.device) -> FeatureNetwork:
    """The Inception network of FID and KID, with the weights of the first FID, by torch-fidelity.

    Raises:
        MissingDependencyError: If torch-fidelity is not installed.
        CheckpointError: If its weights are not in PyTorch's cache and cannot be fetched.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as e:  # torchvision raises RuntimeError beside a torch it was not built for
        raise MissingDependencyError.of_extra(
            "FID and KID need torch-fidelity, and 90 MB of weights that it fetches.",
            "fid",
            otherwise="The Fréchet and kernel distances in the built-in networks need nothing: leave out `fid`.",
        ) from e
    try:
        network: Any = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
    except (OSError, RuntimeError) as e:
        raise CheckpointError(
            f"The Inception weights of torch-fidelity are not in PyTorch's cache and could not be fetched: {e}. "
            "Connect once, or leave out `fid`."
        ) from e
    return FeatureNetwork(
        "inception",
        "Inception",
        lambda images: network(((images + 1) * 127.5).round().to(torch.uint8))[0].float(),
        hash_tensors(network.state_dict()),
        frechet="FID",
        kernel="KID",
    )


def data_key(pictures: Pictures, resolution: int) -> str:
    """What identifies the data: names and sizes of the files, and the side at which they are seen."""
    return hash_json([FORMAT, resolution, pictures.names, pictures.sizes])


@torch.no_grad()
def data_features(
    pictures: Pictures,
    networks: Sequence[FeatureNetwork],
    folder: Path,
    *,
    resolution: int,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], object],
) -> dict[str, Tensor]:
    """Features of the data, from the folder if they were kept there, else made and kept.

    Args:
        pictures: The data.
        networks: Each picture is read once for all that are missing.
        folder: Made if needed; gets a file for each network.
        resolution: Side at which the pictures are seen.
        batch_size: Pictures that go through a network at once.
        device: Where the networks are.
        advance: Told how many pictures are done.

    Returns:
        (N, D), float32, on the CPU, by the networks' keys.

    Raises:
        InvalidImageError: If a picture cannot be used.
        CheckpointError: If the features cannot be written.
    """
    data = data_key(pictures, resolution)
    files = {n.key: folder / f"{n.key}-{hash_json([data, n.key, n.sha256])[:16]}.safetensors" for n in networks}
    found = {key: kept for key, path in files.items() if (kept := _read_kept(path, len(pictures.paths))) is not None}
    missing = [network for network in networks if network.key not in found]
    rows: dict[str, list[Tensor]] = {network.key: [] for network in missing}
    for first in range(0, len(pictures.paths), batch_size):
        batch = pictures.paths[first : first + batch_size]
        if missing:
            images = torch.cat([read_picture(path, resolution) for path in batch]).to(device)
            for network in missing:
                rows[network.key].append(network.embed(images).cpu())
        advance(len(batch))
    for key, parts in rows.items():
        found[key] = torch.cat(parts)
        hub.write_tensors({"features": found[key]}, files[key])
    return found


def _read_kept(path: Path, count: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        kept = hub.read_tensors(path).get("features")
    except CheckpointError as e:
        logger.warning("%s The features are made again.", e)
        return None
    return kept if kept is not None and len(kept) == count else None
