"""ReStyle's training, by Python and by the command line: passes with a loss each, both backbones, both forms."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stylegan_inversion import PTIPipeline, ReStylePipeline, cli, storage
from stylegan_inversion.checkpoints.export import write_official
from stylegan_inversion.models.irse import ArcFace, ArcFaceConfig
from stylegan_inversion.training.config import E4EOptions, EncoderOptions, ReStyleOptions
from tests.training.conftest import MakeLearner, batches_of, same

SIZES = EncoderOptions(32, (8, 8, 12, 16), (1, 1, 1, 1), 4)
OPTIONS = ["--encoder.input-resolution", "32", "--encoder.widths", "8", "9", "10", "12", "--encoder.units"]
OPTIONS += ["1", "1", "1", "1", "--encoder.reduction", "4", "--loss.lpips", "0", "--loss.identity", "0", "--cpu"]
OPTIONS += ["--num-workers", "0", "--batch-size", "2", "--trackers"]


@pytest.mark.parametrize("resnet", [False, True])
def test_each_pass_has_a_loss_and_a_gradient_of_its_own(make_learner: MakeLearner, resnet: bool) -> None:
    """As in `coach_restyle_psp.py`: the code and the picture of a pass are constants for the next; one update."""
    options = ReStyleOptions(resnet=resnet, iterations=3)
    learner = make_learner(method="restyle", encoder=SIZES, restyle=options, synthetic_batch_size=1)
    batch = batches_of(learner, 1)[0]
    encoder, generator = copy.deepcopy(learner.encoder), learner.generator
    x = torch.cat([batch["x"], learner.draws.synthesize(0, 1, side=32)[0]])
    w_plus = encoder.w_avg.repeat(5, 1, 1)
    y_hat = F.adaptive_avg_pool2d(generator.synthesis(w_plus), 32)
    for number in range(3):
        w_plus = w_plus + encoder(x, y_hat)
        drawn = generator.synthesis(w_plus[:4], noise=learner.draws.noise(number, 4))
        loss = (drawn - batch["y"]).square().mean()
        loss.backward()
        w_plus = w_plus.detach()
        y_hat = F.adaptive_avg_pool2d(torch.cat([drawn.detach(), generator.synthesis(w_plus[4:])]), 32)
    gradients: dict[str, torch.Tensor] = {}
    hook = learner.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.clone() for name, p in learner.encoder.named_parameters()})
    )
    terms, finite = learner.step([batch], 0)
    hook.remove()
    assert finite and float(terms["loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, p in encoder.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-3, atol=1e-5 * float(p.grad.abs().max() + 1))


def test_the_form_of_e4e_opens_its_offsets_and_has_a_discriminator(make_learner: MakeLearner) -> None:
    spread = E4EOptions(open_from=0.2, open_until=0.8, pool_size=6)
    options = ReStyleOptions(offsets=True, resnet=True, iterations=2)
    learner = make_learner(method="restyle", encoder=SIZES, restyle=options, e4e=spread, steps=100)
    step = next(step for step in range(101) if learner.stage(step) == 3)
    terms, finite = learner.step(batches_of(learner, 1), step)
    assert finite and {"delta", "adversarial", "discriminator", "l2"} <= terms.keys()
    for name, p in learner.encoder.named_parameters():
        is_open = not name.startswith("styles.") or int(name.split(".")[1]) <= 3
        assert (p.grad is not None) == is_open, name


def test_the_first_picture_of_a_pair_is_read_as_by_the_face_network(make_learner: MakeLearner, tmp_path: Path) -> None:
    sizes = {"widths": SIZES.widths, "units": SIZES.units, "reduction": SIZES.reduction}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arcface = ArcFace(ArcFaceConfig(resolution=32, embedding_dim=4, **sizes))  # type: ignore[arg-type]
    storage.save_module(arcface, tmp_path / "arcface")
    encoder = EncoderOptions(**{**vars(SIZES), "backbone": str(tmp_path / "arcface")})
    backbone = make_learner(method="restyle", encoder=encoder).encoder.backbone
    stem = backbone.state_dict()["stem.0.weight"]
    assert stem.shape[1] == 6 and torch.equal(stem[:, :3], arcface.backbone.state_dict()["stem.0.weight"])
    assert torch.equal(backbone.stages[2][0].residual[1].weight, arcface.backbone.stages[2][0].residual[1].weight)


@pytest.mark.parametrize(("offsets", "resnet"), [(False, False), (True, True)])
def test_from_the_command_line_to_the_official_file_and_a_photo(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], offsets: bool, resnet: bool
) -> None:
    run = tmp_path / "run"
    form = ["--restyle.offsets"] * offsets + ["--restyle.resnet"] * resnet
    command = ["train", "--method", "restyle", "--model", str(model), "--data", str(pictures), "--output", str(run)]
    command += ["--steps", "2", "--restyle.iterations", "2", *form, *OPTIONS]
    assert cli.main([*command, "--validation-data", str(pictures)]) == 0
    pipeline = ReStylePipeline.from_pretrained(run / "last", device="cpu")
    config: Any = pipeline.encoder.config
    assert (config.offsets, config.resnet, config.iterations) == (offsets, resnet, 2)
    photo = sorted(pictures.iterdir())[0]
    out = pipeline(photo, align=False)
    assert not torch.equal(out.w_plus, pipeline(photo, align=False, num_iterations=1).w_plus)
    write_official(run / "last", tmp_path / "restyle.pt", layout="restyle")
    again = ReStylePipeline.from_single_file(tmp_path / "restyle.pt", device="cpu")
    torch.testing.assert_close(again(photo, align=False).w_plus, out.w_plus)
    assert "restyle" in PTIPipeline.from_single_file(tmp_path / "restyle.pt", device="cpu").pivots
    command = ["invert", str(photo), "--method", "restyle", "--model", str(run / "best"), "--no-align"]
    assert cli.main([*command, "--num-iterations", "3", "--device", "cpu", "--output", str(tmp_path / "out")]) == 0


def test_the_generator_is_trained_too(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--train-decoder`: it moves, is saved with the encoder and its average, and a stopped run goes on exactly."""
    command = ["train", "--model", str(model), "--data", str(pictures), *OPTIONS, "--train-decoder"]
    command += ["--ema-decay", "0.5", "--checkpoint-every", "2", "--optimizer.lr", "0.01"]
    for name, steps in (("whole", "4"), ("halves", "2"), ("halves", "4")):
        assert cli.main([*command, "--steps", steps, "--output", str(tmp_path / name)]) == 0
    whole, halves = (
        storage.read_tensors(tmp_path / n / "last/generator/model.safetensors") for n in ("whole", "halves")
    )
    assert same(whole, halves)
    before = storage.read_tensors(model / "generator/model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], whole[key])}
    assert any(key.startswith("synthesis.") for key in changed)
    assert all(key.startswith("synthesis.") for key in changed)  # w, and so the directions, mean the same
    assert (tmp_path / "whole/last/directions/model.safetensors").is_file()
    pipeline = PTIPipeline.from_pretrained(tmp_path / "whole/last", device="cpu")
    assert (
        same(dict(sorted(pipeline.generator.state_dict().items())), dict(sorted(whole.items())))
        and "psp" in pipeline.pivots
    )
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["train_decoder"] is True
