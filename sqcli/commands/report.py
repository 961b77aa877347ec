"""`sq report`: results files as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Quiet


def report(
    runs: Annotated[list[Path], typer.Argument(help="Results files (JSON) of compare, calibrate, study, …")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    quiet: Quiet = False,
) -> None:
    """Headline numbers, Pareto curves, tables and provenance on one page that fetches nothing.

    Example: [bold]sq report profiles/results/compare-smollm2-wikitext2.json --out report.html[/bold]
    """
    from spectralquant.results.files import read_results, reading
    from sqcli.html.page import write_page
    from sqcli.html.report import report_page
    from sqcli.output import Output

    output = Output(quiet=quiet, writes={"--out": out})
    results = [(path.stem, read_results(path)) for path in runs]
    with reading(", ".join(map(str, runs))):
        page = report_page(results)
    write_page(out, page)
    output.note(f"Wrote {out}")
