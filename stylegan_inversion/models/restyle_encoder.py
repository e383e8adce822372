"""ReStyle: an encoder that reads the image beside its own last result and corrects the code step by step.

Paper: Alaluf et al. 2021, "ReStyle", arXiv:2104.02699 (section 3, figures 2 and 4). Original code:
yuval-alaluf/restyle-encoder (MIT). Own code. Departure: the average w is a buffer of the encoder and is added inside.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.bounds import number
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.models.irse import IRSEBackbone, IRSEConfig
from stylegan_inversion.models.psp_encoder import EncoderConfig, MapToStyle
from stylegan_inversion.models.resnet import ResNetBackbone, ResNetConfig
from stylegan_inversion.ops import average_pool


@dataclass(frozen=True)
class ReStyleConfig(EncoderConfig):
    """Sizes of a ReStyle encoder. The defaults are the released encoders' for faces at 1024 px."""

    in_channels: int = number(3, 3, 3)  # of the image; the network reads as many again, of its last result
    resnet: bool = False  # True: ResNet-34, its encoders' of other domains, units (3, 4, 6, 3). False: IR-SE50
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
        sizes = config.backbone
        plain = ResNetConfig(sizes.widths, sizes.units)
        self.backbone = ResNetBackbone(sizes.in_channels, plain) if config.resnet else IRSEBackbone(sizes)
        width, side = config.widths[-1], config.input_resolution // 16
        self.styles = nn.ModuleList(MapToStyle(width, config.w_dim, config.w_dim, side) for _ in range(config.num_ws))
        self.register_buffer("w_avg", torch.zeros(config.num_ws, config.w_dim))
        self.progressive_stage = config.num_ws - 1  # how many offsets are switched on; training does so one by one

    def forward(
        self, x: Float[Tensor, "batch channels height side"], y_hat: Float[Tensor, "batch channels height side"]
    ) -> Float[Tensor, "batch num_ws w_dim"]:
        """Take one step: compute what to add to the code of `y_hat`.

        Args:
            x: Images, (B, 3, H, S), RGB, in [-1, 1], S = `input_resolution`, H <= S.
            y_hat: What the generator draws from the code so far, of the same shape and range.
        """
        features = self.backbone(torch.cat([x, y_hat], dim=1)).c3
        if not self.config.offsets:
            return torch.stack([style(features) for style in self.styles], dim=1)
        w = self.styles[0](features)
        later = [w + style(features) for style in list(self.styles)[1 : self.progressive_stage + 1]]
        return torch.stack([w, *later, *[w] * (self.config.num_ws - 1 - len(later))], dim=1)

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
        w_plus, y_hat = self.start(x, generator)
        for step in range(count):
            w_plus = w_plus + self(x, y_hat)
            if step < count - 1:
                y_hat = self.look(x, generator.synthesis(w_plus, noise_mode="const"))
        return w_plus

    @torch.no_grad()
    def start(self, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """The code that the first pass changes, the average w for all images, and the picture that it looks at."""
        w_plus = self.w_avg[None]
        y_hat = self.look(x, generator.synthesis(w_plus, noise_mode="const"))
        return w_plus.expand(len(x), -1, -1), y_hat.expand_as(x)

    def look(self, x: Tensor, drawn: Tensor) -> Tensor:
        """Pool what a generator drew, (B, 3, R, R), to the shape of the images: what lies above and below are bars."""
        y_hat = average_pool(drawn, x.shape[-1])
        top = (x.shape[-1] - x.shape[-2]) // 2
        return y_hat[:, :, top : top + x.shape[-2]]
