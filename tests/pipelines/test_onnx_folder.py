"""The ONNX files give what PyTorch gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan_inversion import Direction, E4EPipeline
from stylegan_inversion.models.face import FaceFeaturesConfig, FaceLandmarks68
from stylegan_inversion.models.face_detector import FaceDetector, FaceDetectorConfig
from stylegan_inversion.pipelines import onnx_folder

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


class TinyFaces:
    def __init__(self) -> None:
        sizes = FaceDetectorConfig(32, channels=(4,) * 14, extra_channels=(4,) * 8)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.detector = FaceDetector(sizes)
            self.landmarks = FaceLandmarks68(FaceFeaturesConfig(16, channels=(4, 8)))


@pytest.mark.slow
def test_the_files_compute_what_the_pipeline_does(
    e4e: E4EPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_folder, "BuiltinLandmarkDetector", TinyFaces)
    with torch.no_grad():
        for parameter in e4e.encoder.parameters():
            parameter.copy_(parameter.half())  # stored in two bytes each
    count = sum(e4e.generator.config.style_sizes)
    e4e.directions["pale"] = Direction.from_vector("pale", torch.ones(count), unit=3.0, space="s")
    e4e.directions["late"] = Direction("late", torch.eye(16)[3], layers=(5, 8), strength_range=(-2.0, 2.0))
    e4e.export_onnx(tmp_path / "out")

    def run(name: str, **inputs: torch.Tensor) -> list[torch.Tensor]:
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / f"{name}.onnx"))
        return [torch.from_numpy(out) for out in session.run(None, {key: x.numpy() for key, x in inputs.items()})]

    rng, faces = torch.Generator().manual_seed(1), TinyFaces()
    model = json.loads((tmp_path / "out" / "model.json").read_text("utf-8"))
    x, view, crop = (torch.rand(1, 3, side, side, generator=rng) * 2 - 1 for side in (64, 32, 16))
    assert [model["encoder_side"], model["detector"]["side"], model["landmarks"]["side"]] == [64, 32, 16]
    with torch.no_grad():
        w_plus = e4e.encoder(x)
        torch.testing.assert_close(run("encoder", x=x), [w_plus], atol=1e-5, rtol=0)
        torch.testing.assert_close(run("detector", x=view), list(faces.detector(view)), atol=1e-3, rtol=0)
        both = torch.cat([crop, crop.flip(3)])
        torch.testing.assert_close(run("landmarks", x=crop), [faces.landmarks(both)], atol=1e-5, rtol=0)
    size = (tmp_path / "out" / "encoder.onnx").stat().st_size
    assert size < 2.5 * sum(each.numel() for each in e4e.encoder.parameters()) + 200_000

    # an edit, as a reader of model.json makes it
    styles, moved = torch.zeros(1, model["num_styles"]), w_plus.clone()
    strengths = {"smile": 1.5, "pale": 0.1, "late": -2.0}
    for each in model["directions"]:
        step = strengths.get(each["name"], 0.0) * torch.tensor(each["step"])
        if each["space"] == "s":
            styles += step
        else:
            moved[:, slice(*each["layers"])] += step
    assert np.allclose(model["directions"][-1]["strength_range"], [-2, 2]) and model["crop_scale"] == 1
    generator = e4e.directions["pale"].restyle(e4e.generator, 0.1)
    for name in ("smile", "late"):
        w_plus = e4e.directions[name].apply(w_plus, strengths[name])
    torch.testing.assert_close(moved, w_plus)
    with torch.no_grad():
        drawn = generator.synthesis(w_plus)
    torch.testing.assert_close(run("synthesis", w_plus=moved, styles=styles), [drawn], atol=1e-5, rtol=0)
