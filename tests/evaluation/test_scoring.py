import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan_inversion import PTIPipeline
from stylegan_inversion.evaluation import metrics
from stylegan_inversion.evaluation.methods import Inversion, invert, load_methods
from stylegan_inversion.evaluation.scoring import Scoring, prepare_targets, score
from stylegan_inversion.evaluation.settings import load_scoring
from stylegan_inversion.preprocessing.image import to_tensor

ARGUMENTS: dict[str, Any] = {"perceptual": "alex", "identity": "x", "resolution": None, "num_strengths": 5}


@pytest.fixture
def e4e(model: str, faces: list[Path], stubs: dict[str, Any]) -> tuple[Inversion, torch.Tensor, Scoring]:
    methods = load_methods(["e4e"], model)
    attributes = stubs["attributes"]
    scoring = load_scoring(methods, ["smile", "age"], attributes=attributes, **{**ARGUMENTS, "batch_size": 4})
    crops = [methods["e4e"].pipeline.align(path, align=False) for path in faces]
    targets = torch.cat([to_tensor(crop.image) for crop in crops])
    (found,) = invert(methods["e4e"], faces, crops, align=False)
    return found, targets, scoring


def test_figures_are_those_of_each_picture_alone(e4e: tuple[Inversion, torch.Tensor, Scoring]) -> None:
    """Chunks of 4 pictures over 5 photos and 9 steps mix everything that could be mixed up."""
    inversion, targets, scoring = e4e
    records, pictures = score(inversion, prepare_targets(targets, scoring), scoring)
    assert len(records) == 5 and inversion.encode is not None
    assert set(pictures) == {None, ("smile", -5.0), ("smile", 5.0), ("age", -3.0), ("age", 3.0)}
    attributes = scoring.attribute_scores
    assert scoring.identity is not None
    embed = scoring.identity.embed
    for i, (record, target) in enumerate(zip(records, targets)):
        target = target[None]
        w_plus = inversion.w_plus[i : i + 1]
        with torch.no_grad():
            image = inversion.generator.synthesis(w_plus).clamp(-1, 1)
            assert record["l2"] == pytest.approx(metrics.l2(image, target).item(), rel=1e-4)
            assert record["lpips"] == pytest.approx(scoring.perceptual(image, target).item(), rel=1e-3)
            assert record["identity"] == pytest.approx((embed(image) * embed(target)).sum().item(), rel=1e-4)
            torch.testing.assert_close(pictures[None][i], image[0])
            for name, strengths in (("smile", (-5.0, -2.5, 0.0, 2.5, 5.0)), ("age", (-3.0, -1.5, 0.0, 1.5, 3.0))):
                direction = scoring.edits[name].direction
                drawn = [inversion.generator.synthesis(direction.apply(w_plus, s)).clamp(-1, 1) for s in strengths]
                move = [(attributes(x)[name] - attributes(image)[name]).item() for x in drawn]
                assert record["edits"][name]["move"] == pytest.approx(move, abs=1e-5)
                to_photo = [(embed(x) * embed(target)).sum().item() for x in drawn]
                assert record["edits"][name]["identity"] == pytest.approx(to_photo, abs=1e-5)
                to_own = [(embed(x) * embed(image)).sum().item() for x in drawn]
                assert record["edits"][name]["identity_to_reconstruction"] == pytest.approx(to_own, abs=1e-5)
                assert record["edits"][name]["move"][2] == 0 and to_own[2] == pytest.approx(1)
                torch.testing.assert_close(pictures[name, strengths[-1]][i], drawn[-1][0])
                back = direction.apply(inversion.encode(drawn[-1]), -strengths[-1])
                assert record[f"lec_{name}"] == pytest.approx((w_plus - back).norm().item(), rel=1e-4)


