"""The streaming protocol: every block older than the recent window is read only through the codec.

A window of text is processed in blocks of 128 tokens. After block c has been computed, block c − 1 leaves the
recent window: it is encoded, decoded and replaced, while the model goes on, so errors accumulate as in real
decoding and every query sees 128 to 255 exact recent tokens and 4 exact sinks. The exact model and all methods run
as one batch over the same tokens (method.md section 6).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_block_keys, unrotate_keys
from spectralquant.codec.exact import int8_round_trip
from spectralquant.evaluation.scores import scores
from spectralquant.evaluation.totals import CodedRange, KeptRange, StreamTotals
from spectralquant.geometry import BLOCK, SINKS, CacheGeometry, LayerGroup
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.hooks.wrappers import model_device, runs_model
from spectralquant.methods.base import AnyMethod, EncodedBlock, EvictingMethod, Method, is_evicting
from spectralquant.methods.eviction.history import AttentionHistory
from spectralquant.methods.grouped import part_of
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.rotary import Rotation


class _Streams:
    """Key/value buffers of B parallel streams over one window, and the attention that reads them."""

    def __init__(self, geometry: CacheGeometry, streams: int, ids: Tensor, *, evicting: bool = False) -> None:
        length, device = len(ids), ids.device
        shape = (geometry.layers, streams, geometry.kv_heads, length, geometry.head_dim)
        self.ids = ids
        self.geometry, self.coded = geometry, geometry.coded_groups(2 * BLOCK)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.received = torch.zeros(geometry.layers, streams, geometry.heads, length, device=device)
        self.watch = AttentionHistory(shape[:-1], device) if evicting else None
        self.keep = torch.ones(shape[:-1], dtype=torch.bool, device=device) if evicting else None
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
        keys, values = self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]
        batch, heads, new, dim = call.query.shape
        kv = keys.shape[1]
        query = call.query.to(keys).reshape(batch, kv, -1, dim)
        scores = (query @ keys.transpose(2, 3)).view(batch, heads, new, stop) * call.scaling
        softcap = call.options.get("softcap")
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores.masked_fill_(~self._allowed(start, stop, call.options.get("sliding_window")), float("-inf"))
        if self.keep is not None:
            kept = self.keep[layer, :, :, :stop].repeat_interleave(heads // kv, dim=1)[:, :, None]
            scores.masked_fill_(~kept, float("-inf"))
        p = scores.softmax(-1)
        if self.watch is not None and not call.shared:
            self.watch.add(layer, p.view(batch, kv, heads // kv, new, stop), start)
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


@torch.no_grad()
@runs_model(spread=True)
def stream_window(
    model: nn.Module,
    geometry: CacheGeometry,
    ids: Tensor,
    methods: Sequence[AnyMethod],
    on_block: Callable[[int, KVBlock, EncodedBlock], None] | None = None,
    *,
    answer: int = 0,
) -> list[StreamTotals]:
    """Score one window `ids: [T]` under every method and the exact model, in one batch.

    `on_block(method_index, block, encoded)` sees each encoded block. With `answer` n, `answered` tells whether each of
    the last n tokens was the first choice. Returns one `StreamTotals` per method.

    Raises:
        InputError: a window longer than the model has positions.
    """
    require_known_ids(model, ids)
    require_positions(model, len(ids), "A window", "Use a shorter one (--context, --window).")
    device = model_device(model)
    ids = ids.to(device)
    count = 1 + len(methods)
    streams = _Streams(geometry, count, ids, evicting=any(is_evicting(m) for m in methods))
    totals = [StreamTotals(exact_tokens=len(ids)) for _ in methods]
    with AttentionTap(model, streams.attend):
        for start in range(0, len(ids), BLOCK):
            stop = min(start + BLOCK, len(ids))
            streams.start = start
            batch = ids[start:stop].expand(count, -1)
            positions = torch.arange(start, stop, device=device).expand(count, -1)
            logits = model(input_ids=batch, position_ids=positions, use_cache=False).logits.to(device)
            targets = ids[start + 1 : stop + 1]
            _score(totals, logits, targets, max(0, len(ids) - answer - start - 1) if answer else len(targets))
            for index, method in enumerate(methods):
                if method.exact_bits == 8:
                    streams.round_recent(index + 1, start, stop)
            if start >= BLOCK:
                first = max(SINKS, start - BLOCK)
                for index, method in enumerate(methods):
                    act = _evict if is_evicting(method) else _compress
                    act(streams, index, method, first, start, totals[index], on_block)
    for total in totals:
        total.close(geometry, len(ids))
    return totals


def _score(totals: list[StreamTotals], logits: Tensor, targets: Tensor, answer_from: int) -> None:
    n = len(targets)
    exact = logits[0, :n].float().log_softmax(-1)
    exact_nll = -exact.gather(1, targets[:, None]).sum(dtype=torch.float64).item()
    for index, total in enumerate(totals):
        coded = logits[index + 1, :n].float().log_softmax(-1)
        total.tokens += n
        total.exact_nll += exact_nll
        total.nll += -coded.gather(1, targets[:, None]).sum(dtype=torch.float64).item()
        total.kl += (exact.exp() * (exact - coded)).sum(dtype=torch.float64).item()
        total.top1 += (exact.argmax(-1) == coded.argmax(-1)).sum().item()
        for name, score in scores().items():
            value = score(exact, coded, targets).sum(dtype=torch.float64).item()
            total.scores[name] = total.scores.get(name, 0.0) + value
        total.answered &= bool((coded.argmax(-1) == targets)[answer_from:].all())
        total.exact_answered &= bool((exact.argmax(-1) == targets)[answer_from:].all())


OnBlock = Callable[[int, KVBlock, EncodedBlock], None]


def _compress(
    streams: _Streams, index: int, method: Method, start: int, stop: int, total: StreamTotals, on_block: OnBlock | None
) -> None:
    whole = streams.block(index + 1, start, stop)
    for group in streams.coded:
        block, part = whole.of_layers(group.layers), part_of(method, group.layers)
        begin = _now(block.keys.device)
        encoded = part.encode(block)
        middle = _now(block.keys.device)
        keys, values = part.decode(encoded)
        total.decode_s += _now(block.keys.device) - middle
        total.encode_s += middle - begin
        total.codes.append(CodedRange(group, start, stop, encoded.nbytes, getattr(part, "by_token", False)))
        total.change += (keys - block.keys).norm().item() + (values - block.values).norm().item()
        streams.replace(index + 1, group.layers, block, keys, values)
        if on_block is not None:
            on_block(index, block, encoded)
    total.coded_tokens += stop - start
    total.exact_tokens -= stop - start


def _evict(
    streams: _Streams,
    index: int,
    method: EvictingMethod,
    start: int,
    stop: int,
    total: StreamTotals,
    on_block: OnBlock | None,
) -> None:
    """Let a method choose, in each group of layers, among all tokens that have left the window and can still be read; what
    it drops is never read again.
    """
    total.coded_tokens += stop - start
    total.exact_tokens -= stop - start
    for group in streams.coded:
        first = min(start, max(SINKS, group.first_read(streams.watch.seen)))
        part = part_of(method, group.layers)
        _evict_group(streams, index, part, group, (first, start, stop), total, on_block)


def _evict_group(
    streams: _Streams,
    index: int,
    method: EvictingMethod,
    group: LayerGroup,
    where: tuple[int, int, int],
    total: StreamTotals,
    on_block: OnBlock | None,
) -> None:
    stream, layers, (first, start, stop) = index + 1, list(group.layers), where
    begin = _now(streams.keys.device)
    history = streams.watch.of(stream, first, stop).of_layers(layers)
    before = streams.keep[layers, stream, :, first:stop]
    block = lambda: streams.block(stream, start, stop).of_layers(layers)  # noqa: E731
    kept, coded = method.evict(history, before, start - first, block)
    total.encode_s += _now(streams.keys.device) - begin
    total.change += float((before & ~kept).sum())
    streams.keep[layers, stream, :, first:stop] = kept
    if coded is None:
        total.keeps[group] = KeptRange(group, first, kept, method)
        return
    begin = _now(streams.keys.device)
    block, encoded, decode = coded()
    middle = _now(streams.keys.device)
    keys, values = decode()
    total.decode_s += _now(streams.keys.device) - middle
    total.encode_s += middle - begin
    total.codes.append(CodedRange(group, start, stop, encoded.nbytes))
    total.change += (keys - block.keys).norm().item() + (values - block.values).norm().item()
    streams.replace_some(stream, layers, start, kept[0, 0, start - first :], block, keys, values)
    if on_block is not None:
        on_block(index, block, encoded)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
