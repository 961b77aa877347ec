"""Several texts in one: runs of tokens taken from each in turn, as often as its weight says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectralquant.errors import SourceError
from spectralquant.text.bos import bos_token
from spectralquant.text.documents.report import Report, warn
from spectralquant.text.read import TextSource
from spectralquant.text.tokens import SourceShare, TokenText, tokenize, tokens_sha256


@dataclass(frozen=True)
class MixedText(TokenText):
    """Tokens of one or several texts. owner int16 `[N / run]`: which text each run of tokens is from (None: there is one)."""

    names: tuple[str, ...] = ("text",)
    weights: tuple[float, ...] = (1.0,)
    owner: Tensor | None = None
    run: int = 0

    def shares(self, tokens: int | None = None) -> list[SourceShare]:
        """What each text gave to the first `tokens` tokens (None: all)."""
        ids = self.ids[:tokens]
        owners = self._owners(len(ids))
        out = []
        for index, (name, weight) in enumerate(zip(self.names, self.weights, strict=True)):
            mine = ids if owners is None else ids[owners == index]
            out.append(SourceShare(name, weight, len(mine), tokens_sha256(mine)))
        return out

    def seen(self, before: Sequence[Any]) -> int:
        """One past the last token that also stands in texts used before (objects with `tokens` and `sha256`): a text
        counts as the same where its first tokens are the same, whatever its name, weight or company.
        """
        owners = self._owners(len(self.ids))
        last = 0
        for index in range(len(self.names)):
            places = None if owners is None else torch.nonzero(owners == index).flatten()
            mine = self.ids if places is None else self.ids[places]
            for other in before:
                if 0 < other.tokens <= len(mine) and tokens_sha256(mine[: other.tokens]) == other.sha256:
                    last = max(last, other.tokens if places is None else int(places[other.tokens - 1]) + 1)
        return last

    def _owners(self, count: int) -> Tensor | None:
        return None if self.owner is None else self.owner.repeat_interleave(self.run)[:count]


def tokenize_sources(
    tokenizer: Any,
    sources: Sequence[TextSource],
    at_least: int,
    *,
    window: int,
    read: int | None = None,
    report: Report = warn,
) -> MixedText:
    """Tokens of texts, mixed by weight: a window of one, then one of that which is furthest behind its share.

    Every beginning of the mix holds the texts in these shares, so what calibrates, is held out and is scored is mixed
    alike. Texts are read until they give `read` tokens together (default: `at_least`); `report` is told when that ends
    before the text does.

    Raises:
        SourceError: a text gives less than its share of `at_least`; it is named.
    """
    want = max(at_least, read or 0)
    if len(sources) == 1:
        text = tokenize(tokenizer, sources[0].documents, want, report)
        _tell_limit(len(text.ids), read, report)
        return MixedText(text.ids, text.bos, names=(sources[0].name,), weights=(1.0,))
    bos = bos_token(tokenizer)
    run = window - (bos is not None)
    weights = np.array([s.weight for s in sources])
    share = weights / weights.sum()
    parts = [
        tokenize(tokenizer, s.documents, math.ceil(want * f) + run, report) for s, f in zip(sources, share, strict=True)
    ]
    owner = _turns([len(p.ids) // run for p in parts], share, math.ceil(want / run))
    if len(owner) * run < at_least:
        short = min(range(len(parts)), key=lambda i: len(parts[i].ids) / share[i])
        raise SourceError(
            f"{sources[short].name} gives {len(parts[short].ids):,} tokens; its share ({share[short]:.0%} by weight) of "
            f"{at_least:,} is {math.ceil(at_least * share[short]):,}. Give it more text, a smaller weight, or take fewer "
            "steps or windows."
        )
    _tell_limit(len(owner) * run, read, report)
    ids = torch.empty(len(owner) * run, dtype=torch.int64)
    for index, part in enumerate(parts):
        mine = np.flatnonzero(owner == index)
        ids.view(-1, run)[torch.from_numpy(mine)] = part.ids[: len(mine) * run].view(-1, run)
    return MixedText(
        ids,
        bos,
        names=tuple(s.name for s in sources),
        weights=tuple(s.weight for s in sources),
        owner=torch.from_numpy(owner.astype(np.int16)),
        run=run,
    )


def _tell_limit(count: int, read: int | None, report: Report) -> None:
    if read is not None and count >= read:
        report(f"The text is read up to {count:,} tokens; windows are taken from these.")


def _turns(runs: list[int], share: np.ndarray, most: int) -> np.ndarray:
    """Whose turn it is, int `[n]`, n up to `most`, until the one whose turn it is has no more runs."""
    given = np.zeros(len(runs), dtype=np.int64)
    order = []
    for turn in range(most):
        index = int(np.argmax(share * (turn + 1) - given))
        if given[index] == runs[index]:
            break
        given[index] += 1
        order.append(index)
    return np.array(order, dtype=np.int64)
