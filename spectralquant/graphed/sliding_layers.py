"""`SlidingLayers`: exact tokens of layers that read a window, as rings of fixed size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from spectralquant.geometry import CacheGeometry
from spectralquant.graphed.lengths import Lengths


class SlidingLayers:
    """Keys and values `[L, B, Hk, W, D]` of layers with one window of W tokens; token t lies in place t mod W."""

    def __init__(self, geometry: CacheGeometry, window: int, lengths: Lengths, dtype: torch.dtype) -> None:
        self.lengths, self.window = lengths, min(window, lengths.max_tokens)
        shape = (geometry.layers, lengths.batch, geometry.kv_heads, self.window, geometry.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=lengths.device) for _ in range(2))
        self.places = torch.arange(self.window, device=lengths.device)

    def prefill(self, layer: int, keys: Tensor, values: Tensor, padding: Sequence[int]) -> None:
        """See `CodedLayers.prefill`."""
        for row, skipped in enumerate(padding):
            real = keys.shape[2] - skipped
            kept = min(real, self.window)
            places = torch.arange(real - kept, real, device=keys.device) % self.window
            for x, ring in ((keys, self.keys), (values, self.values)):
                ring[layer, row].index_copy_(1, places, x[row, :, x.shape[2] - kept :])

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """See `CodedLayers.append`."""
        at = ((self.lengths.total - 1).long() % self.window).view(-1, 1, 1, 1).expand_as(keys)
        self.keys[layer].scatter_(2, at, keys)
        self.values[layer].scatter_(2, at, values)

    def attend(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        """See `CodedLayers.attend`."""
        filled = (self.places < self.lengths.total[:, None])[:, None, None]
        output = scaled_dot_product_attention(
            query[:, :, None], self.keys[layer], self.values[layer], filled, scale=scaling, enable_gqa=True
        )
        return output[:, :, 0]

    def compress(self) -> None:
        """Nothing: these layers stay exact."""

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self.keys.nbytes + self.values.nbytes
