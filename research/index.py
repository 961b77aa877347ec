"""What reading a part of the cache costs in quality: the spectral index and its selection on held-out text."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from research.windows import scored_windows
from spectralquant.codec.hot.linear import INDEX_RANK
from spectralquant.evaluation.selection import SelectionReader, everything, least_loss, log_probabilities, loss_laws
from spectralquant.evaluation.unigram import perplexity, unigram_perplexity, warn_if_suspect
from spectralquant.geometry import CacheGeometry
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]
Row = dict[str, Any]
SHARES = (1.0, 0.14, 0.1, 0.08, 0.05, 0.03)
BUDGETS = (0.05, 0.03)
LEAST, STEP = 0.02, 1e-4


@dataclass(frozen=True)
class IndexStudy:
    """shares: of the coded tokens, that a query may select, the same in all layers. budgets: of the bytes of fp16 keys and
    values, what a step may read, index and codes together: as many tokens as they buy, the same in all layers, and layer by layer as
    a window of the development part says (see `evaluation.selection`). scored: last tokens of a window that are scored."""

    context: int = 8192
    scored: int = 4096
    windows: int = 6
    shares: tuple[float, ...] = SHARES
    budgets: tuple[float, ...] = BUDGETS
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
    judged = scored_windows(text, 0, study.context, study.windows, study.part).to(loaded.device)
    layers = len(everything(loaded))
    reader = SelectionReader(loaded, profile, [1.0] * layers, study.rank)
    bought = [affordable(reader, loaded.geometry, budget) for budget in study.budgets]
    bought = [share for share in bought if share >= LEAST]
    even = dict.fromkeys((*study.shares, *bought))
    trials = [({"share": share}, (share,) * layers) for share in even]
    if bought:
        window = scored_windows(text, 0, study.context, 1, "development")[0].to(loaded.device)
        told = functools.partial(progress, "layers one by one")
        measure = functools.partial(loss_laws, loaded, profile, window, min(bought[0], 0.5), study.scored, told)
        laws = [(a, e) for a, e in kept.value("laws", measure)]
        for share in bought:
            shares = least_loss(laws, share)
            trials.append(({"share": share, "shares": [round(s, 4) for s in shares]}, shares))
    totals = [[0.0, 0.0, 0.0, 0.0] for _ in trials]
    for done, ids in enumerate(judged):
        told = functools.partial(progress, f"window {done + 1}")
        readers = [reader.with_shares(shares) for _, shares in trials]
        score = functools.partial(_window_sums, loaded, readers, study.scored, ids, told)
        for total, sums in zip(totals, kept.value(f"window {done + 1}", score), strict=True):
            total[:] = [a + b for a, b in zip(total, sums, strict=True)]
    count = study.scored * len(judged)
    unigram_ppl = unigram_perplexity(judged[:, -study.scored :])
    rows = [_row(loaded, reader, study, options, t, count) for (options, _), t in zip(trials, totals, strict=True)]
    rows = [row | {"unigram_ppl": unigram_ppl} for row in rows]
    warn_if_suspect(rows[0]["base_ppl"], unigram_ppl)
    facts = provenance(
        **device_facts(loaded.device),
        model=loaded.name,
        weights_sha256=weights_sha256(loaded.model),
        text=text_name,
        part_of_text=study.part,
        evaluation_sha256=tokens_sha256(judged.cpu()),
        dtype=str(loaded.model.dtype),
        profile=profile.id.hex(),
        seed=0,
    )
    return results_file("index", rows, facts)


def byte_shares(reader: SelectionReader, geometry: CacheGeometry) -> tuple[float, float]:
    """Of fp16 keys and values of the layers that select: bytes of the index, and of all codes."""
    layers = reader.matrices
    dense = 4 * len(layers) * geometry.kv_heads * geometry.head_dim
    index = sum(m.kv_heads * m.layout.index_bytes for m in layers)
    return index / dense, sum(sum(m.layout.row_bytes) for m in layers) / dense


def affordable(reader: SelectionReader, geometry: CacheGeometry, budget: float) -> float:
    """The share of the coded tokens whose codes, and the index, take at most `budget` of the bytes; negative where the index
    alone takes more. Rounded down to hundredths of a percent."""
    index, codes = byte_shares(reader, geometry)
    return min(1.0, round(math.floor((budget - index) / codes / STEP) * STEP, 4))


def _window_sums(
    loaded: LoadedModel,
    readers: list[SelectionReader],
    scored: int,
    ids: Tensor,
    progress: Callable[[int, int], None],
) -> list[list[float]]:
    """KL, both negative log-likelihoods and top-1 hits of a window's scored tokens, a row a reader."""
    exact, target = log_probabilities(loaded, ids, scored), ids[-scored:]
    out = []
    for done, reader in enumerate(readers):
        progress(done, len(readers))
        mine = log_probabilities(loaded, ids, scored, reader)
        kl = (exact.exp() * (exact - mine)).sum()
        losses = (-p.gather(1, target[:, None]).sum() for p in (mine, exact))
        hits = (mine.argmax(-1) == exact.argmax(-1)).sum()
        out.append([float(x) for x in (kl, *losses, hits)])
    return out


def _row(
    loaded: LoadedModel, reader: SelectionReader, study: IndexStudy, options: Row, sums: list[float], count: int
) -> Row:
    """A result row. Shares of fp16 are of keys and values of the layers that select."""
    base = perplexity(sums[2] / count)
    index, codes = byte_shares(reader, loaded.geometry)
    return {
        "method": "spectral",
        "options": {"tier": "hot", "index_rank": study.rank, **options},
        "model": loaded.name,
        "context": study.context,
        "n_tokens": count,
        "base_ppl": base,
        "delta_ppl": perplexity(sums[1] / count) - base,
        "kl_nats": sums[0] / count,
        "top1": sums[3] / count,
        "index_share_of_fp16": index,
        "codes_share_of_fp16": codes,
    }
