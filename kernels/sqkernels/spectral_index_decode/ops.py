"""The kernels as one `torch.library` operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sqkernels.common.attention import AttentionCall, AttentionTensors, Partials, Preparation, reduce
from sqkernels.common.launch import LayoutArguments, bucket
from sqkernels.common.pages import ExactTokens, RowPages
from sqkernels.common.runtime import assembly, multiprocessors, overlap
from sqkernels.operators import operator
from sqkernels.spectral_index_decode.budget import CELL, Budget, BudgetArguments
from sqkernels.spectral_index_decode.selection import Selection
from sqkernels.spectral_index_decode.settings import cells_per_program, settings


def index_decode(
    query: Tensor, pages: RowPages, exact: ExactTokens, budget: Budget, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `api.spectral_index_decode`; checked arguments. Returns the output, and what `Selection` calls selected and counts."""
    layout, allowed = LayoutArguments.of(pages.matrices), BudgetArguments.of(budget, pages)
    per_program = cells_per_program(pages.batch * layout.heads, pages.pages.shape[1], multiprocessors(query.device))
    tensors = AttentionTensors.of(query, pages, exact).as_list()
    index = [pages.matrices.index.decode, allowed.by_head]
    return torch.ops.sqkernels.spectral_index_decode(
        tensors, index, layout.numbers, scaling, allowed.share, allowed.numbers, per_program
    )


def selected_tokens(selected: Tensor, counts: Tensor, pages: RowPages) -> list[list[Tensor]]:
    """Token numbers per sequence and head."""
    batch, kv = pages.batch, pages.matrices.kv_heads
    out = []
    for b in range(batch):
        heads = []
        for bh in range(b * kv, (b + 1) * kv):
            parts = [selected[bh, c * CELL :][: int(n)] for c, n in enumerate(counts[bh].tolist())]
            heads.append(torch.cat(parts).long() - int(pages.first[b]))
        out.append(heads)
    return out


@operator("sqkernels::spectral_index_decode")
def _spectral_index_decode(
    tensors: Sequence[Tensor],
    index: Sequence[Tensor],
    layout: Sequence[int],
    scaling: float,
    share: float,
    budget: Sequence[int],
    per_program: int,
) -> tuple[Tensor, Tensor, Tensor]:
    from sqkernels.spectral_index_decode.triton import gather_kernel, scan_kernel

    call = AttentionCall.from_operator(tensors, layout, scaling)
    index_decode, by_head = index
    allowed = BudgetArguments(by_head, share, *budget)
    device, chosen = call.tensors.query.device, settings(call.kv_heads)
    preparation, selection = Preparation.of(call), Selection.of(call)
    partials = Partials.of(call, selection.cells)
    programs = -(-selection.cells // per_program)
    scan_kernel[(call.kv_heads, preparation.roles + programs)](
        **preparation.arguments,
        **call.codes,
        INDEX_DECODE=index_decode,
        **selection.scores,
        cells_per_program=per_program,
        RANK=call.layout.index_rank,
        CELL=CELL,
        ASSEMBLY=assembly(device),
        **overlap(device, chosen.overlap),
        num_warps=chosen.scan_warps,
    )
    gather_kernel[(call.kv_heads, selection.cells)](
        **call.codes,
        **preparation.query_latents,
        **selection.arguments,
        **partials.arguments,
        **allowed.arguments,
        token_bytes=call.layout.token_bytes,
        CELL=CELL,
        CELLS_P=bucket(selection.cells),
        **call.products,
        BLOCK=chosen.block,
        STAGES=chosen.stages,
        ASSEMBLY=assembly(device),
        **overlap(device, chosen.overlap),
        num_warps=chosen.warps,
    )
    return reduce(partials, preparation, chosen.overlap), selection.selected, selection.counts


@_spectral_index_decode.register_fake
def _(tensors: Sequence[Tensor], index, layout: Sequence[int], scaling: float, *args):
    call = AttentionCall.from_operator(tensors, layout, scaling)
    selection = Selection.of(call)
    return torch.empty_like(call.tensors.query), selection.selected, selection.counts
