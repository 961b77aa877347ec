"""Write the figures of README and docs from the results files: `python -m research.readme.write` (or `make readme`).

Every block between `<!-- NAME -->` and `<!-- /NAME -->` is made here from a JSON under profiles/results, so no figure
is typed by hand; a test fails when a block is out of date.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.readme import notes, picture
from research.readme.architectures import architectures
from research.readme.cold.coder import coder
from research.readme.cold.speed import cold_speed, cold_speed_cpu
from research.readme.durations import durations
from research.readme.generated import counters, generate_speed, generated
from research.readme.headline import sceptic, texts_and_profiles
from research.readme.quality import bounded, bounded_cpu, promise, quality
from research.readme.rivals.claims import claims
from research.readme.rivals.compared import compare, compare_second, eviction, others
from research.readme.rivals.outliers import outliers
from research.readme.rivals.tasks import tasks
from research.readme.scale import scale, scale_predicted, scale_quality
from research.readme.served import served_rows
from research.readme.shortfalls import shortfalls
from research.readme.speed import cuda_costs, gate, growth, headline_rows, index, speed, speed_notes
from research.readme.tiers import costs, hot_rivals, tiers
from research.readme.tools import OPENED, load, table
from research.results.marks import dagger, stale
from research.serving.engine_figures import serving_vllm
from research.serving.figures import serving_codec, serving_hot

ROOT = Path(__file__).resolve().parent.parent.parent


def headline() -> str:
    """The figures that answer the three questions of the first line."""
    s = load("cold-smollm2-wikitext2")["summary"]
    short, long, eight = s["payload_2048"], s["payload_8192_exact16"], s["payload_8192_exact8"]
    mean16, mean8 = (s[f"whole_cache_8192_exact{b}_mean_over_block_cycle"] for b in (16, 8))
    quality = lambda r: f"ΔPPL {r['delta_ppl']:+.3f}, KL {r['kl_nats']:.4f}"  # noqa: E731
    at16, at4 = s["smaller_than_turboquant_at_kl_0.016"], s["smaller_than_turboquant_at_kl_0.004"]
    return table(
        ["figure", "measured", "at"],
        [
            ["payload ratio, 2048-token windows", f"**{short['payload_ratio']:.1f}**", quality(short)],
            ["payload ratio, 8192-token windows", f"**{long['payload_ratio']:.1f}**", quality(long)],
            [
                "whole-cache ratio at 8192, fp16 sinks and window",
                f"**{long['whole_cache_ratio']:.1f}** (mean of a block cycle {mean16:.1f})",
                quality(long),
            ],
            [
                "whole-cache ratio at 8192, int8 sinks and window (`exact_bits=8`)",
                f"**{eight['whole_cache_ratio']:.1f}** (mean of a block cycle {mean8:.1f})",
                quality(eight),
            ],
            [
                "bytes against TurboQuant at KL 0.016",
                f"**≥ {math.floor(10 * at16) / 10:.1f}x smaller**",
                "equal KL",
            ],
            [
                "bytes against TurboQuant at KL 0.004",
                f"**{math.floor(10 * at4) / 10:.1f}x smaller**",
                "equal KL",
            ],
            *texts_and_profiles(),
            *headline_rows(),
            *served_rows(),
        ],
    )


def curve() -> str:
    """All measured points of the built-in model."""
    out = []
    for context in (2048, 8192):
        rows = [r for r in load("cold-smollm2-wikitext2")["rows"] if r["context"] == context]
        body = [
            [
                label(r),
                f"{r['payload_ratio']:.1f}",
                f"{r['whole_cache_ratio']:.1f}",
                f"{r['delta_ppl']:+.3f} ({r['delta_ppl_ci95'][0]:+.3f} … {r['delta_ppl_ci95'][1]:+.3f})",
                f"{r['kl_nats']:.4f}",
                f"{100 * r['top1']:.1f} %",
            ]
            for r in rows
        ]
        title = f"{context}-token windows, {rows[0]['n_tokens']:,} scored tokens, base PPL {rows[0]['base_ppl']:.2f}:"
        out.append(
            title
            + "\n\n"
            + table(
                [
                    "method",
                    "payload ratio",
                    "whole-cache ratio",
                    "ΔPPL (95 % interval)",
                    "KL, nats/token",
                    "top-1 kept",
                ],
                body,
            )
        )
    return "\n\n".join(out)


def needle() -> str:
    """Pass-key retrieval."""
    rows = load("cold-smollm2-wikitext2")["needle"]
    contexts = sorted({r["context"] for r in rows})
    names = list(dict.fromkeys(label(r) for r in rows))
    body = [
        ["uncompressed"]
        + [f"{100 * next(r for r in rows if r['context'] == c)['needle_uncompressed']:.0f} %" for c in contexts]
    ]
    body += [
        [name]
        + [f"{100 * next(r for r in rows if r['context'] == c and label(r) == name)['needle']:.0f} %" for c in contexts]
        for name in names
    ]
    return table([f"needle found, {rows[0]['needle_trials']} trials"] + [f"{c} tokens" for c in contexts], body)


def second() -> str:
    """The second model's curve."""
    result = load("cold-second-model")
    body = [
        [label(r), f"{r['payload_ratio']:.1f}", f"{r['delta_ppl']:+.3f}", f"{r['kl_nats']:.5f}"] for r in result["rows"]
    ]
    return table(
        ["method", "payload ratio", f"ΔPPL (base {result['rows'][0]['base_ppl']:.1f})", "KL, nats/token"], body
    )


