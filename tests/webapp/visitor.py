"""What a browser sends, without a browser: a cookie, a session hash, and the events behind the page."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from gradio_client.utils import apply_diff


class Visitor:
    """One who opened the page.

    Calls give what changes on the page, by the label of the component, or by its type where it has none. Updates are
    their new value. Errors are `RuntimeError` with the sentence that is shown.
    """

    def __init__(self, url: str, *, session_hash: str | None = None) -> None:
        self.http = httpx.Client(base_url=url, timeout=120)
        self.http.get("/")
        self.session_hash = session_hash or secrets.token_hex(8)
        config = self.http.get("/config").json()
        self.events = {each["api_name"]: each for each in config["dependencies"]}
        self.components = {each["id"]: each for each in config["components"]}

    def close(self) -> None:
        """Leave."""
        self.http.close()

    def upload(self, path: Path) -> dict[str, Any]:
        """Send a photo; what an image component then has."""
        answer = self.http.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes(), "image/png")})
        answer.raise_for_status()
        return {"path": answer.json()[0], "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def fetch(self, file: dict[str, Any]) -> bytes:
        """A file that was shown."""
        answer = self.http.get(file["url"])
        answer.raise_for_status()
        return answer.content

    def call(self, name: str, *data: Any) -> dict[str, Any]:
        """Run an event to its end."""
        self.join(name, *data)
        *_, (is_last, values) = self.reports(name)
        assert is_last
        return values

    def join(self, name: str, *data: Any) -> None:
        """Put an event into the queue."""
        body = {"data": list(data), "fn_index": self.events[name]["id"], "session_hash": self.session_hash}
        answer = self.http.post("/gradio_api/queue/join", json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {answer.json()['detail']}")

    def reports(self, name: str) -> Iterator[tuple[bool, dict[str, Any]]]:
        """What the event of `join` reports, and whether that is the last."""
        values: list[Any] = []
        address, asked = "/gradio_api/queue/data", {"session_hash": self.session_hash}
        with self.http.stream("GET", address, params=asked) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") not in ("process_generating", "process_completed"):
                    continue
                if not message["success"]:
                    raise RuntimeError(message["output"].get("error"))
                is_last = message["msg"] == "process_completed"
                data = message["output"].get("data") or []
                if not is_last and values:  # after the first report come changes
                    data = [apply_diff(old, change) for old, change in zip(values, data)]
                values = data or values
                yield is_last, self._named(name, values)
                if is_last:
                    return
        raise RuntimeError("The queue ended without an answer.")

    def call_now(self, name: str, *data: Any) -> dict[str, Any]:
        """Run an event that is not queued, such as that of a button to stop."""
        body = {"data": list(data), "fn_index": self.events[name]["id"], "session_hash": self.session_hash}
        answer = self.http.post(f"/gradio_api/run/{name}", json=body)
        if answer.status_code != 200:
            raise RuntimeError(answer.json().get("error"))
        return self._named(name, answer.json()["data"])

    def invert(self, photo: dict[str, Any], *, method: str, align: bool = True, steps: int = 3) -> dict[str, Any]:
        """Press "Invert" and wait."""
        self.join_invert(photo, method=method, align=align, steps=steps)
        *_, (_, values) = self.reports("invert_1")
        return values

    def join_invert(self, photo: dict[str, Any], *, method: str, align: bool = True, steps: int = 3) -> None:
        """Press "Invert" and do not wait."""
        self.call_now("waiting")
        self.join("invert_1", None, None, photo, 0, align, "tiny", method, "w", steps, steps)

    def edit(self, **strengths: float) -> dict[str, Any]:
        """Move sliders, named by their labels."""
        inputs = [self.components[key]["props"].get("label") for key in self.events["redraw"]["inputs"]]
        return self.call("redraw", None, *(strengths.get(str(label).lower(), 0.0) for label in inputs[1:]))

    def _named(self, name: str, values: list[Any]) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for key, value in zip(self.events[name]["outputs"], values):
            component = self.components[key]
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" not in value:
                    continue
                value = value["value"]
            if component["type"] == "html":
                named["html"] = named.get("html", "") + (value or "")
            else:
                named.setdefault(component["props"].get("label") or component["type"], value)
        return named
