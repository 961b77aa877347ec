"""Is this the model of a profile? Asked of its configuration alone, before gigabytes of weights are loaded."""

from __future__ import annotations

from typing import Any

from spectralquant.errors import ProfileError, SourceError
from spectralquant.models.builtin.table import BUILTIN_MODELS
from spectralquant.models.config import load_config
from spectralquant.models.schema import ModelIdentity

NAMES = ("its number of layers", "its number of heads", "its number of key/value heads", "its head dimension")


def refuse_foreign_model(mine: ModelIdentity, spec: str, *, offline: bool) -> None:
    """Refuse a model whose configuration says that the profile cannot be its own. Weights are compared after loading.

    Raises:
        ProfileError: naming what differs.
    """
    if spec.endswith(".gguf"):
        return  # its configuration is inside, as expensive to read as the rest
    try:
        shape = _shape_of(spec, offline)
    except SourceError:
        return  # loading the model says why, in more words
    wanted = (mine.layers, mine.heads, mine.kv_heads, mine.head_dim)
    differing = [
        f"{name} is {ours}, not {theirs}"
        for name, ours, theirs in zip(NAMES, shape, wanted, strict=True)
        if isinstance(ours, int) and ours != theirs
    ]
    if differing:
        raise ProfileError(
            f"The profile was calibrated on {mine.name} ({mine.architecture}), not on {spec}: {'; '.join(differing)}. "
            "Use the profile's own model (leave --model out), or calibrate a profile for this one."
        )


def _shape_of(spec: str, offline: bool) -> tuple[Any, ...]:
    """Layers, heads, key/value heads and head dimension; None where there is no one figure for all layers. A built-in
    model's are known before it is fetched."""
    if spec in BUILTIN_MODELS:
        builtin = BUILTIN_MODELS[spec]
        return builtin.layers, builtin.heads, builtin.kv_heads, builtin.head_dim
    text = load_config(spec, offline=offline).get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    hidden = getattr(text, "hidden_size", None)
    dim = getattr(text, "head_dim", None)
    if dim is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
        dim = hidden // heads
    layers = None if getattr(text, "num_kv_shared_layers", None) else getattr(text, "num_hidden_layers", None)
    return layers, heads, kv_heads, dim
