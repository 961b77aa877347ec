"""Scores of a compressed model against the exact one, one a file: every file's `SCORE` is in every row of `sq compare`.

A score is a function of the log-probabilities `[T, V]` of the exact and of the compressed model and of the targets `[T]`;
it gives a value a token, `[T]`. Rows show its mean over the scored tokens under `scores`, and `sq gate` judges it like
any other figure.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from torch import Tensor

Score = Callable[[Tensor, Tensor, Tensor], Tensor]


def scores() -> dict[str, Score]:
    """Every score by the name of its file."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").SCORE for name in names}
