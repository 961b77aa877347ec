"""A memory budget that no cache can keep."""

from __future__ import annotations

from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK, SINKS
from spectralquant.models.load import LoadedModel

LOOKED_AT = 20_000
"""Characters of a prompt, more than the exact tokens have."""


def require_exact_tokens(limit: int, loaded: LoadedModel, prompt: str, new_tokens: int, exact_bits: int) -> None:
    """Refuse a --budget below what the first and the newest tokens take, which every layer holds exactly.

    limit: bytes. exact_bits: of a scalar of these tokens, 16 (the model's dtype) or 8.

    Raises:
        InputError: with the bytes that are needed at least.
    """
    read = len(loaded.tokenizer(prompt[:LOOKED_AT]).input_ids) + new_tokens - 1  # the last token is not read
    tokens = min(read, SINKS + BLOCK)
    scalar = 1 if exact_bits == 8 else loaded.model.dtype.itemsize
    least = loaded.geometry.fp16_bytes(tokens) // 2 * scalar
    if limit < least:
        smaller = "" if exact_bits == 8 else ", or --exact-bits 8"
        raise InputError(
            f"--budget of {limit:,} bytes holds no cache of this model: {tokens} exact tokens, the first and the newest ones, take "
            f"{least:,} alone. Give more{smaller}."
        )
