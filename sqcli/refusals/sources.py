"""Where a parameter's value is from: the command line, a configuration file, or its default."""

from __future__ import annotations

from typing import Any

import typer


def given(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line. A configuration file, which serves many runs, does not count."""
    return _source(context, name) == "COMMANDLINE"


def chosen(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given at all, on the command line or by a configuration file."""
    return _source(context, name) in ("COMMANDLINE", "DEFAULT_MAP")


def flags_win(context: typer.Context, **alternatives: Any) -> tuple[Any, ...]:
    """Values of options that exclude each other, in order: a configuration file's give way (None) to those of the command line."""
    if not any(given(context, name) for name in alternatives):
        return tuple(alternatives.values())
    return tuple(value if given(context, name) else None for name, value in alternatives.items())


def _source(context: typer.Context, name: str) -> str | None:
    source = context.get_parameter_source(name)
    return None if source is None else source.name
