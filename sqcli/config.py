"""`--config FILE.toml`: a table per command gives that command's defaults; flags win."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import typer

KINDS = {int: (int, "a whole number"), float: ((int, float), "a number"), bool: (bool, "true or false")}
TEXT = ((str, int, float), "a text")


def take_config(app: typer.Typer, arguments: list[str]) -> dict[str, Any]:
    """Remove `--config FILE` from the arguments and return its tables as defaults of the commands.

    Raises:
        InputError: not readable, an unknown command or option, or a value of the wrong kind.
    """
    stop = arguments.index("--") if "--" in arguments else len(arguments)
    for i, word in enumerate(arguments[:stop]):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] if "=" in word else (arguments[i + 1] if i + 1 < len(arguments) else "")
            del arguments[i : i + (1 if "=" in word else 2)]
            return _read(app, Path(path))
    return {}


def _read(app: typer.Typer, path: Path) -> dict[str, Any]:
    from spectralquant.errors import InputError, did_you_mean
    from spectralquant.files import read_toml

    tables = read_toml(path, "--config")
    known = {c.name: c for c in typer.main.get_command(app).commands.values()}
    functions = {c.name: c.callback for c in app.registered_commands}
    found: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in known or not isinstance(table, dict):
            raise InputError(
                f"--config {path}: [{name}] is not a command; the commands are {', '.join(known)}."
                f"{did_you_mean(name, known)}"
            )
        options = {option.lstrip("-"): p for p in known[name].params for option in (*p.opts, p.name)}
        found[name], hints = {}, get_type_hints(functions[name])
        for key, value in table.items():
            parameter = options.get(key) or options.get(key.replace("-", "_"))
            if parameter is None:
                raise InputError(
                    f"--config {path}: [{name}] has no option {key!r}; it has {', '.join(sorted(options))}."
                )
            found[name][parameter.name] = _checked(f"--config {path}: {key} in [{name}]", hints[parameter.name], value)
    return found


def _checked(where: str, hint: Any, value: Any) -> Any:
    """The value as the command's parser takes it; `hint` is the parameter's annotation, as `list[str] | None`."""
    from spectralquant.errors import InputError

    hint = next((h for h in get_args(hint) if h is not NoneType), hint) if isinstance(hint, UnionType) else hint
    several = get_origin(hint) is list
    kind = get_args(hint)[0] if several else hint
    taken, wanted = KINDS.get(kind, TEXT)
    values = value if several and isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, taken) or isinstance(one, bool) != (kind is bool):
            raise InputError(f"{where} must be {wanted}{', or a list of them' if several else ''}, not {value!r}.")
    given = values if kind in KINDS else [str(one) for one in values]
    return given if several else given[0]
