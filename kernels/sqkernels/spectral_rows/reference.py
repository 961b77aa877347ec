"""The same in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.spectral_rows.layout import TokenSlots, Turns

LIMIT = 32767
NEUTRAL = 4


def class_steps(classes: Tensor, split: int, rows: int) -> Tensor:
    """Float32 `[R, N]`: 2^((class − 4) / 2) of every row's kind."""
    kind = (torch.arange(rows, device=classes.device) >= split).long()
    return torch.exp2((classes.float() - NEUTRAL) / 2)[kind]


def dequantize(
    symbols: Tensor,
    classes: Tensor,
    split: int,
    centroid: Tensor,
    scale: Tensor,
    positions: Tensor,
    escaped: Tensor,
) -> Tensor:
    """See `api.dequantize`."""
    whole = symbols.int()
    inside = (positions >= 0) & (positions < whole.numel())
    whole.view(-1)[positions[inside]] = escaped[inside].int()
    value = whole.float()
    value = torch.where(whole.abs() == 1, value * centroid[:, None], value)
    return (value * scale[:, None] * class_steps(classes, split, len(whole))).half()


def store_rows(
    x: Tensor,
    constant: Tensor,
    predicted: tuple[Tensor, Tensor] | None,
    rows: tuple[Tensor, Tensor] | None,
    turns: Turns | None,
    out: Tensor,
    slots: TokenSlots,
    heads: int,
    factor: float,
) -> None:
    """See `api.store_rows`."""
    value = x.float() * factor + constant
    if predicted is not None:
        value += predicted[0].float()[rows[0].long()] + predicted[1].float()[rows[1].long()]
    value = value.view(len(x), heads, -1)
    if turns is not None:
        first, second = turns.columns(x.device)
        a, b = value[..., first], value[..., second]
        cos, sin = turns.cos[:, None], turns.sin[:, None]
        value[..., first], value[..., second] = a * cos - b * sin, b * cos + a * sin
    _flat(out)[_places(slots, heads, value.shape[2])] = value.to(out.dtype)


def gather_rows(
    cache: Tensor,
    slots: TokenSlots,
    heads: int,
    dim: int,
    constant: Tensor,
    predicted: tuple[Tensor, Tensor] | None,
    rows: tuple[Tensor, Tensor] | None,
    turns: Turns | None,
) -> Tensor:
    """See `api.gather_rows`."""
    value = _flat(cache)[_places(slots, heads, dim)].float()
    if turns is not None:
        first, second = turns.columns(cache.device)
        a, b = value[..., first], value[..., second]
        cos, sin = turns.cos[:, None], turns.sin[:, None]
        size = cos.square() + sin.square()
        value[..., first], value[..., second] = (a * cos + b * sin) / size, (b * cos - a * sin) / size
    value = value.flatten(1) - constant
    if predicted is not None:
        value -= predicted[0].float()[rows[0].long()] + predicted[1].float()[rows[1].long()]
    return value.half()


def quantize(y: Tensor, gain: Tensor, classes: Tensor, split: int) -> tuple[Tensor, Tensor]:
    """See `api.quantize`."""
    scaled = (y * (gain[:, None] / class_steps(classes, split, len(y)))).round()
    bad = ~(scaled.abs() < LIMIT)
    return torch.where(bad, 0, scaled).to(torch.int16), bad.any(0)


def row_energy(y: Tensor, gain: Tensor) -> Tensor:
    """See `api.row_energy`."""
    return (y * gain[:, None]).square().sum(0)


def _flat(tensor: Tensor) -> Tensor:
    """All elements from a tensor's first one on."""
    start = tensor.storage_offset()
    count = tensor.untyped_storage().nbytes() // tensor.itemsize - start
    return tensor.as_strided((count,), (1,), start)


def _places(slots: TokenSlots, heads: int, dim: int) -> Tensor:
    head = torch.arange(heads, device=slots.offsets.device)[:, None] * slots.head_stride
    return slots.offsets[:, None, None] + head + torch.arange(dim, device=slots.offsets.device)
