"""What pipelines refuse, and what they say then. Each message names the value, the bound or the way out."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import E4EPipeline, InversionOutput, PSPPipeline, PTIPipeline, storage
from stylegan_inversion.errors import CheckpointError, FaceNotFoundError, InvalidImageError, ModelNotFoundError
from stylegan_inversion.losses.lpips import AlexLPIPS, AlexLPIPSConfig
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.pipelines.play import edit_frames, interpolate_outputs, mix_outputs, sample_face
from stylegan_inversion.preprocessing.sources import LabelSource
from tests.pipelines.conftest import small_encoder, small_pipeline

Case = tuple[str, type[Exception], Callable[[Any], object], str]

DEVICES = "`device` must be auto, cuda, mps, cpu or such as cuda:1, got 'gpu'"
FLOATS = "`dtype` of E4EPipeline must be one of torch.float16, torch.bfloat16, torch.float32, torch.float64, got "
PRECISE = "`dtype` of PTIPipeline must be one of torch.float32, torch.float64, got torch.bfloat16"
PIVOTS = "`pivot` must be one of w, w_plus, e4e, psp, restyle, sfe, or an earlier inversion, got "
PRESETS = r"`preset` must be one of fast, balanced, best, got "
TO = '`to` takes a device such as "cuda" and a dtype such as torch.float64, got '


def labels(given: Any) -> Any:
    return small_pipeline("psp", given.pti.generator, LabelSource(5))


def face(given: Any, seed: int = 0) -> InversionOutput:
    return sample_face(given.pti, seed=seed, truncation=1.0)


def two(given: Any) -> InversionOutput:
    one = face(given)
    pictures, w_plus = one.images * 2, one.w_plus.repeat(2, 1, 1)
    return InversionOutput(pictures, pictures, w_plus, [one.generator] * 2, one.crops * 2)


CALLS: list[Case] = [
    ("empty list", ValueError, lambda g: g.pti([]), "got an empty list"),
    ("face 2 of 2", FaceNotFoundError, lambda g: g.pti(g.photo, face=2), "2"),
    ("edit", ValueError, lambda g: g.pti.edit(face(g), smle=1.0), r"(?s)smle.*smile"),
    ("w steps", ValueError, lambda g: g.pti(g.photo, num_w_steps=0), r"^`num_w_steps` must be >= 1, got 0\.$"),
    ("tuning", ValueError, lambda g: g.pti(g.photo, num_tuning_steps=-1), "^`num_tuning_steps` must be >= 0, got -1"),
    ("batch", ValueError, lambda g: g.pti(g.photo, batch_size=0), r"^`batch_size` must be >= 1, got 0\.$"),
    ("seed", ValueError, lambda g: g.pti(g.photo, seed=-1), r"^`seed` must be in \[0, 2\*\*63\), got -1\.$"),
    ("pivot", ValueError, lambda g: g.pti(g.photo, pivot="z"), f"{PIVOTS}'z'"),
    ("pivot list", ValueError, lambda g: g.pti.plan(pivot=["w"]), PIVOTS),
    ("preset", ValueError, lambda g: g.pti(g.photo, preset="good"), rf"{PRESETS}'good'\."),
    ("no encoder", ModelNotFoundError, lambda g: g.pti(g.photo, pivot="psp"), r"'psp_encoder'\) for pivot='psp'"),
    ("name", ValueError, lambda g: g.pti.encoder_pipeline("w"), "be one of e4e, psp, restyle, sfe, got 'w'"),
    ("name list", ValueError, lambda g: g.pti.encoder_pipeline(["e4e"]), r"got \['e4e'\]"),
    ("crop", ValueError, lambda g: g.e4e(PTIPipeline.from_pretrained("faces64").align(g.photo, align=False)), "64 x"),
    ("dtype of PTI", ValueError, lambda g: g.pti.to(torch.bfloat16), PRECISE),
    ("dtype int8", ValueError, lambda g: g.e4e.to(dtype=torch.int8), FLOATS),
    ("export of labels", ValueError, lambda g: labels(g).export_onnx("out"), "takes no photos of faces"),
    ("export of halves", ValueError, lambda g: g.e4e.to(torch.bfloat16).export_onnx("out"), "torch.bfloat16 on cpu"),
    ("device", ValueError, lambda g: g.e4e.to("gpu"), DEVICES),
    ("device True", TypeError, lambda g: g.e4e.to(True), TO),
    ("two devices", TypeError, lambda g: g.e4e.to("cpu", "cuda"), "one device and one dtype, got 'cuda' as well"),
    ("load PTI half", ValueError, lambda g: PTIPipeline.from_pretrained("faces64", dtype=torch.bfloat16), PRECISE),
    ("no such model", ModelNotFoundError, lambda g: PTIPipeline.from_pretrained("faces46"), "faces64"),
    ("push", ValueError, lambda g: g.e4e.push_to_hub("mine"), "`repo_id` must be organisation/repository, got 'mine'"),
    ("encoders", ValueError, lambda g: PTIPipeline(g.pti.generator, perceptual=g.pti.perceptual,
     encoders={"w": small_encoder("psp")}), "`encoders` must be named e4e, psp, restyle, sfe, got 'w'"),
    ("components", ValueError, lambda g: g.pti.load_components("x.pt", count=0), "`count` must be at least 1, got 0"),
    ("layers", ValueError, lambda g: g.pti.load_components("x.pt", layers=(2, 18)), r"0 <= start < stop <= 8, got \(2"),
    # translate
    ("outputs", ValueError, lambda g: labels(g).translate(g.photo, num_outputs=0), "`num_outputs` must be at least 1"),
    ("factor", ValueError, lambda g: g.e4e.translate(g.photo, resize_factor=0.5), r"must be in \[1, 64\], got 0\.5"),
    ("no photo", ValueError, lambda g: labels(g).translate(g.photo, align=True), "are for photos, and this encoder"),
    ("alpha", ValueError, lambda g: labels(g).translate(g.photo, latent_mask=[0], mix_alpha=math.nan),
     r"`mix_alpha` must be in \[0, 1\], got nan"),
    ("mask", ValueError, lambda g: labels(g).translate(g.photo, latent_mask=[8]), r"layers in \[0, 7\], at least one"),
    ("labels", InvalidImageError, lambda g: labels(g).translate(Image.new("L", (64, 64), 9)), r"must be in \[0, 4\]"),
    ("use translate", ValueError, lambda g: labels(g)(g.photo), r"LabelSource\(num_labels=5\).*use `translate"),
    ("source", ValueError, lambda g: PSPPipeline(g.pti.generator, labels(g).encoder), "`source` has 3 channels .* 5"),
    # play
    ("sample seed", ValueError, lambda g: sample_face(g.pti, seed=-1), r"`seed` must be in \[0, 2\*\*63\), got -1"),
    ("truncation", ValueError, lambda g: sample_face(g.pti, truncation=math.nan), r"in \[0, 2\], got nan; 0\.7 is"),
    ("mix layers", ValueError, lambda g: mix_outputs(face(g), face(g, 1), layers=(4, 9)), r"<= 8, got \(4, 9\)"),
    ("mix alpha", ValueError, lambda g: mix_outputs(face(g), face(g, 1), alpha=math.inf), "`alpha` must be finite"),
    ("one frame", ValueError, lambda g: interpolate_outputs(face(g), face(g, 1), steps=1), "`steps` must be >= 2"),
    ("animate", ValueError, lambda g: edit_frames(g.pti, face(g), {"smlie": 1.0}, steps=2), "Did you mean 'smile'"),
    ("two faces a", ValueError, lambda g: mix_outputs(two(g), face(g)), r"`a` must be one photo, got 2.* `a\[0\]`"),
    ("two faces out", ValueError, lambda g: edit_frames(g.pti, two(g), {}, steps=2), "`out` must be one photo, got 2"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "call", "message"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS])
def test_a_call(given: SimpleNamespace, error: type[Exception], call: Callable[[Any], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call(given)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"_class_name": "os.system"}, r"config\.json is of a 'os\.system', not of a pipeline of this package"),
        ("", {"_class_name": ["E4EPipeline"]}, r"not of a pipeline of this package"),
        (
            "",
            {"domain": {"crop_scale": -1.0}},
            r"under `domain`: `crop_scale` must be a number in .*, got -1.0",
        ),
        ("", {"domain": {"crop_scale": math.nan}}, "`crop_scale` must be a number in .*, got nan"),
        ("", {"domain": {"height": 0.75}}, "`height` must be 1 for a model of faces, whose crops are square, got 0.75"),
        ("", {"domain": {"wheels": 4}}, "bad settings under `domain`.*wheels"),
        ("", {"source": {"kind": "../x"}}, r"bad settings under `source`: `kind` of a source must be one of photo"),
        ("", {"source": {"kind": "labels", "num_labels": 4}}, "bad settings under `source`"),
        ("", {"source": 3}, "bad settings under `source`"),
        ("", {"pti": {"tuning": {"num_stps": 3}}}, "bad settings under `pti`.*num_stps"),
        ("", {"pti": {"tuning": {"learning_rate": math.nan}}}, "under `pti`: `learning_rate` must be a number in"),
        ("", {"pti": {"perceptual": 4096}}, "under `pti`: `perceptual` must be one of alex, vgg, got '4096'"),
        ("", {"pti": ["alex"]}, "bad settings under `pti`: 'list' object"),
        ("generator", {"_class_name": "subprocess.Popen"}, r"is of a 'subprocess\.Popen', not of a Generator"),
        ("e4e_encoder", {"_class_name": "Generator"}, r"is of a 'Generator', not of a Encoder4Editing"),
        ("generator", {"w_dim": "../x"}, r"does not describe a Generator"),
    ],
)
def test_a_config(part: str, change: dict[str, Any], message: str, e4e: E4EPipeline, tmp_path: Path) -> None:
    folder = e4e.save_pretrained(tmp_path / "model")
    storage.write_config({**storage.read_config(folder / part), **change}, folder / part)
    with pytest.raises(CheckpointError, match=message):
        (PTIPipeline if "pti" in change else E4EPipeline).from_pretrained(folder)


def test_what_only_some_pipelines_are_given(pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(InvalidImageError, match=r"text\.jpg"):
        pti(tmp_path / "text.jpg")
    with pytest.raises(FaceNotFoundError, match="align=False"):
        PTIPipeline(pti.generator, perceptual=pti.perceptual, detector=lambda photo: [])(photo)
    own = AlexLPIPS(AlexLPIPSConfig((4, 4, 4, 4, 4)))
    with pytest.raises(ValueError, match="`perceptual` has no name"):
        PTIPipeline(pti.generator, perceptual=own).save_pretrained(tmp_path)


def test_a_device_that_is_not_there(e4e: E4EPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for call in (e4e.to, lambda device: E4EPipeline.from_pretrained("org/never-asked", device=device)):
        with pytest.raises(ValueError, match="`device` is 'cuda:0', which this machine or this build of PyTorch lacks"):
            call("cuda:0")


def test_faces_of_two_models(given: SimpleNamespace) -> None:
    one = face(given)
    larger = Generator(GeneratorConfig(64, z_dim=8, w_dim=16, mapping_layers=2, channel_base=256, channel_max=8))
    other = Generator(one.generator.config)
    other.w_avg += 1.0
    for generator, message in ((larger, r"sizes .*resolution=32.*resolution=64"), (other, "average w differ")):
        elsewhere = InversionOutput(one.images, one.images, one.w_plus, [generator], one.crops)
        with pytest.raises(ValueError, match=f"must be of the same model.*{message}"):
            mix_outputs(one, elsewhere)
        with pytest.raises(ValueError, match="`pivot` is of another model"):
            given.pti(one.crops[0], pivot=elsewhere)
