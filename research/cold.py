"""The cold tier's rate–distortion curve with TurboQuant on the same tokens (method.md sections 6 and 7)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from research.windows import scored_windows
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.solve import Trials, choose_centroids
from spectralquant.codec.block import KVBlock
from spectralquant.errors import InputError
from spectralquant.evaluation.curve import best_under_bar, ratio_at_kl, times_smaller
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.needle import needle_retrieval
from spectralquant.evaluation.streaming import stream_window
from spectralquant.evaluation.tiers import measure_tiers
from spectralquant.geometry import BLOCK, SINKS
from spectralquant.methods.base import Method
from spectralquant.methods.coding.spectral import SpectralCold, tier_method
from spectralquant.methods.coding.turboquant import TurboQuant
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.profile.tensors import ColdTier, flatten
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.kept import kept_rows
from spectralquant.results.quality import MethodRow, NeedleRow
from spectralquant.results.schema import ColdResults
from spectralquant.results.studies import SpectrumRow, TierCost
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ColdStudy:
    """What to measure. Calibrated on the first `steps` windows of `window` tokens; scored on the last `windows` of the
    text's report part (`research.windows`), which are cut anew into windows of `long_context` for the long runs.
    """

    steps: int = 80
    window: int = 2048
    windows: int = 24
    long_context: int = 8192
    ratios: tuple[float, ...] = (12, 20, 32, 45, 60, 75, 95, 130)
    long_ratios: tuple[float, ...] = (70, 95, 120)
    turbo_bits: tuple[int, ...] = (2, 3, 4)
    needle_contexts: tuple[int, ...] = (512, 1024, 2048)
    needle_ratios: tuple[float, ...] = (70,)
    part: str = "report"


def cold_study(
    loaded: LoadedModel,
    text: TokenText,
    study: ColdStudy,
    text_name: str,
    progress: Progress = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> ColdResults:
    """Calibrate, measure every point, and summarize; returns a results file.

    Raises:
        InputError: the scored windows together do not make one long one.
    """
    windows = scored_windows(text, study.steps, study.window, study.windows, study.part)
    if study.long_ratios and windows.numel() < study.long_context:
        raise InputError(
            f"Long windows have {study.long_context:,} tokens, and {len(windows)} scored windows of {study.window:,} together "
            "fewer. Give more or longer --windows."
        )
    times: dict[str, float] = {}
    start = time.perf_counter()
    settings = CalibrationSettings(
        steps=study.steps, window=study.window, held_out_windows=1, held_out_window=study.window
    )
    run = CalibrationRun(loaded, text, settings, text_name, kept.path("calibration"), kept.resume, None, progress)
    sums, samples = run.first_pass()
    times["capture"] = time.perf_counter() - start
    fitter = run.cold_fitter(sums, samples)
    times["bases"] = time.perf_counter() - start - times["capture"]
    tiers: dict[float, ColdTier] = {}
    reports = {}
    for done, ratio in enumerate(sorted({*study.ratios, *study.long_ratios, *study.needle_ratios})):
        progress("fitting tiers", done, len(study.ratios))
        tier, reports[ratio] = fitter.fit(fitter.step_for_ratio(ratio))
        tiers[ratio] = choose_centroids(tier, Trials(loaded, run.held_out, measure_tiers, lambda *_: None))[0]
    times["tiers"] = time.perf_counter() - start - sum(times.values())

    turbo = [TurboQuant(loaded.geometry.head_dim, bits) for bits in study.turbo_bits]
    short = [_method(tiers, r, loaded) for r in study.ratios]
    rows = kept_rows(
        kept, "short windows", MethodRow, lambda: _rows(loaded, windows, [*short, *turbo], progress, "2K windows")
    )
    times["short"] = time.perf_counter() - start - sum(times.values())
    if study.long_ratios:
        long = windows.reshape(-1)[: windows.numel() // study.long_context * study.long_context].view(
            -1, study.long_context
        )
        methods: list[Method] = [_method(tiers, r, loaded) for r in study.long_ratios]
        methods += [_method(tiers, r, loaded, exact_bits=8) for r in study.long_ratios]
        score = functools.partial(_rows, loaded, long, [*methods, *turbo], progress, "8K windows")
        rows += kept_rows(kept, "long windows", MethodRow, score)
    times["long"] = time.perf_counter() - start - sum(times.values())
    needle = []
    for context in study.needle_contexts:
        methods = [_method(tiers, r, loaded) for r in study.needle_ratios]
        find = functools.partial(_needle_rows, loaded, [*methods, *turbo], context, progress)
        needle += kept_rows(kept, f"needle at {context}", NeedleRow, find)
    times["needle"] = time.perf_counter() - start - sum(times.values())
    middle = study.ratios[len(study.ratios) // 2]
    return results_file(
        "cold",
        rows,
        provenance(
            **device_facts(loaded.device),
            model=loaded.name,
            weights_sha256=weights_sha256(loaded.model),
            text=text_name,
            part_of_text=study.part,
            calibration_sha256=tokens_sha256(run.windows),
            evaluation_sha256=tokens_sha256(windows),
            dtype=str(loaded.model.dtype),
            seed=0,
            **kept.facts(),
            stages_s={k: round(v, 1) for k, v in times.items()},
        ),
        summary=summarize(rows, study),
        needle=needle,
        spectrum=_spectrum(fitter, reports),
        overhead=bytes_over_entropy(loaded, windows[0], _method(tiers, middle, loaded)),
        profile={str(r): profile_facts(t, loaded, r) for r, t in tiers.items()},
    )


def _method(tiers: dict[float, ColdTier], ratio: float, loaded: LoadedModel, exact_bits: int = 16) -> SpectralCold:
    return tier_method(tiers[ratio], loaded, exact_bits, target_ratio=ratio)


def _rows(
    loaded: LoadedModel, windows: torch.Tensor, methods: Sequence[Method], progress: Progress, stage: str
) -> list[MethodRow]:
    found = measure(loaded.model, loaded.geometry, windows, methods, lambda d, t: progress(stage, d, t))
    return [m.row(loaded.geometry, loaded.name, windows.shape[1]) for m in found]


def _needle_rows(loaded: LoadedModel, methods: Sequence[Method], context: int, progress: Progress) -> list[NeedleRow]:
    found = needle_retrieval(loaded, methods, context, progress=lambda d, t: progress("needle", d, t))
    return [result.row() for result in found]


def summarize(rows: Sequence[MethodRow], study: ColdStudy) -> dict[str, Any]:
    """The figures of method.md section 7, from measured rows."""
    pick = lambda method, context, bits=16: [  # noqa: E731
        r for r in rows if r.method == method and r.context == context and r.options.get("exact_bits", 16) == bits
    ]
    short, turbo = pick("spectral", study.window), pick("turboquant", study.window)
    out: dict[str, Any] = {
        "condition": "delta_ppl <= 0.18 and kl_nats <= 0.0125, largest measured point",
        f"payload_{study.window}": best_under_bar(short),
        "smaller_than_turboquant_at_kl_0.016": times_smaller(short, turbo, 0.016),
        "smaller_than_turboquant_at_kl_0.004": times_smaller(short, turbo, 0.004),
        f"payload_{study.window}_at_kl_0.0125_interpolated": ratio_at_kl(short, 0.0125),
    }
    for bits in (16, 8):
        long = pick("spectral", study.long_context, bits)
        best = best_under_bar(long)
        if best is not None:
            out[f"payload_{study.long_context}_exact{bits}"] = best
            out[f"whole_cache_{study.long_context}_exact{bits}_mean_over_block_cycle"] = _mean_whole_cache(best)
    return out


def _mean_whole_cache(row: MethodRow) -> float:
    """Whole-cache ratio averaged over the block cycle, in which 128 to 255 recent tokens are exact.

    Rows count the end of a window, the moment of fewest exact tokens; what these take, attention sums included, is what
    the row's bytes leave beside codes.
    """
    coded = row.coded_bytes / row.n_windows
    now = SINKS + BLOCK
    mean = now + (BLOCK - 1) / 2
    exact = (row.resident_bytes - coded) * mean / now
    return row.fp16_bytes / (exact + coded * (row.context - mean) / (row.context - now))


def _spectrum(fitter: Any, reports: dict[float, Any]) -> list[SpectrumRow]:
    """Shares of components alive, predicted rates and R² of the importance regression, one row a step."""
    return [
        SpectrumRow(
            target_ratio=ratio,
            step=r.step,
            predicted_ratio=r.predicted_ratio,
            alive_key=r.alive_key,
            alive_value=r.alive_value,
            importance_r2_key=r.importance_r2[0],
            importance_r2_value=r.importance_r2[1],
        )
        for ratio, r in sorted(reports.items())
    ]


def bytes_over_entropy(loaded: LoadedModel, ids: torch.Tensor, method: SpectralCold) -> dict[str, float]:
    """Real block bytes against the cross-entropy of the tables, on one window."""
    total = {"bytes": 0.0, "entropy_bytes": 0.0, "id_bytes": 0.0}

    def on_block(_: int, block: KVBlock, encoded: Any) -> None:
        run = method.codec.quantized([block])
        total["bytes"] += encoded.nbytes
        total["entropy_bytes"] += method.codec.coder.ideal_bits(run.symbols, run.classes) / 8
        total["id_bytes"] += 2 * (block.tokens + 1)

    stream_window(loaded.model, loaded.geometry, ids, [method], on_block)
    coded = total["bytes"] - total["id_bytes"]
    return {**total, "overhead_share": coded / total["entropy_bytes"] - 1}


def profile_facts(tier: ColdTier, loaded: LoadedModel, ratio: float) -> TierCost:
    """Bytes of a tier's tensors and the tokens after which the bytes saved on caches exceed them."""
    size = sum(t.untyped_storage().nbytes() for t in flatten("cold", tier).values())
    saved = loaded.geometry.fp16_bytes_per_token * (1 - 1 / ratio)
    return TierCost(bytes=size, paid_for_after_tokens=round(size / saved))