def domains() -> str:
    """Four numbers and what adaptive tables change."""
    rows = load("domains-smollm2")["table"]
    name = lambda spec: {"builtin:stdlib": "Python code"}.get(spec, "WikiText prose")  # noqa: E731
    body = []
    for text in dict.fromkeys(r["text"] for r in rows):
        for profile in dict.fromkeys(r["profile"] for r in rows):
            plain, adaptive = (
                next(
                    r["payload_ratio"]
                    for r in rows
                    if (r["text"], r["profile"], r["adaptive_tables"]) == (text, profile, a)
                )
                for a in (False, True)
            )
            body.append(
                [
                    f"{name(text)}, profile from {name(profile)}",
                    f"{plain:.1f}",
                    f"{adaptive:.1f}",
                    f"{100 * (plain / adaptive - 1):+.0f} %",
                ]
            )
    return table([f"payload ratio at KL {rows[0]['kl_nats']:.4f}", "static tables", "adaptive tables", "bytes"], body)


def times() -> str:
    """Calibration stages on both machines, and packets on the CPU."""
    rows = []
    for name in ("calibrate-smollm2-cpu", "calibrate-smollm2-h100"):
        p = load(name)["provenance"]
        stages = p["stages_s"]
        memory = p.get("peak_memory_bytes")
        where = p["device"] + (f", {p['threads']} threads" if "threads" in p else "")
        rows.append(
            [
                where,
                f"{sum(stages.values()):.0f} s",
                "–" if memory is None else f"{memory / 1e9:.1f} GB",
                *(f"{stages[k]:.1f} s" for k in ("capture", "bases", "cold tier")),
            ]
        )
    out = table(
        ["100 steps of 512 tokens, built-in model", "in all", "peak memory", "capture", "bases", "tier, held-out"], rows
    )
    r = load("packet-smollm2-cpu")["rows"][0]
    p = load("packet-smollm2-cpu")["provenance"]
    return out + (
        f"\n\nA packet of {r['context']:,} tokens on {p['device']}, {p['threads']} threads (medians of {r['runs']}): decoding "
        f"**{r['unpack_s']:.2f} s**, computing the prefill again **{r['prefill_s']:.2f} s**, prefill and encoding together "
        f"{r['pack_s']:.2f} s; {r['bytes']:,} bytes in place of {r['bytes'] * r['whole_cache_ratio']:,.0f}."
    )


