"""The web app: upload a photo, invert the face, edit, compare, play, download; and the API. Gradio, no maths."""

import contextlib
import functools
import importlib.util
import signal
import sys
from collections.abc import Sequence
from typing import Any

from starlette.middleware import Middleware

from stylegan_inversion.webapp.actions import Actions
from stylegan_inversion.webapp.api import Api, name_endpoints
from stylegan_inversion.webapp.compare_tab import CompareTab
from stylegan_inversion.webapp.edit_tab import EditTab
from stylegan_inversion.webapp.guard import (
    LOOPBACK,
    Inspect,
    Janitor,
    KnownHosts,
    LimitBody,
    SecurityHeaders,
    VisitorCookie,
    is_loopback,
    owner_of,
)
from stylegan_inversion.webapp.janitor import forget_lost
from stylegan_inversion.webapp.memory import give_back
from stylegan_inversion.webapp.messages import Page, gr
from stylegan_inversion.webapp.model_picker import ModelPicker
from stylegan_inversion.webapp.models import Model, Models, load_model
from stylegan_inversion.webapp.photo_column import HIDDEN, PhotoColumn
from stylegan_inversion.webapp.play_tab import PlayTab
from stylegan_inversion.webapp.sessions import Sessions
from stylegan_inversion.webapp.theme import CSS, SCRIPT, make_theme
from stylegan_inversion.webapp.words import FOOTNOTE, TITLE, note_html
from stylegan_inversion.webapp.zerogpu import own_device

MODEL_BYTES = 2_000_000_000  # of an uploaded model at most
TIME_TO_LIVE = 1800.0  # seconds that results and files are kept after their last use


def build_app(
    models: Models | Model, *, sessions: Sessions | None = None, janitor: Janitor | None = None, tuning_slots: int = 1
) -> Any:
    """Build the page and its API.

    Args:
        models: What can be run; the first is shown first. They are shared by all visitors and never changed.
        sessions: Keeps the results. `None` keeps the newest 64, at most 12 of a visitor, for 30 minutes after their
            last use.
        janitor: Owns the folder for files. `None` makes a private one that is emptied.
        tuning_slots: How many generators are tuned at the same time.

    Returns:
        `gr.Blocks`; start it with `.launch(**launch_options())`.
    """
    models = Models(models) if isinstance(models, Model) else models
    janitor = janitor or Janitor(time_to_live=TIME_TO_LIVE)
    sessions = Sessions(time_to_live=TIME_TO_LIVE) if sessions is None else sessions  # an empty one is false
    actions = Actions(models, sessions, janitor, tuning_slots=tuning_slots)
    first = models.first
    with Page(title="StyleGAN inversion", analytics_enabled=False, delete_cache=(300, 1800)) as demo:
        gr.Markdown(TITLE, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320, scale=9):
                picker = ModelPicker(actions)
                column = PhotoColumn(actions, first)
            with gr.Column(min_width=320, scale=14), gr.Tabs(selected="edit") as tabs:
                with gr.Tab("Edit a photo", id="edit"):
                    edit_tab = EditTab(actions, first, open_choice=models.open)
                with gr.Tab("Compare the methods", id="compare"):
                    compare_tab = CompareTab(actions, first)
                with gr.Tab("Play", id="play"):
                    play_tab = PlayTab(actions, first)
        gr.Markdown(FOOTNOTE, elem_classes="footnote")
        with gr.Row():
            delete = gr.Button("Delete my data now", size="md", min_width=200, scale=0)
        deleted = gr.HTML(note_html(""))
        name_endpoints(Api(actions))
        column.connect(picker.name)
        edit_tab.connect(column, picker.name)
        compare_tab.connect(column, picker.name)
        play_tab.connect(edit_tab, picker.name, tabs)
        picker.connect([edit_tab, compare_tab, play_tab], column)

        def forget(request: gr.Request) -> dict[Any, Any]:
            owner = owner_of(request)
            if owner is None:
                raise gr.Error(
                    "Your browser sends no cookie, so your files cannot be told from those of others. They are deleted "
                    "after 30 minutes without use.",
                    print_exception=False,
                )
            count = actions.forget(owner)
            shut = {k: v for tab in (edit_tab, compare_tab, play_tab) for k, v in tab.take(first).items()}
            words = f"Deleted: your photo, {count} result{'' if count == 1 else 's'} and all files."
            return {**shut, **picker.shows(first), column.photo: None, deleted: note_html(words)}

        shown = [part for tab in (edit_tab, compare_tab, play_tab) for part in tab.takes]
        changed = list(dict.fromkeys([*shown, picker.note, picker.name, picker.current, column.photo, deleted]))
        delete.click(forget, None, changed, queue=False, **HIDDEN)  # what runs or waits for its turn then ends
    janitor.keep()  # the examples
    demo.janitor, demo.sessions = janitor, sessions  # live as long as the app
    janitor.also(functools.partial(forget_lost, demo.temp_file_sets))
    janitor.also(give_back)
    # `/run`, which passes the queue by, is for what needs no queue
    return demo.queue(max_size=32, default_concurrency_limit=4, api_open=False)


