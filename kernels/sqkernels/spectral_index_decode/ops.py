"""The kernels as one `torch.library` operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sqkernels.common.launch import LayoutArguments, bucket, exact_arguments
from sqkernels.common.pages import ExactTokens, RowPages
from sqkernels.common.runtime import assembly, overlap
from sqkernels.spectral_decode.launch import Preparation, reduce, row_count
from sqkernels.spectral_index_decode.budget import CELL, LEVELS, Budget, budget_arguments


@dataclass(frozen=True)
class Settings:
    """Launch settings (see NOTES.md). programs: of the scan, a multiprocessor. overlap: see `runtime.overlap`."""

    programs: int
    scan_warps: int
    block: int
    stages: int
    warps: int
    overlap: bool = False


WIDE = Settings(programs=8, scan_warps=4, block=128, stages=2, warps=4)
MANY = Settings(programs=4, scan_warps=4, block=32, stages=2, warps=1)
MANY_ROWS = 32


def settings(rows: int) -> Settings:
    """Programs of one warp where rows of batch and heads fill the device, wide ones where a cell should take one step."""
    return MANY if rows >= MANY_ROWS else WIDE


def index_decode(
    query: Tensor, pages: RowPages, exact: ExactTokens, budget: Budget, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Flatten the arguments; returns the output, SELECTED and COUNTS (see the kernel)."""
    m = pages.matrices
    layout = LayoutArguments.of(m)
    return torch.ops.sqkernels.spectral_index_decode(
        query.contiguous(),
        pages.storage,
        pages.pages,
        pages.first,
        pages.tokens,
        m.heads,
        m.key.decode,
        m.key.constant,
        m.value.decode,
        m.value.constant,
        m.index.decode,
        *exact_arguments(exact),
        *budget_arguments(budget, pages),
        scaling,
        cells_per_program(pages.batch * layout.heads, pages.pages.shape[1], query.device),
        layout.numbers,
    )


def cells_per_program(rows: int, n_pages: int, device: torch.device) -> int:
    """Cells that one program of the scan works through."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    programs = max(1, settings(rows).programs * processors // rows)
    return -(-cell_count(n_pages) // programs)


def cell_count(n_pages: int) -> int:
    """Cells of a sequence of `n_pages` pages."""
    return -(-n_pages * 128 // CELL)


def selected_tokens(selected: Tensor, counts: Tensor, pages: RowPages) -> list[list[Tensor]]:
    """Token numbers per sequence and head."""
    batch, kv = pages.batch, pages.matrices.kv_heads
    out = []
    for b in range(batch):
        rows = []
        for bh in range(b * kv, (b + 1) * kv):
            parts = [selected[bh, c * CELL :][: int(n)] for c, n in enumerate(counts[bh].tolist())]
            rows.append(torch.cat(parts).long() - int(pages.first[b]))
        out.append(rows)
    return out


@torch.library.custom_op("sqkernels::spectral_index_decode", mutates_args=())
def _spectral_index_decode(
    query: Tensor,
    storage: Tensor,
    pages: Tensor,
    first: Tensor,
    tokens: Tensor,
    heads: Tensor,
    key_decode: Tensor,
    key_constant: Tensor,
    value_decode: Tensor,
    value_constant: Tensor,
    index_decode: Tensor,
    sink_keys: Tensor,
    sink_values: Tensor,
    window_keys: Tensor,
    window_values: Tensor,
    window: Tensor | None,
    budget: Tensor | None,
    budget_kind: int,
    share: float,
    count: int,
    expected: int,
    scaling: float,
    per_program: int,
    layout: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    from sqkernels.spectral_index_decode.triton import gather_kernel, scan_kernel

    a = LayoutArguments.from_numbers(layout)
    exact = (sink_keys, sink_values, window_keys, window_values)
    preparation = Preparation.of(query, (key_decode, key_constant), exact, window, scaling, a)
    rows, group = query.shape[0] * a.heads, query.shape[1] // a.heads
    cells = cell_count(pages.shape[1])
    programs, chosen = -(-cells // per_program), settings(rows)
    new = query.new_empty
    bins, levels = new(rows, cells * CELL, dtype=torch.uint8), new(rows, cells, LEVELS, dtype=torch.int32)
    selected, counts = new(rows, cells * CELL, dtype=torch.int32), new(rows, cells, dtype=torch.int32)
    part, stats = (
        new(rows, cells, group, a.value_planes, dtype=torch.float32),
        new(rows, cells, 32, dtype=torch.float32),
    )
    place = (storage, pages, first, tokens, heads)
    scan_kernel[(rows, preparation.roles + programs)](
        query,
        *preparation.arguments,
        *place,
        index_decode,
        bins,
        levels,
        pages.shape[1],
        per_program,
        **preparation.constants,
        RANK=a.index_rank,
        CELL=CELL,
        ASSEMBLY=assembly(query.device),
        **overlap(query.device, chosen.overlap),
        num_warps=chosen.scan_warps,
    )
    prepared = preparation.out
    gather_kernel[(rows, cells)](
        *place,
        prepared.latents,
        prepared.constant,
        tokens if budget is None else budget,
        bins,
        levels,
        selected,
        counts,
        part,
        stats,
        pages.shape[1],
        a.token_bytes,
        expected,
        share,
        count,
        HK=a.heads,
        G=group,
        N=row_count(group),
        CELL=CELL,
        CELLS_P=bucket(cells),
        BUDGET_KIND=budget_kind,
        **a.constants,
        BLOCK=chosen.block,
        STAGES=chosen.stages,
        ASSEMBLY=assembly(query.device),
        **overlap(query.device, chosen.overlap),
        num_warps=chosen.warps,
    )
    return reduce(part, stats, prepared, (value_decode, value_constant), query, chosen.overlap), selected, counts


@_spectral_index_decode.register_fake
def _(query: Tensor, storage: Tensor, pages: Tensor, first: Tensor, tokens: Tensor, heads: Tensor, *args):
    rows, cells = query.shape[0] * heads.shape[0], cell_count(pages.shape[1])
    selected = query.new_empty(rows, cells * CELL, dtype=torch.int32)
    return torch.empty_like(query), selected, query.new_empty(rows, cells, dtype=torch.int32)
