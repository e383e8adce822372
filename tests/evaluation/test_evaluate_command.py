from pathlib import Path
from typing import Any

import pytest

from stylegan_inversion import cli


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, stubs: dict[str, Any]) -> None:
    monkeypatch.setattr("stylegan_inversion.evaluation.settings.load_face_scorer", lambda device: stubs["attributes"])


def test_evaluate(
    tiny: None, model: str, faces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "evaluate",
        str(tmp_path / "faces"),
        "--model",
        model,
        "--methods",
        "e4e",
        "psp",
        "pti",
        "--limit",
        "3",
    ]
    arguments += [
        "--limit-for",
        "pti=1",
        "--output",
        str(tmp_path / "out"),
        "--edits",
        "smile",
        "age",
        "--device",
        "cpu",
    ]
    arguments += ["--num-w-steps", "2", "--num-tuning-steps", "1", "--batch-size", "2"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "The first 3 of 5 images, by name." in out and "## On the 1 images that all methods did" in out
    assert "| PTI (W pivot) | 1 |" in out and f"Everything is in {tmp_path / 'out'}." in out
    assert (tmp_path / "out" / "figure_age.png").exists()
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 7

    faces[1].write_bytes(b"")  # a.png
    assert cli.main(arguments) == 1
    assert "Failed, and in no mean: e4e 1, pSp 1, PTI (W pivot) 1." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "e4f"], "There is no method 'e4f'"),
        (["--edits", "smle"], "There is no direction 'smle'"),
        (["--methods", "e4e", "--limit-for", "pti=3"], "`limits` names 'pti'"),
    ],
)
def test_wrong_arguments(
    tiny: None, model: str, faces: list[Path], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(faces[0].parent), "--model", model, "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_syntax_of_limits(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("pti", "pti=", "=3", "pti=0", "pti=x"):
        with pytest.raises(SystemExit):
            cli.main(["evaluate", "folder", "--limit-for", text])
        assert f"{text!r} is not METHOD=N, such as pti=50" in capsys.readouterr().err
