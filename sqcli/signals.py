"""Ctrl-C and SIGTERM of the process. Standard library alone: this is loaded before anything else."""

from __future__ import annotations

import contextlib
import signal
import sys

AGAIN_AFTER = 0.05  # seconds after an interrupt was dropped
_received: list[int] = []
_answered = True


class _Interrupt(KeyboardInterrupt):
    """A Ctrl-C that comes again if whatever it hit drops it: a callback of the interpreter, a library's bare `except`."""

    def __del__(self) -> None:
        if not _answered:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_AFTER)


def listen_to_signals() -> None:
    """Let SIGTERM act like Ctrl-C, and let neither be lost, wherever they hit, until `answer_interrupt`."""
    global _answered
    with contextlib.suppress(ValueError):  # outside the main thread
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, _interrupt)
        _answered = False
        _received.clear()
    sys.unraisablehook = _unraisable


def answer_interrupt() -> None:
    """From now on a dropped interrupt does not come again: the command is ending."""
    global _answered
    _answered = True
    signal.setitimer(signal.ITIMER_REAL, 0)


def end_at_next_signal() -> None:
    """From now on another Ctrl-C ends the process at once."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted() -> bool:
    """Whether Ctrl-C was pressed, whatever the code that it hit made of it."""
    return bool(_received)


def _interrupt(number: int, _: object) -> None:
    _received.append(number)
    raise _Interrupt


def _unraisable(hook) -> None:
    """The interpreter drops what callbacks raise, and says so; of an interrupt it need not: it comes again."""
    if not issubclass(hook.exc_type, _Interrupt):
        sys.__unraisablehook__(hook)
