"""Options that would change nothing are refused, not passed over."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from sqcli.refusals.sources import given

WRITES = ("json", "csv", "svg", "html", "resume", "match")
WITH_PART = "with --part, whose rows wait for the whole command"


def refuse_idle(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse parameters that were given on the command line and change nothing.

    A configuration file serves many runs: what one of them does not use is passed over.

    Args:
        why: as in "has no effect without --tasks": what stands after "has no effect".

    Raises:
        InputError: naming the options.
    """
    from spectralquant.errors import InputError

    wanted = set(names)
    idle = [p for p in context.command.params if p.name in wanted and given(context, p.name)]
    if idle:
        flags = [max(p.opts, key=len) for p in idle]
        one = len(flags) == 1
        raise InputError(
            f"{', '.join(flags)} {'has' if one else 'have'} no effect {why}. Leave {'it' if one else 'them'} out."
        )
