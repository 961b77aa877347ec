"""Text to token ids, and token ids to equal windows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectralquant.errors import InputError, SourceError
from spectralquant.text.bos import bos_token
from spectralquant.text.documents.columns import RowReader
from spectralquant.text.documents.conversation import Conversation
from spectralquant.text.documents.pieces import PIECE, Continuation, in_pieces
from spectralquant.text.documents.report import Report, warn

MIN_WINDOW = 8


@dataclass(frozen=True)
class SourceShare:
    """What one text gave: its name as in `--data`, its weight, its tokens, and their SHA-256."""

    source: str
    weight: float
    tokens: int
    sha256: str


@dataclass(frozen=True)
class TokenText:
    """One run of token ids int64 `[N]`, and the BOS token that starts each window of it (where the tokenizer has one)."""

    ids: Tensor
    bos: int | None = None

    def shares(self, tokens: int | None = None) -> list[SourceShare]:
        """What each text gave to the first `tokens` tokens (None: all); here there is but one."""
        ids = self.ids[:tokens]
        return [SourceShare("text", 1.0, len(ids), tokens_sha256(ids))]

    def body(self, window: int) -> int:
        """Tokens of text in a window, its BOS token left out."""
        return window - (self.bos is not None)

    def windows(self, window: int, count: int | None = None, start: int = 0) -> Tensor:
        """Contiguous windows int64 `[n, window]` from token `start` on, all that fit, or exactly `count`.

        Raises:
            InputError: a window under 8 tokens. SourceError: the text is too short.
        """
        if window < MIN_WINDOW:
            raise InputError(f"A window of {window} tokens is too short; use at least {MIN_WINDOW}.")
        body = self.body(window)
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


def tokenize(tokenizer: Any, documents: Iterable[str], at_least: int | None = None, report: Report = warn) -> TokenText:
    """Tokenize documents, joined by blank lines, until `at_least` tokens are there (None: all of them).

    Documents are strings, message lists or rows (as `load_text` reads them). Conversations are rendered by the tokenizer's chat template where it has one, and are not separated. Long documents
    are tokenized in pieces, so that neither they nor what is read too much of them is ever held as a whole.

    Raises:
        SourceError: there is no text, or a document is no text; it is named.
    """
    separator = tokenizer("\n\n", add_special_tokens=False).input_ids
    parts: list[np.ndarray] = []
    count = 0
    refused: dict[str, int] = {}
    rows = RowReader("text", None, "a list of strings")
    for number, document in enumerate(documents, 1):
        if not isinstance(document, str):
            document = rows.text(document, number) or ""
        rendered = _rendered(tokenizer, document, refused)
        for piece in [rendered] if len(rendered) <= PIECE else in_pieces([rendered]):
            if not piece.strip():
                continue
            apart = count and not isinstance(piece, Continuation) and not isinstance(document, Continuation)
            ids = tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
            if apart and rendered is document:
                ids = separator + ids
            parts.append(np.asarray(ids, dtype=np.int32))
            count += len(ids)
            if at_least is not None and count >= at_least:
                break
        if at_least is not None and count >= at_least:
            break
    for reason, times in refused.items():
        report(f"The chat template refused {times:,} conversations ({reason}); they are read as role: content.")
    if not count:
        raise SourceError("The text is empty. Calibration and measurement need text.")
    return TokenText(torch.from_numpy(np.concatenate(parts).astype(np.int64)), bos_token(tokenizer))


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt, with the special tokens that the tokenizer adds; a BOS that is written out is not doubled."""
    ids = tokenizer(prompt, verbose=False).input_ids
    bos = bos_token(tokenizer)
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _rendered(tokenizer: Any, document: str, refused: dict[str, int]) -> str:
    """A conversation as the chat template writes it; the document itself where there is none or it refuses."""
    if not isinstance(document, Conversation) or not getattr(tokenizer, "chat_template", None):
        return document
    try:
        # where the tokenizer adds BOS, windows begin with it; elsewhere the same token may open every turn
        return document.render(tokenizer, without="" if bos_token(tokenizer) is None else tokenizer.bos_token)
    except Exception as error:  # templates raise their own errors, and Jinja's, on turns that they do not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        refused[reason] = refused.get(reason, 0) + 1
        return document


def tokens_sha256(ids: Tensor) -> str:
    """SHA-256 of token ids as little-endian int32, hexadecimal."""
    return hashlib.sha256(ids.to(torch.int32).numpy().astype("<i4").tobytes()).hexdigest()
