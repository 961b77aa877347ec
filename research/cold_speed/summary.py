"""The figures that the project's goals name, from the study's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
LARGE = "llama-3.1-8b"
NAMES = {8192: "8k", 32768: "32k"}
KVTC_SECONDS = 0.380  # decoding 8K tokens of an 8B model: Staniszewski & Łańcucki 2025, arXiv 2511.01815


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """What the rows that are there give; None where one is not."""
    of = {(r["what"], r["context"]): r for r in rows if r["model"] == LARGE and r["batch"] == 1}

    def value(what: str, tokens: int, key: str = "seconds") -> float | None:
        return of.get((what, tokens), {}).get(key)

    out: dict[str, Any] = {"kvtc_published_s": KVTC_SECONDS}
    for tokens, name in NAMES.items():
        for what in ("decode", "encode"):
            out[f"{what}_gb_s_{name}"] = value(what, tokens, "gb_s")
            out[f"{what}_s_{name}"] = value(what, tokens)
        prefill = out[f"prefill_s_{name}"] = value("prefill", tokens)
        out[f"prefill_over_decode_{name}"] = _over(prefill, out[f"decode_s_{name}"])
        cold = out[f"prefill_cold_s_{name}"] = value("prefill with cold writing", tokens)
        longer = _over(cold, prefill)
        out[f"prefill_longer_share_{name}"] = None if longer is None else longer - 1
        until = _over(value("prefill with cold writing, until the logits", tokens), prefill)
        out[f"prefill_longer_until_logits_share_{name}"] = None if until is None else until - 1
        for key, what in (("pinned", "first token from pinned memory"), ("disk", "first token from disk")):
            first = out[f"first_token_{key}_s_{name}"] = value(what, tokens)
            out[f"prefill_over_first_token_{key}_{name}"] = _over(prefill, first)
        copy = value("copy of keys and values from pinned memory", tokens)
        out[f"copy_over_decode_{name}"] = _over(copy, out[f"decode_s_{name}"])
    out["prefill_longer_share"] = out["prefill_longer_share_8k"]
    first = min(NAMES)
    out["streams_overhead_share"] = value("decode", first, "streams_overhead_share")
    for what in ("encode", "decode"):
        row = next((r for r in rows if r["what"] == f"{what} on two CPU cores"), None)
        out[f"cpu_{what}_s_1000_tokens"] = None if row is None else 1000 * row["seconds"] / row["context"]
    warm = value("a token, warm tier", first)
    for tier in ("warm", "hot", "exact"):
        out[f"token_working_{tier}_over_warm"] = _over(value(f"a token, cold tier kept as {tier}", first), warm)
    return out


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b is not None else None
