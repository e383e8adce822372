import dataclasses
from typing import Any

import pytest
import torch

from stylegan_inversion import Direction, PTIPipeline
from stylegan_inversion.webapp.model import Model, make_model

gr = pytest.importorskip("gradio")
from stylegan_inversion.webapp.sliders import MOST, STRENGTH_RANGE, Sliders  # noqa: E402


@pytest.fixture
def model(pti: PTIPipeline) -> Model:
    return make_model(pti, name="tiny")


def make(model: Model, *, open_choice: bool = False) -> Sliders:
    with gr.Blocks():
        return Sliders(model, open_choice=open_choice)


def of_directions(model: Model, count: int) -> Model:
    """The same model with other directions of its own."""
    pti = PTIPipeline(model.pti.generator, perceptual=model.pti.perceptual, detector=model.pti.detector)
    pti.directions = {f"way_{i}": Direction(f"way_{i}", torch.eye(16)[i % 16]) for i in range(count)}
    return Model("other", {"pti": pti}, {"Directions": list(pti.directions)} if count else {})


def test_every_direction_has_a_slider(model: Model) -> None:
    sliders = make(model)
    shown = {each.label: each for each in sliders.components if each.visible}
    assert list(shown) == ["Smile", "Age", *(f"{k} {i}" for k in ("GANSpace", "SeFa") for i in range(1, 7))]
    smile, age = shown["Smile"], shown["Age"]
    assert (smile.minimum, smile.maximum, smile.value, smile.step) == (-5.0, 5.0, 0.0, 0.05)
    assert (age.minimum, age.maximum) == STRENGTH_RANGE  # nobody measured it
    low, high = model.directions["sefa_1"].strength_range or (0.0, 0.0)
    assert (shown["SeFa 1"].minimum, shown["SeFa 1"].maximum) == (low, high) and low < 0 < high
    assert all(not each.visible and each.label == "Unused" for each in sliders.components if each.label not in shown)
    assert [box.label for box in sliders.boxes] == ["Directions", "GANSpace", "SeFa"]
    assert [box.open for box in sliders.boxes] == [True, False, False]


def test_zero_is_always_within_reach(model: Model) -> None:
    directions = model.pti.directions
    directions["smile"] = dataclasses.replace(directions["smile"], strength_range=(2.0, 60.0))
    smile = make(model).components[0]
    assert (smile.minimum, smile.maximum, smile.value, smile.step) == (0.0, 60.0, 0.0, 0.5)


def test_what_the_sliders_ask_for(model: Model) -> None:
    sliders = make(model)
    names = sliders.names(model)
    assert len(names) == len(sliders.components) and names[:2] == ["smile", "age"] and None in names
    values = tuple(2.0 if name == "sefa_3" else -1.0 if name == "smile" else 0.0 for name in names)
    assert sliders.strengths(model, values) == {"smile": -1.0, "sefa_3": 2.0}
    hidden = tuple(1.0 if name is None else 0.0 for name in names)
    assert sliders.strengths(model, hidden) == {}
    assert list(sliders.zeros().values()) == [0.0] * len(names) and set(sliders.zeros()) == set(sliders.components)
    with pytest.raises(ValueError, match="zip"):
        sliders.strengths(model, values[:-1])


def test_another_model_gets_the_same_sliders(model: Model) -> None:
    sliders = make(model, open_choice=True)
    other = of_directions(model, 9)
    updates = sliders.deal(other)
    labels = [updates[each]["label"] for each in sliders.components if updates[each]["visible"]]
    assert labels == [f"Way {i}" for i in range(9)]
    assert [updates[box]["visible"] for box in sliders.boxes] == [True, False, False]
    assert sliders.names(other)[:10] == [*(f"way_{i}" for i in range(9)), None]
    back: dict[Any, Any] = sliders.deal(model)
    assert back[sliders.components[0]]["label"] == "Smile" and all(back[box]["visible"] for box in sliders.boxes)
    most = of_directions(model, MOST + 5)  # the rest is for the API
    assert [name for name in sliders.names(most) if name] == [f"way_{i}" for i in range(MOST)]


def test_a_model_without_directions(model: Model) -> None:
    nothing = of_directions(model, 0)
    sliders = make(nothing)
    assert not any(box.visible for box in sliders.boxes) and not any(each.visible for each in sliders.components)
    assert sliders.strengths(nothing, (1.0,) * len(sliders.components)) == {}
    assert sliders.deal(model)[sliders.components[0]]["label"] == "Smile"
