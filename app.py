"""Starts the web app: `python app.py` here, and by itself on a Hugging Face Space."""

import contextlib
import os

from stylegan_inversion.cli import prepare_process

prepare_process()
with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  # ZeroGPU's, which has to come before PyTorch

from stylegan_inversion.webapp import launch  # noqa: E402  # it loads PyTorch

if __name__ == "__main__":
    launch(os.environ.get("STYLEGAN_INVERSION_MODEL"), host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
