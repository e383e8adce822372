"""The page and its API put together, and served."""

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import gradio.mcp
from anyio.to_thread import run_sync
from gradio.exceptions import InvalidPathError
from gradio.state_holder import SessionState
from gradio_client.utils import is_file_obj_with_meta
from starlette.middleware import Middleware

from stylegan_inversion import storage
from stylegan_inversion.pipelines.methods import METHODS
from stylegan_inversion.webapp.api import Api, name_endpoints
from stylegan_inversion.webapp.editor import TIME_TO_LIVE, Editor, visit_state
from stylegan_inversion.webapp.models import Model, Models, best_cached, load_model
from stylegan_inversion.webapp.photos import (
    EXAMPLES,
    LOOPBACK,
    NO_ADDRESS,
    NOT_UPLOADED,
    Door,
    is_loopback,
    names_web_address,
    samples,
    sweep,
    upload_limit,
)
from stylegan_inversion.webapp.play import CompareTab, DrawTab, PlayTab, RedrawTab
from stylegan_inversion.webapp.run import FAILED, logger, told
from stylegan_inversion.webapp.studio import Studio, Visit
from stylegan_inversion.webapp.zerogpu import find_gpu

PAPERS = " · ".join(
    f"[{each.label}](https://arxiv.org/abs/{each.paper}) ([code](https://github.com/{each.code}))"
    for each in METHODS.values()
)
NAME = "Edit a face, keep the photo", "Edit a part, keep the photo"  # of a model of faces, and of others
TITLE = f"""# {{}}
Drop a photo: {{}} redrawn by StyleGAN2, edited with the sliders and put back where it was.
Papers: {PAPERS}{{}}"""
CARD = " · [Model card](model-card)"  # of the built-in model
FOOTNOTE = """Use photos of people who agreed to it, and say that a result is AI-edited when you share it: every picture
says so in its metadata. Photos and results stay in memory or in a private folder of this app, and are deleted half an
hour after their last use (an hour after the page is closed), or at once with the button below. Programs and language
models can use the app, too: see [the API](?view=api)."""
TABS: dict[str, Any] = {
    "Draw": DrawTab,
    "Compare methods": CompareTab,
    "Play": PlayTab,
    "Redraw": RedrawTab,
}  # beside the editor's, with which each is made


class Page(gr.Blocks):
    """Blocks that answer every error with a sentence, for which Gradio has `{"error": null}`, and fill in defaults."""

    async def process_api(
        self, block_fn: Any, inputs: Any, state: Any = None, request: Any = None, *args: Any, **named: Any
    ) -> Any:
        """As Gradio does, whatever happens in it."""
        if request is not None and getattr(request, "headers", {}).get("x-gradio-user") == "mcp":
            state = SessionState(self)  # one client of Gradio's own serves all who call tools: nothing of one may stay
        if (session := named.get("session_hash")) and session == named.get("event_id"):
            self.state_holder.session_data.pop(session, None)  # it shares nothing, and would push a visitor out
            self.state_holder.time_last_used.pop(session, None)
        try:
            return await super().process_api(block_fn, inputs, state, request, *args, **named)
        except gr.Error:
            raise
        except Exception as e:
            logger.exception("The web app failed.")
            raise gr.Error(FAILED, print_exception=False) from e

    async def call_function(self, *args: Any, **named: Any) -> Any:
        """As Gradio does; the errors of handlers are said in their words."""
        try:
            return await super().call_function(*args, **named)
        except gr.Error:
            raise
        except Exception as e:
            raise gr.Error(told(e), print_exception=False) from e

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **named: Any) -> list[Any]:
        """As Gradio does, but nothing is fetched, no other file is named, and what is left out has its default."""
        words = "An argument is missing or of the wrong kind; `/gradio_api/info` says what each endpoint takes."
        if names_web_address(inputs):
            raise gr.Error(NO_ADDRESS, print_exception=False)
        given = [*inputs, *(getattr(block, "value", None) for block in block_fn.inputs[len(inputs) :])]
        try:
            return await super().preprocess_data(block_fn, given, *args, **named)
        except gr.Error:
            raise
        except Exception as e:
            words = NOT_UPLOADED if isinstance(e, InvalidPathError) else words
            raise gr.Error(words, print_exception=False) from e


def build_app(studio: Studio) -> Any:
    """Build the page and its API: a `gr.Blocks`, to be started with `launch_options`."""
    gr.set_static_paths([samples()])  # not copied to where old files are deleted
    first, builtin = studio.models.first, storage.builtin_models()[0]

    def words(model: Model) -> str:
        found = "the face is found," if model.has_faces else "its middle is"
        return TITLE.format(NAME[not model.has_faces], found, CARD if model.name == builtin else "")

    with Page(title=NAME[not first.has_faces], analytics_enabled=False, delete_cache=(300, TIME_TO_LIVE)) as demo:
        heading = gr.Markdown(words(first), elem_id="title")
        others = []
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("Edit", id="edit"):
                editor = Editor(studio)
                editor.of_model[heading] = words
            for title, tab in TABS.items():
                with gr.Tab(title, elem_id=title.split()[0].lower()):
                    others.append(tab(editor))
        gr.Markdown(FOOTNOTE, elem_classes="quiet")
        editor.tabs, editor.file = tabs, gr.DownloadButton("Download", elem_classes="fetch")
        editor.delete = gr.Button("Delete my data now", size="sm", min_width=180, scale=0)
        editor.connect(demo)
        for each in others:
            each.connect()
        name_endpoints(Api(studio), visit_state())
    with demo.route("Model card", "/model-card", show_in_navbar=False):
        card = storage.builtin_path(builtin) / "README.md"
        gr.Markdown(card.read_text("utf-8").split("---\n", 2)[2])  # without what the Hub reads
    return demo.queue(max_size=64, default_concurrency_limit=4, api_open=False)


