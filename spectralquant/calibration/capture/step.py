"""Capture one calibration step: keys, values, their loss gradients, queries and attention, for one window of text.

No weight receives a gradient. Keys and values are taken inside the attention call, so separate, fused, biased and
normalized projections all look the same; RoPE is undone exactly (method.md section 1, finding 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectralquant.calibration.capture.loss import summed_cross_entropy
from spectralquant.calibration.capture.passes import activation_gradients
from spectralquant.calibration.capture.recorder import LayerRecord, Recorder
from spectralquant.geometry import CacheGeometry
from spectralquant.hooks.tap import AttentionTap
from spectralquant.hooks.wrappers import model_device
from spectralquant.rotary import Rotation, undo_rope, undo_rope_gradient

Undo = Callable[[Tensor, Rotation], Tensor]


@dataclass(frozen=True)
class Captured:
    """Keys and values of T tokens as the model made them, after RoPE, in its own precision: `[T, L, Hk, D]`, with their
    gradients, or None without a backward pass. rotations: of each layer, None where it does not rotate.

    What is asked for is worked out in float32 and kept nowhere, so that a step holds one large tensor at a time.
    """

    rotated: Tensor
    plain: Tensor
    rotated_gradients: Tensor | None
    plain_gradients: Tensor | None
    rotations: tuple[Rotation | None, ...]

    @property
    def keys(self) -> Tensor:
        """Keys before RoPE, float32 `[T, L, Hk, D]`."""
        return _unrotated(self.rotated, self.rotations, undo_rope)

    @property
    def values(self) -> Tensor:
        """Values, float32 `[T, L, Hk, D]`."""
        return self.plain.float()

    @property
    def keys_rotated(self) -> Tensor:
        """Keys after RoPE, float32 `[T, L, Hk, D]`."""
        return self.rotated.float()

    @property
    def key_grads(self) -> Tensor | None:
        """Gradients of the summed loss with respect to keys before RoPE."""
        grads = self.rotated_gradients
        return None if grads is None else _unrotated(grads, self.rotations, undo_rope_gradient)

    @property
    def value_grads(self) -> Tensor | None:
        """Gradients of the summed loss with respect to values."""
        return None if self.plain_gradients is None else self.plain_gradients.float()

    @property
    def rotated_grads(self) -> Tensor | None:
        """Gradients of the summed loss with respect to keys after RoPE."""
        return None if self.rotated_gradients is None else self.rotated_gradients.float()

    def each(self, change: Callable[[Tensor], Tensor]) -> Captured:
        """The same with `change` done to every tensor over tokens; rotations are left as they are."""
        names = ("rotated", "plain", "rotated_gradients", "plain_gradients")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if t is None else change(t) for name, t in tensors.items()})


@dataclass(frozen=True)
class CapturedStep(Captured):
    """One window of T tokens on the model's device.

    query: `[T, L, H, D]` after RoPE in the model's precision, or None where none were asked for. entropy: `[L, H]`
    attention entropy in nats, averaged over queries. received: `[L, H, T]` attention received from later queries within
    two blocks (see `hooks.observe`), or None. loss: mean cross-entropy in nats per token.
    """

    query: Tensor | None
    entropy: Tensor
    received: Tensor | None
    loss: float

    @property
    def queries(self) -> Tensor | None:
        """Queries before RoPE, float32."""
        return None if self.query is None else _unrotated(self.query, self.rotations, undo_rope)

    @property
    def queries_rotated(self) -> Tensor | None:
        """Queries after RoPE, float32."""
        return None if self.query is None else self.query.float()


def capture_step(
    model: nn.Module,
    geometry: CacheGeometry,
    ids: Tensor,
    *,
    backward: bool = True,
    received_block: int | None = None,
    far_block: int | None = None,
    near_blocks: int = 2,
    offset: int = 0,
    queries: bool = False,
    recompute: bool = False,
) -> CapturedStep:
    """Run one window `ids: [T]` forward (and backward) and return what the attention layers saw.

    With `received_block` the attention that each token receives from later queries of its own and the next block of
    that many tokens is returned as well. With `far_block` gradients flow only through reads from at least
    `near_blocks` such blocks back, the reads that a streaming cache serves from codes. The window stands at position `offset`: RoPE makes
    no difference to the model, but rotated keys look different at every position. recompute: see `activation_gradients`.
    """
    device = model_device(model)
    ids = ids.to(device)[None]
    positions = torch.arange(offset, offset + ids.shape[1], device=device)[None]
    recorder = Recorder(geometry.rotary, geometry.layout, far_block, near_blocks, received_block, queries)
    with activation_gradients(model, backward, recompute=recompute), AttentionTap(model, recorder):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        recorder.closed = True  # layers that run again in the backward pass are not recorded again
        targets = functional.pad(ids[0, 1:], (0, 1), value=-100).to(logits.device)
        loss = summed_cross_entropy(logits.view(len(targets), -1), targets)
        del logits
        if backward:
            loss.backward()
    with torch.no_grad():
        return _step(recorder.records, backward, device, loss.item() / (ids.shape[1] - 1))


def _step(records: Sequence[LayerRecord], backward: bool, device: torch.device, loss: float) -> CapturedStep:
    together = lambda parts: torch.stack([part.to(device) for part in parts])  # noqa: E731
    tokens_first = lambda parts: torch.stack([part.to(device).transpose(0, 1) for part in parts], dim=1)  # noqa: E731
    grads: list[Tensor | None] = [None, None]
    if backward:
        grads = [tokens_first([r.source[kind].grad[0] for r in records]) for kind in range(2)]
    received = [r.received for r in records]
    queries = [r.query for r in records]
    moved = {id(r.rotation): None if r.rotation is None else r.rotation.to(device) for r in records}
    return CapturedStep(
        rotated=tokens_first([r.key for r in records]),
        plain=tokens_first([r.value for r in records]),
        rotated_gradients=grads[0],
        plain_gradients=grads[1],
        rotations=tuple(moved[id(r.rotation)] for r in records),
        query=None if queries[0] is None else tokens_first(queries),
        entropy=together([r.entropy for r in records]),
        received=None if received[0] is None else together(received),
        loss=loss,
    )


def _unrotated(x: Tensor, rotations: Sequence[Rotation | None], undo: Undo) -> Tensor:
    """Float32 `[T, L, heads, D]` of `x` with an inverse-RoPE function applied to the layers that rotate."""
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for layer, rotation in enumerate(rotations):
        part = x[:, layer].float()
        out[:, layer] = part if rotation is None else undo(part, rotation.across(1))
    return out
