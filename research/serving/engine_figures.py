"""vLLM with and without the tier: the block of docs/results.md."""

from __future__ import annotations

import statistics
from typing import Any

from research.readme.tools import RESULTS, load, table

NAMES = {
    "recompute": "computing again",
    "lossless": "the tier, every bit kept",
    "spectral": "the tier, profile for serving",
    "vllm-cpu-memory": "vLLM's tier in CPU memory",
    "vllm-files": "vLLM's tier of files",
    "vllm-tiers": "vLLM's tiers of CPU memory and files",
    "recompute-again": "computing again, another process",
    "engine-cache": "vLLM's own prefix cache",
}
KINDS = ("stored", "storing")
IN_TURNS = "the engines of all ways on one GPU in turns"
PLACES = {
    "alone": "each engine alone on the GPU, one after the other, forth and back",
    "opposite": "the engines side by side in turns again, started in the opposite order",
}


def serving_vllm() -> str:
    """A table a machine, and one of the large shape."""
    parts = [_machine(load("serving-cpu"))]
    if (RESULTS / "serving-h100.json").exists():
        parts.append(_machine(load("serving-h100")))
    if (RESULTS / "serving-decode-h100.json").exists():
        parts.append(_places(load("serving-decode-h100")))
    if (RESULTS / "serving-soak.json").exists():
        parts.append(_soak(load("serving-soak")))
    return "\n\n".join(parts)


def _soak(result: Any) -> str:
    s = result["summary"]
    said = "nothing was wrong" if not result["faults"] else "; ".join(result["faults"])
    return (
        f"A server on loopback for {s['seconds'] / 60:.0f} minutes, random prefixes over a store that holds a third of them: {s['requests']:,.0f} "
        f"requests, {100 * s['hit_share']:.1f} % hit ({100 * s['plain_lru_hit_share']:.1f} % with a plain list of the prefixes used least "
        f"recently), memory {100 * s['memory_growth']:+.1f} % from the first quarter to the end: {said}."
    )


def _machine(result: Any) -> str:
    rows = [row for row in result["rows"] if "/" not in row["way"]]
    large, decode, ranks, floor = (
        [row.updated(way=row["way"].removeprefix(name)) for row in result["rows"] if row["way"].startswith(name)]
        for name in ("8b/", "8b-decode/", "tp2/", "floor/")
    )
    parts = [_small(result, rows)] if rows else []
    if floor:
        parts.append(_floor(floor, result["summary"]))
    elif rows and result["engine"].get("cuda"):
        parts.append("How often texts differ that vLLM's own tiers restored was not measured.")
    if large:
        parts.append(_large(large))
    if decode:
        parts.append(_decode(decode, result["summary"]))
    if ranks:
        parts.append(_ranks(ranks))
    if result.get("faults"):
        parts.append("What the check found: " + "; ".join(result["faults"]) + ".")
    return "\n\n".join(parts)


def _small(result: Any, rows: list[Any]) -> str:
    first, engine = rows[0], result["engine"]
    title = (
        f"vLLM {engine['vllm']}, {engine['device']}, the built-in model: {first['prompts']} prompts share {first['prefix_tokens']:,} tokens; a "
        "second process restores them. Times to the first token are medians in seconds, each prompt alone:"
    )
    longs = list(first.get("long_first_token_s") or {})
    head = ["served by", "hits", "same text", "KL, nats", "ratio on disk", "first token"]
    head += [f"{int(n):,} tokens" for n in longs] + (
        ["trace: not computed", "trace: first token"] if first.get("trace_requests") else []
    )
    body = []
    for row in rows:
        line = [NAMES[row["way"]], _share(row, "hit_share"), _share(row, "same_text"), _number(row, "kl_nats", 4)]
        line += [_number(row, "bytes_ratio", 1), _number(row, "first_token_s", 3)]
        line += [_long(row, n) for n in longs]
        if first.get("trace_requests"):
            line += [_share(row, "trace_hit_share"), _number(row, "trace_first_token_s", 3)]
        body.append(line)
    text = title + "\n\n" + table(head, body)
    traced = [row for row in rows if row.get("trace_budget")]
    if traced:
        one = traced[0]
        text += (
            f"\n\nThe trace: {one['trace_requests']} requests over {one['trace_prefixes']} prefixes by Zipf's law, with "
            f"{one['trace_budget'] / 1e6:.0f} MB of disk for each way to store. vLLM's own file tier has no budget; keeping every bit stands for it."
        )
    return text


def _large(rows: list[Any]) -> str:
    longs = list(rows[0].get("long_first_token_s") or {})
    short = rows[0].get("first_token_s") is not None
    head = [
        "8B shape, random weights",
        *([f"{rows[0]['prefix_tokens']:,} tokens, s"] if short else []),
        *(f"{int(n):,} tokens, s" for n in longs),
        *(f"of computing, {int(n) // 1024}K" for n in longs),
    ]
    head.append("ratio on disk")
    body = []
    for row in rows:
        over = row.get("long_over_recompute") or {}
        line = [NAMES[row["way"]], *([_number(row, "first_token_s", 3)] if short else [])]
        line += [_long(row, n) for n in longs]
        line += [f"{over[n]:.2f}" if n in over else "–" for n in longs] + [_number(row, "bytes_ratio", 1)]
        body.append(line)
    return table(head, body) + (
        "\n\nFiles are read from the page cache. The ratio of the large shape is the target its profile was fitted to, not a result."
        + "".join(_stages(row) for row in rows)
    )


