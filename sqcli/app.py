"""The process `sq`: signals, streams and exit codes. Nothing heavy is imported before they are set up."""

from __future__ import annotations

import gc
import sys

from sqcli.signals import INTERRUPTED, answer_interrupt, listen_to_signals, stop_listening
from sqcli.streams import flush_streams, tolerant_streams


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `sq`: run one command and end the process.

    Exit codes: 0 fine, 1 the check found something (never anything else), 2 wrong usage or input, 3 inconclusive, 70 a
    fault of this program, 130 Ctrl-C.
    """
    code = INTERRUPTED
    try:
        gc.disable()  # until a command begins: what is imported and parsed stays, and looking through it is a fifth of a help
        listen_to_signals()
        tolerant_streams()
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        debug = _take_debug(arguments)
        try:
            from sqcli.root import run

            code = run(arguments)
            answer_interrupt()
        except BaseException as error:  # Ctrl-C while importing, and what libraries raise past Exception, too
            from sqcli.ending import exit_code_of

            code = exit_code_of(error, debug=debug)
        code = flush_streams(code)
    except KeyboardInterrupt:  # a second Ctrl-C while the first is being answered
        answer_interrupt()
        code = INTERRUPTED
    finally:
        stop_listening(code)
        gc.enable()  # of a caller that goes on
    sys.exit(code)


def _take_debug(arguments: list[str]) -> bool:
    """Remove `--debug` from the arguments, wherever it stands before a `--`."""
    stop = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:stop]
    arguments[:stop] = [word for word in arguments[:stop] if word != "--debug"]
    return debug


if __name__ == "__main__":
    main()
