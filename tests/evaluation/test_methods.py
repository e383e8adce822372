import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stylegan_inversion import E4EPipeline, PTIPipeline
from stylegan_inversion.errors import ModelNotFoundError
from stylegan_inversion.evaluation.methods import (
    METHODS,
    Method,
    Pivots,
    describe,
    hash_tensors,
    invert,
    load_methods,
    resize,
)
from stylegan_inversion.pipelines import pti as pti_module
from stylegan_inversion.preprocessing.image import to_tensor


def test_every_method_inverts(model: str, faces: list[Path]) -> None:
    methods = load_methods(list(METHODS), model, options={"num_w_steps": 5, "num_tuning_steps": 2, "seed": None})
    assert list(methods) == list(METHODS) and methods["w"].options["num_tuning_steps"] == 0
    assert methods["pti"].pipeline is methods["w"].pipeline and methods["psp"].options == {}
    for name, method in methods.items():
        crops = [method.pipeline.align(path, align=False) for path in faces[:3]]
        inversions = list(invert(method, faces[:3], crops, align=False))
        by_encoder = name in ("e4e", "psp")
        assert [len(found.w_plus) for found in inversions] == ([3] if by_encoder else [1, 1, 1])
        for found in inversions:
            assert found.w_plus.shape[1:] == (8, 16) and found.seconds > 0
            in_w = torch.equal(found.w_plus, found.w_plus[:, :1].expand(-1, 8, -1))
            assert in_w == (name in ("w", "pti")), name
            tuned = not torch.equal(found.generator.synthesis.const, method.pipeline.generator.synthesis.const)
            assert tuned == name.startswith("pti"), name
            assert (found.encode is not None) == by_encoder


