"""Text of a model with random weights: its tokenizer knows bytes alone, and the model answers with any token of its vocabulary."""

from __future__ import annotations

from itertools import groupby

from transformers import ByT5Tokenizer

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class TolerantBytes(ByT5Tokenizer):
    """Bytes as text; a token that is neither a byte nor a special token is a replacement character."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of tokens by name, as `ByT5Tokenizer` gives it where that can read them."""
        text = ""
        for known, run in groupby(tokens, self._is_known):
            some = list(run)
            text += super().convert_tokens_to_string(some) if known else UNKNOWN * len(some)
        return text

    def _is_known(self, token: str) -> bool:
        return len(token) > 1 or ord(token) < 256