def launch_options(*, hosts: Sequence[str] = ()) -> dict[str, Any]:
    """What `gr.Blocks.launch` needs to know: looks, limits, and that nothing is recorded.

    `hosts` are the names by which the app is reached, without a port; none means any.
    """
    here = Path(__file__).parent
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "theme": gr.themes.Soft(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", **fonts),  # none fetched
        "css": (here / "style.css").read_text("utf-8"),
        "js": (here / "page.js").read_text("utf-8"),
        "ssr_mode": False,
        "show_error": False,  # `gr.Error` is shown all the same; other errors may hold paths
        "max_file_size": upload_limit(hosts),
        "max_threads": 100,  # all lanes at once
        "num_workers": 0,  # Gradio's file workers would take uploads without our middleware
        "state_session_capacity": 64,  # what they hold together `run.Memory` limits
        "enable_monitoring": False,
        "run_history": False,
        "mcp_server": importlib.util.find_spec("mcp") is not None,
        "footer_links": ["api", "gradio", "settings"],
        "app_kwargs": {"middleware": [Middleware(Door, hosts=hosts)]},
    }


@contextlib.contextmanager
def private_folder() -> Any:
    """Gradio's folder for what passes through the disk: private, emptied of what is old, and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="stylegan-inversion-app-", ignore_cleanup_errors=True) as root:
        folder = str(Path(root, "files"))
        Path(folder).mkdir()
        shutil.copytree(storage.builtin_path("samples"), Path(root, "samples"))
        before, ended = os.environ.get("GRADIO_TEMP_DIR"), threading.Event()
        os.environ["GRADIO_TEMP_DIR"] = folder

        def tidy() -> None:
            while not ended.wait(60):
                sweep(Path(folder), older_than=2 * TIME_TO_LIVE)

        threading.Thread(target=tidy, name="tidy", daemon=True).start()
        try:
            yield folder
        finally:
            ended.set()
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def start(demo: Any, **options: Any) -> str:
    """Start the server in threads of its own; its address."""
    gradio.mcp.DEFAULT_TEMP_DIR = os.environ["GRADIO_TEMP_DIR"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This MCP server includes a tool that has a gr.State")  # as `api.py` says
        _, url, _ = demo.launch(prevent_thread_lock=True, **options)
    tools = demo.mcp_server_obj
    if tools is not None:  # Gradio's own gives several outputs, and a list of pictures, as one text
        without_state = tools.pop_returned_state

        async def outputs(job: Any) -> list[Any]:
            result = await run_sync(job.result)
            return list(result) if isinstance(result, (list, tuple)) else [result]

        def each_picture(blocks: Any, data: list[Any]) -> list[Any]:
            are_files = lambda part: isinstance(part, list) and part and all(map(is_file_obj_with_meta, part))  # noqa: E731
            return [each for part in without_state(blocks, data) for each in (part if are_files(part) else [part])]

        tools._execute_tool_without_progress = outputs
        tools.pop_returned_state = each_picture
    return str(url).rstrip("/")


def launch(
    model: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    device: str = "auto",
    open_choice: bool | None = None,
    allowed_hosts: Sequence[str] = (),
    tuning_slots: int = 1,
) -> None:
    """Serve the app until it is interrupted.

    Args:
        model: A built-in model, a folder, a repository on the Hugging Face Hub, or a name of the catalogue. `None`
            takes a full-size one that is in the cache, if there is a GPU for it, or else the built-in one.
        host: Address to listen on. "0.0.0.0" is everyone who can reach this machine.
        port: Port to listen on. `None` means the first free one from 7860.
        share: Also open a public link through Gradio's servers.
        device: Where to run; "auto" is the best there is.
        open_choice: Whether visitors may load other models. `None` offers them the catalogue's
            full-size one alone, if only this machine reaches the app.
        allowed_hosts: Names by which a proxy on this machine, such as nginx or a notebook's, passes visitors on, such
            as "demo.example.org". An app that only this machine reaches answers no other name but "localhost"; one
            that listens on other addresses or is shared answers any.
        tuning_slots: How many generators are tuned at the same time.

    Raises:
        ModelNotFoundError: If there is no such model.
        CheckpointError: If a file of the model is damaged.
        ValueError: If `port` is no port.
    """
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"`port` must be in [1, 65535], got {port}.")
    hosts = [*LOOPBACK, host, *allowed_hosts] if is_loopback(host) and not share else []
    gpu = find_gpu()
    device = "cpu" if gpu and device == "auto" else device  # only what `gpu` runs has one
    first = load_model(model or best_cached(device), device=device)
    if gpu:
        gpu.hold(first)
    for name in ("SIGTERM", "SIGHUP", "SIGQUIT"):  # an order to end, a closed terminal, Ctrl-\; Windows has the first
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores the second
            with contextlib.suppress(ValueError):  # only the main thread may
                signal.signal(number, lambda *_: sys.exit(0))  # so that the files are removed
    with private_folder():
        offers = bool(hosts) if open_choice is None else open_choice
        models = Models(first, open=bool(open_choice), offers=offers, device=device)
        studio = Studio(models, tuning_slots=tuning_slots)
        demo = build_app(studio)
        if first.quick and first.has_faces:  # here, so that visitors find the page filled, and borrow no GPU for that
            studio.example(Visit(), EXAMPLES[0])
        studio.gpu = gpu
        try:
            start(demo, server_name=host, server_port=port, share=share, **launch_options(hosts=hosts))
            demo.block_thread()  # as `launch` does not in a REPL or a notebook, whose files would go at once
        finally:
            studio.close()
            demo.close(verbose=False)
