"""Caches that `generate` was given and does not use.

Some models drop the cache that `generate` was given and go on with one of their own: Phi-3 with longrope does when the
sequence passes the length at which its rotary tables change, because keys before it were rotated otherwise. The pass
then processes the whole sequence again, so the dropped cache can be emptied and take its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from spectralquant.cache.passes.frames import generate_frame
from spectralquant.cache.passes.watched import WatchedCache
from spectralquant.models.forward import with_cache


def take_back(
    module: nn.Module, caches: Iterable[WatchedCache], kwargs: dict[str, Any]
) -> tuple[WatchedCache | None, dict[str, Any]]:
    """For a pass without a spectral cache: the one that the `generate` around it was given, and arguments that use it.

    (None, {}) where there is none, or where the pass is not over the whole sequence; the cache then tells that it was
    dropped.
    """
    cache = _given_to_generate(caches)
    if cache is None:
        return None, {}
    if not _whole_sequence(kwargs):
        cache.report.dropped(
            f"{type(module).__name__} dropped the cache that generate was given and goes on with one of its own, which "
            "is not compressed"
        )
        return None, {}
    if cache.get_seq_length():
        cache.reset()
    return cache, with_cache(module, cache)


def _given_to_generate(caches: Iterable[WatchedCache]) -> WatchedCache | None:
    """The cache among `caches` that the innermost `generate` on this thread's stack was called with."""
    frame = generate_frame()
    given = () if frame is None else (frame.f_locals.get("kwargs") or {}).values()
    return next((c for c in caches if any(c is v for v in given)), None)


def _whole_sequence(kwargs: dict[str, Any]) -> bool:
    """Whether a pass computes every token there is: as many as its mask speaks of, or all positions from 0 on."""
    new = kwargs.get("input_ids")
    new = kwargs.get("inputs_embeds") if new is None else new
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if not torch.is_tensor(new):
        return False
    if torch.is_tensor(mask) and mask.dim() == 2:
        return new.shape[1] == mask.shape[1]
    return mask is None and torch.is_tensor(positions) and int(positions.max()) + 1 == new.shape[1]
