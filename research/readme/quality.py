"""README blocks about quality on text that a profile was not calibrated on."""

from __future__ import annotations

from typing import Any

from research.readme.tools import load, table

TITLES = {"in the mix": "of kinds in the mix", "outside": "of other kinds"}


def quality() -> str:
    """What the study says in a few figures."""
    result = load("quality")
    study, texts = result["study"], result["texts"]
    plain = [
        t["as_calibrated"] | {"kind": t["kind"], "exceeded": t["as_calibrated"]["kl"] / study["bound"] - 1}
        for t in texts
    ]
    both = (texts, plain)
    rows = []
    for kind, title in TITLES.items():
        some = [[t["payload_ratio"] for t in each if t["kind"] == kind] for each in both]
        rows.append([f"smallest ratio, {len(some[0])} texts {title}", *(f"{min(ratios):.1f}" for ratios in some)])
    scored = [[t["kl"] for t in each if t["kind"] in TITLES] for each in both]
    rows.append([f"largest KL of these {len(scored[0])}, nats/token", *(f"{max(kls):.4f}" for kls in scored)])
    worst = [max(max(0.0, t["exceeded"]) for t in each) for each in both]
    rows.append([f"KL over the bound, worst of all {len(texts)} texts", *(f"{100 * x:.0f} %" for x in worst)])
    head = table(["one general profile", _title(result), "as calibrated"], rows)
    steps = study.get("general_steps", study["steps"])
    begin = f"{steps} windows of {study['window']:,} tokens calibrate; bound: KL {study['bound']:g} nats a token.\n\n"
    note = result["provenance"].get("note")
    return "\n\n".join([begin + head, _at_home(result["summary"]), *([note] if note else [])])


def _title(result: Any) -> str:
    """The present rule, or that of files from before it."""
    return "with the bound" if "general" in result else "coarser steps allowed"


def _at_home(summary: dict[str, float | None]) -> str:
    """Own profiles' figures, of those that were measured."""
    names = {
        "smollm2": "SmolLM2-135M",
        "gemma3": "Gemma 3 270M (all tokens of all layers)",
        "gemma3_as_held": "Gemma 3 270M (sliding layers as they hold tokens)",
    }
    said = []
    for kl in ("0.01", "0.004"):
        known = {t: summary.get(f"ratio_at_kl_{kl}_{n}") for n, t in names.items()}
        some = [f"{title} **{ratio:.1f}**" for title, ratio in known.items() if ratio is not None]
        if some:
            said.append(f"own profile, payload ratio at KL {kl}: {', '.join(some)}")
    cost = summary.get("complement_cost_share_at_home")
    if cost is not None:
        said.append(f"bytes that a bound costs at home: {100 * cost:.2f} %")
    least = summary.get("smaller_than_turboquant_min")
    if least is not None:
        said.append(f"smaller than TurboQuant at equal KL: {least:.1f} times on the worst text")
    line = "; ".join(said)
    return line[:1].upper() + line[1:] + "."


def bounded() -> str:
    """Every text under the general profile, on a GPU."""
    return _texts(load("quality"))


def bounded_cpu() -> str:
    """Every text under a profile of one kind of text, on a CPU, by the present rule."""
    result = load("quality-cpu")
    if not result["texts"]:
        return "Not measured yet."
    study, texts, summary = result["study"], result["texts"], result["summary"]
    worst = max(texts, key=lambda t: t["exceeded"])
    said = [
        f"A profile of {result['general']['text']}, {study['per_text']} windows of {study['window']:,} tokens a text, on a CPU.",
        f"Bound: KL {study['bound']:g} nats a token. The worst text, {_short(worst['text'])}, is at {worst['kl']:.4f}",
        f"({100 * max(0.0, worst['exceeded']):.0f} % over).",
    ]
    if (least := summary.get("smaller_than_turboquant_min")) is not None:
        said.append(f"At equal KL the worst text is {least:.1f} times smaller than TurboQuant.")
    return " ".join(said) + "\n\n" + _texts(result)


def _short(text: str) -> str:
    return text.removeprefix("file:").removesuffix(".txt")


def _texts(result: Any) -> str:
    title = _title(result)
    body = [
        [
            _short(t["text"]),
            t["kind"],
            f"{t['as_calibrated']['payload_ratio']:.1f}",
            f"{t['as_calibrated']['kl']:.4f}",
            f"{t['payload_ratio']:.1f}",
            f"{t['kl']:.4f}",
            *([max(t["ways"], key=t["ways"].get)] if "ways" in t else []),
        ]
        for t in result["texts"]
    ]
    ways = ["most blocks"] if any("ways" in t for t in result["texts"]) else []
    return table(["text", "kind", "as calibrated", "KL", title, "KL", *ways], body)


def promise() -> str:
    """What errors cost under the present rule, on a CPU: as calibrated, and at three errors that a second stage leaves."""
    result = load("quality-cpu")
    general = result["general"]
    limits, kinds = general["error_limits"], dict.fromkeys(p["text"] for p in general["errors"])
    body = []
    for kind in kinds:
        plain, *second = [p for p in general["errors"] if p["text"] == kind]
        way = "as calibrated" if plain["error"] <= limits["plain"] else "complement"
        body.append([kind, f"{plain['error']:,.0f}", f"{plain['kl']:.4f}", *(f"{p['kl']:.4f}" for p in second), way])
    levels = [f"KL at {p['error']:,.0f}" for p in general["errors"][1:4]]
    said = f"Limits for KL 0.0125: {limits['plain']:,.0f} as calibrated, {limits['second']:,.0f} with a second stage."
    source, window = general.get("text", "WikiText"), result["study"]["window"]
    of = f"A profile of {source} ({general['steps']} steps), one window of {window:,} tokens a kind:\n\n"
    return of + table(["kind of text", "error as calibrated", "KL", *levels, "way"], body) + "\n\n" + said
