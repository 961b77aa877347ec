"""`GraphedSteps`: a decode step and the coding of a block, captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from spectralquant.graphed.cache import StaticSpectralCache

TOLERANCE = 0.1  # of the logits' norm: rounding of 16 bits through many layers stays below, a wrong function does not


class GraphedSteps:
    """One capture for a batch size. Off a GPU the steps are run, not replayed.

    Args:
        one_token: ids `[B, 1]` → logits `[B, 1, V]`, counters advanced before.
        faster: context in which capture runs, with quicker functions in place of the model's (see `fusion`); what it
            computes is compared with the model's own, and given up where it differs.
    """

    def __init__(
        self, cache: StaticSpectralCache, one_token: Callable[[Tensor], Tensor], faster: AbstractContextManager[None]
    ) -> None:
        self.cache, self._one_token = cache, one_token
        self.ids = torch.zeros(cache.lengths.batch, 1, dtype=torch.int64, device=cache.lengths.device)
        self.fused = False
        self._step = self._compress = None
        lengths = cache.lengths
        saved = lengths.saved()
        lengths.start([lengths.room - 1] * lengths.batch)
        if self.ids.is_cuda:
            self._capture(faster)
        else:
            self._advance_and_read()  # what the steps cannot compute is refused here, as it is by a capture
        lengths.restore(saved)

    def run(self, ids: Tensor) -> Tensor:
        """Logits `[B, 1, V]` of one token more a sequence."""
        lengths = self.cache.lengths
        if lengths.full:
            self.cache.compress() if self._compress is None else self._compress.replay()
            lengths.note_compressed()
        self.ids.copy_(ids)
        lengths.note_step()
        if self._step is None:
            return self._advance_and_read()
        self._step.replay()
        return self._logits

    def _advance_and_read(self) -> Tensor:
        self.cache.lengths.advance()
        return self._one_token(self.ids)

    def _capture(self, faster: AbstractContextManager[None]) -> None:
        lengths = self.cache.lengths
        middle = lengths.saved()
        stream = torch.cuda.Stream(self.ids.device)
        stream.wait_stream(torch.cuda.current_stream(self.ids.device))
        with torch.cuda.stream(stream):
            expected = self._advance_and_read().clone()
            lengths.restore(middle)
            self.cache.compress()
            lengths.restore(middle)
            with faster:
                quick = self._advance_and_read().clone()
                lengths.restore(middle)
                error = (quick.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-9)
                self.fused = bool(error < TOLERANCE)
                if self.fused:
                    self._step = self._graph(stream)
            if not self.fused:
                self._step = self._graph(stream)
            lengths.restore(middle)
            self._compress = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._compress, stream=stream):
                self.cache.compress()
        torch.cuda.current_stream(self.ids.device).wait_stream(stream)

    def _graph(self, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._logits = self._advance_and_read()
        return graph
