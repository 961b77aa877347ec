"""What dense latent decode attention reads and writes."""

from __future__ import annotations

import torch

from sqkernels.common.attention import Partials, Preparation, reduce_arguments
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.meta import call_without_memory
from sqkernels.common.traffic import (
    Arguments,
    prepare_bytes,
    reduce_bytes,
    slots,
    tensor_bytes,
)
from sqkernels.spectral_decode.settings import choose_splits


def decode_bytes(arguments: Arguments) -> int:
    """Of `decode_kernel`: codes, the query's latents and the page table read, the splits' sums written."""
    codes = slots(arguments) * arguments["token_bytes"]
    return codes + tensor_bytes(arguments, "PAGES", "LATENTS", "CONSTANT", "PART", "STATS")


def decode_traffic(
    matrices: RowMatrices,
    coded: int,
    exact: int,
    group: int,
    *,
    processors: int,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, int]:
    """Bytes read and written, and flops, of one call on a device of so many multiprocessors.

    The sum of what the three kernels count in their `launch_metadata`: codes and exact tokens, matrices, and the sums of
    the splits, which one kernel writes and the next reads. Flops are those of attention over tokens of width D.

    Args:
        coded, exact: tokens of each of `batch` sequences; coded ones fill whole pages. dtype: of query and exact tokens.
    """
    call = call_without_memory(matrices, batch, coded, exact, group, dtype)
    preparation = Preparation.of(call)
    partials = Partials.of(call, choose_splits(call.kv_heads, call.n_pages, processors))
    codes = {**call.codes, **preparation.query_latents, **partials.arguments, "token_bytes": call.layout.token_bytes}
    nbytes = prepare_bytes(preparation.arguments) + decode_bytes(codes)
    nbytes += reduce_bytes(reduce_arguments(partials, preparation, torch.empty_like(call.tensors.query)))
    return {"bytes": nbytes, "flops": 4 * call.kv_heads * group * matrices.head_dim * (coded + exact)}
