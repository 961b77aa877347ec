"""The claims this project began with, beside what was measured."""

from __future__ import annotations

from typing import Any

from research.readme.tools import load, table

CLAIMS = (
    ("TurboQuant", "turboquant", "12.5 %", "+0.12"),
    ("H2O", "h2o", "20–50 %", "+0.45"),
    ("heavy hitter", "heavy_hitter", "10–20 %", "+0.38"),
    ("Scissorhands", "scissorhands", "5–30 %", "+0.82"),
    ("SpectralQuant", "spectral", "3.0 %", "+0.18"),
)


def claims() -> str:
    """The claims this project began with, beside what each method's budgets measured."""
    good = [r for r in load("compare-smollm2-wikitext2")["rows"] if "failed" not in r]
    body = []
    for title, method, share, cost in CLAIMS:
        rows = [r for r in good if r["method"] == method and r["options"].get("tier", "cold") == "cold"]
        modes = [mode for mode in ("streaming", "prompt") if any((r.get("mode") or "streaming") == mode for r in rows)]
        measured = [_kept([r for r in rows if (r.get("mode") or "streaming") == mode]) for mode in modes]
        if len(modes) > 1:
            measured = [f"{mode}: {text}" for mode, text in zip(modes, measured, strict=True)]
        body.append([title, f"{share} at {cost}", "; ".join(measured)])
    return table(["method", "claimed: bytes kept at ΔPPL", "measured: bytes kept at ΔPPL"], body)


def _kept(rows: list[dict[str, Any]]) -> str:
    """Bytes kept and what they cost, budget by budget, most bytes first."""
    falling = sorted(rows, key=lambda r: r["payload_ratio"])
    return ", ".join(f"{100 / r['payload_ratio']:.1f} % at {r['delta_ppl']:+.2f}" for r in falling)
