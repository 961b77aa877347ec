"""`BandLayout`: codes, or parts of codes, of 8, 4 and 2 bits ordered so that a reader needs only whole bytes and shifts.

The hot tier is read in place, layer by layer. A layer's components are sorted by width; each width forms a band that
starts on a byte: first one byte a component, then two components a byte, then four (the first in the lowest bits).
Pages are component-major, `[row_bytes, 128]` for 128 tokens, so that unpacking and products run over contiguous tokens.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

WIDTHS = (8, 4, 2)


class BandLayout:
    """Layout of one layer's codes. bits: uint8 `[R]`, each 2, 4 or 8; `order: [R]` sorts components into bands."""

    def __init__(self, bits: Tensor) -> None:
        self.order = torch.argsort(bits.long(), descending=True, stable=True)
        self.counts = {width: int((bits == width).sum()) for width in WIDTHS}
        if sum(self.counts.values()) != len(bits):
            raise ValueError(f"bands hold 8, 4 and 2 bits, not {sorted(set(bits.tolist()))}")
        self.sizes = {width: -(-n * width // 8) for width, n in self.counts.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes of one token."""
        return sum(self.sizes.values())

    def pack(self, codes: Tensor) -> Tensor:
        """Rows uint8 `[T, row_bytes]` of codes uint8 `[T, R]` in band order."""
        out, at = [], 0
        for width, count in self.counts.items():
            part = codes[:, at : at + count]
            at += count
            per = 8 // width
            part = torch.nn.functional.pad(part, (0, -count % per))
            row = part[:, 0::per].clone()
            for i in range(1, per):
                row |= part[:, i::per] << (i * width)
            out.append(row)
        return torch.cat(out, dim=1)

    def unpack(self, pages: Tensor) -> Tensor:
        """Codes uint8 `[…, padded, S]`, components in `padded_order`, of bytes `pages: […, row_bytes, S]`."""
        shifted = self._shifted(pages, torch.uint8)
        at = 0
        for width, size in self.sizes.items():
            stop = at + size * (8 // width)
            shifted[..., at:stop, :] &= 2**width - 1
            at = stop
        return shifted

    def shifted(self, pages: Tensor) -> Tensor:
        """Float32 like `unpack`, but each component with those that lie above it in its byte: byte >> position.

        This needs no masks. What it adds to a component, `shifted_rows` takes from the matrix that reads it.
        """
        return self._shifted(pages, torch.float32)

    def _shifted(self, pages: Tensor, dtype: torch.dtype) -> Tensor:
        *lead, _, tokens = pages.shape
        out = torch.empty(*lead, len(self.padded_order()), tokens, device=pages.device, dtype=dtype)
        at = done = 0
        for width, size in self.sizes.items():
            band = pages[..., at : at + size, :]
            at += size
            for i in range(8 // width if size else 0):
                out[..., done : done + size, :] = band >> (i * width) if i else band
                done += size
        return out

    def shifted_rows(self, rows: Tensor) -> Tensor:
        """Rows `[padded, C]` such that `shifted(x)ᵀ · shifted_rows(m)` is `unpack(x)ᵀ · m`."""
        out = rows.clone()
        at = 0
        for width, size in self.sizes.items():
            stop = at + size * (8 // width)
            out[at + size : stop] -= 2**width * rows[at : stop - size]
            at = stop
        return out

    @functools.cache  # noqa: B019 (layouts live as long as their profile)
    def padded_order(self) -> Tensor:
        """Position in band order of each component that `unpack` gives; −1 where a byte has room to spare."""
        out, at = [torch.zeros(0, dtype=torch.int64)], 0
        for width, count in self.counts.items():
            per = 8 // width
            index = torch.nn.functional.pad(torch.arange(at, at + count), (0, -count % per), value=-1)
            at += count
            out += [index[i::per] for i in range(per)]
        return torch.cat(out)
