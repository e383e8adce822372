"""StyleFeatureEditor's training: what each part trains and for what, both parts in a row, to a photo that is edited."""

import copy
import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from stylegan_inversion import Direction, SFEPipeline
from stylegan_inversion.checkpoints.export import write_official
from stylegan_inversion.editing.directions import save_directions
from stylegan_inversion.models.feature_generator import FeatureGenerator
from stylegan_inversion.training import sfe
from stylegan_inversion.training.config import (
    EncoderOptions,
    EncoderRunConfig,
    LossOptions,
    OptimizerOptions,
    SFEOptions,
)
from stylegan_inversion.training.sfe import SFELearner
from stylegan_inversion.training.trainer import train
from tests.training.conftest import SIZES_16, MakeConfig, MakeLearner, batches_of, elsewhere, read_log, same, same_runs

INVERTER = SFEOptions(depth=2, blend_steps=0, adversarial_from=1, discriminator_lr=1e-3, r1_every=2)
EDITOR = dataclasses.replace(INVERTER, part="editor")
ADAM = OptimizerOptions("adam", 1e-2)
ADVERSARIAL = LossOptions(lpips=0.0, identity=0.0, adversarial=0.1)


@pytest.fixture
def make(make_config: MakeConfig, make_learner: MakeLearner, tmp_path: Path) -> Any:
    """Configs of StyleFeatureEditor, for a model with e4e and a direction."""
    model = tmp_path / "with e4e"
    make_learner(method="e4e", encoder=dataclasses.replace(SIZES_16, widths=(4, 8, 12, 16))).export(model)
    save_directions({"smile": Direction("smile", torch.eye(16)[0], strength_range=(1.0, 3.0))}, model / "directions")
    return lambda **options: make_config(
        **{
            "method": "sfe",
            "model": str(model),
            "sfe": INVERTER,
            "loss": ADVERSARIAL,
            "steps": 4,
            "optimizer": ADAM,
            **options,
        }
    )


def learner_of(config: EncoderRunConfig) -> SFELearner:
    return SFELearner(config, Accelerator(cpu=True))


@pytest.fixture
def inverter(make: Any, tmp_path: Path) -> str:
    """A model whose inverter has had two steps."""
    learner = learner_of(make())
    for step, batch in enumerate(batches_of(learner, 2)):
        learner.step([batch], step)
    learner.export(tmp_path / "inverter")
    return str(tmp_path / "inverter")


def test_the_inverter(make: Any) -> None:
    """A photo is drawn on its features and by its code alone, and each must be like it; the editor does not change."""
    learner = learner_of(make())
    batch, encoder, generator = batches_of(learner, 1)[0], copy.deepcopy(learner.encoder), learner.generator
    before = copy.deepcopy(learner.encoder.state_dict()), copy.deepcopy(generator.state_dict())
    w_plus, features, _ = encoder(batch["x"], generator)
    errors = {
        "l2": (generator.synthesis(w_plus, features=features) - batch["y"]).square().mean(),
        "l2 (code)": (generator.synthesis(w_plus) - batch["y"]).square().mean(),
        "features": (features - generator.synthesis.features_at(8, w_plus)[0]).square().mean(),
    }
    terms, finite = learner.step([batch], 0)
    assert finite and terms.keys() == {"loss", *errors}  # the discriminator takes part from step 1 on
    for name, error in errors.items():
        torch.testing.assert_close(terms[name], error.detach())
    torch.testing.assert_close(terms["loss"], terms["l2"] + terms["l2 (code)"] + 0.01 * terms["features"])
    terms, finite = learner.step([batch], 1)
    assert finite and terms.keys() == {"loss", *errors, "adversarial", "discriminator"}
    assert "r1" in learner.step([batch], 2)[0]
    for name, tensor in learner.encoder.state_dict().items():
        assert torch.equal(tensor, before[0][name]) == name.startswith("editor."), name
    assert same(dict(generator.state_dict()), dict(before[1]))


def test_pictures_that_are_wider_than_high(make: Any) -> None:
    """Of cars, the discriminator sees the black bars."""
    config = make(sfe=dataclasses.replace(INVERTER, adversarial_from=0))
    domain = {**(model := sfe.storage.read_config(Path(config.model)))["domain"], "height": 0.75, "has_faces": False}
    sfe.storage.write_config({**model, "domain": domain}, Path(config.model))
    learner = learner_of(config)
    batch = batches_of(learner, 1)[0]
    terms, finite = learner.step([batch], 0)
    assert finite and batch["y"].shape[-2:] == (12, 16) and terms["discriminator"] > 0


def test_features_are_blended_in(make: Any) -> None:
    learner = learner_of(make(sfe=dataclasses.replace(INVERTER, blend_steps=10**9)))
    terms, _ = learner.step(batches_of(learner, 1), 0)
    torch.testing.assert_close(terms["l2"], terms["l2 (code)"])


