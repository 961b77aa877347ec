"""The geometry of a model's KV cache, found by running the model, not by guessing names.

A short probe tells shapes and how each layer rotates its keys (see `rotary_probe`). A rotary layout we cannot invert is
found here and refused, instead of degrading silently later.
"""

from __future__ import annotations

from torch import nn

from spectralquant.errors import UnsupportedModelError
from spectralquant.geometry import CacheGeometry
from spectralquant.hooks.rotary_probe import rotary_layout, rotary_probe
from spectralquant.hooks.rotary_tables import RotaryTables
from spectralquant.hooks.wrappers import runs_model
from spectralquant.models.layer_probe import probe_layers
from spectralquant.rotary_layout import RotaryLayout


def refuse_unsupported(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` for architectures whose cache is not per-head keys and values."""
    config = model.config
    name = type(model).__name__
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder model: its cross-attention cache is written once from the encoder and is "
            "not covered by the codec. Use a decoder-only model."
        )
    if getattr(text, "kv_lora_rank", None):
        raise UnsupportedModelError(
            f"{name} uses multi-head latent attention (kv_lora_rank={text.kv_lora_rank}): its cache is already a "
            "low-rank latent, not keys and values per head. Use a model with MHA, MQA or GQA."
        )
    kinds = set(getattr(text, "layer_types", None) or ()) | set(getattr(text, "layers_block_type", None) or ())
    odd = sorted(k for k in kinds if k not in {"full_attention", "sliding_attention", "attention", "chunked_attention"})
    if odd:
        raise UnsupportedModelError(
            f"{name} has layers without softmax attention ({', '.join(odd)}): a state-space or other recurrent layer "
            "keeps a state instead of keys and values. Use a model in which every layer is softmax attention."
        )


@runs_model(spread=True)
def probe_geometry(model: nn.Module) -> CacheGeometry:
    """Run `model` on 12 tokens at two position offsets and read its cache geometry.

    Raises:
        UnsupportedModelError: encoder-decoder, latent attention, state-space or hybrid models; layers of unequal
            shape; a rotary embedding that cannot be inverted.
    """
    refuse_unsupported(model)
    calls, moved = rotary_probe(model)
    shapes = {(c.query.shape[1], c.key.shape[1], c.key.shape[3], c.value.shape[3]) for c in calls}
    if len(shapes) != 1 or any(d != v for _, _, d, v in shapes):
        raise UnsupportedModelError(
            f"{type(model).__name__} has key/value shapes {sorted(shapes)} (query heads, kv heads, key dim, value dim); the "
            "codec needs one shape for all layers, and keys and values of one dimension."
        )
    facts = probe_layers(model)
    if [c.layer for c in calls] != list(facts.owners):
        raise UnsupportedModelError(
            f"{type(model).__name__} adds keys and values of layers {list(facts.owners)} to its cache, and its attention "
            f"reads those of layers {[c.layer for c in calls]}; a cache needs both to be the same."
        )
    heads, kv_heads, head_dim, _ = shapes.pop()
    found = [rotary_layout(a, b) for a, b in zip(calls, moved, strict=True)]
    layouts = {layout for layout in found if layout is not None}
    if len(layouts) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} rotates keys in several layouts ({', '.join(map(str, layouts))}); the codec needs one."
        )
    layout = layouts.pop() if layouts else RotaryLayout()
    windows = facts.windows if any(facts.windows) else ()
    rotary = tuple(x is not None for x in found)
    geometry = CacheGeometry(len(calls), heads, kv_heads, head_dim, rotary, windows, layout)
    RotaryTables(model, geometry)  # refuses what could be calibrated and not be read again
    return geometry
