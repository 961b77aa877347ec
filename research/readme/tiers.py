"""README blocks about tiers and caches."""

from __future__ import annotations

from typing import Any

from research.readme.tools import is_there, load, missing, table

RATIOS = ("free-3.14", "free-4", "even-4")
BITS = {"free": "bits by head", "even": "even bits, as kernels read fastest"}


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


def hot_rivals() -> str:
    """The hot tier at KIVI's ratios, on both built-in models."""
    body, kivi = [], {}
    for model in ("smollm2", "gemma3"):
        for name in (f"hot-{model}-{ratio}" for ratio in RATIOS):
            if not is_there(name):
                return missing(name)
            for r in load(name)["rows"]:
                if r["method"] == "kivi":
                    kivi[model, str(r["options"])] = r
                elif r["options"].get("tier") == "hot":
                    body.append(_quality_row(r, f"**hot**, {BITS[name.split('-')[2]]}"))
        for (of, _), r in kivi.items():
            if of == model:
                body.append(_quality_row(r, f"KIVI, {r['options']['bits']} bits, groups of {r['options']['group']}"))
    return table(["model", "method", "payload ratio", "KL, nats/token", "top-1 kept"], body)


def _quality_row(r: Any, method: str) -> list[str]:
    return [
        r["model"].removeprefix("builtin:"),
        method,
        f"{r['payload_ratio']:.2f}",
        f"{r['kl_nats']:.4f}",
        f"{100 * r['top1']:.1f} %",
    ]


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
                f"{r['token_ratio']:.2f}x of {1000 * r['dense_token_s']:.0f} ms" if coded else "1x",
                f"{100 * r['compress_share_of_prefill']:.1f} %" if coded else "–",
                f"{r['peak_memory_bytes'] / 1e6:.0f} MB",
            ]
        )
    out = table(
        [
            f"{p['device']}, {p['threads']} threads, float32",
            f"per token at {first['time_context']:,}",
            "against uncompressed, timed in turn",
            "compressing / prefill",
            f"peak memory, {first['memory_context']:,} tokens",
        ],
        body,
    )
    return out
