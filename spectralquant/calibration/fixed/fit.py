"""Fitting the fixed-rate tiers: warm (per layer, before RoPE) and hot (per head, after RoPE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spectralquant.calibration.basis.spectrum import FrequencyAnalyzer, WeightedBasis
from spectralquant.calibration.capture.samples import SampleWindow
from spectralquant.calibration.capture.statistics import SpanMoments
from spectralquant.calibration.fixed.bits import MaskGenerator
from spectralquant.calibration.fixed.codebooks import fit_codebooks, fit_uniform_codebooks
from spectralquant.calibration.fixed.even import Even
from spectralquant.calibration.fixed.importance import SHARES, Importance, token_importance
from spectralquant.codec.fixed.mask import FrequencyMask
from spectralquant.profile.tensors import FixedTier, StoredBasis, on_cpu

MAX_TOKENS = 4096
# Gradients are heavy-tailed: few tokens decide which directions look harmless. Fixed-rate tiers drop or coarsen what does, so
# more is added to the metric's diagonal than for the cold tier (a share of its mean): warm loses a fifth to a quarter of its KL.
EPSILON = 0.1
CHUNK = 512


class FixedFitter:
    """Solve bases of `span` coordinates from the sums, measure D_i(b) once, then build a tier for any budget."""

    def __init__(
        self,
        moments: Sequence[SpanMoments],
        spans: Sequence[int],
        samples: Sequence[SampleWindow],
        *,
        use_metric: bool,
        rotated: bool,
        even: Even | None = None,
    ) -> None:
        self.bases = [_sub_bases(m, span, use_metric) for m, span in zip(moments, spans, strict=True)]
        self.samples: list[Tensor] = []
        device = moments[0].sum.device
        for kind in range(2):
            rows = _some_tokens(samples, lambda s, kind=kind: s.rows(kind, device, rotated=rotated))
            self.samples.append(self._normalized(rows, kind))
        self.weights = [torch.cat([b.variance for b in bases]).clamp_min(1e-30) for bases in self.bases]
        self.fit_points = fit_uniform_codebooks if rotated else fit_codebooks
        known = use_metric and all(s.has_gradients for s in samples)
        self.importance = [self._importance(samples, kind, rotated) for kind in range(2)] if known else None
        self.generator = MaskGenerator(
            torch.cat(self.samples, dim=1),
            torch.cat(self.weights),
            in_place=rotated,
            even=even,
            importance=None if self.importance is None else Importance.together(self.importance),
        )

    def _importance(self, samples: Sequence[SampleWindow], kind: int, rotated: bool) -> Importance:
        bases = self.bases[kind]
        device = bases[0].mean.device
        gradients = _some_tokens(samples, lambda s: s.gradients(kind, device, rotated=rotated))
        far = _some_tokens(samples, lambda s: s.far.to(device))
        weight = token_importance(gradients, far, [b.synthesis for b in bases], SHARES[kind])
        return Importance(weight, len(bases[0].mean))

    def _normalized(self, rows: Tensor, kind: int) -> Tensor:
        span = len(self.bases[kind][0].mean)
        parts = []
        for i, basis in enumerate(self.bases[kind]):
            y = (rows[:, i * span : (i + 1) * span] - basis.mean) @ basis.analysis.T
            parts.append(y / basis.variance.clamp_min(1e-30).sqrt())
        return torch.cat(parts, dim=1)

    def fit(self, bits_per_scalar: float) -> FixedTier:
        """The tier whose codes take at most `bits_per_scalar` on average over keys and values."""
        mask = self.bits(bits_per_scalar)
        split = self.samples[0].shape[1]
        parts = []
        for kind, bits in enumerate((mask[:split], mask[split:])):
            kept = torch.nonzero(FrequencyMask(bits).binary).squeeze(1)
            parts.append((self._stored(kind, kept), bits[kept], self._codebooks(kind, kept, bits[kept])))
        (key, key_bits, key_books), (value, value_bits, value_books) = parts
        return on_cpu(FixedTier(key, value, key_bits, value_bits, key_books, value_books))

    def bits(self, bits_per_scalar: float) -> Tensor:
        """Bits uint8 of every component, keys' first."""
        return self.generator.generate(bits_per_scalar).bits

    def _codebooks(self, kind: int, kept: Tensor, bits: Tensor) -> Tensor:
        """Points of all kept components, one after the other, float32 `[Σ 2^bits]`."""
        samples = self.samples[kind][:, kept.to(self.samples[kind].device)].T.contiguous()
        books: list[Tensor] = [torch.empty(0)] * len(kept)
        for width in sorted(set(bits.tolist())):
            index = torch.nonzero(bits == width).squeeze(1)
            for part in index.split(CHUNK):
                cost = None if self.importance is None else self.importance[kind].of(kept[part])
                points = self.fit_points(samples[part.to(samples.device)], int(width), cost)[0].cpu()
                for row, where in enumerate(part.tolist()):
                    books[where] = points[row]
        return torch.cat(books) if books else torch.empty(0)

    def _stored(self, kind: int, kept: Tensor) -> StoredBasis:
        bases = self.bases[kind]
        span = len(bases[0].mean)
        analysis, synthesis, gains, backs, ranks = [], [], [], [], []
        for i, basis in enumerate(bases):
            local = (kept[(kept >= i * span) & (kept < (i + 1) * span)] - i * span).to(basis.analysis.device)
            sigma = basis.variance[local].clamp_min(1e-30).sqrt()
            a, s = basis.analysis[local], basis.synthesis.T[local]
            a_norm, s_norm = a.norm(dim=1).clamp_min(1e-30), s.norm(dim=1).clamp_min(1e-30)
            analysis.append(a / a_norm[:, None])
            synthesis.append(s / s_norm[:, None])
            gains.append(a_norm / sigma)
            backs.append(s_norm * sigma)
            ranks.append(len(local))
        width = span * len(bases)
        return StoredBasis(
            analysis=torch.cat(analysis).half(),
            synthesis=torch.cat(synthesis).half(),
            gain=torch.cat(gains),
            back=torch.cat(backs),
            mean=torch.cat([b.mean for b in bases]),
            ranks=torch.tensor(ranks),
            variance=self.weights[kind][kept.to(self.weights[kind].device)],
            predictor=torch.zeros(0, width).half(),
        )


def _some_tokens(samples: Sequence[SampleWindow], rows: Callable[[SampleWindow], Tensor]) -> Tensor:
    """What `rows` gives of evenly spaced sample tokens, `MAX_TOKENS` at most."""
    stride = max(1, -(-sum(len(s.token_ids) for s in samples) // MAX_TOKENS))
    parts, first = [], 0
    for sample in samples:
        parts.append(rows(sample)[first::stride])
        first = (first - len(sample.token_ids)) % stride
    return torch.cat(parts)


def _sub_bases(moment: SpanMoments, span: int, use_metric: bool) -> list[WeightedBasis]:
    """Bases of consecutive groups of `span` coordinates, from sums kept over equal or larger spans."""
    analyzer, out = FrequencyAnalyzer(EPSILON), []
    for part, covariance, metric in moment.groups(span, metric=use_metric):
        basis = analyzer.solve(covariance, metric, moment.mean[part])
        out.append(WeightedBasis(*(t.float() for t in (basis.analysis, basis.synthesis, basis.mean, basis.variance))))
    return out
