"""e4e: one w, and an offset for every later layer.

Paper: Tov et al. 2021, "Designing an Encoder for StyleGAN Image Manipulation", arXiv:2102.02766 (section 4, figure 5).
Original code: omertov/encoder4editing (MIT). Own code. Departure: the average w is a buffer of the encoder and is
added inside.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stylegan_inversion.models.psp_encoder import PyramidEncoderConfig, StylePyramid


class Encoder4Editing(nn.Module):
    """e4e's encoder: images -> w_plus = w_0 + (0, delta_1, ..., delta_{num_ws - 1})."""

    def __init__(self, config: PyramidEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.pyramid = StylePyramid(config)
        self._progressive_stage = config.num_ws - 1

    @property
    def progressive_stage(self) -> int:
        """How many offsets are switched on, in [0, num_ws - 1]. Training switches them on one by one."""
        return self._progressive_stage

    @progressive_stage.setter
    def progressive_stage(self, stage: int) -> None:
        if not 0 <= stage <= self.config.num_ws - 1:
            raise ValueError(f"`progressive_stage` must be in [0, {self.config.num_ws - 1}], got {stage}.")
        self._progressive_stage = stage

    @property
    def w_avg(self) -> Float[Tensor, "num_ws w_dim"]:
        """The average w that is added to every output."""
        return self.pyramid.w_avg

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_ws w_dim"]:
        """Encode images, (B, 3, H, S), RGB, in [-1, 1], S = `input_resolution`, H <= S. `w_avg` is included."""
        maps = self.pyramid.levels(self.pyramid.backbone(x))
        w = self.pyramid.styles[0](maps[0])
        styles = [w]
        for i in range(1, self.config.num_ws):
            styles.append(w + self.pyramid.styles[i](maps[i]) if i <= self.progressive_stage else w)
        return torch.stack(styles, dim=1) + self.w_avg
