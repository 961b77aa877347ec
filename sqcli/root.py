"""The Typer root: all commands."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Container
from inspect import cleandoc
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
    serve_check,
    show,
    study,
    unpack,
)
from sqcli.ending import warning_line
from sqcli.options import Config
from sqcli.signals import INTERRUPTED

COMMANDS = {
    function.__name__.replace("_", "-"): function
    for function in (
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
    )
}


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"spectralquant-toolkit {version('spectralquant-toolkit')}")
        raise typer.Exit


def _unwrapped(text: str | None) -> str:
    """A docstring with one line a paragraph: the terminal's width breaks lines, not that of the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(text or "").split("\n\n"))


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="With any command: a traceback where one ends in an error.")
    ] = False,
    config: Config = None,
) -> None:
    gc.enable()  # `sqcli.app` turned it off to start quickly


def _only_listed() -> None:
    """Stands for a command of which the list of commands is all that is wanted."""


class _Commands(typer.core.TyperGroup):
    """Hands a Ctrl-C on with the error that it hit; the parser alone would keep its exit code and forget the rest."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Abort from error


def command_line(wanted: Container[str] = COMMANDS) -> typer.core.TyperGroup:
    """The root command. Reading options off the functions is most of a start, so only `wanted` commands get theirs."""
    app = typer.Typer(
        name="sq",
        cls=_Commands,
        help="How small can an LLM's KV cache get on my model and my data, what does it cost, and how fast is it?",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Every command has --help with an example, and takes --json, --csv, --quiet and --config.",
    )
    app.callback()(root)
    for name, function in COMMANDS.items():
        app.command(name, help=_unwrapped(function.__doc__))(function if name in wanted else _only_listed)
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group


def _wanted(arguments: list[str]) -> Container[str]:
    """The commands whose options a command line can need: a --config speaks of any, and so does a shell's completion."""
    of_any = "_SQ_COMPLETE" in os.environ or any(word.startswith("--config") for word in arguments)
    return COMMANDS if of_any else arguments


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code.

    Raises:
        InputError, and whatever else a command raises: `sqcli.ending` turns it into a line and an exit code.
    """
    warnings.formatwarning = warning_line
    code = command_line(_wanted(arguments)).main(arguments, prog_name="sq", standalone_mode=False)
    if code == INTERRUPTED:  # how the parser hands on a Ctrl-C before a command began
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
