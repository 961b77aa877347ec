"""Measure methods on windows of text and reduce them to result rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from spectralquant.codec.exact import exact_bytes
from spectralquant.codec.packet import HEADER_SIZE
from spectralquant.errors import SpectralQuantError
from spectralquant.evaluation.streaming import StreamTotals, stream_window
from spectralquant.evaluation.unigram import hardly_better, perplexity, unigram_perplexity, warn_if_suspect
from spectralquant.geometry import CacheGeometry
from spectralquant.methods.base import AnyMethod
from spectralquant.methods.eviction.evictor import PROMPT, STREAMING
from spectralquant.results.quality import MethodRow

MIN_EVALUATION_WINDOW = 3 * 128
BOOTSTRAP = 2000
CHANGE_FLOOR = 1e-7


@dataclass(frozen=True)
class Measurement:
    """One method on n windows of one length. Per-window sums are kept, so comparisons can be paired.

    unigram_ppl: of the scored tokens, see `evaluation.unigram`. prompt: tokens of a window that were compressed once; 0 in
    the streaming protocol.
    """

    method: str
    options: dict[str, Any]
    exact_bits: int
    windows: list[StreamTotals]
    unigram_ppl: float = math.nan
    prompt: int = 0

    def total(self, name: str) -> float:
        return sum(getattr(w, name) for w in self.windows)

    @property
    def kl(self) -> float:
        """Mean KL(exact ‖ compressed) in nats per scored token."""
        return self.total("kl") / self.total("tokens")

    @property
    def base_ppl(self) -> float:
        return perplexity(self.total("exact_nll") / self.total("tokens"))

    @property
    def delta_ppl(self) -> float:
        """Perplexity of the compressed model minus that of the exact one."""
        return perplexity(self.total("nll") / self.total("tokens")) - self.base_ppl

    def payload_ratio(self, geometry: CacheGeometry) -> float:
        """fp16 bytes of coded tokens that can still be read over the bytes of codes; 1 where there are none."""
        coded = self.total("coded_fp16_bytes")
        return coded / (self.total("coded_bytes") + self._header_bytes) if coded else 1.0

    @property
    def _header_bytes(self) -> int:
        """A packet header a window, for what travels in packets."""
        return HEADER_SIZE * len(self.windows)

    def whole_cache_ratio(self, geometry: CacheGeometry) -> float:
        """fp16 bytes of transformers' own cache over all bytes held at the end of a window, sinks and recent included."""
        return self.total("fp16_bytes") / self.held_bytes(geometry)

    def held_bytes(self, geometry: CacheGeometry) -> float:
        """Bytes held at the end of all windows (or prompts) together: codes, headers, sinks and recent tokens, and what is
        kept about these.
        """
        vectors = int(self.total("fp16_bytes") - self.total("coded_fp16_bytes")) // (2 * geometry.head_dim)
        exact = exact_bytes(1, vectors, geometry.head_dim, self.exact_bits)
        return self.total("coded_bytes") + self._header_bytes + exact + self.total("open_bytes")

    def interval(self, function: Callable[[list[StreamTotals]], float], seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval over windows of a statistic of their totals."""
        return bootstrap_interval(self.windows, function, seed)

    def row(self, geometry: CacheGeometry, model: str, context: int) -> MethodRow:
        """The result row of method.md section 6; `resident_ratio` is null: this harness holds no cache object, but
        codes and exact tokens, whose bytes at the end of a window are `resident_bytes`.
        """
        low_kl, high_kl = self.interval(lambda ws: sum(w.kl for w in ws) / sum(w.tokens for w in ws))
        low_ppl, high_ppl = self.interval(_delta_ppl)
        scored, coded = self.total("tokens"), max(1.0, self.total("coded_tokens"))
        return MethodRow(
            method=self.method,
            options=self.options,
            model=model,
            context=context,
            mode=PROMPT if self.prompt else STREAMING,
            prompt_tokens=self.prompt or None,
            n_tokens=int(scored),
            n_windows=len(self.windows),
            payload_ratio=self.payload_ratio(geometry),
            whole_cache_ratio=self.whole_cache_ratio(geometry),
            resident_ratio=None,
            resident_bytes=round(self.held_bytes(geometry) / len(self.windows)),
            base_ppl=self.base_ppl,
            unigram_ppl=self.unigram_ppl,
            suspect_model=hardly_better(self.base_ppl, self.unigram_ppl),
            delta_ppl=self.delta_ppl,
            delta_ppl_ci95=[low_ppl, high_ppl],
            kl_nats=self.kl,
            kl_nats_ci95=[low_kl, high_kl],
            top1=self.total("top1") / scored,
            scores={name: sum(w.scores[name] for w in self.windows) / scored for name in self.windows[0].scores},
            coded_tokens=int(self.total("coded_tokens")),
            coded_bytes=int(self.total("coded_bytes")),
            fp16_bytes=round(self.total("fp16_bytes") / len(self.windows)),
            encode_s=1000 * self.total("encode_s") / coded,
            decode_s=1000 * self.total("decode_s") / coded,
            time_unit="seconds per 1,000 coded tokens",
        )


def _delta_ppl(windows: Sequence[StreamTotals]) -> float:
    n = sum(w.tokens for w in windows)
    return perplexity(sum(w.nll for w in windows) / n) - perplexity(sum(w.exact_nll for w in windows) / n)


def bootstrap_interval(
    windows: Sequence[StreamTotals], function: Callable[[list[StreamTotals]], float], seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap over windows (Efron 1979), 95 %. A single window has no interval: its value twice."""
    if len(windows) == 1:
        value = function(list(windows))
        return value, value
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(windows), size=(BOOTSTRAP, len(windows)))
    values = [function([windows[i] for i in row]) for row in picks]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def measure(
    model: nn.Module,
    geometry: CacheGeometry,
    windows: Tensor,
    methods: Sequence[AnyMethod],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    prompt: int = 0,
) -> list[Measurement]:
    """Run all methods over `windows: [n, T]`, every one on the same tokens in the same batch.

    prompt: so many tokens of each window are compressed once and the rest is scored; 0 for the streaming protocol.

    Warns (`SuspectModelWarning`) where the uncompressed model is hardly better than a unigram model of the same text.

    Raises:
        SpectralQuantError: the window is too short for anything to be coded, or a method changed nothing.
    """
    if windows.shape[1] < MIN_EVALUATION_WINDOW:
        raise SpectralQuantError(
            f"Windows of {windows.shape[1]} tokens are too short: the last 128 to 255 tokens stay exact, so hardly "
            f"anything would be coded. Use at least {MIN_EVALUATION_WINDOW}."
        )
    unigram_ppl = unigram_perplexity(windows[:, prompt + 1 :])
    out = [Measurement(m.name, m.options, m.exact_bits, [], unigram_ppl, prompt) for m in methods]
    for done, ids in enumerate(windows):
        progress(done, len(windows))
        for measurement, totals in zip(out, stream_window(model, geometry, ids, methods, prompt=prompt), strict=True):
            measurement.windows.append(totals)
    progress(len(windows), len(windows))
    if out:
        warn_if_suspect(out[0].base_ppl, unigram_ppl)
    for measurement in out:
        require_change(measurement)
    return out


def require_change(measurement: Measurement) -> None:
    """Refuse a compressor that silently does nothing, the classic failure of this field.

    Raises:
        SpectralQuantError: every decoded tensor equalled its input (unless the method is `none`).
    """
    if measurement.method != "none" and measurement.total("change") <= CHANGE_FLOOR:
        raise SpectralQuantError(
            f"Method {measurement.method} with options {measurement.options} left every key and value unchanged: it "
            "compresses nothing, so its figures would mean nothing."
        )
