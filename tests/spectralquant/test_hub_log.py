"""A hub that does not answer is told once, in a sentence."""

import inspect
import logging

from huggingface_hub.utils import _http

from spectralquant.hub_log import AGAIN, LOGGER, quiet_hub


def test_tries_are_told_once_and_other_lines_not(capfd):
    logger, sentences = logging.getLogger(f"{LOGGER}.utils._http"), []
    before = logging.getLogger(LOGGER).handlers
    with quiet_hub(sentences.append):
        logger.warning("'[Errno -2] Name or service not known' thrown while requesting HEAD …")
        logger.warning("%s 1s [Retry 1/5].", AGAIN)
        logger.warning("%s 2s [Retry 2/5].", AGAIN)
    assert len(sentences) == 1 and "--offline" in sentences[0]
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger(LOGGER).handlers is before


def test_the_client_still_says_so():
    """`AGAIN` is what the installed client logs."""
    assert f'"{AGAIN} ' in inspect.getsource(_http._http_backoff_base).replace('f"', '"')
    assert _http.logger.name.startswith(LOGGER)
