"""Is this the model of a profile? Asked of its configuration alone, before gigabytes of weights are loaded."""

from __future__ import annotations

from typing import Any

from spectralquant.errors import ProfileError, SourceError
from spectralquant.models.config import load_config
from spectralquant.models.schema import ModelIdentity


def refuse_foreign_model(mine: ModelIdentity, spec: str, *, offline: bool) -> None:
    """Refuse a model whose configuration says that the profile cannot be its own. Weights are compared after loading.

    Raises:
        ProfileError: naming what differs.
    """
    if spec.endswith(".gguf"):
        return  # its configuration is inside, as expensive to read as the rest
    try:
        config = load_config(spec, offline=offline)
    except SourceError:
        return  # loading the model says why, in more words
    differing = [f"{name} is {ours}, not {theirs}" for name, ours, theirs in _figures(mine, config) if ours != theirs]
    if differing:
        raise ProfileError(
            f"The profile was calibrated on {mine.name} ({mine.architecture}), not on {spec}: {'; '.join(differing)}. "
            "Use the profile's own model (leave --model out), or calibrate a profile for this one."
        )


def _figures(mine: ModelIdentity, config: Any) -> list[tuple[str, int, int]]:
    """Name, the model's figure and the profile's, where the configuration has one figure for all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    hidden = getattr(text, "hidden_size", None)
    dim = getattr(text, "head_dim", None)
    if dim is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
        dim = hidden // heads
    layers = None if getattr(text, "num_kv_shared_layers", None) else getattr(text, "num_hidden_layers", None)
    found = (
        ("its number of layers", layers, mine.layers),
        ("its number of heads", heads, mine.heads),
        ("its number of key/value heads", kv_heads, mine.kv_heads),
        ("its head dimension", dim, mine.head_dim),
    )
    return [(name, ours, theirs) for name, ours, theirs in found if isinstance(ours, int)]
