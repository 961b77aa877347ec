"""What a profile's cold tier takes on other text: real bytes, and the KL that its errors predict.

Keys and values are the exact model's, of one forward pass, so a text takes seconds; a measured KL takes `sq compare`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from spectralquant.calibration.capture.step import capture_step
from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.complement.bounded_block import way_of
from spectralquant.codec.cold.from_profile import chosen_bound
from spectralquant.errors import SourceError
from spectralquant.geometry import BLOCK, SINKS
from spectralquant.methods.coding.spectral import BoundedSpec, SpectralCold, cold_parts, mean_error, tier_method
from spectralquant.methods.grouped import GroupedMethod, part_of
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.promises import FREE, error_limits, kl_as_calibrated, kl_of_second
from spectralquant.profile.schema import TierSummary
from spectralquant.results.quality import TextCostRow
from spectralquant.text.mix import tokenize_sources
from spectralquant.text.read import TextSource

WINDOW, WINDOWS = 1024, 2
LEAST = 3 * BLOCK
SLACK = 1.25


def check_texts(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    sources: Sequence[TextSource],
    progress: Callable[[str, int, int], None] = lambda *_: None,
    report: Callable[[str], None] = lambda _: None,
) -> list[TextCostRow]:
    """A row a text, of its first windows (two of 1,024 tokens where there are as many).

    Raises:
        ProfileError: the profile has no cold tier. SourceError: a text is shorter than three blocks.
    """
    bound = chosen_bound(profile, "auto")
    profile.tier("cold")
    rows = []
    for done, source in enumerate(sources):
        progress("other text", done, len(sources))
        text = tokenize_sources(loaded.tokenizer, [source], LEAST, window=WINDOW, read=WINDOWS * WINDOW, report=report)
        if len(text.ids) < LEAST:
            raise SourceError(f"{source.name} has {len(text.ids):,} tokens; a check takes {LEAST} at least.")
        length = min(WINDOW, len(text.ids) + (text.bos is not None))
        windows = text.windows(length)[:WINDOWS]
        rows.append(text_cost(loaded, profile, windows, source.name, bound))
    progress("other text", len(sources), len(sources))
    return rows


@torch.no_grad()
def text_cost(
    loaded: LoadedModel, profile: CalibrationProfile, windows: Tensor, name: str, bound: float | None
) -> TextCostRow:
    """What blocks of `windows: [n, T]` take, with every block held to a bound (KL in nats a token) where one is given."""
    geometry, summary = loaded.geometry, profile.sidecar.tiers["cold"]
    assert summary.step is not None
    limits = FREE if bound is None else error_limits(summary, bound)
    method = tier_method(profile.tier("cold"), loaded, bounded=BoundedSpec(profile.heads, summary.step, limits))
    ways: Counter[str] = Counter()
    size = fp16 = tokens = 0
    for ids in windows:
        for block in exact_blocks(loaded, ids):
            tokens += block.tokens
            for group in geometry.coded_groups(2 * BLOCK):
                part = block.of_layers(group.layers)
                coded = part_of(method, group.layers).encode(part)
                ways[way_of(coded.data)] += 1
                size, fp16 = size + coded.nbytes, fp16 + part.fp16_bytes
    error, home = mean_error(method), summary.as_calibrated
    predicted, promised = _predicted(summary, method), _promised(summary)
    return TextCostRow(
        text=name,
        n_tokens=windows.numel(),
        coded_tokens=tokens,
        coded_bytes=size,
        payload_ratio=fp16 / size,
        error=error,
        outside=_outside(method),
        error_at_home=None if home is None else home.error,
        predicted_kl=predicted,
        promised_kl=promised,
        kept=None if predicted is None or promised is None else predicted <= SLACK * promised,
        ways=dict(ways),
    )


def exact_blocks(loaded: LoadedModel, ids: Tensor) -> Iterator[KVBlock]:
    """The blocks of a window that leave its recent tokens, as the exact model made them."""
    step = capture_step(loaded.model, loaded.geometry, ids, backward=False, received_block=BLOCK)
    keys, values = step.keys, step.values
    received = None if step.received is None else step.received.permute(2, 0, 1)
    for stop in range(BLOCK, len(ids), BLOCK):
        start = max(SINKS, stop - BLOCK)
        yield KVBlock(
            keys=keys[start:stop].contiguous(),
            values=values[start:stop].contiguous(),
            start=start,
            received=None if received is None else received[start:stop].contiguous(),
            token_ids=ids[start:stop],
            previous_id=int(ids[start - 1]),
        )


def _promised(summary: TierSummary) -> float | None:
    quantity, _, value = summary.target.partition("=")
    return float(value) if quantity in ("error", "kl") else None


def _predicted(summary: TierSummary, method: SpectralCold | GroupedMethod) -> float | None:
    """The mean over blocks of the KL that text with their errors costs; errors of some layers stand for those of all."""
    total = 0.0
    for part in cold_parts(method):
        bound, errors = part.codec.bound, part.codec.errors
        assert bound is not None
        for e in errors:
            known = kl_as_calibrated(summary, e.first / bound.share)
            if e.left is not None:
                known = kl_of_second(summary, e.left / bound.share)
            if known is None:
                return None
            total += known * bound.share / len(errors)
    return total


def _outside(method: SpectralCold | GroupedMethod) -> float | None:
    """The share of the first stage's error that lies outside of its basis."""
    parts = cold_parts(method)
    whole = sum(e.first for p in parts for e in p.codec.errors)
    return sum(e.outside for p in parts for e in p.codec.errors) / whole if whole > 0 else None
