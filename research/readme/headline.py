"""The table that the results page opens with: of `headline.json` where it was measured, else put together from the studies of single questions."""

from __future__ import annotations

from typing import Any

from research.readme.tools import RESULTS, load, table
from spectralquant.evaluation.match import matched
from sqcli.terminal.compare import bound_text
from sqcli.terminal.headline import OWN, quality_grid, speed_grid

KL = 0.01
UNKNOWN = "not measured"
SHOWN = ("spectral cold", "kvtc", "turboquant", "kivi", "h2o", "snapkv", "streaming_llm")


def sceptic() -> str:
    """Model x text x method at equal quality, and what it costs in time and bytes."""
    if (RESULTS / "headline.json").is_file():
        return measured() + "\n\n" + real_size()
    return "\n\n".join([by_method(), by_text(), real_size()])


def measured() -> str:
    """Of `sq study headline`."""
    result = load("headline")
    head, *rows = quality_grid(result)
    bold = head.index(OWN)
    body = [[f"**{cell}**" if place == bold else cell for place, cell in enumerate(row)] for row in rows]
    first = result.rows[0]
    out = f"Payload ratio at KL {first.kl_nats:g} nats/token (windows of {first.context:,} tokens; MB: the own profile's):\n\n"
    out += table(list(head), body)
    if result.speed:
        head, *rows = speed_grid(result.speed)
        out += f"\n\n{result.speed[0].device}, one window of {result.speed[0].context:,} tokens, every method block by block:\n\n"
        out += table(list(head), [list(row) for row in rows])
    return out


def by_method() -> str:
    """One model and text, all methods on the same tokens in one run."""
    result = load("compare-smollm2-wikitext2")
    good = [r for r in result.rows if not getattr(r, "failed", None)]
    at = {r.method: r for r in matched(good, KL)}
    body = []
    for name in SHOWN:
        if name not in at:
            continue
        points = [r for r in good if name in (r.method, f"{r.method} {r.options.get('tier')}")]
        near = min(points, key=lambda r: abs(r.kl_nats - KL))
        cells = [
            bound_text(at[name]),
            f"{near.encode_s:.3f} s",
            f"{near.decode_s:.3f} s" if near.decode_s and near.decode_s >= 0.0005 else "nothing to decode",
        ]
        body.append(
            [
                f"**{name}**" if name == "spectral cold" else name,
                *cells,
                {"spectral cold": _profile(near.payload_ratio), "kvtc": "not counted"}.get(name, "none"),
            ]
        )
    device = result.provenance["device"]
    head = [f"WikiText, SmolLM2, KL {KL:g}", "payload ratio", "encode 1,000 tokens", "decode", "profile"]
    note = f"{device}, a {good[0].context:,}-token window, block by block, at the budget nearest to that KL."
    return table(head, body) + "\n\n" + note


def _profile(ratio: float) -> str:
    """Bytes of the cold tier nearest to a payload ratio."""
    known: dict[str, Any] = load("cold-smollm2-wikitext2").profile
    return f"{known[min(known, key=lambda r: abs(float(r) - ratio))].bytes / 1e6:.0f} MB"


def by_text() -> str:
    """The same code with own, foreign and general profiles, by text."""
    domains = [r for r in load("domains-smollm2").table if not r.adaptive_tables]
    quality = load("quality").summary
    names = {"builtin:stdlib": "Python code"}
    body = []
    for text in dict.fromkeys(r.text for r in domains):
        own = next(r for r in domains if r.text == text and r.profile == text)
        foreign = next(r for r in domains if r.text == text and r.profile != text)
        body.append(
            [
                names.get(text, "WikiText"),
                f"{own.payload_ratio:.1f}",
                f"{foreign.payload_ratio:.1f}",
                f"KL {own.kl_nats:.4f}",
            ]
        )
    inside, outside, worst = (quality[f"general_{k}"] for k in ("in_mix_min_ratio", "outside_min_ratio", "max_kl"))
    out = table(["spectral cold, SmolLM2, by text", "own profile", "foreign profile", "at"], body)
    return out + (
        f"\n\nOne general profile, smallest ratio of four texts of kinds in its mix {inside:.1f}, of four others {outside:.1f}, at KL up to {worst:.4f}. "
        f"Gemma 3 at KL {KL:g}: {_or_unknown(quality.get('ratio_at_kl_0.01_gemma3'))}. `sq study headline` measures models, texts and "
        "methods in one table; it has not been run at full size yet."
    )


def real_size() -> str:
    """What coding costs at a real size on the named GPU."""
    result = load("cold-speed-h100")
    s = result.summary
    return (
        f"Real size, {result.provenance['device']}, 8,192 tokens of an 8B shape: encode {s['encode_gb_s_8k']:.0f} GB/s, decode "
        f"{s['decode_gb_s_8k']:.0f} GB/s of fp16 keys and values; first token from a packet on disk after {1000 * s['first_token_disk_s_8k']:.0f} ms, "
        f"their prefill takes {1000 * s['prefill_s_8k']:.0f} ms."
    )


def _or_unknown(ratio: float | None) -> str:
    return UNKNOWN if ratio is None else f"{ratio:.1f}"
