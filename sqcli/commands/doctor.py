"""`sq doctor`: is this machine ready?"""

from __future__ import annotations

import typer

from sqcli.options import Config, Csv, Json, Quiet, Svg


def doctor(json: Json = None, csv: Csv = None, svg: Svg = None, quiet: Quiet = False, config: Config = None) -> None:
    """Check Python, torch, triton, driver, GPU, caches, disk and imports; each line ok, warn or fail with the fix.

    Example: [bold]sq doctor --json -[/bold]
    """
    from rich.table import Table
    from rich.text import Text

    from spectralquant.diagnostics import CHECKS, FAIL, run_checks
    from spectralquant.provenance import provenance
    from spectralquant.results.checks import CheckRow
    from spectralquant.results.files import results_file
    from sqcli.output import Output

    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet)
    table = Table(box=None, padding=(0, 1))
    for name in ("", "check", "found"):
        table.add_column(name, overflow="fold")
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    rows = []
    with output.progress() as bar:
        for done, check in enumerate(run_checks()):
            bar("checking", done + 1, len(CHECKS))
            rows.append(CheckRow(check=check.name, status=check.status, found=check.found, fix=check.fix))
            fix = (f"\n→ {check.fix}", "dim") if check.fix else ""
            table.add_row(Text(check.status, style=colours[check.status]), check.name, Text.assemble(check.found, fix))
    output.show(table)
    output.finish(results_file("doctor", rows, provenance()), title="sq doctor")
    if any(row.status == FAIL for row in rows):
        raise typer.Exit(1)
