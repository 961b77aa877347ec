"""README blocks about rivals."""

from __future__ import annotations

from typing import Any

from research.readme.tools import load, table
from spectralquant.evaluation.match import matched
from sqcli.figures import shown
from sqcli.terminal.compare import against, bound_text, row_name

CLAIMS = (
    ("TurboQuant", "turboquant", "12.5 %", "+0.12"),
    ("H2O", "h2o", "20–50 %", "+0.45"),
    ("heavy hitter", "heavy_hitter", "10–20 %", "+0.38"),
    ("Scissorhands", "scissorhands", "5–30 %", "+0.82"),
    ("SpectralQuant", "spectral", "3.0 %", "+0.18"),
)


def compare() -> str:
    """All methods at all budgets, sorted by KL."""
    result = load("compare-smollm2-wikitext2")
    good = [r for r in result["rows"] if "failed" not in r]
    body = [_row(r) for r in sorted(good, key=lambda r: r["kl_nats"])]
    head = ["method", "payload ratio", "whole-cache ratio", "ΔPPL", "KL, nats/token", "top-1 kept", "needle"]
    out = table(head, body)
    rows = matched(good, 0.01)
    ours = next(r for r in rows if r["method"] == "spectral cold")
    equal = [[r["method"], bound_text(r), against(ours, r)] for r in rows]
    first = good[0]
    note = (
        f"{first['n_tokens']:,} scored tokens, uncompressed PPL {first['base_ppl']:.2f}; needle: "
        f"{first['needle_trials']} trials at {first['needle_context']:,} tokens."
    )
    return out + "\n\n" + note + "\n\n" + table(["at KL 0.01 nats/token", "payload ratio", "against spectral"], equal)


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
    """Bytes kept and what they cost, budget by budget."""
    return ", ".join(f"{100 / r['payload_ratio']:.1f} % at {r['delta_ppl']:+.2f}" for r in rows)


def eviction() -> str:
    """Long windows, where eviction has more to choose from."""
    result = load("compare-smollm2-8192")
    good = [r for r in result["rows"] if "failed" not in r]
    head = ["method", "payload ratio", "whole-cache ratio", "ΔPPL", "KL, nats/token", "top-1 kept"]
    body = [_row(r)[:6] for r in sorted(good, key=lambda r: r["kl_nats"])]
    return f"{good[0]['n_tokens']:,} scored tokens, uncompressed PPL {good[0]['base_ppl']:.2f}:\n\n" + table(head, body)


def others() -> str:
    """Methods that were measured in a second run."""
    result = load("compare-smollm2-wikitext2-others")
    good = [r for r in result["rows"] if "failed" not in r]
    head = ["method", "payload ratio", "whole-cache ratio", "ΔPPL", "KL, nats/token", "top-1 kept", "needle"]
    return table(head, [_row(r) for r in sorted(good, key=lambda r: r["kl_nats"])])


def _row(r: dict[str, Any]) -> list[str]:
    name = row_name(r)
    return [
        f"**{name}**" if r["method"] == "spectral" else name,
        shown("payload_ratio", r["payload_ratio"]),
        shown("whole_cache_ratio", r["whole_cache_ratio"]),
        f"{r['delta_ppl']:+.3f}",
        f"{r['kl_nats']:.4f}",
        f"{100 * r['top1']:.1f} %",
        "–" if r.get("needle") is None else f"{100 * r['needle']:.0f} %",
    ]
