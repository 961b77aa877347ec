"""README blocks about kernels, the index and the gate."""

from __future__ import annotations

from typing import Any

from research.readme.tools import down, is_there, load, table
from sqcli.terminal.speed import crossover_text

OURS = ("spectral_decode", "spectral_index_decode")


def speed() -> str:
    """Attention at 32K: time, bytes and speed-up for both selections; whole steps."""
    body = []
    for batch in (1, 8):
        rows = load("profile-h100")["rows"]
        here = [r for r in rows if "failed" not in r and (r["context"], r["batch"]) == (32768, batch)]
        best = next(r for r in here if r["kernel"] == next(o["baseline"] for o in here if o.get("speedup")))
        body.append([f"{best['kernel']} (fastest dense)", str(batch), f"{best['time_us']:.0f} µs", "100 %", "1x"])
        for file, kernel in [*(("profile-h100", k) for k in OURS), ("profile-h100-8percent", "spectral_index_decode")]:
            result = load(file)
            r = next(o for o in result["rows"] if (o["kernel"], o["context"], o["batch"]) == (kernel, 32768, batch))
            share = f"{100 * r['bytes_share_of_dense']:.1f} %"
            name = f"**{kernel}**"
            if kernel == "spectral_index_decode":
                name += f", {100 * result['settings']['share']:g} % selected"
            body.append([name, str(batch), f"{r['time_us']:.0f} µs", share, f"**{down(r['speedup'])}x**"])
    head = ["attention of one token over 32,768", "batch", "time", "bytes read", "against dense"]
    return table(head, body) + "\n\n" + _whole(load("profile-h100-steps"))


def headline_rows() -> list[list[str]]:
    """`generate` over hot codes against the best dense cache: tokens a second, at one context."""
    result = load("generate-h100")
    select = result["settings"]["select"]
    share = f"{100 * select:g} % of the tokens selected ({_cost_of(select)})"
    rows = []
    for batch in (8, 1):
        cells = {
            r["method"]: r
            for r in result["rows"]
            if r["kind"] == "decode" and (r["context"], r["batch"]) == (32768, batch)
        }
        dense = cells["static_compiled"]["tokens_per_s"]
        for method, read in (("hot", "all codes read"), ("hot_select", share)):
            speed = cells[method]["tokens_per_s"]
            said = f"{read}: {speed:,.0f} tokens/s against {dense:,.0f}"
            rows.append(
                [
                    f"`GraphedModel` at 32K, batch {batch}, against a compiled StaticCache",
                    f"**{down(speed / dense)}x**",
                    said,
                ]
            )
    rows += [
        [
            f"a decode step at 32K, batch {r['batch']}, against the fastest dense attention in a CUDA graph",
            f"**{down(r['speedup'])}x**",
            f"all codes read, {r['step_ms']:.1f} ms",
        ]
        for r in reversed(load("profile-h100-steps")["end_to_end"])
        if r["method"] == "spectral_decode" and r["context"] == 32768
    ]
    most = {r["method"]: r for r in result["rows"] if r["kind"] == "capacity" and "failed" not in r}
    if {"hot", "dynamic"} <= set(most):
        ours, dense = most["hot"], most["dynamic"]
        rows.append(
            [
                f"sequences of {ours['context']:,} tokens held at once",
                f"**{ours['batch']}**",
                f"{ours['tokens_per_s']:,.0f} tokens/s in all; DynamicCache: {dense['batch']}, {dense['tokens_per_s']:,.0f} tokens/s",
            ]
        )
    return rows


def in_every_layer(options: dict[str, Any], select: float) -> bool:
    """Whether an index reads this share of the tokens in every layer."""
    return options["share"] == select and "shares" not in options


def _cost_of(select: float) -> str:
    """KL of an index that selects this share of the tokens in every layer, on both built-in models."""
    said = []
    for name, model in (("smollm2", "SmolLM2"), ("gemma3", "Gemma 3")):
        for r in load(f"index-{name}-wikitext2")["rows"]:
            if in_every_layer(r["options"], select):
                said.append(f"{r['kl_nats']:.3f} on {model}")
    return f"KL {', '.join(said)}"


def _whole(result: dict[str, Any]) -> str:
    body = []
    for r in (r for r in result["end_to_end"] if "failed" not in r):
        ours = "speedup" in r
        name = f"**{r['method']}**" if ours else f"{r['method']} (fastest dense)"
        more = [f"{down(r['speedup'])}x", f"{100 * r['share_of_ideal']:.0f} %"] if ours else ["1x", ""]
        row = [name, str(r["batch"]), f"{r['step_ms']:.2f} ms", f"{r['tokens_per_s']:.0f}", *more]
        if row not in body:
            body.append(row)
    return table(
        ["whole decode step, 32,768 tokens", "batch", "time", "tokens/s", "against dense", "of what Amdahl allows"],
        body,
    )


