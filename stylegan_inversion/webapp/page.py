"""What the page of the web app shows: its components and texts. What they do is in `app.py`."""

import html
from types import SimpleNamespace
from typing import Any

from stylegan_inversion import hub
from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.webapp.endpoints import MAX_STEPS, gr, photo_input
from stylegan_inversion.webapp.sessions import Progress

STRENGTH_RANGE = (-5.0, 5.0)  # of a direction whose range nobody measured

INTRO = """# StyleGAN inversion
Bring a face into StyleGAN2's latent space, edit it there and put it back. **Every result is an AI-edited image.**"""
HOW_TO = """### How it works
1. **Photo.** Upload one, take one or pick an example. *Align* shows the face; if there are several, choose.
2. **Invert.** The generator is tuned until it draws this face. *Stop* keeps the best state so far.
3. **Edit.** Move the sliders; the edited face goes back into the photo. Then download what you like."""
FOOTNOTE = """Use photos of people who agreed to it, and say that a result is AI-edited when you share it. Do not
deceive, harass or identify anyone with it. Photos and results are deleted after about 30 minutes without use. The code
is under the MIT licence; models and photos have licences of their own."""
CSS = """
.gradio-container {max-width: 1400px !important; margin: 0 auto !important}
.status {display: flex; flex-direction: column; gap: 6px; font-variant-numeric: tabular-nums}
.bar {height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden}
.bar div {height: 100%; background: var(--color-accent); transition: width 0.3s}
#download {display: none}
.footnote p {color: var(--body-text-color-subdued); font-size: var(--text-sm)}
"""


def build_page(pipeline: PTIPipeline) -> SimpleNamespace:
    """Lay out the page, within `gr.Blocks`.

    Args:
        pipeline: Says which sliders there are, and their defaults.

    Returns:
        The components by name.
    """
    ui = SimpleNamespace(token=gr.State(""))
    picture: dict[str, Any] = {
        "format": "png",
        "height": 400,
        "min_width": 300,
        "interactive": False,
        "buttons": ["fullscreen"],
    }
    gr.Markdown(INTRO)
    with gr.Row():
        with gr.Column(min_width=320, scale=9):
            ui.photo = photo_input(height=320, sources=["upload", "webcam", "clipboard"])
            samples = sorted(hub.builtin_path("samples").glob("*.jpg"))
            if samples:
                gr.Examples([[str(path)] for path in samples], ui.photo, label="Examples", api_visibility="private")
            ui.align = gr.Button("Align")
            with gr.Column(visible=False) as ui.aligned:
                ui.face = gr.Radio([("1", 0)], value=0, visible=False)
                ui.crop = gr.Image(label="Aligned face", format="png", height=220, interactive=False, buttons=[])
            with gr.Row():
                ui.invert = gr.Button("Invert", variant="primary")
                ui.stop = gr.Button("Stop", variant="stop", visible=False)
            with gr.Accordion("Advanced", open=False):
                ui.w_steps = _steps_slider("Projection steps", pipeline.projector.num_steps)
                ui.tuning_steps = _steps_slider("Tuning steps", pipeline.tuning.num_steps)
                ui.is_crop = gr.Checkbox(label="The photo is an aligned face already")
        with gr.Column(min_width=320, scale=11):
            ui.how_to = gr.Markdown(HOW_TO, container=True)
            ui.status = gr.HTML(visible=False)
            with gr.Row(visible=False) as ui.pictures:
                ui.compare = gr.ImageSlider(label="Face: before | after", **picture)
                ui.result = gr.Image(label="Photo with the edited face", **picture)
            with gr.Column(visible=False) as ui.editing:
                with gr.Row():
                    ui.strengths = {name: _strength_slider(name, pipeline) for name in pipeline.directions}
                if not ui.strengths:
                    gr.Markdown("This model has no edit directions.")
                with gr.Row():
                    ui.reset = gr.Button("Reset", size="md", min_width=120, visible=bool(ui.strengths))
                    ui.downloads = {
                        "photo": gr.Button("Download photo", size="md", min_width=120),
                        "face": gr.Button("Download face", size="md", min_width=120),
                        "inversion": gr.Button("Download zip", size="md", min_width=120),
                    }
            ui.file = gr.DownloadButton(elem_id="download")
    gr.Markdown(FOOTNOTE, elem_classes="footnote")
    return ui


def _steps_slider(label: str, default: int) -> Any:
    return gr.Slider(1, MAX_STEPS, value=min(default, MAX_STEPS), step=1, label=label)


def _strength_slider(name: str, pipeline: PTIPipeline) -> Any:
    low, high = pipeline.directions[name].strength_range or STRENGTH_RANGE
    label = name.replace("_", " ").capitalize()
    return gr.Slider(min(low, 0.0), max(high, 0.0), value=0.0, step=0.05, label=label, min_width=240)


def status_html(report: Progress) -> str:
    """How far an inversion is, as HTML."""
    stages = {"start": "Starting", "projection": "Projecting", "tuning": "Tuning the generator", "done": "Done"}
    words = [stages[report.stage]]
    if report.output is not None:
        words += _summary(report.output)
    elif report.loss is not None:
        left = report.seconds / max(report.step, 1) * (report.total - report.step)
        words += [f"step {report.step} of {report.total}", f"loss {report.loss:.4f}", f"{left:.0f} s left at most"]
    percent = 100 if report.output is not None else 100 * report.step / report.total
    return note_html(" · ".join(words), f'<div class="bar"><div style="width: {percent:.1f}%"></div></div>')


def note_html(text: str, bar: str = "") -> str:
    """A line of text, under a bar if there is one."""
    return f'<div class="status" role="status">{bar}<span>{html.escape(text)}</span></div>'


def _summary(out: InversionOutput) -> list[str]:
    report = out.reports[0]
    why = {"callback": "stopped, best state kept", "threshold": "good enough", "nan": "diverged, best state kept"}
    words = [f"{report['w_steps']} + {report['tuning_steps']} steps in {report['seconds']:.0f} s"]
    words += [why[report["stopped_by"]]] if report["stopped_by"] in why else []
    return [*words, f"mean squared error {report['l2']:.4f}"]
