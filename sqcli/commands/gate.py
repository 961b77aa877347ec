"""`sq gate`: verdicts for CI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sqcli.options import Config, Csv, Data, Device, Json, Model, Offline, Quiet, Resume, Svg
from sqcli.typos import one_of, suite_names

if TYPE_CHECKING:
    from spectralquant.gate.run import Outcome
    from sqcli.output import Output


def gate(
    context: typer.Context,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", "-b", help="What to compare with: a results file (JSON).")
    ] = None,
    current: Annotated[
        Path | None, typer.Option("--current", "-c", help="Results of compare, calibrate, profile or a suite.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Measure a suite now: smoke (CPU) or gpu.", **one_of("--run", suite_names)),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Time this install and another in turn: a virtual environment, a Python, or a checkout."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of --against, a sample a side each.")] = 20,
    limits: Annotated[Path | None, typer.Option(help="TOML file that changes how far metrics may move.")] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Show what changes, then write the baseline anew.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Update a baseline although the working tree is dirty.")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Keep what --run measured in this file.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write verdicts as JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write verdicts as Markdown.")] = None,
    resume: Resume = False,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Report, but always exit with 0.")] = False,
    model: Model = "builtin:smollm2-135m",
    data: Data = ("builtin:gate",),
    device: Device = "auto",
    offline: Offline = False,
    json: Json = None,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Compare results with a baseline: pass, regression or inconclusive, metric by metric. Exit codes 0, 1, 3; 2 for wrong
    input.

    Figures that do not depend on the machine get a tolerance; times get statistics (and need --against, or ratios taken in
    one process). A baseline of another GPU, dtype, model, text or schema is inconclusive, never a pass, and with it --run
    measures nothing.

    Example: [bold]sq gate --run smoke --baseline profiles/baselines/smoke.json --junit gate.xml[/bold]
    """
    from spectralquant.errors import InputError
    from spectralquant.files import write_json
    from spectralquant.gate.interleaved import compare_installs
    from spectralquant.gate.limits import Limits, read_limits
    from spectralquant.gate.metrics import metrics_of
    from spectralquant.gate.run import judge, run_suite, write_baseline
    from spectralquant.results.files import read_results
    from sqcli.output import Output
    from sqcli.progress.plans import smoke_plan
    from sqcli.refusals.idle import refuse_idle
    from sqcli.refusals.sources import flags_win, given

    current, run, against = flags_win(context, current=current, run=run, against=against)
    modes = [n for n, v in (("--current", current), ("--run", run), ("--against", against)) if v is not None]
    if len(modes) != 1:
        raise InputError(
            f"Give one of --current FILE, --run SUITE and --against PATH{', not ' + ' and '.join(modes) if modes else ''}."
        )
    if against is None:
        refuse_idle(context, ["rounds"], "without --against")
    else:
        refuse_idle(context, ["baseline"], "with --against, whose other side is the baseline")
    if run is None:
        refuse_idle(context, ["save"], "without --run, whose results it keeps")
        refuse_idle(context, ["model", "data", "device"], "without --run, which measures")
    elif run == "gpu":
        refuse_idle(context, ["model", "data"], "on the suite gpu, which times kernels at a shape of its own")
    if not update_baseline:
        refuse_idle(context, ["force"], "without --update-baseline")
    if run is None and given(context, "resume"):
        raise InputError("--resume is for --run: a file needs none, and --against times two installs in one go.")
    if run is None:  # what a configuration file gives for other runs is passed over
        save = None
    if against is not None:
        baseline, update_baseline = None, given(context, "update_baseline")
    if update_baseline and baseline is None:
        raise InputError("--update-baseline needs --baseline FILE to write, and --run or --current to take it from.")
    if baseline is None and against is None and save is None:
        raise InputError("--baseline FILE is missing: what should be compared with? (--save FILE measures only.)")
    if against is None and (baseline is None or (update_baseline and not baseline.is_file())):
        refuse_idle(
            context, ["junit", "markdown", "json", "csv", "svg", "limits"], "where there is no baseline to compare with"
        )
    writes = {
        "--save": save,
        "--junit": junit,
        "--markdown": markdown,
        "--baseline": baseline if update_baseline else None,
    }
    reads = {
        "--current": current,
        "--limits": limits,
        "--baseline": None if update_baseline else baseline,
    }
    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, writes=writes, reads=reads)
    if run is not None and baseline is not None and not update_baseline and not baseline.exists():
        raise InputError(
            f"There is no baseline {baseline} yet. Check the path, or measure it once: the same command with --update-baseline."
        )
    rules = read_limits(limits) if limits else Limits()
    before = read_results(baseline) if baseline and (not update_baseline or baseline.is_file()) else None
    if before is not None:
        rules.require_matches(metrics_of(before, f"--baseline {baseline}"))
    if against is not None:
        with output.progress() as bar:
            before, now = compare_installs(against, rounds, bar)
    elif run is not None:
        from spectralquant.calibration.options import TIERS
        from spectralquant.gate.suites.smoke import SmokeSettings

        plan = smoke_plan(SmokeSettings().steps, SmokeSettings().window, TIERS) if run == "smoke" else ()
        with output.progress(plan) as bar:
            wanted = None if update_baseline or save is not None else before
            now = run_suite(run, model, data, device, offline, bar, output.note, wanted, resume=resume)
        if not now.get("measured", True):
            output.note("Nothing was measured: the baseline is of something else. --save FILE measures all the same.")
        if save is not None:
            write_json(save, now.as_json())
            output.note(f"Wrote {save}")
    else:
        now = read_results(current)
    if before is None:
        if update_baseline:
            write_baseline(baseline, now, force=force)
            output.note(f"Wrote {baseline}: a new baseline, compared with nothing.")
        return
    outcome = judge(before, now, rules, interleaved=against is not None)
    _report(outcome, output, junit, markdown, json)
    if update_baseline:
        write_baseline(baseline, now, force=force)
        output.note(f"Wrote {baseline}; the table above says what changed.")
        return
    if outcome.code and not exit_zero:
        raise typer.Exit(outcome.code)


def _report(outcome: Outcome, output: Output, junit: Path | None, markdown: Path | None, json: str | None) -> None:
    from spectralquant.files import write_text
    from sqcli.terminal import gate as render

    view = lambda: render.gate_view(outcome, every=not output.quiet)  # noqa: E731
    output.finish(outcome.result(), title="sq gate", view=view)
    if junit is not None:
        write_text(junit, render.junit(outcome))
    if markdown is not None:
        write_text(markdown, render.markdown(outcome))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as page:
            page.write(render.markdown(outcome))
    if os.environ.get("GITHUB_ACTIONS"):
        for line in render.annotations(outcome):
            typer.echo(line, err=json == "-")
