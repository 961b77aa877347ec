"""The kernels as `torch.library` operators, and what the host prepares for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sqkernels.entropy.contexts import Contexts
from sqkernels.entropy.layout import STREAM_LANES, StreamTable
from sqkernels.entropy.tables import PRECISION, RansTables
from sqkernels.operators import operator

WARPS: int | None = None  # of a stream; None: by the number of streams
MANY_STREAMS = 1500  # from which they keep a GPU busy with fewer warps each
COPY_TILE = 1024
ESCAPE_STEPS, ESCAPE_WARPS = 32, 4
ALIGNED = (
    2  # rows of int64 that begin at multiples of 16 bytes: else Triton compiles a kernel for each way they can lie
)


def decode(
    words: Tensor,
    counts: Tensor,
    states: Tensor,
    escapes: Tensor,
    table: StreamTable,
    contexts: Contexts,
    tables: RansTables,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `api.decode`."""
    device = words.device
    head = torch.empty(4, -(-len(counts) // ALIGNED) * ALIGNED, dtype=torch.int64)
    for row, numbers in zip(
        head, (counts.cumsum(0) - counts, counts, escapes.cumsum(0) - escapes, escapes), strict=True
    ):
        row[: len(counts)] = numbers
    total = int(escapes.sum())
    out = torch.ops.sqkernels.rans_decode(
        words.view(torch.int16),
        head.to(device, non_blocking=True),
        states.view(torch.int32),
        *_arguments(table, contexts, device),
        tables.on(device)[0],
        [table.rows, table.columns, contexts.split, tables.count, tables.span, _repeated(table), total],
        dtype,
    )
    return out[0], out[1], out[2].view(torch.uint16), out[3]


def encode(
    symbols: Tensor, initial: Tensor, table: StreamTable, contexts: Contexts, tables: RansTables
) -> tuple[Tensor, Tensor, Tensor]:
    """See `api.encode`; waits for the device once, to know how many words there are."""
    device = symbols.device
    per_lane = table.steps * (PRECISION + 1) // 16 + 2
    ends = np.cumsum(per_lane * table.fields[:, 5])
    scratch, counts, states = torch.ops.sqkernels.rans_encode(
        symbols.contiguous(),
        initial.view(torch.int16),
        *_arguments(table, contexts, device),
        tables.on(device)[1],
        torch.from_numpy(ends).to(device, non_blocking=True),
        [table.columns, contexts.split, tables.count, tables.span, _repeated(table), int(ends[-1]) if len(ends) else 0],
    )
    words = torch.empty(int(counts.sum()), dtype=torch.int16, device=device)
    if len(table):
        from sqkernels.entropy.triton import rans_words_kernel

        begins = counts.cumsum(0) - counts
        ends = torch.from_numpy(ends).to(device)
        rans_words_kernel[(len(table),)](scratch, ends, counts, begins, words, TILE=COPY_TILE, num_warps=4)
    return words.view(torch.uint16), counts, states.view(torch.uint32)


def escape_positions(
    symbols: Tensor, table: StreamTable, contexts: Contexts, tables: RansTables
) -> tuple[Tensor, Tensor]:
    """See `api.escape_positions`; waits for the device once, to know how many there are."""
    from sqkernels.entropy.triton import rans_escape_kernel

    device = symbols.device
    if not len(table):
        return torch.zeros(0, dtype=torch.int64, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    parts = max(1, -(-int(table.steps.max()) // ESCAPE_STEPS))
    counts = torch.zeros(len(table), parts, dtype=torch.int64, device=device)
    fields, choice, classes, shifts, group = _arguments(table, contexts, device)
    shared = (symbols.contiguous(), fields, choice, classes, shifts, group, tables.on(device)[1])
    numbers = (table.columns, contexts.split, max(1, shifts.shape[-1]), tables.count)
    constants = {
        "SPAN": tables.span,
        "SHIFTED": shifts.numel() > 0,
        "LANES": STREAM_LANES,
        "STEPS": ESCAPE_STEPS,
        "num_warps": ESCAPE_WARPS,
    }
    grid = (len(table), parts)
    rans_escape_kernel[grid](*shared, counts, counts, counts, *numbers, **constants, WRITE=False)
    begins = counts.view(-1).cumsum(0).view_as(counts) - counts
    positions = torch.empty(int(counts.sum()), dtype=torch.int64, device=device)
    if len(positions):
        rans_escape_kernel[grid](*shared, begins, counts, positions, *numbers, **constants, WRITE=True)
    return positions, counts.sum(1)


def _arguments(table: StreamTable, contexts: Contexts, device: torch.device) -> tuple[Tensor, ...]:
    """Stream fields, choice, classes, shifts and group on the device; empty tensors where nothing is shifted."""
    fields = torch.from_numpy(table.fields).to(device, non_blocking=True)
    shifts, group = contexts.shifts, contexts.group
    if shifts is None:
        shifts = torch.zeros(0, 0, dtype=torch.int16)
        group = torch.zeros(0, dtype=torch.int32)
    return tuple(t.to(device).contiguous() for t in (fields, contexts.choice, contexts.classes, shifts, group))


def _warps(streams: int, few: int) -> int:
    return WARPS or (few if streams > MANY_STREAMS else 4)


def _repeated(table: StreamTable) -> bool:
    """Whether some lane codes more than one column of a row."""
    return bool((table.fields[:, 3] > table.fields[:, 6]).any())


@operator("sqkernels::rans_decode")
def _rans_decode(
    words: Tensor,
    head: Tensor,
    states: Tensor,
    fields: Tensor,
    choice: Tensor,
    classes: Tensor,
    shifts: Tensor,
    group: Tensor,
    slots: Tensor,
    numbers: list[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sqkernels.entropy.triton import rans_decode_kernel

    rows, columns, split, tables, span, repeated, escapes = numbers
    out = torch.empty(rows, columns, dtype=dtype, device=words.device)
    positions = torch.full((escapes,), -1, dtype=torch.int64, device=words.device)
    finals = torch.empty(len(states), dtype=torch.int16, device=words.device)
    status = torch.empty(len(fields), dtype=torch.int32, device=words.device)
    if len(fields):
        rans_decode_kernel[(len(fields),)](
            words,
            head[0],
            head[1],
            states,
            head[2],
            head[3],
            fields,
            choice,
            classes,
            shifts,
            group,
            slots,
            out,
            positions,
            finals,
            status,
            columns,
            split,
            max(1, shifts.shape[-1]),
            tables,
            SPAN=span,
            SHIFTED=shifts.numel() > 0,
            REPEATED=bool(repeated),
            LANES=STREAM_LANES,
            num_warps=_warps(len(fields), 1),
        )
    return out, positions, finals, status


@_rans_decode.register_fake
def _(words: Tensor, head: Tensor, states: Tensor, fields: Tensor, *args):
    numbers, dtype = args[-2], args[-1]
    return (
        words.new_empty(numbers[0], numbers[1], dtype=dtype),
        words.new_empty(numbers[6], dtype=torch.int64),
        words.new_empty(len(states), dtype=torch.int16),
        words.new_empty(len(fields), dtype=torch.int32),
    )


@operator("sqkernels::rans_encode")
def _rans_encode(
    symbols: Tensor,
    initial: Tensor,
    fields: Tensor,
    choice: Tensor,
    classes: Tensor,
    shifts: Tensor,
    group: Tensor,
    table: Tensor,
    ends: Tensor,
    numbers: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    from sqkernels.entropy.triton import rans_encode_kernel

    columns, split, tables, span, repeated, capacity = numbers
    scratch = torch.empty(capacity, dtype=torch.int16, device=symbols.device)
    counts = torch.zeros(len(fields), dtype=torch.int64, device=symbols.device)
    states = torch.empty(len(initial), dtype=torch.int32, device=symbols.device)
    if len(fields):
        rans_encode_kernel[(len(fields),)](
            symbols,
            initial,
            fields,
            choice,
            classes,
            shifts,
            group,
            table,
            ends,
            scratch,
            counts,
            states,
            columns,
            split,
            max(1, shifts.shape[-1]),
            tables,
            SPAN=span,
            SHIFTED=shifts.numel() > 0,
            REPEATED=bool(repeated),
            LANES=STREAM_LANES,
            num_warps=_warps(len(fields), 2),
        )
    return scratch, counts, states


@_rans_encode.register_fake
def _(symbols: Tensor, initial: Tensor, fields: Tensor, *args):
    return (
        symbols.new_empty(args[-1][-1], dtype=torch.int16),
        symbols.new_empty(len(fields), dtype=torch.int64),
        symbols.new_empty(len(initial), dtype=torch.int32),
    )
