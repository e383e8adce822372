"""Broken pictures and bombs through the running app, which is a process of its own: what crashes or fills it, shows."""

import collections
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

from PIL import Image  # noqa: E402

from stylegan_inversion.storage import builtin_path  # noqa: E402
from stylegan_inversion.webapp.run import FAILED  # noqa: E402
from tests.attack.pictures import bombs, broken, seeds  # noqa: E402

DEADLINE = 120.0  # seconds; an answer takes a fraction of a second
PICTURE_MEMORY = 300_000_000  # what one may take
SLACK = 250_000_000  # the file, its upload, the crop, and what a busy process keeps
QUICK_BOMBS = (  # each refused, or small
    "PNG with a palette and transparency, 64 Mpx",
    "PNG with 15 MB of EXIF headers",
    "JPEG of 20,000 scans",
    "JPEG with EXIF entries that share 30 kB",
    "WebP, lossless, 268 Mpx",
    "WebP with 65,536 Huffman codes",
)


@dataclass
class App:
    """The app as a process."""

    process: Any  # a Popen; None in the test of this class
    http: "httpx.Client"
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: float = 0.0
    idle: int = 0

    def ask(self, name: str, data: bytes) -> str:
        """Send a picture as a visitor does, and ask for its faces; "answered", or the sentence that refuses it."""
        start = time.monotonic()
        try:
            said = self._ask(name, data)
        except httpx.TimeoutException:
            said = "hang"
        except httpx.HTTPError as e:
            said = f"crash: {e}"
        self.slowest = max(self.slowest, time.monotonic() - start)
        for fault in ("hang", "crash", "status 5", "untyped"):
            self.faults[fault] += said.startswith(fault)
        self.faults["path"] += any(word in said for word in ("Traceback", 'File "', "/tmp", "site-packages"))
        self.answers[said if said == "answered" else "refused"] += 1
        return said

    def _ask(self, name: str, data: bytes) -> str:
        upload = self.http.post("/gradio_api/upload", files={"files": (name, data, "image/png")})
        if upload.status_code != 200:
            return f"status {upload.status_code}"
        photo = {"path": upload.json()[0], "meta": {"_type": "gradio.FileData"}}
        call = self.http.post("/gradio_api/call/faces", json={"data": [photo]})
        if call.status_code != 200:
            return f"status {call.status_code}"
        stream = self.http.get(f"/gradio_api/call/faces/{call.json()['event_id']}")
        if stream.status_code != 200:
            return f"status {stream.status_code}"
        event, _, words = stream.text.strip().rpartition("data: ")
        if event.rstrip().endswith("event: complete"):
            return "answered"
        said = json.loads(words)
        said = said.get("error") if isinstance(said, dict) else said
        return said if isinstance(said, str) and said and FAILED not in said else f"untyped: {stream.text}"

    def peak(self) -> int:
        """The most memory since `rest`, bytes."""
        return self._memory("VmHWM")

    def rest(self) -> int:
        """The memory now; `peak` counts anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    log = tmp_path_factory.mktemp("app") / "log.txt"
    command = [sys.executable, "-m", "tests.webapp.tiny_app"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=-1, stdout=-1, stderr=errors, text=True, cwd=Path(__file__).parents[2]
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, log.read_text()
            with httpx.Client(base_url=url, timeout=DEADLINE) as http:
                yield App(process, http)
            assert process.poll() is None, log.read_text()[-2000:]
            assert "Traceback" not in log.read_text()
        finally:
            process.communicate("", timeout=60)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(builtin_path("samples/sample2.jpg")) as image:
        return image.convert("RGB").resize((96, 72))


REFUSED = 'event: error\ndata: {"error": "The file is empty."}'


@pytest.mark.parametrize(
    ("route", "answer", "fault"),
    [
        ("upload", 500, "status 5"),
        ("events", 500, "status 5"),
        ("events", httpx.RemoteProtocolError("it hung up"), "crash"),
        ("events", httpx.ReadTimeout("too long"), "hang"),
        ("events", 'event: error\ndata: {"error": null}', "untyped"),
        ("events", "event: error\ndata: null", "untyped"),
        ("events", f'event: error\ndata: {{"error": "{FAILED}"}}', "untyped"),
        ("events", 'event: error\ndata: {"error": "/tmp/gradio/x.png is empty"}', "path"),
        ("events", REFUSED, ""),
        ("events", "event: complete\ndata: []", ""),
    ],
)
def test_faults_are_noticed(route: str, answer: int | str | Exception, fault: str) -> None:
    def handle(request: "httpx.Request") -> "httpx.Response":
        last = request.url.path.rpartition("/")[2]
        if last == route:
            if isinstance(answer, Exception):
                raise answer
            return httpx.Response(answer) if isinstance(answer, int) else httpx.Response(200, text=answer)
        return httpx.Response(200, json=["/x.png"] if last == "upload" else {"event_id": "events"})

    with httpx.Client(base_url="http://app", transport=httpx.MockTransport(handle)) as http:
        app = App(None, http)
        app.ask("photo.png", b"")
    assert +app.faults == ({fault: 1} if fault else {})
    assert app.answers.total() == 1


@pytest.mark.parametrize(
    ("count", "seed"), [(100, 0), pytest.param(3000, 1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_broken_pictures(count: int, seed: int, app: App, photo: Image.Image) -> None:
    files = seeds(photo)
    for kind, data in files:
        said = app.ask(f"sound.{kind.lower()}", data)
        refused = kind in ("GIF", "TIFF", "BMP")
        assert said.startswith(f"The file is a {kind} image; convert") if refused else said == "answered", (kind, said)
    app.answers.clear()
    names = ("photo.jpg", "photo.png", "photo.webp", "photo.tif", "photo")
    for k, data in enumerate(broken(files, count, seed)):
        app.ask(names[k % len(names)], data)
        assert app.faults.total() == 0, (k, app.faults)
    assert app.answers.total() == count
    assert min(app.answers["answered"], app.answers["refused"]) > count // 10  # both are tried
    assert app.ask("sound.jpg", files[0][1]) == "answered"


@pytest.mark.parametrize(
    "name", [name if name in QUICK_BOMBS else pytest.param(name, marks=pytest.mark.slow) for name in bombs()]
)
def test_bombs(app: App, name: str, photo: Image.Image) -> None:
    sound, data = seeds(photo)[0][1], bombs()[name]()
    assert len(data) <= 20_000_000
    app.ask("sound.jpg", sound)  # loads what the first request loads
    try:
        now = app.rest()
    except OSError:
        pytest.skip("needs Linux' /proc")
    app.idle = app.idle or now
    said = app.ask("bomb", data)
    took = app.peak() - app.idle
    print(f"{name:46} {len(data) / 1e6:6.2f} MB {took / 1e6:5.0f} MB {app.slowest:6.2f} s  {said[:100]}")
    assert app.faults.total() == 0, (app.faults, said)
    assert took < PICTURE_MEMORY + SLACK
    assert app.ask("sound.jpg", sound) == "answered"
