"""Packets on a GPU: the block of docs/results.md."""

from __future__ import annotations

from typing import Any

from research.readme.tools import load, table

Row = dict[str, Any]


def cold_speed() -> str:
    """Decoding and encoding, what they replace, other coders on the same symbols, and the first token."""
    result = load("cold-speed-h100")
    rows, s, checks = result["rows"], result["summary"], result["checks"]
    body = [_row(r) for r in rows if r["what"] in ("decode", "encode")]
    text = table(["", "tokens", "packet MB", "ms", "GB/s of fp16"], body)
    others = [
        [r["what"] + (f": {r['coder']}" if "coder" in r else "") + f", {r['model']}", *_row(r)[1:]]
        for r in rows
        if "coder" in r or r["what"].startswith("copy")
    ]
    text += "\n\nOther means (general coders give symbols alone, not keys and values):\n\n"
    text += table(["", "tokens", "packet MB", "ms", "GB/s of fp16"], others)
    contexts = sorted({r["context"] for r in rows if r["what"] == "prefill"})
    names = [
        r["what"]
        for r in rows
        if r["what"].startswith(("prefill", "unpacking", "first token")) and r["context"] == contexts[0]
    ]
    ms = {(r["what"], r["context"]): f"{1000 * r['seconds']:.0f}" for r in rows}
    head = ["ms, 8B shape", *(f"{c:,} tokens" for c in contexts)]
    text += "\n\nUntil the first token, against prefill (random weights, bfloat16):\n\n"
    text += table(head, [[n, *(ms[n, c] for c in contexts)] for n in names])
    wrong = checks["bytes_differ"] + checks["wrong_on_cpu"] + checks["wrong_on_device"]
    text += (
        f"\n\n{result['provenance']['device']}. Decoding 8,192 tokens takes {1000 * s['decode_s_8k']:.0f} ms, a "
        f"{s['prefill_over_decode_8k']:.0f}th of their prefill; KVTC publishes {1000 * s['kvtc_published_s']:.0f} ms for as many of an "
        f"8B model. Prefill that writes the cold tier is {100 * s['prefill_longer_share']:.0f} % longer. Streams cost "
        f"{100 * s['streams_overhead_share']:.2f} % of the bytes. Of {checks['blocks']:,} random blocks {wrong} had other bytes on the CPU and the "
        f"GPU or came back wrong; {checks['damage_refused']} of {checks['damaged']} with one wrong bit (checksums aside) were refused."
    )
    return text + f"\n\nHow it was made: {result['provenance']['made']}"


def _row(r: Row) -> list[str]:
    tokens = f"{r['context']:,}" + (f" x {r['batch']}" if r["batch"] > 1 else "")
    size = f"{r['packet_bytes'] / 1e6:.1f}" if "packet_bytes" in r else "–"
    return [f"{r['what']}, {r['model']}", tokens, size, f"{1000 * r['seconds']:.1f}", f"{r['gb_s']:.1f}"]
