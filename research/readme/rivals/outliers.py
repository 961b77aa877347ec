"""Rivals on keys with a pair of huge channels."""

from __future__ import annotations

from research.readme.rivals.compared import device_note, failures
from research.readme.tools import RESULTS, load, missing, table
from sqcli.figures import shown
from sqcli.terminal.compare import row_name


def outliers() -> str:
    """Rivals on a model as it is, and on the same model with one pair of key channels much larger."""
    name = "turboquant-outliers"
    if not (RESULTS / f"{name}.json").is_file():
        return missing(name)
    result = load(name)
    good = [r for r in result.rows if not r.failed]
    models = list(dict.fromkeys(r.model for r in good))
    body = []
    for label in dict.fromkeys(r.label for r in good):
        rows = [next((r for r in good if (r.model, r.label) == (model, label)), None) for model in models]
        cells = ["–" if r is None else f"{r.delta_ppl:+.2f}" for r in rows]
        first = next(r for r in rows if r is not None)
        body.append([row_name(first), shown("payload_ratio", first.payload_ratio), *cells])
    names = ["ΔPPL as it is", *(f"ΔPPL, {model.partition(', ')[2]}" for model in models[1:])]
    return "\n\n".join([device_note(result), table(["method", "payload ratio", *names], body), *failures(result)])
