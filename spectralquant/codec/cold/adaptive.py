"""`AdaptiveRankCompressor`: the cold tier on text that drifts away from its calibration.

A profile drops components that its calibration text never used. On other text they carry loss. This codec decodes each
block it has coded, measures every head's weighted error (in the metric of the loss) against what the profile's spectrum
predicts, and where the sum is over `tolerance` it raises the rank of the worst heads: their residual is coded too, in
the head's own basis, at the coarsest step that brings the error back, within the block's byte budget. After some
drifted blocks the bases are refreshed from running statistics of the residuals. A block says with which heads, step and
basis generation it was coded. Source of the enhancement-layer idea: scalable coding.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import constriction
import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.coded_block import announced_tokens
from spectralquant.codec.cold.coefficients import BlockCoefficients, Enhancement, joined
from spectralquant.codec.cold.features import TokenFeatures
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.errors import InputError, PacketError
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.tensors import HeadSpectra
from spectralquant.streams import OneAtATime, use_here

MODE = 0xE0
HEADER = struct.Struct("<BBHIIf")
LIMIT = 127
SCALES = 2.0 ** (np.arange(256) / 8 - 12)
COARSER = (1.0, 2**0.5, 2.0)


@dataclass(frozen=True)
class BlockLog:
    """What one block took. drift: weighted error over the profile's prediction, before and after; bytes likewise."""

    start: int
    drift: float
    drift_after: float
    heads_raised: int
    step: float
    generation: int
    base_bytes: int
    nbytes: int