def test_what_differs_in_the_tuning_only_finds_its_pivots_once(
    model: str, faces: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    project = pti_module._PROJECTORS["w"]

    def spy(generator: Any, target: Any, **options: Any) -> Any:
        calls.append(("w", len(target)))
        return project(generator, target, **options)

    monkeypatch.setitem(pti_module._PROJECTORS, "w", spy)
    names = ["w", "pti", "pti-e4e"]
    methods = load_methods(names, model, options={"num_w_steps": 5, "num_tuning_steps": 2, "seed": 3})
    crops = [methods["w"].pipeline.align(path, align=False) for path in faces[:2]]
    pivots = Pivots()
    found = {n: list(invert(methods[n], faces[:2], crops, align=False, pivots=pivots)) for n in names}
    assert calls == [("w", 2)]
    for untuned, tuned in zip(found["w"], found["pti"]):
        assert torch.equal(untuned.w_plus, tuned.w_plus) and tuned.seconds > untuned.seconds
    assert not torch.equal(found["pti-e4e"][0].w_plus, found["pti"][0].w_plus)
    # What each photo would give alone
    for path, tuned in zip(faces, found["pti"]):
        alone = methods["pti"].pipeline(path, align=False, **methods["pti"].options)
        torch.testing.assert_close(tuned.w_plus, alone.w_plus, atol=1e-4, rtol=1e-4)
        assert tuned.report["l2"] == pytest.approx(alone.reports[0]["l2"], rel=1e-3)
    # Other photos, or another number of steps, are something else
    list(invert(methods["w"], faces[:1], crops[:1], align=False, pivots=pivots))
    more = dataclasses.replace(methods["w"], options={**methods["w"].options, "num_w_steps": 6})
    list(invert(more, faces[:1], crops[:1], align=False, pivots=pivots))
    assert calls == [("w", 2), ("w", 1), ("w", 1), ("w", 1), ("w", 1)]


def test_a_batch_gives_what_the_pipeline_gives(model: str, faces: list[Path]) -> None:
    method = load_methods(["e4e"], model)["e4e"]
    crops = [method.pipeline.align(path, align=False) for path in faces]
    (found,) = invert(method, faces, crops, align=False)
    out = method.pipeline(faces, align=False)
    torch.testing.assert_close(found.w_plus, out.w_plus)
    assert found.encode is not None
    at_64 = torch.nn.functional.interpolate(to_tensor(crops[0].image), scale_factor=2.0)
    with torch.no_grad():
        torch.testing.assert_close(found.encode(at_64), found.encode(to_tensor(crops[0].image)))


def test_wrong_names(model: str, pti: PTIPipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no method 'hfgi'; there are w, w_plus, e4e, psp, pti, pti-e4e"):
        load_methods(["w", "hfgi"], model)
    with pytest.raises(ValueError, match="`limits` names 'pti', which is not compared; compared are w"):
        load_methods(["w"], model, limits={"pti": 3})
    with pytest.raises(ModelNotFoundError, match="holds no Encoder4Editing"):
        load_methods(["pti-e4e"], str(pti.save_pretrained(tmp_path / "generator only")))
    with pytest.raises(ValueError, match="PTIPipeline has no option 'steps'; it has preset, pivot, num_w_steps"):
        Method(pti, {"steps": 3})
    with pytest.raises(ValueError, match="PTIPipeline has no option 'face'"):  # originals are those of the first face
        Method(pti, {"face": 1})
    with pytest.raises(ValueError, match="`limit` must be >= 1, got 0"):
        Method(pti, limit=0)


def new_encoder(methods: dict[str, Method]) -> None:
    pipeline = methods["e4e"].pipeline
    assert isinstance(pipeline, E4EPipeline)
    next(pipeline.encoder.parameters()).add_(1)


def new_tuning(methods: dict[str, Method]) -> None:
    pipeline = methods["pti"].pipeline
    assert isinstance(pipeline, PTIPipeline)
    pipeline.tuning = dataclasses.replace(pipeline.tuning, learning_rate=1.0)


def new_generator(methods: dict[str, Method]) -> None:
    methods["psp"].pipeline.generator.w_avg.add_(1)


@pytest.mark.parametrize(
    ("change", "void"),
    [
        (lambda methods: None, []),
        (new_encoder, ["e4e", "pti-e4e"]),  # and no optimisation
        (new_tuning, ["pti", "pti-e4e"]),
        (new_generator, ["psp"]),
    ],
)
def test_a_description_changes_with_what_matters_only(
    model: str, change: Callable[[dict[str, Method]], None], void: list[str]
) -> None:
    methods = load_methods(["w", "pti", "e4e", "pti-e4e", "psp"], model)
    before = {name: describe(method) for name, method in methods.items()}
    with torch.no_grad():
        change(methods)
    assert [name for name, method in methods.items() if describe(method) != before[name]] == void


def test_without_parts_everything_counts(pti: PTIPipeline) -> None:
    parts = describe(Method(pti))["parts"]
    assert {"generator", "perceptual", "projector", "tuning", "crop_scale"} <= set(parts) and "directions" not in parts


def test_hashes_tell_names_shapes_and_kinds_apart() -> None:
    tensors = [{"a": torch.zeros(4)}, {"b": torch.zeros(4)}, {"a": torch.zeros(2, 2)}, {"a": torch.zeros(4).half()}]
    assert len({hash_tensors(each) for each in tensors}) == 4
    assert hash_tensors({"a": torch.tensor(1.0)}) != hash_tensors({"a": torch.tensor(2.0)})


def test_resizing_averages() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize(images, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5] and resize(images, 4) is images
    assert resize(images, 8).shape == (1, 1, 8, 8)


def test_a_crop_can_come_from_a_photo(model: str, photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "photo.png")
    method = load_methods(["e4e"], model, detector="builtin")["e4e"]
    crop = method.pipeline.align(photo, align=False)
    (found,) = invert(method, [tmp_path / "photo.png"], [crop], align=True)
    assert found.w_plus.shape == (1, 8, 16)
