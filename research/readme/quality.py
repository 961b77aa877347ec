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
    """What errors cost under the present rule, on a CPU: as calibrated, and at three errors that a second stage leaves."""
    general = load("quality-cpu")["general"]
    limits, kinds = general["error_limits"], dict.fromkeys(p["text"] for p in general["errors"])
    body = []
    for kind in kinds:
        plain, *second = [p for p in general["errors"] if p["text"] == kind]
        way = "as calibrated" if plain["error"] <= limits["plain"] else "complement"
        body.append([kind, f"{plain['error']:,.0f}", f"{plain['kl']:.4f}", *(f"{p['kl']:.4f}" for p in second), way])
    levels = [f"KL at {p['error']:,.0f}" for p in general["errors"][1:4]]
    said = f"Limits for KL 0.0125: {limits['plain']:,.0f} as calibrated, {limits['second']:,.0f} with a second stage."
    return table(["kind of text", "error as calibrated", "KL", *levels, "way"], body) + "\n\n" + said
