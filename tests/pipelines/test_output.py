import copy
import dataclasses
import io
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from stylegan_inversion import E4EPipeline, InversionOutput, PTIPipeline, hub, storage
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.inversion.generator_delta import generator_sha256
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines import base_name
from stylegan_inversion.pipelines import output as saving
from stylegan_inversion.pipelines.output import BaseName
from tests.fake_hub import FakeHub


@pytest.fixture
def named(pti: PTIPipeline, detector: Any, tmp_path: Path) -> PTIPipeline:
    """The tiny pipeline, loaded by a name."""
    return PTIPipeline.from_pretrained(pti.save_pretrained(tmp_path / "model"), detector=detector)


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def assert_same(loaded: InversionOutput, out: InversionOutput) -> None:
    assert torch.equal(loaded.w_plus, out.w_plus)
    assert (loaded.w_inverted is None) == (out.w_inverted is None)
    assert loaded.edits == out.edits and loaded.reports == out.reports
    assert pixels(loaded.images) == pixels(out.images) and pixels(loaded.reconstructions) == pixels(out.reconstructions)
    for mine, theirs in zip(loaded.crops, out.crops, strict=True):
        assert pixels([mine.image, mine.photo]) == pixels([theirs.image, theirs.photo])
        assert (mine.face_count, mine.face_index) == (theirs.face_count, theirs.face_index)
        assert (mine.quad is None) == (theirs.quad is None)
        assert mine.quad is None or (mine.quad == theirs.quad).all()


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """What a function that `saving` imports is called with, from now on."""
    calls, function = [], getattr(saving, name)
    monkeypatch.setattr(saving, name, lambda argument: (calls.append(argument), function(argument))[1])
    return calls


def generators(out: InversionOutput) -> list[str]:
    return [generator_sha256(generator) for generator in out.generators]


