"""The memory plan of a calibration, as a table and as lines before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from spectralquant.calibration.plan import MemoryPlan


def plan_table(plan: MemoryPlan) -> Table:
    """A row a stage: its peak and what it is made of, GB, all predicted."""
    table = Table(
        title="Memory plan (predicted; GB of the device, a stage's parts at the same time)",
        caption=" ".join(plan_lines(plan)[1:]),
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("stage")
    table.add_column("peak", justify="right")
    table.add_column("parts")
    for stage in plan.stages:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in stage.parts.items() if size > 5e6)
        table.add_row(stage.name, f"{stage.peak / 1e9:.2f}", parts)
    return table


def plan_lines(plan: MemoryPlan) -> list[str]:
    """The plan in two lines, and what bases in two levels leave out."""
    largest = max(plan.stages, key=lambda stage: stage.peak)
    weights, sums = largest.parts["weights"] / 1e9, largest.parts["statistics"] / 1e9
    s = plan.settings
    again = "layers run again in the backward pass" if s.recompute else "activations kept"
    lines = [
        f"Memory plan (predicted): peak {plan.peak / 1e9:.2f} GB in stage {largest.name!r} (weights {weights:.2f}, statistics "
        f"{sums:.2f}); host {plan.host / 1e9:.2f} GB; profile at most {plan.profile / 1e6:.0f} MB.",
        f"Span of {plan.span:,} coordinates, {again}, {plan.samples} sample windows.",
    ]
    if plan.inner is not None:
        lines.append(
            f"Bases in two levels: the first keeps at most {plan.inner:,} components and leaves out 0.01 % of the weighted energy "
            "or more. Errors of 0.1 % become 3 % larger than with one dense basis, errors of 0.01 % 70 % (measured on the "
            "built-in model): for targets that fine compare it with --basis dense, whose spans are shorter."
        )
    return lines
