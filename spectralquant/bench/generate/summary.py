"""The figures of `sq profile --generate` that say most, each from rows of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def summary_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """Figures by name; None where a row they need was not measured.

    speedup_32k_b8_hot and …_index: tokens a second against the compiled StaticCache. worst_speedup_from_8k: the least of
    all cells where both ran. share_of_whole_step: what a whole step takes by itself over what a token takes through
    `generate`. stall_ms: the slowest token of the hot runs less their median.
    """
    decode = {(r["method"], r["context"], r["batch"]): r for r in rows if r["kind"] == "decode" and "failed" not in r}

    def speedup(method: str, context: int, batch: int) -> float | None:
        ours, theirs = decode.get((method, context, batch)), decode.get(("static_compiled", context, batch))
        return None if ours is None or theirs is None else ours["tokens_per_s"] / theirs["tokens_per_s"]

    def share(batch: int) -> float | None:
        whole = next((r for r in rows if r["kind"] == "whole_step" and r["batch"] == batch), None)
        ours = decode.get(("hot", 32768, batch))
        return None if whole is None or ours is None else whole["step_ms"] * ours["tokens_per_s"] / (1000 * batch)

    def seconds(cache: str) -> float | None:
        return next((r["seconds"] for r in rows if r.get("compilation_cache") == cache), None)

    both = [speedup("hot", c, b) for m, c, b in decode if m == "static_compiled"]
    stalls = [r["stall_ms"] for (m, _, _), r in decode.items() if m == "hot"]
    return {
        "speedup_32k_b8_hot": speedup("hot", 32768, 8),
        "speedup_32k_b8_index": speedup("hot_select", 32768, 8),
        "worst_speedup_from_8k": min((s for s in both if s is not None), default=None),
        "share_of_whole_step_32k_b1": share(1),
        "share_of_whole_step_32k_b8": share(8),
        "stall_ms": max(stalls, default=None),
        "first_calls_s": seconds("empty"),
        "first_calls_cached_s": seconds("filled"),
    }
