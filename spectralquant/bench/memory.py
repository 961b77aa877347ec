"""Bytes a cache holds at a context, and the longest context that fits, counted from layouts."""

from __future__ import annotations

from typing import Any

from spectralquant.bench.inputs import SINKS, CodeSettings, coded_tokens
from spectralquant.models.shapes import ModelShape
from sqkernels.common import PAGE, RowMatrices

Row = dict[str, Any]
BLOCK_CYCLE = PAGE - 1


def memory_rows(
    shape: ModelShape, matrices: RowMatrices, settings: CodeSettings, batch: int, context: int, memory: int
) -> list[Row]:
    """A row a method: bytes of one sequence batch at `context`, and the longest context that fits beside the weights in
    `memory` bytes. Exact window at its largest (a block cycle); whole pages; bases and codebooks of hot codes included."""
    element = 2 * shape.layers * shape.kv_heads * shape.head_dim
    pages = shape.layers * matrices.layout.page_bytes
    rows_only = shape.layers * PAGE * sum(matrices.layout.row_bytes)
    tables = shape.layers * sum(
        t.numel() * t.element_size() for kind in (matrices.key, matrices.value) for t in vars(kind).values()
    )
    index = shape.layers * sum(t.numel() * t.element_size() for t in vars(matrices.index).values())
    exact = 2 * element * (SINKS + settings.window + BLOCK_CYCLE)
    found = (
        ("bf16", 2 * element, 0, 0),
        ("fp8", element, 0, 0),
        (f"hot {settings.bits} bits", rows_only / PAGE, exact, tables),
        (f"hot {settings.bits} bits + index", pages / PAGE, exact, tables + index),
    )
    free = memory - shape.weight_bytes - 2 * shape.hidden * shape.vocab
    rows = []
    for method, per_token, per_sequence, shared in found:
        coded = context if not per_sequence else coded_tokens(context, settings.window)
        held = batch * (per_token * coded + per_sequence) + shared
        longest = (free - shared - batch * per_sequence) / (batch * per_token)
        rows.append(
            {
                "method": method,
                "batch": batch,
                "context": context,
                "bytes": int(held),
                "ratio": batch * 2 * element * context / held,
                "longest_context": max(0, int(longest)),
            }
        )
    return rows
