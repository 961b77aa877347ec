"""What index decode attention reads and writes."""

from __future__ import annotations

import torch

from sqkernels.common.attention import Partials, Preparation, reduce_arguments
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.meta import call_without_memory
from sqkernels.common.traffic import (
    Arguments,
    prepare_bytes,
    prepare_flops,
    reduce_bytes,
    slots,
    tensor_bytes,
)
from sqkernels.spectral_index_decode.selection import Selection


def scan_bytes(arguments: Arguments) -> int:
    """Of `scan_kernel`: the index and what the preparation reads; bins, levels and what the preparation writes."""
    codes = slots(arguments) * arguments["HK"] * arguments["RANK"] // 2
    return codes + prepare_bytes(arguments) + tensor_bytes(arguments, "PAGES", "INDEX_DECODE", "BINS", "LEVELS")


def scan_flops(arguments: Arguments) -> int:
    """Integer and float operations of `scan_kernel`."""
    return 2 * slots(arguments) * arguments["HK"] * arguments["RANK"] + prepare_flops(arguments)


def gather_bytes(arguments: Arguments) -> int:
    """Of `gather_kernel`: bins and levels, codes of the `expected` selected tokens of every head, their 4-byte slots (written,
    then read), latents and page table; the cells' sums."""
    selected = arguments["PAGES"].shape[0] * arguments["expected"]
    codes = selected * (arguments["token_bytes"] + 2 * 4 * arguments["HK"])
    read = tensor_bytes(arguments, "PAGES", "BINS", "LEVELS", "LATENTS", "CONSTANT")
    return codes + read + tensor_bytes(arguments, "COUNTS", "PART", "STATS")


def index_traffic(
    matrices: RowMatrices,
    coded: int,
    exact: int,
    selected: int,
    group: int,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, int]:
    """Bytes read and written, and flops, of one call whose heads select `selected` of `coded` tokens each.

    The sum of what the three kernels count in their `launch_metadata`: index, scores, codes of selected tokens, exact
    tokens, matrices, and the sums of the cells, which one kernel writes and the next reads.

    Args:
        coded, exact: tokens of each of `batch` sequences; coded ones fill whole pages. dtype: of query and exact tokens.
    """
    call = call_without_memory(matrices, batch, coded, exact, group, dtype)
    preparation, selection = Preparation.of(call), Selection.of(call)
    partials = Partials.of(call, selection.cells)
    scan = {**call.codes, **preparation.arguments, **selection.scores}
    scan |= {"INDEX_DECODE": matrices.index.decode, "RANK": call.layout.index_rank}
    gather = {**call.codes, **preparation.query_latents, **selection.arguments, **partials.arguments}
    gather |= {"HK": call.layout.heads, "token_bytes": call.layout.token_bytes, "expected": selected}
    nbytes = scan_bytes(scan) + gather_bytes(gather)
    nbytes += reduce_bytes(reduce_arguments(partials, preparation, torch.empty_like(call.tensors.query)))
    dim, rank = matrices.head_dim, call.layout.index_rank
    flops = 2 * call.kv_heads * group * (rank * coded + 2 * dim * (selected + exact))
    return {"bytes": nbytes, "flops": flops}
