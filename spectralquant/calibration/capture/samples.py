"""The second, short pass: up to sixteen windows kept as they are, to fit tables, centroids, codebooks and importance.

They wait in host memory (pinned where there is a GPU) in the model's own precision, so that no window is run twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectralquant.calibration.capture.step import Captured, CapturedStep
from spectralquant.geometry import SINKS, CacheGeometry


@dataclass(frozen=True)
class SampleWindow:
    """One captured window without its sinks; T tokens, on the CPU.

    captured: keys, values and their gradients. received: `[T, L, H]`.
    token_ids: int64 `[T]`, previous_id: the id before the first of them. far: bool `[T]`, tokens that enough later
    queries read from beyond the recent window, so that their gradients mean something. block: the block of each token.
    """

    captured: Captured
    received: Tensor | None
    token_ids: Tensor
    previous_id: int
    far: Tensor
    block: Tensor

    @property
    def has_gradients(self) -> bool:
        """Whether there was a backward pass."""
        return self.captured.plain_gradients is not None

    def rows(self, kind: int, device: torch.device | str = "cpu", *, rotated: bool = False) -> Tensor:
        """Keys (kind 0; before RoPE, or after it) or values (kind 1), float32 `[T, P]`."""
        part = self._on(device)
        return (part.values if kind else part.keys_rotated if rotated else part.keys).flatten(1)

    def gradients(self, kind: int, device: torch.device | str = "cpu", *, rotated: bool = False) -> Tensor:
        """Gradients of keys (kind 0; before RoPE, or after it) or values (kind 1), float32 `[T, P]`."""
        part = self._on(device)
        return (part.value_grads if kind else part.rotated_grads if rotated else part.key_grads).flatten(1)

    def far_gradients(self, kind: int, device: torch.device | str = "cpu") -> Tensor:
        """Gradients of keys before RoPE (kind 0) or values (kind 1) of the far tokens, float32 `[T', P]`."""
        return self.gradients(kind, device)[self.far.to(device)]

    def _on(self, device: torch.device | str) -> Captured:
        moved = self.captured.each(lambda x: x.to(device, non_blocking=True))
        return replace(moved, rotations=tuple(None if r is None else r.to(device) for r in moved.rotations))

    def part(self, layers: Sequence[int]) -> SampleWindow:
        """The same tokens in some of the layers."""
        own = self.captured.each(lambda x: x[:, list(layers)])
        own = replace(own, rotations=tuple(own.rotations[i] for i in layers))
        return replace(self, captured=own, received=None if self.received is None else self.received[:, list(layers)])


def sample_bytes(geometry: CacheGeometry, window: int, element: int, *, backward: bool) -> int:
    """Host memory of one sample window of a model whose keys and values take `element` bytes each."""
    tensors = 4 if backward else 2
    return window * (tensors * geometry.width * element + 4 * geometry.layers * geometry.heads)


def sample_indices(steps: int, window_bytes: int, limit: int, most: int) -> list[int]:
    """Which of the steps are kept: evenly spaced, at most `most`, of `window_bytes` each within `limit`; at least one."""
    count = max(1, min(most, steps, limit // window_bytes))
    return sorted({i * steps // count for i in range(count)})


def keep_sample(step: CapturedStep, ids: Tensor, block: int, near_blocks: int = 2) -> SampleWindow:
    """Cut the sinks off a captured step and move it to the host."""
    total = len(ids)
    index = torch.arange(total)[SINKS:] // block
    rotations = {id(r): None if r is None else r.part(slice(SINKS, None)).to("cpu") for r in step.rotations}
    captured = Captured(step.rotated, step.plain, step.rotated_gradients, step.plain_gradients, step.rotations).each(
        lambda x: _to_host(x[SINKS:])
    )
    received = None if step.received is None else step.received.permute(2, 0, 1)[SINKS:].contiguous()
    sample = SampleWindow(
        captured=replace(captured, rotations=tuple(rotations[id(r)] for r in step.rotations)),
        received=None if received is None else _to_host(received),
        token_ids=ids[SINKS:].cpu(),
        previous_id=int(ids[SINKS - 1]),
        far=index <= (total - 1) // block - near_blocks,
        block=index,
    )
    if step.rotated.is_cuda:
        torch.cuda.current_stream(step.rotated.device).synchronize()
    return sample


def _to_host(x: Tensor) -> Tensor:
    if not x.is_cuda:
        return x.cpu()
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
