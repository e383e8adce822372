"""Errors in words for visitors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
import torch

from stylegan_inversion.errors import (
    CheckpointError,
    DivergedError,
    FaceNotFoundError,
    InvalidImageError,
    ModelNotFoundError,
)

logger = logging.getLogger(__name__)

EXPIRED = "This inversion has expired or never existed. Invert the photo again."


@contextmanager
def messages() -> Iterator[None]:
    """Errors a visitor can act on are shown in their own words; of others only the log knows more."""
    try:
        yield
    except (InvalidImageError, FaceNotFoundError, DivergedError, ModelNotFoundError, CheckpointError, ValueError) as e:
        raise gr.Error(_for_visitors(str(e)), print_exception=False) from e
    except gr.Error:
        raise
    except torch.OutOfMemoryError as e:
        logger.warning("Out of memory", exc_info=True)
        raise gr.Error(
            "The GPU has no memory left for this. Try again in a moment, or take e4e or pSp.", print_exception=False
        ) from e
    except Exception as e:
        logger.exception("The web app failed.")
        raise gr.Error("Something went wrong on the server. Try again, or another photo.", print_exception=False) from e


def _for_visitors(text: str) -> str:
    """An error's sentence, without what only a program can do."""
    text = text.replace(
        "if it is an aligned crop already, pass `align=False` (`--no-align`)",
        "if it is an aligned face already, untick “Find the face” (`align` of the API)",
    )
    return text.split(" In Python:")[0]
