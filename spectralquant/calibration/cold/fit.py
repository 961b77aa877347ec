"""Fitting the cold tier: bases from sums, then tables, centroids and importance from the sample windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectralquant.calibration.basis.predictor import Predictor, residual_covariance, solve_predictor
from spectralquant.calibration.basis.rank import RankAllocator
from spectralquant.calibration.basis.spectrum import FrequencyAnalyzer, WeightedBasis, shrunk
from spectralquant.calibration.basis.two_level import TwoLevelForm, solve_two_levels, two_level_problems
from spectralquant.calibration.capture.samples import SampleWindow
from spectralquant.calibration.capture.statistics import FeatureMoments, SpanMoments
from spectralquant.calibration.cold.importance import fit_importance, log_importance
from spectralquant.calibration.cold.tables import (
    class_tables,
    cluster_tables,
    code_length,
    nearest_tables,
    symbol_histogram,
)
from spectralquant.codec.cold.features import TokenFeatures
from spectralquant.codec.cold.importance import NEUTRAL, ImportanceModel, class_step, importance_features, own_features
from spectralquant.codec.cold.rans.setting import LANES_SHARE
from spectralquant.codec.cold.rans_block import DIGITS, HEADER, WIDE
from spectralquant.geometry import CacheGeometry
from spectralquant.profile.factors import IntegerRows, SmallForm, unit_rows
from spectralquant.profile.tensors import ColdTier, StoredBasis, empty, on_cpu

CENTROID_RANGE = (0.6, 1.2)
CENTROID_PRIOR = (0.85, 10.0)
KEPT_SHARE = 1e-4
MOST_LEADING, TOKENS_A_LEADING = 256, 128
SEARCH_STEPS = 6
SEARCH_STRIDE = 3
SEARCH_TOLERANCE = 0.003


@dataclass(frozen=True)
class ColdReport:
    """What fitting found: bits per token (prediction from tables), kept shares and R² of the importance regression."""

    step: float
    bits_per_token: float
    predicted_ratio: float
    alive_key: float
    alive_value: float
    importance_r2: tuple[float, float]
    captured_energy: tuple[float, float]
    overhead_bytes: float


class ColdFitter:
    """Holds bases and sample coefficients; `fit(step)` gives a tier, `step_for_ratio` the step for a ratio."""

    def __init__(
        self,
        geometry: CacheGeometry,
        moments: Sequence[SpanMoments],
        samples: Sequence[SampleWindow],
        block: int,
        *,
        use_metric: bool = True,
        features: TokenFeatures | None = None,
        feature_moments: FeatureMoments | None = None,
        importance: str = "received",
        span: int | None = None,
        two_level: bool = False,
        form: TwoLevelForm = TwoLevelForm(),  # noqa: B008 (frozen)
        shrinkage: float = 0.0,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.geometry = geometry
        self.block = block
        self.features = features if feature_moments is not None else None
        self.span = moments[0].span if span is None else span
        self.two_level = two_level and self.span > geometry.layer_width and self.span == moments[0].span
        self.form, self.shrinkage = form, shrinkage
        self.allowed: list[Tensor | None] = [None, None]
        self.device = moments[0].sum.device
        self.samples = samples
        known = samples[0].has_gradients and (importance == "own" or samples[0].received is not None)
        self.importance = importance if known else "none"
        self.predictors: list[Predictor | None] = []
        self.bases: list[list[WeightedBasis]] = []
        for kind, moment in enumerate(moments):
            progress(f"basis of {('keys', 'values')[kind]}")
            self._solve(kind, moment, use_metric, feature_moments)
        progress("sample coefficients")
        self.coefficients = [self._coefficients(kind) for kind in range(2)]
        self.squared_gradients = (
            [self._squared_gradients(kind) for kind in range(2)] if self.importance != "none" else []
        )
        self.variance = [torch.cat([b.variance for b in bases]) for bases in self.bases]
        self.allocator = RankAllocator(self.variance)

    def _solve(self, kind: int, moment: SpanMoments, use_metric: bool, features: FeatureMoments | None) -> None:
        predictor = gram = cross = None
        if features is not None:
            predictor, gram, cross = solve_predictor(features, moment, kind)
        if self.two_level:
            predicted = None if predictor is None else (predictor.weight, gram, cross)
            offset = moment.mean if predictor is None else predictor.offset
            problems = two_level_problems(moment, self.geometry.layer_width, predicted, metric=use_metric)
            form = replace(self.form, most=self.form.most * self.span // moment.width)
            solved = [
                solve_two_levels(problem, offset[part].float(), form, self.shrinkage) for part, problem in problems
            ]
            self.bases.append(solved)
            self.predictors.append(predictor)
            return
        analyzer = FrequencyAnalyzer()
        bases = []
        for part, covariance, metric in moment.groups(self.span, metric=use_metric):
            mean = moment.mean[part]
            if predictor is not None:
                covariance = residual_covariance(covariance, predictor.weight[:, part], gram, cross[:, part])
                mean = predictor.offset[part]
            layers = [min(self.span, self.geometry.layer_width)] * max(1, self.span // self.geometry.layer_width)
            covariance = shrunk(covariance, layers, self.shrinkage)
            metric = None if metric is None else shrunk(metric, layers, self.shrinkage)
            basis = analyzer.solve(covariance, metric, mean)
            bases.append(
                WeightedBasis(*(t.float() for t in (basis.analysis, basis.synthesis, basis.mean, basis.variance)))
            )
        self.predictors.append(predictor)
        self.bases.append(bases)

    def _coefficients(self, kind: int) -> Tensor:
        """Coefficients float32 `[N, P]` of all sample tokens, in units of the metric."""
        mean = torch.cat([b.mean for b in self.bases[kind]])
        predictor = self.predictors[kind]

        def rows(sample: SampleWindow) -> Tensor:
            x = sample.rows(kind, self.device) - mean
            if predictor is not None:
                x -= self.features(sample.token_ids, sample.previous_id).to(self.device) @ predictor.weight
            return self._per_group(x, kind, lambda part, basis: part @ basis.analysis.T)

        return self._stacked(kind, sum(len(s.token_ids) for s in self.samples), map(rows, self.samples))

    def _stacked(self, kind: int, count: int, parts: Iterable[Tensor]) -> Tensor:
        """Parts of `[count, components]` one under the other, of which only one is held beside the whole."""
        out = torch.empty(count, sum(len(b.variance) for b in self.bases[kind]), device=self.device)
        at = 0
        for part in parts:
            out[at : at + len(part)] = part
            at += len(part)
        return out

    def _per_group(self, x: Tensor, kind: int, function: Callable[[Tensor, WeightedBasis], Tensor]) -> Tensor:
        span = len(self.bases[kind][0].mean)
        parts = [function(x[:, i * span : (i + 1) * span], b) for i, b in enumerate(self.bases[kind])]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def kept(self, kind: int, step: float) -> Tensor:
        """Indices of components whose |y| reaches Δ/2 on the samples: the others have rank 0 and are not stored.

        At least one is kept, so that a profile is never empty.
        """
        y = self.coefficients[kind]
        need = max(1, math.ceil(KEPT_SHARE * len(y)))
        reach = torch.cat([(part.abs() >= step / 2).sum(0) for part in y.split(512, dim=1)])
        alive = reach >= need
        if self.allowed[kind] is not None:
            alive &= self.allowed[kind]
        kept = torch.nonzero(alive).squeeze(1)
        return kept if len(kept) else reach.argmax()[None]

    def limit_rank(self, step: float, count: int) -> None:
        """From now on keep at most `count` components over keys and values, those of largest variance at `step`."""
        kept = [self.kept(kind, step) for kind in range(2)]
        variance = torch.cat([self.variance[kind][k] for kind, k in enumerate(kept)])
        level = variance.sort(descending=True).values[min(count, len(variance)) - 1]
        self.allowed = [v >= level for v in self.variance]

    def step_for_ratio(self, ratio: float) -> float:
        """The base step at which the fitted tables predict this payload ratio."""
        start = self.allocator.step_for_bits(16 / ratio, 2 * self.geometry.width)
        return search_step(lambda step, stride: self.report(step, stride).predicted_ratio, ratio, start)

    def report(self, step: float, stride: int = 1) -> ColdReport:
        """What `fit` would report, without the tier."""
        return self._fit(step, stride, complete=False)[1]

    def fit(self, step: float, stride: int = 1) -> tuple[ColdTier, ColdReport]:
        """The complete tier at base step `step` and what its tables predict on every `stride`-th sample token."""
        return self._fit(step, stride, complete=True)

    def _fit(self, step: float, stride: int, *, complete: bool) -> tuple[ColdTier | None, ColdReport]:
        kept = [self.kept(kind, step) for kind in range(2)]
        y = [c[:, k] / step for c, k in zip(self.coefficients, kept, strict=True)]
        leading = self._leading(kept) if self.importance == "own" else None
        classes, model, r2 = self._classes(y, kept, leading)
        y, classes = [part[::stride] for part in y], classes[::stride]
        steps = class_step(classes)
        histograms, unseen, centroids, wide = [], [], [], 0
        for kind in range(2):
            histogram, plain, centroid = 0.0, 0.0, torch.zeros(2, y[kind].shape[1], device=self.device)
            for rows in range(0, len(y[kind]), 1024):
                part = slice(rows, rows + 1024)
                scaled = y[kind][part] / steps[part, kind, None]
                symbols = scaled.round().to(torch.int32)
                ones = symbols.abs() == 1
                centroid += torch.stack([(scaled.abs() * ones).sum(0), ones.sum(0).float()])
                histogram = histogram + symbol_histogram(symbols, classes[part, kind])
                wide += int((symbols.abs() > WIDE // 2).sum())
                if self.importance != "none":
                    at_base = y[kind][part].round().to(torch.int32)
                    plain = plain + symbol_histogram(at_base, torch.zeros_like(classes[part, kind]))[0]
            prior, weight = CENTROID_PRIOR
            centroids.append(((centroid[0] + prior * weight) / (centroid[1] + weight)).clamp(*CENTROID_RANGE))
            histograms.append(histogram)
            unseen.append(plain)
        both = torch.cat(histograms, dim=1)
        choice, tables = cluster_tables(both)
        bits = (code_length(both, choice, tables) + 32 * wide) / len(classes)
        if self.importance != "none":
            bits += 2 * 16 / DIGITS
            choice = torch.cat([choice, nearest_tables(torch.cat(unseen), tables)[None]])
        bits *= 1 + LANES_SHARE
        per_class = class_tables(classes)
        bits_total = bits + 8 * self._overhead_bytes()
        width = self.geometry.width
        report = ColdReport(
            step=step,
            bits_per_token=bits_total,
            predicted_ratio=8 * self.geometry.fp16_bytes_per_token / bits_total,
            alive_key=len(kept[0]) / width,
            alive_value=len(kept[1]) / width,
            importance_r2=(r2[0], r2[1]),
            overhead_bytes=self._overhead_bytes(),
            captured_energy=tuple(self._captured(i, kept[i]) for i in range(2)),
        )
        if not complete:
            return None, report
        split = len(kept[0])
        tier = ColdTier(
            key=self._stored(0, kept[0], step),
            value=self._stored(1, kept[1], step),
            key_centroid=centroids[0],
            value_centroid=centroids[1],
            key_choice=choice[:, :split].contiguous(),
            value_choice=choice[:, split:].contiguous(),
            tables=tables,
            class_tables=per_class,
            importance_weight=model.weight,
            importance_bias=model.bias,
            embedding_projection=self._projection(),
            leading=leading,
        )
        return on_cpu(tier), report

    def _classes(
        self, y: list[Tensor], kept: list[Tensor], leading: Tensor | None
    ) -> tuple[Tensor, ImportanceModel, list[float]]:
        count = len(y[0])
        heads = self.geometry.layers * self.geometry.heads
        if self.importance == "none":
            neutral = torch.full((count, 2), NEUTRAL, device=self.device)
            return neutral, ImportanceModel(torch.zeros(heads + 2, 2), torch.zeros(2)), [0.0, 0.0]
        if leading is not None:
            some = [c[:, index] for c, index in zip(y, leading, strict=True)]
            features = own_features(*some, *(c.square().mean(1) for c in y))
        else:
            features = importance_features(torch.cat([s.received for s in self.samples]).to(self.device), *y)
        far = torch.cat([s.far for s in self.samples]).to(self.device)
        block = torch.cat([s.block for s in self.samples]).to(self.device)
        weights = log_importance(*(g[:, k] for g, k in zip(self.squared_gradients, kept, strict=True)))
        model, r2 = fit_importance(features[far], weights, block[far])
        return model.classes(features), model, r2

    def _leading(self, kept: list[Tensor]) -> Tensor:
        """Int64 `[2, n]`: the kept components of largest variance, as many as the far sample tokens can weigh."""
        far = sum(int(s.far.sum()) for s in self.samples)
        count = max(1, min(MOST_LEADING, far // TOKENS_A_LEADING, *map(len, kept)))
        return torch.stack([self.variance[i][k].argsort(descending=True)[:count] for i, k in enumerate(kept)])

    def _squared_gradients(self, kind: int) -> Tensor:
        """Squared gradients float32 `[N', P]` of the coefficients of the N' far sample tokens."""

        def rows(sample: SampleWindow) -> Tensor:
            g = sample.far_gradients(kind, self.device)
            return self._per_group(g, kind, lambda part, basis: part @ basis.synthesis).square_()

        return self._stacked(kind, sum(int(s.far.sum()) for s in self.samples), map(rows, self.samples))

    def _stored(self, kind: int, kept: Tensor, step: float) -> StoredBasis:
        bases = self.bases[kind]
        analysis, synthesis, picked, start = [], [], [], 0
        for basis in bases:
            local = kept[(kept >= start) & (kept < start + len(basis.variance))] - start
            start += len(basis.variance)
            picked.append(local)
            factors = None if basis.factors is None else basis.factors.picked(local)
            analysis.append(basis.analysis[local] if factors is None else factors.rows("analysis"))
            synthesis.append(basis.synthesis.T[local])
        a, s = unit_rows(torch.cat(analysis)), unit_rows(torch.cat(synthesis))
        weight = (
            self.predictors[kind].weight
            if self.predictors[kind] is not None
            else a[0].new_zeros(0, self.geometry.width)
        )
        small = None
        if self.two_level:
            groups = tuple(b.factors.picked(i) for b, i in zip(bases, picked, strict=True))
            small = SmallForm(groups, IntegerRows.of(weight.float().T, 0))
        return StoredBasis(
            analysis=a[0],
            synthesis=s[0],
            gain=a[1] / step,
            back=s[1] * step,
            mean=torch.cat([b.mean for b in bases]),
            ranks=torch.tensor([len(local) for local in picked]),
            variance=self.variance[kind][kept] / step**2,
            predictor=weight.half(),
            small=small,
        )

    def _captured(self, kind: int, kept: Tensor) -> float:
        """Share of the weighted variance in the kept components."""
        lost = sum(basis.lost for basis in self.bases[kind])
        return float(self.variance[kind][kept].sum() / (self.variance[kind].sum() + lost))

    def _projection(self) -> Tensor:
        if self.features is None or self.features.projection is None:
            return empty()
        return self.features.projection

    def _overhead_bytes(self) -> float:
        """Bytes a token beyond entropy-coded symbols: token ids, block header and index entry."""
        per_block = HEADER.size + 24 + 2
        ids = 0.0 if self.features is None else (2.0 if len(self.features.embedding) < 0xFFFF else 4.0)
        return ids + per_block / self.block


def search_step(predicted: Callable[[float, int], float], ratio: float, step: float) -> float:
    """The step at which `predicted(step, stride)` gives `ratio`, from a first guess."""
    history: list[tuple[float, float]] = []
    for _ in range(SEARCH_STEPS):
        reached = predicted(step, SEARCH_STRIDE)
        history.append((math.log(step), math.log(reached)))
        if abs(math.log(reached / ratio)) < SEARCH_TOLERANCE:
            break
        slope = 1.0
        if len(history) > 1 and history[-1][0] != history[-2][0]:
            slope = (history[-1][1] - history[-2][1]) / (history[-1][0] - history[-2][0])
            slope = min(max(slope, 0.3), 3.0)
        step *= math.exp(max(-1.5, min(1.5, math.log(ratio / reached) / slope)))
    return step
