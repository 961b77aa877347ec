"""Bit packing in plain torch.

Bits of one token follow each other component by component, least significant bit first, without gaps; the row is
padded with zeros to whole bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor


class BitRows:
    """How rows of components of `bits` (uint8 `[R]`, at most 8 each) are packed, prepared once for one device.

    Nothing is checked: see `api` for functions that do.
    """

    def __init__(self, bits: Tensor, device: torch.device | str = "cpu") -> None:
        widths = bits.long().cpu()
        starts = torch.cumsum(widths, 0) - widths
        component = torch.repeat_interleave(torch.arange(len(widths)), widths)
        within = torch.arange(len(component)) - starts[component]
        self._component, self._within = component.to(device), within.to(device, torch.uint8)
        self._byte = (starts // 8).to(device)
        self._shift = (starts % 8).to(device, torch.int32)
        self._mask = (2**widths - 1).to(device, torch.int32)

    def pack(self, codes: Tensor) -> Tensor:
        """Rows uint8 `[T, bytes]` of codes uint8 `[T, R]`."""
        stream = (codes[:, self._component] >> self._within) & 1
        stream = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 8))
        stream = stream.view(len(codes), -1, 8)
        packed = stream[..., 0].clone()
        for bit in range(1, 8):
            packed |= stream[..., bit] << bit
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """Codes uint8 `[T, R]` of rows `[T, bytes]`; one of at most 8 bits lies in at most two neighbouring bytes."""
        padded = torch.nn.functional.pad(packed, (0, 2))
        pair = padded[:, self._byte].to(torch.int32) | (padded[:, self._byte + 1].to(torch.int32) << 8)
        return ((pair >> self._shift) & self._mask).to(torch.uint8)
