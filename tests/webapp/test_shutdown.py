"""How an app ends while PTI runs: no file stays, and nothing ugly is said."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

httpx = pytest.importorskip("httpx")
pytest.importorskip("gradio")

APP = """
import signal, sys, torch
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests in the background may have them ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
import stylegan_inversion.webapp.app as module
from stylegan_inversion.cli import main
from tests.webapp.tiny_app import tiny_model
module.load_model = lambda *given, **named: tiny_model()
block = module.Page.block_thread
module.Page.block_thread = lambda page: print("ready", flush=True) or block(page)
sys.exit(main(["app", "--port", sys.argv[1]]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("end", "is_running"),
    [
        ("SIGHUP", True),
        ("SIGINT", True),
        pytest.param("SIGTERM", True, marks=pytest.mark.slow),
        pytest.param("SIGHUP", False, marks=pytest.mark.slow),
        pytest.param("SIGINT", False, marks=pytest.mark.slow),
    ],
)
def test_the_end_of_an_app(end: str, is_running: bool, photo: Image.Image, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = tmp_path / "files"
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(files), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, "-c", APP, str(port)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    app = subprocess.Popen(command, env=environment, start_new_session=True, cwd=Path(__file__).parents[2], **pipes)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert app.stdout is not None and any(line == "ready\n" for line in app.stdout)
            photo.save(tmp_path / "photo.png")
            sent = client.post("/gradio_api/upload", files={"files": (tmp_path / "photo.png").read_bytes()}).json()[0]
            assert Path(sent).is_relative_to(files) and Path(sent).exists()
            if is_running:
                steps = ["pti", 1000, 1000, "w", ""]
                asked = {"data": [{"path": sent, "meta": {"_type": "gradio.FileData"}}, 0, False, *steps]}
                event = client.post("/gradio_api/call/invert", json=asked).json()["event_id"]
                with client.stream("GET", f"/gradio_api/call/invert/{event}") as stream:
                    lines = (line for line in stream.iter_lines() if line.startswith("data: ["))
                    assert any(json.loads(line[6:])[2] for line in lines)  # the token comes when it runs
                    time.sleep(0.2)
                    app.send_signal(getattr(signal, end))
                    said, ugly = app.communicate(timeout=60)
            else:
                app.send_signal(getattr(signal, end))
                said, ugly = app.communicate(timeout=60)
        assert app.returncode == 0 and not ugly and "Traceback" not in said, (app.returncode, said, ugly)
        assert not [path for path in files.rglob("*") if path.is_file()]
    finally:
        app.kill()
        app.communicate()
