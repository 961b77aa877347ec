"""`sq report`: results files as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Config, Csv, Json, Quiet


def report(
    runs: Annotated[list[Path], typer.Argument(help="Results files (JSON) of compare, calibrate, study, …")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    json: Json = None,
    csv: Csv = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Headline numbers, Pareto curves, tables and provenance on one page that fetches nothing.

    --json and --csv list what went into the page: each file with its kind, rows, command and commit.

    Example: [bold]sq report profiles/results/compare-smollm2-wikitext2.json --out report.html[/bold]
    """
    from spectralquant.provenance import provenance
    from spectralquant.results.files import read_results, reading, results_file
    from sqcli.html.page import write_page
    from sqcli.html.report import report_page
    from sqcli.output import Output
    from sqcli.refusals.pages import require_page_name

    output = Output(json_file=json, csv_file=csv, quiet=quiet, writes={"--out": out}, reads={"RUNS": runs})
    require_page_name("--out", out)
    results = [(path, read_results(path)) for path in runs]
    write_page(out, report_page(results, reading))
    for path, result in results:
        if not result.rows:
            output.note(f"{path} has no rows: of it the page shows no table.")
    output.note(f"Wrote {out}")
    rows = [
        {
            "file": str(path),
            "kind": result.kind,
            "rows": len(result.rows),
            **{field: result.provenance.get(field) for field in ("command", "created", "git_commit")},
        }
        for path, result in results
    ]
    output.finish(results_file("report", rows, provenance(), page=str(out)), title="sq report")
