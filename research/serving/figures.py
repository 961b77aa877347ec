"""Blocks of docs/results.md on serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research.readme.tools import load, table

KLS = ("0.005", "0.01", "0.02")
NAMES = {
    "token ids and attention": "token_ids_and_attention",
    "token ids": "token_ids",
    "serving": "serving",
    "serving, no importance": "serving_no_importance",
}
SAID = {
    "token ids and attention": "token ids and attention (caches)",
    "token ids": "token ids (a connector that sees them)",
    "serving": "positions alone (the serving mode)",
    "serving, no importance": "positions alone, every token alike",
}


def serving_codec() -> str:
    """What knowing less costs, and chunks of other lengths."""
    result = load("serving-codec")
    s, rows = result["summary"], result["rows"]
    head = ["what the codec knows", *(f"ratio at KL {kl}" for kl in KLS)]
    body = [[SAID[n], *(_ratio(s.get(f"{NAMES[n]}_ratio_at_kl_{kl}")) for kl in KLS)] for n in NAMES]
    first = rows[0]["options"]["chunk"]
    same = [r for r in rows if r["options"]["knows"] == "serving" and r["options"]["aim"] == 40]
    chunks = [
        [str(r["options"]["chunk"]), str(r["prompt_tokens"]), f"{r['payload_ratio']:.2f}", f"{r['kl_nats']:.4f}"]
        for r in sorted(same, key=lambda r: r["options"]["chunk"])
    ]
    r = rows[0]
    return "\n\n".join(
        [
            f"{r['model']}, {r['n_windows']} windows of {r['context']:,} tokens of WikiText: {r['prompt_tokens']:,} restored in chunks of "
            f"{first}, {r['n_tokens']:,} scored. Ratios are fp16 bytes of the whole prefix over all its bytes, exact sinks and headers "
            "included:",
            table(head, body),
            _words(s),
            "The serving mode at one rate, by the length of a chunk (tokens are coded one by one, so quality is the same):",
            table(["tokens a chunk", "restored", "ratio", "KL, nats/token"], chunks),
        ]
    )


def _words(s: Mapping[str, Any]) -> str:
    kl = "0.01"
    more = s[f"serving_bytes_over_caches_mode_at_kl_{kl}"]
    neutral = s[f"neutral_bytes_over_caches_mode_at_kl_{kl}"]
    ids, own = s[f"token_ids_gain_at_kl_{kl}"], s[f"own_importance_gain_at_kl_{kl}"]
    return (
        f"At KL {kl} the serving mode takes {_ratio(more, 2)} times the bytes of the mode of caches, and {_ratio(neutral, 2)} times without any importance: "
        f"importance from a token's own key and value (R² {s['importance_r2_key']:.2f} and {s['importance_r2_value']:.2f}) is worth "
        f"{_ratio(own, 2)} times. A connector with token ids (`KVConnectorBase_V1`) would gain {_ratio(ids, 2)} times by predicting from them."
    )


def _ratio(x: float | None, digits: int = 1) -> str:
    return "–" if x is None else f"{x:.{digits}f}"


def serving_hot() -> str:
    """Hot pages in vLLM's CPU engine."""
    result = load("serving-hot-cpu")
    rows = result["rows"]
    plain = rows[0]["pages"]
    body = [
        [
            r["way"],
            f"{r['pages']:,}",
            f"{r['pages'] / plain:.2f}",
            "–" if r.get("kl_nats") is None else f"{r['kl_nats']:.4f}",
            "–" if r.get("top1") is None else f"{100 * r['top1']:.0f} %",
            f"{next(iter(r['decode_tokens_per_s'].values())):.1f}",
        ]
        for r in rows
    ]
    settings = result["settings"]
    return table(
        [
            f"pages of 128 tokens in {settings['space']}",
            "pages",
            "capacity",
            "KL, nats/token",
            "top-1 kept",
            "tokens/s",
        ],
        body,
    )
