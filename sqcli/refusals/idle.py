"""Options that would change nothing are refused, not passed over."""

from __future__ import annotations

from collections.abc import Iterable

import typer


def given(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line. A configuration file, which serves many runs, does not count."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_idle(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse parameters that were given and change nothing.

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
