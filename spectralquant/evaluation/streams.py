"""`Streams`: key/value buffers of parallel streams over one window, and the attention that reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_block_keys, unrotate_keys
from spectralquant.codec.exact import int8_round_trip
from spectralquant.geometry import BLOCK, CacheGeometry
from spectralquant.hooks.tap import AttentionCall
from spectralquant.methods.eviction.history import AttentionHistory, HistoryView
from spectralquant.methods.eviction.queries import FutureRotations, QueryHistory
from spectralquant.rotary import Rotation, undo_rope


class Streams:
    """Keys and values of B streams over one window of T tokens, float32 `[L, B, Hk, T, D]`; stream 0 is exact.

    A call with a batch of one stands for all streams: what they have in common is computed once.
    evicting: attention is watched. future: rotations at positions to come, where queries are watched too.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        streams: int,
        ids: Tensor,
        *,
        evicting: bool = False,
        future: FutureRotations | None = None,
    ) -> None:
        length, device = len(ids), ids.device
        shape = (geometry.layers, streams, geometry.kv_heads, length, geometry.head_dim)
        self.ids = ids
        self.geometry, self.coded = geometry, geometry.coded_groups(2 * BLOCK)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.received = torch.zeros(geometry.layers, streams, geometry.heads, length, device=device)
        self.watch = AttentionHistory(shape[:-1], device) if evicting else None
        self.keep = torch.ones(shape[:-1], dtype=torch.bool, device=device) if evicting else None
        queries = (geometry.layers, streams, geometry.heads, geometry.head_dim)
        self.queries = None if future is None else QueryHistory.empty(queries, device, future)
        self.rotations: list[Rotation | None] = [None] * geometry.layers
        self.length = length
        self.start = 0

    def attend(self, call: AttentionCall) -> Tensor:
        """The output, where the layer computes; buffers of all layers lie on one device."""
        layer, start, stop = call.layer, self.start, self.start + call.query.shape[2]
        if not call.shared:
            self.keys[layer, :, :, start:stop] = call.key.float()  # assignments cross devices
            self.values[layer, :, :, start:stop] = call.value.float()
            self._keep_rotary(call, start, stop)
            self._keep_queries(call, start)
        batch, heads, new, dim = call.query.shape
        keys, values = self.keys[layer, :batch, :, :stop], self.values[layer, :batch, :, :stop]
        kv = keys.shape[1]
        query = call.query.to(keys).reshape(batch, kv, -1, dim)
        scores = (query @ keys.transpose(2, 3)).view(batch, heads, new, stop) * call.scaling
        softcap = call.options.get("softcap")
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        allowed = self._allowed(start, stop, call.options.get("sliding_window"))
        scores.masked_fill_(~allowed, float("-inf"))
        if self.keep is not None:
            kept = self.keep[layer, :batch, :, :stop]
            scores.masked_fill_(~kept.repeat_interleave(heads // kv, dim=1)[:, :, None], float("-inf"))
        p = scores.softmax(-1)
        if self.watch is not None and self.keep is not None and not call.shared:
            readable = kept.float() @ allowed.float().T
            self.watch.add(layer, p.view(batch, kv, heads // kv, new, stop), start, readable)
        output = (p.view(batch, kv, -1, stop) @ values).view(batch, heads, new, dim)
        if not call.shared:
            self._count_received(layer, p, start, stop)
        return output.transpose(1, 2).to(call.query).contiguous()

    def _allowed(self, start: int, stop: int, window: int | None) -> Tensor:
        rows = torch.arange(start, stop, device=self.keys.device)[:, None]
        columns = torch.arange(stop, device=self.keys.device)
        allowed = columns <= rows
        return allowed if window is None else allowed & (columns > rows - window)

    def _count_received(self, layer: int, p: Tensor, start: int, stop: int) -> None:
        first = max(0, start - BLOCK)
        recent = p[..., first:stop].sum(2)
        recent[..., start - first :] -= p[..., start:stop].diagonal(dim1=2, dim2=3)
        self.received[layer, :, :, first:stop] += recent

    def _keep_rotary(self, call: AttentionCall, start: int, stop: int) -> None:
        if call.cos is None or not self.geometry.rotary[call.layer]:
            return
        new = call.rotation(self.geometry.layout)
        if self.rotations[call.layer] is None:
            zeros = [torch.zeros(self.length, new.cos.shape[-1], device=self.keys.device) for _ in range(2)]
            self.rotations[call.layer] = Rotation(*zeros, new.pairs)
        held = self.rotations[call.layer]
        held.cos[start:stop], held.sin[start:stop] = new.cos, new.sin

    def _keep_queries(self, call: AttentionCall, start: int) -> None:
        if self.queries is None:
            return
        queries, rotary = call.query.float(), call.cos is not None and self.geometry.rotary[call.layer]
        queries = undo_rope(queries, call.rotation(self.geometry.layout)) if rotary else queries
        self.queries.add(call.layer, queries, start, call.scaling)

    def history(self, stream: int, start: int, stop: int, layers: Sequence[int]) -> HistoryView:
        """What evicting methods know of tokens start … stop of one stream in some layers."""
        index, part = list(layers), slice(start, stop)
        view = self.watch.of(stream, start, stop).of_layers(index)
        if self.queries is None:
            return view
        parts = (x[index, stream, :, part] for x in (self.keys, self.values, self.keep))
        return view.with_content(self.queries.content(index, stream, *parts))

    def block(self, stream: int, start: int, stop: int) -> KVBlock:
        """Tokens start … stop of one stream, keys before RoPE."""
        rotations = tuple(None if r is None else r.part(slice(start, stop)) for r in self.rotations)
        keys = self.keys[:, stream, :, start:stop].permute(2, 0, 1, 3)
        received = self.received[:, stream, :, start:stop].permute(2, 0, 1).contiguous()
        values = self.values[:, stream, :, start:stop].permute(2, 0, 1, 3).contiguous()
        return KVBlock(
            keys=unrotate_keys(rotations, keys).contiguous(),
            values=values,
            start=start,
            received=received,
            token_ids=self.ids[start:stop],
            previous_id=int(self.ids[start - 1]) if start else -1,
            rotations=rotations,
        )

    def round_recent(self, stream: int, start: int, stop: int) -> None:
        """Hold the newest block at 8 bits from now on (its own queries have already read it exactly)."""
        for buffer in (self.keys, self.values):
            part = buffer[:, stream, :, start:stop]
            buffer[:, stream, :, start:stop] = int8_round_trip(part)

    def replace_some(
        self,
        stream: int,
        layers: Sequence[int],
        start: int,
        kept: Tensor,
        block: KVBlock,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        """`replace` for the `kept` tokens of a block alone."""
        index = start + torch.nonzero(kept).squeeze(1)
        both = (rotate_block_keys(block, keys).permute(1, 2, 0, 3), values.permute(1, 2, 0, 3))
        for buffer, new in zip((self.keys, self.values), both, strict=True):
            for layer, rows in zip(layers, new, strict=True):
                buffer[layer, stream][:, index] = rows

    def replace(self, stream: int, layers: Sequence[int], block: KVBlock, keys: Tensor, values: Tensor) -> None:
        """Overwrite some layers of a block by decoded keys (before RoPE) and values, both `[T, L, Hk, D]`."""
        part = slice(block.start, block.start + block.tokens)
        self.keys[list(layers), stream, :, part] = rotate_block_keys(block, keys).permute(1, 2, 0, 3)
        self.values[list(layers), stream, :, part] = values.permute(1, 2, 0, 3)
