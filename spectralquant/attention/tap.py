"""`AttentionTap`: show every attention call of a transformers model to an observer.

One place for calibration, evaluation and packing to see queries, keys, values and rotary tables, whatever the
model calls its projections (separate, fused, with biases or with q/k norms). It registers an attention function
*and* its mask function: without the second, transformers passes no mask and padded batches go wrong silently.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spectralquant.attention.decoder import attention_modules, text_decoder
from spectralquant.codec.rotary import RotaryLayout, Rotation
from spectralquant.errors import UnsupportedModelError

IMPLEMENTATION = "spectralquant_tap"


@dataclass
class AttentionCall:
    """One call of one attention layer.

    Shapes: query `[B, H, T, D]`, key and value `[B, Hk, S, D]` (S keys, RoPE already applied),
    cos and sin `[B, T, n]` for the T new tokens (None when the layer gets no rotary tables),
    mask boolean `[B, 1, T, S]` or None (then plain causal).
    layer: the layer that owns these keys and values; shared: another layer than the owner reads them.
    """

    module: nn.Module
    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    cos: Tensor | None
    sin: Tensor | None
    options: dict[str, Any]
    shared: bool = False

    def allowed(self) -> Tensor:
        """Boolean mask `[B or 1, 1, T, S]`: the call's own, or causal where the model passed none."""
        if self.mask is not None:
            return self.mask
        total, new = self.key.shape[2], self.query.shape[2]
        position = torch.arange(total - new, total, device=self.key.device)
        return (torch.arange(total, device=self.key.device) <= position[:, None])[None, None]

    def rotation(self, layout: RotaryLayout) -> Rotation:
        """The rotation of sequence 0's new tokens."""
        return Rotation.of(self.cos[0], self.sin[0], layout)

    def run(self) -> Tensor:
        """The model's own attention: `[B, T, H, D]` (SDPA, or eager where scores are soft-capped)."""
        if self.options.get("softcap") is None:
            function = ALL_ATTENTION_FUNCTIONS["sdpa"]
            return function(
                self.module, self.query, self.key, self.value, self.mask, scaling=self.scaling, **self.options
            )[0]
        function = sys.modules[type(self.module).__module__].eager_attention_forward
        allowed = self.allowed()
        mask = torch.zeros_like(allowed, dtype=self.query.dtype)
        mask.masked_fill_(~allowed, torch.finfo(self.query.dtype).min)
        return function(self.module, self.query, self.key, self.value, mask, scaling=self.scaling, **self.options)[0]


Observer = Callable[[AttentionCall], Tensor | None]
_active: weakref.WeakKeyDictionary[nn.Module, AttentionTap] = weakref.WeakKeyDictionary()


class AttentionTap:
    """Context manager: while open, `observer(call)` runs instead of every attention call of `model`.

    The observer returns the attention output `[B, T, H, D]`, or None to let the model's own attention run.
    """

    def __init__(self, model: nn.Module, observer: Observer) -> None:
        self.model = model
        self.observer = observer
        self.decoder, self.modules = text_decoder(model), attention_modules(model)
        self._rotary: dict[nn.Module, tuple[Tensor, Tensor] | None] = {}
        self._handles: list[Any] = []
        self._owners: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._previous = ""

    def __enter__(self) -> AttentionTap:
        self._previous = self.decoder.config._attn_implementation
        self.decoder.set_attn_implementation(IMPLEMENTATION)
        if self.decoder.config._attn_implementation != IMPLEMENTATION:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} does not use transformers' attention interface, so its keys and values "
                "cannot be observed. Use a model class that supports `set_attn_implementation`."
            )
        for module in self.modules:
            if module in _active:
                raise RuntimeError("an AttentionTap is already open on this model")
            _active[module] = self
            self._handles.append(module.register_forward_pre_hook(self._keep_rotary, with_kwargs=True))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._rotary.clear()
        self._owners.clear()
        for module in self.modules:
            _active.pop(module, None)
        self.decoder.set_attn_implementation(self._previous)

    def _keep_rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (kwargs.get("position_embeddings"), *args)
        self._rotary[module] = next((pair for pair in map(_cos_sin, given) if pair is not None), None)

    def rotary(self, module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
        """The (cos, sin) that the module's current call received."""
        pair = self._rotary.get(module)
        return (None, None) if pair is None else pair

    def owner(self, key: Tensor, layer: int) -> int:
        """The layer that made the tensor `key`: the one that passed it first (later layers share it)."""
        held, owner = self._owners.get(id(key), (None, layer))
        if held is None or held() is not key:
            self._owners[id(key)] = weakref.ref(key), layer
            return layer
        return owner


def _cos_sin(value: Any) -> tuple[Tensor, Tensor] | None:
    """cos and sin `[B, T, n]` where an argument is such a pair (Llama 4 passes one complex tensor, which is none)."""
    if not isinstance(value, tuple) or len(value) != 2 or not all(torch.is_tensor(x) for x in value):
        return None
    if not all(x.is_floating_point() and x.dim() in (2, 3) for x in value):
        return None
    cos, sin = (x if x.dim() == 3 else x[None] for x in value)
    return cos, sin


def _tap_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    tap = _active.get(module)
    if tap is None:
        raise RuntimeError(f"attention implementation {IMPLEMENTATION!r} is set, but no AttentionTap is open")
    cos, sin = tap.rotary(module)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    owner = tap.owner(key, module.layer_idx)
    shared = owner != module.layer_idx
    call = AttentionCall(module, owner, query, key, value, attention_mask, scale, cos, sin, options, shared)
    output = tap.observer(call)
    return (call.run() if output is None else output), None


AttentionInterface.register(IMPLEMENTATION, _tap_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
