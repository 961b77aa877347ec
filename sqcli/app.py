"""The Typer root: commands, the configuration file, and how errors end."""

from __future__ import annotations

import signal
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from sqcli.commands import (
    calibrate,
    compare,
    doctor,
    gate,
    generate,
    inspect,
    pack,
    profile,
    report,
    show,
    study,
    unpack,
)

INTERRUPTED = 130
BAD_INPUT = 2

app = typer.Typer(
    name="sq",
    help="How small can an LLM's KV cache get on my model and my data, what does it cost, and how fast is it?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=r"Every command has --help with an example, and takes --config FILE.toml (a table per command; flags win).",
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"spectralquant-toolkit {version('spectralquant-toolkit')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("doctor")(doctor.doctor)
app.command("calibrate")(calibrate.calibrate)
app.command("show")(show.show)
app.command("profile")(profile.profile)
app.command("compare")(compare.compare)
app.command("gate")(gate.gate)
app.command("report")(report.report)
app.command("pack")(pack.pack)
app.command("unpack")(unpack.unpack)
app.command("generate")(generate.generate)
app.command("inspect")(inspect.inspect)
app.command("study")(study.study)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `sq`. Exit codes: 0 fine, 1 the check found something, 2 wrong input, 3 inconclusive, 130 Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        defaults = _take_config(arguments)
        code = command.main(arguments, prog_name="sq", standalone_mode=False, default_map=defaults)
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _interrupted()
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        sys.exit(_end(error))


def _end(error: Exception) -> int:
    """One clear line for what a user can mend; a traceback only for bugs of ours."""
    if type(error).__name__ == "Abort":
        return _interrupted()
    if hasattr(error, "exit_code") and hasattr(error, "show"):
        error.show()
        return error.exit_code
    if hasattr(error, "exit_code"):
        return error.exit_code
    from spectralquant.errors import SpectralQuantError

    if isinstance(error, SpectralQuantError):
        _say(str(error))
        return BAD_INPUT
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        _say("Not enough memory. Use a smaller --window, --span N, a smaller model, or --dtype bfloat16.")
        return BAD_INPUT
    raise error


def _interrupted() -> int:
    _say("Interrupted. Finished work is kept; the same command with --resume goes on (calibrate, compare).")
    return INTERRUPTED


def _say(text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text("sq: ", style="bold red") + Text(text))


def _take_config(arguments: list[str]) -> dict[str, Any]:
    """Remove `--config FILE` from the arguments and return its tables as defaults of the commands."""
    for i, word in enumerate(arguments):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] if "=" in word else (arguments[i + 1] if i + 1 < len(arguments) else "")
            del arguments[i : i + (1 if "=" in word else 2)]
            return _read_config(Path(path))
    return {}


def _read_config(path: Path) -> dict[str, Any]:
    from spectralquant.errors import InputError

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"--config {path} cannot be read: {error}.") from error
    known = {c.name: c for c in typer.main.get_command(app).commands.values()}
    for name, table in tables.items():
        if name not in known or not isinstance(table, dict):
            raise InputError(f"--config {path}: [{name}] is not a command; the commands are {', '.join(known)}.")
        options = {p.name for p in known[name].params} | {o.lstrip("-") for p in known[name].params for o in p.opts}
        for key in table:
            if key not in options and key.replace("-", "_") not in options:
                raise InputError(
                    f"--config {path}: [{name}] has no option {key!r}; it has {', '.join(sorted(options))}."
                )
    return {name: dict(_default(known[name], *item) for item in table.items()) for name, table in tables.items()}


def _default(command: Any, key: str, value: Any) -> tuple[str, Any]:
    """A parameter's name and default; options that may be repeated take one value as a list of one."""
    for parameter in command.params:
        if key == parameter.name or f"--{key}" in parameter.opts:
            return parameter.name, [value] if parameter.multiple and not isinstance(value, list) else value
    return key.replace("-", "_"), value


if __name__ == "__main__":
    main()
