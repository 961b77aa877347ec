"""Keys before RoPE and values of a window, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectralquant.geometry import SINKS, CacheGeometry
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.hooks.wrappers import model_device, runs_model
from spectralquant.rotary import undo_rope


@torch.no_grad()
@runs_model(spread=True)
def capture_keys_values(model: nn.Module, geometry: CacheGeometry, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Run `ids: [T]`; keys (before RoPE) and values float32 `[T − 4, P]`, sinks left out."""
    device = model_device(model)
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def observe(call: AttentionCall) -> None:
        if call.shared:
            return
        key = call.key[0].float()
        if geometry.rotary[call.layer]:
            key = undo_rope(key, call.rotation(geometry.layout))
        keys.append(key.transpose(0, 1)[SINKS:].flatten(1).to(device))
        values.append(call.value[0].float().transpose(0, 1)[SINKS:].flatten(1).to(device))

    with AttentionTap(model, observe):
        model(input_ids=ids[None].to(device), use_cache=False, logits_to_keep=1)
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)
