"""README blocks about quality on text that a profile was not calibrated on."""

from __future__ import annotations

from research.readme.tools import load, table


def quality() -> str:
    """What the study says in a few figures."""
    result = load("quality")
    s, plain = result["summary"], result["as_calibrated"]
    share = lambda x: f"{100 * x:.0f} %"  # noqa: E731
    rows = [
        [
            "smallest ratio, four texts of kinds in the mix",
            f"{s['general_in_mix_min_ratio']:.1f}",
            f"{plain['in_mix_min_ratio']:.1f}",
        ],
        [
            "smallest ratio, four texts of other kinds",
            f"{s['general_outside_min_ratio']:.1f}",
            f"{plain['outside_min_ratio']:.1f}",
        ],
        ["largest KL of these eight, nats/token", f"{s['general_max_kl']:.4f}", f"{plain['max_kl']:.4f}"],
        [
            "KL over the bound, worst of all texts",
            share(s["bound_exceeded_max_share"]),
            share(plain["exceeded_max_share"]),
        ],
    ]
    head = table(["one general profile", "coarser steps allowed", "as calibrated"], rows)
    return head + f"\n\nOwn profile, payload ratio at KL 0.01: **{s['ratio_at_kl_0.01_smollm2']:.1f}**."


def bounded() -> str:
    """Every text under the general profile."""
    body = [
        [
            t["text"],
            t["kind"],
            f"{t['as_calibrated']['payload_ratio']:.1f}",
            f"{t['as_calibrated']['kl']:.4f}",
            f"{t['payload_ratio']:.1f}",
            f"{t['kl']:.4f}",
        ]
        for t in load("quality")["texts"]
    ]
    return table(["text", "kind", "as calibrated", "KL", "coarser steps allowed", "KL"], body)


def promise() -> str:
    """The present rule, on a CPU."""
    body = [
        [
            r["text"],
            f"{r['ratio_as_calibrated']:.1f}",
            f"{r['kl_as_calibrated']:.4f}",
            f"**{r['payload_ratio']:.1f}**",
            f"**{r['kl']:.4f}**",
            ", ".join(f"{n} {way}" for way, n in r["ways"].items()),
        ]
        for r in load("quality")["later"]["rows"]
    ]
    return table(["text", "as calibrated", "KL", "with a bound", "KL", "blocks"], body)
