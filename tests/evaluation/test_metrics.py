import dataclasses
import math

import pytest
import torch

from stylegan_inversion import E4EPipeline
from stylegan_inversion.editing.directions import Direction
from stylegan_inversion.evaluation import metrics
from stylegan_inversion.evaluation.metrics import Edit, Scorer, resize
from stylegan_inversion.losses.lpips import load_perceptual
from tests.evaluation.conftest import StubIdentity, stub_attributes


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_formulas_by_hand(images: torch.Tensor) -> None:
    grey = torch.zeros(2, 3, 8, 8)
    other = torch.stack([torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), -1.0)])
    torch.testing.assert_close(metrics.l2(other, grey), torch.tensor([0.25, 1.0]))
    # Peak 2: 10 log10(4 / mse). An error of the whole range has 0 dB, and GANInverter's 10 log10(2 / mse) is 3.01 less.
    expected = torch.tensor([10 * math.log10(16), 10 * math.log10(4)])
    torch.testing.assert_close(metrics.psnr(other, grey), expected)
    assert metrics.psnr(-torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)).item() == pytest.approx(0, abs=1e-5)
    assert metrics.psnr(images, images).tolist() == pytest.approx([106.02] * 3, abs=0.01)
    for metric in (metrics.l2, metrics.psnr, metrics.ms_ssim):  # what lies outside the range is clamped
        torch.testing.assert_close(metric(images * 3, images), metric((images * 3).clamp(-1, 1), images))
    w_plus = torch.ones(2, 1, 3).repeat(1, 5, 1)
    w_plus[1, 2] += torch.tensor([0.0, 3.0, 4.0])  # one of four later layers, 5 away
    torch.testing.assert_close(metrics.mean_offset_norm(w_plus), torch.tensor([0.0, 1.25]))
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize(ramp, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5] and resize(ramp, 8).shape == (1, 1, 8, 8)


def test_scales_of_ms_ssim() -> None:
    assert [metrics.ms_ssim_scales(side) for side in (11, 32, 64, 128, 256, 1024)] == [1, 2, 3, 4, 5, 5]
    with pytest.raises(ValueError, match="MS-SSIM needs images of at least 11 px a side, got 10"):
        metrics.ms_ssim_scales(10)
    for side in (11, 22, 44, 90, 176):  # every number of scales must be possible at its smallest side
        image = torch.zeros(1, 3, side, side)
        assert metrics.ms_ssim(image, image).item() == pytest.approx(1)