def speed_notes() -> str:
    """The rest of the profile in sentences."""
    result = load("profile-h100")
    rows = [r for r in result["rows"] if "failed" not in r]
    compress = next(r for r in rows if r["kernel"] == "spectral_compress")
    rebuilt = [r for r in rows if r["kernel"] == "spectral_reconstruct"]
    largest = max(rebuilt, key=lambda r: r["bytes_read"])
    decode = next(r for r in rows if (r["kernel"], r["batch"], r["context"]) == ("spectral_decode", 8, 32768))
    peaks = result["peaks"]
    fastest = max(value for name, value in peaks.items() if name.endswith("_tb_per_s"))
    least = decode["bytes_read"] / fastest / 1e6
    told = "read_tb_per_s" in peaks
    alone = f"reads alone at {peaks['read_tb_per_s']:.2f}" if told else "reads alone are faster"
    rate = "at the fastest of these" if told else "in a copy"
    crossings = ", ".join(
        f"{r['kernel']} at batch {r['batch']} {crossover_text(r)}" for r in result["crossover"] if r["batch"] in (1, 8)
    )
    return (
        f"{result['provenance']['device']}, bfloat16 baselines, 8 KV heads of 128 with 4 queries each, {result['settings']['bits']}-bit "
        f"codes, an index of {result['settings']['index_rank']} components, {100 * result['settings']['share']:g} % of the tokens "
        f"selected; a copy runs at {peaks['copy_tb_per_s']:.2f} TB/s here, {alone}. `spectral_decode` at batch 8 takes "
        f"{decode['time_us'] / least:.2f} times what its bytes would {rate}. `spectral_compress` of 128 "
        f"tokens of 32 layers: {compress['time_us']:.0f} µs, {100 * compress['share_of_prefill']:.2f} % of the "
        f"{compress['prefill_us'] / 1000:.1f} ms their linear layers take. `spectral_reconstruct`: "
        f"{largest['tb_per_s']:.2f} TB/s, {peaks['copy_tb_per_s'] / largest['tb_per_s']:.2f} times a copy's time. Faster "
        f"than the fastest dense kernel from … tokens on: {crossings}. {result['telemetry']['verdict']['why'].capitalize()}."
    )


def cuda_costs() -> str:
    """Tiers on a GPU: token time, compression, memory."""
    result = load("cache-smollm2-h100")
    rows = result["rows"]
    first = rows[0]
    body = []
    for r in sorted(rows, key=lambda r: ("none", "hot", "warm", "cold").index(r["tier"])):
        coded = "token_s" in r
        body.append(
            [
                {"none": "uncompressed"}.get(r["tier"], r["tier"]),
                f"{1000 * (r['token_s'] if coded else rows[-1]['dense_token_s']):.1f} ms",
                f"{r['token_ratio']:.2f}x of {1000 * r['dense_token_s']:.1f} ms" if coded else "1x",
                f"{1000 * (r['prefill_s'] if coded else rows[-1]['dense_prefill_s']):.0f} ms",
                f"{100 * (r['prefill_ratio'] - 1):+.0f} %" if coded else "–",
                f"{r['peak_memory_bytes'] / 1e6:.0f} MB",
            ]
        )
    head = [
        f"{result['provenance']['device']}, float32",
        f"per token at {first['time_context']:,}",
        "against uncompressed, timed in turn",
    ]
    return table(
        [
            *head,
            f"prefill of {first['time_context']:,}",
            "longer by",
            f"peak CUDA memory, {first['memory_context']:,} tokens",
        ],
        body,
    )


def growth() -> str:
    """Speed-up over context and batch."""
    rows = [r for r in load("profile-h100")["rows"] if r.get("speedup")]
    contexts, batches = (sorted({r[k] for r in rows}) for k in ("context", "batch"))
    body = []
    for kernel in OURS:
        for batch in batches:
            found = {r["context"]: r for r in rows if (r["kernel"], r["batch"]) == (kernel, batch)}
            body.append(
                [kernel, str(batch), *(f"{down(found[c]['speedup'])}x" if c in found else "–" for c in contexts)]
            )
    return table(["against the fastest dense kernel", "batch", *(f"{c:,} tokens" for c in contexts)], body)


def index() -> str:
    """Quality of reading a part, on both built-in models."""
    body, base = [], []
    for name in ("smollm2", "gemma3"):
        if not is_there(f"index-{name}-wikitext2"):
            continue
        result = load(f"index-{name}-wikitext2")
        first = result["rows"][0]
        base.append(f"{first['base_ppl']:.2f}")
        for r in result["rows"]:
            solved = "shares" in r["options"]
            body.append(
                [
                    first["model"].removeprefix("builtin:"),
                    f"{100 * r['options']['share']:g} %" + (", layer by layer" if solved else ""),
                    f"{r['delta_ppl']:+.3f}",
                    f"{r['kl_nats']:.4f}",
                    f"{100 * r['top1']:.1f} %",
                ]
            )
    head = [f"{first['context']:,}-token windows", "coded tokens read", f"ΔPPL (base {' and '.join(base)})"]
    return table([*head, "KL, nats/token", "top-1 kept"], body)


def gate() -> str:
    """Error rates of the timing rule."""
    result = load("gate-simulation")
    body = [
        [
            f"{100 * r['noise']:g} %, {r['shape']}",
            f"{100 * r['change']:+g} %" if r["change"] else "none",
            *(f"{100 * r[k]:.1f} %" for k in ("regression", "pass", "inconclusive")),
        ]
        for r in result["rows"]
    ]
    return table(["noise of a sample", "true slowdown", "regression", "pass", "inconclusive"], body)
