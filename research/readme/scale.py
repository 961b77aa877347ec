"""Calibration of models of real size: the blocks of docs/how-to/calibrate-large-models.md."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from research.readme.tools import load, table
from research.results.table import entry
from research.scale.quality import CURVE_CASES, kl_at
from spectralquant.models.builtin.table import BUILTIN_MODELS

OUT_OF_MEMORY = "allocated by PyTorch"
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
    notes += [_seventy(result), *_one_card(result)]
    return table(head, body) + "\n\n" + " ".join(notes)


def _seventy(result: Any) -> str:
    """What is known of the 70B shape: steps, peaks of each card, and 100 steps from them."""
    run = next((r for r in result["rows"] if r["part"] == "70b" and r["ok"]), None)
    summary = result["summary"]
    if run is None:
        return f"70B shape: {summary.get('seconds_70b_100_steps_is', 'not run')}."
    cards = run["stages_peak_bytes_by_device"]["capture"]
    beside = run["capture_s"]["samples"] + run["capture_s"]["checkpoints"]
    step = (run["stages_s"]["capture"] - beside) / run["steps"]
    return (
        f"70B shape over {run['gpus']} cards ({run['device']}): {step:.1f} s a step, samples and all other stages "
        f"{run['seconds'] - run['stages_s']['capture'] + beside:.0f} s, peaks of {', '.join(f'{c / 1e9:.1f}' for c in cards)} GB "
        f"({run['plan']['peak_bytes'] / 1e9:.1f} planned); 100 steps {summary['seconds_70b_100_steps'] / 60:.0f} minutes, "
        f"{summary['seconds_70b_100_steps_is']}."
    )


def _one_card(result: Any) -> list[str]:
    """What is known of the 70B shape on one card, layers streamed; nothing where it was not run."""
    run = next((r for r in result["rows"] if r["part"] == "70b-one-card"), None)
    if run is None:
        return []
    if not run["ok"]:
        return [f"70B shape on one card: {_ended(run)}."]
    beside = run["capture_s"]["samples"] + run["capture_s"]["checkpoints"]
    step = (run["stages_s"]["capture"] - beside) / run["steps"]
    return [
        f"70B shape on one card ({run['device']}), {run['weights_on_host_bytes'] / 1e9:.0f} of "
        f"{(run['weights_on_host_bytes'] + run['weights_on_card_bytes']) / 1e9:.0f} GB of weights in host memory: {step:.0f} s a step, bases "
        f"and cold tier {run['stages_s']['bases'] + run['stages_s']['cold tier']:.0f} s, peak {run['peak_bytes'] / 1e9:.1f} GB "
        f"({run['plan']['peak_bytes'] / 1e9:.1f} planned); {run['steps']} steps, nothing measured on held-out text."
    ]


def _ended(run: dict[str, Any]) -> str:
    """Why a run on one card has no figures: that memory ran out, without PyTorch's advice, or the error itself."""
    if OUT_OF_MEMORY not in run["error"] or "plan" not in run:
        return str(run["error"])
    return (
        f"ended for want of memory ({run['device']}), with {run['weights_on_card_bytes'] / 1e9:.0f} of "
        f"{(run['weights_on_host_bytes'] + run['weights_on_card_bytes']) / 1e9:.0f} GB of weights on the card and "
        f"{run['plan']['peak_bytes'] / 1e9:.1f} GB planned"
    )


def _scaling(r: dict[str, Any]) -> str:
    return (
        f"{r['gpus']} GPUs ({r['device']}, NCCL), {r['steps']} steps: {r['step_s_shared']:.2f} s a step, {r['step_s_alone']:.2f} s on "
        f"one{_each(r)}, efficiency {r['efficiency']:.2f}{_least(r)} with {r['added_bytes'] / 1e9:.1f} GB added up in {r['add_up_s']:.2f} s{_waited(r)}; spectra of heads "
        f"differ by at most {r['largest_difference_of_head_spectra']:.1e} of the largest, ranks by {r['largest_difference_of_ranks']}"
        f"{_compared(r)}."
    )


def _each(r: dict[str, Any]) -> str:
    """One card's steps before and after the shared ones, where that is known."""
    each = r.get("step_s_alone_each")
    return "" if each is None else f" ({each[0]:.2f} before and {each[1]:.2f} after)"


def _least(r: dict[str, Any]) -> str:
    """Efficiency against the faster of these, which other work on the host slowed less."""
    each = r.get("step_s_alone_each")
    return "" if each is None else f" ({min(each) / (r['gpus'] * r['step_s_shared']):.2f} against the faster of these)"


def _waited(r: dict[str, Any]) -> str:
    """What of the time was no adding up, where that is known."""
    if r.get("wait_s") is None:
        return ""
    return f" after {r['wait_s']:.2f} s of waiting for the slowest (connecting, before the clock, took {r['connect_s']:.1f} s)"


def _compared(r: dict[str, Any]) -> str:
    """How the sums were compared, where that is known."""
    if not r.get("deterministic"):
        return ""
    return (
        f" (with deterministic algorithms; without them two equal runs of one GPU differ by {r['largest_difference_of_sums_of_two_equal_runs']:.1e} "
        f"in their sums, one and {r['gpus']} GPUs with them by {r['largest_difference_of_sums']:.1e})"
    )


def scale_predicted() -> str:
    """The table from 7B to 405B."""
    every = load("calibrate-scale")["rows"]
    rows = [r for r in every if r["part"] == "predicted"]
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
            _measured(r["name"], every),
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
        "measured",
    ]
    return (
        table(head, body)
        + "\n\nAll predicted but for the last column: cold tier, bfloat16, 2,048 tokens a step, memory with layers that run again; time from the measured step at 8B, where they did not run again, and the number of weights, as if one card held the model: "
        "a rough figure, which does not know what of a step grows more slowly than the weights. Profiles are without the spectra of heads."
    )


