"""The README's picture of `sq calibrate`, drawn from a results file as the command draws its own screen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.text import Text

from research.readme.tools import load
from research.results.marks import dagger
from sqcli.output import drawn
from sqcli.terminal.calibration import layer_table, tier_table
from sqcli.terminal.outcome import headline

SOURCE = "calibrate-smollm2-cpu"
FILE = Path(__file__).resolve().parent.parent.parent / "profiles" / "pictures" / "calibrate.svg"


def picture() -> str:
    """The picture as SVG; its last line says where its file is stale."""
    result, mark = load(SOURCE), dagger([SOURCE])
    tiers = {}
    for row in result.rows:
        facts = result["tiers"][row["tier"]]
        tiers[row["tier"]] = SimpleNamespace(**{**facts, "measured": row})
    side: Any = SimpleNamespace(tiers=tiers, serving=None)
    layers = result["layers"]
    each = [
        np.array([[[layer[f"{kind}_{what}"]] for layer in layers] for kind in ("key", "value")])
        for what in ("rank", "bits")
    ]
    parts = [
        Text(headline(side), style="bold"),
        tier_table(side),
        layer_table(*each, result["model"]["head_dim"]),
        Text(_footer(result) + mark, style="dim"),
    ]
    return drawn(parts, "sq calibrate --tier all", unique_id="sq-calibrate")


def _footer(result: Any) -> str:
    facts, text = result["provenance"], result["text"]
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in facts["stages_s"].items())
    size = result["profile"]["tensor_bytes"] / 1e6
    return (
        f"\n{result['calibration']['steps']} steps of {text['window']} tokens of {text['source']}; profile {size:.0f} MB\n"
        f"{facts['device']}, {facts['threads']} threads: {stages}"
    )
