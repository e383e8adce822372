"""What ships inside the package: whole, as the index says, and good enough for real photos."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion import E4EPipeline, InversionOutput, PSPPipeline, PTIPipeline
from stylegan_inversion.demo import sample_photos
from stylegan_inversion.evaluation.editability import load_face_scorer
from stylegan_inversion.evaluation.metrics import mean_offset_norm
from stylegan_inversion.latents import broadcast
from stylegan_inversion.models.face import FaceScorer
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.storage import builtin_models, builtin_path, read_tensors

ROOT = builtin_path("faces64")
FILES = json.loads((ROOT / "index.json").read_text())["files"]


def test_it_is_found() -> None:
    assert builtin_models() == ["faces64"]


def test_the_index_is_complete() -> None:
    assert set(FILES) == {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.safetensors")}
    parts = {"generator", "psp_encoder", "e4e_encoder", "sfe_encoder", "directions", "face"}
    assert {name.split("/")[0] for name in FILES} == parts


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_what_the_index_says(name: str) -> None:
    content = (ROOT / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == FILES[name]["sha256"] and len(content) == FILES[name]["bytes"]
    assert sum(tensor.numel() for tensor in read_tensors(ROOT / name).values()) == FILES[name]["parameters"]
    assert FILES[name]["license"] and FILES[name]["source"]


def test_the_perceptual_network_is_the_one_that_was_checked() -> None:
    content = (builtin_path("perceptual/alex") / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "c497582deed992f3090327e4ba435e0cb0de4e239d8d1af9978cc832433a54ba"
    licence = (builtin_path("perceptual") / "LICENSE").read_text()
    assert "Richard Zhang" in licence and "Soumith Chintala" in licence


def test_samples_carry_no_metadata() -> None:
    for path in sample_photos():
        assert b"Exif" not in path.read_bytes() and b"GPS" not in path.read_bytes()


def test_the_encoders_keep_the_order_of_the_papers() -> None:
    """On pictures that were never trained on: pSp distorts less than e4e, e4e stays nearer to W."""
    pictures = sorted((Path(__file__).parent / "data" / "faces64").glob("*.png"))
    e4e, psp = (kind.from_pretrained("faces64")(pictures, align=False) for kind in (E4EPipeline, PSPPipeline))
    average = PSPPipeline.from_pretrained("faces64").generator
    with torch.no_grad():
        plain = average.synthesis(broadcast(average.w_avg[None], average.num_ws))
    targets = torch.cat([to_tensor(crop.image) for crop in psp.crops])

    def mean_l2(out: InversionOutput) -> float:
        return sum(report["l2"] for report in out.reports) / len(pictures)

    assert mean_l2(psp) < mean_l2(e4e) < 0.5 * float((plain - targets).square().mean())
    assert mean_offset_norm(e4e.w_plus).mean() < 0.8 * mean_offset_norm(psp.w_plus).mean()


@pytest.fixture(scope="module")
def inversions() -> Iterator[tuple[PTIPipeline, list[InversionOutput]]]:
    """The bundled photos through PTI with the default steps."""
    pipeline = PTIPipeline.from_pretrained("faces64", detector="builtin")
    yield pipeline, [pipeline(photo) for photo in sample_photos()]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_pti_on_real_photos(inversions: tuple[PTIPipeline, list[InversionOutput]]) -> None:
    for photo, out in zip(sample_photos(), inversions[1]):
        report: dict[str, Any] = out.reports[0]
        print(Path(photo).name, report)
        assert report["l2"] < 0.01
        assert report["l2_pivot"] >= 5 * report["l2"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("tuned", [False, True])
def test_smile_moves_the_smile_of_real_photos(
    inversions: tuple[PTIPipeline, list[InversionOutput]], tuned: bool
) -> None:
    pipeline, outputs = inversions
    scorer: FaceScorer = load_face_scorer()
    direction = pipeline.directions["smile"]
    assert direction.strength_range is not None
    right = 0
    for out in outputs:
        generator = out.generator if tuned else pipeline.generator

        def smile(strength: float, out: InversionOutput = out, generator: Any = generator) -> float:
            w_plus: Tensor = direction.apply(out.w_plus, strength)
            with torch.no_grad():
                return float(scorer(generator.synthesis(w_plus).clamp(-1, 1))["smile"])

        low, middle, high = (smile(s) for s in (direction.strength_range[0], 0.0, direction.strength_range[1]))
        print(f"smile score {low:.2f} < {middle:.2f} < {high:.2f}")
        right += low < middle < high
    assert right >= 5


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_saved_crop_is_the_one_that_was_inverted(inversions: tuple[PTIPipeline, list[InversionOutput]]) -> None:
    out = inversions[1][0]
    l2 = (to_tensor(out.images[0]) - to_tensor(out.crops[0].image)).square().mean().item()
    assert l2 == pytest.approx(out.reports[0]["l2"], abs=1e-4)
