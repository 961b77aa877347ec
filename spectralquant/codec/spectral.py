"""`SpectralCodec`: the cold tier, blocks of keys and values to entropy-coded bytes and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec import coded_block
from spectralquant.codec.block import KVBlock
from spectralquant.codec.entropy import EntropyCoder
from spectralquant.codec.features import TokenFeatures
from spectralquant.codec.importance import NEUTRAL, ImportanceModel, class_step, importance_features
from spectralquant.codec.projector import SpectralProjector
from spectralquant.codec.quantizer import SpectralQuantizer
from spectralquant.errors import PacketError
from spectralquant.profile_tensors import ColdTier
from spectralquant.sources.geometry import CacheGeometry


@dataclass(frozen=True)
class Enhancement:
    """A residual float32 `[T, D]` to add to one head: keys (kind 0) or values (1), from token `first` on."""

    first: int
    kind: int
    layer: int
    column: int
    residual: Tensor


@dataclass(frozen=True)
class BlockCoefficients:
    """A block after entropy decoding: coefficients float32 `[T, R]` of keys and values, or raw `[2, T, P]`.

    features: the token predictor's, where already computed. extra: residuals of heads coded at a higher rank.
    """

    tokens: int
    y: tuple[Tensor, Tensor] | None
    raw: Tensor | None
    ids: Tensor | None
    previous_id: int
    features: Tensor | None = None
    extra: tuple[Enhancement, ...] = ()


class SpectralCodec:
    """Encoder and decoder of one profile's cold tier.

    `embedding: [vocabulary, hidden]` is the model's input embedding; needed when the profile predicts from token ids.
    `adaptive` lets each block shift its tables where that saves bytes (worth it away from the calibrated domain).
    `step_scale` multiplies the calibrated base step: above 1 is smaller and worse, below 1 larger and better.
    """

    def __init__(
        self,
        tier: ColdTier,
        geometry: CacheGeometry,
        embedding: Tensor | None,
        device: torch.device | str = "cpu",
        step_scale: float = 1.0,
        adaptive: bool = False,
    ) -> None:
        self.geometry = geometry
        self.device = torch.device(device)
        self.step_scale = step_scale
        self.adaptive = adaptive
        self.projectors = (SpectralProjector(tier.key, device), SpectralProjector(tier.value, device))
        self.quantizers = tuple(SpectralQuantizer(c.to(device)) for c in (tier.key_centroid, tier.value_centroid))
        choice = (tier.key_choice.numpy(), tier.value_choice.numpy())
        self.coder = EntropyCoder(tier.tables.numpy(), choice, tier.class_tables.numpy())
        self.importance = ImportanceModel(tier.importance_weight.to(device), tier.importance_bias.to(device))
        self.features = None
        if len(tier.key.predictor):
            if embedding is None:
                raise ValueError("this profile predicts from token ids and needs the model's input embedding")
            projection = tier.embedding_projection if tier.embedding_projection.numel() else None
            self.features = TokenFeatures(embedding.to(device), projection)

    def encode(self, block: KVBlock) -> bytes:
        """Compress a block (layout: `codec.coded_block`). Never expands: what does not shrink is stored raw."""
        symbols, classes = self.symbols(block)
        if symbols is None:
            return self._raw(block)
        mode = coded_block.SPECTRAL
        words, escapes = self.coder.encode(symbols, classes)
        if self.adaptive:
            shifted = self.coder.encode(symbols, classes, self.coder.best_shifts(symbols, classes))
            if len(shifted[0]) < len(words):
                mode, (words, escapes) = coded_block.ADAPTIVE, shifted
        if 4 * (len(words) + len(escapes)) >= block.fp16_bytes:
            return self._raw(block)
        ids, previous = self._ids(block)
        return coded_block.join(coded_block.BlockParts(mode, block.tokens, previous, ids, words, escapes, None))

    def symbols(self, block: KVBlock) -> tuple[tuple[np.ndarray, np.ndarray] | None, np.ndarray]:
        """Key and value symbols int32 `[T, R]` and classes `[T, 2]`; no symbols where the block must be raw."""
        features = self._features(block.token_ids, block.previous_id)
        flat = [x.reshape(block.tokens, -1).to(self.device, torch.float32) for x in (block.keys, block.values)]
        y = [p.project(x, features) for p, x in zip(self.projectors, flat, strict=True)]
        classes = torch.full((block.tokens, 2), NEUTRAL, device=self.device)
        if block.received is not None:
            classes = self.importance.classes(importance_features(block.received.to(self.device), *y))
        steps = class_step(classes) * self.step_scale
        try:
            pair = [
                q.quantize(c, steps[:, i]).cpu().numpy()
                for i, (q, c) in enumerate(zip(self.quantizers, y, strict=True))
            ]
        except OverflowError:
            return None, classes.cpu().numpy()
        return (pair[0], pair[1]), classes.cpu().numpy()

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
            features = self.token_features(coded)
            flat = [p.reconstruct(y, features) for p, y in zip(self.projectors, coded.y, strict=True)]
        for e in coded.extra:
            start = e.layer * self.geometry.layer_width + e.column
            flat[e.kind][e.first : e.first + len(e.residual), start : start + e.residual.shape[1]] += e.residual
        return flat[0].view(shape), flat[1].view(shape)

    def coefficients(self, data: bytes | memoryview) -> BlockCoefficients:
        """The entropy decoding alone; `decode` and `layer` go on from there.

        Raises:
            PacketError: damaged bytes.
        """
        parts = coded_block.split(data, 2 * self.geometry.width)
        if parts.raw is not None:
            both = torch.from_numpy(parts.raw.astype(np.float32)).to(self.device).view(2, parts.tokens, -1)
            return BlockCoefficients(parts.tokens, None, both, None, -1)
        symbols, classes = self.coder.decode(
            parts.words, parts.escapes, parts.tokens, adaptive=parts.mode == coded_block.ADAPTIVE
        )
        ids = None if parts.ids is None else torch.from_numpy(parts.ids)
        self._require_ids(ids, parts.previous_id)
        steps = class_step(torch.from_numpy(classes).to(self.device)) * self.step_scale
        y = [
            q.dequantize(torch.from_numpy(symbols[i]).to(self.device), steps[:, i])
            for i, q in enumerate(self.quantizers)
        ]
        return BlockCoefficients(parts.tokens, (y[0], y[1]), None, ids, parts.previous_id)

    def least_bytes(self, tokens: int) -> int:
        """Bytes that a block of `tokens` tokens has at the very least; what announces more tokens than that is hostile."""
        ids = 2 * (tokens + 1) if self.features is not None else 0
        coded = coded_block.HEADER.size + ids + 4 * self.coder.least_words(tokens)
        return min(coded, coded_block.HEADER.size + 2 * 2 * self.geometry.width * tokens)

    def token_features(self, coded: BlockCoefficients) -> Tensor | None:
        """The predictor's features of a decoded block, or None where the profile does not predict."""
        if self.features is None or coded.features is not None:
            return coded.features
        return self._features(coded.ids, coded.previous_id)

    def layer(self, coded: BlockCoefficients, layer: int) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values of one layer, float32 `[T, C]`."""
        width = self.geometry.layer_width
        start, stop = layer * width, (layer + 1) * width
        if coded.raw is not None:
            return coded.raw[0, :, start:stop], coded.raw[1, :, start:stop]
        features = self.token_features(coded)
        both = [p.columns(y, features, start, stop) for p, y in zip(self.projectors, coded.y, strict=True)]
        for e in coded.extra:
            if e.layer == layer:
                rows = slice(e.first, e.first + len(e.residual))
                both[e.kind][rows, e.column : e.column + e.residual.shape[1]] += e.residual
        return both[0], both[1]

    def _features(self, ids: Tensor | None, previous: int) -> Tensor | None:
        if self.features is None:
            return None
        self._require_ids(ids, previous)
        return self.features(ids, previous)

    def _require_ids(self, ids: Tensor | None, previous: int) -> None:
        if self.features is None:
            return
        if ids is None:
            raise PacketError("This profile predicts from token ids, but the block carries none.")
        highest = max(previous, int(ids.max())) if len(ids) else previous
        if highest >= len(self.features.embedding):
            raise PacketError("A block names a token id outside the model's vocabulary.")

    def _ids(self, block: KVBlock) -> tuple[np.ndarray | None, int]:
        if self.features is None or block.token_ids is None:
            return None, -1
        return block.token_ids.cpu().numpy().astype(np.int64), block.previous_id

    def _raw(self, block: KVBlock) -> bytes:
        both = torch.stack([block.keys, block.values]).float().cpu().numpy()
        with np.errstate(over="ignore"):
            half = both.astype(np.float16)
        fits = np.array_equal(np.isfinite(half), np.isfinite(both))
        mode = coded_block.RAW16 if fits else coded_block.RAW32
        none = np.zeros(0, np.uint32)
        return coded_block.join(
            coded_block.BlockParts(mode, block.tokens, -1, None, none, none, half if fits else both)
        )
