"""`HybridCacheManager`: short contexts exact (or read through H2O), long ones spectral.

Below a crossover length compression costs more time than it saves. There tokens stay exact; with `below="h2o"` a decode
step reads only heavy hitters and recent tokens (Zhang et al. 2023, arXiv 2306.14048), while the others stay parked, so
that when the crossover is passed every token is still there to be coded: switching loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectralquant.cache.groups import CacheGroup
from spectralquant.cache.read.segments import DenseSegment, Segment
from spectralquant.cache.read.view import LayerView, Reading
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.errors import InputError
from spectralquant.hooks.tap import AttentionCall
from spectralquant.profile.model import CalibrationProfile
from spectralquant.results.files import read_results

DEFAULT_CROSSOVER = 2048


def measured_crossover(results: str | Path, *, kernel: str = "spectral_decode", batch: int = 1) -> int:
    """Tokens from which `kernel` is faster than the fastest dense one, from a results file of `sq profile`.

    Raises:
        InputError: no such file, other results, or the kernel was not faster at any context that was measured.
    """
    crossovers = [r for r in read_results(results).get("crossover", ()) if r["kernel"] == kernel]
    row = next((r for r in crossovers if r["batch"] == batch), None)
    if row is None:
        batches = ", ".join(str(r["batch"]) for r in crossovers) or "none"
        raise InputError(f"{results} has no crossover of {kernel} at batch {batch}; batches it has: {batches}.")
    if row["tokens"] is None:
        raise InputError(f"{results}: {kernel} was not faster at batch {batch}; profile longer contexts (--context).")
    return row["tokens"]


class HybridCacheManager(SpectralCache):
    """A `SpectralCache` that leaves sequences of up to `crossover` tokens alone.

    Args:
        crossover: tokens from which compression pays on this machine; the default is a guess, `sq profile` measures it: see
            `measured_crossover`.
        below: "exact", or "h2o": decode steps read `heavy` tokens of most accumulated attention and `recent` ones.

    Raises:
        InputError: unknown `below`, or counts that are not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        profile: CalibrationProfile | None = None,
        *,
        crossover: int = DEFAULT_CROSSOVER,
        below: str = "exact",
        heavy: int = 128,
        recent: int = 128,
        **options: Any,
    ) -> None:
        if below not in ("exact", "h2o"):
            raise InputError(f"below={below!r} is not one of exact, h2o.")
        if min(crossover, heavy, recent) < 1:
            raise InputError("crossover, heavy and recent must be positive numbers of tokens.")
        super().__init__(model, profile, **{**options, "compress_from": crossover + 1})
        self.options["compress_from"] = crossover + 1
        self.hybrid = {"crossover": crossover, "below": below, "heavy": heavy, "recent": recent}
        self.attended: list[Tensor | None] = [None] * self.geometry.layers
        self._attended_before = list(self.attended)

    def snapshot_options(self) -> dict[str, Any]:
        """See `SpectralCache.snapshot_options`."""
        return {**{k: v for k, v in self.options.items() if k != "compress_from"}, **self.hybrid}

    def own_tensors(self) -> dict[str, Tensor]:
        """See `SpectralCache.own_tensors`."""
        return {f"attended.{i}": a for i, a in enumerate(self.attended) if a is not None}

    def take_own_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `SpectralCache.take_own_tensors`."""
        self.attended = [tensors.get(f"attended.{i}") for i in range(self.geometry.layers)]

    def begin_pass(self, reads_views: bool) -> None:
        """See `SpectralCache.begin_pass`."""
        super().begin_pass(reads_views)
        self._attended_before = list(self.attended)

    def abort_forward(self) -> None:
        """See `SpectralCache.abort_forward`."""
        if self.in_forward:
            self.attended = self._attended_before
        super().abort_forward()

    def end_forward(self) -> None:
        """See `SpectralCache.end_forward`; above the crossover the sums are of no use any more."""
        super().end_forward()
        if not self.selecting:
            self.attended = [None] * self.geometry.layers

    @property
    def selecting(self) -> bool:
        """Whether decode steps read selected tokens only."""
        return (
            self.hybrid["below"] == "h2o"
            and self.options["attention"] == "spectral"
            and self.get_seq_length() <= self.hybrid["crossover"]
        )

    def view(self, layer: int, new: int | None = None) -> LayerView:
        """What attention reads of one layer: a selection while the sequence is short (sliding layers read their window)."""
        selects = self.selecting and not self.layers[layer].is_sliding
        if not selects:
            return super().view(layer, new)
        chosen = Selection(self.attended, layer, self.hybrid["heavy"], self.hybrid["recent"])
        return HeavyHitterView(*self.groups.of_layer(layer), self.reading, new, chosen)

    def crop(self, tokens_to_remove: int) -> None:
        """See `SpectralCache.crop`."""
        super().crop(tokens_to_remove)
        total = self.get_seq_length()
        self.attended = [None if a is None else a[..., :total] for a in self.attended]

    def batch_select_indices(self, indices: Tensor) -> None:
        """See `SpectralCache.batch_select_indices`."""
        super().batch_select_indices(indices)
        self.attended = [None if a is None else a[torch.as_tensor(indices).to(a.device)] for a in self.attended]

    def reset(self) -> None:
        """See `SpectralCache.reset`."""
        super().reset()
        self.attended = [None] * self.geometry.layers


@dataclass(frozen=True)
class Selection:
    """What H2O selects from in one layer. attended: of every layer, attention that tokens received `[B, Hk, S]` so far.

    heavy, recent: numbers of tokens.
    """

    attended: list[Tensor | None]
    layer: int
    heavy: int
    recent: int


class HeavyHitterView(LayerView):
    """Heavy hitters and recent tokens of one layer, chosen for each key/value head."""

    watches = True

    def __init__(self, group: CacheGroup, place: int, reading: Reading, new: int | None, selection: Selection) -> None:
        super().__init__(group, place, reading, new)
        self.selection = selection

    @property
    def chosen(self) -> Tensor | None:
        """Token indices `[B, Hk, n]`, ascending, or None while everything fits into the budget."""
        selection, total = self.selection, self.shape[2]
        attended = selection.attended[selection.layer]
        old = total - selection.recent
        if attended is None or old <= selection.heavy:
            return None
        heavy = attended[..., :old].topk(selection.heavy, dim=-1).indices.sort(-1).values
        recent = torch.arange(old, total, device=heavy.device).expand(*heavy.shape[:2], -1)
        return torch.cat([heavy, recent], dim=-1)

    def segments(self) -> list[Segment]:
        """One dense segment with the chosen tokens; see `LayerView.segments`."""
        keys, values = self.dense()
        if (chosen := self.chosen) is not None:
            index = chosen[..., None].expand(-1, -1, -1, keys.shape[-1])
            keys, values = keys.gather(2, index), values.gather(2, index)
        return [DenseSegment(keys, values)]

    def allowed(self, call: AttentionCall) -> Tensor | None:
        """The mask over the chosen tokens; see `LayerView.allowed`."""
        allowed, chosen = super().allowed(call), self.chosen
        if allowed is None or chosen is None:
            return allowed
        batch, kv, count = chosen.shape
        every = allowed.expand(batch, kv, -1, -1)
        picked = every.gather(3, chosen[:, :, None].expand(-1, -1, every.shape[2], count))
        return picked.repeat_interleave(self.tokens.geometry.group, dim=1)

    def _over_all(self, p: Tensor, chosen: Tensor) -> Tensor:
        """Probabilities over the chosen tokens as probabilities `[B, H, t, S]` over all."""
        index = chosen.repeat_interleave(self.tokens.geometry.group, dim=1)[:, :, None].expand_as(p)
        return p.new_zeros(*p.shape[:3], self.shape[2]).scatter_(3, index, p)

    def weights(self, p: Tensor) -> Tensor:
        """See `LayerView.weights`; 0 where a token was not read."""
        return p if p.shape[3] == self.shape[2] else self._over_all(p, self.chosen)

    def forget_received(self) -> None:
        """See `LayerView.forget_received`; heavy hitters are counted without this read."""
        if self.reading.watches:
            super().forget_received()

    def observe(self, p: Tensor, position: int) -> None:
        """Accumulate attention per key/value head over all tokens, read or not."""
        batch, _, _, count = p.shape
        summed = p.view(batch, self.shape[1], -1, count).sum(2)
        selection = self.selection
        before = selection.attended[selection.layer]
        total = summed.new_zeros(batch, self.shape[1], self.shape[2])
        chosen = self.chosen if count < self.shape[2] else None
        if self.reading.watches:
            super().observe(p if chosen is None else self._over_all(p, chosen), position)
        if before is not None:
            total[..., : before.shape[-1]] = before
        after = total + summed if chosen is None else total.scatter_add_(2, chosen, summed)
        selection.attended[selection.layer] = after
