"""ReStyle's files. The reference works on the official tensors alone, in the official names, as the paper says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stylegan_inversion import E4EPipeline, PTIPipeline, ReStylePipeline
from stylegan_inversion.checkpoints.export import write_model, write_official
from stylegan_inversion.checkpoints.recognise import read_single_file, recognise
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.models.generator import Generator
from stylegan_inversion.pipelines.loading import check_folder
from stylegan_inversion.preprocessing.landmarks import Face
from tests.checkpoints.official_files import TINY, UNITS, assert_same, lively, restyle


def reference_encoder(x: Tensor, weights: dict[str, Tensor], *, offsets: bool) -> Tensor:
    """One pass of `BackboneEncoder` or `ResNetBackboneEncoder`, from the tensors of a checkpoint."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = [weights[f"encoder.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, weights[f"encoder.{name}.weight"], weights.get(f"encoder.{name}.bias"), **how)

    firsts = [sum(UNITS[:stage]) for stage in range(4)]  # a stage halves the side in its first unit
    if resnet := "encoder.conv1.weight" in weights:
        x = F.prelu(norm(conv(x, "conv1", stride=2, padding=3), "bn1"), weights["encoder.relu.weight"])
        for k in range(sum(UNITS)):
            unit, stride = f"body.{k}", 2 if k in firsts[1:] else 1  # but ResNet's first
            inner = F.relu(norm(conv(x, f"{unit}.conv1", stride=stride, padding=1), f"{unit}.bn1"))
            inner = norm(conv(inner, f"{unit}.conv2", padding=1), f"{unit}.bn2")
            if f"encoder.{unit}.downsample.0.weight" in weights:
                x = norm(conv(x, f"{unit}.downsample.0", stride=stride), f"{unit}.downsample.1")
            x = F.relu(inner + x)
    else:
        x = F.prelu(norm(conv(x, "input_layer.0", padding=1), "input_layer.1"), weights["encoder.input_layer.2.weight"])
    for k in range(0 if resnet else sum(UNITS)):
        unit, stride = f"body.{k}", 2 if k in firsts else 1
        inner = conv(norm(x, f"{unit}.res_layer.0"), f"{unit}.res_layer.1", padding=1)
        inner = F.prelu(inner, weights[f"encoder.{unit}.res_layer.2.weight"])
        inner = norm(conv(inner, f"{unit}.res_layer.3", padding=1, stride=stride), f"{unit}.res_layer.4")
        means = F.adaptive_avg_pool2d(inner, 1)
        gate = conv(F.relu(conv(means, f"{unit}.res_layer.5.fc1")), f"{unit}.res_layer.5.fc2").sigmoid()
        if f"encoder.{unit}.shortcut_layer.0.weight" in weights:
            short = norm(conv(x, f"{unit}.shortcut_layer.0", stride=stride), f"{unit}.shortcut_layer.1")
        else:
            short = x[:, :, ::stride, ::stride]
        x = inner * gate + short
    styles = []
    for i in range(TINY.num_ws):
        w, j = x, 0
        while f"encoder.styles.{i}.convs.{j}.weight" in weights:
            w, j = F.leaky_relu(conv(w, f"styles.{i}.convs.{j}", padding=1, stride=2), 0.01), j + 2
        weight, bias = (weights[f"encoder.styles.{i}.linear.{part}"] for part in ("weight", "bias"))
        styles.append(F.linear(w.reshape(len(x), -1), weight / weight.shape[1] ** 0.5, bias))
    first = [torch.zeros_like(styles[0])] + [styles[0]] * (len(styles) - 1)
    return torch.stack([style + base for style, base in zip(styles, first)] if offsets else styles, dim=1)


def reference(x: Tensor, checkpoint: dict[str, Any], passes: int, *, offsets: bool) -> Tensor:
    """The loop of the official inference: the first pass sees the average picture."""
    generator = lively(Generator, TINY)
    w_plus = checkpoint["latent_avg"].repeat(len(x), 1, 1)
    for _ in range(passes):
        y_hat = nn.AdaptiveAvgPool2d((64, 64))(generator.synthesis(w_plus, noise_mode="const"))
        w_plus = w_plus + reference_encoder(torch.cat([x, y_hat], 1), checkpoint["state_dict"], offsets=offsets)
    return w_plus


