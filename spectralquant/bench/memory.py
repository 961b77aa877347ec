"""Bytes a cache holds at a context, and the longest context that fits, counted from layouts."""

from __future__ import annotations

from collections.abc import Callable

from spectralquant.bench.inputs import SINKS, CodeSettings, coded_tokens
from spectralquant.models.shapes import ModelShape
from spectralquant.results.speed import MemoryRow
from sqkernels.common import PAGE, RowMatrices

Held = Callable[[int], float]
BLOCK_CYCLE = PAGE - 1
UNBOUNDED = 1 << 40


def memory_rows(
    shape: ModelShape, matrices: RowMatrices, settings: CodeSettings, batch: int, context: int, memory: int
) -> list[MemoryRow]:
    """A row a method: bytes of one sequence batch at `context`, and the longest context that fits beside the weights in
    `memory` bytes. Exact window at its largest (a block cycle); whole pages; bases and codebooks of hot codes included. Layers
    with a sliding window hold no more than that; `ratio` is against transformers' own cache, which does the same."""
    windows = shape.windows or (None,) * shape.layers
    vector = 2 * shape.kv_heads * shape.head_dim
    rows_only = float(sum(matrices.layout.row_bytes))
    tables = len(windows) * sum(
        t.numel() * t.element_size() for kind in (matrices.key, matrices.value) for t in vars(kind).values()
    )
    index = len(windows) * sum(t.numel() * t.element_size() for t in vars(matrices.index).values())

    def plain(element: int) -> Held:
        return lambda tokens: sum(element * vector * _read(window, tokens) for window in windows)

    def hot(per_token: float) -> Held:
        return lambda tokens: sum(_hot(window, tokens, per_token, 2 * vector, settings.window) for window in windows)

    methods = (
        ("bf16", plain(2), 0),
        ("fp8", plain(1), 0),
        (f"hot {settings.bits} bits", hot(rows_only), tables),
        (f"hot {settings.bits} bits + index", hot(matrices.layout.page_bytes / PAGE), tables + index),
    )
    free = memory - shape.weight_bytes - 2 * shape.hidden * shape.vocab
    own = batch * plain(2)(context)
    rows = []
    for method, bytes_at, shared in methods:
        bytes_held = batch * bytes_at(context) + shared
        rows.append(
            MemoryRow(
                method=method,
                batch=batch,
                context=context,
                bytes=int(bytes_held),
                ratio=own / bytes_held,
                longest_context=_longest(
                    lambda n, bytes_at=bytes_at, shared=shared: batch * bytes_at(n) + shared <= free
                ),
            )
        )
    return rows


def _read(window: int | None, tokens: int) -> int:
    """Tokens that a layer can still read."""
    return tokens if window is None else min(tokens, window - 1)


def _hot(window: int | None, tokens: int, per_token: float, exact: int, recent: int) -> float:
    """Bytes of one layer: codes in whole pages and exact tokens, or these alone where they are all that is read."""
    largest = SINKS + recent + BLOCK_CYCLE
    if window is not None and window <= recent + PAGE:
        return exact * _read(window, tokens)
    coded = coded_tokens(tokens, recent)
    if window is not None:
        coded = min(coded, -(-(window - 1 - recent) // PAGE) * PAGE + PAGE)
    return coded * per_token + exact * largest


def _longest(fits: Callable[[int], bool]) -> int | None:
    """The longest context that fits; None where any does (windows alone hold no more at any context)."""
    low, high = 0, UNBOUNDED
    if fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
