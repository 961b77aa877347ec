"""`WatchedCache`: what `PassWatch` asks of a cache, and tells it of its model's forward passes."""

from __future__ import annotations

from typing import Any

from transformers import Cache

from spectralquant.cache.report.uncompressed import RunReport


class WatchedCache(Cache):
    """A cache that follows the forward passes it is given to. report: told where a run goes on without the cache."""

    report: RunReport

    @property
    def reads_spectral(self) -> bool:
        """Whether the model is to read this cache through `SpectralAttention`."""
        raise NotImplementedError

    def begin_pass(self, reads_views: bool) -> None:
        """A forward pass of the model was given this cache. reads_views: through `SpectralAttention`."""
        raise NotImplementedError

    def end_pass(self, output: Any) -> None:
        """That pass has ended with an output, or with an exception (None)."""
        raise NotImplementedError

    def abort_forward(self) -> None:
        """That pass was interrupted: take back what it has appended."""
        raise NotImplementedError
