"""`FusedDecoder`: coded blocks straight into the keys and values of a cache, layer after layer.

Entropy decoding gives symbols of all blocks at once; one pass makes float16 coefficients of them. Then, a few layers at a
time from layer 0 on, a matrix product synthesizes keys and values, and one pass adds mean and prediction, turns keys to
their positions and writes both where the cache wants them. The host waits once a run, to check what was decoded and to
read token ids; nothing is written before. What a run holds is its coefficients (two bytes a kept component and token) and
the layers in hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralquant.codec.cold import rans_block
from spectralquant.codec.cold.features import TokenRows
from spectralquant.codec.cold.fused.bases import STEP_COLUMNS, bases_of
from spectralquant.codec.cold.fused.layer_slots import LayerSlots, Predictions, padded
from spectralquant.codec.cold.importance import CLASSES, NEUTRAL
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.cold.symbols import SHIFTS
from spectralquant.codec.products import HALF_LARGEST
from sqkernels.spectral_rows import dequantize, store_rows

RUN_BYTES = 1 << 30
STEP_TOKENS = 8192
CHUNK_BLOCKS, CHUNK_STREAMS = 32, 384
Steps = Sequence[tuple[LayerSlots, int, int]]


@dataclass(frozen=True)
class DecodedRun:
    """Coefficients float16 `[R, N']` of consecutive blocks of N tokens, keys' components first, in units of coordinates / factor;
    N' is N padded (with anything)."""

    coefficients: Tensor
    tokens: int
    factor: float
    features: TokenRows | None


class FusedDecoder:
    """Of a codec whose products are float16."""

    def __init__(self, codec: SpectralCodec, backend: str = "auto") -> None:
        if codec.dtype != torch.float16:
            raise ValueError(f"fused decoding takes a codec with float16 products, not {codec.dtype}")
        self.codec, self.backend = codec, backend
        self.split, self.rows = codec.coder.ranks[0], codec.coder.rows
        self.centroid = torch.cat([q.centroid for q in codec.quantizers]).float().contiguous()
        weights = [p.back for p in codec.projectors if p.back is not None]  # all, as their products are float16
        self.scale = torch.cat(weights).float() * codec.step_scale
        self.bases = bases_of(codec)
        steps = 2.0 ** ((CLASSES - 1 - NEUTRAL) / 2)
        self.largest_scale = float(self.scale.max()) * steps if len(self.scale) else 0.0

    @staticmethod
    def takes(data: bytes | memoryview) -> bool:
        """Whether a block is one that is decoded here: not raw, enhanced or of format version 1."""
        return len(data) > 0 and data[0] in rans_block.MODES

    @property
    def run_tokens(self) -> int:
        """Tokens whose coefficients take up to a gibibyte."""
        return max(1, RUN_BYTES // (2 * max(1, self.rows)))

    def decode(self, blocks: Sequence[bytes | memoryview]) -> DecodedRun:
        """Coefficients of blocks; the host waits for the device once every 32 blocks (or more, of few streams each), which then has the
        next ones in hand.

        Raises:
            PacketError: damaged bytes.
        """
        coder = self.codec.coder
        pending, chunk, streams = [], [], 0
        for at, block in enumerate(blocks):
            chunk.append(rans_block.split(block, coder.ranks, len(SHIFTS)))
            streams += chunk[-1].shape.streams
            if at + 1 == len(blocks) or (len(chunk) >= CHUNK_BLOCKS and streams >= CHUNK_STREAMS):
                pending.append(coder.start(chunk))
                chunk, streams = [], 0
        sparse = [p.finish() for p in pending]
        largest = max(f.largest for f in sparse) * self.largest_scale
        factor = 2.0 ** max(0, math.ceil(math.log2(largest / HALF_LARGEST))) if largest > 0 else 1.0
        scale = self.scale / factor if factor != 1 else self.scale
        tokens = sum(f.symbols.shape[1] for f in sparse)
        out = torch.empty(self.rows, padded(tokens), dtype=torch.float16, device=self.codec.device)
        at = 0
        for f in sparse:
            part = out[:, at : at + f.symbols.shape[1]]
            at += f.symbols.shape[1]
            dequantize(
                f.symbols,
                f.classes,
                self.split,
                self.centroid,
                scale,
                f.positions,
                f.escaped,
                part,
                backend=self.backend,
            )
        return DecodedRun(out, tokens, factor, self.codec.token_rows([pair for f in sparse for pair in f.ids]))

    def write(self, run: DecodedRun, to: LayerSlots, written: Callable[[int], None] = lambda layer: None) -> None:
        """Enqueue the rest, layer 0 first. `written` is told each layer whose work has been enqueued."""
        predictions = None if run.features is None else Predictions(run.features)
        ends = [min(run.tokens, at + STEP_TOKENS) for at in range(0, run.tokens, STEP_TOKENS)]
        parts = [(to.part(at, end), at, end) for at, end in zip([0, *ends[:-1]], ends, strict=True)]
        layers, first = self.codec.geometry.layers, 0
        while first < layers:
            last = min(layers, first + self._layers_at_once(first))
            for kind in range(2):
                for begin, end in to.alike(first, last) if kind == 0 else ((first, last),):
                    self._write_layers(run, predictions, parts, kind, begin, end)
            for layer in range(first, last):
                written(layer)
            first = last

    def _layers_at_once(self, first: int) -> int:
        """Few at the start, so that the first is ready soon."""
        return max(1, (STEP_COLUMNS if first else STEP_COLUMNS // 8) // self.codec.geometry.layer_width)

    def _write_layers(
        self, run: DecodedRun, predictions: Predictions | None, to: Steps, kind: int, first: int, last: int
    ) -> None:
        projector, g = self.codec.projectors[kind], self.codec.geometry
        columns = slice(first * g.layer_width, last * g.layer_width)
        predicted = None if predictions is None else predictions.of(projector.predictor, columns)
        for part, begin, end in to:
            store_rows(
                self.product(run, kind, columns, begin, end),
                projector.mean[columns],
                predicted,
                None if predictions is None else predictions.rows[:, begin:end],
                None if kind else part.turns[first],
                part.values if kind else part.keys,
                first,
                part.slots,
                g.kv_heads,
                factor=run.factor,
                backend=self.backend,
            )

    def product(self, run: DecodedRun, kind: int, columns: slice, begin: int, end: int) -> Tensor:
        """Float16 `[n, columns]`: coefficients of some tokens times their part of the synthesis matrix."""
        rows = slice(self.split, None) if kind else slice(0, self.split)
        return self.bases[kind].synthesize(run.coefficients[rows, begin : begin + padded(end - begin)], columns)[
            : end - begin
        ]
