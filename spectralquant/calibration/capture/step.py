"""Capture one calibration step: keys, values, their loss gradients, queries and attention, for one window of text.

No weight receives a gradient. Keys and values are taken inside the attention call, so separate, fused, biased and
normalized projections all look the same; RoPE is undone exactly (method.md section 1, finding 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectralquant.errors import UnsupportedModelError
from spectralquant.geometry import CacheGeometry
from spectralquant.hooks.observe import attention_entropy, attention_received
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.hooks.wrappers import is_offloaded, model_device
from spectralquant.rotary import undo_rope, undo_rope_gradient


@dataclass
class CapturedStep:
    """One window of T tokens. All tensors float32 on the model's device.

    keys, values, key_grads, value_grads: `[T, L, Hk, D]`, keys before RoPE. The gradients are of the next-token
    cross-entropy summed over tokens (None without backward). keys_rotated, rotated_grads: the same after RoPE.
    queries, queries_rotated: `[T, L, H, D]` before and after RoPE. entropy: `[L, H]` attention entropy in nats, averaged over queries.
    received: `[L, H, T]` attention received from later queries within `horizon` blocks (see `attention.observe`).
    loss: mean cross-entropy in nats per token.
    """

    keys: Tensor
    values: Tensor
    key_grads: Tensor | None
    value_grads: Tensor | None
    keys_rotated: Tensor
    rotated_grads: Tensor | None
    queries: Tensor
    queries_rotated: Tensor
    entropy: Tensor
    received: Tensor | None
    loss: float


@dataclass
class _Recorder:
    """Keeps the call of every layer that owns its keys; with `block`, gradients flow only through reads from beyond the
    recent window (those of layers that share keys too).
    """

    block: int | None
    calls: list[AttentionCall] = field(default_factory=list)

    def __call__(self, call: AttentionCall) -> Tensor | None:
        if not call.shared:
            self.calls.append(call)
        if not torch.is_grad_enabled():
            return None
        call.key.retain_grad()
        call.value.retain_grad()
        return None if self.block is None else _far_gradient_attention(call, self.block)


def _far_gradient_attention(call: AttentionCall, block: int) -> Tensor:
    """The same attention output, with near reads detached.

    A streaming cache reads the query's own block and the one before exactly, so errors reach the loss only through
    keys and values at least two blocks back: only those keep their gradient.
    """
    allowed, length = call.allowed(), call.query.shape[2]
    near_key, near_value = call.key.detach(), call.value.detach()
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        far = max(0, start - block)
        part = replace(
            call,
            query=call.query[:, :, start:stop],
            key=torch.cat([call.key[:, :, :far], near_key[:, :, far:stop]], dim=2),
            value=torch.cat([call.value[:, :, :far], near_value[:, :, far:stop]], dim=2),
            mask=allowed[..., start:stop, :stop],
        )
        outputs.append(part.run())
    return torch.cat(outputs, dim=1)


def capture_step(
    model: nn.Module,
    geometry: CacheGeometry,
    ids: Tensor,
    *,
    backward: bool = True,
    received_block: int | None = None,
    far_block: int | None = None,
    offset: int = 0,
) -> CapturedStep:
    """Run one window `ids: [T]` forward (and backward) and return what the attention layers saw.

    With `received_block` the attention that each token receives from later queries of its own and the next block of
    that many tokens is returned as well. With `far_block` gradients flow only through reads from at least two such
    blocks back, the reads that a streaming cache serves from codes. The window stands at position `offset`: RoPE makes
    no difference to the model, but rotated keys look different at every position.
    """
    device = model_device(model)
    ids = ids.to(device)[None]
    positions = torch.arange(offset, offset + ids.shape[1], device=device)[None]
    recorder = _Recorder(far_block)
    with _activation_gradients(model, backward), AttentionTap(model, recorder):
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        targets = functional.pad(ids[0, 1:], (0, 1), value=-100)
        loss = functional.cross_entropy(logits.view(len(targets), -1).float(), targets, reduction="sum")
        if backward:
            loss.backward()
    calls = recorder.calls
    with torch.no_grad():
        rotated = torch.stack([c.key[0] for c in calls]).float()
        values = torch.stack([c.value[0] for c in calls]).float()
        rotated_grads = value_grads = key_grads = None
        if backward:
            rotated_grads = torch.stack([c.key.grad[0] for c in calls]).float()
            value_grads = torch.stack([c.value.grad[0] for c in calls]).float()
            key_grads = _unrotate(rotated_grads, calls, geometry, undo_rope_gradient)
            value_grads, key_grads, rotated_grads = map(_tokens_first, (value_grads, key_grads, rotated_grads))
        queries = torch.stack([c.query[0].detach() for c in calls]).float()
        received = None
        if received_block:
            received = torch.stack([attention_received(c, received_block) for c in calls])
        return CapturedStep(
            keys=_tokens_first(_unrotate(rotated, calls, geometry, undo_rope)),
            values=_tokens_first(values),
            key_grads=key_grads,
            value_grads=value_grads,
            keys_rotated=_tokens_first(rotated),
            rotated_grads=rotated_grads,
            queries=_tokens_first(_unrotate(queries, calls, geometry, undo_rope)),
            queries_rotated=_tokens_first(queries),
            entropy=torch.stack([attention_entropy(c) for c in calls]),
            received=received,
            loss=loss.item() / (ids.shape[1] - 1),
        )


def _tokens_first(x: Tensor) -> Tensor:
    return x.detach().permute(2, 0, 1, 3).contiguous()


def _unrotate(x: Tensor, calls: list[AttentionCall], geometry: CacheGeometry, function) -> Tensor:
    """Apply an inverse-RoPE function per layer to `x: [L, heads, T, D]`."""
    layers = []
    for layer, call in enumerate(calls):
        if geometry.rotary[layer]:
            layers.append(function(x[layer], call.rotation(geometry.layout)))
        else:
            layers.append(x[layer])
    return torch.stack(layers)


@contextlib.contextmanager
def _activation_gradients(model: nn.Module, backward: bool) -> Iterator[None]:
    """Gradients flow to activations only: weights are frozen, the embedding output starts the graph."""
    if not backward:
        with torch.no_grad():
            yield
        return
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    handle = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out.requires_grad_())
    on_host = torch.autograd.graph.save_on_cpu() if is_offloaded(model) else contextlib.nullcontext()
    try:
        with torch.enable_grad(), on_host:  # what is offloaded must not pile up on the device until the backward pass
            yield
    finally:
        handle.remove()
        again = dict(model.named_parameters())  # offloading makes new parameters in every pass
        for name in trained:
            again[name].requires_grad_(True)


def require_gradients(model: nn.Module) -> None:
    """Refuse a model past whose weights no gradient can flow.

    Raises:
        UnsupportedModelError: its weights were made in inference mode.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"{type(model).__name__} was loaded in inference mode, so no gradient can flow through it. Load it outside "
            "torch.inference_mode(), or use --metric attention or energy (metric=)."
        )
