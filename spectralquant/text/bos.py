"""The beginning-of-text token. Some models are lost without it: Gemma 3 270M has a perplexity of 27 with and far above without."""

from __future__ import annotations

from typing import Any

from spectralquant.errors import SourceError


def bos_token(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before every text, or None."""
    first = tokenizer("a").input_ids[:1]
    return first[0] if first and first[0] == tokenizer.bos_token_id else None


def begin_with_bos(tokenizer: Any, bos: int | None, where: str) -> None:
    """Make a tokenizer put its beginning-of-text token `bos` before every text, where it does not yet.

    Raises:
        SourceError: it cannot be made to.
    """
    if bos_token(tokenizer) is not None:
        return
    if bos is not None and tokenizer.bos_token_id is None:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(bos)
    tokenizer.add_bos_token = True
    if bos_token(tokenizer) is None:
        raise SourceError(
            f"The model of {where} needs a beginning-of-text token, and this version of transformers cannot make its "
            "tokenizer add one. Update transformers, or save the tokenizer with the token in its template."
        )
