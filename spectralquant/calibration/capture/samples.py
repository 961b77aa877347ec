"""The second, short pass: sixteen windows kept as they are, to fit tables, centroids, codebooks and importance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectralquant.calibration.capture.step import CapturedStep
from spectralquant.geometry import SINKS
from spectralquant.profile.tensors import layer_columns

SAMPLE_WINDOWS = 16


@dataclass(frozen=True)
class SampleWindow:
    """One captured window without its sinks; T tokens, on the CPU.

    keys, values, key_grads, value_grads: float32 `[T, P]` (keys before RoPE); received: `[T, L, H]`.
    token_ids: int64 `[T]`, previous_id: the id before the first of them. far: bool `[T]`, tokens that enough later
    queries read from beyond the recent window, so that their gradients mean something.
    keys_rotated: float32 `[T, P]`, kept for the hot tier only.
    """

    keys: Tensor
    values: Tensor
    key_grads: Tensor | None
    value_grads: Tensor | None
    received: Tensor | None
    token_ids: Tensor
    previous_id: int
    far: Tensor
    block: Tensor
    keys_rotated: Tensor | None

    def part(self, layers: Sequence[int], layer_width: int) -> SampleWindow:
        """The same tokens in some of the layers."""
        columns = layer_columns(layers, layer_width)
        pick = lambda x: None if x is None else x[:, columns]  # noqa: E731
        names = ("keys", "values", "key_grads", "value_grads", "keys_rotated")
        received = None if self.received is None else self.received[:, list(layers)]
        return replace(self, **{name: pick(getattr(self, name)) for name in names}, received=received)


def sample_indices(steps: int) -> list[int]:
    """Which of the steps are kept: up to sixteen, evenly spaced."""
    count = min(SAMPLE_WINDOWS, steps)
    return sorted({i * steps // count for i in range(count)})


def keep_sample(step: CapturedStep, ids: Tensor, block: int, *, rotated: bool) -> SampleWindow:
    """Cut the sinks off a captured step and move it to the CPU."""
    total = len(ids)
    index = torch.arange(total)[SINKS:] // block
    flat = lambda x: None if x is None else x[SINKS:].flatten(1).cpu()  # noqa: E731
    received = None if step.received is None else step.received.permute(2, 0, 1)[SINKS:].contiguous().cpu()
    return SampleWindow(
        keys=flat(step.keys),
        values=flat(step.values),
        key_grads=flat(step.key_grads),
        value_grads=flat(step.value_grads),
        received=received,
        token_ids=ids[SINKS:].cpu(),
        previous_id=int(ids[SINKS - 1]),
        far=index <= (total - 1) // block - 2,
        block=index,
        keys_rotated=flat(step.keys_rotated) if rotated else None,
    )
