"""Habits of callers that must change nothing: compiled parts, NumPy's numbers, other defaults of PyTorch."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan_inversion import E4EPipeline, InversionOutput, PTIPipeline, storage
from stylegan_inversion.checkpoints.export import write_official
from stylegan_inversion.checkpoints.generator import generator_to_rosinality
from stylegan_inversion.pipelines.play import find_components, interpolate_outputs, sample_face
from stylegan_inversion.preprocessing.domain import Domain
from tests.checkpoints.official_files import generator

PHOTO = storage.builtin_path("samples/sample1.jpg")
CROP = np.asarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)), np.uint8)


@pytest.fixture
def compiled() -> Iterator[Callable[[Any], Any]]:
    """The wrapper of `torch.compile`; nothing is compiled, since it cannot read the tests' checks of types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own, when its compiler is first imported
        with torch.compiler.set_stance("force_eager"):
            yield torch.compile


def test_compiled_parts(compiled: Callable[[Any], Any], tmp_path: Path) -> None:
    pipe = E4EPipeline.from_pretrained("faces64")
    expected = pipe(CROP, align=False)
    names = {"generator": pipe.generator.state_dict().keys(), "e4e_encoder": pipe.encoder.state_dict().keys()}
    pipe.generator, pipe.encoder = compiled(pipe.generator), compiled(pipe.encoder)
    pipe.generator.synthesis = compiled(pipe.generator.synthesis)
    assert all("_orig_mod." in str(network.state_dict().keys()) for network in (pipe.encoder, pipe.generator))
    out = pipe.edit(pipe(CROP, align=False), smile=1.0)
    folder = pipe.save_pretrained(tmp_path / "model")
    for part, keys in names.items():
        assert storage.read_tensors(folder / part / storage.WEIGHTS_NAME).keys() == keys
    assert storage.read_config(folder / "e4e_encoder")["_class_name"] == "Encoder4Editing"
    assert torch.equal(E4EPipeline.from_pretrained(folder)(CROP, align=False).w_plus, expected.w_plus)
    for name, whole in (("change", False), ("whole", True)):
        again = InversionOutput.load(out.save(tmp_path / name, whole=whole))
        assert again.images[0].tobytes() == out.images[0].tobytes()
    assert len(interpolate_outputs(out, InversionOutput.load(tmp_path / "whole"), steps=3)) == 3

    pti = PTIPipeline.from_pretrained("faces64")
    tuned = pti(CROP, align=False, num_w_steps=1, num_tuning_steps=1).generator.state_dict()
    pti.generator = compiled(pti.generator)
    pti.generator.synthesis = compiled(pti.generator.synthesis)
    again = InversionOutput.load(pti(CROP, align=False, num_w_steps=1, num_tuning_steps=1).save(tmp_path / "out"))
    assert again.generator.state_dict().keys() == tuned.keys()
    assert all(torch.equal(tensor, tuned[key]) for key, tensor in again.generator.state_dict().items())


def test_integers_of_numpy(tmp_path: Path) -> None:
    pti, e4e = PTIPipeline.from_pretrained("faces64"), E4EPipeline.from_pretrained("faces64")
    calls: tuple[Callable[[Any], InversionOutput], ...] = (
        lambda i: pti(PHOTO, face=i(0), num_w_steps=i(1), num_tuning_steps=i(1), batch_size=i(1), seed=i(3)),
        lambda i: e4e.translate(CROP, num_outputs=i(2), latent_mask=[i(5)], seed=i(2)),
        lambda i: sample_face(e4e, seed=i(1), truncation=0.5),
    )
    for call in calls:
        folder = call(np.int64).save(tmp_path / "out")
        assert torch.equal(InversionOutput.load(folder).w_plus, call(int).w_plus)
    assert find_components(e4e.generator, count=np.int64(2), seed=np.int64(0))["SeFa"][1].name == "sefa_2"


def walk(folder: Path) -> dict[str, Tensor]:
    """The roads through the package."""
    e4e = E4EPipeline.from_single_file(folder / "e4e.pt", domain=Domain(crop_scale=0.74))
    out = e4e(PHOTO)
    found = {"e4e": out.w_plus, "picture": torch.from_numpy(np.array(out.images[0]))}
    e4e.save_pretrained(folder / "saved")
    edited = e4e.edit(out, **{name: 1.0 for name in e4e.directions})
    found["pasted"] = torch.from_numpy(np.array(e4e.paste_back(edited)[0]))
    out.save(folder / "out")
    found["loaded"] = InversionOutput.load(folder / "out", base=e4e.generator).w_plus
    found["sample"] = sample_face(e4e, seed=1).w_plus
    found["sefa"] = find_components(e4e.generator, count=1)["SeFa"][0].vector
    found["translate"] = e4e.translate(CROP, num_outputs=2, latent_mask=[5], seed=4).w_plus
    bare = PTIPipeline.from_single_file(folder / "bare.pt").generator  # neither an average w nor noise
    found |= {"w_avg": bare.w_avg, "noise": bare.synthesis.convs[3].noise_const}
    pti = PTIPipeline.from_pretrained("faces64")
    pti.tuning = dataclasses.replace(pti.tuning, use_locality=True, lpips_threshold=0.0)
    out = pti(CROP, align=False, num_w_steps=2, num_tuning_steps=2)
    return found | {"pti": out.w_plus, "tuned": out.generator.synthesis.const.detach()}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Official files, and what the roads give under PyTorch's own defaults."""
    folder = tmp_path_factory.mktemp("official")
    write_official(storage.builtin_path("faces64"), folder / "e4e.pt", layout="e4e")
    bare = generator_to_rosinality(*generator())[0]
    torch.save({"g_ema": {name: tensor for name, tensor in bare.items() if "noise_" not in name}}, folder / "bare.pt")
    return folder, walk(folder)


@pytest.mark.parametrize(
    "change", [lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_device("meta")]
)
def test_a_callers_defaults_change_nothing(walked: tuple[Path, dict[str, Tensor]], change: Callable[[], None]) -> None:
    """Under another default type or device, what does not name its own is wrong, or has no numbers."""
    folder, expected = walked
    try:
        change()
        found = walk(folder)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
