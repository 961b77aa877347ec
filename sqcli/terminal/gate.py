"""Verdicts in the terminal, as Markdown, as JUnit XML and as annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from spectralquant.gate.run import Outcome
    from spectralquant.gate.verdict import Verdict

STYLES = {
    "pass": "green",
    "regression": "bold red",
    "inconclusive": "yellow",
    "skipped": "dim",
    "not compared": "yellow",
}
WORST = 5


def gate_view(outcome: Outcome, *, every: bool = True) -> list[RenderableType]:
    """All metrics, then why some did not pass, then one line that sums up."""
    parts: list[RenderableType] = []
    if outcome.mismatch:
        parts.append(Text("These results cannot be compared:\n  " + "\n  ".join(outcome.mismatch), style="yellow"))
    elif every:
        table = Table(box=None, padding=(0, 1, 0, 0))
        for name in ("metric", "baseline", "now", "change", "limit", "verdict"):
            table.add_column(
                name,
                justify="left" if name in ("metric", "verdict") else "right",
                no_wrap=name != "metric",
                overflow="fold",
            )
        for v in outcome.verdicts:
            verdict = Text(v.verdict, style=STYLES[v.verdict])
            table.add_row(v.metric, number(v.baseline), number(v.now), *change_and_limit(v), verdict)
        parts.append(table)
    for v in [] if outcome.mismatch else worst_first(outcome.verdicts):
        parts.append(Text(f"{v.verdict}: ", style=STYLES[v.verdict]) + Text(f"{v.metric}: {v.why}", style="default"))
    parts.append(Text(summary(outcome), style="bold"))
    return parts


def worst_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What did not pass: regressions by how far they exceed their limits, then the rest."""
    bad = [v for v in verdicts if v.verdict == "regression"]
    return sorted(bad, key=lambda v: -v.excess) + [v for v in verdicts if v.verdict == "inconclusive"]


def summary(outcome: Outcome) -> str:
    """`31 pass, 2 regression: FAILED`; a baseline that lacks metrics is named, since those were not judged."""
    counts = outcome.counts()
    said = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    verdict = {0: "PASSED", 1: "FAILED", 3: "INCONCLUSIVE"}[outcome.code]
    new = counts["not compared"]
    return f"{said}: {verdict}" + (f", but the baseline lacks {new} of {len(outcome.verdicts)} metrics" if new else "")


def number(value: float | None) -> str:
    """A figure, short."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def change_and_limit(v: Verdict) -> tuple[str, str]:
    """Relative for times, absolute for figures."""
    if v.change is None:
        return "–", "–"
    if v.p is not None or v.metric.endswith(("/seconds", "/time_over_dense")):
        return f"{100 * v.change:+.1f} %", f"{100 * v.limit:.0f} %"
    return ("0" if v.change == 0 else f"{v.change:+.3g}"), f"{v.limit:.3g}"


def markdown(outcome: Outcome) -> str:
    """For a job's summary page."""
    lines = [f"### sq gate: {summary(outcome)}", ""]
    lines += [f"- {reason}" for reason in outcome.mismatch]
    if not outcome.mismatch:
        lines += ["| metric | baseline | now | change | limit | verdict | why |", "|---|--:|--:|--:|--:|---|---|"]
        shown = worst_first(outcome.verdicts)
        shown += [v for v in outcome.verdicts if v not in shown]
        for v in shown:
            cells = (v.metric, number(v.baseline), number(v.now), *change_and_limit(v), v.verdict, v.why)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def annotations(outcome: Outcome) -> list[str]:
    """`::error` lines for the worst few, and a `::warning` where the baseline lacks metrics."""
    bad = [v for v in worst_first(outcome.verdicts) if v.verdict == "regression"]
    lines = [f"::error title=sq gate: {_escaped(v.metric, ':,')}::{_escaped(v.why)}" for v in bad[:WORST]]
    if outcome.counts()["not compared"]:
        lines.append(f"::warning title=sq gate::{_escaped(summary(outcome))}. Update the baseline.")
    return lines


def _escaped(text: str, more: str = "") -> str:
    """As workflow commands want it."""
    for sign in "%\r\n" + more:
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def junit(outcome: Outcome) -> str:
    """JUnit XML: a case a metric; a regression is a failure, an inconclusive one an error."""
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    suite = TestSuite("sq gate")
    for v in outcome.verdicts:
        case = TestCase(v.metric, classname="sq.gate")
        kind = {"regression": Failure, "inconclusive": Error, "skipped": Skipped, "not compared": Skipped}.get(
            v.verdict
        )
        if kind is not None:
            case.result = [kind(v.why)]
        suite.add_testcase(case)
    xml = JUnitXml("sq gate")
    xml.add_testsuite(suite)
    xml.update_statistics()
    return xml.tostring().decode()
