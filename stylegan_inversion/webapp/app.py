"""The web app: upload a photo, invert the face, move the sliders, download. Gradio, no maths."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, no_type_check

from PIL import Image

from stylegan_inversion.pipelines.output import InversionOutput
from stylegan_inversion.pipelines.pti import PTIPipeline
from stylegan_inversion.preprocessing.align import Crop
from stylegan_inversion.webapp.endpoints import Endpoints, gr, name_api
from stylegan_inversion.webapp.page import CSS, build_page, note_html, status_html
from stylegan_inversion.webapp.sessions import Sessions

SHOWN_FACE, SHOWN_PHOTO = 512, 1280  # pixels a side, at least and at most; downloads are not resized
CLICK_DOWNLOAD = "() => setTimeout(() => document.querySelector('#download').click(), 200)"

KEYS_RELEASE = """() => document.addEventListener("keyup", event => {
    if (event.target.type === "range") event.target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
})"""  # arrow keys move Gradio's sliders without a `release`


def build_app(pipeline: PTIPipeline, *, sessions: Sessions | None = None) -> Any:
    """Build the page and its API.

    Args:
        pipeline: Inverts and edits; it is shared by all visitors and never changed.
        sessions: Keeps the results. `None` keeps the newest 8, for 30 minutes after their last use.

    Returns:
        `gr.Blocks`; start it with `.launch(**launch_options())`.
    """
    endpoints = Endpoints(pipeline, Sessions(pipeline) if sessions is None else sessions)
    with gr.Blocks(title="StyleGAN inversion", analytics_enabled=False, delete_cache=(300, 1800)) as demo:
        ui = build_page(pipeline)
        name_api(endpoints, ui.strengths)  # first, so that the API gets the plain names
        _connect(ui, endpoints)
    return demo.queue(max_size=32, default_concurrency_limit=1)


def launch_options() -> dict[str, Any]:
    """What `gr.Blocks.launch` needs to know: looks, limits, and that nothing is recorded."""
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none to fetch
    return {
        "theme": theme,
        "css": CSS,
        "js": KEYS_RELEASE,
        "ssr_mode": False,
        "show_error": False,  # `gr.Error` is shown all the same; other errors may hold paths
        "max_file_size": "20mb",
        "state_session_capacity": 200,
        "enable_monitoring": False,
        "run_history": False,
        "mcp_server": False,
        "footer_links": ["api", "gradio", "settings"],
    }


def launch(
    model: str = "faces64",
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    device: str = "auto",
) -> None:
    """Serve the app until it is interrupted.

    Args:
        model: A built-in model, a folder, or a repository on the Hugging Face Hub.
        host: Address to listen on. "0.0.0.0" is everyone who can reach this machine.
        port: Port to listen on. `None` means the first free one from 7860.
        share: Also open a public link through Gradio's servers.
        device: Where to run; "auto" is the best there is.

    Raises:
        ModelNotFoundError: If there is no such model.
        CheckpointError: If a file of the model is damaged.
    """
    pipeline = PTIPipeline.from_pretrained(model, device=device)
    build_app(pipeline).launch(server_name=host, server_port=port, share=share, **launch_options())


def _connect(ui: SimpleNamespace, endpoints: Endpoints) -> None:
    """What the visible page does."""
    sliders = list(ui.strengths.values())
    sources = [ui.photo, ui.face, ui.is_crop]
    found = [ui.aligned, ui.crop, ui.face]
    pictures = [ui.compare, ui.result]

    def strengths_of(values: tuple[float, ...]) -> dict[str, float]:
        return dict(zip(ui.strengths, values, strict=True))

    def show_face(photo: bytes | None, face: int, is_crop: bool) -> dict[Any, Any]:
        return show_crop(endpoints.crop(photo, face, not is_crop))

    def show_crop(crop: Crop) -> dict[Any, Any]:
        choices = [(str(i + 1), i) for i in range(crop.face_count)]
        label = f"{crop.face_count} faces found; which one? 1 is the largest"
        return {
            ui.aligned: gr.update(visible=True),
            ui.crop: _enlarge(crop.image),
            ui.face: gr.update(choices=choices, value=crop.face_index, label=label, visible=crop.face_count > 1),
        }

    def forget_face() -> dict[Any, Any]:
        return {ui.aligned: gr.update(visible=False), ui.crop: None, ui.face: gr.update(choices=[("1", 0)], value=0)}

    def show_edit(token: str, *values: float) -> tuple[Any, Any]:
        out = endpoints.edited(token, **strengths_of(values))
        return _pair(out), _shrink(endpoints.pictures(out)[1])

    def reset(token: str) -> tuple[Any, ...]:
        return (*[0.0] * len(sliders), *show_edit(token, *[0.0] * len(sliders)))

    def show_waiting(old_token: str) -> dict[Any, Any]:
        endpoints.sessions.drop(old_token)
        return {
            ui.status: gr.update(visible=True, value=note_html("Waiting for the photo and a free place …")),
            ui.invert: gr.update(interactive=False),
            **{part: gr.update(visible=False) for part in (ui.how_to, ui.pictures, ui.editing)},
        }

    def show_failed() -> dict[Any, Any]:
        return {
            ui.invert: gr.update(interactive=True),
            ui.how_to: gr.update(visible=True),
            **{part: gr.update(visible=False) for part in (ui.status, ui.pictures, ui.stop)},
        }

    @no_type_check  # Gradio must see a generator function, which run-time type checks would hide
    def invert(photo, face, is_crop, num_w_steps, num_tuning_steps):
        crop = endpoints.crop(photo, face, not is_crop)
        before = shown = _enlarge(crop.image)
        visible = {part: gr.update(visible=True) for part in (ui.pictures, ui.stop)}
        yield {**show_crop(crop), **visible, ui.compare: (before, before), ui.result: _shrink(crop.photo)}
        for report in endpoints.run(crop, num_w_steps, num_tuning_steps):
            changes = {ui.token: report.token, ui.status: status_html(report)}
            if report.preview is not None and report.preview is not shown:
                shown = report.preview
                changes[ui.compare] = (before, _enlarge(shown))
            if report.output is not None:
                changes[ui.compare] = _pair(report.output)
                changes[ui.result] = _shrink(endpoints.pictures(report.output)[1])
                changes |= {ui.invert: gr.update(interactive=True), ui.stop: gr.update(visible=False)}
                changes |= {ui.editing: gr.update(visible=True)} | {slider: 0.0 for slider in sliders}
            yield changes

    def stop(token: str) -> None:
        endpoints.stop(token)

    def downloader(kind: str) -> Callable[..., str]:
        return lambda token, *values: endpoints.write(kind, Path(ui.file.GRADIO_CACHE), token, **strengths_of(values))

    hidden: dict[str, Any] = {"api_visibility": "private"}
    gr.on(
        [ui.align.click, ui.face.input],
        show_face,
        sources,
        found,
        concurrency_id="align",
        **hidden,
    )
    ui.photo.change(forget_face, None, found, show_progress="hidden", queue=False, **hidden)
    parts = [ui.status, ui.invert, ui.stop, ui.how_to, ui.pictures, ui.editing, *pictures]
    running = ui.invert.click(show_waiting, ui.token, parts, queue=False, show_progress="hidden", **hidden).then(
        invert,
        [*sources, ui.w_steps, ui.tuning_steps],
        [*parts, ui.token, *found, *sliders],
        concurrency_id="invert",
        show_progress="minimal",
        show_progress_on=[ui.status],
        **hidden,
    )
    running.failure(show_failed, None, parts, queue=False, show_progress="hidden", **hidden)
    ui.stop.click(stop, ui.token, None, queue=False, show_progress="hidden", **hidden)
    if sliders:
        gr.on(
            [slider.release for slider in sliders],
            show_edit,
            [ui.token, *sliders],
            pictures,
            trigger_mode="always_last",
            concurrency_id="edit",
            concurrency_limit=2,
            show_progress="minimal",
            **hidden,
        )
    ui.reset.click(reset, ui.token, [*sliders, *pictures], concurrency_id="edit", show_progress="hidden", **hidden)
    for kind, button in ui.downloads.items():
        button.click(downloader(kind), [ui.token, *sliders], ui.file, concurrency_id="edit", **hidden).success(
            None, js=CLICK_DOWNLOAD, **hidden
        )


def _pair(out: InversionOutput) -> tuple[Image.Image, Image.Image]:
    return _enlarge(out.crops[0].image), _enlarge(out.images[0])


def _enlarge(image: Image.Image) -> Image.Image:
    size = (SHOWN_FACE, SHOWN_FACE)
    return image if image.width >= SHOWN_FACE else image.resize(size, Image.Resampling.BICUBIC)


def _shrink(image: Image.Image) -> Image.Image:
    shown = image.copy()
    shown.thumbnail((SHOWN_PHOTO, SHOWN_PHOTO))
    return shown