def test_the_editor(make: Any, inverter: str) -> None:
    """It learns to give e4e's edited picture from e4e's picture, by the generator that draws inversions; none else."""
    learner = learner_of(make(init=inverter, sfe=EDITOR))
    batch, generator, encoder = batches_of(learner, 1)[0], learner.generator, copy.deepcopy(learner.encoder)
    before = copy.deepcopy(learner.encoder.state_dict()), copy.deepcopy(generator.state_dict())
    w_edit = learner.e4e(encoder.shrink(batch["x"]))
    rngs = learner.draws.sources("edit", 0, 4)
    moved = torch.cat([sfe.draw_edit(learner.edits, w[None], rng) for w, rng in zip(w_edit, rngs)])
    strengths = (moved - w_edit)[..., 0]
    assert ((strengths > 1) & (strengths < 3)).all() and len(set(strengths[:, 0].tolist())) == 4
    made, target, error = generator.synthesis(w_edit), generator.synthesis(moved), []
    for i in range(4):
        w_plus, features, _ = encoder(made[i : i + 1], generator)
        photo: Any = {"features": features, "w_inverted": w_plus, "w_edit": w_edit[i : i + 1]}
        move = moved[i : i + 1] - w_edit[i : i + 1]
        drawn = FeatureGenerator(generator, encoder.editor, **photo).synthesis(w_plus + move)
        error.append((drawn - target[i : i + 1]).square().mean())
    terms, finite = learner.step([batch], 0)
    assert finite and terms.keys() == {"loss", "l2", "l2 (edited)"}
    torch.testing.assert_close(terms["l2 (edited)"], torch.stack(error).mean().detach())
    torch.testing.assert_close(terms["loss"], terms["l2"] + terms["l2 (edited)"])
    for step in (
        1,
        2,
        3,
    ):
        learner.step([batch], step)
    for name, tensor in learner.encoder.state_dict().items():
        assert torch.equal(tensor, before[0][name]) != name.startswith("editor."), name
    assert same(dict(generator.state_dict()), dict(before[1]))
    assert float(learner.step([batch], 0)[0]["loss"]) < float(terms["loss"])


def test_both_parts_interrupted_and_a_photo(make: Any, pictures: Path, tmp_path: Path) -> None:
    """Either run goes on to the same bits, and the model inverts and edits photos from the first part on."""
    init: str | None = None
    for part in (INVERTER, EDITOR):
        whole = make(sfe=part, init=init, ema_decay=0.5, validation_data=str(pictures), validate_every=2)
        whole = elsewhere(whole, f"{part.part} whole")
        stopped = elsewhere(whole, part.part)
        train(whole)
        train(stopped, callback=lambda step, _: signal.raise_signal(signal.SIGINT) if step == 2 else None)
        train(stopped)
        same_runs(whole, stopped)
        init = str(Path(whole.output, "last"))
        pipe = SFEPipeline.from_pretrained(init, device="cpu")
        out = pipe(Image.open(sorted(pictures.iterdir())[0]), align=False)
        assert out.images[0].tobytes() != pipe.edit(out, smile=3.0).images[0].tobytes()
        path = write_official(Path(init), tmp_path / "sfe.pt", layout="sfe")
        again = SFEPipeline.from_single_file(path)  # of another size than what is published
        for ours, read in ((pipe.encoder, again.encoder), (pipe.e4e, again.e4e), (pipe.generator, again.generator)):
            assert ours.config == read.config and same(dict(ours.state_dict()), dict(read.state_dict()))
        judged = {"l2"} if part is INVERTER else {"l2", "l2 (edited)"}
        assert judged | {"loss", "step", "kind"} == read_log(whole, "validation")[-1].keys()


def test_an_editor_needs_edits(make: Any, inverter: str) -> None:
    deeper = make(init=inverter, encoder=EncoderOptions(), sfe=dataclasses.replace(EDITOR, depth=3))
    with pytest.raises(ValueError, match="`init` brings an encoder with "):
        learner_of(deeper)
    config = make(init=inverter, sfe=EDITOR)
    directions = {"smile": Direction("smile", torch.eye(16)[0])}  # without a range
    save_directions(directions, Path(config.model) / "directions")
    with pytest.raises(ValueError, match=r"has no direction in W with a range of strengths, .*find-directions"):
        learner_of(config)


def test_a_discriminator_of_the_model_goes_on(make: Any, make_gan_learner: Any, tmp_path: Path) -> None:
    config = make()
    gan = make_gan_learner()
    sfe.storage.save_module(gan.discriminator, Path(config.model) / "discriminator")
    ours = learner_of(config).adversary.network.state_dict()
    assert same(dict(ours), dict(gan.discriminator.state_dict()))
