"""How each attention layer rotates its keys, judged where it happens.

The model runs twice on the same tokens, at two positions. Then every attention layer alone runs again on the hidden
states of the first pass with the positions of the second, so that a layer's two keys differ by their rotation and by
nothing else: rounding in the layers below does not add up, whatever the depth and the dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectralquant.attention.decoder import attention_modules, text_config
from spectralquant.attention.probing import architecture_errors
from spectralquant.attention.tap import AttentionCall, AttentionTap
from spectralquant.codec.rotary import LAYOUTS, RotaryLayout, undo_rope
from spectralquant.errors import UnsupportedModelError
from spectralquant.sources.wrappers import model_device

TOKENS, OFFSET = 12, 5
Inputs = dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]


@torch.no_grad()
def rotary_probe(model: nn.Module) -> tuple[list[AttentionCall], list[AttentionCall]]:
    """Every key-owning layer's attention call at positions 0 … 11, and the same with its positions moved by 5.

    Raises:
        UnsupportedModelError: the model does not run with given positions, or not through transformers' interface.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, text_config(model).vocab_size, (1, TOKENS), generator=generator).to(model_device(model))
    calls: list[AttentionCall] = []
    here, there = (_inputs(model, ids, offset, calls) for offset in (0, OFFSET))
    first = calls[: len(calls) // 2]
    calls.clear()
    with AttentionTap(model, calls.append):
        for call in first:
            args, kwargs = there[call.module]
            hidden = here[call.module]
            if "hidden_states" in kwargs:
                kwargs = {**kwargs, "hidden_states": hidden[1]["hidden_states"]}
            else:
                args = (hidden[0][0], *args[1:])
            call.module(*args, **kwargs)
    return first, list(calls)


def _inputs(model: nn.Module, ids: Tensor, offset: int, calls: list[AttentionCall]) -> Inputs:
    """What every attention module was called with; its attention calls are added to `calls`."""
    inputs: Inputs = {}
    positions = torch.arange(offset, offset + ids.shape[1], device=ids.device)[None]
    handles = [
        module.register_forward_pre_hook(lambda m, a, k: inputs.update({m: (a, k)}), with_kwargs=True)
        for module in attention_modules(model)
    ]
    before = len(calls)

    def observe(call: AttentionCall) -> None:
        if not call.shared:
            calls.append(call)

    does, way_out = f"cannot be run on {TOKENS} tokens at given positions", "Use a decoder-only language model."
    try:
        with architecture_errors(model, does, way_out), AttentionTap(model, observe):
            model(input_ids=ids, position_ids=positions, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) == before:
        raise UnsupportedModelError(
            f"No attention layer of {type(model).__name__} calls transformers' attention interface, so its keys and "
            "values cannot be observed. Use a model class that supports `set_attn_implementation`."
        )
    return inputs


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
