"""`TokenGuess`: token ids for keys and values whose ids were not seen (inputs_embeds, soft prompts, an unpacked end).

A cold tier that predicts from token ids codes only what the prediction leaves, and a block carries the ids it was coded
with. So any ids will do that predict well: the decoder reads them from the block. They are found by least squares in the
metric of the loss over the first layers, whose keys and values say most about their token; for tokens of the model's
vocabulary this finds their ids again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.features import TokenFeatures
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.profile.tensors import HeadSpectra

LAYERS = 4
PASSES = 3
CHUNK = 8192
MAX_ERROR = 4.0
SHARE = 0.25


class TokenGuess:
    """Ids that predict a block best, and whether they predict it well enough to code it.

    codec: a cold tier's, with a predictor. heads: the profile's weighted bases per head; step: the tier's base step in
    that metric.
    """

    def __init__(self, codec: SpectralCodec, heads: HeadSpectra, step: float) -> None:
        if codec.features is None:
            raise ValueError("a codec without a predictor codes no token ids")
        self.features: TokenFeatures = codec.features
        self.codec, self.heads, self.step = codec, heads, step * codec.step_scale
        self._layers = min(LAYERS, codec.geometry.layers)

    def ids(self, block: KVBlock) -> Tensor:
        """Token ids int64 `[T]` of a block; those that it has are kept."""
        known = block.token_ids if block.token_ids is not None else torch.full((block.tokens,), -1)
        ids = known.to(self.codec.device).long()
        missing = ids < 0
        own_map, before_map = self._maps
        target = self._weighted(torch.stack([block.keys, block.values])) - self._mean
        for _ in range(PASSES):
            features = self.features(ids, block.previous_id)
            own, before = features.chunk(2, dim=1)
            left = target - before @ before_map
            score = left @ own_map.T
            score[:-1] += (target[1:] - own[1:] @ own_map) @ before_map.T
            guessed = self._best(score)
            if torch.equal(guessed[missing], ids[missing]):
                break
            ids = torch.where(missing, guessed, ids)
        return ids

    def fits(self, block: KVBlock) -> bool:
        """Whether the block, with its ids, is coded about as well as the profile's own text.

        Its error is at most a few times what the profile predicts, or a small share of what it would be with no ids (text
        of another domain has larger errors whatever its ids); and it shrinks.
        """
        data = self.codec.encode(block)
        if 2 * len(data) > block.fp16_bytes:
            return False
        error = self._error(block, data)
        if error <= MAX_ERROR * self._expected:
            return True
        nothing = replace(block, token_ids=torch.full((block.tokens,), -1), previous_id=-1)
        return error <= SHARE * self._error(nothing, self.codec.encode(nothing))

    def _error(self, block: KVBlock, data: bytes) -> float:
        """Squared error a token in the metric of the loss."""
        keys, values = self.codec.decode(data)
        residual = torch.stack([block.keys.to(keys) - keys, block.values.to(values) - values])
        y = torch.einsum("ktlhd,klhed->ktlhe", residual, self._analysis)
        return float(y.square().sum()) / block.tokens

    @functools.cached_property
    def _analysis(self) -> Tensor:
        analysis = self.heads.basis.float() * self.heads.gain.float()[..., None]
        return analysis.to(self.codec.device)

    @functools.cached_property
    def _expected(self) -> float:
        """Squared error a token that the profile predicts."""
        variance = self.heads.variance.float()
        return float(torch.minimum(variance, torch.tensor(self.step**2 / 12, dtype=variance.dtype)).sum())

    def _weighted(self, x: Tensor) -> Tensor:
        """`[2, T, L, Hk, D]` of the first layers in the metric of the loss, `[T, 2·l·Hk·D]`."""
        x = x.to(self.codec.device, torch.float32)[:, :, : self._layers]
        y = torch.einsum("ktlhd,klhed->tklhe", x, self._analysis[:, : self._layers])
        return y.flatten(1)

    def _shaped(self, *rows: Tensor) -> Tensor:
        g = self.codec.geometry
        return torch.stack([r.float().view(-1, g.layers, g.kv_heads, g.head_dim) for r in rows])

    @functools.cached_property
    def _mean(self) -> Tensor:
        keys, values = self.codec.projectors
        return self._weighted(self._shaped(keys.mean, values.mean))

    @functools.cached_property
    def _maps(self) -> tuple[Tensor, Tensor]:
        """What a token's own features, and its predecessor's, predict: `[d, 2·l·Hk·D]` each."""
        keys, values = self.codec.projectors
        assert keys.predictor is not None and values.predictor is not None
        own, before = self._weighted(self._shaped(keys.predictor, values.predictor)).chunk(2)
        return own, before

    @functools.cached_property
    def _half_energy(self) -> Tensor:
        """Half the squared prediction of every token `[vocabulary]`."""
        own, before = self._maps
        gram = own @ own.T + before @ before.T
        return torch.cat([((e @ gram) * e).sum(1) / 2 for e in self._vocabulary()])

    def _vocabulary(self) -> Iterator[Tensor]:
        """Features `[n, d]` of every token, some at a time."""
        features = self.features
        count = len(features.embedding)
        for first in range(0, count, CHUNK):
            ids = torch.arange(first, min(count, first + CHUNK), device=features.embedding.device)
            yield features(ids, -1)[:, : features.dims]

    def _best(self, score: Tensor) -> Tensor:
        """The ids `[T]` whose features `e` maximize score · e − energy / 2."""
        best = score.new_full((len(score),), -torch.inf)
        where = torch.zeros(len(score), dtype=torch.int64, device=score.device)
        at = 0
        for rows in self._vocabulary():
            value, index = (score @ rows.T - self._half_energy[at : at + len(rows)]).max(1)
            where = torch.where(value > best, index + at, where)
            best = torch.maximum(best, value)
            at += len(rows)
        return where
