"""`Trial`: one text with an answer at its end, and how its parts are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralquant.errors import InputError
from spectralquant.text.bos import bos_token

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
DEPTHS = (0.1, 0.5, 0.3, 0.7, 0.2, 0.6, 0.4, 0.8)
LEAST_FILLER = 64


@dataclass(frozen=True)
class Trial:
    """Token ids int64 `[T]`; the last `answer` of them are the answer."""

    ids: Tensor
    answer: int


def hidden(tokenizer: Any, context: int, pieces: Sequence[tuple[float, str]], question: str, answer: str) -> Trial:
    """Filler of `context` tokens in all, `pieces` put in at their depths (0 to 1, rising), the question, the answer.

    Raises:
        InputError: no room for filler.
    """
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    coded = [(depth, encode(text)) for depth, text in pieces]
    end, reply = encode(question), encode(answer)
    start = [] if (first := bos_token(tokenizer)) is None else [first]
    room = context - sum(len(ids) for _, ids in coded) - len(end) - len(reply) - len(start)
    if room < LEAST_FILLER:
        raise InputError(f"A context of {context} tokens is too short for this task; give a longer --task-context.")
    filler = encode(FILLER)
    filler = (filler * (room // len(filler) + 1))[:room]
    ids, at = start, 0
    for depth, piece in coded:
        stop = max(at, int(depth * room))
        ids = ids + filler[at:stop] + piece
        at = stop
    return Trial(torch.tensor(ids + filler[at:] + end + reply, dtype=torch.int64), len(reply))


def digits(chooser: Any, count: int = 5) -> str:
    """A number to remember, without zeros."""
    return "".join(chooser.choice("123456789") for _ in range(count))
