"""MoCo similarity, which replaces the identity loss where images show no faces.

Papers: Tov et al. 2021 (e4e), arXiv:2102.02766, L_sim; the network is MoCo v2's (Chen et al. 2020, arXiv:2003.04297).
Original code: https://github.com/eladrich/pixel2style2pixel (MIT), criteria/moco_loss.py. Own code.

As in the original, images are not normalised by ImageNet's mean and spread, although the network was trained so, and
are resized to 224 px by the nearest pixel. Departure: a batch of one works.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion import storage
from stylegan_inversion.models.resnet import ResNet, ResNetConfig

_SIDE = 224


class MoCoLoss(nn.Module):
    """L_sim of e4e: the mean of 1 - <f(y_hat), f(y)>. Frozen, and always in eval mode."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "MoCoLoss":
        """Stay in eval mode, whatever the parent does: a measure must not depend on the batch."""
        return super().train(False)

    def embed(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Compute features of images, RGB, in [-1, 1], on the unit sphere."""
        return F.normalize(self.network(F.interpolate(x, size=(_SIDE, _SIDE))), dim=1)

    def forward(
        self, y_hat: Float[Tensor, "batch 3 height width"], y: Float[Tensor, "batch 3 height_y width_y"]
    ) -> Float[Tensor, ""]:
        """Compare images with their targets, both RGB, in [-1, 1]. The result is in [0, 2]. `y` gets no gradient."""
        with torch.no_grad():
            wanted = self.embed(y)
        return (1 - (self.embed(y_hat) * wanted).sum(dim=1)).mean()


def load_moco(folder: Path, *, device: torch.device | str | None = None) -> MoCoLoss:
    """Load the loss with its network.

    Args:
        folder: Folder of a ResNet saved by this package; `stylegan-inversion convert` writes one of MoCo's own file.
        device: Where to put it. `None` means the CPU.

    Raises:
        CheckpointError: If it is another network, or damaged.
    """
    return MoCoLoss(storage.load_module(ResNet, ResNetConfig, folder, device=device))