def launch_options(*, open_choice: bool = False, hosts: Sequence[str] = ()) -> dict[str, Any]:
    """What `gr.Blocks.launch` needs to know: looks, limits, and that nothing is recorded.

    Args:
        open_choice: Whether visitors may upload models, which are larger than photos.
        hosts: Names by which the app is reached, without a port. Empty means any.
    """
    limits = {"max_bytes": MODEL_BYTES, "max_parts": 64} if open_choice else {}
    guards = [Middleware(each) for each in (Inspect, VisitorCookie, SecurityHeaders)]
    known = [Middleware(KnownHosts, names=hosts)] if hosts else []
    middleware = [*known, Middleware(LimitBody, **limits), *guards]
    return {
        "theme": make_theme(),
        "css": CSS,
        "js": SCRIPT,
        "ssr_mode": False,
        "show_error": False,  # `gr.Error` is shown all the same; other errors may hold paths
        "max_file_size": MODEL_BYTES if open_choice else "20mb",
        "num_workers": 0,  # Gradio's file workers would take uploads without our middleware
        "state_session_capacity": 200,
        "enable_monitoring": False,
        "run_history": False,
        "mcp_server": importlib.util.find_spec("mcp") is not None,
        "footer_links": ["api", "gradio", "settings"],
        "app_kwargs": {"middleware": middleware},
    }


def launch(
    model: str = "faces64",
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    device: str = "auto",
    open_choice: bool = False,
    allowed_hosts: Sequence[str] = (),
    tuning_slots: int = 1,
) -> None:
    """Serve the app until it is interrupted.

    Args:
        model: A built-in model, a folder, a repository on the Hugging Face Hub, or a name of the catalogue.
        host: Address to listen on. "0.0.0.0" is everyone who can reach this machine.
        port: Port to listen on. `None` means the first free one from 7860.
        share: Also open a public link through Gradio's servers.
        device: Where to run; "auto" is the best there is.
        open_choice: Whether visitors may load other models and upload folders.
        allowed_hosts: Names by which a proxy on this machine, such as nginx or a notebook's, passes visitors on, such
            as "demo.example.org". An app that only this machine reaches answers no other name but "localhost"; one
            that listens on other addresses or is shared answers any.
        tuning_slots: How many generators are tuned at the same time.

    Raises:
        ModelNotFoundError: If there is no such model.
        CheckpointError: If a file of the model is damaged.
    """
    hosts = [*LOOPBACK, host, *allowed_hosts] if is_loopback(host) and not share else []
    device = own_device(device)
    demo = build_app(
        Models(load_model(model, device=device), open=open_choice, device=device), tuning_slots=tuning_slots
    )
    for name in ("SIGTERM", "SIGHUP", "SIGQUIT"):  # an order to end, a closed terminal, Ctrl-\; Windows has the first
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores the second
            with contextlib.suppress(ValueError):  # only the main thread may
                signal.signal(number, lambda *_: sys.exit(0))  # so that the files are removed
    try:
        options = launch_options(open_choice=open_choice, hosts=hosts)
        demo.launch(server_name=host, server_port=port, share=share, prevent_thread_lock=True, **options)
        demo.block_thread()  # as `launch` does not in a REPL or a notebook, whose files would go at once
    finally:
        try:
            demo.sessions.close()  # first: a thread that still computes when Python ends would abort it
            demo.close(verbose=False)
        finally:
            demo.janitor.close()
