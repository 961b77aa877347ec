"""`--config FILE.toml`: a table per command gives that command's defaults (click's `default_map`); flags win."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from typer import Context

KINDS = {int: (int, "a whole number"), float: ((int, float), "a number"), bool: (bool, "true or false")}
TEXT = ((str, int, float), "a text")


def take_config(context: Context, value: str | None) -> None:
    """Set the defaults of the command (or, before a command, of all); click reads them for the options that follow.

    Raises:
        InputError: not readable, an unknown command or option, or a value of the wrong kind.
    """
    if value is None or context.resilient_parsing:
        return
    tables = _read(context.find_root().command, Path(value))
    chosen = tables if context.parent is None else tables.get(context.info_name or "", {})
    context.default_map = {**(context.default_map or {}), **chosen}


def _read(root: Any, path: Path) -> dict[str, dict[str, Any]]:
    from spectralquant.errors import InputError, did_you_mean
    from spectralquant.files import read_toml

    commands = root.commands
    defaults: dict[str, dict[str, Any]] = {}
    for name, table in read_toml(path, "--config").items():
        if name in commands and not isinstance(table, dict):
            raise InputError(f"--config {path}: {name} must be one table of options, as [{name}] and a line below it.")
        if name not in commands and not isinstance(table, dict):
            raise InputError(
                f"--config {path}: {name} stands outside a table. Put it under its command's, as [calibrate] and below it {name} = …"
            )
        if name not in commands:
            raise InputError(
                f"--config {path}: [{name}] is not a command; the commands are {', '.join(commands)}."
                f"{did_you_mean(name, commands)}"
            )
        hints = get_type_hints(commands[name].callback)
        parameters = [p for p in commands[name].params if p.name in hints and p.name != "config"]
        options = {option.lstrip("-"): p for p in parameters for option in (*p.opts, p.name)}
        defaults[name] = {}
        for key, value in table.items():
            parameter = options.get(key) or options.get(key.replace("-", "_"))
            if parameter is None:
                names = sorted(max(p.opts, key=len).lstrip("-") for p in parameters)
                raise InputError(
                    f"--config {path}: [{name}] has no option {key!r}; it has {', '.join(names)}.{did_you_mean(key, names)}"
                )
            where = f"--config {path}: {key} in [{name}]"
            defaults[name][parameter.name] = _checked(where, hints[parameter.name], value)
    return defaults


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
