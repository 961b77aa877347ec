"""The same in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.spectral_rows.layout import LayerTensors, TokenSlots, Turns

LIMIT = 32767
NEUTRAL, MOST = 4, 8


def class_steps(classes: Tensor, split: int, rows: int) -> Tensor:
    """Float32 `[R, N]`: 2^((class − 4) / 2) of every row's kind; 1 for classes beyond 8."""
    classes = torch.where(classes > MOST, NEUTRAL, classes)
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
    out: Tensor,
) -> None:
    """See `api.dequantize`."""
    whole = symbols.int()
    inside = (positions >= 0) & (positions < whole.numel())
    whole.view(-1)[positions[inside]] = escaped[inside].int()
    value = whole.float()
    value = torch.where(whole.abs() == 1, value * centroid[:, None], value)
    out.copy_(value * scale[:, None] * class_steps(classes, split, len(whole)))


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
    value = x.float() * factor + constant
    if predicted is not None:
        value += predicted[0].float()[rows[0].long()] + predicted[1].float()[rows[1].long()]
    dim = out.tensors[0].shape[-1]
    value = value.view(len(x), -1, dim)
    if turns is not None:
        one, two = turns.columns(x.device)
        a, b = value[..., one], value[..., two]
        cos, sin = turns.cos[:, None], turns.sin[:, None]
        value[..., one], value[..., two] = a * cos - b * sin, b * cos + a * sin
    for i, layer in enumerate(value.split(heads, dim=1)):
        tensor = out.tensors[first + i]
        _flat(tensor)[_places(slots, heads, dim)] = layer.to(tensor.dtype)


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
    dim = cache.tensors[0].shape[-1]
    count = out.shape[1] // (heads * dim)
    places = _places(slots, heads, dim)
    value = torch.cat([_flat(t)[places] for t in cache.tensors[first : first + count]], dim=1).float()
    if turns is not None:
        one, two = turns.columns(out.device)
        a, b = value[..., one], value[..., two]
        cos, sin = turns.cos[:, None], turns.sin[:, None]
        size = cos.square() + sin.square()
        value[..., one], value[..., two] = (a * cos + b * sin) / size, (b * cos - a * sin) / size
    value = value.flatten(1) - constant
    if predicted is not None:
        value -= predicted[0].float()[rows[0].long()] + predicted[1].float()[rows[1].long()]
    out.copy_(value)


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
