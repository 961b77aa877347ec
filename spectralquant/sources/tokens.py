"""Text to token ids, and token ids to equal windows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralquant.errors import InputError, SourceError

MIN_WINDOW = 8


@dataclass(frozen=True)
class TokenText:
    """One run of token ids int64 `[N]`, and the BOS token that starts each window of it (where the tokenizer has one)."""

    ids: Tensor
    bos: int | None = None

    def windows(self, window: int, count: int | None = None, start: int = 0) -> Tensor:
        """Contiguous windows int64 `[n, window]` from token `start` on, all that fit, or exactly `count`.

        Raises:
            InputError: a window under 8 tokens. SourceError: the text is too short.
        """
        if window < MIN_WINDOW:
            raise InputError(f"A window of {window} tokens is too short; use at least {MIN_WINDOW}.")
        body = window - (self.bos is not None)
        fits = max(0, (len(self.ids) - start) // body)
        if fits == 0 or (count is not None and fits < count):
            raise SourceError(
                f"The text has {len(self.ids):,} tokens; {count or 1} windows of {window} from token {start:,} on need "
                f"{start + (count or 1) * body:,}. Give more text, fewer steps or a smaller window."
            )
        n = fits if count is None else count
        rows = self.ids[start : start + n * body].view(n, body)
        if self.bos is None:
            return rows
        return torch.cat([torch.full((n, 1), self.bos, dtype=torch.int64), rows], dim=1)


def tokenize(tokenizer: Any, documents: Iterable[str], at_least: int | None = None) -> TokenText:
    """Tokenize documents, joined by blank lines; streams are read until `at_least` tokens are there.

    Raises:
        SourceError: there is no text.
    """
    first = tokenizer("a").input_ids[:1]
    bos = first[0] if first and first[0] == tokenizer.bos_token_id else None
    separator = tokenizer("\n\n", add_special_tokens=False).input_ids
    ids: list[int] = []
    seen = False
    for document in documents:
        if not document.strip():
            continue
        ids += separator if seen else []
        seen = True
        ids += tokenizer(document, add_special_tokens=False, verbose=False).input_ids
        if at_least is not None and len(ids) >= at_least:
            break
    if not seen:
        raise SourceError("The text is empty. Calibration and measurement need text.")
    return TokenText(torch.tensor(ids, dtype=torch.int64), bos)


def tokens_sha256(ids: Tensor) -> str:
    """SHA-256 of token ids as little-endian int32, hexadecimal."""
    return hashlib.sha256(ids.to(torch.int32).numpy().astype("<i4").tobytes()).hexdigest()
