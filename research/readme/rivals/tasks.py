"""README blocks about tasks: scores beside those of the uncompressed model."""

from __future__ import annotations

from typing import Any

from research.readme.rivals.compared import device_note, failures
from research.readme.tools import RESULTS, load, missing, table
from spectralquant.evaluation.match import mode_of_row
from sqcli.figures import shown
from sqcli.terminal.compare import row_name

FILES = ("tasks-smollm2-2048", "tasks-gemma3-8192")
NAMES = {
    "needle": "needle",
    "needles": "one of four needles",
    "key_value": "key–value",
    "copying": "copying",
    "turns": "recall over turns",
}


def tasks() -> str:
    """Every task on both built-in models."""
    return "\n\n".join(of_file(name) for name in FILES)


def of_file(name: str) -> str:
    """One file's tasks, a table a protocol; a row a method and budget."""
    if not (RESULTS / f"{name}.json").is_file():
        return missing(name)
    result = load(name)
    good = [r for r in result.rows if not r.failed and r.tasks]
    parts = [device_note(result)]
    for mode in dict.fromkeys(mode_of_row(r) for r in good):
        rows = [r for r in good if mode_of_row(r) == mode]
        titles = list(dict.fromkeys(task for r in rows for task in r.tasks))
        first = rows[0].tasks[titles[0]]
        model = rows[0].model.removeprefix("builtin:")
        head = [f"{model}, {mode}, % right of {first.trials}", "payload ratio", *map(_title, titles)]
        plain = ["uncompressed", "1.0", *(_share(_uncompressed(rows, task)) for task in titles)]
        body = [_row(r, titles) for r in sorted(rows, key=lambda r: -_mean(r, titles)) if r.method != "none"]
        parts.append(table(head, [plain, *body]))
    return "\n\n".join([*parts, *failures(result)])


def _row(r: Any, titles: list[str]) -> list[str]:
    name = row_name(r)
    cells = [_share(r.tasks[task].score) if task in r.tasks else "–" for task in titles]
    return [f"**{name}**" if r.method == "spectral" else name, shown("payload_ratio", r.payload_ratio), *cells]


def _uncompressed(rows: list[Any], task: str) -> float | None:
    return next((r.tasks[task].uncompressed for r in rows if task in r.tasks), None)


def _mean(r: Any, titles: list[str]) -> float:
    return sum(r.tasks[task].score or 0 for task in titles if task in r.tasks) / len(titles)


def _share(x: float | None) -> str:
    return "–" if x is None else f"{100 * x:.0f}"


def _title(task: str) -> str:
    """`key–value, 8,192` of `key_value@8192`."""
    name, _, context = task.partition("@")
    return f"{NAMES.get(name, name)}, {int(context):,}"
