"""Comparisons as tables: every budget, then all methods at one KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from research.readme.tools import RESULTS, load, missing, table
from spectralquant.evaluation.match import matched, mode_of_row
from spectralquant.methods.eviction.evictor import STREAMING
from sqcli.figures import shown
from sqcli.terminal.compare import against, bound_text, mode_text, row_name

HEAD = ["method", "payload ratio", "whole-cache ratio", "ΔPPL", "KL, nats/token", "top-1 kept"]
EQUAL = ["at KL 0.01 nats/token", "payload ratio", "whole-cache ratio", "against spectral"]
OF_SHARES = (
    "In this file evicting methods keep a share of the tokens read so far, and choose after every block; `sq compare` now gives them a fixed budget of "
    "the whole length and their published once-a-prompt mode."
)


def compare() -> str:
    """All methods at all budgets, sorted by KL."""
    return compared("compare-smollm2-wikitext2")


def compare_second() -> str:
    """The same of the second built-in model."""
    return compared("compare-gemma3-wikitext2")


def compared(name: str) -> str:
    """A comparison, protocol by protocol: every budget, then all methods at one KL."""
    if not (RESULTS / f"{name}.json").is_file():
        return missing(name)
    result = load(name)
    good = [r for r in result.rows if not r.failed]
    parts = [device_note(result), *([OF_SHARES] if good[0].mode is None else [])]
    for mode in dict.fromkeys(mode_of_row(r) for r in good):
        rows = [r for r in good if mode_of_row(r) == mode]
        parts += [_note(rows), table([*HEAD, "needle"], [_row(r) for r in sorted(rows, key=lambda r: r.kl_nats)])]
        equal = [r for r in matched(good, 0.01) if (r.mode or STREAMING) == mode]
        ours = next((r for r in equal if r.method == "spectral cold"), None)
        if ours is not None:
            parts.append(table(EQUAL, [[r.method, bound_text(r), _whole(r), against(ours, r)] for r in equal]))
    return "\n\n".join([*parts, *failures(result)])


def _note(rows: Sequence[Any]) -> str:
    """What the rows of one protocol were measured on."""
    first = rows[0]
    needle = f"; needle: {first.needle_trials} trials at {first.needle_context:,} tokens" if first.needle_trials else ""
    return f"{mode_text(first).capitalize()}. {first.n_tokens:,} scored tokens, uncompressed PPL {first.base_ppl:.2f}{needle}:"


def device_note(result: Any) -> str:
    """Which command on which device."""
    facts = result.provenance
    made = f"`{facts['command']}`, " if facts.get("command") else ""
    return f"{made}{facts['device']}, {facts['created'][:10]}."


def failures(result: Any) -> list[str]:
    """What could not be measured, with the reason."""
    failed = [f"`{r.label or r.method}`: {r.failed}" for r in result.failed]
    return ["Not measured: " + "; ".join(failed) + "."] if failed else []


def eviction() -> str:
    """Long windows, where eviction has more to choose from."""
    return compared("compare-smollm2-8192")


def others() -> str:
    """Methods that were measured in a second run."""
    return compared("compare-smollm2-wikitext2-others")


def _row(r: Any) -> list[str]:
    name = row_name(r)
    return [
        f"**{name}**" if r.method == "spectral" else name,
        shown("payload_ratio", r.payload_ratio),
        shown("whole_cache_ratio", r.whole_cache_ratio),
        f"{r.delta_ppl:+.3f}",
        f"{r.kl_nats:.4f}",
        f"{100 * r.top1:.1f} %",
        "–" if r.needle is None else f"{100 * r.needle:.0f} %",
    ]


def _whole(row: Any) -> str:
    return "" if row.whole_cache_ratio is None else f"{row.whole_cache_ratio:.1f}"
