"""`SpectralCodec`: the cold tier, blocks of keys and values to entropy-coded bytes and back."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold import coded_block, rans_block
from spectralquant.codec.cold.coefficients import BlockCoefficients, joined
from spectralquant.codec.cold.complement import bounded_block
from spectralquant.codec.cold.complement.bounded import BlockError, BoundedEncoder, ErrorBound
from spectralquant.codec.cold.complement.coder import ComplementCoder
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.cold.complement.outside import OutsideSketch
from spectralquant.codec.cold.complement.reading import read_bounded
from spectralquant.codec.cold.entropy import CodedSymbols, EntropyCoder
from spectralquant.codec.cold.entropy_v1 import EntropyReaderV1
from spectralquant.codec.cold.features import TokenFeatures, TokenRows
from spectralquant.codec.cold.importance import CLASSES, ImportanceModel, class_step, importance_features, own_features
from spectralquant.codec.cold.projected import Projected, QuantizedRun
from spectralquant.codec.cold.quantizer import SpectralQuantizer
from spectralquant.codec.cold.symbols import SHIFTS
from spectralquant.codec.products import product_dtype
from spectralquant.codec.projector import SpectralProjector
from spectralquant.errors import PacketError
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.tensors import ColdTier

RUN_SCALARS = 1 << 24
MOST_ERRORS = 4096


class SpectralCodec:
    """Encoder and decoder of one profile's cold tier.

    `embedding: [vocabulary, hidden]` is the model's input embedding; needed when the profile predicts from token ids.
    `adaptive_tables` lets each block shift its tables where that saves bytes (worth it away from the calibrated domain).
    `step_scale` multiplies the calibrated base step: above 1 is smaller and worse, below 1 larger and better. dtype: of
    the products (None: see `codec.products`). heads: the profile's, for the second stage that some blocks have. bound: on
    the error of every block (see `codec.cold.complement.bounded`), which needs them.
    """

    def __init__(
        self,
        tier: ColdTier,
        geometry: CacheGeometry,
        embedding: Tensor | None,
        device: torch.device | str = "cpu",
        step_scale: float = 1.0,
        adaptive_tables: bool = False,
        dtype: torch.dtype | None = None,
        heads: WeightedHeads | None = None,
        bound: ErrorBound | None = None,
    ) -> None:
        if bound is not None and heads is None:
            raise ValueError("a bound on the error needs the profile's heads, in whose bases it is measured")
        self.heads, self.bound = heads, bound
        self.errors: deque[BlockError] = deque(maxlen=MOST_ERRORS)  # of the latest blocks coded to a bound
        self.geometry = geometry
        self.device = torch.device(device)
        self.step_scale = step_scale
        self.adaptive_tables = adaptive_tables
        self.tier = tier
        self.dtype = product_dtype(tier, self.device, step_scale) if dtype is None else dtype
        self.projectors = tuple(SpectralProjector(basis, device, self.dtype) for basis in (tier.key, tier.value))
        self.quantizers = tuple(SpectralQuantizer(c.to(device)) for c in (tier.key_centroid, tier.value_centroid))
        self.coder = EntropyCoder(tier.tables, (tier.key_choice, tier.value_choice), device)
        self.importance = ImportanceModel(tier.importance_weight.to(device), tier.importance_bias.to(device))
        self.leading = None if tier.leading is None else tier.leading.to(device)
        self.features = None
        if len(tier.key.predictor):
            if embedding is None:
                raise ValueError("this profile predicts from token ids and needs the model's input embedding")
            projection = tier.embedding_projection if tier.embedding_projection.numel() else None
            self.features = TokenFeatures(embedding.to(device), projection)

    @property
    def complement_heads(self) -> WeightedHeads:
        """The heads in whose bases second stages are.

        Raises:
            PacketError: this codec was made without the profile's heads.
        """
        if self.heads is None:
            raise PacketError("A block has a second stage, which takes the profile's heads to read.")
        return self.heads

    @functools.cached_property
    def complement(self) -> ComplementCoder:
        """Coder of second stages.

        Raises:
            PacketError: see `complement_heads`.
        """
        return ComplementCoder(self.complement_heads.count, self.geometry.head_dim, self.device)

    @functools.cached_property
    def outside(self) -> OutsideSketch:
        """What tells how much of a block the basis drops."""
        return OutsideSketch(self.projectors, self.complement_heads)

    @functools.cached_property
    def reader_v1(self) -> EntropyReaderV1:
        """For blocks of packets of format version 1."""
        choice = (self.tier.key_choice[:CLASSES].numpy(), self.tier.value_choice[:CLASSES].numpy())
        return EntropyReaderV1(self.tier.tables.numpy(), choice, self.tier.class_tables.numpy())

    def encode(self, block: KVBlock) -> bytes:
        """Compress a block (layout: `codec.rans_block`). Never expands: what does not shrink is stored raw."""
        return self.encode_run([block])[0]

    def encode_run(self, blocks: Sequence[KVBlock]) -> list[bytes]:
        """Compress blocks of one or more sequences, many at once."""
        if self.bound is not None:
            encoder = BoundedEncoder(self, self.complement_heads, self.complement, self.bound)
            return [data for some in self._runs(blocks) for data in encoder.encode_run(some)]
        return [data for some in self._runs(blocks) for data in self.coded(some, self.quantized(some))]

    def _runs(self, blocks: Sequence[KVBlock]) -> Iterator[list[KVBlock]]:
        """The blocks, as many at once as keep temporary tensors small."""
        run: list[KVBlock] = []
        for block in blocks:
            if run and sum(b.keys.numel() for b in (*run, block)) > RUN_SCALARS:
                yield run
                run = []
            run.append(block)
        if run:
            yield run

    def coded(self, blocks: Sequence[KVBlock], run: QuantizedRun) -> list[bytes]:
        """Bytes of quantized blocks; raw where a token cannot be coded or nothing shrinks."""
        good = [bool(g.all()) for g in run.good.split([b.tokens for b in blocks])]
        coded = [b for b, g in zip(blocks, good, strict=True) if g]
        keep = torch.cat([torch.full((b.tokens,), g) for b, g in zip(blocks, good, strict=True)])
        run = run if all(good) else run.part(keep.to(self.device))
        parts: Iterator[rans_block.RansParts] = iter([])
        if coded:
            lengths = [b.tokens for b in coded]
            parts = iter(
                self.coder.encode(
                    run.symbols, run.classes, lengths, [*map(self.ids, coded)], adaptive_tables=self.adaptive_tables
                )
            )
        out = []
        for block, g in zip(blocks, good, strict=True):
            data = rans_block.join(next(parts)) if g else b""
            worth = g and len(data) < coded_block.HEADER.size + block.fp16_bytes
            out.append(data if worth else self.raw(block))
        return out

    def quantized(self, blocks: Sequence[KVBlock]) -> QuantizedRun:
        """The symbols of some blocks, side by side."""
        projected = self.projected(blocks)
        return self.symbols(projected, projected.classes, class_step(projected.classes) * self.step_scale)

    def projected(self, blocks: Sequence[KVBlock]) -> Projected:
        """Some blocks, side by side, in the basis."""
        features = self._rows([(b.previous_id, b.token_ids) for b in blocks])
        y, outside = [], []
        for i, (projector, kind) in enumerate(zip(self.projectors, ("keys", "values"), strict=True)):
            rows = None if self.bound is None else self.outside.sketches[i]
            own, beside = projector.project_with(
                [getattr(b, kind).reshape(b.tokens, -1) for b in blocks], features, rows
            )
            y.append(own)
            if beside is not None:
                outside.append(beside.square_().sum(1))
        dropped = torch.stack(outside, dim=1) if outside else None
        return Projected((y[0], y[1]), self._classes(blocks, y), features, dropped)

    def symbols(self, projected: Projected, classes: Tensor, steps: Tensor) -> QuantizedRun:
        """Symbols of what `projected` gave, of tokens of `classes: [N, 2]`, at `steps: [N, 2]`."""
        both = enumerate(zip(self.quantizers, projected.y, strict=True))
        pairs = [q.quantize(c, steps[:, i]) for i, (q, c) in both]
        return QuantizedRun(torch.cat([s.T for s, _ in pairs]), classes, pairs[0][1] & pairs[1][1])

    def reconstructed(self, symbols: Tensor, steps: Tensor, features: TokenRows | None) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values `[N, L, Hk, D]` of symbols `[R, N]` at `steps: [N, 2]`."""
        values = self.dequantize(symbols, steps)
        return self.decode_coefficients(BlockCoefficients(len(steps), values, None, None, features))

    def dequantize(self, symbols: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients `[N, R]` of keys and values that symbols `[R, N]` stand for at `steps: [N, 2]`."""
        split = self.coder.ranks[0]
        parts = symbols[:split].T, symbols[split:].T
        both = enumerate(zip(self.quantizers, parts, strict=True))
        keys, values = (q.dequantize(s, steps[:, i]) for i, (q, s) in both)
        return keys, values

    def _classes(self, blocks: Sequence[KVBlock], y: Sequence[Tensor]) -> Tensor:
        parts, at = [], 0
        for b in blocks:
            own = [c[at : at + b.tokens] for c in y]
            at += b.tokens
            if self.leading is not None:
                some = [c[:, index] for c, index in zip(own, self.leading, strict=True)]
                energies = [c.square().mean(1) for c in own]
                parts.append(self.importance.classes(own_features(*some, *energies)))
            elif b.received is None:
                parts.append(torch.full((b.tokens, 2), self.coder.unseen, device=self.device))
            else:
                parts.append(self.importance.classes(importance_features(b.received.to(self.device), *own)))
        return torch.cat(parts)

    def decode(self, data: bytes | memoryview) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values, float32 `[T, L, Hk, D]`.

        Raises:
            PacketError: damaged bytes.
        """
        return self.decode_coefficients(self.coefficients(data))

    def decode_coefficients(self, coded: BlockCoefficients) -> tuple[Tensor, Tensor]:
        """The second half of `decode`."""
        shape = (-1, self.geometry.layers, self.geometry.kv_heads, self.geometry.head_dim)
        if coded.raw is not None:
            flat = [coded.raw[0], coded.raw[1]]
        else:
            flat = [p.reconstruct(y, coded.features) for p, y in zip(self.projectors, coded.pair, strict=True)]
        width = self.geometry.layer_width
        for e in coded.extra:
            flat[e.kind][e.first : e.first + e.tokens, e.layer * width : (e.layer + 1) * width] += e.residual()
        return flat[0].view(shape), flat[1].view(shape)

    def least_bytes(self, tokens: int) -> int:
        """Bytes that a block of `tokens` tokens has at the very least; what announces more tokens than that is hostile."""
        ids = 2 * (tokens + 1) if self.features is not None else 0
        old = coded_block.HEADER.size + ids + 4 * self.reader_v1.least_words(tokens)
        new = rans_block.HEADER.size + ids + self.coder.least_bytes(tokens)
        return min(old, new, coded_block.HEADER.size + 2 * 2 * self.geometry.width * tokens)

    @staticmethod
    def announced(data: bytes | memoryview) -> int:
        """Tokens that a block says it holds; see `coded_block.announced_tokens`."""
        return coded_block.announced_tokens(data)

    def coefficients(self, data: bytes | memoryview) -> BlockCoefficients:
        """The entropy decoding alone; `decode_coefficients` and `layer` go on from there.

        Raises:
            PacketError: damaged bytes.
        """
        return self.coefficients_run([data])[0]

    def coefficients_run(self, blocks: Sequence[bytes | memoryview]) -> list[BlockCoefficients]:
        """`coefficients` of many blocks at once; consecutive ones come back as one, raw ones alone.

        Raises:
            PacketError: damaged bytes.
        """
        out: list[BlockCoefficients] = []
        run: list[rans_block.RansParts] = []
        for data in (*blocks, None):
            if data is not None and len(data) and data[0] in rans_block.MODES:
                run.append(rans_block.split(data, self.coder.ranks, len(SHIFTS)))
                continue
            if run:
                out.append(self.dequantized(self.coder.decode(run)))
                run = []
            if data is not None:
                bounded = len(data) > 0 and data[0] == bounded_block.BOUNDED
                out.append(read_bounded(self, data) if bounded else self._old_or_raw(data))
        return joined(out, self.features)

    def _old_or_raw(self, data: bytes | memoryview) -> BlockCoefficients:
        parts = coded_block.split(data, 2 * self.geometry.width)
        if parts.raw is not None:
            both = torch.from_numpy(parts.raw.astype(np.float32)).to(self.device).view(2, parts.tokens, -1)
            return BlockCoefficients(parts.tokens, None, both)
        symbols, classes = self.reader_v1.decode(
            parts.words, parts.escapes, parts.tokens, adaptive_tables=parts.mode == coded_block.ADAPTIVE
        )
        both = torch.from_numpy(np.concatenate([s.T for s in symbols])).to(self.device)
        ids = None if parts.ids is None else (parts.previous_id, parts.ids)
        return self.dequantized(CodedSymbols(both, torch.from_numpy(classes).to(self.device), (ids,)))

    def dequantized(self, coded: CodedSymbols, scale: float = 1.0) -> BlockCoefficients:
        """Coefficients of decoded symbols, at the steps of their classes times `scale`."""
        features = self.token_rows(coded.ids)
        pairs = [(before, torch.from_numpy(ids)) for before, ids in (pair for pair in coded.ids if pair is not None)]
        ids = tuple(pairs) if len(pairs) == len(coded.ids) else None
        y = self.dequantize(coded.symbols, class_step(coded.classes) * (self.step_scale * scale))
        return BlockCoefficients(coded.symbols.shape[1], y, None, ids, features)

    def layer(self, coded: BlockCoefficients, layer: int) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values of one layer, float32 `[T, C]`."""
        width = self.geometry.layer_width
        start, stop = layer * width, (layer + 1) * width
        if coded.raw is not None:
            return coded.raw[0, :, start:stop], coded.raw[1, :, start:stop]
        both = [p.columns(y, coded.features, start, stop) for p, y in zip(self.projectors, coded.pair, strict=True)]
        for e in coded.extra:
            if e.layer == layer:
                both[e.kind][e.first : e.first + e.tokens] += e.residual()
        return both[0], both[1]

    def token_rows(self, ids: Sequence[tuple[int, np.ndarray] | None]) -> TokenRows | None:
        """Features of decoded blocks' tokens, or None where the profile predicts nothing.

        Raises:
            PacketError: no ids though the profile predicts from them, or ids that the model does not have.
        """
        return self._rows([(-1, None) if pair is None else pair for pair in ids])

    def _rows(self, ids: Sequence[tuple[int, Tensor | np.ndarray | None]]) -> TokenRows | None:
        if self.features is None:
            return None
        known = [(before, numbers) for before, numbers in ids if numbers is not None]
        if len(known) < len(ids):
            raise PacketError("This profile predicts from token ids, but the block carries none.")
        try:
            return self.features.rows(known)
        except IndexError as error:
            raise PacketError("A block names a token id outside the model's vocabulary.") from error

    def ids(self, block: KVBlock) -> tuple[int, np.ndarray] | None:
        """The id before a block and its ids, where the profile predicts from them."""
        if self.features is None or block.token_ids is None:
            return None
        return block.previous_id, block.token_ids.cpu().numpy().astype(np.int64)

    def raw(self, block: KVBlock) -> bytes:
        """A block that is stored as it is."""
        both = torch.stack([block.keys, block.values]).float().cpu().numpy()
        with np.errstate(over="ignore"):
            half = both.astype(np.float16)
        fits = np.array_equal(np.isfinite(half), np.isfinite(both))
        mode = coded_block.RAW16 if fits else coded_block.RAW32
        none = np.zeros(0, np.uint32)
        return coded_block.join(
            coded_block.BlockParts(mode, block.tokens, -1, None, none, none, half if fits else both)
        )
