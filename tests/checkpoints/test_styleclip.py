"""A mapper's file in the official layout becomes an edit. The reference is the official formula, on its tensors."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stylegan_inversion import Direction, PTIPipeline, cli, read_receipt
from stylegan_inversion.checkpoints.styleclip import direction_from_mapper
from stylegan_inversion.errors import CheckpointError
from stylegan_inversion.pipelines.play import with_mappers
from stylegan_inversion.preprocessing.image import save_image

W_DIM, SLICES = 16, {"course": slice(0, 4), "medium": slice(4, 8), "fine": slice(8, None), "": slice(None)}


def mapper_file(path: Path, *levels: str, w_dim: int = W_DIM) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    tensors = {"decoder.input.input": torch.zeros(1, 4, 4, 4)}
    for level in levels:
        for k in range(1, 5):
            prefix = f"mapper.{level + '_' if level else ''}mapping.mapping.{k}"
            tensors[f"{prefix}.weight"] = 100 * torch.randn(w_dim, w_dim, generator=rng)
            tensors[f"{prefix}.bias"] = 100 * torch.randn(w_dim, generator=rng)
    torch.save({"state_dict": tensors, "opts": {"mapper_type": "LevelsMapper", "no_fine_mapper": True}}, path)
    return tensors


def reference(tensors: dict[str, Tensor], w_plus: Tensor, *levels: str) -> Tensor:
    step = torch.zeros_like(w_plus)
    for level in levels:
        x = w_plus[:, SLICES[level]]
        x = x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)
        for k in range(1, 5):
            prefix = f"mapper.{level + '_' if level else ''}mapping.mapping.{k}"
            weight, bias = tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"]
            x = F.leaky_relu(F.linear(x, weight * 0.01 / W_DIM**0.5) + bias * 0.01, 0.2) * 2**0.5
        step[:, SLICES[level]] = x
    return step


@pytest.mark.parametrize("levels", [("course", "medium"), ("course", "medium", "fine"), ("",)])
def test_the_road(levels: tuple[str, ...], pti: PTIPipeline, photo: Image.Image, tmp_path: Path) -> None:
    tensors = mapper_file(tmp_path / "afro.pt", *levels)
    out = pti(photo, align=False)
    pti.directions["afro"] = direction = direction_from_mapper(tmp_path / "afro.pt", out.w_unedited, name="afro")
    expected = reference(tensors, out.w_plus, *levels)
    edited = pti.edit(out, afro=0.1)
    torch.testing.assert_close(edited.w_plus, out.w_plus + 0.1 * expected, rtol=1e-4, atol=1e-5)
    assert edited.images != out.images and pti.paste_back(edited)[0].size == photo.size
    saved = type(pti).from_pretrained(pti.save_pretrained(tmp_path / "model"))
    assert isinstance(saved.directions["afro"], Direction) and saved.directions["afro"].unit == direction.unit


def test_the_command(pti: PTIPipeline, photo: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each photo gets its own direction, the same as by Python."""
    mapper_file(tmp_path / "afro.pt", "course", "medium")
    folder, photos = pti.save_pretrained(tmp_path / "model"), [str(tmp_path / f"{name}.png") for name in "ab"]
    for path, turned in zip(photos, (photo, photo.rotate(180))):
        save_image(turned, Path(path))
    how = ["--model", str(folder), "--method", "pti", "--no-align", "--num-w-steps", "2", "--num-tuning-steps", "0"]
    invert = ["invert", *photos, *how, "--output", str(tmp_path / "out"), "--mapper", f"afro={tmp_path / 'afro.pt'}"]
    assert cli.main([*invert, "--edit", "afro=0.1"]) == 0
    for name, path in zip("ab", photos):
        out = pti(path, align=False, num_w_steps=2, num_tuning_steps=0)
        own = with_mappers(pti, {"afro": tmp_path / "afro.pt"}, out.w_unedited)
        edited = own.edit(out, afro=0.1)
        assert "afro" not in pti.directions and edited.images[0].tobytes() != out.images[0].tobytes()
        with Image.open(tmp_path / "out" / name / "edited.png") as written:
            assert written.tobytes() == edited.images[0].tobytes()
        assert read_receipt(tmp_path / "out" / name / "edited.png").method is None  # no receipt holds the file
        assert read_receipt(tmp_path / "out" / name / "inverted.png").method == "pti"
    assert cli.main(invert) == 2 and "--mapper afro does nothing by itself: add --edit afro=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: mapper_file(path), "holds no mapper of StyleCLIP"),
        (lambda path: torch.save({"mapper.mapping.mapping.1.weight": 5}, path), "holds no mapper of StyleCLIP"),
        (lambda path: mapper_file(path, "course", w_dim=8), "course_mapping.mapping.1 is missing, or not of w of 16"),
    ],
)
def test_what_is_none(write: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        direction_from_mapper(tmp_path / "x.pt", torch.ones(1, 8, W_DIM), name="x")
    with pytest.raises(ValueError, match=r"`w_plus` must be \(1, num_ws, w_dim\), of one photo, got \(2, 8, 16\)"):
        inspect.unwrap(direction_from_mapper)(tmp_path / "x.pt", torch.ones(2, 8, W_DIM), name="x")
