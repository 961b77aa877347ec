"""The text decoder inside a model: a wrapper for images and text holds other attention layers too."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.wrappers import computing_device, model_device


def text_config(model: nn.Module) -> Any:
    """The configuration of the model's text decoder (of a plain language model: its own)."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def longest_context(model: nn.Module) -> int | None:
    """Positions that the text decoder has, or None where its configuration sets no limit."""
    return getattr(text_config(model), "max_position_embeddings", None) or None


def position_limit(model: nn.Module) -> int | None:
    """Tokens that the model can read at all, or None where nothing limits them; see `position_limit_of`."""
    return position_limit_of(text_config(model))


def position_limit_of(config: Any) -> int | None:
    """Tokens that a model of this configuration of a text decoder can read at all, or None where nothing limits them.

    A stretched length that the configuration names counts (yarn: factor times the original length). Dynamic NTK scaling
    stretches with the text.
    """
    longest = getattr(config, "max_position_embeddings", None) or None
    rope = getattr(config, "rope_parameters", None) or {}
    for part in [r for r in rope.values() if isinstance(r, dict)] or [rope]:
        if part.get("rope_type") == "dynamic":
            return None
        factor, original = part.get("factor"), part.get("original_max_position_embeddings")
        if longest and factor and original:
            longest = max(longest, int(factor * original))
    return longest


def text_decoder(model: nn.Module) -> nn.Module:
    """The stack of decoder layers: `language_model` of a wrapper for images and text, `model` of a language model."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else model
    return found if hasattr(found, "set_attn_implementation") and _attention(found) else model


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The text decoder's self-attention modules, in layer order.

    Raises:
        UnsupportedModelError: none is found.
    """
    found = _attention(text_decoder(model))
    if not found and any("Attention" in type(m).__name__ for m in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} has attention layers that are not numbered as transformers' caches need them, so their "
            "keys and values cannot be followed. Use a model class of transformers' current interface."
        )
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no softmax attention layers with a key/value cache (state-space, linear or "
            "convolutional mixers keep no keys and values, so there is nothing to compress). "
            "Use a decoder-only attention model."
        )
    return sorted(found, key=lambda m: m.layer_idx)


def layer_devices(model: nn.Module) -> list[torch.device]:
    """Where each of the text decoder's attention layers computes, in layer order."""
    main = model_device(model)
    return [computing_device(module) or main for module in attention_modules(model)]


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """The text decoder's modules that make rotary tables."""
    return [m for m in text_decoder(model).modules() if type(m).__name__.endswith("RotaryEmbedding")]


def _attention(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "layer_idx")]
