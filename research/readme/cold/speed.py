"""Packets on a GPU: the block of docs/results.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from research.readme.tools import is_there, load, missing, table

Row = Mapping[str, Any]
HEAD = ["", "tokens", "packet MB", "ms", "GB/s of fp16"]
UNTIL = ("prefill", "unpacking", "first token")


def cold_speed() -> str:
    """Decoding and encoding, what they replace, other coders on the same symbols, first tokens, tokens through a cold cache, checks."""
    result = load("cold-speed-h100")
    rows, summary, checks = result["rows"], result["summary"], result["checks"]

    def some(wanted: Callable[[Row], bool]) -> list[list[str]]:
        return [_row(r) for r in rows if wanted(r)]

    parts = [
        table(HEAD, some(lambda r: r["what"] in ("decode", "encode"))),
        "Other means (general coders give symbols alone, not keys and values):",
        table(HEAD, some(lambda r: "coder" in r or r["what"].startswith("copy"))),
        "Until the first token, against prefill (random weights, bfloat16, one sequence):",
        _by_context([r for r in rows if r["what"].startswith(UNTIL) and r["batch"] == 1]),
        "A token after 8,192 tokens (eager; the first one decodes the packet, a worker keeps what it decoded):",
        _tokens([r for r in rows if r["what"].startswith("a token")]),
        _words(result["provenance"]["device"], summary, checks, rows),
        _quality(load("cold-costs-smollm2"), load("serving-codec"), checks["quality"]["quality"]),
        f"How it was made: {result['provenance']['made']}",
    ]
    return "\n\n".join(parts)


def cold_speed_cpu() -> str:
    """Encoding and decoding on two CPU cores."""
    if not is_there("cold-speed-cpu"):
        return missing("cold-speed-cpu")
    result = load("cold-speed-cpu")
    body = [[*_row(r), f"{1e6 * r['seconds'] / r['context']:.0f}"] for r in result["rows"]]
    coder = result["rows"][0]["coder"]
    said = f"{result['provenance']['device']}; range coder: {coder}; products in {result['rows'][0]['products']}."
    return table([*HEAD, "ms per 1,000 tokens"], body) + "\n\n" + said


def _row(r: Row) -> list[str]:
    tokens = f"{r['context']:,}" + (f" x {r['batch']}" if r["batch"] > 1 else "")
    size = f"{r['packet_bytes'] / 1e6:.1f}" if r.get("packet_bytes") else "–"
    what = r["what"] + (f": {r['coder']}" if r.get("coder") else "")
    return [f"{what}, {r['model']}", tokens, size, f"{1000 * r['seconds']:.1f}", f"{r['gb_s']:.1f}"]


def _by_context(rows: list[Row]) -> str:
    contexts = sorted({r["context"] for r in rows})
    ms = {(r["what"], r["context"]): f"{1000 * r['seconds']:.0f}" for r in rows}
    names = dict.fromkeys(r["what"] for r in rows)
    head = ["ms, 8B shape", *(f"{c:,} tokens" for c in contexts)]
    return table(head, [[n, *(ms.get((n, c), "–") for c in contexts)] for n in names])


def _tokens(rows: list[Row]) -> str:
    ms = lambda seconds: f"{1000 * seconds:.1f}"  # noqa: E731
    body = [
        [
            r["what"].removeprefix("a token, "),
            ms(r["seconds"]),
            f"{r['tokens_s']:.1f}",
            *(ms(s) for s in r["stages_s"].values()),
            f"{(r.get('working_bytes') or 0) / 1e6:.0f}",
        ]
        for r in rows
    ]
    return table(["", "ms a token", "tokens/s", "first ms", "slowest of the next 9", "working set MB"], body)


def _words(device: str, s: Row, checks: Mapping[str, Any], rows: list[Row]) -> str:
    b = checks["blocks"]
    wrong = b["bytes_differ"] + b["wrong_on_cpu"] + b["wrong_on_device"]
    return (
        f"{device}. Decoding 8,192 tokens takes {1000 * s['decode_s_8k']:.0f} ms, their prefill {s['prefill_over_decode_8k']:.0f} times as long; "
        f"KVTC publishes {1000 * s['kvtc_published_s']:.0f} ms for as many of an 8B model. Prefill that writes the cold tier is "
        f"{100 * s['prefill_longer_share_8k']:.0f} % longer at 8,192 tokens and {100 * s['prefill_longer_share_32k']:.0f} % at 32,768, until all of it is "
        f"written. Streams cost {100 * s['streams_overhead_share']:.2f} % of the bytes. On two cores of that machine's CPU 1,000 tokens of a 0.5B "
        f"model take {1000 * s['cpu_encode_s_1000_tokens']:.0f} ms to encode and {1000 * s['cpu_decode_s_1000_tokens']:.0f} to decode. Of "
        f"{b['blocks']:,} random blocks {wrong} had other bytes on the CPU and the GPU or came back wrong; of {b['packets_damaged']} packets with one "
        f"wrong bit {b['packets_refused']} were refused by their checksums, and without checksums {b['damage_refused']} (GPU) and "
        f"{b['damage_refused_on_cpu']} (CPU) of {b['damaged']} blocks by the coder alone."
    )


def _own_products(own: Any) -> str:
    """What products of less precision changed on the GPU, in per cent of KL."""
    return f"{100 * (own['kl_float16_over_float32'] - 1):+.2f} and {100 * (own['kl_bfloat16_over_float32'] - 1):+.2f} % of KL"


def _quality(products: Any, serving: Any, own: Any) -> str:
    q, s = products["summary"], serving["summary"]
    model, windows = products["rows"][0]["model"], products["rows"][0]["n_windows"]
    return (
        f"Quality ({model}, {windows} windows of WikiText, {products['provenance']['device']}): products in float16 with float32 sums, as on a GPU, change "
        f"KL by {100 * (q['kl_float16_over_float32'] - 1):+.2f} % and bytes by {100 * (q['bytes_float16_over_float32'] - 1):+.2f} %, in bfloat16 KL by "
        f"{100 * (q['kl_bfloat16_over_float32'] - 1):+.2f} % (`cold-costs-smollm2.json`); the same on the GPU above, {_own_products(own)}: both are within what two "
        f"windows leave open. In prefixes restored once (24 windows), blocks whose attention nobody saw take {s['neutral_bytes_over_caches_mode_at_kl_0.01']:.2f} times "
        f"the bytes at KL 0.01 where nothing is known of importance, and {s['serving_bytes_over_caches_mode_at_kl_0.01']:.2f} times in the serving mode, which "
        "predicts it from a token's own key and value ([below](#prefixes-that-a-serving-engine-restores))."
    )
