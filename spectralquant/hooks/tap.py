"""`AttentionTap`: show every attention call of a transformers model to an observer.

One place for calibration, evaluation and packing to see queries, keys, values and rotary tables, whatever the
model calls its projections (separate, fused, with biases or with q/k norms). It registers an attention function
*and* its mask function: without the second, transformers passes no mask and padded batches go wrong silently.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from spectralquant.hooks.decoder import attention_modules
from spectralquant.hooks.implementation import (
    Switch,
    attention_function,
    custom_function,
    decoder_configs,
    make_mask,
    own_implementation,
    run_own,
    switched_here,
)
from spectralquant.hooks.softmax import unknown_option
from spectralquant.rotary import Rotation
from spectralquant.rotary_layout import RotaryLayout

IMPLEMENTATION = "spectralquant_tap"


@dataclass
class AttentionCall:
    """One call of one attention layer.

    Shapes: query `[B, H, T, D]`, key and value `[B, Hk, S, D]` (S keys, RoPE already applied),
    cos and sin `[B, T, n]` for the T new tokens (None when the layer gets no rotary tables),
    mask boolean `[B, 1, T, S]` or None (then plain causal), or what a user gave the model or registered a function for.
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

    def allowed(self, queries: slice = slice(None)) -> Tensor:
        """Boolean mask `[B or 1, 1, t, S]` of all or some queries: the call's own, or causal where the model passed none."""
        if self.mask is not None:
            mask = self.mask[:, :, queries]
            return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        total, new = self.key.shape[2], self.query.shape[2]
        position = torch.arange(total - new, total, device=self.key.device)[queries]
        return (torch.arange(total, device=self.key.device) <= position[:, None])[None, None]

    def rotation(self, layout: RotaryLayout) -> Rotation:
        """The rotation of sequence 0's new tokens."""
        return Rotation.of(self.cos[0], self.sin[0], layout)

    def left_to_model(self, *, dropout: bool = True) -> str | None:
        """Why only the model's own function can compute this call, or None where softmax attention over a mask is all.

        dropout: whether dropout in training mode is such a reason.
        """
        option = unknown_option(self.options, dropout and getattr(self.module, "training", False))
        if option is not None:
            return f"the model passes its attention an option {option!r}, which only its own function knows"
        if self.module is not None and custom_function(self.module.config) is not None:
            return f"attention {own_implementation(self.module.config)!r} is a function of the user's"
        if self.mask is not None and not (torch.is_tensor(self.mask) and self.mask.dtype == torch.bool):
            return "its mask is not boolean"
        return None

    def attend(self) -> tuple[Tensor, Tensor | None]:
        """The model's own attention with all its options: output `[B, T, H, D]`, and weights where it returns them."""
        kind, function = attention_function(self.module)
        mask = self.mask
        if kind == "eager" and (mask is None or mask.dtype == torch.bool):
            allowed = self.allowed()
            mask = torch.zeros_like(allowed, dtype=self.query.dtype)
            mask.masked_fill_(~allowed, torch.finfo(self.query.dtype).min)
        return function(self.module, self.query, self.key, self.value, mask, scaling=self.scaling, **self.options)[:2]

    def run(self) -> Tensor:
        """Output `[B, T, H, D]` of the model's own attention."""
        return self.attend()[0]


Observer = Callable[[AttentionCall], Tensor | None]
_active: weakref.WeakKeyDictionary[nn.Module, AttentionTap] = weakref.WeakKeyDictionary()


class AttentionTap:
    """Context manager: while open, `observer(call)` runs instead of every attention call of `model`.

    The observer returns the attention output `[B, T, H, D]`, or None to let the model's own attention run.
    """

    def __init__(self, model: nn.Module, observer: Observer) -> None:
        self.model = model
        self.observer = observer
        self.modules = attention_modules(model)
        self._rotary: dict[nn.Module, tuple[Tensor, Tensor] | None] = {}
        self._handles: list[Any] = []
        self._owners: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._switch = Switch(decoder_configs(model, self.modules), IMPLEMENTATION)

    def __enter__(self) -> AttentionTap:
        if any(module in _active for module in self.modules):
            raise RuntimeError("an AttentionTap is already open on this model")
        self._switch.__enter__()
        for module in self.modules:
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
        self._switch.__exit__()

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
) -> tuple[Tensor, Tensor | None]:
    tap = _active.get(module)
    if tap is None or not switched_here(module.config):  # a pass of another thread
        return run_own(module, query, key, value, attention_mask, scaling=scaling, **options)
    cos, sin = tap.rotary(module)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    owner = tap.owner(key, module.layer_idx)
    shared = owner != module.layer_idx
    call = AttentionCall(module, owner, query, key, value, attention_mask, scale, cos, sin, options, shared)
    output = tap.observer(call)
    return call.attend() if output is None else (output, None)


AttentionInterface.register(IMPLEMENTATION, _tap_attention)
AttentionMaskInterface.register(IMPLEMENTATION, make_mask)