def _measured(name: str, rows: Sequence[Any]) -> str:
    """What was run of a size: steps, seconds, the fullest card's peak."""
    part = {"8B (Llama 3.1)": "8b", "70B (Llama 3.1)": "70b"}.get(name)
    run = next((r for r in rows if r["part"] == part and r["ok"]), None)
    if run is None:
        return "not run"
    cards = "one card" if run["gpus"] == 1 else f"{run['gpus']} cards, the fullest"
    how = ["all tiers"] if "--tier all" in run["options"] else []
    how += [] if run["plan"]["recompute"] else ["no layer run again"]
    beside = f" ({', '.join(how)})" if how else ""
    return f"{run['steps']} steps and all stages{beside} {run['seconds']:.0f} s, {run['peak_bytes'] / 1e9:.1f} GB on {cards}"


RATIOS = (20, 40)
VARIED = {
    "steps": "steps",
    "metric": "metric",
    "bases": "two levels",
    "form": "two levels,",
    "size": "profile cut to",
    "shrinkage": "shrinkage",
}


def scale_quality() -> str:
    """Steps, metric, form of the bases, size and shrinkage at equal bytes: a row a case, models beside each other."""
    result = load("calibrate-scale")
    rows = [r for r in result["rows"] if r["part"] == "quality"]
    if not rows:
        return "Not run yet."
    models = _in_order(r["model"] for r in rows)
    cases: dict[tuple[Any, ...], dict[str, list[Any]]] = {}
    for r in rows:
        case = (list(VARIED).index(r["varied"]), getattr(r, "variant", None) or "", r["metric"], r["basis"], r["steps"])
        cases.setdefault(case, {}).setdefault(r["model"], []).append(r)
    body = []
    for (varied, variant, metric, basis, steps), some in sorted(
        cases.items(), key=lambda item: (item[0][0], item[0][4])
    ):
        what = " ".join(filter(None, (list(VARIED.values())[varied], variant)))
        cells = [cell for model in models for cell in _kl_cells(some.get(model, []))]
        body.append([what, str(steps), metric, basis, *cells])
    head = ["varied", "steps", "metric", "bases"]
    for model in models:
        name = model.removeprefix("builtin:")
        head += [f"{name}: KL at {RATIOS[0]}:1", f"at {RATIOS[1]}:1", "profile, MB"]
    first = rows[0]
    return table(head, body) + (
        f"\n\nKL in 1e-3 nats a token at equal bytes, between measured points; a cold tier's size at {RATIOS[1]}:1. Steps of "
        f"{first['window']:,} tokens of {_texts(result)}; {first['n_tokens']:,} scored tokens of the same mix; "
        f"{first['device']}; measured." + _curve_said(rows)
    )


def _in_order(models: Iterable[str]) -> list[str]:
    """Built-in models, each once, as the toolkit lists them."""
    return sorted(set(models), key=list(BUILTIN_MODELS).index)


def _texts(result: Any) -> str:
    """The texts of the mix and their weights, as the command names them."""
    commands = (
        result["provenance"]["command"],
        entry("calibrate-scale").command,
    )  # one that only joined parts names no text
    for words in map(shlex.split, commands):
        if named := [words[i + 1] for i, word in enumerate(words) if word == "--data"]:
            break
    return ", ".join(f"`{name}`" for name in named).replace("{text}", "wiki.test.raw")


def _curve_said(rows: Sequence[Any]) -> str:
    """What more steps and shrinkage change, in per cent of the KL at one ratio, over the models."""
    kl: dict[tuple[str, int, str], float] = {}
    for model, varied, variant, steps in {
        (r["model"], r["varied"], getattr(r, "variant", None) or "", r["steps"]) for r in rows
    }:
        if varied in CURVE_CASES:
            own = [r for r in rows if (r["model"], r["varied"], r["steps"]) == (model, varied, steps)]
            own = [r for r in own if (getattr(r, "variant", None) or "") == variant]
            if (value := kl_at(own, RATIOS[1])) is not None:
                kl[model, steps, variant] = value
    pairs = [((a, ""), (b, "")) for a, b in itertools.pairwise(sorted({s for _, s, v in kl if not v}))]
    pairs += [((s, ""), (s, v)) for s, v in sorted({(s, v) for _, s, v in kl if v})]
    said = []
    for (a, _), (b, variant) in pairs:
        both = [
            (kl[m, a, ""], kl[m, b, variant])
            for m in _in_order(m for m, _, _ in kl)
            if {(m, a, ""), (m, b, variant)} <= set(kl)
        ]
        if both:
            what = f"shrinkage {variant} at {a} steps" if variant else f"{a} to {b} steps"
            said.append(f"{what} {', '.join(f'{100 * (after / before - 1):+.0f} %' for before, after in both)}")
    names = " and ".join(m.removeprefix("builtin:") for m in _in_order(m for m, _, _ in kl))
    return f" KL at {RATIOS[1]}:1 on {names}: {'; '.join(said)}." if said else ""


def _kl_cells(rows: list[Any]) -> list[str]:
    if not rows:
        return ["", "", ""]
    known = [kl_at(rows, ratio) for ratio in RATIOS]
    nearest = min(rows, key=lambda r: abs(math.log(r["payload_ratio"] / RATIOS[1])))
    return [*("–" if kl is None else f"{1000 * kl:.2f}" for kl in known), f"{nearest['tier_bytes'] / 1e6:.0f}"]
