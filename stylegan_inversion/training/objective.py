"""The losses of pSp and e4e, and how they are weighed.

Papers: Richardson et al. 2021 (pSp), arXiv:2008.00951, section 3.2; Tov et al. 2021 (e4e), arXiv:2102.02766,
section 3.3.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from stylegan_inversion.losses.crop import inner_face
from stylegan_inversion.losses.delta import delta_loss
from stylegan_inversion.losses.identity import IdentityLoss
from stylegan_inversion.losses.l2 import l2_loss
from stylegan_inversion.losses.lpips import PerceptualDistance
from stylegan_inversion.losses.moco import MoCoLoss
from stylegan_inversion.losses.w_norm import w_norm_loss


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term of the loss, all >= 0; 0 leaves the term out. The defaults are pSp's for faces.

    Raises:
        ValueError: If a weight is negative or not finite, or both `identity` and `moco` are used.
    """

    l2: float = 1.0  # mean squared error in [-1, 1]
    lpips: float = 0.8  # perceptual distance
    identity: float = 0.1  # 1 - cosine of the features of a face recognition network; faces only
    moco: float = 0.0  # the same with MoCo's ResNet-50, for other domains: 0.5; never together with `identity`
    w_norm: float = 0.0  # distance of w_plus from w_avg; 0.005 for sketches and label maps
    l2_crop: float = 0.0  # l2 of the inner face alone; frontalization
    lpips_crop: float = 0.0  # lpips of the inner face alone; frontalization
    delta: float = 0.0  # e4e: norm of the offsets from the base w; 2e-4
    adversarial: float = 0.0  # e4e: each w must look like one of the mapping network; 0.1
    w_distance: float = 0.0  # distance from the true w_plus; only for samples of the generator, whose w is known

    def __post_init__(self) -> None:
        """Check the values."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{field.name}` must be a finite weight >= 0, got {value}; 0 leaves the term out.")
        if self.identity > 0 and self.moco > 0:
            raise ValueError(
                "`identity` (faces) and `moco` (everything else) cannot be used together, got "
                f"identity={self.identity:g} and moco={self.moco:g}; set one of them to 0."
            )


class EncoderObjective:
    """The weighted sum of what an encoder is trained for; a term of weight 0 is not computed."""

    IMAGE_TERMS: ClassVar[tuple[str, ...]] = ("l2", "lpips", "lpips_crop", "identity", "moco", "l2_crop")

    def __init__(
        self,
        weights: LossWeights,
        *,
        perceptual: PerceptualDistance | None = None,
        identity: IdentityLoss | None = None,
        moco: MoCoLoss | None = None,
    ) -> None:
        """Put the frozen networks together.

        Args:
            weights: The weight of each term.
            perceptual: For `lpips` and `lpips_crop`.
            identity: For `identity`.
            moco: For `moco`.

        Raises:
            ValueError: If a weight is above 0 and its network is missing.
        """
        self.weights = weights
        needs = {"lpips": perceptual, "lpips_crop": perceptual, "identity": identity, "moco": moco}
        for name, network in needs.items():
            if getattr(weights, name) > 0 and network is None:
                raise ValueError(f"`loss.{name}` is {getattr(weights, name)}, but there is no network for it: name it.")
        self.perceptual, self.identity, self.moco = perceptual, identity, moco

    @property
    def image_terms(self) -> list[str]:
        """Names of the terms that `images` gives, in its order."""
        return [name for name in self.IMAGE_TERMS if getattr(self.weights, name) > 0]

    def images(self, y_hat: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The terms that compare pictures, (B, 3, R, R) in [-1, 1], unweighted."""
        terms: dict[str, Callable[[], Tensor]] = {"l2": lambda: l2_loss(y_hat, y)}
        if self.perceptual is not None:
            perceptual = self.perceptual
            terms["lpips"] = lambda: perceptual(y_hat, y).mean()
            terms["lpips_crop"] = lambda: perceptual(inner_face(y_hat), inner_face(y)).mean()
        if self.identity is not None:
            identity = self.identity
            terms["identity"] = lambda: identity(y_hat, y)
        if self.moco is not None:
            moco = self.moco
            terms["moco"] = lambda: moco(y_hat, y)
        terms["l2_crop"] = lambda: l2_loss(inner_face(y_hat), inner_face(y))
        return {name: terms[name]() for name in self.image_terms}

    def codes(self, w_plus: Tensor, *, w_avg: Tensor, num_deltas: int) -> dict[str, Tensor]:
        """The regularisers of the codes, (B, num_ws, w_dim), unweighted; `num_deltas` offsets are switched on."""
        terms = {}
        if self.weights.w_norm > 0:
            terms["w_norm"] = w_norm_loss(w_plus, w_avg)
        if self.weights.delta > 0 and num_deltas > 0:
            terms["delta"] = delta_loss(w_plus, num_deltas)
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of terms."""
        return torch.stack([getattr(self.weights, name) * term for name, term in terms.items()]).sum()

    def to(self, device: torch.device) -> "EncoderObjective":
        """Move the frozen networks, in place."""
        for network in (self.perceptual, self.identity, self.moco):
            if network is not None:
                network.to(device)
        return self