def test_ms_ssim_follows_its_definition(images: torch.Tensor) -> None:
    """Wang et al. 2003, written out: contrast at the finer scales, ssim at the coarsest, betas divided by their sum."""
    noisy = (images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    x, y = (images + 1) / 2, (noisy + 1) / 2
    taps = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = (torch.outer(taps, taps) / taps.sum() ** 2).expand(3, 1, 11, 11)

    def blur(a: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(torch.nn.functional.pad(a, (5,) * 4, "reflect"), window, groups=3)

    betas, total = (0.0448, 0.2856, 0.3001), torch.ones(3)
    for scale, beta in enumerate(betas):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        contrast = (2 * cov + 0.03**2) / (vx + vy + 0.03**2)
        if scale < 2:
            value = contrast[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
        else:
            value = (contrast * (2 * mx * my + 0.01**2) / (mx * mx + my * my + 0.01**2)).mean(dim=(1, 2, 3))
        total = total * value.clamp_min(0) ** (beta / sum(betas))
        x, y = (torch.nn.functional.avg_pool2d(a, 2) for a in (x, y))
    torch.testing.assert_close(metrics.ms_ssim(noisy, images), total, rtol=1e-4, atol=1e-5)
    assert (total < 0.99).all()
    torch.testing.assert_close(metrics.ms_ssim(images, images), torch.ones(3))


@pytest.fixture
def scorer(model: str) -> Scorer:
    directions = E4EPipeline.from_pretrained(model).directions
    edits = {name: Edit(directions[name], strengths) for name, strengths in STRENGTHS.items()}
    return Scorer(load_perceptual(), StubIdentity(), stub_attributes, edits, 32, 0.74)  # type: ignore[arg-type]


STRENGTHS = {"smile": (-5.0, -2.5, 0.0, 2.5, 5.0), "age": (-3.0, 0.0)}


@torch.no_grad()
def test_figures_are_those_of_each_picture_alone(model: str, images: torch.Tensor, scorer: Scorer) -> None:
    pipeline = E4EPipeline.from_pretrained(model)
    targets, draw, embed = resize(images, 32), pipeline.generator.synthesis, StubIdentity().embed
    w_plus = pipeline.encode(targets)
    rows, pictures = scorer.score(w_plus, pipeline.generator, targets, encode=pipeline.encode)
    assert len(rows) == 3 and set(pictures) == {None, ("smile", -5.0), ("smile", 5.0), ("age", -3.0)}
    for i, row in enumerate(rows):
        target, w = targets[i : i + 1], w_plus[i : i + 1]
        image = draw(w).clamp(-1, 1)
        assert row["l2"] == pytest.approx(metrics.l2(image, target).item(), rel=1e-4)
        assert row["lpips"] == pytest.approx(scorer.perceptual(image, target).item(), rel=1e-3)
        assert row["identity"] == pytest.approx((embed(image) * embed(target)).sum().item(), rel=1e-4)
        torch.testing.assert_close(pictures[None][i], image[0])
        for name, strengths in STRENGTHS.items():
            direction, found = scorer.edits[name].direction, row["edits"][name]
            drawn = [draw(direction.apply(w, s)).clamp(-1, 1) for s in strengths]
            move = [(stub_attributes(x)[name] - stub_attributes(image)[name]).item() for x in drawn]
            assert found["move"] == pytest.approx(move, abs=1e-5) and found["move"][strengths.index(0)] == 0
            for key, other in (("identity", target), ("identity_to_reconstruction", image)):
                assert found[key] == pytest.approx([(embed(x) * embed(other)).sum().item() for x in drawn], abs=1e-5)
            far = -1 if name == "smile" else 0
            torch.testing.assert_close(pictures[name, strengths[far]][i], drawn[far][0])
            back = direction.apply(pipeline.encode(drawn[far]), -strengths[far])
            assert row[f"lec_{name}"] == pytest.approx((w - back).norm().item(), rel=1e-4)
    assert not any("lec_smile" in row for row in scorer.score(w_plus, pipeline.generator, targets)[0])
    styles = torch.eye(sum(pipeline.generator.config.style_sizes))[2]
    in_s = Edit(Direction.from_vector("smile", styles, space="s", unit=9.0), (0.0, 2.0))  # no inverse in W: no LEC
    styled = dataclasses.replace(scorer, edits={"smile": in_s})
    rows = styled.score(w_plus, pipeline.generator, targets, encode=pipeline.encode)[0]
    assert not {"lec_smile"} & {*rows[0], *styled.columns} and rows[0]["edits"]["smile"]["move"][1] != 0
    with pytest.raises(FloatingPointError, match="a figure is NaN or infinite"):
        scorer.score(w_plus * torch.nan, pipeline.generator, targets)


@pytest.mark.parametrize(("crop_scale", "side"), [(0.5, 100), (0.74, 100), (1.0, 74)])
def test_the_face_scorer_sees_the_square_it_was_trained_on(crop_scale: float, side: int, scorer: Scorer) -> None:
    seen: list[torch.Size] = []
    spy = dataclasses.replace(scorer, crop_scale=crop_scale, attributes=lambda x: seen.append(x.shape) or {})
    spy.attribute_scores(torch.zeros(1, 3, 100, 100))
    assert seen[0][-1] == side
