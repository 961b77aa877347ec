"""Calls of transformers that may fail with anything: without its log and bars, and with one line of what went wrong."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

import transformers

from spectralquant.hub_log import quiet_hub


@contextlib.contextmanager
def quiet_transformers(report: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Inside, transformers logs nothing but errors and draws no progress bars; `report` hears of a hub that does not answer."""
    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        with quiet_hub(report):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none; ends with a full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."
