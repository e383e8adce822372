"""The losses of pSp, e4e and ReStyle, and how they are weighed.

Papers: Richardson et al. 2021 (pSp), arXiv:2008.00951, section 3.2; Tov et al. 2021 (e4e), arXiv:2102.02766,
section 3.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from stylegan_inversion.checkpoints.find import find_folder
from stylegan_inversion.losses.delta import delta_loss
from stylegan_inversion.losses.identity import IdentityLoss, inner_face, load_identity, load_moco
from stylegan_inversion.losses.l2 import l2_loss
from stylegan_inversion.losses.lpips import PerceptualDistance, load_perceptual
from stylegan_inversion.losses.w_norm import w_norm_loss
from stylegan_inversion.training.config import EncoderRunConfig
from stylegan_inversion.training.tasks import Task

IMAGE_TERMS = ("l2", "lpips", "lpips_crop", "identity", "moco", "l2_crop")  # the terms that compare pictures
E4E_WEIGHTS = {"delta": 2e-4, "adversarial": 0.1}  # beside the task's; the paper's
OWN_WEIGHTS = {"sfe": {"adversarial": 0.01, "features": 0.01}}  # the same, by method

Terms = dict[str, Tensor]


def loss_weights(task: Task, config: EncoderRunConfig, *, knows_w: bool = False) -> dict[str, float]:
    """The weights above 0 of a run: the task's, e4e's, and above them those of the config.

    `knows_w` says whether the w of pictures are known, as a `teacher` of `EncoderLearner` knows them. Raises
    `ValueError` if weights exclude each other, or the run has nothing that a term could be computed from.
    """
    chosen = {name: value for name, value in asdict(config.loss).items() if value is not None}
    own = E4E_WEIGHTS if config.progressive else OWN_WEIGHTS.get(config.method, {})
    weights = task.loss | own | chosen
    weights = {name: float(weights[name]) for name in asdict(config.loss) if weights.get(name)}
    if "identity" in weights and "moco" in weights:
        raise ValueError(
            "`loss.identity` (faces) and `loss.moco` (everything else) cannot be used together, got "
            f"{weights['identity']:g} and {weights['moco']:g}; set one of them to 0."
        )
    for name, what in (
        ("adversarial", "e4e, sfe, and restyle with --restyle.offsets, have a discriminator"),
        ("features", "sfe has features"),
    ):
        if name in weights and name not in own:
            raise ValueError(f"`loss.{name}` is {weights[name]:g}, but only --method {what}.")
    if "w_distance" in weights and config.synthetic_batch_size == 0 and not knows_w:
        raise ValueError(
            f"`loss.w_distance` is {weights['w_distance']:g}, but pictures have no known w: set `synthetic_batch_size`."
        )
    if "w_distance" not in weights and not (config.batch_size and any(name in weights for name in IMAGE_TERMS)):
        raise ValueError(
            "`loss` weighs nothing that tells the encoder what to draw: with pictures (`batch_size`) it needs l2, "
            "lpips, identity or moco, with samples of the generator (`synthetic_batch_size`) w_distance."
        )
    return weights


class EncoderObjective:
    """The weighted sum of what an encoder is trained for; a term of weight 0 is not computed."""

    def __init__(
        self, weights: Mapping[str, float], config: EncoderRunConfig, *, resolution: int, device: torch.device
    ) -> None:
        """Load the frozen networks that the terms need. Pictures are compared at `resolution`."""
        self.weights, self.identity_images = weights, config.identity_images
        self.image_terms = [name for name in IMAGE_TERMS if name in weights]
        self.compare: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": l2_loss}
        self.perceptual: PerceptualDistance | None = None
        if "lpips" in weights or "lpips_crop" in weights:
            perceptual = self.perceptual = load_perceptual(config.perceptual, device=device)
            if "lpips_crop" in weights:
                side = inner_face(torch.zeros(1, 1, resolution, resolution)).shape[-1]
                check_side(perceptual, side, otherwise="set --loss.lpips-crop 0")
            self.compare["lpips"] = lambda y_hat, y: perceptual(y_hat, y).mean()
        if "identity" in weights:
            folder = None if config.identity == "builtin" else find_folder(config.identity)
            self.compare["identity"] = IdentityLoss(load_identity(config.identity, folder, device=device))
        if "moco" in weights:
            self.compare["moco"] = IdentityLoss(load_moco(find_folder(config.moco), device=device))

    def images(self, y_hat: Tensor, y: Tensor) -> Terms:
        """The terms that compare pictures, (B, 3, R, R) in [-1, 1], unweighted."""
        terms = {}
        for name in self.image_terms:
            pair = (inner_face(y_hat), inner_face(y)) if name.endswith("_crop") else (y_hat, y)
            if name == "identity" and self.identity_images:
                pair = pair[0][: self.identity_images], pair[1][: self.identity_images]
            terms[name] = self.compare[name.removesuffix("_crop")](*pair)
        return terms

    def codes(self, w_plus: Tensor, *, w_avg: Tensor, num_deltas: int) -> Terms:
        """The regularisers of the codes, (B, num_ws, w_dim), unweighted; `num_deltas` offsets are switched on."""
        terms = {}
        if "w_norm" in self.weights:
            terms["w_norm"] = w_norm_loss(w_plus, w_avg)
        if "delta" in self.weights and num_deltas > 0:
            terms["delta"] = delta_loss(w_plus, num_deltas)
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of terms."""
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()


def add_terms(sums: Terms, terms: Mapping[str, Tensor], micro_batches: int) -> None:
    """Add the terms of one of so many micro-batches to their means, in place."""
    for name, term in terms.items():
        sums[name] = sums.get(name, torch.zeros_like(term, dtype=torch.float32)) + term.detach() / micro_batches


@torch.no_grad()
def check_side(perceptual: PerceptualDistance, side: int, *, otherwise: str) -> None:
    """Check that pictures of a side are large enough for a perceptual network.

    Raises:
        ValueError: If they are too small; `otherwise` names the option that does without it.
    """
    device = next(perceptual.parameters()).device
    try:
        perceptual.features(torch.zeros(1, 3, min(side, 64), min(side, 64), device=device))
    except (ValueError, RuntimeError) as e:
        raise ValueError(
            f"The perceptual network {perceptual.name!r} does not take pictures of {side} px: {e} Draw larger ones, or "
            f"{otherwise}."
        ) from e
