"""Checked entry points."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common import runtime
from sqkernels.spectral_rows import reference
from sqkernels.spectral_rows.layout import LayerTensors, TokenSlots, Turns

__all__ = ["dequantize", "gather_rows", "quantize", "row_energy", "store_rows"]


def dequantize(
    symbols: Tensor,
    classes: Tensor,
    split: int,
    centroid: Tensor,
    scale: Tensor,
    positions: Tensor,
    escaped: Tensor,
    out: Tensor,
    *,
    backend: str = "auto",
) -> None:
    """Coefficients of symbols (int8, int16 or int32) `[R, N]` into float16 out: `[R, N]`: symbol · scale · 2^((class − 4) / 2), ±1
    as centroid.

    classes: uint8 `[2, N]`, for the rows before `split` and for those from it on. centroid, scale: float32 `[R]`. positions: int64
    `[E]`, flat places whose symbols are escaped: int32 `[E]` instead (those outside the matrix are left out).

    Raises:
        ValueError: shapes or dtypes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    rows, columns = symbols.shape
    _expect("classes", classes, torch.uint8, (2, columns))
    _expect("centroid", centroid, torch.float32, (rows,))
    _expect("scale", scale, torch.float32, (rows,))
    _expect("positions", positions, torch.int64, (len(positions),))
    _expect("escaped", escaped, torch.int32, (len(positions),))
    _expect("out", out, torch.float16, (rows, columns))
    if out.numel() and out.stride(1) != 1:
        raise ValueError("rows of out must have adjacent coefficients")
    arguments = (symbols.contiguous(), classes.contiguous(), split, centroid, scale, positions, escaped, out)
    if runtime.choose(backend, symbols.device) == "reference":
        return reference.dequantize(*arguments)
    from sqkernels.spectral_rows.launch import dequantize as launch

    return launch(*arguments)


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
    *,
    factor: float = 1.0,
    backend: str = "auto",
) -> None:
    """Write keys or values of n layers, from layer `first` on, into a cache: factor · x: `[N, n·C]` + constant: float32 `[n·C]` +
    predictions, keys turned.

    predicted: `[2, U, n·C]`, two matrices of which `rows`, int32 `[2, N]`, name each token's rows. turns: None for values, and for keys
    without rotary embedding. Nothing checks that `slots` lie inside the cache: whoever makes them knows.

    Raises:
        ValueError: shapes or dtypes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    _check(x, constant, predicted, rows, turns, out, first, slots, heads)
    arguments = (x, constant, predicted, rows, turns, out, first, slots, heads, factor)
    if runtime.choose(backend, x.device) == "reference":
        return reference.store_rows(*arguments)
    from sqkernels.spectral_rows.launch import store_rows as launch

    return launch(*arguments)


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
    *,
    backend: str = "auto",
) -> None:
    """The inverse of `store_rows`: into float16 out: `[N, n·C]`; what is beyond float16 becomes infinite.

    Raises:
        ValueError: shapes or dtypes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    _check(out, constant, predicted, rows, turns, cache, first, slots, heads)
    _expect("out", out, torch.float16, tuple(out.shape))
    arguments = (cache, first, slots, heads, constant, predicted, rows, turns, out)
    if runtime.choose(backend, out.device) == "reference":
        return reference.gather_rows(*arguments)
    from sqkernels.spectral_rows.launch import gather_rows as launch

    return launch(*arguments)


def quantize(y: Tensor, gain: Tensor, classes: Tensor, split: int, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Symbols int16 `[R, N]`, gain · y / 2^((class − 4) / 2) rounded to nearest, of y: float32 `[R, N]`; and bool `[N]`, tokens
    that have a symbol beyond 15 bits or none at all (0 stands in its place).

    Raises:
        ValueError: shapes or dtypes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    rows, columns = y.shape
    _expect("y", y, torch.float32, (rows, columns))
    _expect("gain", gain, torch.float32, (rows,))
    _expect("classes", classes, torch.uint8, (2, columns))
    if runtime.choose(backend, y.device) == "reference":
        return reference.quantize(y, gain, classes, split)
    from sqkernels.spectral_rows.launch import quantize as launch

    return launch(_adjacent(y), gain, classes.contiguous(), split)


def row_energy(y: Tensor, gain: Tensor, *, backend: str = "auto") -> Tensor:
    """Sum of squares float32 `[N]` of gain · y, y: float32 `[R, N]`; always added up in the same order.

    Raises:
        ValueError: shapes or dtypes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    _expect("y", y, torch.float32, tuple(y.shape))
    _expect("gain", gain, torch.float32, (len(y),))
    if runtime.choose(backend, y.device) == "reference":
        return reference.row_energy(y, gain)
    from sqkernels.spectral_rows.launch import row_energy as launch

    return launch(_adjacent(y), gain)


def _adjacent(y: Tensor) -> Tensor:
    return y if y.stride(1) == 1 else y.contiguous()


def _check(
    x: Tensor,
    constant: Tensor,
    predicted: Tensor | None,
    rows: Tensor | None,
    turns: Turns | None,
    cache: LayerTensors,
    first: int,
    slots: TokenSlots,
    heads: int,
) -> None:
    tokens, width = x.shape
    dim = cache.tensors[0].shape[-1]
    if width % (heads * dim) or not 0 <= first <= len(cache.tensors) - width // (heads * dim):
        raise ValueError(f"{width} coordinates are not those of layers from {first} on, of {len(cache.tensors)}")
    if x.stride(1) != 1 or cache.tensors[0].stride(-1) != 1:
        raise ValueError("coordinates of a token must be adjacent")
    _expect("constant", constant, torch.float32, (width,))
    _expect("offsets", slots.offsets, torch.int64, (tokens,))
    if (predicted is None) != (rows is None):
        raise ValueError("predicted and rows come together")
    if predicted is not None:
        _expect("predicted", predicted, predicted.dtype, (2, predicted.shape[1], width))
        _expect("rows", rows, torch.int32, (2, tokens))
        if predicted.stride(2) != 1 or (tokens and rows.stride(1) != 1):
            raise ValueError("predictions and rows must have adjacent numbers")
    if turns is not None:
        if 2 * turns.pairs > dim:
            raise ValueError(f"{turns.pairs} pairs are more than a head of {dim} has")
        for table in (turns.cos, turns.sin):
            _expect("cos and sin", table, torch.float32, (tokens, turns.pairs))


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must be {dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")
