"""What each attention call of a step leaves behind, and the gradients that a streaming cache is answerable for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spectralquant.hooks.observe import attention_entropy, attention_received
from spectralquant.hooks.tap import AttentionCall
from spectralquant.rotary import RotaryLayout, Rotation


@dataclass
class LayerRecord:
    """One layer's call. key, value: `[Hk, T, D]` as the model has them, after RoPE; query `[H, T, D]` where it was asked for.

    source: the tensors whose gradients the backward pass fills. entropy `[H]`; received `[H, T]` or None.
    """

    key: Tensor
    value: Tensor
    source: tuple[Tensor, Tensor]
    query: Tensor | None
    rotation: Rotation | None
    entropy: Tensor
    received: Tensor | None


@dataclass
class Recorder:
    """Observer of one forward pass: keeps a record of every layer that owns its keys.

    rotary: of each layer. far_block: gradients flow only through reads from beyond the recent window (those of layers
    that share keys too), `near_blocks` of that many tokens. received_block: see `attention_received`. queries: keep them, too.
    """

    rotary: tuple[bool, ...]
    layout: RotaryLayout
    far_block: int | None = None
    near_blocks: int = 2
    received_block: int | None = None
    queries: bool = False
    records: list[LayerRecord] = field(default_factory=list)
    closed: bool = False
    _rotations: dict[int, tuple[Tensor | None, Rotation]] = field(default_factory=dict)

    def __call__(self, call: AttentionCall) -> Tensor | None:
        if not self.closed and not call.shared:
            self.records.append(self._record(call))
        if not torch.is_grad_enabled() or self.far_block is None:
            return None
        return far_gradient_attention(call, self.far_block, self.near_blocks)

    def _record(self, call: AttentionCall) -> LayerRecord:
        if torch.is_grad_enabled():
            call.key.retain_grad()
            call.value.retain_grad()
        rotary = self.rotary[len(self.records)]
        with torch.no_grad():
            return LayerRecord(
                key=call.key[0].detach(),
                value=call.value[0].detach(),
                source=(call.key, call.value),
                query=call.query[0].detach() if self.queries else None,
                rotation=self._rotation(call) if rotary else None,
                entropy=attention_entropy(call),
                received=attention_received(call, self.received_block) if self.received_block else None,
            )

    def _rotation(self, call: AttentionCall) -> Rotation:
        """Layers that get one table share one rotation."""
        if id(call.cos) not in self._rotations:
            self._rotations[id(call.cos)] = call.cos, call.rotation(self.layout)
        return self._rotations[id(call.cos)][1]


def far_gradient_attention(call: AttentionCall, block: int, near_blocks: int = 2) -> Tensor:
    """The same attention output, with near reads detached.

    A streaming cache reads the query's own block and the one before exactly (`near_blocks`), so errors reach the loss only
    through keys and values at least two blocks back: only those keep their gradient. After a prefix that was restored as a
    whole it is the own block alone.
    """
    allowed, length = call.allowed(), call.query.shape[2]
    near_key, near_value = call.key.detach(), call.value.detach()
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        far = max(0, start - (near_blocks - 1) * block)
        part = replace(
            call,
            query=call.query[:, :, start:stop],
            key=torch.cat([call.key[:, :, :far], near_key[:, :, far:stop]], dim=2),
            value=torch.cat([call.value[:, :, :far], near_value[:, :, far:stop]], dim=2),
            mask=allowed[..., start:stop, :stop],
        )
        outputs.append(part.run())
    return torch.cat(outputs, dim=1)
