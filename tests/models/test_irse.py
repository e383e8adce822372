from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from stylegan_inversion.hub import load_module, save_module
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig, IRSEBackbone, IRSEConfig, crop_face

TINY = IRSEConfig(widths=(4, 6, 8, 10), units=(1, 2, 1, 1), reduction=2)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [32, 64])
def test_features_at_a_quarter_an_eighth_and_a_sixteenth(side: int) -> None:
    backbone = IRSEBackbone(TINY)
    pyramid = backbone(noise(2, 3, side, side))
    shapes = [tuple(c.shape) for c in pyramid]
    assert shapes == [(2, 6, side // 4, side // 4), (2, 8, side // 8, side // 8), (2, 10, side // 16, side // 16)]
    sum(c.square().mean() for c in pyramid).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_arcface_embeds_on_the_unit_sphere_and_is_saved_and_loaded(tmp_path: Path) -> None:
    arcface = ArcFace(ArcFaceConfig(**asdict(TINY), resolution=32, embedding_dim=5)).eval()
    x = noise(3, 3, 32, 32)
    embedding = arcface(x)
    assert embedding.shape == (3, 5)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(arcface(x[1:2]), embedding[1:2])  # in eval mode samples do not mix
    save_module(arcface, tmp_path)
    loaded = load_module(ArcFace, ArcFaceConfig, tmp_path)
    assert loaded.config == arcface.config and torch.equal(loaded(x), embedding)


def test_crop_face_takes_rows_35_to_223_and_columns_32_to_220() -> None:
    rows = torch.arange(256.0).view(1, 1, 256, 1).expand(1, 1, 256, 256)
    x = torch.cat([rows, rows.transpose(2, 3), torch.zeros_like(rows)], dim=1)
    crop = crop_face(x, 188)
    assert torch.equal(crop[0, 0, :, 0], torch.arange(35.0, 223.0))
    assert torch.equal(crop[0, 1, 0], torch.arange(32.0, 220.0))
