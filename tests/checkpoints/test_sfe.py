"""StyleFeatureEditor at a small size. The reference works on the official tensors alone, in the official names."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from PIL import Image
from torch import Tensor

from stylegan_inversion import Direction, E4EPipeline, InversionOutput, PTIPipeline, SFEPipeline, batch, cli, storage
from stylegan_inversion import catalogue as catalogue_module
from stylegan_inversion.checkpoints import find
from stylegan_inversion.checkpoints.export import write_official
from stylegan_inversion.checkpoints.recognise import recognise
from stylegan_inversion.editing.ganspace import fit_pca, name_components
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.evaluation.benchmark import evaluate
from stylegan_inversion.hub import file_sha256
from stylegan_inversion.models.feature_generator import FeatureGenerator
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.models.sfe_encoder import StyleFeatureConfig, StyleFeatureEncoder
from stylegan_inversion.pipelines.loading import check_folder
from stylegan_inversion.pipelines.play import edit_frames, interpolate_outputs, mix_outputs, sample_face
from stylegan_inversion.pipelines.rows import read_rows
from stylegan_inversion.preprocessing.image import to_tensor
from stylegan_inversion.preprocessing.landmarks import Face
from stylegan_inversion.webapp.models import make_model
from tests.checkpoints.official_files import (
    FULL,
    TINY,
    checkpoint_to_rosinality,
    lively,
    lively_e4e,
    official,
    style_features,
)
from tests.fake_hub import hub_client, serve

Detector = Callable[[Image.Image], list[Face]]
AGE = Direction.from_vector("age", torch.linspace(-1, 2, 8), unit=None)
GANSPACE = name_components(fit_pca(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), 2), layers=(2, 5))[0]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sfe") / "editor.pt"
    torch.save(style_features(), path)
    return path


@pytest.fixture(scope="module")
def loaded(file: Path) -> SFEPipeline:
    return SFEPipeline.from_single_file(file)


@pytest.fixture
def pipe(loaded: SFEPipeline, detector: Detector) -> SFEPipeline:
    directions = {"age": AGE, GANSPACE.name: GANSPACE}
    return SFEPipeline(**{**loaded.components, "directions": directions, "detector": detector})


class Reference:
    """The inversion and one edit, from the tensors of a checkpoint."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self.weights, self.w_avg = checkpoint["state_dict"], checkpoint["latent_avg"]
        self.generator = lively(Generator, TINY)

    def conv(self, x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **how)

    def norm(self, x: Tensor, name: str) -> Tensor:
        parts = (self.weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def block(self, x: Tensor, name: str, names: Any = "012345", stride: int = 1) -> Tensor:
        norm, conv, norm2, prelu, conv2, norm3 = (f"{name}.{each}" for each in names)
        x = self.norm(self.conv(self.norm(x, norm), conv, padding=1), norm2)
        x = F.prelu(x, self.weights[f"{prelu}.weight"])
        return self.norm(self.conv(x, conv2, padding=1, stride=stride), norm3)

    def combine(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        x = self.conv(torch.cat([a, b], 1), f"{name}.conv")
        for k in range(2):
            x = x + self.block(x, f"{name}.body.{k}.body")
        return x

    def backbone(self, x: Tensor) -> tuple[Tensor, Tensor]:
        top, levels = "inverter.fs_backbone", []
        x = self.norm(self.conv(x, f"{top}.conv.0", padding=1), f"{top}.conv.1")
        x = F.prelu(x, self.weights[f"{top}.conv.2.weight"])
        for stage, stride in enumerate((2, 2, 1, 2), 1):
            k = 0
            while f"{top}.block_{stage}.{k}.bn1.weight" in self.weights:
                unit, step = f"{top}.block_{stage}.{k}", stride if k == 0 else 1
                inner = self.block(x, unit, ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3"), step)
                if k == 0:
                    x = self.norm(self.conv(x, f"{unit}.downsample.0", stride=stride), f"{unit}.downsample.1")
                x, k = inner + x, k + 1
            levels.append(x)
        flat = torch.cat([F.adaptive_avg_pool2d(level, 3) for level in levels], 1).flatten(1)
        weight, bias = ([self.weights[f"{top}.styles.{i}.{part}"] for i in range(10)] for part in ("weight", "bias"))
        w_plus = torch.stack([F.linear(flat, *pair) for pair in zip(weight, bias)], 1)
        return w_plus, self.block(levels[2], f"{top}.content_layer")

    def coarse(self, w_plus: Tensor) -> Tensor:
        """What leaves the second convolution at 16 px, which a hook catches."""
        found: list[Tensor] = []
        hook = self.generator.synthesis.blocks["16"].conv1.register_forward_hook(lambda *each: found.append(each[2]))
        self.generator.synthesis(w_plus)
        hook.remove()
        return found[0]

    def draw(self, w_plus: Tensor, features: Tensor) -> Tensor:
        """The generator, in which the first convolution at 32 px reads the features."""
        conv = self.generator.synthesis.blocks["32"].conv0
        hook = conv.register_forward_pre_hook(lambda module, given: (features, *given[1:]))
        drawn = self.generator.synthesis(w_plus)
        hook.remove()
        return drawn

    def __call__(self, x: Tensor, w_edit: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes, predicted = self.backbone(x)
        w_plus = codes + self.w_avg
        fused = self.combine(predicted, self.coarse(w_plus), "inverter.fuser")
        inversion = self.draw(w_plus, self.combine(fused, torch.zeros_like(fused), "encoder"))
        delta = self.coarse(w_edit) - self.coarse(w_edit + step)
        return w_plus, inversion, self.draw(w_plus + step, self.combine(fused, delta, "encoder"))


@torch.no_grad()
@pytest.mark.parametrize("direction", [AGE, GANSPACE], ids=["all layers", "some layers"])
def test_it_gives_what_the_formulas_give(pipe: SFEPipeline, direction: Direction) -> None:
    photos = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))
    out = pipe(photos, align=False)
    edited = pipe.edit(out, **{direction.name: 2.0})
    x = torch.cat([to_tensor(crop.image) for crop in out.crops])
    step = direction.apply(torch.zeros(2, 10, 8), 2.0)
    w_plus, inversion, edit = Reference(style_features())(x, pipe.e4e(x), step)
    torch.testing.assert_close(out.w_plus, w_plus)
    for codes, expected in ((out.w_plus, inversion), (edited.w_plus, edit)):
        for k, generator in enumerate(out.generators):
            drawn = generator.synthesis(codes[k : k + 1])
            assert float((drawn - expected[k : k + 1]).norm() / expected[k : k + 1].norm()) < 1e-5
    assert float((edit - inversion).norm() / inversion.norm()) > 0.01  # the edit does something


def test_a_strength_is_that_of_other_methods(pipe: SFEPipeline, photo: Image.Image) -> None:
    """The authors' code halves the power of these directions, and sets GANSpace's instead of adding."""
    e4e = E4EPipeline(pipe.generator, pipe.e4e, directions=pipe.directions, detector=pipe.detector)
    for strengths in ({"age": 3.0}, {GANSPACE.name: -1.5}):
        moves = [p.edit(out, **strengths).w_plus - out.w_plus for p in (pipe, e4e) for out in (p(photo),)]
        torch.testing.assert_close(*moves, atol=1e-5, rtol=0)
        assert moves[0].norm() > 0.5


def same(a: list[Image.Image], b: list[Image.Image]) -> bool:
    return [image.tobytes() for image in a] == [image.tobytes() for image in b]


def test_the_whole_road(pipe: SFEPipeline, photo: Image.Image, tmp_path: Path) -> None:
    before = {k: v.clone() for network in pipe.networks for k, v in network.state_dict().items()}
    out = pipe([photo, photo.rotate(180)], align=False)
    edited = pipe.edit(out, age=1.0)
    assert all(torch.equal(v, before[k]) for network in pipe.networks for k, v in network.state_dict().items())
    back = np.stack(pipe.edit(edited, age=-1.0).images).astype(int) - np.stack(out.images)
    assert not same(edited.images, out.images) and np.abs(back).max() <= 1
    assert same(pipe.paste_back(out, detail="move"), [crop.photo for crop in out.crops])
    assert not same(pipe.paste_back(edited), pipe.paste_back(out))
    folder = pipe.save_pretrained(tmp_path / "model")
    check_folder(folder)
    assert "SFEPipeline.from_pretrained(" in (folder / "README.md").read_text()
    again = SFEPipeline.from_pretrained(folder, detector=pipe.detector)
    assert same(again(photo).images, pipe(photo).images)

    kept = again.edit(again([photo, photo.rotate(180)], align=False), age=1.0)
    for name, one, options in (
        ("named", kept, {}),
        ("given", kept, {"base": again.generator, "networks": again.networks}),
        ("whole", edited, {}),
    ):
        loaded = InversionOutput.load(one.save(tmp_path / name), **options)
        assert same(loaded.images, one.images) and same(loaded.reconstructions, out.images)
        assert same(again.edit(loaded[1], age=1.0).images, again.edit(one[1], age=1.0).images)
    sizes = {name: (tmp_path / name / storage.WEIGHTS_NAME).stat().st_size for name in ("named", "whole")}
    weights = sum(v.nbytes for n in (pipe.generator, pipe.encoder.editor) for v in n.state_dict().values())
    assert sizes["whole"] - sizes["named"] > 0.9 * weights
    with pytest.raises(ModelNotFoundError, match=r"Feature Editor.* is not in `networks`.*networks=pipe\.networks"):
        InversionOutput.load(tmp_path / "named", base=again.generator)
    other = lively(StyleFeatureEncoder, replace(again.encoder.config, depth=1))
    with pytest.raises(CheckpointError, match="belongs to another Feature Editor"):
        InversionOutput.load(tmp_path / "named", base=again.generator, networks=[other])
    config = storage.read_config(tmp_path / "whole")
    for editor in ("x", {}, {**config["editor"], "channels": 9}, {**config["editor"], "depth": 10**9}):
        storage.write_config({**config, "editor": editor}, tmp_path / "whole")
        with pytest.raises(CheckpointError, match=r"damaged or incomplete|does not (describe a|fit) FeatureEditor"):
            InversionOutput.load(tmp_path / "whole")


def test_what_was_inverted_before_the_pipeline_moved(file: Path, photo: Image.Image) -> None:
    pipe = SFEPipeline.from_single_file(file)
    out = pipe(photo, align=False)
    pipe.directions["age"] = AGE
    edited = pipe.edit(out, age=1.0)
    pipe.to(torch.float64)
    apart = np.stack(pipe.edit(out, age=1.0).images).astype(int) - np.stack(edited.images)
    assert np.abs(apart).max() <= 1 and out.generator.w_avg.dtype == torch.float64
    copied = pickle.loads(pickle.dumps(out.generator))
    assert copied.base.synthesis.blocks["16"] is copied.synthesis.blocks["16"]
    assert torch.equal(copied.synthesis(out.w_plus.double()), out.generator.synthesis(out.w_plus.double()))


def test_e4e_runs_once_and_only_for_edits(pipe: SFEPipeline, photo: Image.Image, tmp_path: Path) -> None:
    calls: list[int] = []
    hook = pipe.e4e.register_forward_hook(lambda module, given, made: calls.append(len(made)))
    out, other = (pipe([photo, photo.rotate(180)], align=False) for _ in range(2))
    pipe.paste_back(out)
    assert calls == []
    edits = [pipe.edit(one, age=1.0).images for one in (out, out[0], out)]
    assert calls == [2] and same(edits[0], edits[2]) and same(edits[0][:1], edits[1])
    other.generators[1].w_avg.data = other.generators[1].w_avg.double()  # as if it alone had moved
    copied = pickle.loads(pickle.dumps(other.generators[1]))  # takes the code along, not the encoder
    other.generators[1].w_avg.data = other.generators[1].w_avg.float()
    assert calls == [2, 2] and copied.synthesis._find_w_edit is None is out.generators[0].synthesis._find_w_edit
    loaded = InversionOutput.load(other.save(tmp_path / "out"), base=pipe.generator, networks=pipe.networks)
    assert same(pipe.edit(loaded, age=1.0).images, edits[0]) and calls == [2, 2]
    hook.remove()


@torch.no_grad()
def test_the_first_draw_goes_on_from_the_inversion(pipe: SFEPipeline) -> None:
    """It does not draw again what the inversion has drawn, unless it is at another code or with other noise."""
    x, runs = torch.rand(1, 3, 64, 64) * 2 - 1, list[Any]()
    hook = pipe.generator.synthesis.blocks["4"].conv1.register_forward_hook(lambda *each: runs.append(each))
    for noise_mode, move, expected in (("const", 0.0, 0), ("none", 0.0, 1), ("const", 0.5, 3)):
        w_plus, (generator,) = pipe.find(x)
        runs.clear()
        first = generator.synthesis(w_plus + move, noise_mode=noise_mode)
        assert len(runs) == expected
        torch.testing.assert_close(generator.synthesis(w_plus + move, noise_mode=noise_mode), first)
        assert len(runs) == max(1, expected) + expected
    w_plus, (generator,) = pipe.find(x)
    pipe.to(dtype=torch.float64)  # what was drawn before does not fit what is drawn now
    assert torch.equal(*(generator.synthesis(w_plus.double()) for _ in range(2)))
    pipe.to(dtype=torch.float32)
    hook.remove()


def test_compiled_networks(file: Path, photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Module.compile` keeps the compiled `forward` in the module, of which a photo's generator is a copy."""
    pipe = SFEPipeline.from_pretrained(_model(file, tmp_path))
    expected = pipe(photo, align=False).images
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **options: function)  # jaxtyping's checks do not compile
        pipe.generator.synthesis.compile()
    out = pipe(photo, align=False)
    assert same(out.images, expected)
    offset = torch.ones(sum(pipe.generator.config.style_sizes))
    styled = out.generator.with_styles(offset).synthesis(out.w_plus)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **options: function)
        out.generator.synthesis.compile()
    assert torch.equal(out.generator.with_styles(offset).synthesis(out.w_plus), styled)
    given: dict[str, Any] = {"base": pipe.generator, "networks": [torch.compile(pipe.encoder, backend="eager")]}
    assert same(InversionOutput.load(out.save(tmp_path / "out"), **given).images, expected)


def _model(file: Path, folder: Path) -> Path:
    return SFEPipeline.from_single_file(file).save_pretrained(folder / "model")


def test_a_folder_of_photos(file: Path, photo: Image.Image, tmp_path: Path) -> None:
    pipe = SFEPipeline.from_pretrained(_model(file, tmp_path))
    pipe.directions["age"] = AGE
    _saved(photo, tmp_path / "photos")
    done = batch.invert_folder(pipe, tmp_path / "photos", tmp_path / "out", options={"align": False}, workers=0)
    assert done.faces == 1 and done.errors == 0
    (row,), direct = read_rows(tmp_path / "out"), pipe(photo, align=False)
    with pytest.raises(ModelNotFoundError, match="is not in `networks`"):
        InversionOutput.from_row(row, pipe.generator, folder=tmp_path / "out")
    out = InversionOutput.from_row(row, pipe.generator, folder=tmp_path / "out", networks=pipe.networks)
    edits = {"edits": {"age": [0.0, 1.0]}}
    assert batch.edit_folder(pipe, tmp_path / "out", tmp_path / "edits", **edits) == 2
    drawn = [Image.open(tmp_path / "edits" / f"photo.png-0_age{strength}.png") for strength in ("+0", "+1")]
    apart = np.stack([*out.images, *drawn]).astype(int)
    apart -= np.stack([*direct.images, *direct.images, *pipe.edit(direct, age=1.0).images])
    assert np.abs(apart).mean() < 1


def test_what_a_mask_keeps(pipe: SFEPipeline, photo: Image.Image) -> None:
    out = pipe(photo)
    free, none, half = pipe.edit(out, age=2.0), Image.new("L", (40, 40)), Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    assert same(pipe.edit(pipe.keep(out, none), age=2.0).images, free.images)
    kept = pipe.keep(out, [half])
    moved, held = (each.generator.synthesis for each in (free, pipe.edit(kept, age=2.0)))
    assert same(kept.images, out.images) and not same(pipe.edit(kept, age=2.0).images, free.images)
    assert torch.equal(held.keep[0, 0, 8, :7], torch.ones(7)) and not held.keep[0, 0, :, 9:].any()
    assert not moved.keep.any()
    with pytest.raises(ValueError, match="`mask` must be one picture or 1, one for each photo, got 2"):
        pipe.keep(out, [half, half])
    with pytest.raises(ValueError, match="`mask` must be square, as the crop is, got 40 x 50"):
        pipe.keep(out, Image.new("L", (40, 50)))
    with pytest.raises(ValueError, match="`out` must be of an SFEPipeline"):
        pipe.keep(sample_face(pipe), half)


def test_nobody_asks_which_method_it_was(pipe: SFEPipeline, photo: Image.Image, tmp_path: Path) -> None:
    a, b = pipe(photo), pipe.edit(pipe(photo.rotate(180), align=False), age=1.0)
    plain = E4EPipeline(pipe.generator, pipe.e4e, detector=pipe.detector)(photo)
    for first, last in ((a, b), (a, plain), (plain, a)):
        frames = interpolate_outputs(first, last, steps=3)
        assert same([frames[0], frames[2]], [first.images[0], last.images[0]])
        assert same(mix_outputs(first, last, alpha=0.0).images, first.images)
    assert same(edit_frames(pipe, a, {"age": 1.0}, steps=2)[1:], pipe.edit(a, age=1.0).images)
    ((record, out),) = batch.invert_photos(pipe, [_saved(photo, tmp_path)], tmp_path / "out", edits={"age": 1.0})
    assert record.error is None and out is not None and out.edits == {"age": 1.0}
    tuner = PTIPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "model"), detector=pipe.detector)
    assert tuner.pivots == ("w", "w_plus", "e4e", "sfe")
    torch.testing.assert_close(tuner(photo, pivot="sfe", num_tuning_steps=0).w_plus, a.w_plus)
    assert tuner(photo, pivot=a, num_tuning_steps=1).reports[0]["tuning_steps"] == 1
    page = make_model(tuner, name="small")
    assert page.quick == "sfe" and same(page.pipelines["sfe"](photo).images, a.images)
    for k in range(2):  # whose generators differ
        _saved(photo.rotate(180 * k), tmp_path / "photos" / str(k))
    options: dict[str, Any] = {"methods": ["sfe", "e4e"], "edits": [], "identity": None, "perceptual": "alex"}
    evaluate(tmp_path / "photos", tmp_path / "report", model=str(tmp_path / "model"), **options)
    rows = [json.loads(line) for line in (tmp_path / "report" / "records.jsonl").read_text().splitlines()]
    assert {(row["method"], row["error"]) for row in rows} == {("sfe", None), ("e4e", None)} and len(rows) == 4
    assert len({row["l2"] for row in rows if row["method"] == "sfe"}) == 2
    shutil.rmtree(tmp_path / "model" / "e4e_encoder")  # without which sfe is of no use
    alone = PTIPipeline.from_pretrained(tmp_path / "model")
    assert alone.pivots == ("w", "w_plus") and alone.plan(preset="fast").pivot == "w"
    several = pipe.translate(photo, num_outputs=2, latent_mask=range(4, 10), mix_alpha=0.5)
    assert len(several) == 2 and several.generators[0] is several.generators[1]


def _saved(photo: Image.Image, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    photo.save(folder / "photo.png")
    return folder / "photo.png"


@pytest.mark.parametrize(
    "config",
    [TINY, pytest.param(FULL, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])],
    ids=lambda config: str(config.resolution),
)
def test_from_the_catalogue(
    config: GeneratorConfig, photo: Image.Image, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published file holds neither the generator nor e4e: they come from other entries, each fetched once."""
    makers: dict[str, Callable[[], Any]] = {
        "sfe-ffhq-1024": lambda: style_features(config, whole=False),
        "e4e-ffhq-1024": lambda: lively_e4e(config),
        "stylegan2-ffhq-1024": lambda: checkpoint_to_rosinality(config, lively(Generator, config).state_dict()),
    }
    entries, paths, known = [], {}, {entry.name: entry for entry in catalogue_module.catalogue()}
    for name, make in makers.items():
        paths[name] = path = tmp_path / Path(str(known[name].file)).name
        torch.save(make(), path)
        entries.append(replace(known[name], sha256=file_sha256(path), size=path.stat().st_size, domain=None))
    for module in (find, catalogue_module):
        monkeypatch.setattr(module, "catalogue", lambda: tuple(entries))
    with serve() as hub, hub_client(hub, tmp_path / "cache"):
        for limit in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
            monkeypatch.setattr(constants, limit, 300)  # the fake Hub hashes what it serves
        for entry in entries:
            hub.repositories[str(entry.repository)] = {str(entry.file): paths[entry.name].read_bytes()}
        E4EPipeline.from_pretrained("e4e-ffhq-1024")
        monkeypatch.chdir(tmp_path)
        Path("stylegan2-ffhq-1024").mkdir()  # a user's folder of that name is none of the parts
        pipe = SFEPipeline.from_pretrained("sfe-ffhq-1024", detector=detector)
        pipe.directions["age"] = Direction.from_vector("age", torch.linspace(-1, 2, config.w_dim))
        out = pipe(photo)
        hub.repositories.clear()  # nothing is fetched twice
        again = SFEPipeline.from_pretrained("sfe-ffhq-1024", detector=detector)
        assert same(again(photo).images, out.images)
        again = SFEPipeline.from_single_file(paths["sfe-ffhq-1024"], detector=detector)
        assert same(again(photo).images, out.images)
        del again
        assert cli.main(["convert", str(paths["sfe-ffhq-1024"]), str(tmp_path / "model")]) == 0
        assert [hub.gets(str(entry.file)) for entry in entries] == [1, 1, 1]
        edited = pipe.edit(out, age=1.0)
        assert pipe.paste_back(edited)[0].size == photo.size and not same(edited.images, out.images)
        loaded = InversionOutput.load(edited.save(tmp_path / "saved"))
        assert same(pipe.edit(loaded, age=1.0).images, pipe.edit(edited, age=1.0).images)
        Path("stylegan2-ffhq-1024").rmdir()
        folders = {name: find.find_folder(name) for name in makers}
    torch.testing.assert_close(pipe.generator.w_avg, lively(Generator, config).w_avg)  # not e4e's
    for part, name in entries[0].parts:
        ours, theirs = (folders[each] / part / storage.WEIGHTS_NAME for each in ("sfe-ffhq-1024", name))
        assert ours.samefile(theirs)  # one copy on the disk
    back = torch.load(write_official(tmp_path / "model", tmp_path / "back.pt", layout="sfe"), weights_only=True)
    given = style_features(config, whole=False)["state_dict"]
    assert back["state_dict"].keys() - given.keys() and given.keys() <= back["state_dict"].keys()
    assert all(torch.equal(back["state_dict"][k], v) and v.dtype == given[k].dtype for k, v in given.items())
    read = SFEPipeline.from_single_file(tmp_path / "back.pt", detector=detector)
    read.directions["age"] = pipe.directions["age"]
    assert same(read.edit(read(photo), age=1.0).images, edited.images)  # with e4e's own average
    crop, seconds = out.crops[0], dict[str, list[float]]()
    e4e = E4EPipeline(pipe.generator, pipe.e4e, directions=pipe.directions)
    for _ in range(3):
        for name, each in (("e4e", e4e), ("sfe", pipe)):
            marks = [time.perf_counter()]
            for step in (lambda: each(crop), lambda: each.edit(found, age=1.0)):  # noqa: B023  called at once
                found = step()
                marks.append(time.perf_counter())
            for what, taken in zip(("inversion", "edit"), np.diff(marks)):
                seconds.setdefault(f"{name} {what}", []).append(taken)
    size = (tmp_path / "saved" / storage.WEIGHTS_NAME).stat().st_size
    print({name: round(float(np.median(taken)), 2) for name, taken in seconds.items()}, f"saved: {size / 1e6:.1f} MB")


def test_refusals(pipe: SFEPipeline, file: Path, tmp_path: Path) -> None:
    tensors = style_features(whole=False)["state_dict"]
    inverter = {k.replace("inverter.", "encoder."): v for k, v in tensors.items() if k.startswith("inverter.")}
    with pytest.raises(CheckpointError, match="a checkpoint of StyleFeatureEditor without its editor"):
        recognise({"state_dict": inverter})
    with pytest.raises(CheckpointError, match="It is a checkpoint of sfe, not of e4e: use the pipeline of sfe"):
        E4EPipeline.from_single_file(file)
    torch.save({"state_dict": tensors}, tmp_path / "alone.pt")
    with pytest.raises(CheckpointError, match=r"for a generator of 64 px and does not hold it; what is .*ffhq-1024"):
        SFEPipeline.from_single_file(tmp_path / "alone.pt")
    torch.save(official("e4e"), tmp_path / "e4e.pt")
    with pytest.raises(CheckpointError, match="It is a checkpoint of e4e, not of sfe"):
        SFEPipeline.from_single_file(tmp_path / "e4e.pt")
    E4EPipeline.from_single_file(tmp_path / "e4e.pt").save_pretrained(tmp_path / "e4e")
    with pytest.raises(ModelNotFoundError, match=r"holds no StyleFeatureEncoder \(folder 'sfe_encoder'\)"):
        SFEPipeline.from_pretrained(tmp_path / "e4e")
    narrow = lively(StyleFeatureEncoder, replace(pipe.encoder.config, channels=4))
    with pytest.raises(ValueError, match=r"must have the same channels at 16 px, got \(4, 8\)"):
        SFEPipeline(pipe.generator, narrow, e4e=pipe.e4e)
    with pytest.raises(ValueError, match="`input_resolution` must be below 4 output_resolution, got 256 with"):
        StyleFeatureConfig(output_resolution=64)
    with pytest.raises(ValueError, match="The features do not fit the generator or the editor: expected"):
        codes = torch.zeros(1, 10, 8)
        FeatureGenerator(
            pipe.generator, pipe.encoder.editor, features=torch.zeros(1, 8, 64, 64), w_inverted=codes, w_edit=codes
        )
