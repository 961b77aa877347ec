"""Calibration of models of real size: the blocks of docs/how-to/calibrate-large-models.md."""

from __future__ import annotations

from typing import Any

from research.readme.tools import load, table

PARTS = {"8b": "all tiers, one card", "8b-small": "cold tier, planned for a card of 24 GB"}


def scale() -> str:
    """Measured runs at the 8B shape, the plan beside them, and several GPUs."""
    result = load("calibrate-scale")
    runs = [r for r in result["rows"] if r["part"] in PARTS and r["ok"]]
    body = [
        [
            PARTS[r["part"]],
            f"{r['seconds']:.0f} s",
            f"{r['stages_s']['capture']:.0f} s",
            f"{r['peak_bytes'] / 1e9:.1f} GB",
            f"{r['plan']['peak_bytes'] / 1e9:.1f} GB",
            f"{r['profile_bytes'] / 1e6:.0f} MB",
        ]
        for r in sorted(runs, key=lambda r: r["part"])
    ]
    head = [
        "Llama-3.1-8B shape, 100 steps of 2,048 tokens",
        "all stages",
        "steps",
        "peak",
        "plan (predicted)",
        "profile",
    ]
    notes = [f"{runs[0]['device']}, bfloat16, random weights; measured but for the plan."]
    for r in (r for r in result["rows"] if r["part"] == "scaling"):
        notes.append(_scaling(r) if r["ok"] else f"{r['gpus']} GPUs: {r['error']}.")
    seventy = result["summary"]["seconds_70b_100_steps"]
    notes.append("70B shape: not run." if seventy is None else f"70B shape, 100 steps: {seventy:.0f} s.")
    return table(head, body) + "\n\n" + " ".join(notes)


def _scaling(r: dict[str, Any]) -> str:
    return (
        f"{r['gpus']} GPUs ({r['device']}, NCCL): {r['step_s_shared']:.2f} s a step, {r['step_s_alone']:.2f} s on one, efficiency "
        f"{r['efficiency']:.2f} with {r['added_bytes'] / 1e9:.1f} GB added up in {r['add_up_s']:.2f} s; spectra of heads differ by at "
        f"most {r['largest_difference_of_head_spectra']:.1e} of the largest, ranks by {r['largest_difference_of_ranks']}."
    )


def scale_predicted() -> str:
    """The table from 7B to 405B."""
    rows = [r for r in load("calibrate-scale")["rows"] if r["part"] == "predicted"]
    gb = lambda size: f"{size / 1e9:.1f}"  # noqa: E731
    body = [
        [
            r["name"],
            gb(r["weights_bytes"]),
            gb(r["statistics_bytes"]),
            gb(r["eigenproblem_bytes"]),
            gb(r["peak_bytes_beside_weights"]),
            f"{r['span_width']:,} of {r['width']:,}",
            f"{r['profile_bytes_at_most'] / 1e6:.0f}",
            f"{r['seconds_100_steps_one_card'] / 60:.0f}",
        ]
        for r in rows
    ]
    head = [
        "model",
        "weights, GB",
        "statistics, GB",
        "eigenproblem, GB",
        "peak beside weights, GB",
        "span",
        "profile, MB at most",
        "100 steps, minutes",
    ]
    return (
        table(head, body)
        + "\n\nAll predicted: cold tier, bfloat16, 2,048 tokens a step, memory with layers that run again; time from the measured step at 8B, where they did not run again, and the number of weights, as if one H100 held the model: at least that."
    )


def scale_quality() -> str:
    """Metric, form of the bases and steps at equal bytes."""
    rows = [r for r in load("calibrate-scale")["rows"] if r["part"] == "quality"]
    if not rows:
        return "Not run yet."
    body = []
    for case in dict.fromkeys((r["model"], r["steps"], r["metric"], r["basis"], r["varied"]) for r in rows):
        model, steps, metric, basis, _ = case
        some = [r for r in rows if (r["model"], r["steps"], r["metric"], r["basis"], r["varied"]) == case]
        cells = [f"{r['payload_ratio']:.1f}:1 KL {r['kl_nats']:.4f}, {r['tier_bytes'] / 1e6:.0f} MB" for r in some]
        body.append([model.removeprefix("builtin:"), str(steps), metric, basis, *cells])
    first = rows[0]
    head = [
        "model",
        "steps",
        "metric",
        "bases",
        *(["payload ratio, KL in nats a token, size of the tier"] + [""] * (len(cells) - 1)),
    ]
    return table(head, body) + (
        f"\n\nSteps of {first['window']} tokens of the built-in prose, {first['n_tokens']:,} scored tokens, {first['device']}; measured."
    )
