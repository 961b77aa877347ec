"""What reading a part of the cache costs, and which part of it each layer should read: the spectral index on a whole window.

Every query reads sinks, its own and the previous block exactly, and of the older tokens those that score highest on the
index, from hot codes: what `spectral_index_decode` does for one new token, here by its oracle for all tokens of a
window, so that errors go from layer to layer and token to token as in decoding. Layers that slide read their window exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spectralquant.codec.hot.linear import INDEX_RANK, row_matrices
from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK, SINKS
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from sqkernels.common import RowMatrices
from sqkernels.common.reference import planes_of, round_trip
from sqkernels.spectral_index_decode.reference import integer_weights, score_bins, select_mask

LEAST_SHARE = 0.004
LEAST_LOSS = 1e-7


class SelectionReader:
    """Attention over exact tokens and selected hot codes, block of queries by block; an observer for an `AttentionTap`.

    Args:
        shares: of the coded tokens, for each layer that reads everything.

    Raises:
        InputError: the profile has no hot tier for those layers.
    """

    def __init__(
        self, loaded: LoadedModel, profile: CalibrationProfile, shares: Sequence[float], rank: int = INDEX_RANK
    ) -> None:
        self.layers = everything(loaded)
        tier = profile.tier_of("hot", self.layers) if "hot" in profile.tiers else None
        if tier is None:
            raise InputError("Selecting needs a profile with a hot tier: sq calibrate --tier hot.")
        part = loaded.geometry.part(self.layers)
        places = range(len(self.layers))
        self.matrices = [row_matrices(tier, part, [place], loaded.device, rank) for place in places]
        self.shares = tuple(shares)

    def with_shares(self, shares: Sequence[float]) -> SelectionReader:
        """The same with other shares."""
        other = object.__new__(SelectionReader)
        other.layers, other.matrices, other.shares = self.layers, self.matrices, tuple(shares)
        return other

    def __call__(self, call: AttentionCall) -> Tensor | None:
        if call.layer not in self.layers:
            return None
        place = self.layers.index(call.layer)
        return _read(call, self.matrices[place], self.shares[place])


def everything(loaded: LoadedModel) -> tuple[int, ...]:
    """The layers that read all tokens.

    Raises:
        InputError: there are none.
    """
    layers = next((kind.layers for kind in loaded.geometry.groups if kind.window is None), None)
    if layers is None:
        raise InputError("Every layer of this model slides over a window; there is nothing to select from.")
    return layers


def _read(call: AttentionCall, matrices: RowMatrices, share: float) -> Tensor:
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
        if old > SINKS and share < 1:
            weights = integer_weights(mine.mean(1) @ matrices.index.decode.transpose(1, 2))
            budget = torch.full(weights.shape[:-1], math.ceil(share * (old - SINKS)), device=weights.device)
            pooled = weights @ seen[:, SINKS:old].transpose(1, 2)
            dropped = ~select_mask(score_bins(pooled, weights), budget, SINKS)
            hidden = hidden.clone()
            hidden[:, :, SINKS:old] = dropped
        p = scores.masked_fill_(hidden[:, None], float("-inf")).softmax(-1)
        out[:, start:stop] = (p @ values[:, None]).reshape(heads, stop - start, dim)
    return out.transpose(0, 1)[None].to(call.query.dtype)


@torch.no_grad()
def log_probabilities(loaded: LoadedModel, ids: Tensor, scored: int, reader: SelectionReader | None = None) -> Tensor:
    """Log-probabilities `[scored, V]` of the last tokens of `ids: [T]`; without a reader the model's own."""
    if reader is not None:
        with AttentionTap(loaded.model, reader):
            return log_probabilities(loaded, ids, scored)
    out = loaded.model(input_ids=ids[None], use_cache=False, logits_to_keep=scored + 1)
    return out.logits[0, :-1].float().log_softmax(-1)


def solve_shares(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    ids: Tensor,
    share: float,
    scored: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, ...]:
    """A share for each layer that reads everything, `share` on average: what `GraphedModel(select=…)` takes.

    The least sum of the layers' losses has one marginal loss in all of them (Shoham & Gersho 1988).

    Args:
        ids: `[T]`, a window of text like that to come, not the one to be judged by. scored: its last tokens that count.
    """
    return least_loss(loss_laws(loaded, profile, ids, share, scored, progress), share)


def loss_laws(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    ids: Tensor,
    share: float,
    scored: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[float, float]]:
    """(a, e) of every layer: selecting a share s in that layer alone costs a KL of a · s^−e; through half and twice `share`."""
    layers = len(everything(loaded))
    reader = SelectionReader(loaded, profile, [1.0] * layers)
    exact = log_probabilities(loaded, ids, scored)

    def loss(shares: Sequence[float]) -> float:
        mine = log_probabilities(loaded, ids, scored, reader.with_shares(shares))
        return float((exact.exp() * (exact - mine)).sum()) / scored

    base, tried = loss([1.0] * layers), (share / 2, min(1.0, 2 * share))
    laws = []
    for layer in range(layers):
        progress(layer, layers)
        before, after = [1.0] * layer, [1.0] * (layers - layer - 1)
        few, many = (max(LEAST_LOSS, loss([*before, part, *after]) - base) for part in tried)
        power = min(2.5, max(0.3, math.log(few / many) / math.log(tried[1] / tried[0])))
        laws.append((math.sqrt(few * many) * math.sqrt(tried[0] * tried[1]) ** power, power))
    return laws


def least_loss(laws: Sequence[tuple[float, float]], share: float) -> tuple[float, ...]:
    """Shares of least total loss, `share` on average at most. laws: (a, e) of every layer's loss a · share^−e."""

    def at(exponent: float) -> list[float]:
        price = 2.0**exponent
        return [min(1.0, max(min(share, LEAST_SHARE), (a * e / price) ** (1 / (e + 1)))) for a, e in laws]

    low, high = -100.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) > share * len(laws) else (low, middle)
    return tuple(at(high))