def test_lec_is_zero_for_an_encoder_that_inverts_exactly(e4e: tuple[Inversion, torch.Tensor, Scoring]) -> None:
    inversion, targets, scoring = e4e
    far = torch.cat(
        [scoring.edits[name].direction.apply(inversion.w_plus, s) for name, s in (("smile", 5.0), ("age", 3.0))]
    )
    with torch.no_grad():
        drawn = inversion.generator.synthesis(far).clamp(-1, 1)

    def exact(images: torch.Tensor) -> torch.Tensor:
        return far[torch.cdist(images.flatten(1), drawn.flatten(1)).argmin(dim=1)]

    found = dataclasses.replace(inversion, encode=exact)
    records, _ = score(found, prepare_targets(targets, scoring), scoring)
    assert all(abs(record["lec_smile"]) < 1e-4 and abs(record["lec_age"]) < 1e-4 for record in records)
    records, _ = score(dataclasses.replace(inversion, encode=None), prepare_targets(targets, scoring), scoring)
    assert not any("lec_smile" in record for record in records)


def test_a_figure_that_is_no_number_is_no_result(e4e: tuple[Inversion, torch.Tensor, Scoring]) -> None:
    inversion, targets, scoring = e4e
    broken = dataclasses.replace(inversion, w_plus=torch.full_like(inversion.w_plus, torch.nan))
    with pytest.raises(FloatingPointError, match="a figure is NaN or infinite"):
        score(broken, prepare_targets(targets, scoring), scoring)


def test_the_face_scorer_sees_the_square_it_was_made_for(e4e: tuple[Inversion, torch.Tensor, Scoring]) -> None:
    _, _, scoring = e4e
    seen: list[torch.Size] = []

    def look(images: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(images.shape)
        return {}

    for crop_scale in (0.5, 0.74, 1.0):
        spy = dataclasses.replace(scoring, crop_scale=crop_scale, attributes=look)
        spy.attribute_scores(torch.zeros(1, 3, 100, 100))
    assert [shape[-1] for shape in seen] == [100, 100, 74]


def test_pictures_can_be_compared_at_another_size(model: str, faces: list[Path], stubs: dict[str, Any]) -> None:
    methods = load_methods(["psp"], model)
    arguments = {**ARGUMENTS, "resolution": 48, "identity": None, "batch_size": 2}
    scoring = load_scoring(methods, [], attributes=None, **arguments)
    crop = methods["psp"].pipeline.align(faces[0], align=False)
    targets = prepare_targets(to_tensor(crop.image), scoring)
    assert targets.images.shape == (1, 3, 48, 48) and targets.embeddings is None
    (found,) = invert(methods["psp"], faces[:1], [crop], align=False)
    records, pictures = score(found, targets, scoring)
    assert pictures[None].shape == (1, 3, 32, 32) and records[0]["edits"] == {} and "identity" not in records[0]


def test_wrong_settings(model: str, pti: PTIPipeline, stubs: dict[str, Any]) -> None:
    methods = load_methods(["e4e", "w"], model)

    def load(edits: tuple[str, ...] = (), **changes: Any) -> None:
        some = changes.pop("methods", methods)
        load_scoring(some, edits, **{**ARGUMENTS, "attributes": stubs["attributes"], "batch_size": 2, **changes})

    with pytest.raises(ValueError, match="`methods` must hold at least one method, got none"):
        load(methods={})
    with pytest.raises(ValueError, match=r"The name of a method must be letters, digits and . \+ - only, got 'a/b'"):
        load(methods={"a/b": methods["w"]})
    with pytest.raises(ValueError, match="`batch_size` must be >= 1, got 0"):
        load(batch_size=0)
    with pytest.raises(ValueError, match="MS-SSIM needs images of at least 11 px"):
        load(resolution=8)
    with pytest.raises(ValueError, match="There is no direction 'smle'"):
        load(("smle",))
    with pytest.raises(ValueError, match="There is no score for the edit 'age'; there are smile"):
        load(("age",), attributes=lambda x: {"smile": x.mean(dim=(1, 2, 3))})
    with pytest.raises(ValueError, match="`edits` are measured by what they cost in identity"):
        load(("smile",), identity=None)
    other = load_methods(["psp"], model)["psp"]
    other.pipeline.directions["smile"] = dataclasses.replace(
        other.pipeline.directions["smile"], vector=pti.directions["age"].vector
    )
    with pytest.raises(ValueError, match="`methods` must share their directions; 'smile' of 'psp' is another vector"):
        load(("smile",), methods={**methods, "psp": other})
    other.pipeline.crop_scale = 0.5
    with pytest.raises(ValueError, match=r"(?s)`methods` must share resolution, crop scale and device.*'psp' has"):
        load(methods={**methods, "psp": other})
