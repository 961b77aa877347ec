"""`FusedEncoder`: keys and values of a cache to coded blocks, all blocks at once.

The way of `FusedDecoder` backwards: one pass turns keys back, takes mean and prediction off and writes float16 coordinates, a
matrix product a group of layers analyses them, one pass quantizes, and the range coder codes. Blocks of many sequences go
together. What does not fit (a coefficient that is not finite or beyond 15 bits, a block that would not shrink) is left to
the caller, who stores it raw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.cold import coded_block, rans_block
from spectralquant.codec.cold.features import TokenRows
from spectralquant.codec.cold.fused.bases import bases_of
from spectralquant.codec.cold.fused.layer_slots import LayerSlots, Predictions, padded
from spectralquant.codec.cold.importance import FLOOR, own_features
from spectralquant.codec.cold.rans_block import RansParts
from spectralquant.codec.cold.spectral import SpectralCodec
from sqkernels.spectral_rows import gather_rows, quantize, row_energy

RUN_TOKENS, MOST_TOKENS, RUN_SCALARS = 8192, 32768, 1 << 27
Ids = tuple[int, np.ndarray]


@dataclass(frozen=True)
class BlockRun:
    """Blocks of `lengths` tokens that lie side by side in `places`. ids: of each block, where the profile predicts from them.
    received: float32 `[N, L, H]`, or None where attention was not observed (all tokens are then of the class `UNSEEN`, and so they are where
    some of it is NaN).
    """

    places: LayerSlots
    lengths: Sequence[int]
    ids: Sequence[Ids | None]
    received: Tensor | None = None

    def part(self, first: int, last: int) -> BlockRun:
        """Blocks first … last."""
        start, stop = sum(self.lengths[:first]), sum(self.lengths[:last])
        received = None if self.received is None else self.received[start:stop]
        return BlockRun(self.places.part(start, stop), self.lengths[first:last], self.ids[first:last], received)


class FusedEncoder:
    """Of a codec whose products are float16."""

    def __init__(self, codec: SpectralCodec, backend: str = "auto") -> None:
        if codec.dtype != torch.float16:
            raise ValueError(f"fused encoding takes a codec with float16 products, not {codec.dtype}")
        self.codec, self.backend = codec, backend
        self.split, self.rows = codec.coder.ranks[0], codec.coder.rows
        self.bases = bases_of(codec)
        self.gain = torch.cat([p.gain for p in codec.projectors]).float().contiguous()

    def encode(self, run: BlockRun) -> list[bytes | None]:
        """Bytes of every block, None for those that have to be stored raw. Waits for the device a few times a run of 8,192 tokens or more.

        Raises:
            PacketError: no ids though the profile predicts from them, or ids that the model does not have.
        """
        out: list[bytes | None] = []
        first = 0
        while first < len(run.lengths):
            last, tokens = first, 0
            while last < len(run.lengths) and (last == first or tokens + run.lengths[last] <= self.run_tokens):
                tokens += run.lengths[last]
                last += 1
            out += self._encode(run.part(first, last))
            first = last
        return out

    @property
    def run_tokens(self) -> int:
        """Tokens that are coded at once: as many as have half a gibibyte of coefficients."""
        return min(MOST_TOKENS, max(RUN_TOKENS, RUN_SCALARS // max(1, self.rows)))

    def symbols(self, run: BlockRun) -> tuple[Tensor, Tensor, Tensor]:
        """Symbols int16 `[R, N]`, classes uint8 `[2, N]` and bool `[N]`, tokens that cannot be coded; without waiting."""
        features = self.codec.token_rows(run.ids)
        y = self.coefficients(run.places, features, sum(run.lengths))
        classes = self._classes(y, run.received)
        symbols, bad = quantize(y, self.gain / self.codec.step_scale, classes, self.split, backend=self.backend)
        return symbols, classes, bad

    def _encode(self, run: BlockRun) -> list[bytes | None]:
        symbols, classes, bad = self.symbols(run)
        lengths = list(run.lengths)
        good = ~np.array([part.any() for part in np.split(bad.cpu().numpy(), np.cumsum(lengths)[:-1])], dtype=bool)
        if not good.all():
            keep = torch.from_numpy(np.repeat(good, lengths)).to(symbols.device)
            symbols, classes = symbols[:, keep].contiguous(), classes[:, keep]
        coded = [i for i in range(len(lengths)) if good[i]]
        parts: Iterator[RansParts] = iter([])
        if coded:
            picked = [lengths[i] for i in coded], [run.ids[i] for i in coded]
            parts = iter(
                self.codec.coder.encode(symbols, classes.T, *picked, adaptive_tables=self.codec.adaptive_tables)
            )
        out: list[bytes | None] = []
        for length, fits in zip(lengths, good, strict=True):
            data = rans_block.join(next(parts)) if fits else None
            most = coded_block.HEADER.size + length * self.codec.geometry.fp16_bytes_per_token
            out.append(data if data is not None and len(data) < most else None)
        return out

    def coefficients(self, places: LayerSlots, features: TokenRows | None, tokens: int) -> Tensor:
        """Float32 `[R, N]`, before gains."""
        y = torch.empty(self.rows, padded(tokens), dtype=torch.float32, device=self.codec.device)
        predictions = None if features is None else Predictions(features)
        for kind, basis in enumerate(self.bases):
            out = y[self.split :] if kind else y[: self.split]
            basis.analyze(partial(self._gather, places, kind, predictions, tokens), out)
        return y[:, :tokens]

    def _gather(
        self, places: LayerSlots, kind: int, predictions: Predictions | None, tokens: int, columns: slice, x: Tensor
    ) -> None:
        """Coordinates of the layers that `columns` are into the first rows of x, one a token."""
        x = x[:tokens]
        g, projector = self.codec.geometry, self.codec.projectors[kind]
        width = g.layer_width
        predicted = None if predictions is None else predictions.of(projector.predictor, columns)
        layers = columns.start // width, columns.stop // width
        for first, last in places.alike(*layers) if kind == 0 else (layers,):
            own = slice(first * width - columns.start, last * width - columns.start)
            gather_rows(
                places.values if kind else places.keys,
                first,
                places.slots,
                g.kv_heads,
                projector.mean[first * width : last * width],
                None if predicted is None else predicted[:, :, own],
                None if predictions is None else predictions.rows,
                None if kind else places.turns[first],
                x[:, own],
                backend=self.backend,
            )

    def _classes(self, y: Tensor, received: Tensor | None) -> Tensor:
        """Uint8 `[2, N]`."""
        leading = self.codec.leading
        if received is None and leading is None:
            return torch.full((2, y.shape[1]), self.codec.coder.unseen, dtype=torch.uint8, device=y.device)
        parts = (y[: self.split], self.gain[: self.split]), (y[self.split :], self.gain[self.split :])
        energies = [row_energy(*p, backend=self.backend) / len(p[0]) for p in parts]
        if leading is not None:
            some = [(p[0][index] * p[1][index, None]).T for p, index in zip(parts, leading, strict=True)]
            return self._class_of(own_features(*some, *energies))
        assert received is not None
        logs = torch.log(torch.stack(energies, dim=1) + 1e-9)
        classes = self._class_of(torch.cat([torch.log(received.flatten(1).nan_to_num() + FLOOR), logs], dim=1))
        unseen = torch.full_like(classes, self.codec.coder.unseen)
        return torch.where(received.isnan().any(), unseen, classes)  # chosen on the device, so that nothing waits

    def _class_of(self, features: Tensor) -> Tensor:
        return self.codec.importance.classes(features).T.to(torch.uint8).contiguous()
