from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")
import stylegan_inversion.webapp.app as module


@pytest.mark.parametrize("ends", ["by itself", "interrupted"])
def test_the_files_go_only_when_the_app_has_ended(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a REPL or a notebook, where Gradio's own `launch` comes back at once."""
    done: list[Any] = []

    def block() -> None:
        done.append("served")
        if ends == "interrupted":
            raise SystemExit(0)

    demo = SimpleNamespace(
        launch=lambda **options: done.append(options["prevent_thread_lock"]),
        block_thread=block,
        close=lambda verbose: done.append("server"),
        sessions=SimpleNamespace(close=lambda: done.append("runs")),
        janitor=SimpleNamespace(close=lambda: done.append("files")),
    )
    monkeypatch.setattr(module, "load_model", lambda *given, **named: None)
    monkeypatch.setattr(module, "Models", lambda *given, **named: None)
    monkeypatch.setattr(module, "build_app", lambda *given, **named: demo)
    monkeypatch.setattr(module.signal, "signal", lambda *given: None)
    if ends == "interrupted":
        with pytest.raises(SystemExit):
            module.launch()
    else:
        module.launch()
    assert done == [True, "served", "runs", "server", "files"]
