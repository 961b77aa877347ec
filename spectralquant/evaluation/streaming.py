"""Two protocols: how a method's tokens are read while the model goes on (docs/method.md, "Protocol").

Streaming: a window of text is processed in blocks of 128 tokens. After block c has been computed, block c − 1 leaves the
recent window: it is encoded, decoded and replaced, so errors accumulate as in real decoding and every query sees 128 to
255 exact recent tokens and 4 exact sinks. An evicting method chooses after every block among all that it holds.

Prompt: the first `prompt` tokens are read exactly and compressed once; what follows is scored and stays exact.

The exact model and all methods run as one batch over the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectralquant.codec.block import KVBlock
from spectralquant.errors import InputError
from spectralquant.evaluation.scores import scores
from spectralquant.evaluation.streams import Streams
from spectralquant.evaluation.totals import CodedRange, KeptRange, StreamTotals
from spectralquant.geometry import BLOCK, SINKS, CacheGeometry, LayerGroup
from spectralquant.hooks.rotary_tables import future_rotations
from spectralquant.hooks.tap import AttentionTap
from spectralquant.hooks.wrappers import model_device, runs_model
from spectralquant.methods.base import (
    AnyMethod,
    ComposedMethod,
    EncodedBlock,
    EvictingMethod,
    Method,
    is_composed,
    is_evicting,
    mode_of,
    reads_content,
)
from spectralquant.methods.eviction.evictor import PROMPT, STREAMING
from spectralquant.methods.grouped import part_of
from spectralquant.models.limits import require_known_ids, require_positions

OnBlock = Callable[[int, KVBlock, EncodedBlock], None]


@torch.no_grad()
@runs_model(spread=True)
def stream_window(
    model: nn.Module,
    geometry: CacheGeometry,
    ids: Tensor,
    methods: Sequence[AnyMethod],
    on_block: OnBlock | None = None,
    *,
    answer: int = 0,
    prompt: int = 0,
) -> list[StreamTotals]:
    """Score one window `ids: [T]` under every method and the exact model, in one batch.

    `on_block(method_index, block, encoded)` sees each encoded block. With `answer` n, `answered` tells whether each of
    the last n tokens was the first choice. With `prompt` n, the first n tokens are a prompt that is compressed once, and
    only predictions that read it compressed are scored. Returns one `StreamTotals` per method.

    Raises:
        InputError: a window longer than the model has positions, or a method that works in the other protocol alone.
    """
    require_known_ids(model, ids)
    require_positions(model, len(ids), "A window", "Use a shorter one (--context, --window).")
    mode = PROMPT if prompt else STREAMING
    for method in methods:
        if mode_of(method) not in (None, mode):
            raise InputError(f"{method.name} with mode={mode_of(method)} cannot be measured in the {mode} protocol.")
    device = model_device(model)
    ids = ids.to(device)
    length = prompt or len(ids)
    watching = any(is_evicting(m) or is_composed(m) for m in methods)
    future = future_rotations(model, geometry) if any(map(reads_content, methods)) else None
    streams = Streams(geometry, 1 + len(methods), ids, evicting=watching, future=future)
    run = _Run(streams, geometry, methods, [StreamTotals(exact_tokens=length) for _ in methods], length, on_block)
    with AttentionTap(model, streams.attend):
        for start in range(-(-prompt % BLOCK), prompt, BLOCK):
            run.read(model, ids, max(0, start), start + BLOCK, 1)
        if prompt:
            run.compress_prompt()
        for start in range(prompt, len(ids), BLOCK):
            stop = min(start + BLOCK, len(ids))
            logits = run.read(model, ids, start, stop, 1 + len(methods))
            targets = ids[start + 1 : stop + 1]
            answer_from = max(0, len(ids) - answer - start - 1) if answer else len(targets)
            _score(run.totals, logits, targets, answer_from)
            if not prompt:
                run.leave(start, stop)
    for method, total in zip(methods, run.totals, strict=True):
        total.close(geometry, length, run.coded_to, getattr(method, "sums_per_token", 0))
    return run.totals


@dataclass
class _Run:
    """One window under way. coded_to: tokens from there on are still recent."""

    streams: Streams
    geometry: CacheGeometry
    methods: Sequence[AnyMethod]
    totals: list[StreamTotals]
    length: int
    on_block: OnBlock | None
    coded_to: int = SINKS

    def read(self, model: nn.Module, ids: Tensor, start: int, stop: int, count: int) -> Tensor:
        """Logits of a block in the first `count` streams."""
        self.streams.start = start
        batch = ids[start:stop].expand(count, -1)
        positions = torch.arange(start, stop, device=ids.device).expand(count, -1)
        return model(input_ids=batch, position_ids=positions, use_cache=False).logits.to(ids.device)

    def leave(self, start: int, stop: int) -> None:
        """A block has been read: the one before it leaves the recent window."""
        for index, method in enumerate(self.methods):
            if method.exact_bits == 8:
                self.streams.round_recent(index + 1, start, stop)
            if is_evicting(method):
                self._choose(index, method)
            elif start >= BLOCK:
                self._code(index, method, max(SINKS, start - BLOCK), start)
        self.coded_to = max(SINKS, start)

    def compress_prompt(self) -> None:
        """The prompt has been read: all of its blocks leave but the last 128 to 255 tokens."""
        blocks = range(0, self.length // BLOCK * BLOCK - BLOCK, BLOCK)
        for index, method in enumerate(self.methods):
            if is_evicting(method):
                self._choose(index, method)
                continue
            for start in blocks:
                self._code(index, method, max(SINKS, start), start + BLOCK)
            if method.exact_bits == 8:
                for start, stop in ((0, SINKS), (max(SINKS, blocks.stop), self.length)):
                    self.streams.round_recent(index + 1, start, stop)
        self.coded_to = max(SINKS, blocks.stop)

    def _code(self, index: int, method: Method | ComposedMethod, start: int, stop: int) -> None:
        total = self.totals[index]
        for group in self.streams.coded:
            part = part_of(method, group.layers)
            act = _select if is_composed(part) else _compress
            act(self.streams, index, part, group, start, stop, total, self.on_block)
        total.coded_tokens += stop - start
        total.exact_tokens -= stop - start

    def _choose(self, index: int, method: EvictingMethod) -> None:
        """Let a method choose, in each group of layers, among all tokens that can still be read; what it drops is never
        read again.
        """
        streams, total = self.streams, self.totals[index]
        seen = streams.watch.seen
        for group in streams.coded:
            layers, first = list(group.layers), group.first_read(seen)
            begin = _now(streams.keys.device)
            history = streams.history(index + 1, first, seen, layers)
            held = streams.keep[layers, index + 1, :, first:seen]
            kept = part_of(method, layers).choose(history, held, group.held(self.length))
            total.encode_s += _now(streams.keys.device) - begin
            total.change += float((held & ~kept).sum())
            streams.keep[layers, index + 1, :, first:seen] = kept
            total.keeps[group] = KeptRange(group, first, kept, method)
        total.coded_tokens, total.exact_tokens = seen, 0


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


def _compress(
    streams: Streams,
    index: int,
    method: Method,
    group: LayerGroup,
    start: int,
    stop: int,
    total: StreamTotals,
    on_block: OnBlock | None,
) -> None:
    block = streams.block(index + 1, start, stop).of_layers(group.layers)
    begin = _now(block.keys.device)
    encoded = method.encode(block)
    middle = _now(block.keys.device)
    keys, values = method.decode(encoded)
    total.decode_s += _now(block.keys.device) - middle
    total.encode_s += middle - begin
    total.codes.append(CodedRange(group, start, stop, encoded.nbytes, getattr(method, "by_token", False)))
    total.change += (keys - block.keys).norm().item() + (values - block.values).norm().item()
    streams.replace(index + 1, group.layers, block, keys, values)
    if on_block is not None:
        on_block(index, block, encoded)


def _select(
    streams: Streams,
    index: int,
    method: ComposedMethod,
    group: LayerGroup,
    start: int,
    stop: int,
    total: StreamTotals,
    on_block: OnBlock | None,
) -> None:
    """Forget some tokens of a block and code the others."""
    stream, layers = index + 1, list(group.layers)
    first = min(start, group.first_read(streams.watch.seen))
    history = streams.history(stream, first, streams.watch.seen, layers)
    block = streams.block(stream, start, stop).of_layers(layers)
    begin = _now(block.keys.device)
    chosen, part, encoded = method.select(history, slice(start - first, stop - first), block)
    middle = _now(block.keys.device)
    keys, values = method.decode(encoded)
    total.decode_s += _now(block.keys.device) - middle
    total.encode_s += middle - begin
    total.codes.append(CodedRange(group, start, stop, encoded.nbytes))
    total.change += (keys - part.keys).norm().item() + (values - part.values).norm().item()
    total.change += float((~chosen).sum())
    streams.keep[layers, stream, :, start:stop] = chosen
    streams.replace_some(stream, layers, start, chosen, part, keys, values)
    if on_block is not None:
        on_block(index, part, encoded)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
