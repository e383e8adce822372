"""pSp's and e4e's encoders into w_plus."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig

TINY = PyramidEncoderConfig(64, 64, 6, widths=(4, 6, 8, 10), units=(1, 1, 1, 1), reduction=2)
both = pytest.mark.parametrize("cls", [GradualStyleEncoder, Encoder4Editing])


def images(batch: int = 2, side: int = 64) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def seeded(module: Any) -> Any:
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return module.eval()


@both
@pytest.mark.parametrize(("output", "side", "num_ws"), [(16, 64, 6), (1024, 32, 18)])
def test_shapes_and_a_gradient_for_every_parameter(cls: type[Any], output: int, side: int, num_ws: int) -> None:
    encoder = seeded(cls(replace(TINY, output_resolution=output, input_resolution=side)))
    w_plus = encoder(images(side=side))
    assert w_plus.shape == (2, num_ws, 6) and w_plus.isfinite().all()
    assert encoder.w_avg.shape == (num_ws, 6)
    w_plus.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        used = output > 16 or "lateral1" not in name  # so few styles read no fine level
        assert not used or (parameter.grad is not None and parameter.grad.abs().max() > 0), name


@both
@torch.no_grad()
def test_w_avg_is_added(cls: type[Any]) -> None:
    encoder, x = seeded(cls(TINY)), images()
    without = encoder(x)
    encoder.w_avg.copy_(torch.randn(encoder.w_avg.shape, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(encoder(x), without + encoder.w_avg)
    assert "pyramid.w_avg" in encoder.state_dict()  # it travels with the weights


@pytest.mark.parametrize("stage", [0, 5, 9])
def test_a_progressive_stage_opens_and_trains_the_first_styles(stage: int) -> None:
    encoder, x = seeded(Encoder4Editing(TINY)), images()
    assert encoder.progressive_stage == 9  # all of them
    full = encoder(x)
    assert all(not torch.allclose(full[:, i], full[:, 0]) for i in range(1, 10))
    encoder.progressive_stage = stage
    w_plus = encoder(x)
    assert torch.equal(w_plus[:, : stage + 1], full[:, : stage + 1])
    assert torch.equal(w_plus[:, stage + 1 :], full[:, :1].expand(-1, 9 - stage, -1))
    w_plus.square().sum().backward()

    def trained(module: nn.Module) -> set[bool]:
        return {p.grad is not None and bool(p.grad.abs().max() > 0) for p in module.parameters()}

    assert [trained(style) for style in encoder.pyramid.styles] == [{i <= stage} for i in range(10)]
    assert trained(encoder.pyramid.backbone) == {True}
    assert trained(encoder.pyramid.lateral2) == {stage >= 3}
    assert trained(encoder.pyramid.lateral1) == {stage >= 7}
