"""Windows that a model has no positions for, refused before a plan of them is shown."""

from __future__ import annotations

from typing import Any

from spectralquant.errors import InputError
from spectralquant.hooks.decoder import position_limit_of


def require_windows(config: Any, **windows: int) -> None:
    """Refuse windows of more tokens than a model of `config` (transformers) can read. windows: tokens, by option.

    Raises:
        InputError: naming the option and the model's positions.
    """
    limit = position_limit_of(config.get_text_config())
    for name, tokens in windows.items():
        if limit is not None and tokens > limit:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} {tokens} has {tokens:,} tokens; the model has {limit:,} positions. Use a shorter window."
            )
