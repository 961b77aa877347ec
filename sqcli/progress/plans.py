"""Shares of the stages of long commands, in seconds of two CPU cores with the built-in model: they weigh, nothing more.

Source: the stage times in profiles/results/calibrate-smollm2-cpu.json.
"""

from __future__ import annotations

from collections.abc import Sequence

STEP_S, WINDOW = 3.4, 512


def calibration_plan(
    steps: int, window: int, tiers: Sequence[str], searched: Sequence[str] = ()
) -> list[tuple[str, float]]:
    """Stages of `sq calibrate`; searched: tiers whose target is a loss, which takes several trials."""
    plan = [("calibrate", steps * STEP_S * window / WINDOW)]
    for tier in tiers:
        trials = [("solving for", 60.0)] if tier in searched else []
        if tier == "cold":
            plan += [("basis of keys", 30.0), ("basis of values", 30.0), ("sample coefficients", 12.0), *trials]
            plan += [("step for the target", 12.0), ("choosing centroids", 9.0), ("held-out measurement", 14.0)]
        else:
            plan += [*trials, (f"{tier} tier: bits", 18.0), (f"{tier} tier: held-out", 14.0)]
    return plan


def smoke_plan(steps: int, window: int, tiers: Sequence[str]) -> list[tuple[str, float]]:
    """Stages of `sq gate --run smoke`."""
    return calibration_plan(steps, window, tiers) + [(f"harness and cache, {tier}", 12.0) for tier in tiers]


def comparison_plan(
    parts: Sequence[tuple[str, str]], lengths: Sequence[int], tasks: Sequence[tuple[str, int]]
) -> list[tuple[str, float]]:
    """Stages of `sq compare`: methods in order with their protocol; each length, each task at each length."""
    plan: list[tuple[str, float]] = []
    for name, mode in parts:
        plan += [(f"{name}, {length} tokens, {mode}", 1.0) for length in lengths]
        plan += [(f"{name}, {task} {length}, {mode}", 0.5) for task, length in tasks]
    return plan
