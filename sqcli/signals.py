"""Ctrl-C and SIGTERM of the process. Standard library alone: this is loaded before anything else."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

INTERRUPTED = 130
AGAIN_AFTER = 0.05  # seconds after an interrupt was dropped
HEARD = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []
_before: dict[int, Any] = {}
_answered = True
_code = INTERRUPTED


class _Interrupt(KeyboardInterrupt):
    """A Ctrl-C that comes again if whatever it hit drops it: a callback of the interpreter, a library's bare `except`."""

    def __del__(self) -> None:
        if not _answered:
            threading.Timer(AGAIN_AFTER, _again).start()


def listen_to_signals() -> None:
    """Let SIGTERM act like Ctrl-C, and let neither be lost, wherever they hit, until `answer_interrupt`."""
    global _answered
    with contextlib.suppress(ValueError):  # outside the main thread
        for number in HEARD:
            handler = signal.signal(number, _interrupt)
            if handler not in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None, *_ours()):
                _before[number] = handler
        _answered = False
        _received.clear()
    atexit.unregister(_ignore)
    atexit.register(_ignore)  # first in, last out: what the interpreter then takes down no signal is to interrupt
    sys.unraisablehook = _unraisable


def answer_interrupt() -> None:
    """From now on a dropped interrupt does not come again: the command is ending."""
    global _answered
    _answered = True


def end_at_next_signal(code: int = INTERRUPTED) -> None:
    """From now on another Ctrl-C ends the process at once, with `code`."""
    global _code
    _code = code
    _hear(_leave)


def stop_listening(code: int) -> None:
    """The command has ended with `code`: handlers of a program that called it are its own again, and the process may end."""
    with contextlib.suppress(ValueError):
        for number, handler in _before.items():
            signal.signal(number, handler)
    _before.clear()
    atexit.unregister(end_at_next_signal)
    atexit.register(end_at_next_signal, code)


def interrupted() -> bool:
    """Whether Ctrl-C was pressed, whatever the code that it hit made of it."""
    return bool(_received)


def _interrupt(number: int, _: object) -> None:
    _received.append(number)
    raise _Interrupt


def _leave(_: int, __: object) -> None:
    os._exit(_code)


def _again() -> None:
    if not _answered:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _ignore() -> None:
    _hear(signal.SIG_IGN)


def _hear(handler: Callable[..., object] | signal.Handlers) -> None:
    """In place of our own handlers only: a program that called `main` may have taken its own back."""
    with contextlib.suppress(ValueError):
        for number in HEARD:
            if signal.getsignal(number) in _ours():
                signal.signal(number, handler)


def _ours() -> tuple[Callable[..., object], ...]:
    return _interrupt, _leave


def _unraisable(hook) -> None:
    """The interpreter drops what callbacks raise, and says so; of an interrupt it need not: it comes again."""
    if not issubclass(hook.exc_type, _Interrupt):
        sys.__unraisablehook__(hook)
