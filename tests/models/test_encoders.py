"""The three encoders into w_plus: pSp's, pSp's into W, and e4e's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig, WEncoder, WEncoderConfig

TINY = PyramidEncoderConfig(
    output_resolution=64,
    input_resolution=64,
    w_dim=6,
    coarse_end=3,
    middle_end=7,
    widths=(4, 6, 8, 10),
    units=(1, 1, 1, 1),
    reduction=2,
)
TINY_W = WEncoderConfig(64, 64, 6, widths=(4, 6, 8, 10), units=(1, 1, 1, 1), reduction=2)


def images(batch: int = 2, side: int = 64) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def seeded(module: Any) -> Any:
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return module.eval()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_resolution": 100}, r"`resolution` must be a power of two from 4 to 2048, got 100\."),
        ({"input_resolution": 96}, r"`input_resolution` must be a power of two from 32 to 2048, got 96\."),
        ({"coarse_end": 8}, r"`coarse_end` must be in \[1, middle_end\], got 8 with middle_end=7\."),
        ({"reduction": 5}, r"`reduction` must be in \[1, smallest width\], got 5"),
    ],
)
def test_pyramid_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_resolution": 100}, r"`resolution` must be a power of two from 4 to 2048, got 100\."),
        ({"reduction": 5}, r"`reduction` must be in \[1, smallest width\], got 5"),
    ],
)
def test_w_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY_W, **change)


def test_released_sizes() -> None:
    assert PyramidEncoderConfig().num_ws == 18
    with torch.device("meta"):
        encoder = Encoder4Editing(PyramidEncoderConfig())
    assert [len(style.convs) for style in encoder.pyramid.styles] == [4] * 3 + [5] * 4 + [6] * 11  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [GradualStyleEncoder, Encoder4Editing])
@pytest.mark.parametrize(("output", "num_ws"), [(16, 6), (64, 10), (1024, 18)])
@torch.no_grad()
def test_pyramid_shapes(cls: type[Any], output: int, num_ws: int) -> None:
    encoder = seeded(cls(replace(TINY, output_resolution=output)))
    w_plus = encoder(images())
    assert w_plus.shape == (2, num_ws, 6) and w_plus.isfinite().all()
    assert encoder.w_avg.shape == (num_ws, 6)


@torch.no_grad()
def test_input_of_another_side() -> None:
    encoder = seeded(GradualStyleEncoder(replace(TINY, input_resolution=32)))
    assert encoder(images(side=32)).shape == (2, 10, 6)


@torch.no_grad()
def test_w_encoder_repeats_one_w() -> None:
    encoder = seeded(WEncoder(TINY_W))
    w_plus = encoder(images())
    assert w_plus.shape == (2, 10, 6)
    assert torch.equal(w_plus, w_plus[:, :1].expand(-1, 10, -1))
    assert not torch.allclose(w_plus[0], w_plus[1])


@pytest.mark.parametrize(("cls", "config"), [(GradualStyleEncoder, TINY), (Encoder4Editing, TINY), (WEncoder, TINY_W)])
@torch.no_grad()
def test_w_avg_is_added(cls: type[Any], config: Any) -> None:
    encoder, x = seeded(cls(config)), images()
    without = encoder(x)
    encoder.w_avg.copy_(torch.randn(encoder.w_avg.shape, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(encoder(x), without + encoder.w_avg)
    assert any(key.endswith("w_avg") for key in encoder.state_dict())  # it travels with the weights


@pytest.mark.parametrize(("cls", "config"), [(GradualStyleEncoder, TINY), (Encoder4Editing, TINY), (WEncoder, TINY_W)])
def test_every_parameter_gets_a_gradient(cls: type[Any], config: Any) -> None:
    encoder = seeded(cls(config))
    encoder(images()).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_styles_read_their_own_level_of_the_pyramid() -> None:
    """Coarse styles ignore the lateral connections, middle ones read the first, fine ones read both."""
    encoder, x = seeded(GradualStyleEncoder(TINY)), images()
    plain = encoder(x)
    for lateral, first in ((encoder.pyramid.lateral1, 7), (encoder.pyramid.lateral2, 3)):
        kept = lateral.weight.clone()
        lateral.weight.mul_(2)
        changed = (encoder(x) - plain).abs().amax(dim=(0, 2)) > 0
        assert changed.tolist() == [i >= first for i in range(10)]
        lateral.weight.copy_(kept)


@pytest.mark.parametrize("stage", [0, 1, 5, 9])
@torch.no_grad()
def test_a_progressive_stage_leaves_the_later_styles_at_w_0(stage: int) -> None:
    encoder, x = seeded(Encoder4Editing(TINY)), images()
    assert encoder.progressive_stage == 9  # all of them
    full = encoder(x)
    encoder.progressive_stage = stage
    assert encoder.progressive_stage == stage
    w_plus = encoder(x)
    assert torch.equal(w_plus[:, : stage + 1], full[:, : stage + 1])
    assert torch.equal(w_plus[:, stage + 1 :], full[:, :1].expand(-1, 9 - stage, -1))
    assert all(not torch.allclose(full[:, i], full[:, 0]) for i in range(1, 10))


@pytest.mark.parametrize("stage", [-1, 10])
def test_the_progressive_stage_has_bounds(stage: int) -> None:
    encoder = Encoder4Editing(TINY)
    with pytest.raises(ValueError, match=rf"`progressive_stage` must be in \[0, 9\], got {stage}\."):
        encoder.progressive_stage = stage
    assert encoder.progressive_stage == 9


@pytest.mark.parametrize("stage", [0, 2, 4, 8])
def test_a_progressive_stage_trains_the_open_styles_and_the_backbone(stage: int) -> None:
    encoder = seeded(Encoder4Editing(TINY))
    encoder.progressive_stage = stage
    encoder(images()).square().sum().backward()

    def trained(module: nn.Module) -> set[bool]:
        return {p.grad is not None and bool(p.grad.abs().max() > 0) for p in module.parameters()}

    assert [trained(style) for style in encoder.pyramid.styles] == [{i <= stage} for i in range(10)]
    assert trained(encoder.pyramid.backbone) == {True}
    assert trained(encoder.pyramid.lateral2) == {stage >= 3}
    assert trained(encoder.pyramid.lateral1) == {stage >= 7}
