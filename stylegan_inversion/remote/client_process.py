"""One call of the Hub's client in a process of its own, which `client.py` starts and may end at any moment.

The client's own limits are for each request and each retry: a server that sends a byte a second, or drops every
connection, holds it for ever. A process can be ended. This file is run by its path and imports nothing of the package,
so that it starts quickly. One line of JSON comes in, [function, arguments]; lines {"done", "total"}, in bytes, go out,
and a last line {"result"}, or {"error": class names, "message"}.
"""

import io
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer one request on stdin."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != here]  # its names are not for others
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    function, arguments = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    import huggingface_hub

    if "download" in function:
        arguments["tqdm_class"] = _reporter(answer)
    try:
        result = getattr(huggingface_hub, function)(**arguments)
    except BaseException as e:
        names = [cls.__name__ for cls in type(e).__mro__]
        answer({"error": names, "message": str(e)})
    else:
        answer({"result": str(result)})
    os._exit(0)  # threads that still wait for a server are not waited for


def _end_with_the_parent() -> None:
    sys.stdin.read()  # returns when the parent's end of the pipe is closed, also by its death
    os._exit(1)


def _reporter(answer: Any) -> type:
    """A progress bar that reports bytes instead of drawing."""
    from tqdm.std import tqdm

    class Reporter(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def display(self, *_args: Any, **_options: Any) -> None:
            # The bar of what was received counts twice what the bar of what was written counts.
            if self.unit == "B" and not str(self.desc).startswith("Downloading bytes"):
                answer({"done": int(self.n), "total": int(self.total or 0)})

    return Reporter


if __name__ == "__main__":
    main()