def test_only_the_change_is_kept_and_nothing_is_lost(named: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    out = named.edit(named([photo, photo], num_tuning_steps=2), smile=2.0)
    before = generator_sha256(named.generator)
    folder = out.save(tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    names = storage.read_tensors(folder / "model.safetensors")
    assert any(name.startswith("generator.1.synthesis") for name in names)
    assert not any("mapping" in name or "w_avg" in name for name in names)
    assert storage.read_config(folder)["generators"] == [{"kind": "delta", "relative_error": 0.0}] * 2

    for loaded in (InversionOutput.load(folder), InversionOutput.load(folder, base=named.generator)):
        assert_same(loaded, out)
        assert generators(loaded) == generators(out)
        # edited on and back, it draws the same pictures
        back = named.edit(loaded, smile=-2.0)
        assert pixels(back.images) == pixels(named.edit(out, smile=-2.0).images)
        assert_same(InversionOutput.load(loaded.save(tmp_path / "again")), out)
    assert generator_sha256(named.generator) == before
    assert_same(InversionOutput.load(out[1].save(tmp_path / "one")), out[1])


def test_a_shared_generator_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = E4EPipeline.from_pretrained("faces64")
    out = pipe(Image.new("RGB", (64, 64), "grey"), align=False)
    folder = out.save(tmp_path / "out")
    config, weights = storage.read_config(folder), folder / "model.safetensors"
    assert weights.stat().st_size < 40_000
    assert config["base"] == {"name_or_path": "faces64", "revision": None, "subfolder": None}
    loaded = InversionOutput.load(folder)
    assert_same(loaded, out)
    assert InversionOutput.load(folder, base=pipe.generator).generator is pipe.generator

    # Nor do many entries of it take time.
    texts = {name: text for name, text in storage.read_header(weights)[1].items() if name.startswith("generator.0.")}
    many = {name.replace("0", str(k), 1): text for k in range(12) for name, text in texts.items()}
    storage.write_tensors(storage.read_tensors(weights), weights, metadata=many)
    storage.write_config({**config, "generators": config["generators"] * 12}, folder)
    hashed = count_calls(monkeypatch, "generator_sha256")
    assert len(InversionOutput.load(folder)) == 1 and len(hashed) == 1


@pytest.mark.parametrize("options", [{"rank": 1}, {"energy": 0.5, "dtype": torch.float16}])
def test_a_change_of_low_rank(named: PTIPipeline, photo: Image.Image, options: dict[str, Any], tmp_path: Path) -> None:
    named.tuning = dataclasses.replace(named.tuning, learning_rate=0.05)  # a change that can be seen
    out = named.edit(named(photo, num_tuning_steps=3), smile=2.0)
    exact = out.save(tmp_path / "exact")
    folder = out.save(tmp_path / "small", **options)
    assert (folder / "model.safetensors").stat().st_size < (exact / "model.safetensors").stat().st_size
    assert 0 < storage.read_config(folder)["generators"][0]["relative_error"] < 1
    loaded = InversionOutput.load(folder)
    # Its pictures are those that the kept generator draws, before and after the edit.
    assert pixels(named.edit(loaded, smile=0.0).images) == pixels(loaded.images)
    difference = ImageChops.difference(named.edit(loaded, smile=-2.0).images[0], loaded.reconstructions[0])
    assert max(high for _, high in difference.getextrema()) <= 1  # adding and subtracting 2 is not quite nothing
    other = ImageChops.difference(out.reconstructions[0], loaded.reconstructions[0])
    assert max(high for _, high in other.getextrema()) > 1
    assert generators(loaded) != generators(out)
    assert pixels(out.images) == pixels(InversionOutput.load(exact).images)


def test_without_a_base_the_generator_is_kept_whole(
    pti: PTIPipeline, named: PTIPipeline, photo: Image.Image, tmp_path: Path
) -> None:
    out = named(photo, num_tuning_steps=1)
    assert out.base is not None and out.base.name is not None and out.base.name.is_local
    folder = out.save(tmp_path / "whole", whole=True)
    assert "model" not in (folder / "config.json").read_text()  # no word of this machine's folders
    shutil.rmtree(tmp_path / "model")
    assert_same(InversionOutput.load(folder), out)
    with pytest.raises(ValueError, match="so not with `whole`, nor where that has no name"):
        out.save(folder, whole=True, dtype=torch.float16)

    out = pti(photo)
    folder = out.save(tmp_path / "out")
    (entry,) = storage.read_config(folder)["generators"]
    assert entry["kind"] == "whole" and entry["config"]["resolution"] == 32
    loaded = InversionOutput.load(folder)
    assert_same(loaded, out)
    assert generators(loaded) == generators(out) and loaded.base is None
    assert len(InversionOutput.load(folder, device="auto")) == len(out)
    with pytest.raises(ValueError, match="`device` must be auto, cuda, mps, cpu or such as cuda:1, got 'banana'"):
        InversionOutput.load(folder, device="banana")


def test_another_base_is_refused(named: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    folder = named(photo, num_tuning_steps=1).save(tmp_path / "out")
    other = copy.deepcopy(named.generator)
    with torch.no_grad():
        other.mapping.layers[0].bias.add_(1e-3)
    with pytest.raises(CheckpointError, match="This change belongs to the generator with sha256"):
        InversionOutput.load(folder, base=other)
    storage.save_module(other, tmp_path / "model" / "generator")  # what is found under the name is no longer the same
    with pytest.raises(CheckpointError, match="This change belongs to the generator with sha256"):
        InversionOutput.load(folder)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(
        ModelNotFoundError, match=r"out holds only what differs from the base model .*load\(folder, base="
    ):
        InversionOutput.load(folder)
    assert generators(InversionOutput.load(folder, base=named.generator))


def refuses(folder: Path, message: str, **changes: Any) -> None:
    """Change what the folder's config says, load it, and put the config back."""
    config = storage.read_config(folder)
    storage.write_config({**config, **changes}, folder)
    with pytest.raises(CheckpointError, match=message):
        InversionOutput.load(folder)
    storage.write_config(config, folder)


def test_damaged_folders(named: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    folder = named.edit(named(photo, num_tuning_steps=1), smile=1.0).save(tmp_path / "out")
    (entry,) = storage.read_config(folder)["photos"]
    odd: tuple[dict[str, Any], ...] = (
        *({"photos": 3}, {"photos": [{}]}, {"edits": []}, {"base": {"path": "x"}}, {"base": None}),
        *({"generators": []}, {"generators": [{}]}),
        *({"photos": [{**entry, "face_count": math.inf}]}, {"photos": [{**entry, "crop": math.inf}]}),
    )
    for change in odd:
        refuses(folder, "is damaged or incomplete: ", **change)
    for quad in ([[0, 0], [1, 0], [1, 1], [0, 2e6]], [[0, 0]], [[math.nan] * 2] * 4):
        message = r"`quad` must be 4 corners \(x, y\) within 1000000 pixels, got \[\["
        refuses(folder, message, photos=[{**entry, "quad": quad}])
    refuses(folder, r"`w_(plus|inverted)` is \(1, 8, 16\), and the photos and their", photos=[entry, entry])
    refuses(folder, r"`edits` must be finite, got \{'smile': inf\}", edits={"smile": math.inf})
    refuses(folder, "was not written by `InversionOutput", _class_name="Other")
    assert len(InversionOutput.load(folder)) == 1
    tensors = storage.read_tensors(folder / "model.safetensors")
    storage.write_tensors(tensors, folder / "model.safetensors")  # without its texts
    refuses(folder, "Not a change of a generator")


def test_a_small_file_takes_little_memory(
    pti: PTIPipeline, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pti(photo, num_tuning_steps=1).save(tmp_path / "whole")
    (entry,) = storage.read_config(folder)["generators"]
    absurd = {**entry["config"], "resolution": 2048, "channel_base": 2**20, "channel_max": 4096, "w_dim": 4096}
    for sizes, message in ((absurd, "does not fit Generator: "), ({"resolution": 7}, "does not describe a Generator")):
        refuses(folder, f"generator 0, {message}", generators=[{**entry, "config": sizes}])  # and it was not built
    buffer = io.BytesIO()
    Image.new("P", (8000, 8000)).save(buffer, "PNG")  # small; the picture takes 192 MB
    tensors = storage.read_tensors(folder / "model.safetensors")
    for name in [name for name in tensors if name.startswith("picture.")]:
        tensors[name] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    storage.write_tensors(tensors, folder / "model.safetensors")
    decoded = count_calls(monkeypatch, "load_image")
    refuses(folder, r"its pictures would take more than 0\.4 GB")
    assert len(decoded) == 1  # the second was only measured


def test_many_copies_of_a_base(
    named: PTIPipeline, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = named(photo, num_tuning_steps=1).save(tmp_path / "out", rank=1)
    monkeypatch.setattr(saving, "_SLACK", 0)
    monkeypatch.setattr(saving, "_MAX_GROWTH", 0)
    refuses(folder, r"its generators would take 0\.0 GB")


def test_what_is_loaded_is_no_view_of_the_file(named: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    folder = named(photo, num_tuning_steps=1).save(tmp_path / "out")
    loaded, pipe = InversionOutput.load(folder), PTIPipeline.from_pretrained(tmp_path / "model")
    kept = loaded.w_plus.clone(), pipe.directions["smile"].vector.clone()
    for path in (folder / "model.safetensors", tmp_path / "model" / "directions" / "model.safetensors"):
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size - 4096 if size > 4096 else 0)
            file.write(b"\xff" * min(size, 4096))  # in place: a view would see it
        path.write_bytes(b"")  # a view would end the program
    assert torch.equal(loaded.w_plus, kept[0]) and torch.equal(pipe.directions["smile"].vector, kept[1])


def test_a_strangers_folder_fetches_nothing_unasked(
    named: PTIPipeline, photo: Image.Image, tmp_path: Path, fake_hub: FakeHub
) -> None:
    folder = named(photo, num_tuning_steps=1).save(tmp_path / "out")
    config = storage.read_config(folder)
    storage.write_config({**config, "base": {**config["base"], "name_or_path": "stranger/model"}}, folder)
    fake_hub.add("stranger/model", tmp_path / "model")
    with pytest.raises(ModelNotFoundError, match=r"'stranger/model', which is not there: .*allow_download=True\)"):
        InversionOutput.load(folder)
    assert len(InversionOutput.load(folder, base=named.generator)) == 1 and not fake_hub.log
    assert len(InversionOutput.load(folder, allow_download=True)) == 1 and fake_hub.log


def test_a_strangers_folder_calls_no_other_machine_unasked(
    named: PTIPipeline, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = named(photo, num_tuning_steps=1).save(tmp_path / "out")
    config = storage.read_config(folder)
    asked: list[str] = []

    def find(name: str, access: hub.Access) -> Path:
        asked.append(access.revision or name)
        return tmp_path / "model"

    monkeypatch.setattr(base_name, "find_folder", find)
    for name in ("\\\\host\\share", "//host/share", "\\/host/share", "\\??\\UNC\\host\\share"):
        for base in ({"name_or_path": name}, {"name_or_path": "org/model", "revision": name}):
            storage.write_config({**config, "base": base}, folder)
            with pytest.raises(ModelNotFoundError, match=r"in a folder of another machine\. .*allow_download=True\)"):
                InversionOutput.load(folder)
            assert asked == []
            assert len(InversionOutput.load(folder, allow_download=True)) == 1 and asked == [name]
            asked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(base_name, "known_entry", asked.append)
            assert BaseName(name).is_local and asked == []


def test_names_of_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: Generator) -> None:
    commit = "a" * 40
    snapshot = tmp_path / "models--org--repo" / "snapshots" / commit
    assert BaseName.of("org/repo", snapshot / "sub", subfolder="sub") == BaseName("org/repo", commit, "sub")
    assert BaseName.of("faces64", storage.builtin_path("faces64")) == BaseName("faces64")
    assert not BaseName("faces64").is_local and not BaseName("org/repo", commit).is_local
    storage.save_module(generator, tmp_path / "mine" / "generator")
    storage.write_config({}, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    name = BaseName.of("mine", Path("mine"))
    monkeypatch.chdir("/")
    assert generator_sha256(name.load(allow_download=False)) == generator_sha256(generator)
