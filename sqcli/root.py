"""The Typer root: all commands."""

from __future__ import annotations

import warnings
from inspect import cleandoc
from typing import Annotated

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
    serve_check,
    show,
    study,
    unpack,
)
from sqcli.ending import warning_line
from sqcli.options import Config

INTERRUPTED = 130

app = typer.Typer(
    name="sq",
    help="How small can an LLM's KV cache get on my model and my data, what does it cost, and how fast is it?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command has --help with an example, and takes --json, --csv, --quiet and --config.",
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"spectralquant-toolkit {version('spectralquant-toolkit')}")
        raise typer.Exit


def _unwrapped(text: str | None) -> str:
    """A docstring with one line a paragraph: the terminal's width breaks lines, not that of the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(text or "").split("\n\n"))


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="With any command: a traceback where one ends in an error.")
    ] = False,
    config: Config = None,
) -> None:
    pass


for command in (
    doctor.doctor,
    calibrate.calibrate,
    show.show,
    profile.profile,
    compare.compare,
    gate.gate,
    report.report,
    pack.pack,
    unpack.unpack,
    generate.generate,
    inspect.inspect,
    serve_check.serve_check,
    study.study,
):
    app.command(command.__name__.replace("_", "-"), help=_unwrapped(command.__doc__))(command)


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code.

    Raises:
        InputError, and whatever else a command raises: `sqcli.ending` turns it into a line and an exit code.
    """
    warnings.formatwarning = warning_line
    code = typer.main.get_command(app).main(arguments, prog_name="sq", standalone_mode=False)
    if code == INTERRUPTED:  # how the parser hands on a Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
