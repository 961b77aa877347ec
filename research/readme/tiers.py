"""README blocks about tiers and caches."""

from __future__ import annotations

from research.readme.tools import load, table


def tiers() -> str:
    """Payload and quality by the harness, resident bytes by real cache objects."""
    result = load("tiers-smollm2-wikitext2")
    body = [
        [
            f"**{r['options']['tier']}**",
            f"{r['payload_ratio']:.1f}",
            f"{r['delta_ppl']:+.3f}",
            f"{r['kl_nats']:.4f}",
            f"{100 * r['top1']:.1f} %",
        ]
        for r in result["rows"]
    ]
    first = table(["tier", "payload ratio", "ΔPPL", "KL, nats/token", "top-1 kept"], body)
    body = [
        [
            r["tier"],
            f"{r['payload_ratio']:.1f}",
            f"**{r['resident_ratio']:.2f}**",
            f"{r['resident_bytes']:,}",
            f"{r['kl_nats']:.4f}",
        ]
        for r in result["resident"]
    ]
    r = result["resident"][0]
    head = [f"cache of {r['context']:,} tokens, {r['dtype']}", "payload ratio", "resident ratio"]
    return first + "\n\n" + table([*head, "bytes held", "KL, nats/token"], body)


def costs() -> str:
    """Time per token, prefill share and process memory on a CPU."""
    result = load("cache-smollm2-cpu")
    p, rows = result["provenance"], result["rows"]
    first = rows[0]
    body = []
    for r in sorted(rows, key=lambda r: ("none", "hot", "warm", "cold").index(r["tier"])):
        coded = "token_s" in r
        body.append(
            [
                {"none": "uncompressed"}.get(r["tier"], r["tier"]),
                f"{1000 * r['token_s']:.0f} ms" if coded else f"{1000 * rows[-1]['dense_token_s']:.0f} ms",
                f"{r['token_ratio']:.2f}x" if coded else "1x",
                f"{100 * r['compress_share_of_prefill']:.1f} %" if coded else "–",
                f"{r['peak_memory_bytes'] / 1e6:.0f} MB",
            ]
        )
    out = table(
        [
            f"{p['device']}, {p['threads']} threads, float32",
            f"per token at {first['time_context']:,}",
            "against uncompressed",
            "compressing / prefill",
            f"peak memory, {first['memory_context']:,} tokens",
        ],
        body,
    )
    return out


def drift() -> str:
    """Prose that turns into code."""
    result = load("adaptive-smollm2")
    body = []
    for r in result["rows"]:
        o = r["options"]
        follows = o.get("adaptive_ranks")
        name = f"ranks follow, tolerance {o['tolerance']:g}" if follows else f"as calibrated, step x{o['step_scale']:g}"
        body.append([name, f"{r['payload_ratio']:.1f}", f"{r['kl_nats']:.4f}"])
    log = result["first_window"]
    prose = [e for e in log if e["start"] < result["switches_at"]]
    code = [e for e in log if e["start"] >= result["switches_at"]]
    mean = lambda part, key: sum(e[key] for e in part) / len(part)  # noqa: E731
    note = (
        f"Weighted error over its prediction: {mean(prose, 'drift'):.1f} on prose, {mean(code, 'drift'):.1f} on code; after "
        f"raising {mean(code, 'heads_raised'):.0f} of 180 heads a block {mean(code, 'drift_after'):.1f}, for "
        f"{100 * (mean(code, 'nbytes') / mean(code, 'base_bytes') - 1):.0f} % more bytes (tolerance 2, first window)."
    )
    return table(["1,024 tokens of prose, then 1,024 of code", "payload ratio", "KL, nats/token"], body) + "\n\n" + note
