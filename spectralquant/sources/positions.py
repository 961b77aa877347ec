"""How many positions a model has, and what needs more of them."""

from __future__ import annotations

from typing import Any

from spectralquant.errors import InputError


def max_positions(config: Any) -> int | None:
    """Positions of a transformers configuration's text decoder; None where nothing limits them (no position embeddings).

    Where RoPE is stretched, a stretched length that the configuration names counts (yarn: factor times the original
    length; dynamic NTK: factor times the trained one).
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(text, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest <= 0:
        return None
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [part for part in rope.values() if isinstance(part, dict)]
    for part in nested or [rope]:
        factor, original = part.get("factor"), part.get("original_max_position_embeddings")
        if part.get("rope_type", part.get("type")) == "dynamic":
            original = longest
        if factor and original:
            longest = max(longest, int(factor * original))
    return longest


def require_positions(config: Any, tokens: int, what: str, way_out: str) -> None:
    """Refuse what goes beyond a model's last position, where its keys would mean nothing.

    Raises:
        InputError: naming both numbers, and `way_out`.
    """
    longest = max_positions(config)
    if longest is not None and tokens > longest:
        raise InputError(
            f"{what} takes {tokens:,} positions, but the model has {longest:,} (max_position_embeddings). {way_out}"
        )