def spectrum() -> str:
    """Shares alive beside the prototype's."""
    result = load("cold-smollm2-wikitext2")
    rows = [
        [
            f"{r['predicted_ratio']:.0f}:1",
            f"{100 * r['alive_key']:.0f} %",
            f"{100 * r['alive_value']:.0f} %",
            f"{r['importance_r2_key']:.2f} / {r['importance_r2_value']:.2f}",
            f"{result['profile'][key(result['profile'], r['target_ratio'])]['bytes'] / 1e6:.0f} MB",
            f"{result['profile'][key(result['profile'], r['target_ratio'])]['paid_for_after_tokens']:,}",
        ]
        for r in result["spectrum"]
    ]
    return table(
        [
            "predicted ratio",
            "key components kept",
            "value components kept",
            "R² of importance, K / V",
            "profile",
            "paid for after tokens",
        ],
        rows,
    )


def key(mapping: dict[str, Any], ratio: float) -> str:
    """The mapping's key for a ratio, written as an integer or a float."""
    return next(k for k in mapping if float(k) == float(ratio))


def label(row: dict[str, Any]) -> str:
    """A row's method as people say it."""
    from sqcli.terminal.study import method_label

    return method_label(row).replace("spectral", "**spectral**")


BLOCKS = {
    "sceptic": sceptic,
    "headline": headline,
    "curve": curve,
    "needle": needle,
    "second": second,
    "domains": domains,
    "times": times,
    "spectrum": spectrum,
    "tiers": tiers,
    "hot-rivals": hot_rivals,
    "costs": costs,
    "quality": quality,
    "quality-texts": bounded,
    "quality-texts-cpu": bounded_cpu,
    "quality-rule": promise,
    "compare": compare,
    "compare-second": compare_second,
    "tasks": tasks,
    "outliers": outliers,
    "claims": claims,
    "eviction": eviction,
    "others": others,
    "speed": speed,
    "speed-notes": speed_notes,
    "growth": growth,
    "cuda-costs": cuda_costs,
    "index": index,
    "gate": gate,
    "architectures": architectures,
    "coder": coder,
    "serving-codec": serving_codec,
    "serving-vllm": serving_vllm,
    "serving-hot": serving_hot,
    "cold-speed": cold_speed,
    "cold-speed-cpu": cold_speed_cpu,
    "durations": durations,
    "generated": generated,
    "shortfalls": shortfalls,
    "generate-speed": generate_speed,
    "counters": counters,
    "scale": scale,
    "scale-predicted": scale_predicted,
    "scale-quality": scale_quality,
    "stale": stale,
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTES = [ROOT / "kernels" / "sqkernels" / name / "NOTES.md" for name in notes.FILES]


def render(text: str, blocks: dict[str, Callable[[], str]] = BLOCKS) -> str:
    """`text` with all its blocks made anew.

    Raises:
        ValueError: the text has a block that nothing makes.
    """
    named = re.findall(r"<!-- ([a-z-]+) -->", text)
    if unknown := set(named) - set(blocks):
        raise ValueError(f"unknown blocks: {sorted(unknown)}")
    for name in named:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda m, name=name: m[1] + _marked(blocks[name]) + "\n" + m[2], text)
    return text


def _marked(block: Callable[[], str]) -> str:
    """The block, and which of its files are stale."""
    OPENED.clear()
    text = block()
    return text + dagger(OPENED)


def main() -> None:
    """Rewrite README.md, its picture, the pages under docs/ and the kernels' notes in place."""
    from spectralquant.files import write_text

    for path, blocks in (*((p, BLOCKS) for p in PAGES), *((p, notes.BLOCKS) for p in NOTES)):
        write_text(path, render(path.read_text(encoding="utf-8"), blocks))
    write_text(picture.FILE, picture.picture())


if __name__ == "__main__":
    main()