def _stages(row: Any) -> str:
    """When, after a request's first lookup, each stage of restoring it ended."""
    return "".join(
        f" {int(n):,} tokens restored by {NAMES[row['way']]}: read after {s['read_after_s']:.3f} s, decoded after "
        f"{s['decoded_after_s']:.3f}, in CPU memory after {s['copied_after_s']:.3f}, of {row['long_first_token_s'][n]:.3f} to the first token; "
        f"the first of its length took {row['long_samples_s'][n][0]:.3f}."
        for n, s in (row.get("long_stages_s") or {}).items()
    )


def _floor(rows: list[Any], summary: Any) -> str:
    """What differs from computing again where nothing is compressed."""
    body = [[NAMES[row["way"]], _share(row, "same_text"), _number(row, "kl_nats", 5)] for row in rows[1:]]
    same, kl = (summary[f"lossless_{name}"] for name in ("same_text_as_engine_cache", "kl_from_engine_cache_nats"))
    return (
        f"How far that is from computing again where no codec has a part, {rows[0]['prompts']} such prompts:\n\n"
        + table(["served by", "same text", "KL, nats"], body)
        + f"\n\nThe tier with every bit kept, beside vLLM's own prefix cache (nothing leaves the GPU, and the same tokens are computed): "
        f"{100 * same:.0f} % of the texts are the same, KL {kl:.5f}."
    )


def _places(result: Any) -> str:
    """Decoding by engines that are alone on the GPU, and by engines side by side that were started in the opposite order."""
    parts = []
    for name, how in PLACES.items():
        rows = [
            row.updated(way=way) for row in result["rows"] if (way := row["way"].removeprefix(f"{name}/")) != row["way"]
        ]
        begin = f"{name}_"
        own = {figure.removeprefix(begin): x for figure, x in result["summary"].items() if figure.startswith(begin)}
        if rows:
            parts.append(_decode(rows, own, how))
    return "\n\n".join(parts)


def _decode(rows: list[Any], summary: Any, how: str = IN_TURNS) -> str:
    """Decoding with and without tiers, by engines that took turns."""
    batch, rounds = rows[0]["prompts"], len(rows[0]["decode_samples_tokens_per_s"]["stored"])
    body = [
        [
            NAMES[row["way"]],
            *(
                f"{_middle(row, kind):.0f} ({min(_samples(row, kind)):.0f} … {max(_samples(row, kind)):.0f})"
                for kind in KINDS
            ),
            f"{1e3 * row['decode_step_s']['stored']:.3f}",
            f"{1e3 * row['decode_connector_s']['stored']:.3f}",
        ]
        for row in rows
    ]
    head = [
        "8B shape, random weights",
        "tokens/s, nothing to store",
        "tokens/s, prompts being stored",
        "a step, ms",
        "of it in vLLM's connector, ms",
    ]
    return (
        f"Decoding {batch} sequences behind {rows[0]['prefix_tokens']} tokens each, {how}, {rounds} rounds "
        "(median, least … most):\n\n"
        + table(head, body)
        + f"\n\nOver computing without a tier: {_change(summary, 'decode_over_recompute')} ({_change(summary, 'decode_over_recompute_least')} … "
        f"{_change(summary, 'decode_over_recompute_most')}) with nothing to store, {_change(summary, 'decode_storing_over_recompute')} while the prompts, just computed, are stored; "
        f"over vLLM's own tiers {_change(summary, 'decode_over_vllm_tiers')} and {_change(summary, 'decode_storing_over_vllm_tiers')}. "
        f"Rounds without a tier are {100 * summary['decode_noise']:.1f} % apart."
    )


def _samples(row: Any, kind: str) -> list[float]:
    return row["decode_samples_tokens_per_s"][kind]


def _middle(row: Any, kind: str) -> float:
    return statistics.median(_samples(row, kind))


def _change(summary: Any, name: str) -> str:
    return f"{100 * (summary[name] - 1):+.1f} %"


def _ranks(rows: list[Any]) -> str:
    row = rows[-1]
    longs = "".join(
        f" A prefix of {int(n):,} tokens: {seconds:.2f} s to the first token, {row['long_over_recompute'][n]:.2f} times as long as computing it."
        for n, seconds in (row.get("long_first_token_s") or {}).items()
    )
    return (
        f"Two ranks (`--tensor-parallel-size 2`, 8B shape, random weights, every bit kept): {row['prompts']} prompts that share "
        f"{row['prefix_tokens']:,} tokens, {_share(row, 'hit_share')} of the chunks restored, {_share(row, 'same_text')} of the texts the "
        f"same (KL {_number(row, 'kl_nats', 5)}). A packet holds the heads of both ranks.{longs}"
    )


def _long(row: Any, length: str) -> str:
    value = (row.get("long_first_token_s") or {}).get(length)
    return "–" if value is None else f"{value:.2f}"


def _number(row: Any, name: str, digits: int) -> str:
    value = row.get(name)
    return "–" if value is None else f"{value:.{digits}f}"


def _share(row: Any, name: str) -> str:
    value = row.get(name)
    return "–" if value is None else f"{100 * value:.0f} %"
