"""What the host prepares for the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sqkernels.common.launch import next_power
from sqkernels.spectral_rows.layout import LayerTensors, TokenSlots, Turns

TILE_ROWS, TILE_COLUMNS = 16, 256
ESCAPES = 256
TOKENS = 16
ENERGY_ROWS = 512


def dequantize(
    symbols: Tensor,
    classes: Tensor,
    split: int,
    centroid: Tensor,
    scale: Tensor,
    positions: Tensor,
    escaped: Tensor,
    out: Tensor,
) -> None:
    """See `api.dequantize`."""
    from sqkernels.spectral_rows.triton import dequantize_kernel, escaped_kernel

    rows, columns = symbols.shape
    if not symbols.numel():
        return
    shared = (classes, centroid, scale, out)
    numbers = (rows, columns, split, out.stride(0))
    dequantize_kernel[_grid(rows, columns)](
        symbols, *shared, *numbers, ROWS=TILE_ROWS, COLUMNS=TILE_COLUMNS, num_warps=4
    )
    if len(positions):
        grid = (-(-len(positions) // ESCAPES),)
        escaped_kernel[grid](positions, escaped, *shared, len(positions), *numbers, TILE=ESCAPES, num_warps=4)


def store_rows(
    x: Tensor,
    constant: Tensor,
    predicted: Tensor | None,
    rows: Tensor | None,
    turns: Turns | None,
    out: LayerTensors,
    first: int,
    slots: TokenSlots,
    heads: int,
    factor: float,
) -> None:
    """See `api.store_rows`."""
    from sqkernels.spectral_rows.triton import store_rows_kernel

    tokens, dim = len(x), out.tensors[0].shape[-1]
    if not tokens:
        return
    own, before, own_row, before_row, stride = _predictions(predicted, rows, constant)
    cos, sin = (constant, constant) if turns is None else (turns.cos.contiguous(), turns.sin.contiguous())
    store_rows_kernel[(-(-tokens // TOKENS), x.shape[1] // dim)](
        x,
        constant,
        own,
        before,
        own_row,
        before_row,
        cos,
        sin,
        out.tensors[0],
        out.offsets[first:],
        slots.offsets.contiguous(),
        tokens,
        heads,
        x.stride(0),
        stride,
        slots.head_stride,
        factor,
        **_constants(dim, turns, predicted is not None),
    )


def gather_rows(
    cache: LayerTensors,
    first: int,
    slots: TokenSlots,
    heads: int,
    constant: Tensor,
    predicted: Tensor | None,
    rows: Tensor | None,
    turns: Turns | None,
    out: Tensor,
) -> None:
    """See `api.gather_rows`."""
    from sqkernels.spectral_rows.triton import gather_rows_kernel

    tokens, dim = len(out), cache.tensors[0].shape[-1]
    if not tokens:
        return
    own, before, own_row, before_row, stride = _predictions(predicted, rows, constant)
    cos, sin = (constant, constant) if turns is None else (turns.cos.contiguous(), turns.sin.contiguous())
    gather_rows_kernel[(-(-tokens // TOKENS), out.shape[1] // dim)](
        cache.tensors[0],
        cache.offsets[first:],
        slots.offsets.contiguous(),
        constant,
        own,
        before,
        own_row,
        before_row,
        cos,
        sin,
        out,
        tokens,
        heads,
        out.stride(0),
        stride,
        slots.head_stride,
        **_constants(dim, turns, predicted is not None),
    )


def quantize(y: Tensor, gain: Tensor, classes: Tensor, split: int) -> tuple[Tensor, Tensor]:
    """See `api.quantize`."""
    from sqkernels.spectral_rows.triton import quantize_kernel

    rows, columns = y.shape
    symbols = torch.empty(rows, columns, dtype=torch.int16, device=y.device)
    bad = torch.zeros(columns, dtype=torch.uint8, device=y.device)
    if y.numel():
        quantize_kernel[_grid(rows, columns)](
            y,
            gain,
            classes,
            symbols,
            bad,
            rows,
            columns,
            split,
            y.stride(0),
            ROWS=TILE_ROWS,
            COLUMNS=TILE_COLUMNS,
            num_warps=4,
        )
    return symbols, bad.bool()


def row_energy(y: Tensor, gain: Tensor) -> Tensor:
    """See `api.row_energy`."""
    from sqkernels.spectral_rows.triton import energy_kernel

    rows, columns = y.shape
    parts = torch.zeros(-(-rows // ENERGY_ROWS), columns, dtype=torch.float32, device=y.device)
    if y.numel():
        grid = (-(-columns // TILE_COLUMNS), len(parts))
        energy_kernel[grid](
            y, gain, parts, rows, columns, y.stride(0), ROWS=ENERGY_ROWS, COLUMNS=TILE_COLUMNS, num_warps=4
        )
    return parts.sum(0)


def _grid(rows: int, columns: int) -> tuple[int, int]:
    return -(-columns // TILE_COLUMNS), -(-rows // TILE_ROWS)


def _predictions(predicted: Tensor | None, rows: Tensor | None, any_tensor: Tensor) -> tuple[Any, ...]:
    """Both matrices, both rows, and how far apart the matrices' rows are; any tensor where there are none."""
    if predicted is None:
        return (any_tensor,) * 4 + (0,)
    return predicted[0], predicted[1], rows[0], rows[1], predicted.stride(1)


def _constants(dim: int, turns: Turns | None, predicted: bool) -> dict[str, Any]:
    pairs = 0 if turns is None else turns.pairs
    return {
        "D": dim,
        "F": pairs,
        "FP": next_power(max(1, pairs)),
        "TP": next_power(dim - 2 * pairs) if dim > 2 * pairs else 0,
        "NEIGHBOURS": turns is not None and turns.neighbours,
        "PREDICTED": predicted,
        "T": TOKENS,
        "num_warps": 4,
    }
