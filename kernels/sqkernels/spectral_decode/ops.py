"""The kernels as one `torch.library` operator, so that `torch.compile` and CUDA graphs see one opaque call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sqkernels.common.launch import LayoutArguments, exact_arguments
from sqkernels.common.pages import ExactTokens, RowPages
from sqkernels.common.runtime import assembly, overlap
from sqkernels.spectral_decode.launch import Preparation, reduce, row_count


@dataclass(frozen=True)
class Settings:
    """Launch settings of the decode kernel (see NOTES.md). programs: a multiprocessor's. overlap: see `runtime.overlap`."""

    block: int
    warps: int
    programs: int
    stages: int = 3
    overlap: bool = False


WIDE = Settings(block=128, warps=4, programs=4)
MANY = Settings(block=64, warps=2, programs=8)
MANY_ROWS = 32


def settings(rows: int) -> Settings:
    """Small programs where rows of batch and heads fill the device, wide ones where few rows must."""
    return MANY if rows >= MANY_ROWS else WIDE


def decode(query: Tensor, pages: RowPages, exact: ExactTokens, scaling: float) -> Tensor:
    """Flatten the arguments into the operator's."""
    m = pages.matrices
    layout = LayoutArguments.of(m)
    return torch.ops.sqkernels.spectral_decode(
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
        *exact_arguments(exact),
        scaling,
        choose_splits(pages.batch * layout.heads, pages.pages.shape[1], query.device),
        layout.numbers,
    )


def choose_splits(rows: int, n_pages: int, device: torch.device) -> int:
    """Splits of the sequence: a few programs a multiprocessor, at least two pages each."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return max(1, min(settings(rows).programs * processors // rows, n_pages // 2, 128))


@torch.library.custom_op("sqkernels::spectral_decode", mutates_args=())
def _spectral_decode(
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
    sink_keys: Tensor,
    sink_values: Tensor,
    window_keys: Tensor,
    window_values: Tensor,
    window: Tensor | None,
    scaling: float,
    splits: int,
    layout: list[int],
) -> Tensor:
    from sqkernels.spectral_decode.triton import decode_kernel

    a = LayoutArguments.from_numbers(layout)
    exact = (sink_keys, sink_values, window_keys, window_values)
    preparation = Preparation.of(query, (key_decode, key_constant), exact, window, scaling, a)
    rows, group = query.shape[0] * a.heads, query.shape[1] // a.heads
    chosen = settings(rows)
    prepared = preparation.run(query, chosen.overlap)
    part = query.new_empty(rows, splits, group, a.value_planes, dtype=torch.float32)
    stats = query.new_empty(rows, splits, 32, dtype=torch.float32)
    decode_kernel[(rows, splits)](
        storage,
        pages,
        first,
        tokens,
        heads,
        prepared.latents,
        prepared.constant,
        part,
        stats,
        pages.shape[1],
        a.token_bytes,
        HK=a.heads,
        G=group,
        N=row_count(group),
        **a.constants,
        BLOCK=chosen.block,
        STAGES=chosen.stages,
        ASSEMBLY=assembly(query.device),
        **overlap(query.device, chosen.overlap),
        num_warps=chosen.warps,
    )
    return reduce(part, stats, prepared, (value_decode, value_constant), query, chosen.overlap)


@_spectral_decode.register_fake
def _(query: Tensor, *args) -> Tensor:
    return torch.empty_like(query)
