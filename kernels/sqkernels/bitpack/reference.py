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
    stream = stream.view(len(codes), -1, 8)
    packed = stream[..., 0].clone()
    for bit in range(1, 8):
        packed |= stream[..., bit] << bit
    return packed


def unpack_codes(packed: Tensor, bits: Tensor) -> Tensor:
    """See `api.unpack_codes`. A code of at most 8 bits lies in at most two neighbouring bytes."""
    widths = bits.long()
    starts = torch.cumsum(widths, 0) - widths
    first = (starts // 8).to(packed.device)
    padded = torch.nn.functional.pad(packed, (0, 2))
    pair = padded[:, first].to(torch.int16) | (padded[:, first + 1].to(torch.int16) << 8)
    pair = pair.to(torch.int32) & 0xFFFF
    shift, mask = (starts % 8).to(packed.device, torch.int32), (2**widths - 1).to(packed.device, torch.int32)
    return ((pair >> shift) & mask).to(torch.uint8)
