"""What the model hub's client logs while it tries again: one sentence of ours in place of two lines a try."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

LOGGER = "huggingface_hub"
AGAIN = "Retrying in"


class _OneSentence(logging.Handler):
    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__()
        self.report = report
        self.said = False

    def emit(self, record: logging.LogRecord) -> None:
        if AGAIN in record.getMessage() and not self.said:
            self.said = True
            self.report(
                "The hub does not answer; trying again for up to half a minute. --offline (or HF_HUB_OFFLINE=1) never asks it."
            )


@contextlib.contextmanager
def quiet_hub(report: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Inside, the hub's client logs nothing; the first time that it tries again, `report` gets a sentence."""
    logger = logging.getLogger(LOGGER)
    before, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_OneSentence(report)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate
