"""What the tier did, among vLLM's metrics: a counter for each field of its store's tally."""

from __future__ import annotations

import dataclasses
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import OffloadingCounterMetadata

from spectralquant.integrations.store import StoreTally

PREFIX = "vllm:kv_offload_spectral_"
FIELDS = tuple(field.name for field in dataclasses.fields(StoreTally))


def definitions() -> dict[str, Any]:
    """Of vLLM's metrics, by name."""
    return {
        PREFIX + name: OffloadingCounterMetadata(documentation=f"SpectralQuant's tier: {name} of its store's tally.")
        for name in FIELDS
    }


class Told:
    """What vLLM has been told so far, of what came after `before`."""

    def __init__(self, before: StoreTally) -> None:
        self._before = before

    def news(self, tally: StoreTally) -> OffloadingConnectorStats | None:
        """What was added since the last time; None where nothing was."""
        before, self._before = self._before, tally
        if tally is before:
            return None
        stats = OffloadingConnectorStats()
        for name in FIELDS:
            if added := getattr(tally, name) - getattr(before, name):
                stats.increase_counter(PREFIX + name, added)
        return stats
