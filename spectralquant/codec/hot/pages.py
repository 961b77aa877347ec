"""Hot pages from one layout to the other: bands (component-major, read on a CPU) and rows (token-major, read by kernels).

Kernels load words: each of a head's bands is padded to 4 bytes, which costs 8 % of the bytes at heads of 64 and 4 bits. A
CPU and a file need no words and keep the bytes: bands are the only layout on disk, and every device reads them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spectralquant.codec.hot.codec import HotCodec, HotMatrices
from spectralquant.geometry import BLOCK
from sqkernels.common import RowMatrices
from sqkernels.common.reference import page_codes, page_of_codes


def rows_to_bands(page: Tensor, matrices: RowMatrices, codec: HotCodec) -> Tensor:
    """Bytes of a page of bands `[n]` with the codes of a page of rows; both on the CPU, whatever device the matrices are on."""
    out = []
    kv = codec.geometry.kv_heads
    keys, values = page_codes(page, matrices)
    for layer, pair in enumerate(codec.layers):
        for m, codes in zip(pair, (keys, values), strict=True):
            of_layer = torch.cat(codes[layer * kv : (layer + 1) * kv], dim=1)
            out.append(beside(m, page).pack(of_layer).reshape(-1))
    return torch.cat(out)


def bands_to_rows(page: Tensor, matrices: RowMatrices, codec: HotCodec) -> Tensor:
    """Bytes of a page of rows with the codes of a page of bands; both on the CPU, whatever device the matrices are on."""
    both: tuple[list[Tensor], list[Tensor]] = ([], [])
    at = 0
    for layer, pair in enumerate(codec.layers):
        for kind, m in enumerate(pair):
            size = m.layout.row_bytes * BLOCK
            codes = beside(m, page).unpack(page[at : at + size].view(m.layout.row_bytes, BLOCK))
            at += size
            both[kind].extend(codes.split(_ranks(matrices, codec, layer, kind), dim=1))
    return page_of_codes(*both, matrices)


def beside(matrices: HotMatrices, page: Tensor) -> HotMatrices:
    """A layer's matrices with the order of their codes' parts on the page's device; the rest may lie on another."""
    return replace(matrices, parts=matrices.parts.to(page.device))


def _ranks(matrices: RowMatrices, codec: HotCodec, layer: int, kind: int) -> list[int]:
    kv = codec.geometry.kv_heads
    return [matrices.layout.ranks[kind][layer * kv + head] for head in range(kv)]
