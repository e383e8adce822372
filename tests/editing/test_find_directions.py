"""Directions of a tiny generator, in W and in S: from scores with gradients or without, pictures, a command."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan_inversion import PTIPipeline, cli
from stylegan_inversion.editing.directions import load_directions
from stylegan_inversion.editing.find_directions import find_directions
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.preprocessing.image import save_image, to_pil

pytest.importorskip("sklearn")
FEW: dict[str, Any] = {"num_samples": 256, "num_points": 64, "num_tests": 16, "batch_size": 64}


def colours(x: Tensor) -> dict[str, Tensor]:
    return {"red": x[:, 0].mean(dim=(1, 2)), "blue": x[:, 2].mean(dim=(1, 2))}


def muted(generator: Generator) -> Generator:
    """Its pictures are not clipped."""
    for block in generator.synthesis.blocks.values():
        block.to_rgb.weight.data.mul_(0.2)
    return generator


@pytest.mark.parametrize(("space", "with_gradients"), [("w", True), ("w", False), ("s", True)])
def test_what_the_score_says(space: Any, with_gradients: bool, generator: Generator) -> None:
    before = {key: value.clone() for key, value in muted(generator).state_dict().items()}
    score = colours if with_gradients else (lambda x: colours(x.detach()))
    few = {**FEW, "num_channels": 8 if space == "s" else None}
    red, blue = find_directions(generator, score, space=space, **few)
    assert [red.direction.name, blue.direction.name] == ["red", "blue"]
    assert red.direction.space == space and "conditioned on blue" in red.direction.description
    for name, other, found in (("red", "blue", red), ("blue", "red", blue)):
        low, high = found.direction.strength_range or (0.0, 0.0)
        assert low == -high < 0 and (space == "s" or (found.accuracy or 0) > 0.7)
        assert 0 < (found.direction.vector != 0).sum() <= (8 if space == "s" else 16)
        assert found.moves[name] > 0.2 and (found.moves[name] > 2 * abs(found.moves[other]) or not with_gradients)
        assert found.monotone_share > (0.9 if with_gradients else 0.7)
    again = find_directions(generator, score, names=["blue"], space=space, **few)
    assert torch.equal(again[0].direction.vector, blue.direction.vector) and again[0].moves == blue.moves
    after = generator.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": 3}, "`num_points` must be >= 16, got 3"),
        ({"names": ["green"]}, "`names` must be among the scores, which are identifiers: red, blue; got 'green'"),
        (
            {"space": "s", "score": lambda x: colours(x.detach())},
            "need gradients for directions in S, and 'red' has none",
        ),
        ({"space": "z"}, '`space` must be "w" or "s", got \'z\''),
        ({"num_channels": 8}, "`num_channels` is for a fit in S: leave it out with `steps` or in W, got 8"),
        ({"steps": {}}, '`steps` are directions in S: leave them out, or take `space="s"`, got "w"'),
        ({"steps": {}, "space": "s"}, "`num_points` is for a fit: leave it out with `steps`, got 64"),
        (
            {"steps": {"red": torch.ones(56), "blue": torch.ones(3)}, "space": "s", "num_points": None},
            "`steps` must hold 56 numbers for each of `names`, got 3 for 'blue'",
        ),
        ({"score": lambda x: {"red": x.mean(dim=(1, 2, 3)) * torch.nan}}, "`score` must be finite"),
    ],
)
def test_refusals(options: dict[str, Any], message: str, generator: Generator) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(find_directions)(generator, options.pop("score", colours), **{**FEW, **options})


def test_the_command(pti: PTIPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Faces and labelled pictures, W and S, a copy of the model and the model itself; then an edit with each."""
    muted(pti.generator)
    pti.save_pretrained(tmp_path / "model")
    few = ["--num-samples", "64", "--num-points", "16", "--num-tests", "8", "--device", "cpu"]
    command = ["find-directions", str(tmp_path / "model"), *few]
    with torch.no_grad():
        images = pti.generator(torch.randn(80, 8, generator=torch.Generator().manual_seed(3))).clamp(-1, 1)
    order = images[:, 0].mean(dim=(1, 2)).argsort().tolist()
    for rank, image in enumerate(to_pil(images[order])):
        save_image(image, tmp_path / ("reddish" if rank >= 40 else "other") / f"{rank}.png")

    kinds = ["--positive", str(tmp_path / "reddish"), "--negative", str(tmp_path / "other"), "--name", "red"]
    assert cli.main([*command, "--output", str(tmp_path / "copy"), *kinds, "--scores", "age"]) == 0
    said = capsys.readouterr().out
    share = float(said.split("red: ")[1].split("%")[0])
    assert share > 70 and "| red |" in said and "age moves" in said
    folder = tmp_path / "copy" / "directions"
    assert {*load_directions(folder)} == {"smile", "age", "red"}  # as conditions, scores replace no direction
    assert (folder / "directions.png").stat().st_size > 1000 and "| red |" in (folder / "directions.md").read_text()
    assert {*load_directions(tmp_path / "model" / "directions")} == {"smile", "age"}

    assert cli.main(["find-directions", str(tmp_path / "copy"), *few, "--scores", "yaw", "--space", "s"]) == 0
    found = load_directions(folder)
    assert found["yaw_s"].space == "s" and found["red"].space == "w"
    photo = tmp_path / "reddish" / "79.png"
    edits = ["--edit", "red=1", "yaw_s=2", "--no-align", "--num-w-steps", "2", "--num-tuning-steps", "1"]
    out = ["--method", "pti", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(["invert", str(photo), "--model", str(tmp_path / "copy"), *edits, *out]) == 0

    for wrong, message in (
        ([*command, "--positive", "x"], "--positive, --negative and --name belong together"),
        ([*command, "--scores"], "There is nothing to find"),
        (
            [*command, "--scores", "glasses"],
            "score smile, age, gender, yaw, pitch, mouth_open, eyes_open, not 'glasses'",
        ),
        (["find-directions", "faces64"], "--output is needed: faces64 is no folder"),
        ([*command, "--num-channels", "8"], "--num-channels is for --space s without --text: leave it out, got 8"),
        ([*command, "--text", "a", "b"], "--num-points is for a search without --text: leave it out, got 16"),
        ([*command, "--align"], "--align is for --positive: leave it out"),
        ([*command, "--beta", "0.1"], "--beta is for --text: leave it out, got 0.1"),
        ([*command, "--output", str(tmp_path)], "is there already: give another --output"),
    ):
        assert cli.main(wrong) == 2 and message in capsys.readouterr().err
