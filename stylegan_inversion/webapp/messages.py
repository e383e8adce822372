"""Errors in words for visitors."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import torch
from gradio.exceptions import ComponentProcessingError

from stylegan_inversion.errors import (
    CheckpointError,
    DivergedError,
    FaceNotFoundError,
    InvalidImageError,
    ModelNotFoundError,
)

logger = logging.getLogger(__name__)

WRONG_ARGUMENTS = "An argument is missing or of the wrong kind; `/gradio_api/info` says what each endpoint takes."
FAILED = "Something went wrong on the server. Try again, or another photo."
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
        raise gr.Error(FAILED, print_exception=False) from e


class Page(gr.Blocks):
    """Blocks that answer every error with a sentence, for which Gradio has `{"error": null}`, and fill in defaults."""

    async def process_api(self, *args: Any, **named: Any) -> dict[str, Any]:
        """As Gradio does, whatever happens in it."""
        try:
            return await super().process_api(*args, **named)
        except gr.Error:
            raise
        except Exception as e:
            logger.exception("The web app failed.")
            raise gr.Error(FAILED, print_exception=False) from e

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **named: Any) -> list[Any]:
        """As Gradio does, but arguments left out at the end have the defaults that `/gradio_api/info` tells."""
        left_out = block_fn.inputs[len(inputs) :]
        try:
            given = [*inputs, *(block.value for block in left_out)]
            for block, value in zip(block_fn.inputs, given):
                _check_kind(block, value)
            return await super().preprocess_data(block_fn, given, *args, **named)
        except gr.Error as e:
            e.print_exception = False  # a visitor's mistake, and no fault of the app's
            raise
        except Exception as e:
            # Gradio wraps whatever a component raises
            fault = e.__cause__ if isinstance(e, ComponentProcessingError) else e
            if isinstance(fault, (TypeError, ValueError, KeyError)):
                raise gr.Error(WRONG_ARGUMENTS, print_exception=False) from e
            logger.exception("The web app failed.")
            raise gr.Error(FAILED, print_exception=False) from e


def _check_kind(block: Any, value: Any) -> None:
    """Refuse what a component would hand to its function though it never has such a value on the page."""
    if value is None:
        return
    if isinstance(block, (gr.Number, gr.Slider)):
        is_fine = isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
        wanted = "a finite number"
    elif isinstance(block, gr.Checkbox):
        is_fine, wanted = isinstance(value, bool), "true or false"
    elif isinstance(block, (gr.Dropdown, gr.Radio)):
        is_fine, wanted = isinstance(value, (str, int, float)), "one of the choices"
    else:
        return
    if not is_fine:
        raise gr.Error(f"“{block.label}” must be {wanted}, got {str(value)[:80]!r}.", print_exception=False)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _for_visitors(text: str) -> str:
    """An error's sentence, without what only a program can do."""
    text = text.replace(
        "if it is an aligned crop already, pass `align=False` (`--no-align`)",
        "if it is an aligned face already, untick “Find the face” (`align` of the API)",
    )
    return text.split(" In Python:")[0]
