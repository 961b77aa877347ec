"""What the README's `sq generate` line gains, and what a call of `generate` gets on a GPU."""

from __future__ import annotations

from typing import Any

from research.readme.speed import in_every_layer
from research.readme.tools import load, table

NAMES = {
    "static_compiled": "StaticCache, compiled",
    "dynamic": "DynamicCache, eager",
    "hot": "`GraphedModel`",
    "hot_select": "`GraphedModel`, selecting",
    "warm": "`SpectralCache`, warm",
}


def generated() -> str:
    """One sentence: tokens held, bytes, and how many times smaller than 16 bits."""
    result = load("generate-smollm2-cpu")
    (row,) = result["rows"]
    return (
        f"That `generate` line, with a manual of {row['prompt_tokens']:,} tokens: {row['resident_bytes'] / 1e6:.1f} MB for "
        f"{row['tokens']:,} tokens, {row['resident_ratio']:.1f} times smaller than in 16 bits "
        f"({row['fp16_bytes'] / 1e6:.1f} MB; {row['exact_tokens']} tokens are exact, in float32 on a CPU). With a prompt below 256 "
        "tokens nothing is compressed."
    )


def generate_speed() -> str:
    """A table of decode cells, those that do not fit named, and a sentence a figure of the summary that was measured."""
    result = load("generate-h100")
    methods = list(NAMES)
    rows = sorted(
        (r for r in result["rows"] if r["kind"] == "decode"),
        key=lambda r: (r["context"], r["batch"], methods.index(r["method"])),
    )
    head = ["cache", "context", "batch", "tokens/s", "ms a token", "slowest token", "GB at most"]
    return table(head, [_decoded(r) for r in rows]) + "\n\n" + " ".join(_sentences(result))


def _decoded(row: Any) -> list[str]:
    cell = [NAMES[row["method"]], f"{row['context']:,}", str(row["batch"])]
    if "failed" in row:
        return [*cell, row["failed"], "", "", ""]
    return [
        *cell,
        f"{row['tokens_per_s']:,.0f}",
        f"{1000 * row['batch'] / row['tokens_per_s']:.1f}",
        "" if row.get("stall_ms") is None else f"+{row['stall_ms']:.1f} ms",
        f"{row['peak_memory_bytes'] / 1e9:.1f}",
    ]


def counters() -> str:
    """Bytes that a kernel reads by the count of `bytes_read`, and by the GPU's own counters."""
    result = load("counters-h100")
    body = [
        [
            f"`{r['operator']}`",
            f"{r['context']:,}",
            str(r["batch"]),
            f"{r['counted_bytes'] / 1e6:.1f}",
            f"{r['counter_bytes'] / 1e6:.1f}",
            f"{100 * r['counter_share']:.0f} %",
        ]
        for r in result["rows"]
        if r.get("counter_bytes") is not None
    ]
    head = ["operator", "context", "batch", "counted, MB", "read from memory, MB", "of the count"]
    return (
        table(head, body)
        + f"\n\n{result['provenance']['device']}; what a cache on the chip answers is not read from memory."
    )


def _sentences(result: Any) -> list[str]:
    facts, settings, s = result["provenance"], result["settings"], result["summary"]
    bits = f", {facts['hot_bits']} bits" if "hot_bits" in facts else ""
    out = [
        f"One {facts['device']}, {facts['model'].partition(':')[2]}, random weights{bits}, {settings['new_tokens']} new tokens."
    ]
    if not result["complete"]:
        out.append("The run was cut off: cells that are not in the table, and the largest batch, are not measured.")
    timed = [r for r in result["rows"] if r["kind"] == "first_token" and r.get("ttft_ms")]
    for context in sorted({r["context"] for r in timed}):
        first = {r["method"]: r["ttft_ms"] for r in timed if r["context"] == context}
        if {"dynamic", "hot"} <= set(first):
            out.append(
                f"A second prompt of {context:,} tokens has its first token after {first['hot']:,.0f} ms, and after "
                f"{first['dynamic']:,.0f} ms with DynamicCache."
            )
    most = [r for r in result["rows"] if r["kind"] == "capacity" and "failed" not in r]
    for r in sorted(most, key=lambda r: -r["batch"]):
        out.append(
            f"{NAMES[r['method']]} holds at most {r['batch']} sequences of {r['context']:,} tokens at once, "
            f"{r['tokens_per_s']:,.0f} tokens/s in all."
        )
    for batch in (1, 8):
        share = s.get(f"share_of_whole_step_32k_b{batch}")
        if share is not None:
            out.append(
                f"At 32,768 tokens and batch {batch} `generate` runs at {100 * share:.0f} % of the speed of `sq profile`'s whole step."
            )
    if s.get("first_calls_s") is not None:
        out.append(
            f"First calls of all kernels take a new process {s['first_calls_s']:.1f} s, and "
            f"{s['first_calls_cached_s']:.1f} s when they have been compiled before."
        )
    if s.get("index_kl_nats") is not None:
        share, source = 100 * s["index_bytes_share"], facts["index_study"]
        model = source["model"].partition(":")[2]
        out.append(
            f"Selecting by {share:.1f} % of the bytes, shared among the layers by what each needs, costs a KL of {s['index_kl_nats']:.4f} "
            f"nats a token on {model} (`{source['file']}`)."
        )
        timed = [
            r
            for r in load(source["file"].removesuffix(".json"))["rows"]
            if in_every_layer(r["options"], settings["select"])
        ]
        out += [
            f"The selection that is timed here, {100 * settings['select']:g} % of the tokens in every layer, costs {r['kl_nats']:.4f} there."
            for r in timed
        ]
    return out
