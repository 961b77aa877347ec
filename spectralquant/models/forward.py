"""Calling a model with a cache, whatever this version of transformers calls that argument."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn
from transformers import Cache


@functools.cache
def _name(kind: type[nn.Module]) -> str:
    """transformers renames `past_key_values` to `cache` from 5.24 on."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def with_cache(model: nn.Module, cache: Cache) -> dict[str, Any]:
    """Keyword arguments of `model(…)` that give it a cache."""
    return {_name(type(model)): cache}


def cache_of(output: Any) -> Cache:
    """The cache that a model's output carries."""
    return output["cache"] if "cache" in output else output["past_key_values"]
