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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectralquant.codec.cold import rans_block
from spectralquant.codec.cold.features import TokenRows
from spectralquant.codec.cold.importance import CLASSES, NEUTRAL
from spectralquant.codec.cold.layer_slots import LayerSlots, groups_of, layer_predictions
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.cold.symbols import SHIFTS
from spectralquant.codec.products import HALF_LARGEST
from sqkernels.spectral_rows import dequantize, store_rows

RUN_BYTES = 1 << 30
STEP_TOKENS = 8192
STEP_COLUMNS = 1024
Steps = Sequence[tuple[LayerSlots, int, int]]


@dataclass(frozen=True)
class DecodedRun:
    """Coefficients float16 `[R, N]` of consecutive blocks, keys' components first, in units of coordinates / factor."""

    coefficients: Tensor
    factor: float
    features: TokenRows | None

    @property
    def tokens(self) -> int:
        """N."""
        return self.coefficients.shape[1]


class FusedDecoder:
    """Of a codec whose products are float16."""

    def __init__(self, codec: SpectralCodec, backend: str = "auto") -> None:
        if codec.dtype != torch.float16:
            raise ValueError(f"fused decoding takes a codec with float16 products, not {codec.dtype}")
        self.codec, self.backend = codec, backend
        self.split, self.rows = codec.coder.ranks[0], codec.coder.rows
        self.centroid = torch.cat([q.centroid for q in codec.quantizers]).float().contiguous()
        self.scale = torch.cat([p.back for p in codec.projectors]).float() * codec.step_scale
        self.largest_scale = float(self.scale.max()) if len(self.scale) else 0.0

    @staticmethod
    def takes(data: bytes | memoryview) -> bool:
        """Whether a block is one that is decoded here: not raw, enhanced or of format version 1."""
        return len(data) > 0 and data[0] in rans_block.MODES

    @property
    def run_tokens(self) -> int:
        """Tokens whose coefficients take up to a gibibyte."""
        return max(1, RUN_BYTES // (2 * max(1, self.rows)))

    def decode(self, blocks: Sequence[bytes | memoryview]) -> DecodedRun:
        """Coefficients of blocks; waits for the device once.

        Raises:
            PacketError: damaged bytes.
        """
        codec = self.codec
        found = codec.coder.decode_sparse([rans_block.split(b, codec.coder.ranks, len(SHIFTS)) for b in blocks])
        largest = found.largest * self.largest_scale * 2.0 ** ((CLASSES - 1 - NEUTRAL) / 2)
        factor = 2.0 ** max(0, math.ceil(math.log2(largest / HALF_LARGEST))) if largest > 0 else 1.0
        coefficients = dequantize(
            found.symbols,
            found.classes,
            self.split,
            self.centroid,
            self.scale / factor if factor != 1 else self.scale,
            found.positions,
            found.escaped,
            backend=self.backend,
        )
        return DecodedRun(coefficients, factor, codec.token_rows(found.ids))

    def write(self, run: DecodedRun, to: LayerSlots, written: Callable[[int], None] = lambda layer: None) -> None:
        """Enqueue the rest, layer 0 first. `written` is told each layer whose work has been enqueued."""
        half = None if run.features is None else replace(run.features, rows=run.features.rows.half())
        step = max(1, STEP_COLUMNS // self.codec.geometry.layer_width)
        layers, ends = self.codec.geometry.layers, range(0, run.tokens, STEP_TOKENS)
        parts = [(to.part(at, min(run.tokens, at + STEP_TOKENS)), at, min(run.tokens, at + STEP_TOKENS)) for at in ends]
        for first in range(0, layers, step):
            last = min(layers, first + step)
            for kind in range(2):
                self._write_layers(run, half, parts, kind, first, last)
            for layer in range(first, last):
                written(layer)

    def _write_layers(
        self, run: DecodedRun, features: TokenRows | None, to: Steps, kind: int, first: int, last: int
    ) -> None:
        projector, g = self.codec.projectors[kind], self.codec.geometry
        columns = slice(first * g.layer_width, last * g.layer_width)
        predicted = rows = None
        if projector.predictor is not None:
            predicted = features.times(projector.predictor[:, columns])
            own, before = predicted.own.int(), predicted.before.int()
        for part, begin, end in to:
            x = self._product(run, kind, columns, begin, end)
            if predicted is not None:
                rows = own[begin:end], before[begin:end]
            for layer in range(first, last):
                at = (layer - first) * g.layer_width
                store_rows(
                    x[:, at : at + g.layer_width],
                    projector.mean[layer * g.layer_width : (layer + 1) * g.layer_width],
                    layer_predictions(predicted, at, g.layer_width),
                    rows,
                    None if kind else part.turns[layer],
                    (part.values if kind else part.keys)[layer],
                    part.slots,
                    g.kv_heads,
                    factor=run.factor,
                    backend=self.backend,
                )

    def _product(self, run: DecodedRun, kind: int, columns: slice, begin: int, end: int) -> Tensor:
        """Float16 `[n, columns]`: coefficients of some tokens times their part of the synthesis matrix."""
        projector = self.codec.projectors[kind]
        parts = []
        for group, own, _ in groups_of(projector.ranks, projector.span, columns):
            rows = slice(group.start + kind * self.split, group.stop + kind * self.split)
            y = run.coefficients[rows, begin:end].T
            parts.append(y @ projector.synthesis[group, own] if group.stop > group.start else y.new_zeros(len(y), own.stop - own.start))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
