"""Blocks of docs/results.md on serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research.readme.tools import RESULTS, load, table

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
    """Hot pages in vLLM's engines, on the machines where they were measured."""
    files = (("serving-hot-cpu", _hot), ("serving-hot-h100", _hot), ("serving-hot-8b-h100", _hot_speed))
    parts = [block(load(name)) for name, block in files if (RESULTS / f"{name}.json").exists()]
    return "\n\n".join(parts) or "Not measured at this version's commit."


def _hot(result: Any) -> str:
    rows = result["rows"]
    plain, settings, engine = rows[0]["pages"], result["settings"], result["engine"]
    body = []
    for r in rows:
        kl, top, rates = r.get("kl_nats"), r.get("top1"), r.get("decode_tokens_per_s") or {}
        line = [r["way"], f"{r['pages']:,}", f"{r['pages'] / plain:.2f}"]
        line += ["–" if kl is None else f"{kl:.4f}", "–" if top is None else f"{100 * top:.0f} %"]
        body.append(line + [f"{rate:.1f}" for rate in rates.values()])
    head = [f"vLLM {engine['vllm']}, {engine['device']}: pages of 128 tokens in {settings['space']}"]
    head += ["pages", "capacity", "KL, nats/token", "top-1 kept"]
    page = table(head + (["tokens/s"] if rows[0].get("decode_tokens_per_s") else []), body) + _notes(rows)
    return page + _faults(result)


def _faults(result: Any) -> str:
    return "".join(f"\n\n{fault.removeprefix('8b/')}." for fault in result.get("faults") or ())


def _notes(rows: list[Any]) -> str:
    return "".join(f"\n\n{r['way'].removeprefix('8b/')}: {r['note']}." for r in rows if r.get("note"))


def _hot_speed(result: Any) -> str:
    rows, s, engine = result["rows"], result["settings"], result["engine"]
    plain = next((r["pages"] for r in rows if r["way"] == "8b/bf16 pages"), None)
    batches = sorted({int(b) for r in rows for b in r["decode_tokens_per_s"]})
    body = []
    for r in rows:
        rates = r["decode_tokens_per_s"]
        line = [r["way"].removeprefix("8b/"), f"{r['pages'] * 128:,}", _ratio(plain and r["pages"] / plain, 2)]
        body.append(line + [f"{rates[str(b)]:.0f}" if str(b) in rates else "does not fit" for b in batches])
    head = [
        f"{s['shape']} shape, random weights, vLLM {engine['vllm']}, {engine['device']}",
        "tokens that fit",
        "capacity",
    ]
    return table(head + [f"tokens/s, batch {b}" for b in batches], body) + (
        f"\n\nTokens a second are those of decoding behind prompts of {s['long']:,} tokens, with graphs of decode steps."
        + _notes(rows)
        + _faults(result)
    )
