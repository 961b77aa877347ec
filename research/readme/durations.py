"""How long commands take, for the page of commands."""

from __future__ import annotations

from research.durations import COMMANDS
from research.readme.tools import load, table


def durations() -> str:
    """Every command that was measured, with the machine's name; what was not measured is named."""
    result = load("durations")
    rows = [[f"`{r['command']}`", _time(r["cpu_s"]), _time(r["wall_s"])] for r in result["rows"]]
    lines = [table(["command", "computing", "by the clock"], rows), ""]
    lines.append(
        f"{result['provenance']['device']}, one thread, built-in model; other work ran beside it, so *computing* (the time of the "
        "process and its children on a core) is what a quiet machine needs."
    )
    if missing := [name for name in COMMANDS if name not in {r["name"] for r in result["rows"]}]:
        lines.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
