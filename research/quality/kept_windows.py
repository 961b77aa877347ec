"""`measure`, some windows at a time, each kept in a file: a run that is cut off loses what it had not finished of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from spectralquant.evaluation.measure import Measurement, measure
from spectralquant.evaluation.totals import StreamTotals
from spectralquant.evaluation.unigram import unigram_perplexity
from spectralquant.files import write_text
from spectralquant.methods.base import AnyMethod
from spectralquant.models.load import LoadedModel

AT_ONCE = 3


def measured(
    folder: Path,
    loaded: LoadedModel,
    windows: Tensor,
    methods: Sequence[AnyMethod],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measurement]:
    """What `measure` returns of `windows: [n, T]`; files of windows in `folder`, which belongs to this measurement alone."""
    totals: list[list[StreamTotals]] = [[] for _ in methods]
    for first in range(0, len(windows), AT_ONCE):
        progress(first, len(windows))
        file = folder / f"windows-{first}.json"
        if not file.is_file():
            some = measure(loaded.model, loaded.geometry, windows[first : first + AT_ONCE], methods)
            write_text(file, json.dumps([[_stored(w) for w in m.windows] for m in some]))
        for own, more in zip(totals, json.loads(file.read_text(encoding="utf-8")), strict=True):
            own += [StreamTotals(**w) for w in more]
    progress(len(windows), len(windows))
    unigram = unigram_perplexity(windows[:, 1:])
    return [Measurement(m.name, m.options, m.exact_bits, own, unigram) for m, own in zip(methods, totals, strict=True)]


def _stored(totals: StreamTotals) -> dict[str, Any]:
    """A closed window's sums."""
    fields = asdict(replace(totals, codes=[], keeps={}))
    return {name: value for name, value in fields.items() if name not in ("codes", "keeps")}