class AdaptiveRankCompressor:
    """A `SpectralCodec` with per-block, per-head enhancement.

    Args:
        base: the cold tier's codec. heads: the profile's per-head bases. step: the cold tier's base step in the metric.
        tolerance: times the predicted error that a block may have. min_ratio: a block never takes more than its fp16
            bytes over this. refresh_after: drifted blocks after which the bases are refreshed (0: never).
    """

    def __init__(
        self,
        base: SpectralCodec,
        heads: HeadSpectra,
        step: float,
        *,
        tolerance: float = 2.0,
        min_ratio: float = 8.0,
        refresh_after: int = 4,
    ) -> None:
        if tolerance <= 0 or min_ratio < 1 or refresh_after < 0:
            raise InputError(
                "adaptive_ranks: tolerance must be positive, min_ratio at least 1, refresh_after not negative."
            )
        self.base, self.step = base, step * base.step_scale
        self.tolerance, self.min_ratio, self.refresh_after = tolerance, min_ratio, refresh_after
        g = base.geometry
        self.shape = (2, g.layers, g.kv_heads)
        analysis = heads.basis.double() * heads.gain.double()[..., None]
        inverse = torch.linalg.inv(analysis)

        def to(x: Tensor) -> Tensor:
            return x.float().flatten(0, 2).to(base.device)

        self.generations: list[tuple[Tensor, Tensor]] = [(to(analysis), to(inverse))]
        self.expected = to(heads.variance.clamp_max(self.step**2 / 12).sum(-1)[..., None])[:, 0]
        self.log: list[BlockLog] = []
        self._sum = torch.zeros_like(self.generations[0][0])
        self._drifted = 0
        self._one_at_a_time = OneAtATime(base.device)

    @property
    def geometry(self) -> CacheGeometry:
        return self.base.geometry

    @property
    def features(self) -> TokenFeatures | None:
        return self.base.features

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def step_scale(self) -> float:
        return self.base.step_scale

    def least_bytes(self, tokens: int) -> int:
        """See `SpectralCodec.least_bytes`; an enhanced block holds a whole one of these."""
        return self.base.least_bytes(tokens)

    @property
    def basis_bytes(self) -> int:
        """Bytes of refreshed bases; they belong to the cache, not to the profile."""
        return sum(a.untyped_storage().nbytes() + s.untyped_storage().nbytes() for a, s in self.generations[1:])

    def encode(self, block: KVBlock) -> bytes:
        """Code a block, enhanced where it drifts; what it teaches is there for the next."""
        with self._one_at_a_time:
            return self._encode(block)

    def _encode(self, block: KVBlock) -> bytes:
        data = self.base.encode(block)
        keys, values = self.base.decode(data)
        residual = torch.stack([block.keys.to(keys) - keys, block.values.to(values) - values])
        residual = residual.permute(0, 2, 3, 1, 4).flatten(0, 2)
        generation = len(self.generations) - 1
        y = residual @ self.generations[-1][0].transpose(1, 2)
        error = y.square().sum(2).mean(1)
        drift = float(error.sum() / self.expected.sum())
        if not drift > self.tolerance:
            self.log.append(BlockLog(block.start, drift, drift, 0, 0.0, generation, len(data), len(data)))
            return data
        budget = block.fp16_bytes / self.min_ratio - len(data)
        best, chosen = data, (drift, 0, 0.0)
        for coarser in reversed(COARSER):
            enhanced = self._enhance(data, y, error, self.step * coarser, generation, budget)
            if enhanced is not None and enhanced[1][0] < chosen[0]:
                best, chosen = enhanced
            if chosen[0] <= self.tolerance:
                break
        self.log.append(BlockLog(block.start, drift, *chosen, generation, len(data), len(best)))
        self._learn(residual @ self.generations[0][0].transpose(1, 2))
        return best

    def _enhance(
        self, data: bytes, y: Tensor, error: Tensor, step: float, generation: int, budget: float
    ) -> tuple[bytes, tuple[float, int, float]] | None:
        """Raise heads, worst first, until the error is back or the bytes are spent."""
        symbols = (y / step).round().clamp(-LIMIT, LIMIT)
        left = (y - symbols * step).square().sum(2).mean(1)
        gain = error - left
        order = torch.argsort(gain, descending=True)
        after = error.sum() - gain[order].cumsum(0)
        scale = symbols.abs().mean(1).clamp_min(1e-6)
        bits = (torch.log2(2 * np.e * scale.clamp_min(0.05)).clamp_min(0.05) * y.shape[1]).sum(1) + 8 * y.shape[2] + 16
        spent = bits[order].cumsum(0) / 8
        enough = after <= self.tolerance * self.expected.sum()
        count = int(enough.to(torch.uint8).argmax()) + 1 if bool(enough.any()) else len(order)
        count = min(count, int((spent <= budget).sum()))
        while count > 0:
            picked = order[:count].sort().values
            packed = self._pack(data, picked, symbols[picked], step, generation)
            if len(packed) - len(data) <= budget:
                drift = float((error.sum() - gain[picked].sum()) / self.expected.sum())
                return packed, (drift, count, step)
            count = int(count * 0.8)
        return None

    def _pack(self, data: bytes, heads: Tensor, symbols: Tensor, step: float, generation: int) -> bytes:
        flat = symbols.permute(1, 0, 2).flatten(1).cpu().numpy().astype(np.int32)
        mean = np.abs(flat).mean(0)
        index = np.where(mean > 0, np.searchsorted(SCALES, np.maximum(mean, SCALES[1])).clip(1, 255), 0)
        live = np.flatnonzero(index)
        coder = constriction.stream.stack.AnsCoder()
        family = constriction.stream.model.QuantizedLaplace(-LIMIT, LIMIT)
        scales = np.repeat(SCALES[index[live]], len(flat))
        coder.encode_reverse(np.ascontiguousarray(flat[:, live].T).reshape(-1), family, np.zeros(len(scales)), scales)
        words = coder.get_compressed()
        head = HEADER.pack(MODE, generation, len(heads), len(data), len(words), step)
        numbers = heads.cpu().numpy().astype("<u2").tobytes()
        side: bytes = index.astype(np.uint8).tobytes()
        return head + numbers + side + data + np.asarray(words, "<u4").tobytes()

    @staticmethod
    def is_enhanced(data: bytes | memoryview) -> bool:
        """Whether a block carries raised heads."""
        return len(data) > 0 and data[0] == MODE

    def state(self) -> dict[str, Tensor]:
        """Refreshed bases, for a snapshot of the cache."""
        return {f"{i}.{j}": t for i, pair in enumerate(self.generations[1:]) for j, t in enumerate(pair)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state`.

        Raises:
            PacketError: tensors that are no bases of these heads.
        """
        count, shape = len(tensors) // 2, self.generations[0][0].shape
        named = {f"{i}.{j}" for i in range(count) for j in range(2)}
        if set(tensors) != named or any(t.shape != shape or not t.is_floating_point() for t in tensors.values()):
            raise PacketError("Refreshed bases do not fit the profile's heads.")
        self.generations[1:] = [
            (tensors[f"{i}.0"].to(self.device), tensors[f"{i}.1"].to(self.device)) for i in range(count)
        ]

    def coefficients(self, data: bytes | memoryview) -> BlockCoefficients:
        """See `SpectralCodec.coefficients`; with the residual of raised heads.

        Raises:
            PacketError: damaged bytes, or a basis generation that this codec does not have.
        """
        data = memoryview(data)
        if not self.is_enhanced(data):
            return self.base.coefficients(data)
        if len(data) < HEADER.size:
            raise PacketError("An enhanced block is shorter than its header.")
        _, generation, count, base_bytes, words, step = HEADER.unpack_from(data)
        dim = self.geometry.head_dim
        at = HEADER.size
        if at + count * (2 + dim) + base_bytes + 4 * words != len(data) or generation >= len(self.generations):
            raise PacketError("An enhanced block's lengths or basis generation do not fit.")
        heads = np.frombuffer(data, "<u2", count, at)
        increasing = bool((np.diff(heads.astype(np.int64)) > 0).all())
        if not increasing or heads.max(initial=0) >= len(self.expected) or not 0 < step < np.inf:
            raise PacketError("An enhanced block names heads that the model does not have, or no step.")
        index = np.frombuffer(data, np.uint8, count * dim, at + 2 * count)
        at += count * (2 + dim)
        base = self.base.coefficients(data[at : at + base_bytes])
        try:
            coded = np.frombuffer(data, "<u4", words, at + base_bytes).astype(np.uint32)
            coder = constriction.stream.stack.AnsCoder(coded)
        except ValueError as error:
            raise PacketError("An enhanced block's entropy-coded words are damaged.") from error
        live = np.flatnonzero(index)
        family = constriction.stream.model.QuantizedLaplace(-LIMIT, LIMIT)
        scales = np.repeat(SCALES[index[live]], base.tokens)
        flat = np.zeros((base.tokens, count * dim), np.float32)
        flat[:, live] = coder.decode(family, np.zeros(len(scales)), scales).reshape(len(live), base.tokens).T
        if not coder.is_empty():
            raise PacketError("An enhanced block holds data that its symbols do not use up.")
        y = torch.from_numpy(flat).to(self.device).view(base.tokens, count, dim).transpose(0, 1) * step
        picked = torch.from_numpy(heads.astype(np.int64)).to(self.device)
        synthesis = self.generations[generation][1]
        use_here(synthesis)
        residual = y @ synthesis[picked].transpose(1, 2)
        g = self.geometry
        places = [np.unravel_index(int(h), self.shape) for h in heads]
        extra = tuple(
            Enhancement(0, int(kind), int(layer), int(head) * g.head_dim, residual[i])
            for i, (kind, layer, head) in enumerate(places)
        )
        return replace(base, extra=extra)

    def decode(self, data: bytes | memoryview) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values, float32 `[T, L, Hk, D]`; see `SpectralCodec.decode`."""
        return self.base.decode_coefficients(self.coefficients(data))

    def encode_run(self, blocks: Sequence[KVBlock]) -> list[bytes]:
        """`encode`, one after the other: each may change the bases of the next."""
        return [self.encode(block) for block in blocks]

    def announced(self, data: bytes | memoryview) -> int:
        """See `SpectralCodec.announced`."""
        data = memoryview(data)
        if self.is_enhanced(data) and len(data) >= HEADER.size:
            heads = HEADER.unpack_from(data)[2]
            data = data[HEADER.size + heads * (2 + self.geometry.head_dim) :]
        return announced_tokens(data)

    def coefficients_run(self, blocks: Sequence[bytes | memoryview]) -> list[BlockCoefficients]:
        """See `SpectralCodec.coefficients_run`."""
        return joined([self.coefficients(data) for data in blocks], self.base.features)

    def layer(self, coded: BlockCoefficients, layer: int) -> tuple[Tensor, Tensor]:
        """See `SpectralCodec.layer`."""
        return self.base.layer(coded, layer)

    def _learn(self, y: Tensor) -> None:
        """Running second moments of residuals, in the profile's coordinates; refresh when enough blocks drifted."""
        self._sum += y.transpose(1, 2) @ y
        self._drifted += 1
        if not self.refresh_after or self._drifted < self.refresh_after or len(self.generations) > 200:
            return
        vectors = torch.linalg.eigh(self._sum.double())[1].flip(-1).float()
        analysis, inverse = self.generations[0]
        self.generations.append((vectors.transpose(1, 2) @ analysis, inverse @ vectors))
        self._sum.zero_()
        self._drifted = 0
