"""Bit packing in plain torch.

Bits of one token follow each other component by component, least significant bit first, without gaps; the row is
padded with zeros to whole bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _layout(bits: Tensor) -> tuple[Tensor, Tensor]:
    """For every bit of a row: its component and its position inside the component's code."""
    widths = bits.long()
    component = torch.repeat_interleave(torch.arange(len(widths), device=widths.device), widths)
    starts = torch.cumsum(widths, 0) - widths
    return component, torch.arange(len(component), device=widths.device) - starts[component]


def pack_codes(codes: Tensor, bits: Tensor) -> Tensor:
    """See `api.pack_codes`."""
    component, shift = (t.to(codes.device) for t in _layout(bits))
    stream = (codes[:, component] >> shift.to(torch.uint8)) & 1
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 8))
    weight = 2 ** torch.arange(8, device=codes.device, dtype=torch.uint8)
    return (stream.view(len(codes), -1, 8) * weight).sum(-1).to(torch.uint8)


def unpack_codes(packed: Tensor, bits: Tensor) -> Tensor:
    """See `api.unpack_codes`."""
    component, shift = (t.to(packed.device) for t in _layout(bits))
    index = torch.arange(8, device=packed.device, dtype=torch.uint8)
    stream = ((packed[..., None] >> index) & 1).flatten(1)[:, : len(component)]
    codes = torch.zeros(len(packed), len(bits), dtype=torch.int32, device=packed.device)
    codes.index_add_(1, component, stream.to(torch.int32) << shift.to(torch.int32))
    return codes.to(torch.uint8)
