import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from stylegan_inversion import Direction, PTIPipeline
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.models.e4e_encoder import Encoder4Editing
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.psp_encoder import GradualStyleEncoder, PyramidEncoderConfig
from stylegan_inversion.pipelines.encoder import EncoderPipeline
from stylegan_inversion.webapp.model import load_model, make_model


@pytest.fixture
def folder(pti: PTIPipeline, tmp_path: Path) -> Path:
    """A model with everything: both encoders, directions of its own."""
    config = PyramidEncoderConfig(32, 64, w_dim=16, widths=(4, 4, 8, 8), units=(1, 1, 1, 1), reduction=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pti.encoders |= {"e4e": Encoder4Editing(config).eval(), "psp": GradualStyleEncoder(config).eval()}
    return pti.save_pretrained(tmp_path / "mine", license="cc0-1.0")


def test_every_method_shares_every_network(folder: Path, photo: Image.Image, detector: Any) -> None:
    model = load_model(folder, device="cpu", detector=detector)
    assert tuple(model.pipelines) == ("e4e", "psp", "pti") and model.pti is model.pipelines["pti"]
    for pipeline in model.pipelines.values():
        assert pipeline.generator is model.pti.generator and pipeline.detector is detector
        assert pipeline.directions is model.directions and pipeline.crop_scale == 0.8
    for name in ("e4e", "psp"):
        pipeline = model.pipelines[name]
        assert isinstance(pipeline, EncoderPipeline) and pipeline.encoder is model.pti.encoders[name]
        out = pipeline(photo)
        assert torch.equal(out.w_plus, model.pti(photo, pivot=cast(Any, name), num_tuning_steps=0).w_plus)
        assert pipeline.edit(out, smile=1.0, ganspace_1=0.1, sefa_1=0.1).edits.keys() == {
            "smile",
            "ganspace_1",
            "sefa_1",
        }


def test_groups_of_directions(folder: Path, detector: Any) -> None:
    model = load_model(folder, device="cpu", detector=detector)
    assert list(model.groups) == ["Directions", "GANSpace", "SeFa"] and model.groups["Directions"] == ["smile", "age"]
    assert model.groups["GANSpace"] == [f"ganspace_{k}" for k in range(1, 7)]
    assert model.groups["SeFa"] == [f"sefa_{k}" for k in range(1, 7)]
    assert list(model.directions) == [name for names in model.groups.values() for name in names]


def test_the_models_own_directions_win(pti: PTIPipeline) -> None:
    own = Direction("sefa_2", torch.eye(16)[3], description="the maker's")
    pti.directions = {"sefa_2": own}
    model = make_model(pti, name="mine")
    assert model.directions["sefa_2"] is own and model.groups["Directions"] == ["sefa_2"]
    assert model.groups["SeFa"] == ["sefa_1", "sefa_3", "sefa_4", "sefa_5", "sefa_6"]
    pti.directions = {}
    assert list(make_model(pti, name="mine").groups) == ["GANSpace", "SeFa"]


def test_in_words(folder: Path, pti: PTIPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(folder, device="cpu", detector="builtin")
    assert (model.name, model.licence, model.resolution, model.device) == ("mine", "cc0-1.0", 32, "CPU")
    assert model.note.startswith(
        "mine draws pictures of 32 x 32 pixels, on the CPU. Licence: cc0-1.0. At 32 pixels it is a d"
    )
    assert "no encoder" not in model.note and str(folder.parent) not in model.note
    pti.encoders.clear()
    assert make_model(pti, name="x", licence="mit").note.endswith("It has no encoder, so that PTI is the only method.")
    assert make_model(pti, name="x", licence="mit").licence == "MIT"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    for device, words in (("cuda:1", "GPU (Card 1)"), ("mps", "GPU (Apple)"), ("meta", "meta")):
        monkeypatch.setattr(PTIPipeline, "device", torch.device(device))
        assert model.device == words


def test_larger_models_are_no_demonstration(pti: PTIPipeline) -> None:
    pti.generator = Generator(
        GeneratorConfig(256, z_dim=4, w_dim=16, mapping_layers=1, channel_base=256, channel_max=2)
    )
    assert "demonstration" not in make_model(pti, name="x").note


def test_downloads_do_not_say_where_the_model_is(
    folder: Path, photo: Image.Image, detector: Any, tmp_path: Path
) -> None:
    model = load_model(folder, device="cpu", detector=detector)
    for name, pipeline in model.pipelines.items():
        saved = pipeline(photo).save(tmp_path / name)
        assert str(folder).encode() not in b"".join(path.read_bytes() for path in saved.iterdir())


def test_no_such_model() -> None:
    with pytest.raises(ModelNotFoundError, match="No model 'nowhere'"):
        load_model("nowhere", device="cpu")


def test_the_built_in_model() -> None:
    model = load_model("faces64", device="cpu", detector="builtin")
    assert (
        tuple(model.pipelines) == ("e4e", "psp", "pti")
        and model.name == "faces64"
        and model.licence == "non-commercial research"
    )
    assert len({id(pipeline.generator) for pipeline in model.pipelines.values()}) == 1
    assert len({id(pipeline.detector) for pipeline in model.pipelines.values()}) == 1
    assert "64 x 64 pixels" in model.note and "At 64 pixels it is a demonstration" in model.note
    assert model.groups["Directions"] == ["smile", "age", "gender", "yaw"]
    assert model.pti.base_name is not None and model.pti.base_name.name_or_path == "faces64"
    # ranges that were looked at: the widest component to 2 of its deviations, SeFa's further than w goes along them
    ranges = {name: direction.strength_range for name, direction in model.directions.items()}
    assert ranges["ganspace_1"] == (-11.0, 11.0) and ranges["sefa_1"] == (-13.0, 13.0)


def test_models_need_no_gradio() -> None:
    """The package's front door does; the modules behind it do not."""
    code = (
        "import importlib, sys, types, stylegan_inversion\n"
        "package = types.ModuleType('stylegan_inversion.webapp')\n"
        "package.__path__ = [stylegan_inversion.__path__[0] + '/webapp']\n"
        "sys.modules |= {package.__name__: package, 'gradio': None}\n"
        "for name in ('model', 'models', 'uploads'):\n"
        "    importlib.import_module(f'stylegan_inversion.webapp.{name}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
