"""The entropy coder alone, on a GPU: the block of docs/results.md."""

from __future__ import annotations

from research.readme.tools import load, table


def coder() -> str:
    """Best of the launch settings by model and context, zstd beside it."""
    result = load("coder-h100")
    body = []
    for case in dict.fromkeys((r["model"], r["context"], r["batch"]) for r in result["rows"]):
        rows = [r for r in result["rows"] if (r["model"], r["context"], r["batch"]) == case and "decode_s" in r]
        ours = [r for r in rows if r["coder"] == "ours"]
        name = f"{case[0]}, {case[1]:,} tokens" + (f" x {case[2]}" if case[2] > 1 else "")
        best = [f"{max(r[k] for r in ours):.0f}" for k in ("encode_gb_s", "decode_gb_s")]
        zstd = next((r for r in rows if r["coder"].startswith("zstd")), None)
        other = ["–", "–"] if zstd is None else [f"{zstd[k]:.1f}" for k in ("encode_gb_s", "decode_gb_s")]
        size = "–" if zstd is None else f"{zstd['bytes'] / ours[0]['bytes']:.2f}x"
        share = f"{100 * ours[0]['streams_overhead_share']:.2f} %"
        body.append([name, f"{ours[0]['bytes']:,}", share, *best, *other, size])
    head = ["symbols of", "bytes", "overhead of streams", "encode GB/s", "decode GB/s"]
    checks = result["checks"]
    return table([*head, "zstd (CPU) encode", "decode", "zstd's bytes"], body) + (
        f"\n\n{result['provenance']['device']}. GB/s count the fp16 keys and values whose symbols are coded. {checks['blocks']:,} "
        f"random blocks: {checks['bytes_differ']} whose bytes differ between CPU and GPU, {checks['wrong_on_device']} decoded wrongly."
    )
