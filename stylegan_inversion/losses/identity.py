"""Identity: how alike two faces look to a face recognition network, as a similarity and as a loss; MoCo for the rest.

Papers: Richardson et al. 2021 (pSp), "Encoding in Style", arXiv:2008.00951, L_ID, with ArcFace (arXiv:1801.07698); Tov
et al. 2021 (e4e), arXiv:2102.02766, L_sim, where MoCo v2 (arXiv:2003.04297) takes its place for images without faces.
Original code: https://github.com/eladrich/pixel2style2pixel (MIT), criteria/id_loss.py and moco_loss.py. Own code.

Do not compare similarities of different networks. With FaceRes, which ships with the package, two strangers have a
cosine of about 0.46 +- 0.08 (faces within one photo, 29 pairs), a face and its mirror image 0.95 +- 0.02; with ArcFace
strangers are near 0.

The crop to the face is that of the identity loss and of pSp's crop losses (training/coach.py).
"""

import abc
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion import storage
from stylegan_inversion.models.face import FaceRecognitionConfig, FaceRecognitionNet
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.models.resnet import ResNet, ResNetConfig
from stylegan_inversion.ops import average_pool

_ROWS, _COLUMNS, _SIDE = (35, 223), (32, 220), 256  # the face in FFHQ's crop at 256 px


def inner_face(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels rows columns"]:
    """Cut out rows 35-222 and columns 32-219 of 256, scaled to the image's side and rounded (halves up).

    Any loss of images becomes a crop loss: `l2_loss(inner_face(y_hat), inner_face(y))`. Nothing is resampled.

    Args:
        x: Square FFHQ crops of any side. In tighter crops, such as those of faces64, the region is tighter as well.

    Returns:
        A view of `x`.
    """
    height, width = x.shape[-2:]
    if height != width:
        raise ValueError(f"Images must be square, got {height} x {width}.")
    (top, bottom), (left, right) = (
        tuple((position * height + _SIDE // 2) // _SIDE for position in positions) for positions in (_ROWS, _COLUMNS)
    )
    return x[:, :, top:bottom, left:right]


def crop_face(x: Float[Tensor, "batch 3 height width"], resolution: int = 112) -> Float[Tensor, "batch 3 r r"]:
    """Pool FFHQ crops to 256 px, cut out the inner face, and pool it to `resolution`, as the papers' ID loss does."""
    if x.shape[-1] != _SIDE:
        x = average_pool(x, _SIDE)
    return average_pool(inner_face(x), resolution)


class IdentityEmbedding(nn.Module, abc.ABC):
    """Map face crops to identities on the unit sphere. Frozen, and always in eval mode.

    `name` is what `load_identity` takes. Report a similarity, the cosine of two embeddings, with this name.
    """

    name: str | None = None
    strangers: float = 0.0  # the cosine that two strangers have on average

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network.requires_grad_(False)
        self.eval()

    @abc.abstractmethod
    def embed(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding_dim"]:
        """Embed FFHQ crops, RGB, in [-1, 1]. The embeddings have unit norm."""

    def train(self, mode: bool = True) -> "IdentityEmbedding":
        """Stay in eval mode, whatever the parent does: a measure must not depend on the batch or on dropout."""
        return super().train(False)


class ArcFaceEmbedding(IdentityEmbedding):
    """The papers' network, `ArcFace`, which reads the inner face of an FFHQ crop at 112 px (`crop_face`)."""

    def embed(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding_dim"]:
        """Cut out the inner face and embed it."""
        return self.network(crop_face(x, self.network.config.resolution))


class FaceResEmbedding(IdentityEmbedding):
    """HSE-FaceRes, `FaceRecognitionNet`, which reads the whole crop at 224 px."""

    strangers = 0.46

    def embed(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding_dim"]:
        """Embed the crop and scale the result to unit norm."""
        return F.normalize(self.network(x), dim=1)


class MoCoEmbedding(IdentityEmbedding):
    """MoCo's ResNet, for images that show no faces.

    As in the original, images are not normalised by ImageNet's mean and spread, although the network was trained so,
    and are resized to 224 px by the nearest pixel. Departure: a batch of one works.
    """

    def embed(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding_dim"]:
        """Compute features of images, RGB, in [-1, 1], on the unit sphere."""
        return F.normalize(self.network(F.interpolate(x, size=(224, 224))), dim=1)


class IdentityLoss(nn.Module):
    """L_ID of pSp and L_sim of e4e: the mean of 1 - <f(y_hat), f(y)>."""

    def __init__(self, embedding: IdentityEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(
        self, y_hat: Float[Tensor, "batch 3 height width"], y: Float[Tensor, "batch 3 height_y width_y"]
    ) -> Float[Tensor, ""]:
        """Compare images with their targets, both RGB, in [-1, 1]. The result is in [0, 2]. `y` gets no gradient."""
        with torch.no_grad():
            wanted = self.embedding.embed(y)
        return (1 - (self.embedding.embed(y_hat) * wanted).sum(dim=1)).mean()


def load_identity(
    name: str = "builtin", folder: Path | None = None, *, device: torch.device | str | None = None
) -> IdentityEmbedding:
    """Load an identity network, frozen and in eval mode.

    Args:
        name: What reports call it.
        folder: Folder of an ArcFace saved by this package. `None` means FaceRes, which ships with the package.
        device: Where to put it. `None` means the CPU.

    Raises:
        CheckpointError: If it is another network, or damaged.
    """
    embedding: IdentityEmbedding
    if folder is None:
        builtin = storage.builtin_path("faces64/face/recognition")
        embedding = FaceResEmbedding(
            storage.load_module(FaceRecognitionNet, FaceRecognitionConfig, builtin, device=device)
        )
    else:
        embedding = ArcFaceEmbedding(storage.load_module(ArcFace, ArcFaceConfig, folder, device=device))
    embedding.name = name
    return embedding


def load_moco(folder: Path, *, device: torch.device | str | None = None) -> MoCoEmbedding:
    """Load MoCo's network from a folder that `stylegan-inversion convert` makes of MoCo's own file."""
    return MoCoEmbedding(storage.load_module(ResNet, ResNetConfig, folder, device=device))
