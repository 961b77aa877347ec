"""Is the uncompressed model any good on this text? Compared with a unigram model, which knows how often each token occurs.

A wrong tokenizer, damaged weights or a text in a language that the model has never seen give a full table of figures that
mean nothing: what compression costs cannot be seen on predictions that are worthless without it.
"""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from spectralquant.errors import SuspectModelWarning

HARDLY_BETTER = 0.8


def perplexity(nats: float) -> float:
    """exp of a mean of nats per token; what overflows is infinite."""
    return math.exp(nats) if nats < 700 else math.inf if nats == nats else math.nan


def unigram_perplexity(targets: Tensor) -> float:
    """Perplexity of scored tokens `[n]` under their own frequencies: what knowing no context at all would reach."""
    counts = targets.reshape(-1).unique(return_counts=True)[1].double()
    share = counts / counts.sum()
    return perplexity(float(-(share * share.log()).sum()))


def hardly_better(base_ppl: float, unigram_ppl: float) -> bool:
    """Whether a perplexity is over four fifths of the unigram's, or no number."""
    return not base_ppl <= HARDLY_BETTER * unigram_ppl


def warn_if_suspect(base_ppl: float, unigram_ppl: float) -> None:
    """Warn (`SuspectModelWarning`) where the uncompressed model predicts hardly better than token frequencies."""
    if hardly_better(base_ppl, unigram_ppl):
        warnings.warn(
            f"The uncompressed model's perplexity on this text is {base_ppl:,.1f}; a unigram model, which knows no context, "
            f"reaches {unigram_ppl:,.1f}. Figures measured with this model on this text mean little. Most often the tokenizer "
            "is wrong (run `sq doctor`: some versions convert GGUF tokenizers wrongly), the weights are damaged or random, or "
            "the text is in a language that the model does not know.",
            SuspectModelWarning,
            stacklevel=3,
        )
