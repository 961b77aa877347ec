"""What a calibration asks of whoever measures its tiers: this package fits them and measures nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from spectralquant.geometry import CacheGeometry
from spectralquant.models.load import LoadedModel
from spectralquant.profile.tensors import ColdTier, FixedTier, SplitTier


class Quality(Protocol):
    """One tier on held-out text: mean KL(exact ‖ compressed) in nats a scored token, and the change in perplexity."""

    @property
    def kl(self) -> float: ...

    @property
    def delta_ppl(self) -> float: ...

    def row(self, geometry: CacheGeometry, model: str, context: int) -> dict[str, Any]:
        """The result row (method.md section 6)."""
        ...


class MeasureTiers(Protocol):
    """Measure tiers of one model on windows of token ids `[N, T]`, in order. hot: they are hot tiers.

    `progress` is told how many windows are done, of how many.
    """

    def __call__(
        self,
        loaded: LoadedModel,
        tiers: Sequence[ColdTier | FixedTier | SplitTier],
        windows: Tensor,
        progress: Callable[[int, int], None],
        *,
        hot: bool = False,
    ) -> Sequence[Quality]: ...