@pytest.mark.parametrize("resnet", [False, True])
@pytest.mark.parametrize(("offsets", "passes"), [(False, None), (True, None), (True, 1), (False, 4)])
def test_it_gives_what_the_official_loop_gives(offsets: bool, passes: int | None, resnet: bool, tmp_path: Path) -> None:
    checkpoint = restyle(offsets=offsets, resnet=resnet)
    torch.save(checkpoint, tmp_path / "restyle.pt")
    pipeline = ReStylePipeline.from_single_file(tmp_path / "restyle.pt")
    photos = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))
    out = pipeline(photos, align=False, num_iterations=passes)
    x = torch.tensor(np.stack(photos)).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = reference(x, checkpoint, passes or 3, offsets=offsets)  # the file says 3
    assert float((out.w_plus - expected).norm() / expected.norm()) < 1e-5
    assert float((out.w_plus - checkpoint["latent_avg"]).norm()) > 0.1  # the passes do something
    other = reference(x, checkpoint, (passes or 3) + 1, offsets=offsets)
    assert float((out.w_plus - other).norm() / expected.norm()) > 1e-3
    # and back: the same tensors and the options that their code needs
    pipeline.save_pretrained(tmp_path / "model")
    write_official(tmp_path / "model", tmp_path / "back.pt", layout="restyle")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert_same(back["state_dict"], checkpoint["state_dict"])
    assert torch.equal(back["latent_avg"], checkpoint["latent_avg"])
    assert checkpoint["opts"].items() <= back["opts"].items()


def test_cars_are_looked_at_without_their_bars(tmp_path: Path) -> None:
    """The encoder sees 3/4 of the height; what the generator drew is cut to the same, as the official code does."""
    checkpoint = restyle(offsets=False, resnet=True)
    file = recognise(checkpoint)
    encoder, generator = file.parts["encoder"].build(), file.parts["generator"].build()
    x = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    w_plus = checkpoint["latent_avg"].repeat(2, 1, 1)
    for _ in range(2):
        y_hat = generator.synthesis(w_plus, noise_mode="const")[:, :, 8:56]  # type: ignore[operator, union-attr]
        w_plus = w_plus + reference_encoder(torch.cat([x, y_hat], 1), checkpoint["state_dict"], offsets=False)
    torch.testing.assert_close(encoder.refine(x, generator, iterations=2), w_plus, rtol=1e-4, atol=1e-4)  # type: ignore[operator]


def test_saved_and_loaded(photo: Image.Image, detector: Callable[[Image.Image], list[Face]], tmp_path: Path) -> None:
    torch.save(restyle(offsets=True), tmp_path / "restyle.pt")
    pipeline = ReStylePipeline.from_single_file(tmp_path / "restyle.pt", detector=detector)
    before = {key: value.clone() for key, value in pipeline.encoder.state_dict().items()}
    out = pipeline(photo)
    assert out.generator is pipeline.generator
    assert all(torch.equal(value, before[key]) for key, value in pipeline.encoder.state_dict().items())
    folder = pipeline.save_pretrained(tmp_path / "model")
    check_folder(folder)
    assert "ReStylePipeline.from_pretrained(" in (folder / "README.md").read_text()
    assert torch.equal(ReStylePipeline.from_pretrained(folder, detector=detector)(photo).w_plus, out.w_plus)
    written = write_model(read_single_file(tmp_path / "restyle.pt"), tmp_path / "converted")
    again = ReStylePipeline.from_pretrained(written, detector=detector)
    assert torch.equal(again(photo).w_plus, out.w_plus)
    assert PTIPipeline.from_single_file(tmp_path / "restyle.pt").pivots == ("w", "w_plus", "restyle")
    with pytest.raises(ModelNotFoundError, match="holds no Encoder4Editing"):
        E4EPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="`num_iterations` must be at least 1, got 0"):
        pipeline(photo, num_iterations=0)
    with pytest.raises(ValueError, match="`iterations` must be at least 1, got 0"):
        again.encoder.refine(torch.zeros(1, 3, 64, 64), again.generator, iterations=0)  # type: ignore[operator]


@pytest.mark.parametrize(("passes", "expected"), [(7, 7), (None, 5), ("many", 5), (0, 5), (10**9, 5)])
def test_how_many_passes_the_file_says(passes: Any, expected: int) -> None:
    file = recognise(restyle(offsets=False, n_iters_per_batch=passes))
    assert file.kind == "restyle" and file.parts["encoder"].config.iterations == expected


def test_without_an_average_w_it_is_computed() -> None:
    checkpoint = restyle(offsets=False, start_from_latent_avg=False)
    del checkpoint["latent_avg"]
    file = recognise(checkpoint)
    assert "no average w" in file.notes[0] and file.parts["encoder"].state_dict["w_avg"].shape == (10, 8)
