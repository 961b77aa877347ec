"""How a command ends when it raises: one clear line on stderr, and the exit code that says what kind of end it was."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator

from sqcli.signals import INTERRUPTED, answer_interrupt, end_at_next_signal, interrupted

BAD_INPUT, INTERNAL = 2, 70
SURROUNDINGS = {
    getattr(errno, name)
    for name in [
        "EACCES",
        "EPERM",
        "ENOENT",
        "EISDIR",
        "ENOTDIR",
        "ENAMETOOLONG",
        "ELOOP",
        "ENOSPC",
        "EDQUOT",
        "EROFS",
        "EFBIG",
        "EMFILE",
        "ENFILE",
        "EIO",
        "EBUSY",
    ]
    if hasattr(errno, name)
}
_warned: set[type[Warning]] = set()
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def exit_code_of(error: BaseException, *, debug: bool) -> int:
    """Say how the command ended, and return its exit code; with `debug` the traceback first."""
    answer_interrupt()
    if isinstance(error, KeyboardInterrupt) or _name(error) == "Abort" or _code(error) == INTERRUPTED:
        if (line := _ended_before(error)) is not None:
            _say(line)
        return _interrupted()
    usage = hasattr(error, "exit_code") and hasattr(error, "show")  # the parser's: its frames tell nobody anything
    if debug and not usage:
        traceback.print_exception(error)
    if usage:
        if error.format_message().strip():  # none: `sq` alone, which has shown its help
            _say(_usage(error))
        return BAD_INPUT
    if isinstance(error, SystemExit) and error.code in (None, 0, 2, 3, INTERNAL):
        return error.code or 0
    if (line := _what_the_user_can_mend(error)) is not None:
        _say(line)
        return BAD_INPUT
    if _interrupt_inside(error) or interrupted():
        return _interrupted()
    _say(
        f"Internal error: {_name(error)}: {_first_line(error)} ({_place(error)}). This is a fault of sq, not of your input. "
        + ("" if debug else "Add --debug to the command for a traceback, and ")
        + ("Report" if debug else "report")
        + " it to the project with that traceback and the output of `sq doctor`."
    )
    return INTERNAL


def warning_line(message: Warning | str, category: type[Warning], *_: object) -> str:
    """A Python warning as one line. That a model is suspect is said once a run, though every measurement finds it."""
    if category.__name__ == "SuspectModelWarning":
        if category in _warned:
            return ""
        _warned.add(category)
    return f"sq: warning: {_printable(str(message))}\n"


def _what_the_user_can_mend(error: BaseException) -> str | None:
    from spectralquant.errors import SpectralQuantError

    text = str(error).lower()
    if isinstance(error, SpectralQuantError):
        return str(error)
    if isinstance(error, MemoryError) or _name(error) == "OutOfMemoryError":
        return _memory()
    if isinstance(error, RuntimeError) and any(sign in text for sign in NO_MEMORY):
        return _memory()
    if isinstance(error, OSError) and error.errno in SURROUNDINGS:
        return f"{error.filename or 'A file or stream'} cannot be used: {error.strerror}. Check the path, its rights and the disk."
    return None


def _usage(error: BaseException) -> str:
    """What is wrong with a command line, and where its options are listed."""
    text = " ".join(error.format_message().split())
    path = getattr(getattr(error, "ctx", None), "command_path", "sq")
    return f"{text if text.endswith(('.', '?', '!')) else text + '.'} See {path} --help."


def _memory() -> str:
    return "Not enough memory. Use a smaller --window, --span N, a smaller model, or --dtype bfloat16."


def _interrupted() -> int:
    end_at_next_signal()
    unfinished = sys.modules.get("spectralquant.results.unfinished")  # not imported: then nothing was begun
    sys.stderr.write(f"sq: Interrupted. {unfinished.advice() if unfinished else ''}".rstrip() + "\n")
    return INTERRUPTED


def _ended_before(error: BaseException) -> str | None:
    """What had ended the command already when a signal came: torchrun sends SIGTERM to a process that has just lost another."""
    from spectralquant.errors import SpectralQuantError

    return next((str(inner) for inner in _led_to(error) if isinstance(inner, SpectralQuantError)), None)


def _interrupt_inside(error: BaseException) -> bool:
    """Whether a Ctrl-C led to this error (extension modules turn one into errors of their own)."""
    return any(isinstance(inner, KeyboardInterrupt) for inner in _led_to(error))


def _led_to(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from or hit, once each."""
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        yield inner
        seen.add(id(inner))
        inner = inner.__cause__ or inner.__context__


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if any(part in f.filename for part in ("spectralquant", "sqcli", "sqkernels"))]
    last = (ours or frames or [None])[-1]
    return "no place" if last is None else f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"


def _say(text: str) -> None:
    """One line on stderr; control characters, which files may carry into messages, are shown, not obeyed."""
    from rich.console import Console
    from rich.text import Text

    line = Text("sq: ", style="bold red") + Text(_printable(text))
    Console(stderr=True, soft_wrap=True, highlight=False).print(line)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _name(error: BaseException) -> str:
    return type(error).__name__


def _code(error: BaseException) -> object:
    return error.code if isinstance(error, SystemExit) else None
