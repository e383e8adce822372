"""ReStyle: an encoder that reads the image beside its own last result and corrects the code step by step.

Paper: Alaluf et al. 2021, "ReStyle", arXiv:2104.02699 (section 3, figures 2 and 4). Original code:
yuval-alaluf/restyle-encoder (MIT). Own code. Departure: the average w is a buffer of the encoder and is added inside.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.bounds import number
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.irse import IRSEBackbone, IRSEConfig
from stylegan_inversion.models.psp_encoder import EncoderConfig, MapToStyle


@dataclass(frozen=True)
class ReStyleConfig(EncoderConfig):
    """Sizes of a ReStyle encoder. The defaults are the released encoders' for faces at 1024 px."""

    in_channels: int = number(3, 3, 3)  # of the image; the network reads as many again, of its last result
    offsets: bool = False  # True, as in e4e: one w, and offsets to it. False, as in pSp: each w by itself
    iterations: int = number(5, 1, 100)  # default number of passes for one photo; 5 in the paper

    @property
    def backbone(self) -> IRSEConfig:
        """Sizes of the backbone."""
        return IRSEConfig(2 * self.in_channels, tuple(self.widths), tuple(self.units), self.reduction)


class ReStyleEncoder(nn.Module):
    """Map images and their last result to a change of w_plus. All styles read the last features."""

    w_avg: Tensor

    def __init__(self, config: ReStyleConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = IRSEBackbone(config.backbone)
        width, side = config.widths[-1], config.input_resolution // 16
        self.styles = nn.ModuleList(MapToStyle(width, config.w_dim, config.w_dim, side) for _ in range(config.num_ws))
        self.register_buffer("w_avg", torch.zeros(config.num_ws, config.w_dim))

    def forward(
        self, x: Float[Tensor, "batch channels height side"], y_hat: Float[Tensor, "batch channels height side"]
    ) -> Float[Tensor, "batch num_ws w_dim"]:
        """Take one step: compute what to add to the code of `y_hat`.

        Args:
            x: Images, (B, 3, H, S), RGB, in [-1, 1], S = `input_resolution`, H <= S.
            y_hat: What the generator draws from the code so far, of the same shape and range.
        """
        features = self.backbone(torch.cat([x, y_hat], dim=1)).c3
        steps = torch.stack([style(features) for style in self.styles], dim=1)
        if self.config.offsets:
            steps[:, 1:] = steps[:, 1:] + steps[:, :1]
        return steps

    def refine(
        self, x: Float[Tensor, "batch channels height side"], generator: Generator, *, iterations: int | None = None
    ) -> Float[Tensor, "batch num_ws w_dim"]:
        """Invert images: start at the average w and its picture, and let each pass correct the last (equations 2, 3).

        Args:
            x: As in `forward`.
            generator: Draws the code after each pass, with its constant noise.
            iterations: How many passes, at least 1. `None` takes the config's.

        Returns:
            w_plus, `w_avg` included.
        """
        count = self.config.iterations if iterations is None else iterations
        if count < 1:
            raise ValueError(f"`iterations` must be at least 1, got {count}.")
        w_plus = self.w_avg.expand(len(x), -1, -1)
        y_hat = self._draw(generator, w_plus[:1], rows=x.shape[-2]).expand_as(x)
        for step in range(count):
            w_plus = w_plus + self(x, y_hat)
            if step < count - 1:
                y_hat = self._draw(generator, w_plus, rows=x.shape[-2])
        return w_plus

    def _draw(self, generator: Generator, w_plus: Tensor, *, rows: int) -> Tensor:
        """Draw in the shape of the input: what lies above and below it are black bars."""
        side = self.config.input_resolution
        drawn = F.adaptive_avg_pool2d(generator.synthesis(w_plus, noise_mode="const"), side)
        return drawn.narrow(-2, (side - rows) // 2, rows)
