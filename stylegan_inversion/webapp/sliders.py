"""The edit sliders: a fixed number of components, which a model's directions are dealt to."""

from typing import Any

from stylegan_inversion.webapp.messages import gr
from stylegan_inversion.webapp.models import Model
from stylegan_inversion.webapp.words import pretty

STRENGTH_RANGE = (-5.0, 5.0)  # of a direction whose range nobody measured
MOST = 40  # directions of a model that may still be chosen
HELP = {
    "Directions": "What the model's makers or its training found, with calibrated ranges.",
    "GANSpace": "The widest principal components of W: found without labels, so they have no names.",
    "SeFa": "What the generator's weights amplify most: found without labels, so they have no names.",
}


class Sliders:
    """Groups of sliders; those that a model has no direction for are hidden."""

    def __init__(self, model: Model, *, open_choice: bool) -> None:
        """Lay them out, within `gr.Blocks`.

        Args:
            model: Shown first.
            open_choice: Whether models with other directions may follow.
        """
        self.components: list[Any] = []
        self._groups: list[tuple[str, Any, list[Any]]] = []
        titles = {**{title: 0 for title in HELP}, **{title: len(names) for title, names in model.groups.items()}}
        for title, count in titles.items():
            size = max(count, MOST) if open_choice and title == "Directions" else max(count, 6)
            with gr.Accordion(title, open=title == "Directions", visible=bool(count)) as box:
                gr.Markdown(HELP.get(title, ""), elem_classes="step")
                with gr.Row():
                    sliders = [gr.Slider(**spec, min_width=220) for spec in self._specs(model, title, size)]
            self._groups.append((title, box, sliders))
            self.components += sliders

    def _specs(self, model: Model, title: str, size: int) -> list[dict[str, Any]]:
        names = model.groups.get(title, [])[:size]
        specs = []
        for name in names:
            low, high = model.directions[name].strength_range or STRENGTH_RANGE
            step = 0.05 if high - low < 40 else 0.5
            specs.append(
                {"minimum": min(low, 0.0), "maximum": max(high, 0.0), "value": 0.0, "step": step}
                | {"label": pretty(name), "visible": True}
            )
        hidden = {"minimum": -1.0, "maximum": 1.0, "value": 0.0, "step": 0.05, "label": "Unused", "visible": False}
        return specs + [dict(hidden) for _ in range(size - len(names))]

    def names(self, model: Model) -> list[str | None]:
        """The direction of each slider; `None` for one that is hidden."""
        out: list[str | None] = []
        for title, _, sliders in self._groups:
            names = model.groups.get(title, [])[: len(sliders)]
            out += [*names, *[None] * (len(sliders) - len(names))]
        return out

    def strengths(self, model: Model, values: tuple[float, ...]) -> dict[str, float]:
        """What the sliders ask for, without zeros."""
        pairs = zip(self.names(model), values, strict=True)
        return {name: float(value) for name, value in pairs if name is not None and value}

    def zeros(self) -> dict[Any, float]:
        """Updates that put all back."""
        return {slider: 0.0 for slider in self.components}

    def deal(self, model: Model) -> dict[Any, Any]:
        """Updates that show another model's directions."""
        updates: dict[Any, Any] = {}
        for title, box, sliders in self._groups:
            updates[box] = gr.update(visible=bool(model.groups.get(title)))
            for slider, spec in zip(sliders, self._specs(model, title, len(sliders)), strict=True):
                updates[slider] = gr.update(**spec)
        return updates

    @property
    def boxes(self) -> list[Any]:
        """The groups."""
        return [box for _, box, _ in self._groups]
