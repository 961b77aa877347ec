"""`HotRows`: what one page of N tokens of one layer holds, and how it is written and read.

A token's row is its codes (key, then value) and a share of the page's exact part. The exact part holds the first four tokens
of every page as they are: those of a text's first page are its attention sinks, which fixed-rate codes do badly. Rows of all
layers are equally long, as the engine wants them; the longest layer's codes decide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.codec.hot.codec import HotCodec
from spectralquant.errors import InputError
from spectralquant.geometry import SINKS
from spectralquant.integrations.vllm.hot.profile import pages_tier
from spectralquant.profile.model import CalibrationProfile


class HotRows:
    """Rows of a profile's hot tier. block: N, tokens of a page. dtype: of the engine's keys and values."""

    def __init__(
        self, profile: CalibrationProfile, block: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        tier = pages_tier(profile)
        if block < SINKS:
            raise InputError(f"Pages of {block} tokens are too short for the hot tier. Use --block-size 128.")
        self.geometry, self.block, self.dtype = profile.geometry, block, dtype
        self.codec = HotCodec(tier, profile.geometry, device)
        self.codes = max(key.layout.row_bytes + value.layout.row_bytes for key, value in self.codec.layers)
        self.share = row_share(self.geometry.layer_width, block, dtype)
        exact = 2 * self.geometry.layer_width * dtype.itemsize
        place = torch.arange(SINKS * exact, device=device).view(SINKS, exact)
        self._exact = place // self.share, self.codes + place % self.share

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one layer."""
        return self.codes + self.share

    def write(self, layer: int, pages: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write keys (after RoPE) and values `[T, Hk, D]` into pages uint8 `[B, N, row_bytes]`, slots int64 `[T]` (page · N + place;
        negative: not at all).
        """
        good = slots >= 0
        slots, keys, values = slots[good], keys[good], values[good]
        page, place = slots // self.block, slots % self.block
        flat = keys.flatten(1), values.flatten(1)
        rows = torch.cat([m.page(x.float()).T for m, x in zip(self.codec.layers[layer], flat, strict=True)], dim=1)
        pages[page, place, : rows.shape[1]] = rows
        first = place < SINKS
        if bool(first.any()):
            numbers = torch.cat([x[first] for x in flat], dim=1).to(self.dtype).contiguous().view(torch.uint8)
            index = [part[place[first]] for part in self._exact]
            pages[page[first, None], index[0], index[1]] = numbers

    def read(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (after RoPE) and values float32 `[n·N, Hk, D]` of pages `[n, N, row_bytes]`."""
        exact = pages[:, self._exact[0], self._exact[1]].contiguous().view(self.dtype).float()
        out, at = [], 0
        for kind, m in enumerate(self.codec.layers[layer]):
            part = pages[:, :, at : at + m.layout.row_bytes].transpose(1, 2)
            at += m.layout.row_bytes
            x = m.dense(part).unflatten(0, (len(pages), self.block))
            x[:, :SINKS] = exact.chunk(2, dim=2)[kind]
            out.append(x.flatten(0, 1).unflatten(1, (self.geometry.kv_heads, self.geometry.head_dim)))
        return out[0], out[1]


def row_share(width: int, block: int, dtype: torch.dtype) -> int:
    """Bytes that each of a page's N rows gives to its exact tokens."""
    return -(-SINKS * 2 * width * dtype.itemsize // block)
