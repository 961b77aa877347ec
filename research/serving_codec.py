"""What a serving engine's tier gives up by knowing nothing but positions, and what knowing more would gain.

Four codecs restore the same prefixes (`evaluation.restored`), each at several rates: the serving mode (importance from keys and
values alone), the same with no importance at all, with token ids beside (what a connector that sees them could use), and the mode
of caches (token ids and the attention that tokens received). And the serving mode by the length of a chunk.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from research.windows import scored_windows
from spectralquant.calibration.capture.samples import SampleWindow
from spectralquant.calibration.capture.step import capture_step
from spectralquant.calibration.cold.fit import ColdFitter
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.calibration.sums import CalibrationSums
from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_keys, unrotate_keys
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.serving.codec import KVChunk, ServingCodec, joined, pieces
from spectralquant.evaluation.curve import ratio_at_kl
from spectralquant.evaluation.measure import Measurement
from spectralquant.evaluation.restored import prefix_tokens, restored_window
from spectralquant.evaluation.unigram import unigram_perplexity
from spectralquant.geometry import BLOCK
from spectralquant.hooks.rotary_frequencies import RotaryFrequencies, model_frequencies
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.models.weights import embedding_weight
from spectralquant.profile.tensors import ColdTier
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.quality import MethodRow
from spectralquant.results.schema import ColdResults
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]
KLS = (0.005, 0.01, 0.02)


@dataclass(frozen=True)
class ServingStudy:
    """What to measure; see `research.cold.ColdStudy`. chunks: lengths of a chunk, the first for all curves."""

    steps: int = 80
    window: int = 2048
    windows: int = 24
    ratios: tuple[float, ...] = (15, 25, 40, 60, 90, 130)
    chunks: tuple[int, ...] = (256, 64, 128, 512)
    part: str = "report"


@dataclass
class InformedCodec:
    """As `ServingCodec`, but it knows the text: token ids and, where `attention`, what tokens received of it. Sinks are exact."""

    codec: SpectralCodec
    rotary: RotaryFrequencies
    attention: bool
    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    received: Tensor | None = None
    chunks: Sequence[KVChunk] = ()
    coded: Sequence[bytes] = ()

    @property
    def device(self) -> torch.device:
        return self.codec.device

    def encode(self, chunks: Sequence[KVChunk]) -> list[bytes]:
        """Bytes of each chunk: as those of `ServingCodec`, token ids in its blocks."""
        self.chunks = list(chunks)
        blocks = [self._block(c, *part) for c in chunks for part in pieces(c)]
        self.coded = self.codec.encode_run(blocks)
        return joined(chunks, self.coded)

    def decode(self, packets: Sequence[bytes], dtype: torch.dtype) -> list[KVChunk]:
        """What `encode` coded last."""
        out, at = [], 0
        for chunk in self.chunks:
            keys, values = chunk.keys.clone(), chunk.values.clone()
            for first, last in pieces(chunk):
                plain, v = self.codec.decode(self.coded[at])
                at += 1
                turned = rotate_keys(self._rotations(chunk, first, last), plain)
                keys[:, :, first:last] = turned.permute(1, 2, 0, 3).to(dtype)
                values[:, :, first:last] = v.permute(1, 2, 0, 3).to(dtype)
            out.append(KVChunk(chunk.start, keys, values))
        return out

    def _rotations(self, chunk: KVChunk, first: int, last: int) -> Any:
        return self.rotary(torch.arange(chunk.start + first, chunk.start + last), chunk.keys.dtype)

    def _block(self, chunk: KVChunk, first: int, last: int) -> KVBlock:
        some = slice(chunk.start + first, chunk.start + last)
        keys, values = (x[:, :, first:last].float().permute(2, 0, 1, 3) for x in (chunk.keys, chunk.values))
        return KVBlock(
            unrotate_keys(self._rotations(chunk, first, last), keys),
            values,
            some.start,
            received=self.received[some] if self.attention and self.received is not None else None,
            token_ids=self.ids[some],
            previous_id=int(self.ids[some.start - 1]) if some.start else -1,
        )


def serving_codec_study(
    loaded: LoadedModel, text: TokenText, study: ServingStudy, text_name: str, progress: Progress
) -> ColdResults:
    """Calibrate for both purposes and measure every point."""
    windows = scored_windows(text, study.steps, study.window, study.windows, study.part)
    rotary = model_frequencies(loaded.model, loaded.geometry).to(loaded.device)
    common = {"steps": study.steps, "window": study.window, "held_out_windows": 1, "held_out_window": study.window}
    serving = CalibrationSettings(**common, predict="none", purpose="serving")
    loaded = replace(loaded, geometry=serving.coded_geometry(loaded.geometry))
    run, sums, samples = _first_pass(loaded, text, serving, text_name, progress)
    own = run.cold_fitter(sums, samples)
    neutral = _with_importance(own, "none")
    rows, r2 = [], {}

    def plain(fitter: ColdFitter, ratio: float) -> ServingCodec:
        tier, report = fitter.fit(fitter.step_for_ratio(ratio))
        r2[fitter.importance] = report.importance_r2
        return ServingCodec(SpectralCodec(tier, loaded.geometry, None, loaded.device), rotary)

    curves: dict[str, list[Any]] = {
        "serving": [plain(own, r) for r in study.ratios],
        "serving, no importance": [plain(neutral, r) for r in study.ratios],
    }
    chunk_codec = curves["serving"][study.ratios.index(40) if 40 in study.ratios else 0]
    run, sums, samples = _first_pass(loaded, text, CalibrationSettings(**common), text_name, progress)
    informed = functools.partial(_informed, loaded, rotary, study.ratios)
    both = run.cold_fitter(sums, samples)
    curves["token ids"] = informed(_with_importance(both, "own"), attention=False)
    curves["token ids and attention"] = informed(both, attention=True)
    first, *others = study.chunks
    for name, codecs in curves.items():
        for ratio, m in zip(study.ratios, _measured(loaded, windows, codecs, first, name, progress), strict=True):
            rows.append(_row(m, loaded, study, {"knows": name, "aim": ratio, "chunk": first}))
    for chunk in others:
        m = _measured(loaded, windows, [chunk_codec], chunk, f"chunks of {chunk}", progress)[0]
        rows.append(_row(m, loaded, study, {"knows": "serving", "aim": 40.0, "chunk": chunk}))
    return results_file(
        "serving-codec",
        rows,
        provenance(
            **device_facts(loaded.device),
            model=loaded.name,
            weights_sha256=weights_sha256(loaded.model),
            text=text_name,
            calibration_sha256=tokens_sha256(run.windows),
            evaluation_sha256=tokens_sha256(windows),
            part_of_text=study.part,
            dtype=str(loaded.model.dtype).removeprefix("torch."),
        ),
        summary=_summary(rows, list(curves), r2),
    )


def _first_pass(
    loaded: LoadedModel, text: TokenText, settings: CalibrationSettings, name: str, progress: Progress
) -> tuple[CalibrationRun, CalibrationSums, list[SampleWindow]]:
    run = CalibrationRun(loaded, text, settings, name, None, False, None, progress)
    return run, *run.first_pass()


def _with_importance(fitter: ColdFitter, importance: str) -> ColdFitter:
    """The same bases, with another importance (see `ColdFitter`)."""
    other = copy.copy(fitter)
    other.importance = importance
    return other


def _informed(
    loaded: LoadedModel, rotary: RotaryFrequencies, ratios: Sequence[float], fitter: ColdFitter, *, attention: bool
) -> list[InformedCodec]:
    embedding = embedding_weight(loaded.model)
    tiers: list[ColdTier] = [fitter.fit(fitter.step_for_ratio(r))[0] for r in ratios]
    codecs = [SpectralCodec(tier, loaded.geometry, embedding, loaded.device) for tier in tiers]
    return [InformedCodec(codec, rotary, attention) for codec in codecs]


def _measured(
    loaded: LoadedModel, windows: Tensor, codecs: Sequence[Any], chunk: int, stage: str, progress: Progress
) -> list[Measurement]:
    """`measure_restored` with the text told to those codecs that know it."""
    prefix = prefix_tokens(windows.shape[1], chunk)
    out = [Measurement("serving", {}, 16, [], unigram_perplexity(windows[:, prefix + 1 :])) for _ in codecs]
    for done, ids in enumerate(windows):
        progress(stage, done, len(windows))
        received = None
        if any(getattr(codec, "attention", False) for codec in codecs):
            step = capture_step(loaded.model, loaded.geometry, ids[:prefix], backward=False, received_block=BLOCK)
            received = step.received.permute(2, 0, 1).contiguous()
        for codec in codecs:
            if isinstance(codec, InformedCodec):
                codec.ids, codec.received = ids, received
        for m, totals in zip(out, restored_window(loaded.model, ids, codecs, prefix, chunk), strict=True):
            m.windows.append(totals)
    return out


def _row(m: Measurement, loaded: LoadedModel, study: ServingStudy, options: dict[str, Any]) -> MethodRow:
    row = m.row(loaded.geometry, loaded.name, study.window)
    prefix = prefix_tokens(study.window, options["chunk"])
    return row.model_copy(update={"options": options, "mode": "restored", "prompt_tokens": prefix})


def _summary(rows: Sequence[MethodRow], names: Sequence[str], r2: dict[str, Any]) -> dict[str, Any]:
    """Ratios at equal KL, sinks and headers included; what the codecs' bytes are of each other's."""
    chunk = rows[0].options["chunk"]
    out: dict[str, Any] = {}
    for kl in KLS:
        at = {
            name: ratio_at_kl([r for r in rows if r.options["knows"] == name and r.options["chunk"] == chunk], kl)
            for name in names
        }
        for name in names:
            out[f"{name.replace(', ', '_').replace(' ', '_')}_ratio_at_kl_{kl:g}"] = at[name]
        best, ours, ids, none = (at[n] for n in ("token ids and attention", "serving", "token ids", names[1]))
        share = lambda a, b: None if a is None or b is None else a / b  # noqa: E731
        out[f"serving_bytes_over_caches_mode_at_kl_{kl:g}"] = share(best, ours)
        out[f"neutral_bytes_over_caches_mode_at_kl_{kl:g}"] = share(best, none)
        out[f"token_ids_gain_at_kl_{kl:g}"] = share(ids, ours)
        out[f"own_importance_gain_at_kl_{kl:g}"] = share(ours, none)
    keys, values = r2.get("own", (None, None))
    return out | {"importance_r2_key": keys, "importance_r2_value": values}
