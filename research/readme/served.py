"""Rows of the README's first table on serving: vLLM's pages in hot codes, and packets that replace a prefill."""

from __future__ import annotations

from typing import Any

from research.readme.tools import down, load

BATCH = "8"


def served_rows() -> list[list[str]]:
    """Capacity and speed of an 8B shape in vLLM beside its own pages; time to the first token of restored tokens."""
    return [*_pages(), *_packets()]


def _pages() -> list[list[str]]:
    large, small = load("serving-hot-8b-h100"), load("serving-hot-h100")
    tokens = large["settings"]["long"]
    by = {r["way"].removeprefix("8b/"): r for r in large["rows"]}
    kl = {r["way"]: r.get("kl_nats") for r in small["rows"]}
    ways = [by.get(f"{name} pages") for name in ("bf16", "fp8", "hot")]
    if None in ways:  # a run that was cut off
        return []
    plain, fp8, hot = ways
    rate = lambda row: row["decode_tokens_per_s"][BATCH]  # noqa: E731
    return [
        [
            "tokens in vLLM's KV cache, in hot codes against bfloat16",
            f"**{down(hot['pages'] / plain['pages'])}x**",
            f"KL {kl['hot pages']:.3f} on SmolLM2; fp8: {fp8['pages'] / plain['pages']:.1f}x, {kl['fp8 pages']:.3f}",
        ],
        [
            f"vLLM's decoding at {tokens // 1024}K, batch {BATCH}, from these against fp8",
            f"**{down(rate(hot) / rate(fp8))}x**",
            f"{rate(hot):,.0f} tokens/s against {rate(fp8):,.0f} (bfloat16 {rate(plain):,.0f})",
        ],
    ]


def _packets() -> list[list[str]]:
    s: dict[str, Any] = load("cold-speed-h100")["summary"]
    return [
        [
            "first token after 8,192 tokens from a packet in memory, against their prefill",
            f"**{down(s['prefill_over_first_token_pinned_8k'])}x**",
            f"{1e3 * s['first_token_pinned_s_8k']:.0f} ms against {1e3 * s['prefill_s_8k']:.0f}",
        ]
    ]
