"""How each attention layer rotates its keys, judged where it happens.

The model runs twice on the same tokens, at two positions. In the second pass every attention layer is given the hidden
states that it saw in the first, so that a layer's two keys differ by their rotation and by nothing else: rounding in the
layers below does not add up, whatever the depth and the dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.decoder import attention_modules, text_config
from spectralquant.hooks.probing import architecture_errors
from spectralquant.hooks.standard import require_softmax
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.hooks.wrappers import model_device
from spectralquant.rotary import undo_rope
from spectralquant.rotary_layout import LAYOUTS, RotaryLayout

TOKENS, OFFSET = 12, 5


@torch.no_grad()
def rotary_probe(model: nn.Module) -> tuple[list[AttentionCall], list[AttentionCall]]:
    """Every key-owning layer's attention call at positions 0 … 11, and the same with its positions moved by 5.

    Raises:
        UnsupportedModelError: the model does not run with given positions, or not through transformers' interface.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, text_config(model).vocab_size, (1, TOKENS), generator=generator).to(model_device(model))
    hidden: list[Tensor] = []
    first = _calls(model, ids, 0, lambda x: hidden.append(x) or x)
    _require_causal(model, first)
    require_softmax(model, first)
    seen = iter(hidden)
    return first, _calls(model, ids, OFFSET, lambda _: next(seen))


def _calls(model: nn.Module, ids: Tensor, offset: int, replace: Callable[[Tensor], Tensor]) -> list[AttentionCall]:
    """The attention calls of a pass in which `replace(hidden states)` goes into every attention layer."""
    calls: list[AttentionCall] = []
    positions = torch.arange(offset, offset + ids.shape[1], device=ids.device)[None]

    def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": replace(kwargs["hidden_states"])}
        return (replace(args[0]), *args[1:]), kwargs

    def observe(call: AttentionCall) -> None:
        if not call.shared:
            calls.append(call)

    does, way_out = f"cannot be run on {TOKENS} tokens at given positions", "Use a decoder-only language model."
    handles = [module.register_forward_pre_hook(give, with_kwargs=True) for module in attention_modules(model)]
    try:
        with architecture_errors(model, does, way_out), AttentionTap(model, observe):
            model(input_ids=ids, position_ids=positions, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise UnsupportedModelError(
            f"No attention layer of {type(model).__name__} calls transformers' attention interface, so its keys and "
            "values cannot be observed. Use a model class that supports `set_attn_implementation`."
        )
    return calls


def _require_causal(model: nn.Module, calls: list[AttentionCall]) -> None:
    """Refuse attention that reads later tokens: what is cached of a token would change with every new one."""
    for call in calls:
        if call.mask is None:
            own = call.options.get("is_causal")
            forward = not (getattr(call.module, "is_causal", True) if own is None else own)
        else:
            forward = bool(call.allowed().triu(1).any())
        if forward:
            raise UnsupportedModelError(
                f"{type(model).__name__} reads later tokens (layer {call.layer} is not causal), so its keys and values are "
                "not final when they are cached. Use a decoder (an encoder with a language model head needs is_decoder=True)."
            )


def rotary_layout(first: AttentionCall, second: AttentionCall) -> RotaryLayout | None:
    """How a layer rotates its keys, or None where position changes nothing.

    Raises:
        UnsupportedModelError: position changes the keys, and undoing no known layout explains it.
    """
    tolerance = 1e-3 if first.key.dtype == torch.float32 else 3e-2
    raw = _relative_change(first.key, second.key)
    if raw <= tolerance:
        return None
    changes = {}
    for layout in LAYOUTS if first.cos is not None else ():
        if 2 * layout.angles(first.cos).shape[-1] <= first.key.shape[-1]:
            a, b = (undo_rope(c.key[0].float(), c.rotation(layout)) for c in (first, second))
            changes[layout] = _relative_change(a, b)
    best = min(changes, key=changes.get, default=None)
    if best is not None and changes[best] <= max(tolerance, raw / 20):
        return best
    left = f"keys still change by {changes[best]:.2g} relative after undoing it" if changes else "no tables were seen"
    raise UnsupportedModelError(
        f"Layer {first.layer} of {type(first.module).__name__} makes keys depend on position in a layout that cannot be "
        f"inverted ({left}). Rotary embedding with cos and sin per layer is supported, in halves or interleaved, "
        "applied last to the keys."
    )


def _relative_change(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / a.float().norm().clamp_min(1e-30)).item()
