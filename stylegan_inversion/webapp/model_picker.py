"""The choice of the model: built in, in the cache, the catalogue, the Hub, or an uploaded folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stylegan_inversion.webapp.actions import Actions
from stylegan_inversion.webapp.messages import gr, messages
from stylegan_inversion.webapp.models import Model
from stylegan_inversion.webapp.photo_column import HIDDEN, PhotoColumn
from stylegan_inversion.webapp.photos import folder_input
from stylegan_inversion.webapp.words import note_html


class ModelPicker:
    """Says which model runs, and lets the visitor choose another."""

    def __init__(self, actions: Actions) -> None:
        """Lay it out, within a column."""
        self.actions, models = actions, actions.models
        first = models.first
        self.note = gr.Markdown(first.note, elem_id="note")
        with gr.Accordion("Model", open=False, visible=models.open or len(models.choices()) > 1):
            self.name = gr.Dropdown(
                models.choices(),
                value=first.name,
                label="Model",
                info="One of the list, or a repository on the Hugging Face Hub." if models.open else None,
                allow_custom_value=models.open,
                filterable=models.open,
            )
            self.files = folder_input(
                label="Or upload a pipeline folder (safetensors)", visible=models.open, height=120
            )
            self.status = gr.HTML(note_html(""))
        self.current = gr.State(first.name)

    def shows(self, model: Model) -> dict[Any, Any]:
        """Updates that name a model; they go to `note`, `name` and `current`."""
        return {self.note: model.note, self.name: model.name, self.current: model.name}

    def connect(self, tabs: list[Any], column: PhotoColumn) -> None:
        """What a choice does.

        Args:
            tabs: They take another model.
            column: Cuts the face anew.
        """
        models = self.actions.models

        def load(name: str) -> Iterator[dict[Any, Any]]:
            with messages():
                for report in models.load(name):
                    bar = f'<div class="bar"><div style="width: {100 * (report.share or 0):.0f}%"></div></div>'
                    yield {self.status: note_html(report.text, bar)}
                model = report.model
            assert model is not None  # the last report has it
            updates = {key: value for tab in tabs for key, value in tab.take(model).items()}
            yield {**updates, **self.shows(model), self.status: note_html("Ready.")}

        def back(name: str) -> tuple[str, str]:
            return name, note_html("")

        def upload(files: list[Path]) -> dict[Any, Any]:
            if not files:
                return {self.status: note_html("")}
            with messages():
                name = models.add_folder(files)
            choices = [*models.choices(), ("The uploaded model", name)]  # its name is its owner's secret
            return {self.name: gr.update(choices=choices, value=name), self.status: note_html("Read.")}

        taken = dict.fromkeys(part for tab in tabs for part in tab.takes)
        outputs = [*taken, self.note, self.status, self.name, self.current]
        loading: dict[str, Any] = {
            "concurrency_id": "load",
            "concurrency_limit": 1,
            "show_progress": "hidden",
            **HIDDEN,
        }
        runs = [tab.running for tab in tabs if hasattr(tab, "running")]
        loaded = self.name.input(load, self.name, outputs, cancels=runs, **loading)
        uploaded = self.files.upload(upload, self.files, [self.name, self.status], **loading)
        for event in (loaded, uploaded.success(load, self.name, outputs, cancels=runs, **loading)):
            event.failure(
                lambda name: (name, note_html("")), self.current, [self.name, self.status], queue=False, **HIDDEN
            )
            event.success(
                column.find, [column.photo, column.align, self.name], column.shown, show_progress="hidden", **HIDDEN
            )
