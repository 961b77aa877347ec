"""Which layers own keys and values, and how far back each may read: found by running one token, not by names.

The token runs on a cache that pretends to hold a million others. The masks that the model then makes tell every layer's
window; the layers that add to the cache are those that own keys and values (others read what those return). What the
cache returns is no tensor, as what `SpectralCache` returns is none: a model must hand it to attention untouched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.decoder import attention_modules
from spectralquant.hooks.probing import architecture_errors
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.hooks.wrappers import model_device
from spectralquant.models.forward import with_cache

PRETENDED = (1 << 20) + 4_321  # no multiple of a usual chunk, so that chunked attention does not look like a window


@dataclass(frozen=True)
class LayerFacts:
    """owners: layers that add to a cache, in call order. windows: per owner the tokens that a query reads at most, itself
    included, or None for all.
    """

    owners: tuple[int, ...]
    windows: tuple[int | None, ...]


class _Returned:
    """What a spectral cache gives back in place of keys or values: their shape, and no operation."""

    def __init__(self, states: Tensor, layer: int) -> None:
        self.shape, self.dtype, self.device, self.layer = states.shape, states.dtype, states.device, layer


class _PretendedCache(DynamicCache):
    """Says that it holds a long past; keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: list[int] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return PRETENDED

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return PRETENDED + query_length, 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object):
        self.owners.append(layer_idx)
        returned = _Returned(key_states, layer_idx)
        return returned, returned


@torch.no_grad()
def probe_layers(model: nn.Module) -> LayerFacts:
    """Run one token and read owners and windows.

    Raises:
        UnsupportedModelError: owners are not the model's first layers in order, or a layer reads another part of the past
            than transformers' own cache of this model keeps (chunked attention).
    """
    cache, windows = _PretendedCache(), {}

    def observe(call: AttentionCall) -> Tensor:
        if getattr(call.key, "layer", None) != call.layer or call.value is not call.key:
            raise UnsupportedModelError(
                f"{type(model).__name__}: the attention of layer {call.layer} does not read what the cache returned for it, "
                "so a compressed cache could not serve it. Use a model whose attention reads its cache."
            )
        seen = _window(call)
        if windows.setdefault(call.layer, seen) != seen:
            raise _unlike(
                model, call.layer, f"layers that share its keys read {seen} tokens, it reads {windows[call.layer]}"
            )
        batch, heads, new, _ = call.query.shape
        return call.query.new_zeros(batch, new, heads, call.value.shape[3])

    device = model_device(model)
    one = torch.zeros(1, 1, dtype=torch.int64, device=device)
    last, given = attention_modules(model)[-1], []
    handle = last.register_forward_pre_hook(lambda m, a, k: given.extend((*a, *k.values())), with_kwargs=True)
    does = "does not run on a spectral cache"
    try:
        way_out = "A model must hand to attention, as it is, what its cache returns, and ask nothing else of the cache."
        with architecture_errors(model, does, way_out), AttentionTap(model, observe):
            model(input_ids=one, position_ids=one, use_cache=True, **with_cache(model, cache))
    finally:
        handle.remove()
    if cache.owners and not any(x is cache for x in given):
        raise UnsupportedModelError(
            f"{type(model).__name__} does not hand its cache to its attention layers, so the end of a forward pass is not "
            "seen and nothing would be compressed. Use a model class of transformers' current interface."
        )
    owners = tuple(cache.owners)
    if owners != tuple(range(len(owners))) or set(windows) != set(owners):
        raise UnsupportedModelError(
            f"{type(model).__name__} adds keys and values to its cache from layers {list(owners)} and reads those of layers "
            f"{sorted(windows)}; a cache needs layers 0 to n − 1, one after the other, each read by attention."
        )
    found = tuple(windows[layer] for layer in owners)
    for layer, (mine, own) in enumerate(zip(found, own_windows(model, len(owners)), strict=True)):
        if mine != own:
            raise _unlike(
                model, layer, f"its mask lets {_words(mine)} be read, transformers' own cache keeps {_words(own)}"
            )
    return LayerFacts(owners, found)


def own_windows(model: nn.Module, layers: int) -> tuple[int | None, ...]:
    """Windows of transformers' own cache of a model, for its first `layers` layers."""
    own = DynamicCache(config=model.config).layers
    windows = [getattr(layer, "sliding_window", None) for layer in own[:layers]]
    return tuple(windows + [None] * (layers - len(windows)))


def _window(call: AttentionCall) -> int | None:
    """Tokens that the one query may read, itself included."""
    if call.mask is None:
        return None
    allowed = call.mask[0, 0, -1]
    allowed = allowed if allowed.dtype == torch.bool else allowed == 0
    count = int(allowed.sum())
    return None if count > PRETENDED else count


def _words(window: int | None) -> str:
    return "all tokens" if window is None else f"{window:,} tokens"


def _unlike(model: nn.Module, layer: int, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__}: layer {layer} is neither full nor sliding-window attention ({why}). Chunked attention and "
        "other masks are not supported."
    )
