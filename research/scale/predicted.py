"""The table from 7B to 405B: memory from the plan, time from the arithmetic and a measured step. Every figure is predicted."""

from __future__ import annotations

from typing import Any

from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.plan import PlannedModel, Planner
from spectralquant.models.random_model import random_config
from spectralquant.models.shapes import parse_shape

SHAPES = (
    "qwen2.5-7b",
    "llama-3.1-8b",
    "custom:layers=64,heads=40,kv_heads=8,head_dim=128,hidden=5120,intermediate=27648,vocab=152064",
    "llama-3.1-70b",
    "custom:layers=126,heads=128,kv_heads=8,head_dim=128,hidden=16384,intermediate=53248,vocab=128256",
)
NAMES = ("7B (Qwen2.5)", "8B (Llama 3.1)", "32B (Qwen2.5)", "70B (Llama 3.1)", "405B (Llama 3.1)")
WINDOW, STEPS = 2048, 100
Row = dict[str, Any]


def predicted_rows(step_8b: float | None, eigen_8192: float | None) -> list[Row]:
    """A row a size. step_8b: measured seconds of a step of 2,048 tokens at the 8B shape; eigen_8192: of the bases stage."""
    rows = []
    base = None
    settings = CalibrationSettings(steps=STEPS, window=WINDOW, tiers=("cold",), recompute=True)
    for name, spec in zip(NAMES, SHAPES, strict=True):
        model = PlannedModel.of_config(name, random_config(parse_shape(spec)), 2)
        plan = Planner(model, cuda=True).plan(settings)
        capture, bases = plan.stages[0], plan.stages[1]
        parameters = model.weights / 2
        base = parameters if spec == "llama-3.1-8b" else base
        rows.append(
            {
                "part": "predicted",
                "name": name,
                "predicted": True,
                "weights_bytes": model.weights,
                "statistics_bytes": capture.parts["statistics"],
                "activations_bytes": capture.parts["activations"],
                "eigenproblem_bytes": bases.parts["eigenproblem"],
                "eigenproblem_width": min(plan.span, 8192),
                "peak_bytes_beside_weights": plan.peak - model.weights,
                "span_width": plan.span,
                "width": model.geometry.width,
                "profile_bytes_at_most": plan.profile,
                "parameters": parameters,
            }
        )
    for row in rows:  # a step's time goes with the weights; running layers again adds a third
        row["seconds_100_steps_one_card"] = (
            None if step_8b is None else round(STEPS * step_8b * row["parameters"] / base, 0)
        )
        row["bases_s"] = eigen_8192
    return rows
