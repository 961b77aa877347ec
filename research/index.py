"""What reading a part of the cache costs in quality: the spectral index and its selection on held-out text.

Every query reads sinks, its own and the previous block exactly, and of the older tokens those that score highest on the
index, from hot codes: what `spectral_index_decode` does for one new token, here by its oracle for all tokens of a
window, so that errors go from layer to layer and token to token as in decoding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from research.windows import scored_windows
from spectralquant.codec.hot.linear import INDEX_RANK, row_matrices
from spectralquant.errors import InputError
from spectralquant.evaluation.unigram import perplexity, unigram_perplexity, warn_if_suspect
from spectralquant.geometry import BLOCK, SINKS
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText, tokens_sha256
from sqkernels.common import RowMatrices
from sqkernels.common.reference import planes_of, round_trip
from sqkernels.spectral_index_decode.reference import integer_weights, score_bins, select_mask

Progress = Callable[[str, int, int], None]
SHARES = (1.0, 0.14, 0.1, 0.08, 0.05, 0.03)


@dataclass(frozen=True)
class IndexStudy:
    """shares: of the coded tokens, that a query may select. scored: last tokens of a window that are
    scored."""

    context: int = 8192
    scored: int = 4096
    windows: int = 6
    shares: tuple[float, ...] = SHARES
    rank: int = INDEX_RANK
    part: str = "report"


@torch.no_grad()
def index_study(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    text: TokenText,
    text_name: str,
    study: IndexStudy,
    progress: Progress = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """A row a share on the last windows of the text.

    Raises:
        InputError: the profile has no hot tier. SourceError: the text is too short.
    """
    if "hot" not in profile.tiers:
        raise InputError("The index study needs a profile with a hot tier: sq calibrate --tier hot.")
    windows = scored_windows(text, 0, study.context, study.windows, study.part)
    tier = profile.tier("hot")
    layers = [
        row_matrices(tier, loaded.geometry, [layer], loaded.device, study.rank)
        for layer in range(loaded.geometry.layers)
    ]
    totals = [[0.0, 0.0, 0.0, 0.0] for _ in study.shares]
    for done, ids in enumerate(windows.to(loaded.device)):
        name = f"window {done + 1}"
        score = functools.partial(_window_sums, loaded, layers, study, ids, functools.partial(progress, name))
        for total, sums in zip(totals, kept.value(name, score), strict=True):
            total[:] = [a + b for a, b in zip(total, sums, strict=True)]
    count = study.scored * len(windows)
    unigram_ppl = unigram_perplexity(windows[:, -study.scored :])
    rows = [_row(loaded, layers, study, share, total, count) for share, total in zip(study.shares, totals, strict=True)]
    rows = [row | {"unigram_ppl": unigram_ppl} for row in rows]
    warn_if_suspect(rows[0]["base_ppl"], unigram_ppl)
    facts = provenance(
        **device_facts(loaded.device),
        model=loaded.name,
        weights_sha256=weights_sha256(loaded.model),
        text=text_name,
        part_of_text=study.part,
        evaluation_sha256=tokens_sha256(windows),
        dtype=str(loaded.model.dtype),
        profile=profile.id.hex(),
        seed=0,
    )
    return results_file("index", rows, facts)


def _window_sums(
    loaded: LoadedModel, layers: list[RowMatrices], study: IndexStudy, ids: Tensor, progress: Callable[[int, int], None]
) -> list[list[float]]:
    """KL, both negative log-likelihoods and top-1 hits of a window's scored tokens, a row a share."""
    exact, target = _log_probabilities(loaded, ids, study.scored), ids[-study.scored :]
    out = []
    for done, share in enumerate(study.shares):
        progress(done, len(study.shares))
        with AttentionTap(loaded.model, _IndexReader(layers, share)):
            mine = _log_probabilities(loaded, ids, study.scored)
        kl = (exact.exp() * (exact - mine)).sum()
        losses = (-p.gather(1, target[:, None]).sum() for p in (mine, exact))
        hits = (mine.argmax(-1) == exact.argmax(-1)).sum()
        out.append([float(x) for x in (kl, *losses, hits)])
    return out


def _row(
    loaded: LoadedModel, layers: list[RowMatrices], study: IndexStudy, share: float, sums: list[float], count: int
) -> dict[str, Any]:
    base = perplexity(sums[2] / count)
    dense = 4 * loaded.geometry.layers * loaded.geometry.kv_heads * loaded.geometry.head_dim
    codes = sum(sum(m.layout.row_bytes) for m in layers)
    return {
        "method": "spectral",
        "options": {"tier": "hot", "index_rank": study.rank, "share": share},
        "model": loaded.name,
        "context": study.context,
        "n_tokens": count,
        "base_ppl": base,
        "delta_ppl": perplexity(sums[1] / count) - base,
        "kl_nats": sums[0] / count,
        "top1": sums[3] / count,
        "index_share_of_fp16": sum(m.kv_heads * m.layout.index_bytes for m in layers) / dense,
        "codes_share_of_fp16": codes / dense,
    }


@torch.no_grad()
def _log_probabilities(loaded: LoadedModel, ids: Tensor, scored: int) -> Tensor:
    """Log-probabilities `[scored, V]` of the window's last tokens."""
    out = loaded.model(input_ids=ids[None], use_cache=False, logits_to_keep=scored + 1)
    return out.logits[0, :-1].float().log_softmax(-1)


class _IndexReader:
    """Attention over exact tokens and selected hot codes, block of queries by block."""

    def __init__(self, layers: list[RowMatrices], share: float) -> None:
        self.layers, self.share = layers, share

    def __call__(self, call: AttentionCall) -> Tensor:
        matrices = self.layers[call.layer]
        query, key, value = call.query[0].float(), call.key[0].float(), call.value[0].float()
        heads, total, dim = query.shape
        kv = len(key)
        coded_key, coded_value = (round_trip(x, matrices, kind) for kind, x in enumerate((key, value)))
        seen = planes_of(key, matrices.index).float()
        out = torch.empty_like(query)
        for start in range(0, total, BLOCK):
            stop = min(total, start + BLOCK)
            old = max(SINKS, start - BLOCK)
            mine = query[:, start:stop].view(kv, -1, stop - start, dim) * call.scaling
            keys = torch.cat([key[:, :SINKS], coded_key[:, SINKS:old], key[:, old:stop]], dim=1)[:, :stop]
            values = torch.cat([value[:, :SINKS], coded_value[:, SINKS:old], value[:, old:stop]], dim=1)[:, :stop]
            scores = mine @ keys.transpose(1, 2)[:, None]
            later = torch.arange(stop, device=key.device) > torch.arange(start, stop, device=key.device)[:, None]
            hidden = later.expand(kv, -1, -1)
            if old > SINKS and self.share < 1:
                weights = integer_weights(mine.mean(1) @ matrices.index.decode.transpose(1, 2))
                budget = torch.full(weights.shape[:-1], math.ceil(self.share * (old - SINKS)), device=weights.device)
                pooled = weights @ seen[:, SINKS:old].transpose(1, 2)
                dropped = ~select_mask(score_bins(pooled, weights), budget, SINKS)
                hidden = hidden.clone()
                hidden[:, :, SINKS:old] = dropped
            p = scores.masked_fill_(hidden[:, None], float("-inf")).softmax(-1)
            out[:, start:stop] = (p @ values[:, None]).reshape(heads, stop - start, dim)
        return out.transpose(0, 1)[None].to(call.query.dtype)
